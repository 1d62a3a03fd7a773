//! Codes chosen by what a matrix does to its inputs: Σ over rows of (w − q)ᵀ·H·(w − q) is made small, H being the second
//! moment of the inputs, by moving one code at a time to the best one beside all others, as QuantEase does (Behdin et
//! al., 2309.01885), and scales between the rounds in the same way. Where inputs are alike, what one code is off another
//! makes up for: the error of signs alone falls by several times, and no size changes.

use crate::{
    PackedMatrix,
    fit::Grid,
    quantize::{pack_codes, stored},
};
use bitdelta_kernels::{add_scaled, dot};
use half::f16;
use rayon::prelude::*;
use std::ops::Range;

/// Rounds over the codes of a row; scales move between them.
const ROUNDS: usize = 3;
/// No scale becomes smaller than this share of what it was.
const LEAST_FACTOR: f32 = 0.2;
/// Rows that move together: a row of the moment, which is too large for the caches as a whole, is read once for all of them.
const ROWS: usize = 16;

/// What all rows share.
struct Shared<'a> {
    /// (cols, cols)
    moment: &'a [f32],
    cols: usize,
    group: usize,
    bits: u8,
    /// The scales' unit.
    unit: f32,
}

/// One row while its codes move.
struct Row<'a> {
    /// Odd numbers.
    levels: Vec<f32>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
    /// (w − q)·H
    gradient: &'a mut [f32],
}

impl PackedMatrix {
    /// Moves codes and scales of a dense matrix. `gradient` (rows, cols) is (W − Q)·H with Q as it is now, and is kept
    /// true; `moment` (cols, cols) is H, symmetric.
    ///
    /// # Panics
    /// When a slice has another length, or this is a matrix of floats.
    pub fn refine(&mut self, gradient: &mut [f32], moment: &[f32]) {
        let (cols, groups, bits) = (self.cols, self.groups_per_row(), usize::from(self.bits));
        assert!(!self.is_float(), "codes of 1 to 8 bits");
        assert_eq!((gradient.len(), moment.len()), (self.rows * cols, cols * cols), "a gradient and a moment");
        let shared = Shared { moment, cols, group: self.group, bits: self.bits, unit: self.tensor_scale };
        let row = |(row, gradient)| {
            let mut levels = vec![0.0; cols];
            self.levels(row, &mut levels);
            let scales = (0..groups).map(|group| self.scale(row, group)).collect();
            let offsets = (0..groups).map(|group| self.offset(row, group)).collect();
            Row { levels, scales, offsets, gradient }
        };
        let refined: Vec<Vec<Row>> = gradient
            .par_chunks_mut(ROWS * cols)
            .enumerate()
            .map(|(block, gradient)| {
                let mut rows: Vec<Row> = (block * ROWS..).zip(gradient.chunks_mut(cols)).map(row).collect();
                shared.refine(&mut rows);
                rows
            })
            .collect();
        // Levels are codes of the grid whose scale is 1.
        let (words, grid) = (self.words_per_row(), Grid::new(self.bits, 1.0, 0.0));
        let places = self.planes.chunks_mut(bits * words).zip(self.scales.chunks_mut(groups));
        for (row, (planes, scales)) in refined.iter().flatten().zip(places) {
            planes.fill(0);
            pack_codes(planes, words, 0, &row.levels, &grid);
            scales.iter_mut().zip(&row.scales).for_each(|(to, scale)| *to = stored(*scale, shared.unit));
        }
    }
}

