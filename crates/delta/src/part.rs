//! The kinds of delta. A linear's delta is the sum of its parts; no part at all is `Skip`.

use crate::dense::PackedMatrix;
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
            Self::Full { .. } => "full",
        }
    }

    /// (outputs, inputs) of the linear it belongs to.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Dense(matrix) => (matrix.rows, matrix.cols),
            Self::LowRank { a, bt } => (bt.cols, a.cols),
            Self::Full { rows, cols, .. } => (*rows, *cols),
        }
    }

    /// Bytes in memory and, but for section padding, in the file.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Dense(matrix) => matrix.bytes(),
            Self::LowRank { a, bt } => a.bytes() + bt.bytes(),
            Self::Full { values, .. } => values.len() as u64 * 2,
        }
    }

    /// The packed matrices inside, in file order.
    pub fn matrices(&self) -> Vec<&PackedMatrix> {
        match self {
            Self::Dense(matrix) => vec![matrix],
            Self::LowRank { a, bt } => vec![a, bt],
            Self::Full { .. } => Vec::new(),
        }
    }

    /// `weights` (rows, cols) row-major += this part, rows in parallel.
    pub fn add_to(&self, weights: &mut [f32]) {
        match self {
            Self::Dense(matrix) => {
                weights.par_chunks_mut(matrix.cols).enumerate().for_each_init(
                    || vec![0.0; matrix.cols],
                    |values, (row, weights)| {
                        matrix.dequantize_row(row, values);
                        add_scaled(weights, values, 1.0);
                    },
                );
            }
            Self::LowRank { a, bt } => {
                let (factor_a, factor_bt) = (a.dequantize(), bt.dequantize());
                weights.par_chunks_mut(a.cols).enumerate().for_each(|(row, weights)| {
                    for (component, values) in factor_a.chunks(a.cols).enumerate() {
                        add_scaled(weights, values, factor_bt[component * bt.cols + row]);
                    }
                });
            }
            Self::Full { values, .. } => {
                for (weight, &bits) in weights.iter_mut().zip(values) {
                    *weight += f16::from_bits(bits).to_f32();
                }
            }
        }
    }
}

/// The sum of `parts` as a (rows, cols) matrix, row-major.
pub fn dequantize(parts: &[Part], rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * cols];
    for part in parts {
        part.add_to(&mut out);
    }
    out
}

fn add_scaled(out: &mut [f32], values: &[f32], factor: f32) {
    for (out, value) in out.iter_mut().zip(values) {
        *out += factor * value;
    }
}
