//! Products with a packed delta, straight from its bit planes: it is never expanded.
//!
//! An element of a b-bit matrix is `offset + scale · Σ_p 2^p · s_p`, s_p = +1 where bit p of its code is 1 and −1 where
//! it is 0; scale and offset belong to its group. So
//!
//! ```text
//! Σ_i D[o,i] · x[i] = Σ_g scale[o,g] · Σ_{i in g} Σ_p 2^p · (±x[i])  +  Σ_g offset[o,g] · Σ_{i in g} x[i]
//! ```
//!
//! sixteen inputs at a time: sixteen bits of the plane flip the signs of sixteen x. Bytes: b/8 a weight and 2 a group;
//! operations: one flip and one addition a weight, a plane and a row. Two directions are needed: `run_product` for
//! dense deltas and the first factor of a low-rank one, `run_transposed` for its second factor, which is stored
//! (rank, outputs) so that its long side is packed.

use crate::{
    isa::{Isa, dispatch},
    project::Job,
    rounded::BLOCK,
    vector::{LANES, Vector},
};
use half::f16;

/// A packed (rows, cols) matrix; the layout is that of the variant file.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a> {
    /// Bits an element, 1 to 8.
    pub bits: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Columns a group; the last group of a row may be shorter.
    pub group: usize,
    /// `planes[(row · bits + p) · ceil(cols / 64) + w]`: bit i is column 64w + i; bits past `cols` are 0.
    pub planes: &'a [u64],
    /// `scales[row · ceil(cols / group) + g]`, as f16 bits, times `tensor_scale`.
    pub scales: &'a [u16],
    /// Like `scales`; empty for none.
    pub offsets: &'a [u16],
    /// One factor for all scales and offsets.
    pub tensor_scale: f32,
}

impl Packed<'_> {
    pub(crate) fn check(&self) {
        let Self { bits, rows, cols, group, .. } = *self;
        assert!((1..=8).contains(&bits) && group >= 1, "{bits} bits, group {group}");
        assert_eq!(self.planes.len(), rows * bits * self.words(), "planes of a {bits}-bit ({rows}, {cols}) matrix");
        assert_eq!(self.scales.len(), rows * self.groups(), "scales of ({rows}, {cols}) in groups of {group}");
        assert!(self.offsets.is_empty() || self.offsets.len() == self.scales.len(), "as many offsets as scales");
    }

    /// Whether every block of 64 columns has one scale, so that integer sums of a block can be taken together.
    pub(crate) fn has_whole_blocks(&self) -> bool {
        self.group >= self.cols || self.group.is_multiple_of(BLOCK)
    }

    /// Whether each group's offset is its scale, so that a code stands for an even multiple of it, zero among them.
    pub(crate) fn has_level_at_zero(&self) -> bool {
        !self.offsets.is_empty() && self.offsets == self.scales
    }

    /// What an element is `scale · (2 · code − zero)` with, where offsets are none or the scales.
    pub(crate) fn zero(&self) -> i32 {
        (1 << self.bits) - 1 - i32::from(self.has_level_at_zero())
    }

    pub(crate) fn words(&self) -> usize {
        self.cols.div_ceil(64)
    }

    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// # Safety
    /// The CPU has V's instruction set.
    #[inline(always)]
    pub(crate) unsafe fn scale<V: Vector>(&self, row: usize, group: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { V::widen_f16(self.scales[row * self.groups() + group]) * self.tensor_scale }
    }

    #[inline(always)]
    fn offset(&self, row: usize, group: usize) -> Option<f32> {
        self.offsets.get(row * self.groups() + group).map(|&bits| f16::from_bits(bits).to_f32() * self.tensor_scale)
    }

    /// The sixteen bits of plane `plane` of `row` that start at column `col`.
    ///
    /// # Safety
    /// The matrix was checked, `row < rows`, `plane < bits`, `col < cols`.
    #[inline(always)]
    unsafe fn signs(&self, row: usize, plane: usize, col: usize) -> u16 {
        let words = self.words();
        let (word, shift) = (col / 64, col % 64);
        // SAFETY: word < words because col < cols, and the next word is read only where there is one.
        unsafe {
            let at = self.planes.as_ptr().add((row * self.bits + plane) * words + word);
            let low = at.read() >> shift;
            if shift > 48 && word + 1 < words { (low | at.add(1).read() << (64 - shift)) as u16 } else { low as u16 }
        }
    }
}

