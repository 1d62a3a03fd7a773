//! The base's product with rounded activations: codes of 8 or 4 bits, two digits of x.
//!
//! ```text
//! W[o, i] = w[o, i] · scale[o, i / 64] + minimum[o, i / 64]       w in 0..256; or 32 inputs a block, w in 0..256 or 0..16
//! X[r, i] ≈ x[r, i] · scale[r, i / 64]                             x two int8 digits, see `rounded`
//! Y[r, o] = Σ_blocks scale[r] · (scale[o] · Σ w · x + minimum[o] · Σ x)
//! ```
//!
//! A minimum and a maximum of their own use all 256 codes where a greatest magnitude wastes some: measured on SmolLM2, the
//! KL from the exact weights falls by 30 %. A base whose file has codes of up to 8 bits, a scale and a minimum for each
//! 32 inputs (GGUF's Q4_0 to Q8_0) keeps them as they are, without any rounding; those of 4 bits two to a byte.
//!
//! The matrix lies in tiles of 32 outputs, two halves of 16: 4 inputs of output 0, the same 4 of output 1, … make 64 bytes,
//! which one instruction (`vpdpbusd`) multiplies with 4 inputs of a row and adds into 16 sums, one for each output. There
//! is no sum across lanes, and a block ends in a multiply-add by 16 scales and one by 16 minima. The two halves share the
//! loads of the row's inputs and lie side by side, so that a matrix is read as one stream. At 4 bits the low halves of 64
//! bytes are one such vector and the high halves the next. The integer part is exact, so the order in which it is added
//! does not matter; the blocks are added in order. Bytes: n · k · (1 + 4/64), or (1 + 4/32), or (1/2 + 4/32), read once
//! for up to eight rows: up to four take both digits at once, in sums of their own, and eight one digit after the other, in
//! the same sums. Lines are asked for two at a time, beside the products that they will come to; asked for a block at a time,
//! they held up the loads behind them (measured on one core, 8 rows from memory: 60 multiply-adds a nanosecond that way,
//! 88 this way, 97 from cache).

// Loops over an index keep the sums in registers, where iterators and closures leave them in memory: measured 4 to 6
// times slower.
#![allow(clippy::needless_range_loop)]

use crate::{
    ahead::Ahead,
    arena::{Arena, Slab},
    isa::{Isa, dispatch_int8},
    parallel::{Output, for_each_chunk},
    project::Job,
    rounded::BLOCK,
    vector::{LANES, Vector, int8::Int8Vector, prefetch},
};
use half::f16;
use std::ops::Range;

/// Halves of a tile.
pub(crate) const HALVES: usize = 2;
/// Outputs of a tile.
pub(crate) const TILE: usize = HALVES * LANES;
/// Bytes of 4 inputs of all outputs of a tile, at 8 bits; of 8 inputs at 4.
const QUAD: usize = 4 * TILE;
/// Inputs of a short block.
pub const SHORT_BLOCK: usize = 32;

/// How an [`Int8Weights`] keeps its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// 8 bits, 64 inputs a block: what floats are rounded to.
    Rounded,
    /// 8 bits, 32 inputs a block.
    Bytes,
    /// 4 bits, 32 inputs a block.
    Nibbles,
}

impl Layout {
    fn bits(self) -> usize {
        if self == Self::Nibbles { 4 } else { 8 }
    }

    /// Scales of 64 inputs of an output.
    fn parts(self) -> usize {
        if self == Self::Rounded { 1 } else { BLOCK / SHORT_BLOCK }
    }

    /// Bytes of 64 inputs of a tile.
    fn block_bytes(self) -> usize {
        BLOCK * TILE * self.bits() / 8
    }

    /// Scales and minima of 64 inputs of a tile.
    fn block_scales(self) -> usize {
        2 * TILE * self.parts()
    }
}

/// A weight matrix of codes, in tiles of 32 outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Int8Weights {
    rows: usize,
    cols: usize,
    layout: Layout,
    /// tile → block of 64 → quad of inputs → output → input; 0 where there is no weight.
    codes: Slab<u8>,
    /// tile → block of 64 → part → scales of all outputs, then minima: f16 bits.
    scales: Slab<u16>,
}

