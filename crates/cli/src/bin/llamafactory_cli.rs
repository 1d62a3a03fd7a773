//! The `llamafactory-cli` binary.
use bitdelta_cli::{exit, llamafactory, logging};
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    exit::report(logging::start(None, "warn").and_then(|()| llamafactory::run(&words)))
}
