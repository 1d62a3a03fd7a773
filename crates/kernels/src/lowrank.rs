//! A low-rank delta's two products: `t = A · x`, then `y += Bᵀ · t`, both from the planes of the variant's file.
//!
//! With rounded activations, a row of A is multiplied 64 inputs at a time: a word of each plane becomes 64 codes, which
//! one `vpdpbusd` multiplies with 64 inputs, adding four neighbours into each of 16 sums. B is taken 64 outputs at a
//! time: its codes become floats, and each is multiplied with `scale · t` and added. What neither fits (odd group sizes,
//! offsets, more than four bits) goes the way of [`crate::packed`].

// As in `int8`: loops over an index keep the sums in registers.
#![allow(clippy::needless_range_loop)]

use crate::{
    isa::{Isa, dispatch_int8},
    packed::{self, Packed},
    project::Job,
    rounded::BLOCK,
    vector::{LANES, Vector, int8::Int8Vector},
};

/// Rows of A that share the loads of x.
const FACTOR_TILE: usize = 4;

/// Whether the kernels here can read the matrix.
fn fits(d: &Packed) -> bool {
    d.bits <= 4 && d.offsets.is_empty() && d.has_whole_blocks()
}

/// `t (job.rows, a.rows) = x[job.rows] · aᵀ`.
pub(crate) fn run_first(isa: Isa, job: Job, a: &Packed) {
    if job.x.rounded.is_none() || !fits(a) {
        return packed::run_product(isa, job, a);
    }
    match a.bits {
        1 => first_1(isa, job, Bits(a)),
        2 => first_2(isa, job, Bits(a)),
        3 => first_3(isa, job, Bits(a)),
        _ => first_4(isa, job, Bits(a)),
    }
}

/// `y[job.rows] += t · b` for the job's outputs, t being (job.rows, b.rows).
pub(crate) fn run_second(isa: Isa, job: Job, t: &[f32], b: &Packed) {
    if !fits(b) || !job.first.is_multiple_of(LANES) {
        return packed::run_transposed(isa, job, t, b);
    }
    match b.bits {
        1 => second_1(isa, job, t, Bits(b)),
        2 => second_2(isa, job, t, Bits(b)),
        3 => second_3(isa, job, t, Bits(b)),
        _ => second_4(isa, job, t, Bits(b)),
    }
}

/// A matrix of `BITS` planes.
#[derive(Clone, Copy)]
struct Bits<'a, const BITS: usize>(&'a Packed<'a>);

macro_rules! runners {
    ($($bits:literal: $first:ident, $second:ident;)*) => {$(
        fn $first(isa: Isa, job: Job, a: Bits<$bits>) {
            dispatch_int8!(isa, first(job: Job, a: Bits<$bits>));
        }
        fn $second(isa: Isa, job: Job, t: &[f32], b: Bits<$bits>) {
            dispatch_int8!(isa, second(job: Job, t: &[f32], b: Bits<$bits>));
        }
    )*};
}
runners! { 1: first_1, second_1; 2: first_2, second_2; 3: first_3, second_3; 4: first_4, second_4; }

/// # Safety
/// The matrix and the job were checked, the job's outputs are rows of the matrix, and its activations are rounded.
#[inline(always)]
unsafe fn first<V: Int8Vector, D: Factor>(job: Job, a: D) {
    let rank = a.packed().rows;
    for row in job.rows.clone() {
        let mut r = 0;
        // SAFETY: the rows of every call lie in the matrix.
        unsafe {
            while r + FACTOR_TILE <= rank {
                dots::<V, D, FACTOR_TILE>(&job, a, row, r);
                r += FACTOR_TILE;
            }
            while r < rank {
                dots::<V, D, 1>(&job, a, row, r);
                r += 1;
            }
        }
    }
}

