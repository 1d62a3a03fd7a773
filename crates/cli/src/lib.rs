//! The command line: argument parsing and printing only.
pub mod commands;
