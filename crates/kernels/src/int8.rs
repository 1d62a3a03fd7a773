//! Products with rounded activations: int8 weights of the base, and bit planes of deltas.
//!
//! ```text
//! W[o, i] = w[o, i] · scale[o, i / 64]      base: w in −127..=127; delta: odd numbers ±1 .. ±(2^bits − 1)
//! X[r, i] ≈ x[r, i] · scale[r, i / 64]      x in −127..=127, rounded in each call
//! Y[r, o] = Σ_blocks scale[r] · scale[o] · Σ w · x
//! ```
//!
//! Both lie in tiles of 16 outputs: 4 inputs of output 0, the same 4 of output 1, … make 64 bytes (or 64 bits a plane,
//! which one masked move turns into bytes), which one instruction (`vpdpbusd`) multiplies with 4 inputs of a row and adds
//! into 16 sums, one for each output. There is no sum across lanes, and a block ends in one multiply-add by 16 scales. The
//! integer part is exact, so the order in which it is added does not matter; the blocks are added in order. Bytes: n · k ·
//! (1 + 2/64) for the base, n · k · (bits / 8 + 2 / group) for a delta, read once for up to eight rows.

// Loops over an index keep the sums in registers, where iterators and closures leave them in memory: measured 4 to 6
// times slower.
#![allow(clippy::needless_range_loop)]

use crate::{
    isa::{Isa, dispatch_int8},
    parallel::{Output, for_each_chunk},
    project::Job,
    rounded::BLOCK,
    vector::{LANES, Vector, int8::Int8Vector},
};
use half::f16;

/// Bytes of a tile's 4 inputs of 16 outputs.
const QUAD: usize = 4 * LANES;
/// Bytes of a tile's block.
const TILE_BLOCK: usize = BLOCK * LANES;
/// Rows of X that a tile holds in registers.
const TILE_ROWS: usize = 8;

/// An int8 weight matrix in tiles of 16 outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Int8Weights {
    rows: usize,
    cols: usize,
    /// tile → block → quad of inputs → output → input: w + 128, and 128 where there is no weight.
    codes: Vec<u8>,
    /// tile → block → output: f16 bits.
    scales: Vec<u16>,
}

