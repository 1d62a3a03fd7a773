//! Training, compression of pairs, and evaluation.
pub mod error;
pub mod progress;
pub use error::Error;
