//! Products with rounded activations: int8 weights of the base, and bit planes of deltas.
//!
//! ```text
//! W[o, i] = w[o, i] · scale[o, i / 64]      base: w in −127..=127; delta: odd numbers ±1 .. ±(2^bits − 1)
//! X[r, i] ≈ x[r, i] · scale[r, i / 64]      x one or two int8 digits, see `rounded`
//! Y[r, o] = Σ_blocks scale[r] · scale[o] · Σ w · x
//! ```
//!
//! Both lie in tiles of 32 outputs, two halves of 16: 4 inputs of output 0, the same 4 of output 1, … make 64 bytes (or
//! 64 bits a plane, which one masked move turns into bytes), which one instruction (`vpdpbusd`) multiplies with 4 inputs
//! of a row and adds into 16 sums, one for each output. There is no sum across lanes, and a block ends in one
//! multiply-add by 16 scales. The two halves share the loads of the row's inputs and lie side by side, so that a matrix is
//! read as one stream. The integer part is exact, so the order in which it is added does not matter; the blocks are added
//! in order. Bytes: n · k · (1 + 2/64) for the base, n · k · (bits / 8 + 2 / group) for a delta, read once for up to
//! eight rows.

// Loops over an index keep the sums in registers, where iterators and closures leave them in memory: measured 4 to 6
// times slower.
#![allow(clippy::needless_range_loop)]

use crate::{
    arena::{Arena, Slab},
    isa::{Isa, dispatch_int8},
    parallel::{Output, for_each_chunk},
    project::Job,
    rounded::{BLOCK, FINE},
    vector::{LANES, Vector, int8::Int8Vector, prefetch},
};
use half::f16;

/// Halves of a tile.
pub(crate) const HALVES: usize = 2;
/// Outputs of a tile.
pub(crate) const TILE: usize = HALVES * LANES;
/// Bytes of 4 inputs of all outputs of a tile.
const QUAD: usize = 4 * TILE;
/// Bytes of a tile's block.
const TILE_BLOCK: usize = BLOCK * TILE;

/// An int8 weight matrix in tiles of 32 outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Int8Weights {
    rows: usize,
    cols: usize,
    /// tile → block → quad of inputs → output → input: w + 128, and 128 where there is no weight.
    codes: Slab<u8>,
    /// tile → block → output: f16 bits.
    scales: Slab<u16>,
}

impl Int8Weights {
    /// Rounds a (rows, cols) matrix, row-major, to int8: the scale of a block is its greatest magnitude over 127. The
    /// result lies in `arena`.
    ///
    /// # Panics
    /// When `weights` is not as long as the shape says.
    pub fn quantize(weights: &[f32], rows: usize, cols: usize, arena: &mut Arena) -> Self {
        assert_eq!(weights.len(), rows * cols, "weights of shape ({rows}, {cols})");
        let (tiles, blocks) = (rows.div_ceil(TILE), cols.div_ceil(BLOCK));
        let mut codes = arena.take::<u8>(tiles * blocks * TILE_BLOCK);
        let mut scales = arena.take::<u16>(tiles * blocks * TILE);
        let tile_scales = Output::new(&mut scales);
        for_each_chunk(&mut codes, (blocks * TILE_BLOCK).max(1), |tile, codes| {
            codes.fill(128);
            // SAFETY: every tile has `blocks · TILE` scales of its own.
            let scales = unsafe {
                std::slice::from_raw_parts_mut(tile_scales.pointer().add(tile * blocks * TILE), blocks * TILE)
            };
            for lane in 0..TILE.min(rows - tile * TILE) {
                let row = &weights[(tile * TILE + lane) * cols..][..cols];
                for (block, values) in row.chunks(BLOCK).enumerate() {
                    let greatest = values.iter().fold(0f32, |greatest, value| greatest.max(value.abs()));
                    let scale = f16::from_f32(greatest / 127.0);
                    scales[block * TILE + lane] = scale.to_bits();
                    let scale = scale.to_f32();
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    for (i, value) in values.iter().enumerate() {
                        let code = nearest((value * inverse).clamp(-127.0, 127.0));
                        codes[block * TILE_BLOCK + i / 4 * QUAD + lane * 4 + i % 4] = (code + 128) as u8;
                    }
                }
            }
        });
        Self { rows, cols, codes, scales }
    }

