//! Base models: configuration, weights, tokenizer, chat template, read from HF folders and GGUF files.
pub mod config;
pub mod source;
pub mod base;
pub mod chat;
pub use base::{Base, Linear, LinearKind};
pub use config::{Architecture, ModelConfig, RopeScaling};
pub use source::{Dtype, TensorRef};
