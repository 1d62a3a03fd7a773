//! The command line: argument parsing and printing only. What is computed is computed in the crates below.
//!
//! Start at [`bitdelta`] and [`hanzo_node`], the arguments of two of the binaries. A command is a file in [`commands`]
//! with an `Args` struct and `run(&args) -> Result<(), Error>`; [`settings`] fills it from flags, environment and file;
//! [`exit`] turns the result into what the shell sees.
//! Results go to stdout, progress and logs to stderr.
pub mod bitdelta;
pub mod commands;
pub mod cost;
pub mod error;
pub mod exit;
pub mod hanzo_node;
pub mod interrupt;
pub mod llamafactory;
pub mod logging;
pub mod node;
pub mod output;
pub mod settings;
pub use bitdelta_delta::sizes;
pub use error::{Context, Error};
