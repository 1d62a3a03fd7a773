//! The base's product: `Y (m, n) = X (m, k) · Wᵀ`, W stored as (n, k) in f32, f16 or bf16.
//!
//! Each output is one dot product held in one vector of sixteen lanes: chunk after chunk of k is multiplied and added,
//! and the lanes are summed at the end. A tile computes MR × NR such dots at once so that each load serves several
//! fused multiplications; which tile an output falls into does not change its bits. Bytes: W once for all rows of a
//! tile column (k · n · 2 or 4), X from cache. Above a few rows 16-bit weights are widened once per tile column into a
//! scratch row, so that the inner loop is the f32 one.

use crate::{
    isa::{Isa, dispatch},
    parallel::{Output, over_outputs},
    vector::{LANES, Vector},
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
    fn len(&self) -> usize {
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

/// `y (m, rows) = x (m, cols) · wᵀ`, or `+=` when `accumulate`.
///
/// # Panics
/// When a slice is not as long as its shape says.
pub fn matmul(x: &[f32], w: &Weights, y: &mut [f32], accumulate: bool) {
    matmul_on(Isa::selected(), x, w, y, accumulate);
}

/// [`matmul()`] on a given instruction set, which must be one of [`Isa::available`].
///
/// # Panics
/// As [`matmul()`].
pub fn matmul_on(isa: Isa, x: &[f32], w: &Weights, y: &mut [f32], accumulate: bool) {
    let (n, k) = (w.rows, w.cols);
    assert_eq!(w.elements.len(), n * k, "weights of shape ({n}, {k})");
    let m = x.len().checked_div(k).unwrap_or(0);
    assert_eq!(x.len(), m * k, "inputs of width {k}");
    assert_eq!(y.len(), m * n, "outputs of shape ({m}, {n})");
    assert!(Isa::available().contains(&isa), "{isa:?} is not available here");
    let out = Output::new(y);
    over_outputs(n, 16, m * n * k, |range| {
        let job = Job { x: x.as_ptr(), m, k, n, first: range.start, last: range.end, y: out.pointer(), accumulate };
        match w.elements {
            Elements::F32(e) => on_f32(isa, job, e.as_ptr()),
            Elements::F16(e) => on_f16(isa, job, e.as_ptr()),
            Elements::Bf16(e) => on_bf16(isa, job, e.as_ptr()),
        }
    });
}

/// Outputs `first..last` of all m rows. x has m · k values, y has m · n.
#[derive(Clone, Copy)]
struct Job {
    x: *const f32,
    m: usize,
    k: usize,
    n: usize,
    first: usize,
    last: usize,
    y: *mut f32,
    accumulate: bool,
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
trait Element: Copy {
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
struct F32;
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
    // SAFETY: `matmul_on` checked the shapes.
    unsafe { range::<V, F32>(job, w) }
}
#[inline(always)]
unsafe fn range_f16<V: Vector>(job: Job, w: *const u16) {
    // SAFETY: `matmul_on` checked the shapes.
    unsafe { range::<V, F16>(job, w) }
}
#[inline(always)]
unsafe fn range_bf16<V: Vector>(job: Job, w: *const u16) {
    // SAFETY: `matmul_on` checked the shapes.
    unsafe { range::<V, Bf16>(job, w) }
}

/// Output columns a tile holds.
const TILE_OUTPUTS: usize = 4;

/// # Safety
/// The shapes are as [`Job`] says and `w` holds n · k elements.
#[inline(always)]
unsafe fn range<V: Vector, E: Element>(job: Job, w: *const E::Stored) {
    let widen = !E::WIDE && job.m >= 2 * V::TILE_ROWS;
    let mut scratch = vec![0f32; if widen { TILE_OUTPUTS * job.k } else { 0 }];
    let mut output = job.first;
    while output < job.last {
        let width = TILE_OUTPUTS.min(job.last - output);
        // SAFETY: output + width ≤ n, so the rows of W lie inside it; the scratch holds `width` rows.
        unsafe {
            let rows = w.add(output * job.k);
            if widen {
                widen_rows::<V, E>(rows, width * job.k, scratch.as_mut_ptr());
                column::<V, F32>(&job, scratch.as_ptr(), output, width);
            } else {
                column::<V, E>(&job, rows, output, width);
            }
        }
        output += width;
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
#[inline(always)]
unsafe fn column<V: Vector, E: Element>(job: &Job, w: *const E::Stored, output: usize, width: usize) {
    let mut row = 0;
    // SAFETY: every tile lies inside rows `0..m` and the given outputs.
    unsafe {
        if width == TILE_OUTPUTS {
            while V::TILE_ROWS == 4 && row + 4 <= job.m {
                tile::<V, E, 4, 4>(job, w, row, output);
                row += 4;
            }
            while V::TILE_ROWS >= 2 && row + 2 <= job.m {
                tile::<V, E, 2, 2>(job, w, row, output);
                tile::<V, E, 2, 2>(job, w.add(2 * job.k), row, output + 2);
                row += 2;
            }
            while row < job.m {
                tile::<V, E, 1, 4>(job, w, row, output);
                row += 1;
            }
        }
        for row in row..job.m {
            for i in 0..width {
                tile::<V, E, 1, 1>(job, w.add(i * job.k), row, output + i);
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
    let k = job.k;
    // SAFETY: rows `row..row + MR` of X and NR rows of W have k elements each; the last chunk is partial.
    unsafe {
        let x = job.x.add(row * k);
        let mut sums = [[V::splat(0.0); NR]; MR];
        let mut i = 0;
        while i + LANES <= k {
            let w: [V; NR] = std::array::from_fn(|n| E::load(w.add(n * k + i)));
            for (m, sums) in sums.iter_mut().enumerate() {
                let x = V::load(x.add(m * k + i));
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = sum.fma(x, w);
                }
            }
            i += LANES;
        }
        if i < k {
            let w: [V; NR] = std::array::from_fn(|n| E::load_partial(w.add(n * k + i), k - i));
            for (m, sums) in sums.iter_mut().enumerate() {
                let x = V::load_partial(x.add(m * k + i), k - i);
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = sum.fma(x, w);
                }
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                let y = job.y.add((row + m) * job.n + output + n);
                let sum = sum.sum();
                *y = if job.accumulate { *y + sum } else { sum };
            }
        }
    }
}
