//! Low-rank parts from trained factors: rotated and balanced by the SVD of their product, then quantised.
//!
//! B·A has many factorings; codes with a scale for each 64 inputs of a component fit best when components are the
//! product's singular ones, each split evenly: A' = Σ^½ Vᵀ, B' = U Σ^½. Found from r×r Gram matrices alone
//! (r is small), with G = BᵀB:
//!
//! ```text
//! H = G^½;  M = H (A Aᵀ) H = U Σ² Uᵀ        B A = (B H⁻¹ U) Σ (Σ⁻¹ Uᵀ H A)
//! A' = Σ^-½ Uᵀ H A                           B'ᵀ = Σ^½ Uᵀ H⁻¹ Bᵀ
//! ```
//!
//! At 16 bits the same factors are kept as f16, as a LoRA file has them. Components below `CUTOFF` of the largest are rounding noise of the Gram matrices and become zero.

use crate::{
    Error, Part,
    floats::halves,
    quantize::{Codes, check, pack},
};
use rayon::prelude::*;

/// Inputs a scale in a factor's row.
pub const FACTOR_GROUP: usize = 64;
/// Eigenvalues of a Gram matrix under this share of the largest count as zero.
const CUTOFF: f64 = 1e-13;

/// The part for Δ = B·A at `bits` (1 to 8, or 16 for f16) a weight: `a` (rank, cols), `b` (rows, rank), both row-major.
///
/// # Errors
/// A wrong length, NaN or infinity in a factor, named as `tensor` with row and column; bits out of range.
pub fn factor(
    tensor: &str,
    a: &[f32],
    b: &[f32],
    (rows, rank, cols): (usize, usize, usize),
    bits: u8,
) -> Result<Part, Error> {
    let (of_a, of_b) = (format!("{tensor} (A)"), format!("{tensor} (B)"));
    if bits == 16 {
        check(&of_a, a, rank, cols)?;
        check(&of_b, b, rows, rank)?;
        let (a, bt) = balance(a, b, (rows, rank, cols));
        return Ok(Part::LowRank { a: halves(&of_a, &a, rank, cols)?, bt: halves(&of_b, &bt, rank, rows)? });
    }
    let codes = Codes { bits, group: FACTOR_GROUP, symmetric: true, clip: None };
    // Packing the given factors checks their shapes and values and names the one that is wrong.
    pack(&of_a, a, rank, cols, codes)?;
    pack(&of_b, b, rows, rank, codes)?;
    let (a, bt) = balance(a, b, (rows, rank, cols));
    Ok(Part::LowRank { a: pack(&of_a, &a, rank, cols, codes)?, bt: pack(&of_b, &bt, rank, rows, codes)? })
}

/// A' (rank, cols) and B'ᵀ (rank, rows) of the same product, components by falling singular value. See the module.
pub fn balance(a: &[f32], b: &[f32], (rows, rank, cols): (usize, usize, usize)) -> (Vec<f32>, Vec<f32>) {
    let a: Vec<f64> = a.iter().map(|&x| f64::from(x)).collect();
    let bt: Vec<f64> = (0..rank).flat_map(|r| (0..rows).map(move |row| f64::from(b[row * rank + r]))).collect();
    let (h, h_inverse) = roots(&gram(&bt, rank, rows), rank);
    let middle = multiply(&multiply(&h, &gram(&a, rank, cols), rank), &h, rank);
    let (squares, u) = eigen(middle, rank);
    let top = squares.iter().fold(0.0f64, |top, &x| top.max(x));
    let mut order: Vec<usize> = (0..rank).collect();
    order.sort_by(|&i, &j| squares[j].total_cmp(&squares[i]));

    // Rows of these two (rank, rank) matrices make the new components out of the old factors' rows.
    let (mut to_a, mut to_b) = (vec![0.0; rank * rank], vec![0.0; rank * rank]);
    for (row, &component) in order.iter().enumerate().filter(|(_, c)| squares[**c] > CUTOFF * top) {
        let split = squares[component].sqrt().sqrt();
        for j in 0..rank {
            let along = |m: &[f64]| (0..rank).map(|k| u[k * rank + component] * m[k * rank + j]).sum::<f64>();
            to_a[row * rank + j] = along(&h) / split;
            to_b[row * rank + j] = along(&h_inverse) * split;
        }
    }
    (mix(&to_a, &a, rank, cols), mix(&to_b, &bt, rank, rows))
}

/// `m` (rank, rank) · `x` (rank, n) -> (rank, n), rounded to f32.
fn mix(m: &[f64], x: &[f64], rank: usize, n: usize) -> Vec<f32> {
    let mut out = vec![0.0f32; rank * n];
    out.par_chunks_mut(n).enumerate().for_each(|(row, out)| {
        let mut sums = vec![0.0f64; n];
        for (k, x) in x.chunks(n).enumerate() {
            let weight = m[row * rank + k];
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += weight * x);
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
    });
    out
}

/// `x` (rank, n) · xᵀ -> (rank, rank).
fn gram(x: &[f64], rank: usize, n: usize) -> Vec<f64> {
    (0..rank * rank)
        .into_par_iter()
        .map(|at| x[at / rank * n..][..n].iter().zip(&x[at % rank * n..][..n]).map(|(x, y)| x * y).sum())
        .collect()
}

/// (rank, rank) · (rank, rank).
fn multiply(x: &[f64], y: &[f64], rank: usize) -> Vec<f64> {
    (0..rank * rank).map(|at| (0..rank).map(|k| x[at / rank * rank + k] * y[k * rank + at % rank]).sum()).collect()
}

