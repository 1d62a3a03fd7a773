//! The `hanzo-node` binary.
use bitdelta_cli::{exit, hanzo_node};
use std::process::ExitCode;

fn main() -> ExitCode {
    exit::report(hanzo_node::start(std::env::args_os()))
}
