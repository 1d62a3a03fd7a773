//! The `bitdelta` binary.
use bitdelta_cli::{bitdelta, exit};
use std::process::ExitCode;

fn main() -> ExitCode {
    exit::report(bitdelta::start(std::env::args_os()))
}
