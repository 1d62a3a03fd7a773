//! How far a delta's stored form is from the delta.

use crate::part::{self, Part};
use rayon::prelude::*;

/// ‖Δ̂ − Δ‖ ÷ ‖Δ‖ in Frobenius norms, Δ̂ being the sum of `parts` as stored and `delta` (rows, cols) row-major.
/// A zero delta gives 0 when it is reproduced exactly and infinity else.
pub fn relative_error(parts: &[Part], delta: &[f32], rows: usize, cols: usize) -> f32 {
    let stored = part::dequantize(parts, rows, cols);
    // A sum for each row, then in row order: the figure does not depend on the threads.
    let sums: Vec<(f64, f64)> = delta
        .par_chunks(cols)
        .zip(stored.par_chunks(cols))
        .map(|(delta, stored)| {
            delta.iter().zip(stored).fold((0.0, 0.0), |(error, norm), (&delta, &stored)| {
                let (delta, stored) = (f64::from(delta), f64::from(stored));
                (error + (stored - delta).powi(2), norm + delta.powi(2))
            })
        })
        .collect();
    let (error, norm) = sums.iter().fold((0.0, 0.0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
    if error == 0.0 { 0.0 } else { (error / norm).sqrt() as f32 }
}

/// 8 · bytes ÷ weights in the linears.
pub fn bits_per_weight(bytes: u64, weights: u64) -> f64 {
    8.0 * bytes as f64 / weights as f64
}
