//! RMSNorm: y = x / √(mean(x²) + ε) · w, with its backward.

use super::matrix::{Matrix, dot};
use bitdelta_kernels::widely;
use rayon::prelude::*;

/// The normalisation's constants; they are not trained.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// One factor a column.
    pub weight: Vec<f32>,
    /// ε.
    pub eps: f32,
}

impl RmsNorm {
    /// x (tokens, width) -> (tokens, width)
    pub fn forward(&self, x: &Matrix) -> Matrix {
        let mut out = Matrix::any(x.rows(), x.cols());
        let width = x.cols();
        out.values_mut().par_chunks_mut(width).zip(x.values().par_chunks(width)).for_each(|(out, x)| {
            widely(
                #[inline(always)]
                || self.forward_row(x, out),
            )
        });
        out
    }

    /// Adds to `dx` the gradient that reaches x when `dy` reaches y. All (tokens, width).
    pub fn backward_add(&self, x: &Matrix, dy: &Matrix, dx: &mut Matrix) {
        let width = x.cols();
        dx.values_mut()
            .par_chunks_mut(width)
            .zip(x.values().par_chunks(width))
            .zip(dy.values().par_chunks(width))
            .for_each(|((dx, x), dy)| {
                widely(
                    #[inline(always)]
                    || self.backward_row_add(x, dy, dx),
                )
            });
    }

    /// One row of [`RmsNorm::forward`].
    #[inline(always)]
    pub fn forward_row(&self, x: &[f32], out: &mut [f32]) {
        let inverse = self.inverse(x);
        for ((out, x), w) in out.iter_mut().zip(x).zip(&self.weight) {
            *out = x * inverse * w;
        }
    }

    /// One row of [`RmsNorm::backward_add`].
    #[inline(always)]
    pub fn backward_row_add(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        // With n = width and i = 1/√(mean(x²)+ε): dx = i·(w∘dy) − x · i³/n · Σ w∘dy∘x.
        let inverse = self.inverse(x);
        // dx is still needed as it was, so w∘dy is formed twice instead of being kept.
        let weighted = |lane: usize| x[lane] * dy[lane] * self.weight[lane];
        let mut lanes = [0.0f32; 16];
        for from in (0..x.len() / 16).map(|block| 16 * block) {
            let (x, dy, w) = (&x[from..from + 16], &dy[from..from + 16], &self.weight[from..from + 16]);
            for lane in 0..16 {
                lanes[lane] += x[lane] * dy[lane] * w[lane];
            }
        }
        let tail: f32 = (x.len() / 16 * 16..x.len()).map(weighted).sum();
        let shared = (lanes.iter().sum::<f32>() + tail) * inverse * inverse * inverse / x.len() as f32;
        for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(&self.weight) {
            *dx += inverse * w * dy - x * shared;
        }
    }

    #[inline(always)]
    fn inverse(&self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }
}