impl Shared<'_> {
    fn refine(&self, rows: &mut [Row]) {
        for round in 0..ROUNDS {
            for col in 0..self.cols {
                let curvature = self.moment[col * self.cols + col];
                if curvature > 0.0 {
                    rows.iter_mut().for_each(|row| self.move_code(row, col, 1.0 / curvature));
                }
            }
            if round + 1 < ROUNDS {
                for first in (0..self.cols).step_by(self.group) {
                    self.move_scales(rows, first..(first + self.group).min(self.cols));
                }
            }
        }
    }

    /// A code to the best one beside the others.
    fn move_code(&self, row: &mut Row, col: usize, inverse: f32) {
        let (scale, offset) = (row.scales[col / self.group], row.offsets[col / self.group]);
        if scale <= 0.0 {
            return;
        }
        let level = row.levels[col];
        let best = Grid::new(self.bits, scale, offset).level(offset + scale * level + row.gradient[col] * inverse);
        if best != level {
            row.levels[col] = best;
            self.take(row.gradient, scale * (best - level), col);
        }
    }

    /// The scale of the group at `range` to the best one beside the others, in each row.
    fn move_scales(&self, rows: &mut [Row], range: Range<usize>) {
        let group = range.start / self.group;
        let mut changes = [0.0f32; ROWS];
        for (row, change) in rows.iter_mut().zip(&mut changes) {
            let levels = &row.levels[range.clone()];
            let (mut slope, mut curvature) = (0.0f32, 0.0f32);
            for (at, col) in range.clone().enumerate() {
                let moment = &self.moment[col * self.cols..][range.clone()];
                curvature += levels[at] * dot(moment, levels);
                slope += levels[at] * row.gradient[col];
            }
            let scale = row.scales[group];
            if curvature > 0.0 {
                let better = (scale + slope / curvature).max(LEAST_FACTOR * scale);
                row.scales[group] = f16::from_bits(stored(better, self.unit)).to_f32() * self.unit;
                *change = row.scales[group] - scale;
            }
        }
        for col in range {
            for (row, change) in rows.iter_mut().zip(&changes) {
                self.take(row.gradient, change * row.levels[col], col);
            }
        }
    }

    /// The value at `col` of a row grew by `change`.
    fn take(&self, gradient: &mut [f32], change: f32, col: usize) {
        add_scaled(gradient, -change, &self.moment[col * self.cols..][..self.cols]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::{Codes, pack};

    /// Some numbers in −1..1.
    fn values(count: usize, by: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * by + i * i % 13) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// (rows, k) · (k, cols)
    fn product(a: &[f32], b: &[f32], k: usize) -> Vec<f32> {
        let cols = b.len() / k;
        let at = |i: usize| (0..k).map(|j| a[i / cols * k + j] * b[j * cols + i % cols]).sum();
        (0..a.len() / k * cols).map(at).collect()
    }

    #[test]
    fn what_reaches_the_outputs_is_less_off_and_the_gradient_is_kept() {
        let (rows, cols, inputs) = (5, 71, 40);
        let delta = values(rows * cols, 7919);
        // Fewer kinds of inputs than there are inputs: much can be made up for.
        let x = values(inputs * cols, 104_729);
        let xt: Vec<f32> = (0..cols * inputs).map(|i| x[i % inputs * cols + i / inputs]).collect();
        let moment = product(&xt, &x, inputs);
        for (bits, symmetric) in [(1, true), (2, true), (4, false)] {
            let codes = Codes { bits, group: 32, symmetric, clip: None };
            let mut matrix = pack("t", &delta, rows, cols, codes).expect("finite");
            let error = |matrix: &PackedMatrix| -> Vec<f32> {
                delta.iter().zip(matrix.dequantize()).map(|(w, q)| w - q).collect()
            };
            let loss =
                |error: &[f32]| -> f32 { error.iter().zip(product(error, &moment, cols)).map(|(e, g)| e * g).sum() };
            let before = loss(&error(&matrix));
            let mut gradient = product(&error(&matrix), &moment, cols);
            matrix.refine(&mut gradient, &moment);
            let after = error(&matrix);
            assert!(loss(&after) < 0.5 * before, "{bits} bits: {} {before}", loss(&after));
            let largest = gradient.iter().fold(1.0f32, |most, g| most.max(g.abs()));
            for (kept, true_one) in gradient.iter().zip(product(&after, &moment, cols)) {
                assert!((kept - true_one).abs() < 1e-3 * largest, "{kept} {true_one}");
            }
        }
    }

    #[test]
    fn alike_inputs_of_no_kin_leave_the_nearest_codes() {
        let (rows, cols) = (3, 64);
        let delta = values(rows * cols, 7919);
        let mut matrix =
            pack("t", &delta, rows, cols, Codes { bits: 2, group: 32, symmetric: true, clip: None }).expect("finite");
        let before = matrix.clone();
        let moment: Vec<f32> = (0..cols * cols).map(|i| f32::from(i % (cols + 1) == 0)).collect();
        let mut gradient: Vec<f32> = delta.iter().zip(matrix.dequantize()).map(|(w, q)| w - q).collect();
        matrix.refine(&mut gradient, &moment);
        assert_eq!(matrix.planes, before.planes);
    }
}
