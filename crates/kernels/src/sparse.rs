//! A sparse delta: of each row the few levels that are not zero, with their columns, and one scale.
//!
//! ```text
//! y[o] += scale[o] · Σ_k level[k] · x[column[k]]       k over starts[o] .. starts[o + 1]
//! ```
//!
//! Sixteen at a time: the columns gather sixteen inputs, which the levels multiply. Bytes: 3 a level, where planes of two
//! bits take a quarter of one a weight, so a row pays here when fewer than one weight in twelve is not zero. It takes
//! exact activations, whatever the base takes: gathering would have to join two digits first.

use crate::{
    isa::{Isa, dispatch},
    project::Job,
    vector::{LANES, Vector},
};

/// A matrix of small whole levels, of which most are zero, with a scale a row.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseRows {
    cols: usize,
    /// Where each row's levels begin; the last is their number.
    starts: Vec<u32>,
    /// Rising within a row, each below `cols`.
    columns: Vec<u16>,
    levels: Vec<i8>,
    /// One a row.
    scales: Vec<f32>,
}

impl SparseRows {
    /// Widest row: what 16 bits count.
    pub const MOST_COLS: usize = u16::MAX as usize;

    /// No rows yet, of `cols` columns each; `None` for none or more than [`SparseRows::MOST_COLS`].
    pub fn new(cols: usize) -> Option<Self> {
        let fits = (1..=Self::MOST_COLS).contains(&cols);
        fits.then(|| Self { cols, starts: vec![0], columns: Vec::new(), levels: Vec::new(), scales: Vec::new() })
    }

    /// Adds a row of (column, level) and its scale. Returns whether that is one, and adds nothing if not: columns rise and
    /// are among those of the matrix, no level is zero, and 32 bits count all of them.
    #[must_use]
    pub fn push(&mut self, levels: impl IntoIterator<Item = (u16, i8)>, scale: f32) -> bool {
        let before = self.levels.len();
        let mut next = 0;
        let mut fits = true;
        for (column, level) in levels {
            let at = usize::from(column);
            fits = fits && level != 0 && at >= next && at < self.cols;
            next = at + 1;
            self.columns.push(column);
            self.levels.push(level);
        }
        let Some(end) = u32::try_from(self.levels.len()).ok().filter(|_| fits) else {
            self.columns.truncate(before);
            self.levels.truncate(before);
            return false;
        };
        self.starts.push(end);
        self.scales.push(scale);
        true
    }

    /// (outputs, inputs).
    pub fn shape(&self) -> (usize, usize) {
        (self.scales.len(), self.cols)
    }

    /// How many levels are not zero.
    pub fn count(&self) -> usize {
        self.levels.len()
    }

    /// The columns and levels of row `row`, and its scale.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> (&[u16], &[i8], f32) {
        let range = self.starts[row] as usize..self.starts[row + 1] as usize;
        (&self.columns[range.clone()], &self.levels[range], self.scales[row])
    }

    /// Adds row `row` to `out`.
    ///
    /// # Panics
    /// When there is no such row or `out` is not as long as there are columns.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row of {} columns", self.cols);
        let (columns, levels, scale) = self.row(row);
        for (column, level) in columns.iter().zip(levels) {
            out[usize::from(*column)] += f32::from(*level) * scale;
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        (4 * (self.starts.len() + self.scales.len()) + 3 * self.levels.len()) as u64
    }
}

/// `y[rows] (+)= x[rows] · dᵀ` of a checked job.
pub(crate) fn run_sparse(isa: Isa, job: Job, d: &SparseRows) {
    dispatch!(isa, product(job: Job, d: &SparseRows));
}

/// # Safety
/// The job's outputs are rows of the matrix, and its activations are as wide as it.
#[inline(always)]
unsafe fn product<V: Vector>(job: Job, d: &SparseRows) {
    for output in job.first..job.last {
        let (columns, levels, scale) = d.row(output);
        let mut row = job.rows.start;
        // SAFETY: the rows of every tile are the job's.
        unsafe {
            while row + 4 <= job.rows.end {
                dots::<V, 4>(&job, (columns, levels), scale, row, output);
                row += 4;
            }
            while row < job.rows.end {
                dots::<V, 1>(&job, (columns, levels), scale, row, output);
                row += 1;
            }
        }
    }
}

/// MR rows of X against one row of D.
///
/// Sixteen levels, times MR rows of x. (As a closure it was called, each of its instructions for itself.)
///
/// # Safety
/// Sixteen columns and levels are there, every column below `width`, and MR rows of so many values at `x`.
#[inline(always)]
unsafe fn add<V: Vector, const MR: usize>(
    totals: &mut [V; MR],
    x: *const f32,
    width: usize,
    columns: *const u16,
    levels: *const i8,
) {
    // SAFETY: as promised.
    unsafe {
        let levels = V::load_i8(levels);
        for (m, total) in totals.iter_mut().enumerate() {
            *total = total.fma(V::gather(x.add(m * width), columns), levels);
        }
    }
}

/// # Safety
/// The rows are the job's, and every column is below the width of x.
#[inline(always)]
unsafe fn dots<V: Vector, const MR: usize>(
    job: &Job,
    (columns, levels): (&[u16], &[i8]),
    scale: f32,
    row: usize,
    output: usize,
) {
    // SAFETY: as promised; whole chunks are loaded, and what is left over from a copy with column 0 and level 0 behind it.
    unsafe {
        let x = job.x.values.as_ptr().add(row * job.width());
        let mut totals = [V::splat(0.0); MR];
        let whole = levels.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            add(&mut totals, x, job.width(), columns.as_ptr().add(at), levels.as_ptr().add(at));
        }
        let left = levels.len() - whole;
        if left > 0 {
            let (mut last_columns, mut last_levels) = ([0u16; LANES], [0i8; LANES]);
            last_columns[..left].copy_from_slice(&columns[whole..]);
            last_levels[..left].copy_from_slice(&levels[whole..]);
            add(&mut totals, x, job.width(), last_columns.as_ptr(), last_levels.as_ptr());
        }
        for (m, total) in totals.into_iter().enumerate() {
            let y = job.y.add((row + m - job.y_row) * job.outputs + output);
            let sum = total.sum() * scale;
            *y = if job.add { *y + sum } else { sum };
        }
    }
}
