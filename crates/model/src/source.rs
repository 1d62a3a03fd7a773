//! Tensors as they lie in a mapped file: element types, shapes, and the way to f32 values.
//!
//! A row of a block-quantised tensor is a whole number of blocks, so any run of rows is a run of bytes; that is what
//! lets `Stored::rows_f32` stream a tensor that never exists in full.

use crate::gguf::{blocks, quants};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Element type as stored. The quantised types are GGUF's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// 4 bits, one scale for 32 values.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32 values.
    Q4_1,
    /// 5 bits, one scale for 32 values.
    Q5_0,
    /// 5 bits, a scale and a minimum for 32 values.
    Q5_1,
    /// 8 bits, one scale for 32 values.
    Q8_0,
    /// 2-bit K-quant, 256 values a block.
    Q2K,
    /// 3-bit K-quant.
    Q3K,
    /// 4-bit K-quant.
    Q4K,
    /// 5-bit K-quant.
    Q5K,
    /// 6-bit K-quant.
    Q6K,
}

impl Dtype {
    /// Name as in file formats (`F32`, `BF16`, `Q4_K`); part of the fingerprint, so it never changes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Values and bytes of one block; a plain float is a block of one value.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// The most bits a code has, for the types that [`Base::code_blocks`](crate::Base::code_blocks) reads.
    pub fn code_bits(self) -> Option<u32> {
        blocks::bits(self)
    }

    /// Whether an element is a float of its own, readable without its neighbours.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Bytes of `values` values in one row; `None` unless they fill whole blocks.
    pub(crate) fn row_bytes(self, values: usize) -> Option<usize> {
        let (per_block, bytes) = self.block();
        values.is_multiple_of(per_block).then(|| (values / per_block).checked_mul(bytes))?
    }
}

/// A tensor as stored: (rows, cols) row-major; vectors are (1, n). GGUF Llama q/k rows are already un-permuted on read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef {
    /// HF name, e.g. `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Rows (1 for vectors).
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// Borrowed bytes of a tensor whose layout is plain: row-major floats in the order of the HF model.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    /// F32, F16 or Bf16.
    pub dtype: Dtype,
    /// Rows (1 for vectors).
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `rows · cols` little-endian values, of any alignment.
    pub bytes: &'a [u8],
}

/// A block-quantised tensor as it is stored: value = code · scale + minimum, with one of each for 32 columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeBlocks {
    /// `rows · cols` codes, row-major.
    pub codes: Vec<u8>,
    /// `rows · cols / 32` f16 bits.
    pub scales: Vec<u16>,
    /// Like `scales`.
    pub minima: Vec<u16>,
}

/// Where a tensor lies. The loaders guarantee that `range` lies in the file and fits the shape.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Which of the base's mapped files.
    pub file: usize,
    /// Bytes in that file.
    pub range: Range<usize>,
    /// Element type.
    pub dtype: Dtype,
    /// Shape as in the file: one or two dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Width of the heads whose rows llama.cpp's converter interleaved, if it did.
    pub interleaved_head_dim: Option<usize>,
}

impl Stored {
    /// (rows, cols), a vector being one row.
    pub fn rows_cols(&self) -> (usize, usize) {
        match self.shape[..] {
            [rows, cols] => (rows, cols),
            _ => (1, self.shape.iter().product()),
        }
    }

    /// Row of the file that holds row `row` of the HF model.
    ///
    /// HF keeps the two halves of a rotary pair half a head apart, a Llama GGUF side by side: row (head, half, i)
    /// of HF is row (head, i, half) of the file.
    fn file_row(&self, row: usize) -> usize {
        match self.interleaved_head_dim {
            None => row,
            Some(width) => interleaved(row, width),
        }
    }

    /// Dequantises rows into `out` (row-major, `rows.len() · cols` values), in parallel over rows.
    pub fn rows_f32(&self, bytes: &[u8], rows: Range<usize>, out: &mut [f32]) {
        let (_, cols) = self.rows_cols();
        if self.shape.len() == 1 && self.interleaved_head_dim.is_some() {
            let mut stored = vec![0.0; cols];
            dequantize(self.dtype, bytes, &mut stored);
            for (index, value) in out.iter_mut().enumerate() {
                *value = stored[self.file_row(index)];
            }
            return;
        }
        let row_bytes = bytes.len() / self.rows_cols().0.max(1);
        // Several rows at a time, so that a task is worth its hand-over.
        let rows_per_task = (1_usize << 14).div_ceil(cols.max(1));
        out.par_chunks_mut(rows_per_task * cols.max(1)).enumerate().for_each(|(task, out)| {
            for (index, out) in out.chunks_mut(cols.max(1)).enumerate() {
                let row = self.file_row(rows.start + task * rows_per_task + index);
                dequantize(self.dtype, &bytes[row * row_bytes..(row + 1) * row_bytes], out);
            }
        });
    }
}

/// Where a Llama GGUF has row `row` of an HF model's queries or keys, in heads of `width`.
pub(crate) fn interleaved(row: usize, width: usize) -> usize {
    let (head, inside) = (row / width, row % width);
    head * width + (inside % (width / 2)) * 2 + inside / (width / 2)
}

impl Stored {
    /// All rows as codes; `None` for types without, and where a minimum is beyond f16.
    pub fn code_blocks(&self, bytes: &[u8]) -> Option<CodeBlocks> {
        self.dtype.code_bits()?;
        let (rows, cols) = self.rows_cols();
        if self.shape.len() != 2 || rows == 0 || cols == 0 {
            return None;
        }
        let (groups, row_bytes) = (cols / blocks::BLOCK, bytes.len() / rows);
        let mut codes = vec![0; rows * cols];
        let (mut scales, mut minima) = (vec![0; rows * groups], vec![0; rows * groups]);
        let each = codes.par_chunks_mut(cols).zip(scales.par_chunks_mut(groups)).zip(minima.par_chunks_mut(groups));
        let finite = each.enumerate().map(|(row, ((codes, scales), minima))| {
            let row = self.file_row(row);
            blocks::split(self.dtype, &bytes[row * row_bytes..(row + 1) * row_bytes], codes, scales, minima)
        });
        finite.reduce(|| true, |a, b| a && b).then_some(CodeBlocks { codes, scales, minima })
    }
}

/// One row's bytes to its values.
pub(crate) fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*raw);
            }
        }
        Dtype::F16 => {
            for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*raw).to_f32();
            }
        }
        Dtype::Bf16 => {
            for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = bf16::from_le_bytes(*raw).to_f32();
            }
        }
        _ => quants::dequantize(dtype, bytes, out),
    }
}
