//! How far a delta's stored form is from the delta.

use crate::{
    Values,
    part::{Part, Rows},
};
use rayon::prelude::*;
use std::ops::Add;

/// Squared Frobenius norms of an error and of what it is an error of; they add up over tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distance {
    /// ‖Δ̂ − Δ‖²
    pub error: f64,
    /// ‖Δ‖²
    pub norm: f64,
}

impl Distance {
    /// ‖Δ̂ − Δ‖ ÷ ‖Δ‖. For a zero Δ: 0 when Δ̂ is zero too, else infinity.
    pub fn relative(&self) -> f32 {
        if self.error == 0.0 { 0.0 } else { (self.error / self.norm).sqrt() as f32 }
    }
}

impl Add for Distance {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { error: self.error + other.error, norm: self.norm + other.norm }
    }
}

/// The distance of the sum of `parts`, as stored, from `delta` (rows, cols) row-major. Expands a row at a time.
pub fn distance(parts: &[Part], delta: &[f32], cols: usize) -> Distance {
    row_by_row(parts, delta.len() / cols, cols, |row, out| out.copy_from_slice(&delta[row * cols..][..cols]))
}

/// [`distance`] from the difference of a pair, `tuned` − `base`, which is taken a row at a time.
///
/// # Panics
/// When the two are not of one length.
pub fn distance_of_pair(parts: &[Part], base: Values<'_>, tuned: Values<'_>, cols: usize) -> Distance {
    assert_eq!(base.len(), tuned.len(), "two matrices of one shape");
    row_by_row(parts, tuned.len() / cols, cols, |row, out| base.subtract_from(&tuned, row * cols, out))
}

/// The distance from a delta whose row `row` `delta(row, out)` writes.
fn row_by_row(parts: &[Part], rows: usize, cols: usize, delta: impl Fn(usize, &mut [f32]) + Sync) -> Distance {
    let stored = Rows::new(parts);
    // A sum for each row, then in row order: the figure does not depend on the threads.
    let rows: Vec<Distance> = (0..rows)
        .into_par_iter()
        .map_init(
            || (vec![0.0; cols], vec![0.0; cols], Vec::new()),
            |(wanted, values, scratch), row| {
                delta(row, wanted);
                values.fill(0.0);
                stored.add_row(row, values, scratch);
                wanted.iter().zip(values).fold(Distance::default(), |sum, (&delta, &mut stored)| {
                    let (delta, stored) = (f64::from(delta), f64::from(stored));
                    sum + Distance { error: (stored - delta).powi(2), norm: delta.powi(2) }
                })
            },
        )
        .collect();
    rows.into_iter().fold(Distance::default(), Add::add)
}

/// [`distance`] as one figure: ‖Δ̂ − Δ‖ ÷ ‖Δ‖.
pub fn relative_error(parts: &[Part], delta: &[f32], cols: usize) -> f32 {
    distance(parts, delta, cols).relative()
}

/// 8 · bytes ÷ weights in the linears.
pub fn bits_per_weight(bytes: u64, weights: u64) -> f64 {
    8.0 * bytes as f64 / weights as f64
}