/// Weights as a file has them: codes of at most 8 bits, a scale and a minimum for each 32 inputs.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    /// row → column.
    pub codes: &'a [u8],
    /// row → block: f16 bits.
    pub scales: &'a [u16],
    /// row → block: f16 bits.
    pub minima: &'a [u16],
}

impl Int8Weights {
    /// Rounds a (rows, cols) matrix, row-major: a block's codes reach from its least to its greatest value. The result
    /// lies in `arena`.
    ///
    /// # Panics
    /// When `weights` is not as long as the shape says.
    pub fn quantize(weights: &[f32], rows: usize, cols: usize, arena: &mut Arena) -> Self {
        assert_eq!(weights.len(), rows * cols, "weights of shape ({rows}, {cols})");
        Self::new(Layout::Rounded, rows, cols, arena, |row, put| {
            for (block, values) in weights[row * cols..][..cols].chunks(BLOCK).enumerate() {
                let (least, greatest) =
                    values.iter().fold((f32::MAX, f32::MIN), |(least, greatest), v| (least.min(*v), greatest.max(*v)));
                let minimum = f16::from_f32(least.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
                let scale = f16::from_f32((greatest - minimum.to_f32()).max(0.0) / 255.0);
                let (least, step) = (minimum.to_f32(), scale.to_f32());
                let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
                let mut codes = values.iter().map(|value| nearest(((value - least) * inverse).clamp(0.0, 255.0)) as u8);
                put(block, scale.to_bits(), minimum.to_bits(), &mut codes);
            }
        })
    }

    /// A (rows, cols) matrix as it is in a file; `layout` is not [`Layout::Rounded`]. The result lies in `arena`.
    ///
    /// # Panics
    /// When `blocks` is not as long as the shape says, `cols` is not a multiple of 32, or a code is wider than the layout.
    pub fn keep(blocks: &Blocks, layout: Layout, rows: usize, cols: usize, arena: &mut Arena) -> Self {
        let Blocks { codes, scales, minima } = *blocks;
        assert!(layout != Layout::Rounded && cols.is_multiple_of(SHORT_BLOCK), "{layout:?} of {cols} columns");
        let groups = cols / SHORT_BLOCK;
        assert!(codes.len() == rows * cols && scales.len() == rows * groups && minima.len() == rows * groups);
        assert!(layout == Layout::Bytes || codes.iter().all(|code| *code < 16), "codes of 4 bits");
        Self::new(layout, rows, cols, arena, |row, put| {
            for (group, codes) in codes[row * cols..][..cols].chunks(SHORT_BLOCK).enumerate() {
                let at = row * groups + group;
                put(group, scales[at], minima[at], &mut codes.iter().copied());
            }
        })
    }

    /// `fill` gets each row and what takes its blocks: (block, scale, minimum, codes).
    fn new(
        layout: Layout,
        rows: usize,
        cols: usize,
        arena: &mut Arena,
        fill: impl Fn(usize, &mut dyn FnMut(usize, u16, u16, &mut dyn Iterator<Item = u8>)) + Sync,
    ) -> Self {
        let (tiles, blocks) = (rows.div_ceil(TILE), cols.div_ceil(BLOCK));
        let (block_bytes, block_scales) = (layout.block_bytes(), layout.block_scales());
        let mut codes = arena.take::<u8>(tiles * blocks * block_bytes);
        let mut scales = arena.take::<u16>(tiles * blocks * block_scales);
        let tile_scales = Output::new(&mut scales);
        for_each_chunk(&mut codes, (blocks * block_bytes).max(1), |tile, to| {
            let length = blocks * block_scales;
            // SAFETY: every tile has `length` scales of its own.
            let scales = unsafe { std::slice::from_raw_parts_mut(tile_scales.pointer().add(tile * length), length) };
            for lane in 0..TILE.min(rows - tile * TILE) {
                fill(tile * TILE + lane, &mut |block, scale, minimum, codes| {
                    let at = block * 2 * TILE + lane;
                    (scales[at], scales[at + TILE]) = (scale, minimum);
                    for (i, code) in codes.enumerate() {
                        let (at, shift) = layout.place(block * BLOCK / layout.parts() + i, lane);
                        to[at] |= code << shift;
                    }
                });
            }
        });
        Self { rows, cols, layout, codes, scales }
    }

    /// (outputs, inputs).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        (self.codes.len() + 2 * self.scales.len()) as u64
    }

