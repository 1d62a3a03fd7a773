//! Opening a model: from a folder, a GGUF file, or the hub.

mod gguf;
mod hub;
mod safetensors;

pub(crate) use safetensors::json;

use crate::{
    Base, Error, ModelConfig, alias,
    chat::Tokenizer,
    layout,
    source::{Stored, TensorRef},
};
use bitdelta_kernels::map::MappedFile;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// What an opener finds; [`crate::Base`] adds names and indexes.
#[derive(Debug)]
pub(crate) struct Opened {
    pub config: ModelConfig,
    pub tokenizer: Arc<Tokenizer>,
    pub path: PathBuf,
    pub files: Vec<MappedFile>,
    pub tensors: Vec<(TensorRef, Stored)>,
    pub origin: Origin,
}

/// What kind of thing a base was opened from; an export copies a folder's own files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    HfFolder,
    Gguf,
}

/// Opens a folder, a GGUF file, what an alias stands for, or a model of the hub by its id. A folder without tokenizer files
/// borrows `lender`'s.
pub(crate) fn open(name_or_path: &str, lender: Option<&Base>) -> Result<Opened, Error> {
    if let Some(opened) = open_local(Path::new(name_or_path), lender) {
        return opened;
    }
    match alias::resolve(name_or_path)? {
        Some(local) => open_local(Path::new(&local), lender).unwrap_or_else(|| {
            let reason = format!("it stands for {local}, where there is no such folder or file");
            Err(Error::NotFound { name: name_or_path.to_owned(), reason })
        }),
        None => safetensors::open(&hub::fetch(name_or_path)?, lender),
    }
}

/// Opens the folder or GGUF file at `path`, if there is one.
fn open_local(path: &Path, lender: Option<&Base>) -> Option<Result<Opened, Error>> {
    if path.is_dir() { Some(safetensors::open(path, lender)) } else { path.is_file().then(|| gguf::open(path)) }
}

/// Puts the tensors that the configuration asks for into the fixed order, each with the shape that follows from it.
fn assemble(
    path: &Path,
    config: &ModelConfig,
    mut find: impl FnMut(&str) -> Option<Stored>,
) -> Result<Vec<(TensorRef, Stored)>, Error> {
    let mut all = Vec::new();
    for (name, expected) in layout::tensors(config) {
        let Some(stored) = find(&name) else { return Err(Error::MissingTensor { path: path.to_owned(), name }) };
        if stored.shape != expected {
            return Err(Error::Shape { path: path.to_owned(), name, expected, got: stored.shape });
        }
        let (rows, cols) = stored.rows_cols();
        all.push((TensorRef { name, dtype: stored.dtype, rows, cols }, stored));
    }
    Ok(all)
}