/// One row of x against R rows of A.
#[inline(always)]
unsafe fn dots<V: Int8Vector, D: Factor, const R: usize>(job: &Job, a: D, row: usize, r: usize) {
    let d = a.packed();
    let rounded = job.rounded();
    // SAFETY: the row is the job's and every row of x has whole blocks; r + R ≤ rank.
    unsafe {
        let x = rounded.codes.as_ptr().add(row * rounded.blocks * BLOCK);
        let mut totals = [V::Floats::splat(0.0); R];
        for block in 0..rounded.blocks {
            let x = V::load_inputs(x.add(block * BLOCK));
            let x_scale = *rounded.scales.get_unchecked(row * rounded.blocks + block);
            let group = block * BLOCK / d.group;
            let begin = V::begin_neighbours(D::ZERO, x);
            for i in 0..R {
                let sums = begin.add_neighbours(a.codes::<V>(r + i, block), x);
                let scale = V::Floats::splat(d.scale::<V::Floats>(r + i, group) * x_scale);
                totals[i] = totals[i].fma(sums.to_floats(), scale);
            }
        }
        for i in 0..R {
            let t = job.y.add((row - job.y_row) * job.outputs + r + i);
            *t = if job.add { *t + totals[i].sum() } else { totals[i].sum() };
        }
    }
}

/// # Safety
/// The matrix and the job were checked, `t` has a row of rank values for each of the job's rows, and the job's outputs
/// are columns of the matrix that start at a multiple of sixteen.
#[inline(always)]
unsafe fn second<V: Int8Vector, D: Factor>(job: Job, t: &[f32], b: D) {
    let d = b.packed();
    for block in job.first / BLOCK..job.last.div_ceil(BLOCK) {
        let group = block * BLOCK / d.group;
        // The block's outputs that are the job's.
        let (begin, count) = (job.first.saturating_sub(block * BLOCK), (job.last - block * BLOCK).min(BLOCK));
        for (i, row) in job.rows.clone().enumerate() {
            // SAFETY: the block's columns and the job's rows lie in y; the last sixteen may be partial.
            unsafe {
                let y = job.y.add((row - job.y_row) * job.outputs + block * BLOCK);
                let mut sums = [V::Floats::splat(0.0); BLOCK / LANES];
                for r in 0..d.rows {
                    let scaled = V::Floats::splat(*t.get_unchecked(i * d.rows + r) * d.scale::<V::Floats>(r, group));
                    let values = V::codes_to_floats(b.codes::<V>(r, block), D::ZERO);
                    for part in 0..BLOCK / LANES {
                        sums[part] = sums[part].fma(values[part], scaled);
                    }
                }
                for part in 0..BLOCK / LANES {
                    let at = part * LANES;
                    if at >= begin && at < count {
                        let (y, lanes) = (y.add(at), LANES.min(count - at));
                        V::Floats::load_partial(y, lanes).add(sums[part]).store_partial(y, lanes);
                    }
                }
            }
        }
    }
}

/// What the kernels ask of [`Bits`], whatever its width.
trait Factor: Copy {
    /// What makes the codes unsigned, see [`crate::vector::int8`].
    const ZERO: i32;
    fn packed(&self) -> &Packed<'_>;
    /// The 64 elements of `row` that start at column `64 · block`.
    ///
    /// # Safety
    /// They lie in the matrix.
    unsafe fn codes<V: Int8Vector>(self, row: usize, block: usize) -> V::Codes;
}

impl<const BITS: usize> Factor for Bits<'_, BITS> {
    const ZERO: i32 = (1 << BITS) - 1;
    #[inline(always)]
    fn packed(&self) -> &Packed<'_> {
        self.0
    }
    #[inline(always)]
    unsafe fn codes<V: Int8Vector>(self, row: usize, block: usize) -> V::Codes {
        let words = self.0.words();
        let mut planes = [0u64; BITS];
        for plane in 0..BITS {
            // SAFETY: the matrix was checked to have `words` words for each row and plane.
            planes[plane] = unsafe { *self.0.planes.get_unchecked((row * BITS + plane) * words + block) };
        }
        // SAFETY: the instruction set is the caller's promise.
        unsafe { V::load_planes(planes) }
    }
}
