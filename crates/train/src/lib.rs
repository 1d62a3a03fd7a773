//! Training, compression of pairs, and evaluation.
pub mod progress;
