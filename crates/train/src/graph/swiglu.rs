//! SwiGLU: silu(gate) ∘ up, where gate and up lie side by side in one matrix.

use super::matrix::{Matrix, exp};
use rayon::prelude::*;

/// gate_up (tokens, 2·width) -> (tokens, width)
pub fn forward(gate_up: &Matrix) -> Matrix {
    let width = gate_up.cols() / 2;
    let mut out = Matrix::zeros(gate_up.rows(), width);
    out.values_mut().par_chunks_mut(width).zip(gate_up.values().par_chunks(2 * width)).for_each(|(out, row)| {
        let (gate, up) = row.split_at(width);
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    });
    out
}

/// The gradient of gate_up, (tokens, 2·width), from that of the output, (tokens, width).
pub fn backward(gate_up: &Matrix, dy: &Matrix) -> Matrix {
    let width = dy.cols();
    let mut out = Matrix::zeros(gate_up.rows(), 2 * width);
    out.values_mut()
        .par_chunks_mut(2 * width)
        .zip(gate_up.values().par_chunks(2 * width))
        .zip(dy.values().par_chunks(width))
        .for_each(|((out, row), dy)| {
            let (gate, up) = row.split_at(width);
            let (dgate, dup) = out.split_at_mut(width);
            for ((((dgate, dup), gate), up), dy) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dy) {
                let sigmoid = 1.0 / (1.0 + exp(-gate));
                let silu = gate * sigmoid;
                *dgate = dy * up * (sigmoid + silu * (1.0 - sigmoid));
                *dup = dy * silu;
            }
        });
    out
}
