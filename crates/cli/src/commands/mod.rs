//! One file a command: its arguments, and a `run` that takes them.
pub mod base;
pub mod bench;
pub mod chat;
pub mod compress;
pub mod demo;
pub mod eval;
pub mod export;
pub mod import;
pub mod inspect;
pub mod progress;
pub mod publish;
pub mod rebase;
pub mod serve;
pub mod train;
pub mod variants;
