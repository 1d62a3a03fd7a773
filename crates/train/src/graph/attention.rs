//! Causal grouped-query attention over sequences packed one after another, with its backward.
//!
//! q, k and v of a token lie in one row, as the stacked projection gives them: (tokens, (heads + 2·kv_heads)·head_dim).
//! Each sequence attends to itself only, and positions start again at 0, so no padding is ever computed. One task is
//! one query head of one sequence. Nothing is kept for the backward pass but the inputs: rotated heads and
//! probabilities are formed again, a row at a time, which costs less than writing (length, length) matrices out.

use super::{
    matrix::{Matrix, axpy, dot, exp},
    norm::RmsNorm,
    rope::Rope,
};
use bitdelta_kernels::widely;
use rayon::prelude::*;
use std::ops::Range;

/// Keys that are scored side by side, one a vector lane.
const LANES: usize = 16;

/// The shapes and constants of one layer's attention.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Normalisation of each query head before its rotation (Qwen3).
    pub q_norm: Option<RmsNorm>,
    /// The same for keys.
    pub k_norm: Option<RmsNorm>,
}

/// What one head of one sequence contributes to the gradients.
struct HeadGradients {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// Vectors of one head, transposed in blocks of [`LANES`] positions: block, then dimension, then position.
struct Blocked {
    head_dim: usize,
    values: Vec<f32>,
}

impl Attention {
    /// Values in a row of the stacked q, k and v.
    pub fn input_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Values in a row of the output.
    pub fn output_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// qkv (tokens, input_width) -> (tokens, output_width). Sequence s is rows `starts[s]..starts[s + 1]`.
    pub fn forward(&self, qkv: &Matrix, starts: &[usize], rope: &Rope) -> Matrix {
        let tasks = self.tasks(starts);
        let forward = |(rows, head): &(Range<usize>, usize)| {
            widely(
                #[inline(always)]
                || self.forward_head(qkv, rows.clone(), *head, rope),
            )
        };
        let heads: Vec<Vec<f32>> = tasks.par_iter().map(forward).collect();
        let mut out = Matrix::any(qkv.rows(), self.output_width());
        let (d, width) = (self.head_dim, self.output_width());
        for ((rows, head), values) in tasks.iter().zip(&heads) {
            for (row, values) in rows.clone().zip(values.chunks_exact(d)) {
                out.values_mut()[row * width + head * d..][..d].copy_from_slice(values);
            }
        }
        out
    }

    /// The gradient of qkv, (tokens, input_width), from that of the output `dy`, (tokens, output_width).
    pub fn backward(&self, qkv: &Matrix, dy: &Matrix, starts: &[usize], rope: &Rope) -> Matrix {
        let tasks = self.tasks(starts);
        let backward = |(rows, head): &(Range<usize>, usize)| {
            widely(
                #[inline(always)]
                || self.backward_head(qkv, dy, rows.clone(), *head, rope),
            )
        };
        let gradients: Vec<HeadGradients> = tasks.par_iter().map(backward).collect();
        let mut out = Matrix::cleared(qkv.rows(), self.input_width());
        let (d, width) = (self.head_dim, self.input_width());
        for ((rows, head), gradients) in tasks.iter().zip(&gradients) {
            let (k_column, v_column) = self.kv_columns(*head);
            for (i, row) in rows.clone().enumerate() {
                let to = &mut out.values_mut()[row * width..(row + 1) * width];
                let from = i * d..(i + 1) * d;
                // Several query heads share a key head, so gradients add up there.
                axpy(1.0, &gradients.dq[from.clone()], &mut to[head * d..][..d]);
                axpy(1.0, &gradients.dk[from.clone()], &mut to[k_column..][..d]);
                axpy(1.0, &gradients.dv[from], &mut to[v_column..][..d]);
            }
        }
        // Gradients of the rotated heads become gradients of the heads as projected, one token a task.
        let starts_of_rows = positions(starts);
        out.values_mut()
            .par_chunks_mut(width)
            .zip(qkv.values().par_chunks(width))
            .zip(starts_of_rows.par_iter())
            .for_each(|((gradient, row), &position)| {
                let mut rotated = vec![0.0; d];
                for head in 0..self.heads + self.kv_heads {
                    let norm = if head < self.heads { &self.q_norm } else { &self.k_norm };
                    let gradient = &mut gradient[head * d..(head + 1) * d];
                    rope.rotate_back(position, gradient);
                    if let Some(norm) = norm {
                        rotated.copy_from_slice(gradient);
                        gradient.fill(0.0);
                        norm.backward_row_add(&row[head * d..(head + 1) * d], &rotated, gradient);
                    }
                }
            });
        out
    }

