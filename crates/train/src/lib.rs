//! Training, compression of pairs, and evaluation.
//!
//! A user's conversations become a variant ([`run`]), a fine-tuned model that exists already becomes one
//! ([`pair`]), an adapter of PEFT becomes one ([`import`]), and any is held against its base ([`evaluate`]), moved to
//! a new version of it ([`rebase`]) and written for other programs ([`merge`]). Start at [`TrainConfig`] and
//! [`run::run`]; the model's forward and backward pass is [`graph`]. Not here: the quantizer and the file
//! (`bitdelta-delta`), generation (`bitdelta-engine`), and anything that prints.
pub mod batch;
pub mod budget;
mod checkpoint;
pub mod compress;
pub mod config;
pub mod data;
pub mod draw;
pub mod error;
pub mod evaluate;
pub mod graph;
pub mod import;
pub mod merge;
pub mod objective;
pub mod optimiser;
pub mod pair;
pub mod pool;
pub mod progress;
pub mod rebase;
pub mod run;
pub mod sample;
pub mod teach;
pub mod template;
pub use config::{Method, TrainConfig};
pub use error::Error;