impl Int8Weights {
    /// Rounds a (rows, cols) matrix, row-major, to int8: the scale of a block is its greatest magnitude over 127.
    ///
    /// # Panics
    /// When `weights` is not as long as the shape says.
    pub fn quantize(weights: &[f32], rows: usize, cols: usize) -> Self {
        assert_eq!(weights.len(), rows * cols, "weights of shape ({rows}, {cols})");
        let (tiles, blocks) = (rows.div_ceil(LANES), cols.div_ceil(BLOCK));
        let mut codes = vec![128; tiles * blocks * TILE_BLOCK];
        let mut scales = vec![0; tiles * blocks * LANES];
        let tile_scales = Output::new(&mut scales);
        for_each_chunk(&mut codes, (blocks * TILE_BLOCK).max(1), |tile, codes| {
            // SAFETY: every tile has `blocks · 16` scales of its own.
            let scales = unsafe {
                std::slice::from_raw_parts_mut(tile_scales.pointer().add(tile * blocks * LANES), blocks * LANES)
            };
            for lane in 0..LANES.min(rows - tile * LANES) {
                let row = &weights[(tile * LANES + lane) * cols..][..cols];
                for (block, values) in row.chunks(BLOCK).enumerate() {
                    let greatest = values.iter().fold(0f32, |greatest, value| greatest.max(value.abs()));
                    let scale = f16::from_f32(greatest / 127.0);
                    scales[block * LANES + lane] = scale.to_bits();
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
        let blocks = rows.div_ceil(LANES) * cols.div_ceil(BLOCK);
        (blocks * (TILE_BLOCK + 2 * LANES)) as u64
    }

    /// Row `row` as f32 into `out`.
    ///
    /// # Panics
    /// When `row` is outside the matrix or `out` is not `cols` long.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {:?}", self.shape());
        let first = row / LANES * self.blocks();
        for (i, out) in out.iter_mut().enumerate() {
            let block = first + i / BLOCK;
            let at = block * TILE_BLOCK + i % BLOCK / 4 * QUAD + row % LANES * 4 + i % 4;
            let scale = f16::from_bits(self.scales[block * LANES + row % LANES]).to_f32();
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
/// The pointers of `scales` are valid for 16 reads, for every tile and block of the matrix.
pub(crate) unsafe trait Tiles<V: Int8Vector>: Copy {
    /// What makes the codes unsigned, see [`crate::vector::int8`].
    const ZERO: i32;
    /// How many quads of products a narrow sum holds; 0 where they are not narrow.
    const NARROW: usize;
    /// 4 inputs of 16 outputs.
    unsafe fn codes(self, tile: usize, block: usize, quad: usize) -> V::Codes;
    /// Sixteen f16 scales.
    unsafe fn scales(self, tile: usize, block: usize) -> *const u16;
    /// What all scales are multiplied with.
    fn factor(self) -> f32;
}

// SAFETY: `quantize` made 16 scales for every tile and block.
unsafe impl<V: Int8Vector> Tiles<V> for &Int8Weights {
    const ZERO: i32 = 128;
    const NARROW: usize = 0;

    #[inline(always)]
    unsafe fn codes(self, tile: usize, block: usize, quad: usize) -> V::Codes {
        let at = (tile * self.blocks() + block) * TILE_BLOCK + quad * QUAD;
        // SAFETY: the caller stays inside the matrix, and every tile holds whole blocks.
        unsafe { V::load_codes(self.codes.as_ptr().add(at)) }
    }
    #[inline(always)]
    unsafe fn scales(self, tile: usize, block: usize) -> *const u16 {
        // SAFETY: as above.
        unsafe { self.scales.as_ptr().add((tile * self.blocks() + block) * LANES) }
    }
    #[inline(always)]
    fn factor(self) -> f32 {
        1.0
    }
}

/// # Safety
/// The job's operands were checked, its outputs are a range of the matrix that starts at a tile, and its activations are
/// rounded.
#[inline(always)]
pub(crate) unsafe fn tiles<V: Int8Vector, W: Tiles<V>>(job: Job, w: W) {
    let (first, last) = (job.first / LANES, job.last.div_ceil(LANES));
    for rows in job.row_blocks(1) {
        let job = Job { rows, ..job.clone() };
        let mut tile = first;
        // SAFETY: the tiles of every call lie in the range.
        unsafe {
            while tile + 2 <= last {
                row_groups::<V, W, 2>(&job, w, tile);
                tile += 2;
            }
            if tile < last {
                row_groups::<V, W, 1>(&job, w, tile);
            }
        }
    }
}

/// All rows against T tiles.
#[inline(always)]
unsafe fn row_groups<V: Int8Vector, W: Tiles<V>, const T: usize>(job: &Job, w: W, tile: usize) {
    let mut row = job.rows.start;
    let end = job.rows.end;
    // SAFETY: the rows of every call are the job's.
    unsafe {
        while row + TILE_ROWS <= end {
            block_rows::<V, W, T, TILE_ROWS, 1>(job, w, tile, row);
            row += TILE_ROWS;
        }
        if row + 4 <= end {
            block_rows::<V, W, T, 4, 1>(job, w, tile, row);
            row += 4;
        }
        if row + 2 <= end {
            block_rows::<V, W, T, 2, 2>(job, w, tile, row);
            row += 2;
        }
        if row < end {
            if W::NARROW > 0 {
                block_rows::<V, W, T, 1, 2>(job, w, tile, row);
            } else {
                block_rows::<V, W, T, 1, 4>(job, w, tile, row);
            }
        }
    }
}

/// R rows against T tiles, in C sums each: several where rows are few, so that one addition does not wait for the last
/// (integers add up to the same in any order).
///
/// # Safety
/// Tiles `tile..tile + T` lie in the matrix and rows `row..row + R` in x and y.
#[inline(always)]
unsafe fn block_rows<V: Int8Vector, W: Tiles<V>, const T: usize, const R: usize, const C: usize>(
    job: &Job,
    w: W,
    tile: usize,
    row: usize,
) {
    // SAFETY: as promised, and every array holds whole blocks.
    unsafe {
        let rounded = job.rounded();
        let (blocks, stride) = (rounded.blocks, rounded.blocks * BLOCK);
        let x = rounded.codes.as_ptr().add(row * stride);
        let x_scales = rounded.scales.as_ptr().add(row * blocks);
        let x_sums = rounded.sums.as_ptr().add(row * blocks);
        let mut totals = [[V::Floats::splat(0.0); R]; T];
        let factor = V::Floats::splat(w.factor());
        // Unknown to the compiler, which would unroll the loop whole, load all masks first and spill them.
        let quads = std::hint::black_box(W::NARROW);
        // Plain loops over the registers: closures would keep the sums in memory.
        for block in 0..blocks {
            let mut sums = [[V::begin(0); R]; T];
            for r in 0..R {
                let offset = -W::ZERO * *x_sums.add(r * blocks + block);
                for t in 0..T {
                    sums[t][r] = if W::NARROW > 0 { V::begin_narrow(offset) } else { V::begin(offset) };
                }
            }
            let x = x.add(block * BLOCK);
            if W::NARROW > 0 {
                for first in (0..BLOCK / 4).step_by(W::NARROW.max(1)) {
                    let mut narrow = [[[V::narrow(); R]; T]; C];
                    for quad in (first..first + quads).step_by(C) {
                        for c in 0..C {
                            for t in 0..T {
                                let codes = w.codes(tile + t, block, quad + c);
                                for r in 0..R {
                                    let x = x.add(r * stride + (quad + c) * 4).cast::<i32>().read_unaligned();
                                    narrow[c][t][r] = V::add_narrow(narrow[c][t][r], codes, x);
                                }
                            }
                        }
                    }
                    for c in 0..C {
                        for t in 0..T {
                            for r in 0..R {
                                sums[t][r] = sums[t][r].widen(narrow[c][t][r]);
                            }
                        }
                    }
                }
            } else {
                let mut chains = [[[V::begin(0); R]; T]; C];
                chains[0] = sums;
                for c in 1..C {
                    chains[c] = [[V::begin_narrow(0); R]; T];
                }
                for quad in (0..BLOCK / 4).step_by(C) {
                    for c in 0..C {
                        let mut codes = [w.codes(tile, block, quad + c); T];
                        for t in 1..T {
                            codes[t] = w.codes(tile + t, block, quad + c);
                        }
                        for r in 0..R {
                            let x = x.add(r * stride + (quad + c) * 4).cast::<i32>().read_unaligned();
                            for t in 0..T {
                                chains[c][t][r] = chains[c][t][r].add_dots(codes[t], x);
                            }
                        }
                    }
                }
                sums = chains[0];
                for c in 1..C {
                    for t in 0..T {
                        for r in 0..R {
                            sums[t][r] = sums[t][r].add(chains[c][t][r]);
                        }
                    }
                }
            }
            for t in 0..T {
                let scale = V::Floats::load_f16(w.scales(tile + t, block)).mul(factor);
                for r in 0..R {
                    let both = scale.mul(V::Floats::splat(*x_scales.add(r * blocks + block)));
                    totals[t][r] = totals[t][r].fma(sums[t][r].to_floats(), both);
                }
            }
        }
        for t in 0..T {
            let at = (tile + t) * LANES;
            let lanes = LANES.min(job.outputs - at);
            for r in 0..R {
                let y = job.y.add((row + r - job.y_row) * job.outputs + at);
                let total = if job.add { V::Floats::load_partial(y, lanes).add(totals[t][r]) } else { totals[t][r] };
                total.store_partial(y, lanes);
            }
        }
    }
}
