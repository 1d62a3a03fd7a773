//! Training, compression of pairs, and evaluation.
pub mod compress;
pub mod error;
pub mod evaluate;
pub mod graph;
pub mod merge;
pub mod progress;
pub use error::Error;
