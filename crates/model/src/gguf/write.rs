//! A GGUF file's bytes: the header from metadata and a tensor table, and values in the file's types.
//!
//! Version 3, little-endian; see [`super`] for the layout. Sizes follow from shapes and types, so the header is whole
//! before any value is read.

use super::ALIGNMENT;
use crate::{
    Error,
    export::{CHUNK_VALUES, encode},
    source::Dtype,
};
use half::f16;
use rayon::prelude::*;
use std::{io::Write, path::Path};

/// Metadata as it is written, pair by pair.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    bytes: Vec<u8>,
    count: u64,
}

/// A tensor of the table.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    /// GGUF name.
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    pub dtype: Dtype,
}

impl Tensor {
    /// Bytes of the values; `None` where they fill no whole blocks.
    pub fn bytes(&self) -> Option<u64> {
        let (cols, rows) = self.shape.split_last()?;
        let rows: usize = rows.iter().product();
        self.dtype.row_bytes(*cols).map(|bytes| bytes as u64 * rows as u64)
    }
}

impl Pairs {
    /// A pair as it lies in another file: key, type and value.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.count += 1;
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.bytes.extend(value.to_le_bytes());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend(value.to_le_bytes());
    }

    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.bytes.push(value.into());
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        put_text(&mut self.bytes, value);
    }

    pub fn texts<'a>(&mut self, key: &str, values: impl ExactSizeIterator<Item = &'a str>) {
        self.array(key, 8, values.len());
        values.for_each(|value| put_text(&mut self.bytes, value));
    }

    pub fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len());
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub fn f32s(&mut self, key: &str, values: &[f32]) {
        self.array(key, 6, values.len());
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn key(&mut self, key: &str, kind: u32) {
        put_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.count += 1;
    }

    fn array(&mut self, key: &str, kind: u32, length: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((length as u64).to_le_bytes());
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Everything before the data, padding included.
pub(crate) fn header(pairs: &Pairs, tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(pairs.count.to_le_bytes());
    out.extend_from_slice(&pairs.bytes);
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|size| out.extend((*size as u64).to_le_bytes()));
        out.extend(kind(tensor.dtype).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.bytes().unwrap_or(0).next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

/// ggml's number of a type.
fn kind(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Q4_0 => 2,
        Dtype::Q4_1 => 3,
        Dtype::Q5_0 => 6,
        Dtype::Q5_1 => 7,
        Dtype::Q8_0 => 8,
        Dtype::Q2K => 10,
        Dtype::Q3K => 11,
        Dtype::Q4K => 12,
        Dtype::Q5K => 13,
        Dtype::Q6K => 14,
        Dtype::Bf16 => 30,
    }
}

/// Writes values of whole rows in `dtype`, which is F32, F16, BF16 or Q8_0.
pub(crate) fn put_values(writer: &mut dyn Write, path: &Path, values: &[f32], dtype: Dtype) -> Result<(), Error> {
    for chunk in values.chunks(CHUNK_VALUES) {
        let bytes = if dtype == Dtype::Q8_0 { q8_0(chunk) } else { encode(chunk, dtype) };
        writer.write_all(&bytes).map_err(Error::io(path))?;
    }
    Ok(())
}

/// Fills up to the next tensor's place.
pub(crate) fn put_padding(writer: &mut dyn Write, path: &Path, bytes: u64) -> Result<(), Error> {
    let padding = bytes.next_multiple_of(ALIGNMENT) - bytes;
    writer.write_all(&vec![0; padding as usize]).map_err(Error::io(path))
}

/// Blocks of 32 values: a step as f16, the largest magnitude being 127 of it, and a code each.
fn q8_0(values: &[f32]) -> Vec<u8> {
    let mut out = vec![0; values.len() / 32 * 34];
    out.par_chunks_mut(34).zip(values.par_chunks(32)).for_each(|(block, values)| {
        let step = values.iter().fold(0.0f32, |most, x| most.max(x.abs())) / 127.0;
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        block[..2].copy_from_slice(&f16::from_f32(step).to_le_bytes());
        for (code, x) in block[2..].iter_mut().zip(values) {
            *code = (x * inverse).round() as i8 as u8;
        }
    });
    out
}