    /// About how often the product of some rows, for these outputs, asks for what comes after it.
    pub(crate) fn steps(&self, rows: usize, outputs: Range<usize>) -> usize {
        rows.div_ceil(8) * outputs.len().div_ceil(TILE) * self.cols.div_ceil(BLOCK) * BLOCK / 8
    }

    /// Bytes that a (rows, cols) matrix takes.
    pub fn bytes_of(layout: Layout, rows: usize, cols: usize) -> u64 {
        let blocks = rows.div_ceil(TILE) * cols.div_ceil(BLOCK);
        (blocks * (layout.block_bytes() + 2 * layout.block_scales())) as u64
    }

    /// Row `row` as f32 into `out`.
    ///
    /// # Panics
    /// When `row` is outside the matrix or `out` is not `cols` long.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {:?}", self.shape());
        let (layout, blocks) = (self.layout, self.cols.div_ceil(BLOCK));
        let codes = &self.codes[row / TILE * blocks * layout.block_bytes()..];
        let scales = &self.scales[row / TILE * blocks * layout.block_scales()..];
        for (i, out) in out.iter_mut().enumerate() {
            let (at, shift) = layout.place(i, row % TILE);
            let code = codes[at] >> shift & (u8::MAX >> (8 - layout.bits()));
            let at = i * layout.parts() / BLOCK * 2 * TILE + row % TILE;
            let [scale, minimum] = [at, at + TILE].map(|at| f16::from_bits(scales[at]).to_f32());
            *out = f32::from(code) * scale + minimum;
        }
    }
}

impl Layout {
    /// Byte and bit of input `i` of a tile's output `lane`, from the tile's beginning.
    fn place(self, i: usize, lane: usize) -> (usize, usize) {
        let (quad, byte) = (i / 4, lane * 4 + i % 4);
        match self {
            Self::Nibbles => (quad / 2 * QUAD + byte, quad % 2 * 4),
            _ => (quad * QUAD + byte, 0),
        }
    }
}

/// The nearest integer, ties to even, of a magnitude below 2²²: adding 1.5 · 2²³ leaves it in the low bits. (The library's
/// function is a call for each value where the compiler may not assume SSE 4.1.)
#[inline(always)]
fn nearest(value: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32
}

/// The product, and meanwhile what comes after it.
pub(crate) fn run_int8(isa: Isa, job: Job, w: &Int8Weights, ahead: &Ahead) {
    match w.layout {
        Layout::Rounded => run_rounded(isa, job, Laid(w), ahead),
        Layout::Bytes => run_bytes(isa, job, Laid(w), ahead),
        Layout::Nibbles => run_nibbles(isa, job, Laid(w), ahead),
    }
}

fn run_rounded(isa: Isa, job: Job, w: Laid<8, 1>, ahead: &Ahead) {
    dispatch_int8!(isa, tiles(job: Job, w: Laid<8, 1>, ahead: &Ahead));
}

fn run_bytes(isa: Isa, job: Job, w: Laid<8, 2>, ahead: &Ahead) {
    dispatch_int8!(isa, tiles(job: Job, w: Laid<8, 2>, ahead: &Ahead));
}

fn run_nibbles(isa: Isa, job: Job, w: Laid<4, 2>, ahead: &Ahead) {
    dispatch_int8!(isa, tiles(job: Job, w: Laid<4, 2>, ahead: &Ahead));
}

/// Weights whose layout has `BITS` bits and `PARTS` scales for 64 inputs.
#[derive(Clone, Copy)]
struct Laid<'a, const BITS: usize, const PARTS: usize>(&'a Int8Weights);

