//! The `hanzo-node` binary.
use bitdelta_cli::{exit, hanzo_node};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    exit::report(hanzo_node::run(&hanzo_node::Cli::parse()))
}