/// `y[rows] (+)= x[rows] · dᵀ` of a checked matrix and job.
pub(crate) fn run_product(isa: Isa, job: Job, d: &Packed) {
    dispatch!(isa, product(job: Job, d: &Packed));
}

/// `y[rows] += t · d`, t being (rows of the job, d.rows), of a checked matrix and job.
pub(crate) fn run_transposed(isa: Isa, job: Job, t: &[f32], d: &Packed) {
    dispatch!(isa, transposed(job: Job, t: &[f32], d: &Packed));
}

/// # Safety
/// The matrix and the job were checked, and the job's outputs are rows of the matrix.
#[inline(always)]
unsafe fn product<V: Vector>(job: Job, d: &Packed) {
    for output in job.first..job.last {
        let mut row = job.rows.start;
        // SAFETY: the rows of every tile are the job's.
        unsafe {
            while row + 4 <= job.rows.end {
                dots::<V, 4>(&job, d, row, output);
                row += 4;
            }
            while row < job.rows.end {
                dots::<V, 1>(&job, d, row, output);
                row += 1;
            }
        }
    }
}

/// MR rows of X against one row of D.
#[inline(always)]
unsafe fn dots<V: Vector, const MR: usize>(job: &Job, d: &Packed, row: usize, output: usize) {
    // SAFETY: columns stay below `cols`, rows are the job's; the last chunk of a group is partial.
    unsafe {
        let x = job.x.values.as_ptr().add(row * d.cols);
        let mut totals = [V::splat(0.0); MR];
        for group in 0..d.groups() {
            let end = ((group + 1) * d.group).min(d.cols);
            let mut signed = [V::splat(0.0); MR];
            let mut plain = [V::splat(0.0); MR];
            let offset = d.offset(output, group);
            let mut col = group * d.group;
            while col < end {
                let lanes = LANES.min(end - col);
                let mut chunk = [V::splat(0.0); MR];
                for (m, chunk) in chunk.iter_mut().enumerate() {
                    let x = x.add(m * d.cols + col);
                    *chunk = if lanes == LANES { V::load(x) } else { V::load_partial(x, lanes) };
                }
                for plane in 0..d.bits {
                    let signs = d.signs(output, plane, col);
                    for (sum, x) in signed.iter_mut().zip(chunk) {
                        *sum = sum.fma(x.signed(signs), V::splat((1u32 << plane) as f32));
                    }
                }
                if offset.is_some() {
                    for (sum, x) in plain.iter_mut().zip(chunk) {
                        *sum = sum.add(x);
                    }
                }
                col += lanes;
            }
            let scale = V::splat(d.scale::<V>(output, group));
            for ((total, signed), plain) in totals.iter_mut().zip(signed).zip(plain) {
                *total = total.fma(signed, scale);
                if let Some(offset) = offset {
                    *total = total.fma(plain, V::splat(offset));
                }
            }
        }
        for (m, total) in totals.into_iter().enumerate() {
            let y = job.y.add((row + m - job.y_row) * job.outputs + output);
            *y = if job.add { *y + total.sum() } else { total.sum() };
        }
    }
}

/// # Safety
/// The matrix and the job were checked, `t` has a row of `d.rows` values for each of the job's rows, and the job's outputs
/// are columns of the matrix.
#[inline(always)]
unsafe fn transposed<V: Vector>(job: Job, t: &[f32], d: &Packed) {
    let mut col = job.first;
    while col < job.last {
        let group = col / d.group;
        let lanes = LANES.min(((group + 1) * d.group).min(job.last) - col);
        // SAFETY: columns stay below `cols`, rows are the job's, and the last chunk of a group is partial.
        unsafe {
            for (i, row) in job.rows.clone().enumerate() {
                let at = job.y.add((row - job.y_row) * job.outputs + col);
                let mut sum = V::load_partial(at, lanes);
                for r in 0..d.rows {
                    let mut odd = V::splat(0.0);
                    for plane in 0..d.bits {
                        odd = odd.add(V::splat((1u32 << plane) as f32).signed(d.signs(r, plane, col)));
                    }
                    let value = V::splat(d.offset(r, group).unwrap_or(0.0)).fma(odd, V::splat(d.scale::<V>(r, group)));
                    sum = sum.fma(V::splat(*t.as_ptr().add(i * d.rows + r)), value);
                }
                sum.store_partial(at, lanes);
            }
        }
        col += lanes;
    }
}