/// The square root of a positive semidefinite (rank, rank) matrix, and that root's pseudo-inverse.
fn roots(matrix: &[f64], rank: usize) -> (Vec<f64>, Vec<f64>) {
    let (values, vectors) = eigen(matrix.to_vec(), rank);
    let top = values.iter().fold(0.0f64, |top, &x| top.max(x));
    let build = |f: &dyn Fn(f64) -> f64| -> Vec<f64> {
        (0..rank * rank)
            .map(|at| {
                (0..rank)
                    .filter(|&k| values[k] > CUTOFF * top)
                    .map(|k| vectors[at / rank * rank + k] * f(values[k]) * vectors[at % rank * rank + k])
                    .sum()
            })
            .collect()
    };
    (build(&f64::sqrt), build(&|x| 1.0 / x.sqrt()))
}

/// Eigenvalues and eigenvectors (in columns) of a symmetric (rank, rank) matrix, by cyclic Jacobi rotations.
fn eigen(mut m: Vec<f64>, rank: usize) -> (Vec<f64>, Vec<f64>) {
    /// Sweeps converge quadratically; a dozen are enough for any matrix in f64.
    const SWEEPS: usize = 30;
    let mut vectors = vec![0.0; rank * rank];
    (0..rank).for_each(|i| vectors[i * rank + i] = 1.0);
    for _ in 0..SWEEPS {
        let mut turned = false;
        for p in 0..rank {
            for q in p + 1..rank {
                let off = m[p * rank + q];
                if off.abs() <= f64::EPSILON * (m[p * rank + p] * m[q * rank + q]).abs().sqrt() || off == 0.0 {
                    continue;
                }
                turned = true;
                let theta = (m[q * rank + q] - m[p * rank + p]) / (2.0 * off);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                for k in 0..rank {
                    rotate(&mut m, k * rank + p, k * rank + q, c, s);
                    rotate(&mut vectors, k * rank + p, k * rank + q, c, s);
                }
                for k in 0..rank {
                    rotate(&mut m, p * rank + k, q * rank + k, c, s);
                }
            }
        }
        if !turned {
            break;
        }
    }
    ((0..rank).map(|i| m[i * rank + i].max(0.0)).collect(), vectors)
}

fn rotate(m: &mut [f64], i: usize, j: usize, c: f64, s: f64) {
    (m[i], m[j]) = (c * m[i] - s * m[j], s * m[i] + c * m[j]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::part::dequantize;

    /// A deterministic spread of values in -1..1.
    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn product(a: &[f32], b: &[f32], (rows, rank, cols): (usize, usize, usize)) -> Vec<f32> {
        (0..rows * cols).map(|at| (0..rank).map(|r| b[at / cols * rank + r] * a[r * cols + at % cols]).sum()).collect()
    }

    fn distance(x: &[f32], y: &[f32]) -> f32 {
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
        norm(&mut x.iter().zip(y).map(|(x, y)| x - y)) / norm(&mut x.iter().copied())
    }

    #[test]
    fn balancing_keeps_the_product_and_evens_the_components() {
        let shape = (37, 5, 70);
        let (a, b) = (noise(5 * 70, 1), noise(37 * 5, 2).iter().map(|x| x * 1e-3).collect::<Vec<_>>());
        let (new_a, bt) = balance(&a, &b, shape);
        let new_b: Vec<f32> = (0..37 * 5).map(|at| bt[at % 5 * 37 + at / 5]).collect();
        assert!(distance(&product(&a, &b, shape), &product(&new_a, &new_b, shape)) < 1e-5);
        let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
        let norms: Vec<f32> = new_a.chunks(70).map(norm).collect();
        for (r, bt) in bt.chunks(37).enumerate() {
            assert!((norm(bt) / norms[r] - 1.0).abs() < 1e-4);
        }
        assert!(norms.windows(2).all(|pair| pair[0] >= pair[1]));
    }

    #[test]
    fn eight_bits_are_nearly_lossless_and_fewer_lose_more() {
        let shape = (96, 4, 128);
        let (a, b) = (noise(4 * 128, 3), noise(96 * 4, 4));
        let exact = product(&a, &b, shape);
        let errors = [16, 8, 4, 2].map(|bits| {
            let part = factor("w", &a, &b, shape, bits).unwrap();
            distance(&exact, &dequantize(&[part], 96, 128))
        });
        assert!(errors[0] < 1e-3 && errors[1] < 0.01 && errors[3] < 0.8, "{errors:?}");
        assert!(errors.is_sorted(), "{errors:?}");
    }

    #[test]
    fn an_untrained_factor_is_an_exact_zero() {
        let part = factor("w", &noise(2 * 9, 5), &[0.0; 7 * 2], (7, 2, 9), 4).unwrap();
        assert_eq!(dequantize(&[part], 7, 9), [0.0; 63]);
    }

    #[test]
    fn a_dependent_component_becomes_zero_without_harm() {
        let shape = (8, 3, 16);
        let (mut a, b) = (noise(3 * 16, 6), noise(8 * 3, 7));
        a.copy_within(0..16, 32);
        let (new_a, bt) = balance(&a, &b, shape);
        let new_b: Vec<f32> = (0..8 * 3).map(|at| bt[at % 3 * 8 + at / 3]).collect();
        assert!(distance(&product(&a, &b, shape), &product(&new_a, &new_b, shape)) < 1e-5);
        assert!(new_a[32..].iter().all(|&x| x == 0.0));
    }

    #[test]
    fn nan_in_a_factor_is_named() {
        let message = factor("q_proj", &[1.0, f32::NAN], &[1.0], (1, 1, 2), 4).unwrap_err().to_string();
        assert!(message.starts_with("q_proj (A)[0, 1] is NaN"), "{message}");
    }
}
