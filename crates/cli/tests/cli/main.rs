//! The binaries as a shell sees them: help, exit codes, what goes to stdout and what to stderr.
mod bench;
mod book;
mod bring;
mod doctor;
mod help;
mod json;
mod keys;
mod node;
mod report;
mod settings;
mod shells;
mod usage;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository")
}

/// The path of a golden model.
pub fn golden(name: &str) -> String {
    root().join("tests/golden").join(name).to_str().expect("UTF-8").to_owned()
}

/// One of the three binaries, with no configuration from the environment.
pub fn command(binary: &str) -> Command {
    let path = match binary {
        "bitdelta" => env!("CARGO_BIN_EXE_bitdelta"),
        "hanzo-node" => env!("CARGO_BIN_EXE_hanzo-node"),
        _ => env!("CARGO_BIN_EXE_llamafactory-cli"),
    };
    let mut command = Command::new(path);
    command
        .env_remove("BITDELTA_MODEL")
        .env("BITDELTA_CONFIG", "/dev/null")
        .env_remove("RUST_LOG")
        .env("NO_COLOR", "1");
    command
}

/// Runs a binary to its end.
pub fn run(binary: &str, arguments: &[&str]) -> Output {
    command(binary).args(arguments).output().expect("the binary runs")
}

/// What it wrote to stdout.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// What it wrote to stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}