/// What the kernel asks of [`Laid`].
trait Tiles: Copy {
    const PARTS: usize;
    /// Bytes of 64 inputs of a tile.
    const BLOCK_BYTES: usize;
    /// Where 64 inputs of a tile begin.
    unsafe fn block(self, tile: usize, block: usize) -> *const u8;
    /// Quad `2 · pair + which` of 16 outputs.
    unsafe fn quad<V: Int8Vector>(block: *const u8, pair: usize, which: usize, half: usize) -> V::Wide;
    /// A tile's scales for a part of a block; the minima follow.
    unsafe fn scales(self, tile: usize, block: usize, part: usize) -> *const u16;
}

impl<const BITS: usize, const PARTS: usize> Tiles for Laid<'_, BITS, PARTS> {
    const PARTS: usize = PARTS;
    const BLOCK_BYTES: usize = BLOCK * TILE * BITS / 8;

    #[inline(always)]
    unsafe fn block(self, tile: usize, block: usize) -> *const u8 {
        // SAFETY: the caller stays inside the matrix, and every tile holds whole blocks.
        unsafe { self.0.codes.as_ptr().add((tile * self.0.cols.div_ceil(BLOCK) + block) * Self::BLOCK_BYTES) }
    }
    #[inline(always)]
    unsafe fn quad<V: Int8Vector>(block: *const u8, pair: usize, which: usize, half: usize) -> V::Wide {
        let quad = if BITS == 4 { pair } else { 2 * pair + which };
        // SAFETY: as above.
        unsafe { V::load_wide::<BITS>(block.add(quad * QUAD + half * 4 * LANES), which) }
    }
    #[inline(always)]
    unsafe fn scales(self, tile: usize, block: usize, part: usize) -> *const u16 {
        let at = ((tile * self.0.cols.div_ceil(BLOCK) + block) * PARTS + part) * 2 * TILE;
        // SAFETY: as above.
        unsafe { self.0.scales.as_ptr().add(at) }
    }
}

/// How many bytes ahead a matrix is fetched into the cache.
const AHEAD: usize = 4096;

/// # Safety
/// The job's operands were checked, its outputs are a range of the matrix that starts at a tile, and its activations are
/// rounded.
#[inline(always)]
unsafe fn tiles<V: Int8Vector, W: Tiles>(job: Job, w: W, ahead: &Ahead) {
    for rows in job.row_blocks(1) {
        let job = Job { rows, ..job.clone() };
        for tile in job.first / TILE..job.last.div_ceil(TILE) {
            let (mut row, end) = (job.rows.start, job.rows.end);
            // SAFETY: the tile lies in the range, and the rows of every call are the job's.
            unsafe {
                while V::HELD >= 8 && row + 8 <= end {
                    tile_rows::<V, W, 8, 2, false>(&job, w, tile, row, ahead);
                    row += 8;
                }
                while V::HELD >= 8 && row + 4 <= end {
                    tile_rows::<V, W, 4, 2, true>(&job, w, tile, row, ahead);
                    row += 4;
                }
                while V::HELD >= 8 && row + 2 <= end {
                    tile_rows::<V, W, 2, 2, true>(&job, w, tile, row, ahead);
                    row += 2;
                }
                while V::HELD < 8 && row + 2 <= end {
                    tile_rows::<V, W, 2, 1, true>(&job, w, tile, row, ahead);
                    row += 2;
                }
                if V::HELD >= 8 && row < end {
                    tile_rows::<V, W, 1, 2, true>(&job, w, tile, row, ahead);
                } else if row < end {
                    tile_rows::<V, W, 1, 1, true>(&job, w, tile, row, ahead);
                }
            }
        }
    }
}

