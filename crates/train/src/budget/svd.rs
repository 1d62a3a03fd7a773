//! The largest singular components of a matrix, balanced, by randomised subspace iteration (Halko, Martinsson and Tropp
//! 2011, algorithm 4.4): a few products with the matrix and small dense algebra, where a full decomposition of 210
//! matrices of this size takes minutes.

use super::Factors;
use crate::{
    Error,
    graph::matrix::{Matrix, axpy, dot, product},
};
use bitdelta_delta::lowrank::balance;
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Directions beyond those asked for, which make the last ones accurate.
const OVERSAMPLING: usize = 8;
/// Rounds of multiplying by Δ and Δᵀ.
const ROUNDS: usize = 3;

/// The factors of the best approximation of `delta` (rows, cols) of at most `rank`: a Σ^½ on either side, components by
/// falling singular value.
///
/// # Errors
/// What the product reports.
pub fn truncated(delta: Vec<f32>, rows: usize, cols: usize, rank: usize, seed: u64) -> Result<Factors, Error> {
    let wide = (rank + OVERSAMPLING).min(rows).min(cols);
    let delta = Matrix::new(rows, cols, delta);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut start = Matrix::new(wide, cols, (0..wide * cols).map(|_| rng.random_range(-1.0..1.0)).collect());
    orthonormalise(&mut start);
    // Directions in rows: (wide, rows) and (wide, cols).
    let mut left = product(start.view(), delta.t())?;
    orthonormalise(&mut left);
    for _ in 0..ROUNDS {
        let mut right = product(left.view(), delta.view())?;
        orthonormalise(&mut right);
        left = product(right.view(), delta.t())?;
        orthonormalise(&mut left);
    }
    let right = product(left.view(), delta.view())?;
    let b: Vec<f32> = (0..rows * wide).map(|at| left.row(at % wide)[at / wide]).collect();
    let (mut a, mut bt) = balance(right.values(), &b, (rows, wide, cols));
    let rank = rank.min(wide);
    a.truncate(rank * cols);
    bt.truncate(rank * rows);
    Ok(Factors { rows, cols, a, bt })
}

/// Makes the rows of `m` orthonormal, each against those before it, twice, since once is not enough in f32; a row that
/// depends on them becomes zero.
fn orthonormalise(m: &mut Matrix) {
    let (rows, cols) = (m.rows(), m.cols());
    let values = m.values_mut();
    for row in 0..rows {
        let (before, rest) = values.split_at_mut(row * cols);
        let this = &mut rest[..cols];
        let length = dot(this, this).sqrt();
        for _ in 0..2 {
            for other in before.chunks(cols) {
                axpy(-dot(other, this), other, this);
            }
        }
        let left = dot(this, this).sqrt();
        let factor = if left > 1e-6 * length { 1.0 / left } else { 0.0 };
        this.iter_mut().for_each(|x| *x *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_components_of_a_known_matrix_are_found() {
        // A sum of outer products of cosines of different frequency, which are nearly orthogonal.
        let (rows, cols, singular) = (90, 70, [8.0f32, 4.0, 2.0, 1.0, 0.1]);
        let wave = |k: usize, n: usize, i: usize| {
            (std::f32::consts::PI * (k + 1) as f32 * (i as f32 + 0.5) / n as f32).cos() * (2.0 / n as f32).sqrt()
        };
        let value = |at: usize| -> f32 {
            let (row, col) = (at / cols, at % cols);
            singular.iter().enumerate().map(|(k, s)| s * wave(k, rows, row) * wave(k + 3, cols, col)).sum()
        };
        let delta: Vec<f32> = (0..rows * cols).map(value).collect();
        let found = truncated(delta.clone(), rows, cols, 3, 1).expect("factors");
        for (r, s) in singular[..3].iter().enumerate() {
            let norm = |values: &[f32]| dot(values, values);
            let (a, bt) = (norm(&found.a[r * cols..][..cols]), norm(&found.bt[r * rows..][..rows]));
            assert!((a - s).abs() < 1e-3 * s && (bt - s).abs() < 1e-3 * s, "component {r}: {a} {bt}");
        }
        let made = found.product();
        let error: f32 = made.iter().zip(&delta).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!((error - 1.01).abs() < 1e-2, "what is left is the rest of the components: {error}");
    }

    #[test]
    fn a_zero_matrix_has_zero_factors() {
        let found = truncated(vec![0.0; 12 * 9], 12, 9, 2, 1).expect("factors");
        assert!(found.a.iter().chain(&found.bt).all(|x| *x == 0.0));
    }
}
