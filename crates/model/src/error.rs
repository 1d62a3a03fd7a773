//! What can go wrong with a base model, and what the reader can do about it.

use std::{io, path::PathBuf};

/// Errors of this crate: each says what, where and, where there is a remedy, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to read or write a file.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A name is neither a folder, nor a GGUF file, nor a model that the hub could give.
    #[error(
        "no model `{name}`: {reason}; pass a model folder (config.json, tokenizer.json, *.safetensors) or a .gguf file"
    )]
    NotFound {
        /// What was asked for.
        name: String,
        /// What was tried and how it ended.
        reason: String,
    },
    /// A model folder lacks a file.
    #[error("{path}: not there; {remedy}")]
    MissingFile {
        /// The file that should be there.
        path: PathBuf,
        /// What to do.
        remedy: String,
    },
    /// A file does not hold what its format says: cut short, damaged, or made by something else.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was expected and found, with the place in the file.
        reason: String,
    },
    /// A model of a family that this crate cannot run.
    #[error("{path}: architecture `{found}` is not supported (supported: LlamaForCausalLM, Qwen3ForCausalLM)")]
    UnknownArchitecture {
        /// The configuration or GGUF file.
        path: PathBuf,
        /// What it names.
        found: String,
    },
    /// A known family with a feature that this crate lacks.
    #[error("{path}: {feature} is not supported; {remedy}")]
    Unsupported {
        /// The configuration or GGUF file.
        path: PathBuf,
        /// The feature and its value.
        feature: String,
        /// What to do.
        remedy: String,
    },
    /// The weights lack a tensor that the configuration promises.
    #[error("{path}: tensor `{name}` is missing; the weights are incomplete or belong to another config")]
    MissingTensor {
        /// The folder or GGUF file.
        path: PathBuf,
        /// HF name.
        name: String,
    },
    /// A tensor's shape is not the one that follows from the configuration.
    #[error("{path}: tensor `{name}` has shape {got:?}, the configuration says {expected:?}")]
    Shape {
        /// The file that holds it.
        path: PathBuf,
        /// HF name.
        name: String,
        /// Shape worked out from the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
    },
    /// A caller asked for a tensor that the model does not have.
    #[error("this model has no tensor `{name}`")]
    NoSuchTensor {
        /// The name asked for.
        name: String,
    },
    /// A caller asked for rows outside a tensor, or gave a buffer of the wrong length.
    #[error("tensor `{name}`: rows {start}..{end} of {rows} into a buffer of {got} values, expected {expected}")]
    Rows {
        /// HF name.
        name: String,
        /// First row asked for.
        start: usize,
        /// End of the rows asked for.
        end: usize,
        /// Rows of the tensor.
        rows: usize,
        /// Values that the rows hold.
        expected: usize,
        /// Length of the caller's buffer.
        got: usize,
    },
    /// The tokenizer could not be built or could not encode.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// The cause.
        reason: String,
    },
    /// The chat template is absent, does not compile, or refused the messages.
    #[error("chat template `{template}`: {reason}")]
    Template {
        /// Which template.
        template: String,
        /// The cause, in the template's own words where it raised one.
        reason: String,
    },
    /// An export cannot be written as asked.
    #[error("export to {path}: {reason}")]
    Export {
        /// The target folder.
        path: PathBuf,
        /// The cause and what to do.
        reason: String,
    },
}

impl Error {
    /// An I/O error at `path`, for `map_err`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A malformed file at `path`.
    pub(crate) fn malformed(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.into(), reason: reason.into() }
    }

    /// An unsupported feature in `path`.
    pub(crate) fn unsupported(path: impl Into<PathBuf>, feature: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unsupported { path: path.into(), feature: feature.into(), remedy: remedy.into() }
    }
}
