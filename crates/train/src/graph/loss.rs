//! Cross-entropy of the next token over a large vocabulary, without ever holding all logits.
//!
//! Rows are taken a block at a time: their logits are formed, turned into the loss and, in place, into the logits'
//! gradient, and multiplied back at once. The head is frozen, so no other gradient is needed. For a vocabulary of
//! 49,152 a block of 128 rows is 25 MB, whatever the batch.

use super::matrix::{Matrix, exp, product};
use bitdelta_kernels::widely;
use rayon::prelude::*;

/// Rows whose logits exist at one time.
pub(crate) const ROWS_PER_BLOCK: usize = 128;

/// The losses of all rows, and the gradient of `hidden`, (rows, width), if asked for.
#[derive(Debug)]
pub struct CrossEntropy {
    /// Σ −ln p(target), not scaled.
    pub loss: f64,
    /// −ln p(target) of each row.
    pub of_rows: Vec<f64>,
    /// The gradient of the sum, each row's loss times its weight.
    pub gradient: Option<Matrix>,
}

/// hidden (rows, width), head (vocabulary, width), targets (rows). `scale` asks for the gradient times it.
///
/// # Errors
/// What candle's product reports.
pub fn cross_entropy(
    hidden: &Matrix,
    head: &Matrix,
    targets: &[u32],
    scale: Option<f32>,
) -> candle_core::Result<CrossEntropy> {
    in_blocks(hidden, head, targets, scale.is_some(), |_| scale.unwrap_or_default())
}

/// As [`cross_entropy`], with the gradient of Σ weight · (−ln p(target)): a weight a row, which may be negative.
///
/// # Errors
/// What candle's product reports.
pub fn weighted_cross_entropy(
    hidden: &Matrix,
    head: &Matrix,
    targets: &[u32],
    weights: &[f32],
) -> candle_core::Result<CrossEntropy> {
    assert_eq!(weights.len(), hidden.rows(), "a weight a row");
    in_blocks(hidden, head, targets, true, |row| weights[row])
}

fn in_blocks(
    hidden: &Matrix,
    head: &Matrix,
    targets: &[u32],
    wants_gradient: bool,
    weight: impl Fn(usize) -> f32 + Sync,
) -> candle_core::Result<CrossEntropy> {
    let mut of_rows = Vec::with_capacity(hidden.rows());
    let mut gradient = wants_gradient.then(|| Vec::with_capacity(hidden.rows() * hidden.cols()));
    for from in (0..hidden.rows()).step_by(ROWS_PER_BLOCK) {
        let to = (from + ROWS_PER_BLOCK).min(hidden.rows());
        let mut logits = product(hidden.view().rows(from..to), head.t())?;
        let cols = logits.cols();
        of_rows.par_extend(logits.values_mut().par_chunks_mut(cols).zip(&targets[from..to]).enumerate().map(
            |(at, (logits, &target))| {
                let weight = wants_gradient.then(|| weight(from + at));
                widely(
                    #[inline(always)]
                    || row(logits, target as usize, weight),
                )
            },
        ));
        if let Some(gradient) = &mut gradient {
            gradient.extend_from_slice(product(logits.view(), head.view())?.values());
        }
    }
    let gradient = gradient.map(|values| Matrix::new(hidden.rows(), hidden.cols(), values));
    Ok(CrossEntropy { loss: of_rows.iter().sum(), of_rows, gradient })
}

/// One row's loss; with a scale, its logits become scale · (softmax − one-hot).
#[inline(always)]
fn row(logits: &mut [f32], target: usize, scale: Option<f32>) -> f64 {
    let wanted = logits[target];
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for block in logits.chunks_mut(1024) {
        let mut lanes = [0.0f32; 16];
        for values in block.chunks_mut(16) {
            for (value, lane) in values.iter_mut().zip(&mut lanes) {
                let power = exp(*value - largest);
                *lane += power;
                if scale.is_some() {
                    *value = power;
                }
            }
        }
        sum += f64::from(lanes.iter().sum::<f32>());
    }
    if let Some(scale) = scale {
        let factor = (f64::from(scale) / sum) as f32;
        for value in logits.iter_mut() {
            *value *= factor;
        }
        logits[target] -= scale;
    }
    sum.ln() - f64::from(wanted - largest)
}
