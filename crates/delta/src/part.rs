//! The kinds of delta. A linear's delta is the sum of its parts; no part at all is `Skip`.
use crate::dense::PackedMatrix;

/// One additive part of a linear's delta (rows = outputs, cols = inputs).
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// b-bit codes with group scales.
    Dense(PackedMatrix),
    /// Δ = Bᵀᵀ·A: `a` is (rank, cols), `bt` is (rank, rows); Δ[o,i] = Σ_r bt[r,o]·a[r,i].
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
