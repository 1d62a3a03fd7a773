//! The base's product: `Y (m, n) = X (m, k) · Wᵀ`, W stored as (n, k) in f32, f16 or bf16.
//!
//! Each output is one dot product held in one vector of sixteen lanes: chunk after chunk of k is multiplied and added,
//! and the lanes are summed at the end. A tile computes MR × NR such dots at once so that each load serves several
//! fused multiplications; which tile an output falls into does not change its bits. Bytes: W once for all rows of a
//! tile column (k · n · 2 or 4), X from cache. Above a few rows 16-bit weights are widened once per tile column into a
//! scratch row, so that the inner loop is the f32 one.

// Loops over an index keep the sums in registers, where iterators and closures leave them in memory.
#![allow(clippy::needless_range_loop)]

use crate::{
    isa::{Isa, dispatch},
    narrow::run_narrow,
    project::Job,
    vector::{LANES, Vector, prefetch_far},
};

/// The elements of a weight matrix as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision, as bits.
    F16(&'a [u16]),
    /// bfloat16, as bits.
    Bf16(&'a [u16]),
}

impl Elements<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(e) => e.len(),
            Self::F16(e) | Self::Bf16(e) => e.len(),
        }
    }
}

/// A weight matrix, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    /// `rows · cols` elements.
    pub elements: Elements<'a>,
    /// Outputs (n).
    pub rows: usize,
    /// Inputs (k).
    pub cols: usize,
}

impl Weights<'_> {
    pub(crate) fn check(&self) {
        assert_eq!(self.elements.len(), self.rows * self.cols, "weights of shape ({}, {})", self.rows, self.cols);
    }
}

/// The product of a checked matrix and job.
pub(crate) fn run_floats(isa: Isa, job: Job, w: &Weights) {
    match w.elements {
        Elements::F32(e) => on_f32(isa, job, e.as_ptr()),
        Elements::F16(e) => on_f16(isa, job, e.as_ptr()),
        Elements::Bf16(e) => match &job.x.narrow {
            Some(x) => run_narrow(isa, job.clone(), x, e),
            None => on_bf16(isa, job, e.as_ptr()),
        },
    }
}

fn on_f32(isa: Isa, job: Job, w: *const f32) {
    dispatch!(isa, range_f32(job: Job, w: *const f32));
}
fn on_f16(isa: Isa, job: Job, w: *const u16) {
    dispatch!(isa, range_f16(job: Job, w: *const u16));
}
fn on_bf16(isa: Isa, job: Job, w: *const u16) {
    dispatch!(isa, range_bf16(job: Job, w: *const u16));
}

/// How stored elements become lanes.
pub(crate) trait Element: Copy {
    type Stored: Copy + Default;
    const WIDE: bool;
    unsafe fn load<V: Vector>(from: *const Self::Stored) -> V;
    /// The last `lanes` (< 16) elements of a row.
    #[inline(always)]
    unsafe fn load_partial<V: Vector>(from: *const Self::Stored, lanes: usize) -> V {
        let mut padded = [Self::Stored::default(); LANES];
        // SAFETY: the caller promises `lanes` readable elements; `padded` has 16.
        unsafe {
            std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), lanes);
            Self::load(padded.as_ptr())
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct F32;
#[derive(Clone, Copy)]
struct F16;
#[derive(Clone, Copy)]
struct Bf16;

impl Element for F32 {
    type Stored = f32;
    const WIDE: bool = true;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const f32) -> V {
        // SAFETY: the caller promises 16 readable elements.
        unsafe { V::load(from) }
    }
}
impl Element for F16 {
    type Stored = u16;
    const WIDE: bool = false;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u16) -> V {
        // SAFETY: the caller promises 16 readable elements.
        unsafe { V::load_f16(from) }
    }
}
impl Element for Bf16 {
    type Stored = u16;
    const WIDE: bool = false;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u16) -> V {
        // SAFETY: the caller promises 16 readable elements.
        unsafe { V::load_bf16(from) }
    }
}

#[inline(always)]
unsafe fn range_f32<V: Vector>(job: Job, w: *const f32) {
    // SAFETY: the caller checked the shapes.
    unsafe { range::<V, F32>(job, w) }
}
#[inline(always)]
unsafe fn range_f16<V: Vector>(job: Job, w: *const u16) {
    // SAFETY: the caller checked the shapes.
    unsafe { range::<V, F16>(job, w) }
}
#[inline(always)]
unsafe fn range_bf16<V: Vector>(job: Job, w: *const u16) {
    // SAFETY: the caller checked the shapes.
    unsafe { range::<V, Bf16>(job, w) }
}

/// Output columns a tile holds.
pub(crate) const TILE_OUTPUTS: usize = 4;

