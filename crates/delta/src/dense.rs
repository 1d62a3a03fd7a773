//! Packed b-bit matrices as bit planes.
//!
//! Code `u` in `0..2^b` of an element stands for `offset + scale · (2u − (2^b − 1))`, an odd multiple of its group's
//! scale (scale is half the step). Written over the bits of u that is `scale · Σ_p 2^p · s_p` with s_p = ±1: a b-bit
//! matrix is b sign matrices, plane p weighing 2^p, and one kernel serves every b. At b = 1 the value is ±scale.

/// A packed (rows, cols) matrix. Canonical layout: see the fields.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedMatrix {
    /// Bits a weight, 1 to 8 (`Dense` uses 1, 2, 4).
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
    /// ceil(cols / 64)
    pub fn words_per_row(&self) -> usize {
        self.cols.div_ceil(64)
    }
    /// ceil(cols / group)
    pub fn groups_per_row(&self) -> usize {
        self.cols.div_ceil(self.group)
    }
    /// Writes row `row`'s values into `out` (length cols).
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let _ = (row, out);
        unimplemented!()
    }
}