    fn tasks(&self, starts: &[usize]) -> Vec<(Range<usize>, usize)> {
        starts.windows(2).flat_map(|border| (0..self.heads).map(move |head| (border[0]..border[1], head))).collect()
    }

    /// Where the key and the value of query head `head` begin in a row.
    fn kv_columns(&self, head: usize) -> (usize, usize) {
        let kv_head = head / (self.heads / self.kv_heads);
        ((self.heads + kv_head) * self.head_dim, (self.heads + self.kv_heads + kv_head) * self.head_dim)
    }

    /// One head's vectors of a sequence, (length, head_dim); with `norm` and rotation for q and k.
    #[inline(always)]
    fn gather(
        &self,
        qkv: &Matrix,
        rows: Range<usize>,
        column: usize,
        norm: Option<&RmsNorm>,
        rope: Option<&Rope>,
    ) -> Vec<f32> {
        let d = self.head_dim;
        let mut out = vec![0.0; rows.len() * d];
        for ((position, row), out) in rows.enumerate().zip(out.chunks_exact_mut(d)) {
            let from = &qkv.row(row)[column..column + d];
            match norm {
                Some(norm) => norm.forward_row(from, out),
                None => out.copy_from_slice(from),
            }
            if let Some(rope) = rope {
                rope.rotate(position, out);
            }
        }
        out
    }

    #[inline(always)]
    fn forward_head(&self, qkv: &Matrix, rows: Range<usize>, head: usize, rope: &Rope) -> Vec<f32> {
        let d = self.head_dim;
        let (k_column, v_column) = self.kv_columns(head);
        let mut q = self.gather(qkv, rows.clone(), head * d, self.q_norm.as_ref(), Some(rope));
        let k = Blocked::new(d, &self.gather(qkv, rows.clone(), k_column, self.k_norm.as_ref(), Some(rope)));
        let v = self.gather(qkv, rows.clone(), v_column, None, None);
        let scale = 1.0 / (d as f32).sqrt();
        let mut p = vec![0.0; rows.len().next_multiple_of(LANES)];
        let mut out = vec![0.0; d];
        for (i, q) in q.chunks_exact_mut(d).enumerate() {
            k.products(q, scale, i + 1, &mut p);
            softmax(&mut p, i + 1);
            out.fill(0.0);
            for j in 0..=i {
                axpy(p[j], &v[j * d..][..d], &mut out);
            }
            q.copy_from_slice(&out); // the query is used up; its place takes the output
        }
        q
    }

