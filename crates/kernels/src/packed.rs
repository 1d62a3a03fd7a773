//! Products with a packed delta, straight from its bit planes: it is never expanded whole.
//!
//! An element of a b-bit matrix is `offset + scale · Σ_p 2^p · s_p`, s_p = +1 where bit p of its code is 1 and −1 where
//! it is 0; scale and offset belong to its group. Sixteen elements at a time are made from sixteen bits of each plane, four
//! outputs of them in a cache, and multiplied as a base's floats are. So the making is shared by the rows, and 4 bits cost
//! many rows no more than 1. (Flipping the inputs' signs, for each row and plane, was a fifth to an eighth as fast for many
//! rows; multiplying in registers is no faster for a single one.) Bytes: b/8 a weight and 2 a group.
//!
//! Two directions are needed: `run_product` for dense deltas and the first factor of a low-rank one, `run_transposed` for
//! its second factor, which is stored (rank, outputs) so that its long side is packed.

use crate::{
    isa::{Isa, dispatch},
    matmul::{F32, TILE_OUTPUTS, column},
    project::Job,
    rounded::BLOCK,
    vector::{LANES, Vector},
};

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

    /// A group's scale and its offset, 0 for none.
    ///
    /// # Safety
    /// The CPU has V's instruction set.
    #[inline(always)]
    unsafe fn line<V: Vector>(&self, row: usize, group: usize) -> (V, V) {
        let offset = self.offsets.get(row * self.groups() + group);
        // SAFETY: the caller's promise.
        unsafe {
            let offset = offset.map_or(0.0, |&bits| V::widen_f16(bits) * self.tensor_scale);
            (V::splat(self.scale::<V>(row, group)), V::splat(offset))
        }
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

/// All rows of X, four outputs at a time.
///
/// # Safety
/// The matrix and the job were checked, and the job's outputs are rows of the matrix.
#[inline(always)]
unsafe fn product<V: Vector>(job: Job, d: &Packed) {
    let mut floats = vec![0.0f32; TILE_OUTPUTS * d.cols];
    for rows in job.row_blocks(size_of::<f32>()) {
        let job = Job { rows, ..job.clone() };
        let mut output = job.first;
        while output < job.last {
            let width = TILE_OUTPUTS.min(job.last - output);
            // SAFETY: `width` rows of `cols` floats fit in, and the outputs are the job's.
            unsafe {
                for (n, floats) in floats.chunks_exact_mut(d.cols).take(width).enumerate() {
                    expand::<V>(d, output + n, floats);
                }
                column::<V, F32>(&job, floats.as_ptr(), output, width);
            }
            output += width;
        }
    }
}

/// One row of D as floats.
///
/// # Safety
/// The CPU has V's instruction set, the matrix was checked and has the row, and `to` has `cols` places.
#[inline(always)]
unsafe fn expand<V: Vector>(d: &Packed, row: usize, to: &mut [f32]) {
    // SAFETY: columns stay below `cols`; the last chunk of a group is partial.
    unsafe {
        for group in 0..d.groups() {
            let end = ((group + 1) * d.group).min(d.cols);
            let (scale, offset) = d.line::<V>(row, group);
            for col in (group * d.group..end).step_by(LANES) {
                let (values, to) = (offset.fma(odd(d, row, col), scale), to.as_mut_ptr().add(col));
                if end - col < LANES { values.store_partial(to, end - col) } else { values.store(to) }
            }
        }
    }
}

/// Σ_p 2^p · s_p of sixteen codes of a row.
///
/// # Safety
/// As [`expand`], and `col < cols`.
#[inline(always)]
unsafe fn odd<V: Vector>(d: &Packed, row: usize, col: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let mut odd = V::splat(0.0);
        for plane in 0..d.bits {
            odd = odd.add(V::splat((1u32 << plane) as f32).signed(d.signs(row, plane, col)));
        }
        odd
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
                    let (scale, offset) = d.line::<V>(r, group);
                    let value = offset.fma(odd(d, r, col), scale);
                    sum = sum.fma(V::splat(*t.as_ptr().add(i * d.rows + r)), value);
                }
                sum.store_partial(at, lanes);
            }
        }
        col += lanes;
    }
}