/// R rows against one tile, H halves at a time: both digits `TOGETHER`, in sums of their own, or one after the other
/// (integers add up to the same in any order).
///
/// # Safety
/// The tile lies in the matrix and rows `row..row + R` in x and y.
#[inline(always)]
unsafe fn tile_rows<V: Int8Vector, W: Tiles, const R: usize, const H: usize, const TOGETHER: bool>(
    job: &Job,
    w: W,
    tile: usize,
    row: usize,
    ahead: &Ahead,
) {
    // SAFETY: as promised, and every array holds whole blocks. (A prefetch may name any address.)
    unsafe {
        let rounded = job.rounded();
        let blocks = rounded.blocks;
        let first_pass = row == job.rows.start;
        let mut totals = [[V::Floats::splat(0.0); R]; HALVES];
        for block in 0..blocks {
            let from = w.block(tile, block);
            for part in 0..W::PARTS {
                let pairs = BLOCK / 8 / W::PARTS;
                let scales = w.scales(tile, block, part);
                for first in (0..HALVES).step_by(H) {
                    let mut sums = [[[V::wide_sums(); R]; H]; 2];
                    // Unknown to the compiler, which would keep a block's codes from one pass to the next, in memory.
                    let passes = if TOGETHER { 1 } else { std::hint::black_box(V::DIGITS) };
                    for pass in 0..passes {
                        if pass > 0 {
                            for half in 0..H {
                                for r in 0..R {
                                    sums[0][half][r] = V::next_digit(sums[0][half][r]);
                                }
                            }
                        }
                        for pair in part * pairs..(part + 1) * pairs {
                            // A few lines at a time: many at once would hold up the loads behind them.
                            if first_pass && pass == 0 && first == 0 {
                                for line in 0..W::BLOCK_BYTES / 8 / 64 {
                                    prefetch(from.wrapping_add(AHEAD + 64 * (W::BLOCK_BYTES / 8 / 64 * pair + line)));
                                }
                            }
                            if pass == 0 && first == 0 {
                                ahead.step();
                            }
                            for which in 0..2 {
                                let mut codes = [W::quad::<V>(from, pair, which, first); H];
                                for half in 1..H {
                                    codes[half] = W::quad::<V>(from, pair, which, first + half);
                                }
                                for r in 0..R {
                                    let at = ((row + r) * blocks + block) * BLOCK + (2 * pair + which) * 4;
                                    for own in 0..if TOGETHER { V::DIGITS } else { 1 } {
                                        let x = V::load_digit(rounded, at, pass + own);
                                        for half in 0..H {
                                            sums[own][half][r] = V::add_wide(sums[own][half][r], codes[half], x);
                                        }
                                    }
                                }
                            }
                        }
                    }
                    for half in 0..H {
                        let at = scales.add((first + half) * LANES);
                        let (scale, minimum) = (V::Floats::load_f16(at), V::Floats::load_f16(at.add(TILE)));
                        for r in 0..R {
                            let at = (row + r) * blocks + block;
                            let step = V::Floats::splat(*rounded.steps.as_ptr().add(at));
                            let x_totals = &*rounded.totals.as_ptr().add(at);
                            let x_total = V::Floats::splat(x_totals[if W::PARTS == 1 { 2 } else { part }]);
                            let mut sum = sums[0][half][r];
                            if TOGETHER && V::DIGITS > 1 {
                                sum = V::add_sums(V::next_digit(sum), sums[1][half][r]);
                            }
                            let total = &mut totals[first + half][r];
                            *total = total.fma(V::wide_to_floats(sum), scale.mul(step));
                            *total = total.fma(minimum, x_total);
                        }
                    }
                }
            }
        }
        for half in 0..HALVES {
            store(job, tile, half, row, &totals[half]);
        }
    }
}

/// Writes or adds half a tile's outputs of R rows.
///
/// # Safety
/// Rows `row..row + R` of y, and the tile's outputs that there are, are the job's.
#[inline(always)]
pub(crate) unsafe fn store<F: Vector, const R: usize>(
    job: &Job,
    tile: usize,
    half: usize,
    row: usize,
    totals: &[F; R],
) {
    let at = tile * TILE + half * LANES;
    let lanes = LANES.min(job.outputs.saturating_sub(at));
    for r in 0..R {
        let y = job.y.wrapping_add((row + r - job.y_row) * job.outputs + at);
        // SAFETY: as promised; no lane is touched past the outputs.
        unsafe {
            let total = if job.add { F::load_partial(y, lanes).add(totals[r]) } else { totals[r] };
            total.store_partial(y, lanes);
        }
    }
}
