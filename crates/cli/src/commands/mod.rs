//! One file a command: its arguments, and a `run` that takes them.
pub mod progress;
