//! Base models: configuration, weights, tokenizer, chat template, read from HF folders and GGUF files.
//!
//! [`Base::open`] is the entry: it checks everything that could keep a model from running and maps the weights.
//! [`layout`] has the one list of a model's linears; [`chat`] makes prompts that messages cannot break out of;
//! `gguf` parses GGUF on its own, treating the file as hostile; [`adapter`] reads PEFT adapters. Not here: the forward pass (`bitdelta-engine`), deltas
//! (`bitdelta-delta`), and any check of the weights' values.

pub mod adapter;
pub mod alias;
pub mod base;
pub mod chat;
pub mod config;
pub mod configuration;
mod error;
mod export;
mod gguf;
pub mod layout;
pub mod memory;
pub mod nearest;
mod open;
mod random;
pub mod source;

pub use adapter::Adapter;
pub use base::Base;
pub use config::{Architecture, ModelConfig, RopeScaling};
pub use error::Error;
pub use export::Rewrite;
pub use layout::{Linear, LinearKind};
pub use random::{random_bytes, write_random};
pub use source::{CodeBlocks, Dtype, Raw, TensorRef};
