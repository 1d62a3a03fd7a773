//! The `bitdelta` binary.
use bitdelta_cli::{bitdelta, exit};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    exit::report(bitdelta::run(&bitdelta::Cli::parse()))
}
