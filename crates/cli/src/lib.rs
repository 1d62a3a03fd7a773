//! The command line: argument parsing and printing only. What is computed is computed in the crates below.
//!
//! Start at `bin/bitdelta.rs`. A command is a file in [`commands`] with an `Args` struct and
//! `run(args) -> Result<(), Error>`; [`exit`] turns the result into what the shell sees. Results go to stdout, progress
//! and logs to stderr.
pub mod commands;
pub mod error;
pub mod exit;
pub mod logging;
pub mod sizes;
pub use error::{Context, Error};