    /// (outputs, inputs).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        (self.codes.len() + 2 * self.scales.len()) as u64
    }

    /// Bytes that a (rows, cols) matrix takes.
    pub fn bytes_of(rows: usize, cols: usize) -> u64 {
        let blocks = rows.div_ceil(TILE) * cols.div_ceil(BLOCK);
        (blocks * (TILE_BLOCK + 2 * TILE)) as u64
    }

    /// Row `row` as f32 into `out`.
    ///
    /// # Panics
    /// When `row` is outside the matrix or `out` is not `cols` long.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {:?}", self.shape());
        let first = row / TILE * self.blocks();
        for (i, out) in out.iter_mut().enumerate() {
            let block = first + i / BLOCK;
            let at = block * TILE_BLOCK + i % BLOCK / 4 * QUAD + row % TILE * 4 + i % 4;
            let scale = f16::from_bits(self.scales[block * TILE + row % TILE]).to_f32();
            *out = f32::from(i16::from(self.codes[at]) - 128) * scale;
        }
    }

    fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }
}

/// The nearest integer, ties to even, of a magnitude below 2²²: adding 1.5 · 2²³ leaves it in the low bits. (The library's
/// function is a call for each value where the compiler may not assume SSE 4.1.)
#[inline(always)]
fn nearest(value: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32
}

pub(crate) fn run_int8(isa: Isa, job: Job, w: &Int8Weights) {
    dispatch_int8!(isa, tiles(job: Job, w: &Int8Weights));
}

/// Where a kernel finds its weights.
///
/// # Safety
/// The pointers of `scales` are valid for a tile's reads, for every tile and block of the matrix.
pub(crate) unsafe trait Tiles<V: Int8Vector>: Copy {
    /// What makes the codes unsigned, see [`crate::vector::int8`].
    const ZERO: i32;
    /// How many quads of products a narrow sum holds; 0 where they are not narrow.
    const NARROW: usize;
    /// Digits of the activations that count.
    const DIGITS: usize;
    /// Bytes of a tile's block.
    const BLOCK_BYTES: usize;
    /// Where a tile's block starts.
    unsafe fn block(self, tile: usize, block: usize) -> *const u8;
    /// 4 inputs of 16 outputs of the block that starts there.
    unsafe fn codes(self, block: *const u8, quad: usize, half: usize) -> V::Codes;
    /// A tile's f16 scales.
    unsafe fn scales(self, tile: usize, block: usize) -> *const u16;
    /// What all scales are multiplied with.
    fn factor(self) -> f32;
}

// SAFETY: `quantize` made TILE scales for every tile and block.
unsafe impl<V: Int8Vector> Tiles<V> for &Int8Weights {
    const ZERO: i32 = 128;
    const NARROW: usize = 0;
    const DIGITS: usize = 2;
    const BLOCK_BYTES: usize = TILE_BLOCK;

    #[inline(always)]
    unsafe fn block(self, tile: usize, block: usize) -> *const u8 {
        // SAFETY: the caller stays inside the matrix, and every tile holds whole blocks.
        unsafe { self.codes.as_ptr().add((tile * self.blocks() + block) * TILE_BLOCK) }
    }
    #[inline(always)]
    unsafe fn codes(self, block: *const u8, quad: usize, half: usize) -> V::Codes {
        // SAFETY: as above.
        unsafe { V::load_codes(block.add(quad * QUAD + half * 4 * LANES)) }
    }
    #[inline(always)]
    unsafe fn scales(self, tile: usize, block: usize) -> *const u16 {
        // SAFETY: as above.
        unsafe { self.scales.as_ptr().add((tile * self.blocks() + block) * TILE) }
    }
    #[inline(always)]
    fn factor(self) -> f32 {
        1.0
    }
}

/// How many bytes ahead a matrix is fetched into the cache.
const AHEAD: usize = 2048;

