//! Training, compression of pairs, and evaluation.
pub mod compress;
pub mod error;
pub mod graph;
pub mod progress;
pub use error::Error;
