//! An opened base model (weights stay in the mapped file).
use crate::{chat::Tokenizer, config::ModelConfig, source::TensorRef};
use std::path::{Path, PathBuf};

/// Role of a linear in its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum LinearKind {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

/// One linear that a delta may cover, in the base's fixed order (layer by layer: q k v o gate up down).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// HF tensor name.
    pub name: String,
    /// Layer.
    pub layer: usize,
    /// Role.
    pub kind: LinearKind,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

/// Errors (owner: error.rs).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// I/O
    #[error("{path}: {source}")]
    Io {
        /// Path.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

/// An opened model. Cheap to open: nothing but headers, tokenizer and config is read.
#[derive(Debug)]
pub struct Base {
    /// Shapes and constants.
    pub config: ModelConfig,
    /// Tokenizer and chat template.
    pub tokenizer: Tokenizer,
    /// Where it was opened.
    pub path: PathBuf,
    /// Display name (folder or file stem).
    pub name: String,
}

impl Base {
    /// `name_or_path`: an HF folder, a `.gguf` file, or a hub id.
    pub fn open(name_or_path: &str) -> Result<Self, Error> {
        let _ = name_or_path;
        unimplemented!()
    }
    /// Every tensor that the model's forward pass needs, in fixed order (tied lm_head absent).
    pub fn tensors(&self) -> &[TensorRef] {
        unimplemented!()
    }
    /// The linears in fixed order.
    pub fn linears(&self) -> &[Linear] {
        unimplemented!()
    }
    /// Whether a tensor of this HF name exists.
    pub fn has(&self, name: &str) -> bool {
        let _ = name;
        unimplemented!()
    }
    /// A tensor as f32, row-major, dequantised and un-permuted. Parallel inside (rayon).
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        let _ = name;
        unimplemented!()
    }
    /// Rows `rows` of a tensor as f32 into `out` (streaming; `out.len() == rows.len() * cols`).
    pub fn rows_f32(&self, name: &str, rows: std::ops::Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let _ = (name, rows, out);
        unimplemented!()
    }
    /// BLAKE3 over names, shapes, types and bytes of all tensors (hex); computed once and remembered.
    pub fn fingerprint(&self) -> &str {
        unimplemented!()
    }
    /// Writes an HF folder (config.json with old and new keys, tokenizer files, chat template, safetensors shards).
    /// `tensor` is asked for each tensor's f32 values in turn: (name, base values) -> values to write.
    pub fn export_hf(
        &self,
        dir: &Path,
        dtype: crate::source::Dtype,
        tensor: &mut dyn FnMut(&str, Vec<f32>) -> Result<Vec<f32>, Error>,
    ) -> Result<(), Error> {
        let _ = (dir, dtype, tensor);
        unimplemented!()
    }
}
