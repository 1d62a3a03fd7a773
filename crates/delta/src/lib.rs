//! Deltas: what a variant is, how it is quantised, and the file it lives in.
pub mod config;
pub mod dense;
pub mod part;
pub mod file;
pub use config::{BitDeltaConfig, GroupSize};
