//! Packed b-bit matrices as bit planes.
//!
//! Code `u` in `0..2^b` of an element stands for `offset + scale · (2u − (2^b − 1))`, an odd multiple of its group's
//! scale (the scale is half the step; with q = u − 2^(b−1) that is `offset + (q + ½) · step`). Written over the bits of
//! u it is `offset + scale · Σ_p 2^p · s_p` with s_p = ±1: a b-bit matrix is b sign matrices, plane p weighing 2^p, and
//! one kernel serves every b. At b = 1 the value is ±scale.
//!
//! ```text
//! row 0, plane 0: word 0 (inputs 0..64) word 1 (inputs 64..128) …   ← bit i of word w is input 64w + i
//! row 0, plane 1: …
//! row 1, plane 0: …
//! ```

use crate::quantize::stored;
use bitdelta_kernels::Packed;
use half::f16;

/// A packed (rows, cols) matrix. Canonical layout: see the fields.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedMatrix {
    /// Bits a weight, 1 to 8 (`Dense` uses 1, 2, 4); 16 or 32 in a matrix of floats (see [`crate::floats`]).
    pub bits: u8,
    /// Output rows.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Inputs a scale; `cols` for whole rows. The last group of a row may be shorter.
    pub group: usize,
    /// `planes[(row · bits + p) · words_per_row + w]`, bit i ↔ input 64w+i; 1 is "+"; pad bits are 0.
    pub planes: Vec<u64>,
    /// `scales[row · groups_per_row + g]`, f16 bits, times `tensor_scale`.
    pub scales: Vec<u16>,
    /// Per-group offsets, f16 bits times `tensor_scale`; empty when symmetric.
    pub offsets: Vec<u16>,
    /// One f32 for the whole matrix.
    pub tensor_scale: f32,
}

impl PackedMatrix {
    /// The matrix as the kernels take it.
    pub fn packed(&self) -> Packed<'_> {
        Packed {
            bits: self.bits.into(),
            rows: self.rows,
            cols: self.cols,
            group: self.group,
            planes: &self.planes,
            scales: &self.scales,
            offsets: &self.offsets,
            tensor_scale: self.tensor_scale,
        }
    }

    /// Words of one plane of one row: ceil(cols / 64).
    pub fn words_per_row(&self) -> usize {
        self.cols.div_ceil(64)
    }

    /// Scales of one row: ceil(cols / group).
    pub fn groups_per_row(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// Scale of group `group` of row `row`, in units of the weights.
    pub fn scale(&self, row: usize, group: usize) -> f32 {
        f16::from_bits(self.scales[row * self.groups_per_row() + group]).to_f32() * self.tensor_scale
    }

    /// Offset of group `group` of row `row`, in units of the weights; 0 when symmetric.
    pub fn offset(&self, row: usize, group: usize) -> f32 {
        match self.offsets.get(row * self.groups_per_row() + group) {
            Some(&bits) => f16::from_bits(bits).to_f32() * self.tensor_scale,
            None => 0.0,
        }
    }

    /// The value at (row, col).
    pub fn value(&self, row: usize, col: usize) -> f32 {
        if self.is_float() {
            return self.entry(row, col) * self.tensor_scale;
        }
        let (words, bits) = (self.words_per_row(), usize::from(self.bits));
        let bit = |plane: usize| self.planes[(row * bits + plane) * words + col / 64] >> (col % 64) & 1;
        let code: u32 = (0..bits).map(|plane| (bit(plane) as u32) << plane).sum();
        let group = col / self.group;
        self.offset(row, group) + self.scale(row, group) * (2.0 * code as f32 - ((1u32 << bits) - 1) as f32)
    }

    /// Writes row `row`'s values into `out` (length cols).
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        if self.is_float() {
            return self.float_row(row, out);
        }
        self.levels(row, out);
        for (g, values) in out.chunks_mut(self.group).enumerate() {
            let (scale, offset) = (self.scale(row, g), self.offset(row, g));
            for value in values {
                *value = offset + scale * *value;
            }
        }
    }

    /// Writes the levels of row `row` into `out` (length cols): odd numbers, in scales.
    pub(crate) fn levels(&self, row: usize, out: &mut [f32]) {
        let words = self.words_per_row();
        let planes = &self.planes[row * usize::from(self.bits) * words..][..usize::from(self.bits) * words];
        let top = ((1u32 << self.bits) - 1) as f32;
        for (w, values) in out.chunks_mut(64).enumerate() {
            for (i, value) in values.iter_mut().enumerate() {
                let code: u32 =
                    (0..usize::from(self.bits)).map(|p| ((planes[p * words + w] >> i & 1) as u32) << p).sum();
                *value = 2.0 * code as f32 - top;
            }
        }
    }

    /// Multiplies each scale by its factor (rows · groups, none negative), rounded as scales are stored.
    ///
    /// # Panics
    /// When there are more or fewer factors than scales.
    pub fn multiply_scales(&mut self, factors: &[f32]) {
        assert_eq!(factors.len(), self.scales.len(), "a factor for each scale");
        let value = |bits: u16| f16::from_bits(bits).to_f32() * self.tensor_scale;
        let scales: Vec<f32> = self.scales.iter().zip(factors).map(|(bits, factor)| value(*bits) * factor).collect();
        let offsets: Vec<f32> = self.offsets.iter().map(|bits| value(*bits)).collect();
        self.tensor_scale = scales.iter().chain(&offsets).fold(0.0, |most, x| most.max(x.abs()));
        self.scales = scales.iter().map(|scale| stored(*scale, self.tensor_scale)).collect();
        self.offsets = offsets.iter().map(|offset| stored(*offset, self.tensor_scale)).collect();
    }

    /// All values, row-major (rows, cols).
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (row, values) in out.chunks_mut(self.cols).enumerate() {
            self.dequantize_row(row, values);
        }
        out
    }

    /// Bytes in memory and, but for section padding, in the file.
    pub fn bytes(&self) -> u64 {
        (self.planes.len() * 8 + (self.scales.len() + self.offsets.len()) * 2 + 4) as u64
    }
}