/// # Safety
/// The job's operands were checked and `w` holds its matrix.
#[inline(always)]
unsafe fn range<V: Vector, E: Element>(job: Job, w: *const E::Stored) {
    let k = job.width();
    let worth_widening = |rows: usize| !E::WIDE && rows >= 2 * V::TILE_ROWS;
    let mut scratch = vec![0f32; if worth_widening(job.rows.len()) { TILE_OUTPUTS * k } else { 0 }];
    for rows in job.row_blocks(size_of::<f32>()) {
        let job = Job { rows, ..job.clone() };
        let widen = worth_widening(job.rows.len());
        let mut output = job.first;
        while output < job.last {
            let width = TILE_OUTPUTS.min(job.last - output);
            // SAFETY: output + width ≤ n, so the rows of W lie inside it; the scratch holds `width` rows.
            unsafe {
                let rows = w.add(output * k);
                if widen {
                    widen_rows::<V, E>(rows, width * k, scratch.as_mut_ptr());
                    column::<V, F32>(&job, scratch.as_ptr(), output, width);
                } else {
                    column::<V, E>(&job, rows, output, width);
                }
            }
            output += width;
        }
    }
}

/// `to[i] = from[i]` widened, for `count` elements.
#[inline(always)]
unsafe fn widen_rows<V: Vector, E: Element>(from: *const E::Stored, count: usize, to: *mut f32) {
    let mut i = 0;
    // SAFETY: i + 16 ≤ count in the loop, and the rest is partial.
    unsafe {
        while i + LANES <= count {
            E::load::<V>(from.add(i)).store(to.add(i));
            i += LANES;
        }
        if i < count {
            E::load_partial::<V>(from.add(i), count - i).store_partial(to.add(i), count - i);
        }
    }
}

/// All rows of X against `width` rows of W, which start at `w` and give outputs `output..output + width`.
///
/// # Safety
/// The CPU has V's instruction set; `width` is at most [`TILE_OUTPUTS`]; the job was checked, and the rows and outputs are its own.
#[inline(always)]
pub(crate) unsafe fn column<V: Vector, E: Element>(job: &Job, w: *const E::Stored, output: usize, width: usize) {
    let (mut row, end, k) = (job.rows.start, job.rows.end, job.width());
    // SAFETY: every tile lies inside the job's rows and the given outputs.
    unsafe {
        if width == TILE_OUTPUTS {
            while V::TILE_ROWS == 4 && row + 4 <= end {
                tile::<V, E, 4, 4>(job, w, row, output);
                row += 4;
            }
            while V::TILE_ROWS >= 2 && row + 2 <= end {
                tile::<V, E, 2, 2>(job, w, row, output);
                tile::<V, E, 2, 2>(job, w.add(2 * k), row, output + 2);
                row += 2;
            }
            while row < end {
                tile::<V, E, 1, 4>(job, w, row, output);
                row += 1;
            }
        }
        for row in row..end {
            for i in 0..width {
                tile::<V, E, 1, 1>(job, w.add(i * k), row, output + i);
            }
        }
    }
}

/// MR × NR dot products.
#[inline(always)]
unsafe fn tile<V: Vector, E: Element, const MR: usize, const NR: usize>(
    job: &Job,
    w: *const E::Stored,
    row: usize,
    output: usize,
) {
    let k = job.width();
    // SAFETY: rows `row..row + MR` of X and NR rows of W have k elements each; the last chunk is partial.
    unsafe {
        let x = job.x.values.as_ptr().add(row * k);
        // Plain loops over the registers: closures would keep the sums in memory.
        let mut sums = [[V::splat(0.0); NR]; MR];
        let mut i = 0;
        while i + LANES <= k {
            let mut weights = [V::splat(0.0); NR];
            for n in 0..NR {
                weights[n] = E::load(w.add(n * k + i));
                if MR == 1 && (i * size_of::<E::Stored>()).is_multiple_of(64) {
                    // One row is bound by the memory: the same place of the rows that come two tiles later.
                    prefetch_far(w.wrapping_add((n + 2 * NR) * k + i).cast());
                }
            }
            for m in 0..MR {
                let x = V::load(x.add(m * k + i));
                for n in 0..NR {
                    sums[m][n] = sums[m][n].fma(x, weights[n]);
                }
            }
            i += LANES;
        }
        if i < k {
            for n in 0..NR {
                let weights = E::load_partial::<V>(w.add(n * k + i), k - i);
                for m in 0..MR {
                    let x = V::load_partial(x.add(m * k + i), k - i);
                    sums[m][n] = sums[m][n].fma(x, weights);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                let y = job.y.add((row + m - job.y_row) * job.outputs + output + n);
                let sum = sum.sum();
                *y = if job.add { *y + sum } else { sum };
            }
        }
    }
}