/// # Safety
/// The job's operands were checked, its outputs are a range of the matrix that starts at a tile, and its activations are
/// rounded.
#[inline(always)]
pub(crate) unsafe fn tiles<V: Int8Vector, W: Tiles<V>>(job: Job, w: W) {
    for rows in job.row_blocks(1) {
        let job = Job { rows, ..job.clone() };
        for tile in job.first / TILE..job.last.div_ceil(TILE) {
            let (mut row, end) = (job.rows.start, job.rows.end);
            // SAFETY: the tile lies in the range, and the rows of every call are the job's.
            unsafe {
                while V::JOINS && W::DIGITS == 2 && row + 2 <= end {
                    joined_rows::<V, W, 2>(&job, w, tile, row);
                    row += 2;
                }
                if V::JOINS && W::DIGITS == 2 && row < end {
                    joined_rows::<V, W, 1>(&job, w, tile, row);
                    row += 1;
                }
                while V::HELD >= 8 && row + 8 / W::DIGITS <= end {
                    block_rows::<V, W, 8, 1>(&job, w, tile, row);
                    row += 8 / W::DIGITS;
                }
                while V::HELD >= 4 && row + 4 / W::DIGITS <= end {
                    block_rows::<V, W, 4, 1>(&job, w, tile, row);
                    row += 4 / W::DIGITS;
                }
                while row + 2 / W::DIGITS <= end {
                    block_rows::<V, W, 2, 2>(&job, w, tile, row);
                    row += 2 / W::DIGITS;
                }
                if W::DIGITS == 1 && row < end {
                    block_rows::<V, W, 1, 2>(&job, w, tile, row);
                }
            }
        }
    }
}

/// R digits of rows against one tile, in C sums each: several where rows are few, so that one addition does not wait for
/// the last (integers add up to the same in any order).
///
/// # Safety
/// The tile lies in the matrix and rows `row..row + R / DIGITS` in x and y.
#[inline(always)]
unsafe fn block_rows<V: Int8Vector, W: Tiles<V>, const R: usize, const C: usize>(
    job: &Job,
    w: W,
    tile: usize,
    row: usize,
) {
    // SAFETY: as promised, and every array holds whole blocks. (A prefetch may name any address.)
    unsafe {
        let rounded = job.rounded();
        let (blocks, stride) = (rounded.blocks, rounded.blocks * BLOCK);
        let digits = [&rounded.codes, &rounded.fine].map(|codes| codes.as_ptr().add(row * stride));
        let digit_sums = [&rounded.sums, &rounded.fine_sums].map(|sums| sums.as_ptr().add(row * blocks));
        let x_scales = rounded.scales.as_ptr().add(row * blocks);
        let mut totals = [[V::Floats::splat(0.0); R]; HALVES];
        let factor = V::Floats::splat(if W::DIGITS == 2 { w.factor() / FINE } else { w.factor() });
        let first_pass = row == job.rows.start;
        // Unknown to the compiler, which would unroll the loop whole, load all masks first and spill them.
        let narrow_quads = std::hint::black_box(W::NARROW);
        for block in 0..blocks {
            let from = w.block(tile, block);
            if first_pass {
                for line in 0..W::BLOCK_BYTES / 64 {
                    prefetch(from.wrapping_add(AHEAD + 64 * line));
                }
            }
            let mut sums = [[V::begin(0); R]; HALVES];
            for r in 0..R {
                let offset = -W::ZERO * *digit_sums[r % W::DIGITS].add(r / W::DIGITS * blocks + block);
                for half in 0..HALVES {
                    sums[half][r] = if W::NARROW > 0 { V::begin_narrow(offset) } else { V::begin(offset) };
                }
            }
            let x = [digits[0].add(block * BLOCK), digits[1].add(block * BLOCK)];
            if W::NARROW > 0 {
                for first in (0..BLOCK / 4).step_by(W::NARROW.max(1)) {
                    let mut narrow = [[[V::narrow(); R]; HALVES]; C];
                    for quad in (first..first + narrow_quads).step_by(C) {
                        for c in 0..C {
                            for half in 0..HALVES {
                                let codes = w.codes(from, quad + c, half);
                                for r in 0..R {
                                    let x = x[r % W::DIGITS].add(r / W::DIGITS * stride + (quad + c) * 4);
                                    let x = x.cast::<i32>().read_unaligned();
                                    narrow[c][half][r] = V::add_narrow(narrow[c][half][r], codes, x);
                                }
                            }
                        }
                    }
                    for c in 0..C {
                        for half in 0..HALVES {
                            for r in 0..R {
                                sums[half][r] = sums[half][r].widen(narrow[c][half][r]);
                            }
                        }
                    }
                }
            } else {
                let mut chains = [[[V::begin_narrow(0); R]; HALVES]; C];
                chains[0] = sums;
                for quad in (0..BLOCK / 4).step_by(C) {
                    for c in 0..C {
                        let mut codes = [w.codes(from, quad + c, 0); HALVES];
                        for half in 1..HALVES {
                            codes[half] = w.codes(from, quad + c, half);
                        }
                        for r in 0..R {
                            let x = x[r % W::DIGITS].add(r / W::DIGITS * stride + (quad + c) * 4);
                            let x = x.cast::<i32>().read_unaligned();
                            for half in 0..HALVES {
                                chains[c][half][r] = chains[c][half][r].add_dots(codes[half], x);
                            }
                        }
                    }
                }
                sums = chains[0];
                for c in 1..C {
                    for half in 0..HALVES {
                        for r in 0..R {
                            sums[half][r] = sums[half][r].add(chains[c][half][r]);
                        }
                    }
                }
            }
            for half in 0..HALVES {
                let scale = V::Floats::load_f16(w.scales(tile, block).add(half * LANES)).mul(factor);
                for r in 0..R / W::DIGITS {
                    let sum = match W::DIGITS {
                        2 => sums[half][2 * r].join(sums[half][2 * r + 1]),
                        _ => sums[half][r],
                    };
                    let both = scale.mul(V::Floats::splat(*x_scales.add(r * blocks + block)));
                    totals[half][r] = totals[half][r].fma(sum.to_floats(), both);
                }
            }
        }
        store::<V::Floats, R>(job, tile, row, R / W::DIGITS, &totals);
    }
}

