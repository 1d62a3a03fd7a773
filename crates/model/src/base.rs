//! An opened base model (weights stay in the mapped file).

use crate::{
    chat::Tokenizer,
    config::ModelConfig,
    layout,
    open::{self, Opened, Origin},
    source::{CodeBlocks, Raw, Stored, TensorRef},
};
use bitdelta_kernels::map::MappedFile;
use rayon::prelude::*;
use std::{
    collections::HashMap,
    ops::{Deref, Range},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

pub use crate::{
    error::Error,
    layout::{Linear, LinearKind},
};

/// An opened model. Cheap to open: nothing but headers, tokenizer and config is read.
#[derive(Debug)]
pub struct Base {
    /// Shapes and constants.
    pub config: ModelConfig,
    /// Tokenizer and chat template; shared with the base where it was borrowed ([`Base::open_beside`]).
    pub tokenizer: Arc<Tokenizer>,
    /// Where it was opened: the folder or the GGUF file (for a hub id, the snapshot in the local cache).
    pub path: PathBuf,
    /// Display name (folder or file stem).
    pub name: String,
    pub(crate) origin: Origin,
    files: Vec<Arc<MappedFile>>,
    tensors: Vec<TensorRef>,
    stored: Vec<Stored>,
    positions: HashMap<String, usize>,
    linears: Vec<Linear>,
    fingerprint: OnceLock<String>,
}

impl Base {
    /// `name_or_path`: an HF folder, a `.gguf` file, an alias ([`crate::alias`]), or a hub id.
    ///
    /// # Errors
    /// Anything that would keep the model from running is found here, before any work: a missing or damaged file, an
    /// unknown architecture or feature, a tensor that is missing or of the wrong shape. See [`Error`].
    pub fn open(name_or_path: &str) -> Result<Self, Error> {
        open::open(name_or_path, None).map(|opened| Self::of(name_or_path, opened))
    }

    /// [`Base::open`] for a fine-tune of `base`: a folder without any tokenizer files, as `model.save_pretrained` alone
    /// writes it, borrows the tokenizer and chat template of `base`.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn open_beside(name_or_path: &str, base: &Self) -> Result<Self, Error> {
        open::open(name_or_path, Some(base)).map(|opened| Self::of(name_or_path, opened))
    }

    fn of(name_or_path: &str, opened: Opened) -> Self {
        let given = Path::new(name_or_path.trim_end_matches('/'));
        let is_file = given.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        let stem = if is_file { given.file_stem() } else { given.file_name() };
        let name = stem.map_or_else(|| name_or_path.to_owned(), |stem| stem.to_string_lossy().into_owned());
        let (tensors, stored): (Vec<TensorRef>, Vec<Stored>) = opened.tensors.into_iter().unzip();
        let positions = tensors.iter().enumerate().map(|(at, tensor)| (tensor.name.clone(), at)).collect();
        Self {
            linears: layout::linears(&opened.config),
            config: opened.config,
            tokenizer: opened.tokenizer,
            path: opened.path,
            name,
            origin: opened.origin,
            files: opened.files.into_iter().map(Arc::new).collect(),
            tensors,
            stored,
            positions,
            fingerprint: OnceLock::new(),
        }
    }

    /// Every tensor that the model's forward pass needs, in fixed order (tied lm_head absent).
    pub fn tensors(&self) -> &[TensorRef] {
        &self.tensors
    }

    /// The linears in fixed order.
    pub fn linears(&self) -> &[Linear] {
        &self.linears
    }

    /// Weights in all linears: what bits a weight are counted by.
    pub fn linear_weights(&self) -> u64 {
        self.linears.iter().map(|linear| linear.rows as u64 * linear.cols as u64).sum()
    }

    /// The matrices with a row for each token: the embedding, then the head where it is not tied.
    pub fn tables(&self) -> impl Iterator<Item = &TensorRef> {
        layout::TABLES.into_iter().filter_map(|name| self.tensor(name).ok())
    }

    /// Every matrix that a variant may change, in the fixed order of its entries: the linears, then the tables.
    pub fn matrices(&self) -> impl Iterator<Item = &TensorRef> {
        self.linears.iter().filter_map(|linear| self.tensor(&linear.name).ok()).chain(self.tables())
    }

    /// Whether a tensor of this HF name exists.
    pub fn has(&self, name: &str) -> bool {
        self.positions.contains_key(name)
    }

    /// Name, type and shape of a tensor.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn tensor(&self, name: &str) -> Result<&TensorRef, Error> {
        self.find(name).map(|(tensor, _)| tensor)
    }

    /// Bytes of all tensors as stored.
    pub fn stored_bytes(&self) -> u64 {
        self.stored.iter().map(|stored| stored.range.len() as u64).sum()
    }

    /// Bytes of all tensors as f32.
    pub fn bytes_f32(&self) -> u64 {
        self.tensors.iter().map(|tensor| 4 * (tensor.rows * tensor.cols) as u64).sum()
    }

    /// A tensor as f32, row-major, dequantised and un-permuted. Parallel inside (rayon).
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        let (tensor, stored) = self.find(name)?;
        let mut values = vec![0.0; tensor.rows * tensor.cols];
        stored.rows_f32(self.bytes(stored), 0..tensor.rows, &mut values);
        Ok(values)
    }

    /// A block-quantised matrix as it is stored, un-permuted; `None` for a type other than Q4_0 to Q8_0 and for a matrix
    /// whose minima are beyond f16. Parallel inside (rayon).
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn code_blocks(&self, name: &str) -> Result<Option<CodeBlocks>, Error> {
        let (_, stored) = self.find(name)?;
        Ok(stored.code_blocks(self.bytes(stored)))
    }

    /// Rows `rows` of a tensor as f32 into `out` (streaming; `out.len() == rows.len() * cols`).
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`]; [`Error::Rows`] for rows outside the tensor or a buffer of another length.
    pub fn rows_f32(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let (tensor, stored) = self.find(name)?;
        let expected = rows.len() * tensor.cols;
        if rows.start > rows.end || rows.end > tensor.rows || out.len() != expected {
            return Err(Error::Rows {
                name: name.to_owned(),
                start: rows.start,
                end: rows.end,
                rows: tensor.rows,
                expected,
                got: out.len(),
            });
        }
        if !rows.is_empty() {
            stored.rows_f32(self.bytes(stored), rows, out);
        }
        Ok(())
    }

    /// A tensor's bytes as they lie in the file, if they are plain floats in the order of the HF model; `None` for a
    /// quantised tensor and for the q/k rows of a Llama GGUF, which [`Base::tensor_f32`] reads.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn raw(&self, name: &str) -> Result<Option<Raw<'_>>, Error> {
        let (tensor, stored) = self.find(name)?;
        let plain = tensor.dtype.is_plain() && stored.interleaved_head_dim.is_none();
        let TensorRef { dtype, rows, cols, .. } = *tensor;
        Ok(plain.then(|| Raw { dtype, rows, cols, bytes: self.bytes(stored) }))
    }

    /// [`Self::raw`]'s bytes in the mapped file, for as long as whoever asked keeps them.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn mapped(&self, name: &str) -> Result<Option<MappedTensor>, Error> {
        let (tensor, stored) = self.find(name)?;
        let plain = tensor.dtype.is_plain() && stored.interleaved_head_dim.is_none();
        let file = &self.files[stored.file];
        Ok(plain.then(|| MappedTensor { file: Arc::clone(file), range: stored.range.clone() }))
    }

    /// Gives back the memory of what was read of the mapped files, but for those that [`Self::mapped`]'s tensors are in;
    /// reading it again works as before.
    pub fn forget(&self) {
        self.files.iter().filter(|file| Arc::strong_count(file) == 1).for_each(|file| file.forget());
    }

    /// BLAKE3 over names, shapes, types and bytes of all tensors (hex); computed once and remembered.
    ///
    /// It names what is stored: the HF folder and a GGUF of one model differ, and so do two quantisations.
    pub fn fingerprint(&self) -> &str {
        self.fingerprint.get_or_init(|| {
            let parts: Vec<blake3::Hash> = self
                .tensors
                .par_iter()
                .zip(&self.stored)
                .map(|(tensor, stored)| {
                    let mut hasher = blake3::Hasher::new();
                    // Every part ends in a byte that it cannot hold, so no two tensors share a hashed text.
                    let TensorRef { name, dtype, rows, cols } = tensor;
                    hasher.update(format!("{name}\0{}\0{rows}\0{cols}\0", dtype.name()).as_bytes());
                    hasher.update_rayon(self.bytes(stored));
                    hasher.finalize()
                })
                .collect();
            self.forget();
            let mut hasher = blake3::Hasher::new_derive_key("bitdelta base model fingerprint v1");
            for part in parts {
                hasher.update(part.as_bytes());
            }
            hasher.finalize().to_hex().to_string()
        })
    }

    /// The whole of a GGUF base's file.
    pub(crate) fn first_file(&self) -> &[u8] {
        self.files.first().map_or(&[], |file| file)
    }

    /// Whether a tensor has one dimension.
    pub(crate) fn is_vector(&self, name: &str) -> bool {
        self.find(name).is_ok_and(|(_, stored)| stored.shape.len() == 1)
    }

    fn find(&self, name: &str) -> Result<(&TensorRef, &Stored), Error> {
        let at = self.positions.get(name).ok_or_else(|| Error::NoSuchTensor { name: name.to_owned() })?;
        Ok((&self.tensors[*at], &self.stored[*at]))
    }

    fn bytes(&self, stored: &Stored) -> &[u8] {
        &self.files[stored.file][stored.range.clone()]
    }
}

/// A tensor's bytes in its file, which stays mapped while this lives.
#[derive(Debug, Clone)]
pub struct MappedTensor {
    file: Arc<MappedFile>,
    range: Range<usize>,
}

impl Deref for MappedTensor {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.file[self.range.clone()]
    }
}
