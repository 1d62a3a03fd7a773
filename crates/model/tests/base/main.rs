//! Base models opened from files: the committed tiny GGUF, folders exported from it, and damaged copies of both.

// Helpers of tests are tests too; clippy's own exception ends at the functions marked as such.
#![allow(clippy::unwrap_used)]

mod adapter;
mod chat;
mod damaged;
mod export;
mod gguf;
mod gguf_export;

use bitdelta_model::Base;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The golden file `name` of `tests/golden/gguf`.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf").join(name)
}

fn open(path: &Path) -> Base {
    Base::open(path.to_str().unwrap()).unwrap()
}

fn tiny() -> Base {
    open(&golden("tiny-llama.gguf"))
}

/// The tiny model as an HF folder of f32.
fn tiny_folder() -> (tempfile::TempDir, PathBuf) {
    let keep = tempfile::tempdir().unwrap();
    let folder = keep.path().join("tiny");
    tiny().export_hf(&folder, bitdelta_model::Dtype::F32, &mut |_, values| Ok(values)).unwrap();
    (keep, folder)
}

/// Changes a JSON file of a folder.
fn edit_json(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}