/// R rows, both digits at once, against one tile.
///
/// # Safety
/// As [`block_rows`].
#[inline(always)]
unsafe fn joined_rows<V: Int8Vector, W: Tiles<V>, const R: usize>(job: &Job, w: W, tile: usize, row: usize) {
    // SAFETY: as promised, and every array holds whole blocks. (A prefetch may name any address.)
    unsafe {
        let rounded = job.rounded();
        let (blocks, stride) = (rounded.blocks, rounded.blocks * BLOCK);
        let x = rounded.joined.as_ptr().add(row * stride);
        let mut totals = [[V::Floats::splat(0.0); R]; HALVES];
        let factor = V::Floats::splat(w.factor() / FINE);
        let first_pass = row == job.rows.start;
        for block in 0..blocks {
            let from = w.block(tile, block);
            if first_pass {
                for line in 0..W::BLOCK_BYTES / 64 {
                    prefetch(from.wrapping_add(AHEAD + 64 * line));
                }
            }
            for half in 0..HALVES {
                let mut joined = [V::joined(); R];
                for quad in 0..BLOCK / 4 {
                    let mut four = [0i64; R];
                    for r in 0..R {
                        four[r] = x.add(r * stride + block * BLOCK + quad * 4).cast::<i64>().read_unaligned();
                    }
                    V::add_joined(&mut joined, from.add(quad * QUAD + half * 4 * LANES), four);
                }
                let scale = V::Floats::load_f16(w.scales(tile, block).add(half * LANES)).mul(factor);
                for r in 0..R {
                    let at = (row + r) * blocks + block;
                    let sum = *rounded.sums.as_ptr().add(at) * FINE as i32 + *rounded.fine_sums.as_ptr().add(at);
                    let sums = V::begin_narrow(-W::ZERO * sum).add_all_joined(joined[r]);
                    let both = scale.mul(V::Floats::splat(*rounded.scales.as_ptr().add(at)));
                    totals[half][r] = totals[half][r].fma(sums.to_floats(), both);
                }
            }
        }
        store(job, tile, row, R, &totals);
    }
}

/// Writes or adds a tile's outputs of `count` rows.
///
/// # Safety
/// Rows `row..row + count` of y, and the tile's outputs that there are, are the job's.
#[inline(always)]
unsafe fn store<F: Vector, const R: usize>(
    job: &Job,
    tile: usize,
    row: usize,
    count: usize,
    totals: &[[F; R]; HALVES],
) {
    for half in 0..HALVES {
        let at = tile * TILE + half * LANES;
        let lanes = LANES.min(job.outputs.saturating_sub(at));
        for r in 0..count {
            let y = job.y.wrapping_add((row + r - job.y_row) * job.outputs + at);
            // SAFETY: as promised; no lane is touched past the outputs.
            unsafe {
                let total = totals[half][r];
                let total = if job.add { F::load_partial(y, lanes).add(total) } else { total };
                total.store_partial(y, lanes);
            }
        }
    }
}
