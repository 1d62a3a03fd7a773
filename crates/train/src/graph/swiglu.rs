//! SwiGLU: silu(gate) ∘ up, where gate and up lie side by side in one matrix.

use super::matrix::{Matrix, exp};
use bitdelta_kernels::widely;
use rayon::prelude::*;

/// gate_up (tokens, 2·width) -> (tokens, width)
pub fn forward(gate_up: &Matrix) -> Matrix {
    let width = gate_up.cols() / 2;
    let mut out = Matrix::any(gate_up.rows(), width);
    let rows = out.values_mut().par_chunks_mut(width).zip(gate_up.values().par_chunks(2 * width));
    rows.for_each(|(out, row)| {
        widely(
            #[inline(always)]
            || forward_row(row, out),
        )
    });
    out
}

/// The gradient of gate_up, (tokens, 2·width), from that of the output, (tokens, width).
pub fn backward(gate_up: &Matrix, dy: &Matrix) -> Matrix {
    let width = dy.cols();
    let mut out = Matrix::any(gate_up.rows(), 2 * width);
    let rows = out.values_mut().par_chunks_mut(2 * width).zip(gate_up.values().par_chunks(2 * width));
    rows.zip(dy.values().par_chunks(width)).for_each(|((out, row), dy)| {
        widely(
            #[inline(always)]
            || backward_row(row, dy, out),
        )
    });
    out
}

#[inline(always)]
fn forward_row(row: &[f32], out: &mut [f32]) {
    let (gate, up) = row.split_at(out.len());
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

#[inline(always)]
fn backward_row(row: &[f32], dy: &[f32], out: &mut [f32]) {
    let (gate, up) = row.split_at(dy.len());
    let (dgate, dup) = out.split_at_mut(dy.len());
    for ((((dgate, dup), gate), up), dy) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dy) {
        let sigmoid = 1.0 / (1.0 + exp(-gate));
        let silu = gate * sigmoid;
        *dgate = dy * up * (sigmoid + silu * (1.0 - sigmoid));
        *dup = dy * silu;
    }
}