    #[inline(always)]
    fn backward_head(&self, qkv: &Matrix, dy: &Matrix, rows: Range<usize>, head: usize, rope: &Rope) -> HeadGradients {
        let d = self.head_dim;
        let length = rows.len();
        let (k_column, v_column) = self.kv_columns(head);
        let q = self.gather(qkv, rows.clone(), head * d, self.q_norm.as_ref(), Some(rope));
        let k = self.gather(qkv, rows.clone(), k_column, self.k_norm.as_ref(), Some(rope));
        let v = self.gather(qkv, rows.clone(), v_column, None, None);
        let (k_blocked, v_blocked) = (Blocked::new(d, &k), Blocked::new(d, &v));
        let scale = 1.0 / (d as f32).sqrt();
        let mut p = vec![0.0; length.next_multiple_of(LANES)];
        let mut ds = p.clone();
        let (mut dq, mut dk, mut dv) = (vec![0.0; length * d], vec![0.0; length * d], vec![0.0; length * d]);
        for (i, row) in rows.enumerate() {
            let q = &q[i * d..(i + 1) * d];
            let dy = &dy.row(row)[head * d..(head + 1) * d];
            k_blocked.products(q, scale, i + 1, &mut p);
            softmax(&mut p, i + 1);
            // With y = Σ pⱼvⱼ: dpⱼ = dy·vⱼ and dsⱼ = pⱼ(dpⱼ − Σ p·dp), s being the scores before softmax.
            v_blocked.products(dy, 1.0, i + 1, &mut ds);
            let mean = dot(&p[..=i], &ds[..=i]);
            for j in 0..=i {
                ds[j] = p[j] * (ds[j] - mean) * scale;
            }
            let dq = &mut dq[i * d..(i + 1) * d];
            for j in 0..=i {
                let at = j * d..(j + 1) * d;
                axpy(ds[j], &k[at.clone()], dq);
                axpy(ds[j], q, &mut dk[at.clone()]);
                axpy(p[j], dy, &mut dv[at]);
            }
        }
        HeadGradients { dq, dk, dv }
    }
}

impl Blocked {
    /// `vectors` (length, head_dim); the last block is filled up with zeros.
    #[inline(always)]
    fn new(head_dim: usize, vectors: &[f32]) -> Self {
        let length = vectors.len() / head_dim;
        let mut values = vec![0.0; length.div_ceil(LANES) * LANES * head_dim];
        for (position, vector) in vectors.chunks_exact(head_dim).enumerate() {
            let block = &mut values[position / LANES * LANES * head_dim..][..LANES * head_dim];
            for (dimension, value) in vector.iter().enumerate() {
                block[dimension * LANES + position % LANES] = *value;
            }
        }
        Self { head_dim, values }
    }

    /// `out[j] = scale · vector · self[j]` for j below `count`; what follows up to the block's end is not meant to be read.
    #[inline(always)]
    fn products(&self, vector: &[f32], scale: f32, count: usize, out: &mut [f32]) {
        let vector = &vector[..self.head_dim];
        let lanes = self.values.as_chunks::<LANES>().0;
        let out = out.as_chunks_mut::<LANES>().0;
        for block in 0..count.div_ceil(LANES) {
            let lanes = &lanes[block * self.head_dim..][..self.head_dim];
            let mut sums = [0.0f32; LANES];
            for i in 0..vector.len() {
                for lane in 0..LANES {
                    sums[lane] += vector[i] * lanes[i][lane];
                }
            }
            for sum in &mut sums {
                *sum *= scale;
            }
            out[block] = sums;
        }
    }
}

/// The position of every packed row in its own sequence.
fn positions(starts: &[usize]) -> Vec<usize> {
    starts.windows(2).flat_map(|border| 0..border[1] - border[0]).collect()
}

/// Of the first `count` scores; those that fill up the last block become zeros.
#[inline(always)]
fn softmax(scores: &mut [f32], count: usize) {
    let blocks = &mut scores.as_chunks_mut::<LANES>().0[..count.div_ceil(LANES)];
    let filled = blocks.len() * LANES - count;
    if let Some(last) = blocks.last_mut() {
        last[LANES - filled..].fill(f32::NEG_INFINITY);
    }
    let mut largest = [f32::NEG_INFINITY; LANES];
    for block in blocks.iter() {
        for lane in 0..LANES {
            largest[lane] = if block[lane] > largest[lane] { block[lane] } else { largest[lane] };
        }
    }
    let largest = largest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut lanes = [0.0f32; LANES];
    for block in blocks.iter_mut() {
        let mut powers = *block;
        for lane in 0..LANES {
            powers[lane] = exp(powers[lane] - largest);
            lanes[lane] += powers[lane];
        }
        *block = powers;
    }
    let inverse = 1.0 / lanes.iter().sum::<f32>();
    for block in blocks.iter_mut() {
        for value in block {
            *value *= inverse;
        }
    }
    if let Some(last) = blocks.last_mut() {
        last[LANES - filled..].fill(0.0);
    }
}
