//! The kinds of delta. A linear's delta is the sum of its parts; no part at all is `Skip`.

use crate::dense::PackedMatrix;
use bitdelta_kernels::SparseRows;
use half::f16;
use rayon::prelude::*;

/// One additive part of a linear's delta (rows = outputs, cols = inputs).
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// b-bit codes with group scales.
    Dense(PackedMatrix),
    /// Δ\[o, i\] = Σ_r bt\[r, o\] · a\[r, i\]: `a` is (rank, cols), `bt` is (rank, rows).
    LowRank {
        /// (rank, cols)
        a: PackedMatrix,
        /// (rank, rows)
        bt: PackedMatrix,
    },
    /// The few levels of each row that are not zero, in multiples of the row's step (see [`crate::tread`]).
    Sparse(SparseRows),
    /// f16 values (bits), row-major (rows, cols).
    Full {
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
        /// f16 bits.
        values: Vec<u16>,
    },
}

impl Part {
    /// The kind's name as `inspect` prints it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dense(_) => "dense",
            Self::LowRank { .. } => "lowrank",
            Self::Sparse(_) => "sparse",
            Self::Full { .. } => "full",
        }
    }

    /// (outputs, inputs) of the linear it belongs to.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Dense(matrix) => (matrix.rows, matrix.cols),
            Self::LowRank { a, bt } => (bt.cols, a.cols),
            Self::Sparse(rows) => rows.shape(),
            Self::Full { rows, cols, .. } => (*rows, *cols),
        }
    }

    /// Bytes in memory and, of what the file does not code, in the file but for section padding.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Dense(matrix) => matrix.bytes(),
            Self::LowRank { a, bt } => a.bytes() + bt.bytes(),
            Self::Sparse(rows) => rows.bytes(),
            Self::Full { values, .. } => values.len() as u64 * 2,
        }
    }

    /// The packed matrices inside, in file order.
    pub fn matrices(&self) -> Vec<&PackedMatrix> {
        match self {
            Self::Dense(matrix) => vec![matrix],
            Self::LowRank { a, bt } => vec![a, bt],
            Self::Sparse(_) | Self::Full { .. } => Vec::new(),
        }
    }
}

/// The rows of a sum of parts, with the factors of low-rank parts expanded once (rank · (rows + cols) values).
#[derive(Debug)]
pub struct Rows<'a>(Vec<Ready<'a>>);

#[derive(Debug)]
enum Ready<'a> {
    Dense(&'a PackedMatrix),
    /// `a` (rank, cols), `b` (rows, rank)
    LowRank {
        cols: usize,
        rank: usize,
        a: Vec<f32>,
        b: Vec<f32>,
    },
    Sparse(&'a SparseRows),
    Full {
        cols: usize,
        values: &'a [u16],
    },
}

impl<'a> Rows<'a> {
    /// Rows of the sum of `parts`.
    pub fn new(parts: &'a [Part]) -> Self {
        let ready = parts.iter().map(|part| match part {
            Part::Dense(matrix) => Ready::Dense(matrix),
            Part::LowRank { a, bt } => {
                let (rank, rows, transposed) = (a.rows, bt.cols, bt.dequantize());
                let b = (0..rows * rank).map(|at| transposed[at % rank * rows + at / rank]).collect();
                Ready::LowRank { cols: a.cols, rank, a: a.dequantize(), b }
            }
            Part::Sparse(rows) => Ready::Sparse(rows),
            Part::Full { cols, values, .. } => Ready::Full { cols: *cols, values },
        });
        Self(ready.collect())
    }

    /// `weights` (cols) += row `row`. `scratch` is memory to reuse between calls.
    pub fn add_row(&self, row: usize, weights: &mut [f32], scratch: &mut Vec<f32>) {
        for part in &self.0 {
            match part {
                Ready::Dense(matrix) => {
                    scratch.resize(matrix.cols, 0.0);
                    matrix.dequantize_row(row, scratch);
                    add_scaled(weights, scratch, 1.0);
                }
                Ready::LowRank { cols, rank, a, b } => {
                    for (values, factor) in a.chunks(*cols).zip(&b[row * rank..]) {
                        add_scaled(weights, values, *factor);
                    }
                }
                Ready::Sparse(rows) => rows.add_row(row, weights),
                Ready::Full { cols, values } => {
                    add_halves(weights, &values[row * cols..]);
                }
            }
        }
    }
}

/// `out` (cols) += row `row` of the sum of `parts`, from the packed form: nothing larger than the row is made. Has the
/// bits of [`Rows::add_row`], which is for many rows.
pub fn add_row(parts: &[Part], row: usize, out: &mut [f32]) {
    let mut values = vec![0.0; out.len()];
    for part in parts {
        match part {
            Part::Dense(matrix) => {
                matrix.dequantize_row(row, &mut values);
                add_scaled(out, &values, 1.0);
            }
            Part::LowRank { a, bt } => {
                for r in 0..a.rows {
                    a.dequantize_row(r, &mut values);
                    add_scaled(out, &values, bt.value(r, row));
                }
            }
            Part::Sparse(rows) => rows.add_row(row, out),
            Part::Full { cols, values, .. } => add_halves(out, &values[row * cols..]),
        }
    }
}

/// `weights` (rows, cols) row-major += the sum of `parts`, rows in parallel.
pub fn add_to(parts: &[Part], weights: &mut [f32], cols: usize) {
    let rows = Rows::new(parts);
    weights
        .par_chunks_mut(cols)
        .enumerate()
        .for_each_init(Vec::new, |scratch, (row, weights)| rows.add_row(row, weights, scratch));
}

/// The sum of `parts` as a (rows, cols) matrix, row-major.
pub fn dequantize(parts: &[Part], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * cols];
    add_to(parts, &mut out, cols);
    out
}

fn add_scaled(out: &mut [f32], values: &[f32], factor: f32) {
    for (out, value) in out.iter_mut().zip(values) {
        *out += factor * value;
    }
}

fn add_halves(out: &mut [f32], halves: &[u16]) {
    for (out, &bits) in out.iter_mut().zip(halves) {
        *out += f16::from_bits(bits).to_f32();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BitDeltaConfig, factor, quantize,
        tread::{Levels, Step},
    };

    #[test]
    fn a_row_from_the_packed_form_has_the_bits_of_the_whole() {
        let (rows, cols, rank) = (37, 150, 3);
        let noise = |n: usize| -> Vec<f32> { (0..n).map(|i| ((i * 7919 % 613) as f32 - 300.0) / 300.0).collect() };
        let coded = |bits, symmetric, enable_compression| {
            let config = BitDeltaConfig { bits, symmetric, enable_compression, ..Default::default() };
            quantize("w", &noise(rows * cols), rows, cols, &config).unwrap()
        };
        let low_rank = factor("w", &noise(rank * cols), &noise(rows * rank), (rows, rank, cols), 4).unwrap();
        let steps = vec![Step::nearest(0.7); rows];
        let sparse = Part::Sparse(Levels::of(&noise(rows * cols), cols, &steps, 0.0).sparse().unwrap());
        let parts = [coded(1, true, true), low_rank, coded(4, false, true), coded(1, true, false), sparse];
        let whole = dequantize(&parts, rows, cols);
        for (row, expected) in whole.chunks(cols).enumerate() {
            let mut found = vec![0.0; cols];
            add_row(&parts, row, &mut found);
            assert_eq!(found, expected, "row {row}");
        }
    }
}
