//! The variant file.
use crate::{config::BitDeltaConfig, part::Part};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What `info` holds (zstd JSON).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Format version, 1.
    pub version: u32,
    /// Fingerprint of the base (hex).
    pub base: String,
    /// Human name of the base (display only).
    #[serde(default)]
    pub base_name: String,
    /// The configuration it was made with.
    pub config: BitDeltaConfig,
    /// Chat template the training prompts were made with: "model" or a --template name, and its hash.
    #[serde(default)]
    pub template: String,
    /// Provenance, fidelity, safety figures: free-form JSON.
    #[serde(default)]
    pub notes: serde_json::Map<String, serde_json::Value>,
}

/// A variant in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Figures and provenance.
    pub info: Info,
    /// For each linear in the base's fixed order: its parts.
    pub linears: Vec<LinearDelta>,
}

/// The delta of one linear.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearDelta {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Parts that add up; empty is Skip.
    pub parts: Vec<Part>,
    /// ‖Δ̂−Δ‖/‖Δ‖ as recorded when it was made; None when unknown.
    pub relative_error: Option<f32>,
}

/// Errors of this crate (owner: make it a documented non_exhaustive thiserror enum in `error.rs`).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// I/O with path.
    #[error("{path}: {source}")]
    Io {
        /// Path.
        path: std::path::PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

impl Variant {
    /// Reads and verifies a file, or a folder that holds `variant.safetensors`.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let _ = path;
        unimplemented!()
    }
    /// Writes atomically (temporary file, fsync, rename). Returns the file's bytes.
    pub fn write(&self, path: &Path) -> Result<u64, Error> {
        let _ = path;
        unimplemented!()
    }
    /// BLAKE3 content hash (hex), as stored in the file: names this exact variant.
    pub fn content_hash(&self) -> String {
        unimplemented!()
    }
}
