//! A dense delta's product with rounded activations: `Y (m, n) += X (m, k) · Dᵀ`, in the way of [`crate::int8`].
//!
//! The planes of the variant file are laid out again for it once, when the variant is loaded: bit 4o + i of a 64-bit word
//! is input i (of four) of output o (of sixteen, half a tile), and the words of a tile follow each other. The bytes stay
//! the same.

// As in `int8`: loops over an index keep the sums in registers.
#![allow(clippy::needless_range_loop)]

use crate::{
    arena::{Arena, Slab},
    int8::{AHEAD, HALVES, TILE, store},
    isa::{Isa, dispatch_int8},
    packed::Packed,
    project::Job,
    rounded::BLOCK,
    vector::{LANES, Vector, int8::Int8Vector, prefetch},
};

/// A packed matrix in tiles of 32 outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct PlaneTiles {
    /// Planes in memory: 1, 2 or 4.
    bits: usize,
    /// An element is `scale · (2 · code − zero)`: 2^bits − 1 of the bits that it was quantised to, or one less with a level
    /// at zero.
    zero: i32,
    rows: usize,
    cols: usize,
    /// Blocks of 64 inputs that share a scale.
    blocks_per_group: usize,
    /// tile → quad of inputs → half → plane.
    words: Slab<u64>,
    /// tile → group → output: f16 bits.
    scales: Slab<u16>,
    tensor_scale: f32,
}

impl PlaneTiles {
    /// Lays `d` out in tiles that lie in `arena`. `None` for what this product cannot do: more than four bits, offsets other than the
    /// scales, and groups that are neither a multiple of 64 inputs nor the whole row.
    pub fn new(d: &Packed, arena: &mut Arena) -> Option<Self> {
        if d.bits > 4 || !(d.offsets.is_empty() || d.has_level_at_zero()) || !d.has_whole_blocks() {
            return None;
        }
        d.check();
        let (tiles, blocks, groups) = (d.rows.div_ceil(TILE), d.cols.div_ceil(BLOCK), d.cols.div_ceil(d.group));
        let quads = blocks * BLOCK / 4;
        // Three planes and one of zeros.
        let bits = if d.bits == 3 { 4 } else { d.bits };
        let mut words = arena.take::<u64>(tiles * quads * HALVES * bits);
        let mut scales = arena.take::<u16>(tiles * groups * TILE);
        for half in 0..d.rows.div_ceil(LANES) {
            let (tile, first) = (half / HALVES, half * LANES);
            let lanes = LANES.min(d.rows - first);
            for plane in 0..d.bits {
                for block in 0..blocks {
                    let mut square = [0u64; LANES];
                    for (lane, word) in square[..lanes].iter_mut().enumerate() {
                        *word = d.planes[((first + lane) * d.bits + plane) * blocks + block];
                    }
                    transpose(&mut square);
                    for (quad, word) in square.into_iter().enumerate() {
                        let quad = tile * quads + block * LANES + quad;
                        words[(quad * HALVES + half % HALVES) * bits + plane] = word;
                    }
                }
            }
            for lane in 0..lanes {
                for group in 0..groups {
                    scales[(tile * groups + group) * TILE + half % HALVES * LANES + lane] =
                        d.scales[(first + lane) * groups + group];
                }
            }
        }
        let blocks_per_group = d.group.div_ceil(BLOCK).min(blocks.max(1));
        let Packed { rows, cols, tensor_scale, .. } = *d;
        Some(Self { bits, zero: d.zero(), rows, cols, blocks_per_group, words, scales, tensor_scale })
    }

    /// Adds row `row` to `out`.
    ///
    /// # Panics
    /// When `row` is outside the matrix or `out` is not `cols` long.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of ({}, {})", self.rows, self.cols);
        let (tile, half, lane) = (row / TILE, row % TILE / LANES, row % LANES);
        let (quads, groups) = (self.blocks() * BLOCK / 4, self.blocks().div_ceil(self.blocks_per_group));
        for (i, out) in out.iter_mut().enumerate() {
            let planes = &self.words[((tile * quads + i / 4) * HALVES + half) * self.bits..][..self.bits];
            let code: i32 = (0..).zip(planes).map(|(p, word)| ((word >> (4 * lane + i % 4) & 1) as i32) << p).sum();
            let group = tile * groups + i / BLOCK / self.blocks_per_group;
            let scale = half::f16::from_bits(self.scales[group * TILE + row % TILE]).to_f32() * self.tensor_scale;
            *out += scale * (2 * code - self.zero) as f32;
        }
    }

    /// (outputs, inputs).
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        (8 * self.words.len() + 2 * self.scales.len()) as u64
    }

    fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }
}

/// Swaps nibble i of word j with nibble j of word i: halves of the square, then quarters, and so on.
fn transpose(square: &mut [u64; LANES]) {
    for (distance, keep) in [
        (8, 0x0000_0000_ffff_ffff),
        (4, 0x0000_ffff_0000_ffff),
        (2, 0x00ff_00ff_00ff_00ff),
        (1, 0x0f0f_0f0f_0f0f_0f0f_u64),
    ] {
        for from in (0..LANES).step_by(2 * distance) {
            for i in from..from + distance {
                let moved = (square[i] >> (4 * distance) ^ square[i + distance]) & keep;
                square[i + distance] ^= moved;
                square[i] ^= moved << (4 * distance);
            }
        }
    }
}

pub(crate) fn run_planes(isa: Isa, job: Job, d: &PlaneTiles) {
    match d.bits {
        1 => run_1(isa, job, Planes(d)),
        2 => run_2(isa, job, Planes(d)),
        _ => run_4(isa, job, Planes(d)),
    }
}

/// The tiles of a matrix of `BITS` planes.
#[derive(Clone, Copy)]
struct Planes<'a, const BITS: usize>(&'a PlaneTiles);

fn run_1(isa: Isa, job: Job, d: Planes<1>) {
    dispatch_int8!(isa, tiles(job: Job, d: Planes<1>));
}

fn run_2(isa: Isa, job: Job, d: Planes<2>) {
    dispatch_int8!(isa, tiles(job: Job, d: Planes<2>));
}

fn run_4(isa: Isa, job: Job, d: Planes<4>) {
    dispatch_int8!(isa, tiles(job: Job, d: Planes<4>));
}

/// What the kernel asks of [`Planes`], whatever their number.
///
/// # Safety
/// The pointers of `scales` are valid for a tile's reads, for every tile and block of the matrix.
unsafe trait Tiles<V: Int8Vector>: Copy {
    /// What makes the codes unsigned, see [`crate::vector::int8`].
    fn zero(self) -> i32;
    /// How many quads of products a narrow sum holds.
    const NARROW: usize;
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

// SAFETY: `PlaneTiles::new` made TILE scales for every tile and group, and a group for every block.
unsafe impl<V: Int8Vector, const BITS: usize> Tiles<V> for Planes<'_, BITS> {
    const NARROW: usize = if BITS <= 2 { BLOCK / 4 } else { 4 };
    const BLOCK_BYTES: usize = BLOCK / 8 * BITS * TILE;

    #[inline(always)]
    unsafe fn block(self, tile: usize, block: usize) -> *const u8 {
        // SAFETY: the caller stays inside the matrix, and every tile holds whole blocks.
        unsafe { self.0.words.as_ptr().cast::<u8>().add((tile * self.0.blocks() + block) * (BLOCK / 8 * BITS * TILE)) }
    }
    #[inline(always)]
    unsafe fn codes(self, block: *const u8, quad: usize, half: usize) -> V::Codes {
        // SAFETY: as above; every quad holds BITS words for each half, aligned as words.
        unsafe { V::load_planes(block.cast::<[u64; BITS]>().add(quad * HALVES + half).read()) }
    }
    #[inline(always)]
    unsafe fn scales(self, tile: usize, block: usize) -> *const u16 {
        let groups = self.0.blocks().div_ceil(self.0.blocks_per_group);
        // SAFETY: as above.
        unsafe { self.0.scales.as_ptr().add((tile * groups + block / self.0.blocks_per_group) * TILE) }
    }
    #[inline(always)]
    fn zero(self) -> i32 {
        self.0.zero
    }
    #[inline(always)]
    fn factor(self) -> f32 {
        self.0.tensor_scale
    }
}

/// # Safety
/// The job's operands were checked, its outputs are a range of the matrix that starts at a tile, and its activations are
/// rounded.
#[inline(always)]
unsafe fn tiles<V: Int8Vector, W: Tiles<V>>(job: Job, w: W) {
    for rows in job.row_blocks(1) {
        let job = Job { rows, ..job.clone() };
        for tile in job.first / TILE..job.last.div_ceil(TILE) {
            let (mut row, end) = (job.rows.start, job.rows.end);
            // SAFETY: the tile lies in the range, and the rows of every call are the job's.
            unsafe {
                while V::HELD >= 8 && row + 8 <= end {
                    block_rows::<V, W, 8, 1>(&job, w, tile, row);
                    row += 8;
                }
                while V::HELD >= 4 && row + 4 <= end {
                    block_rows::<V, W, 4, 1>(&job, w, tile, row);
                    row += 4;
                }
                while row + 2 <= end {
                    block_rows::<V, W, 2, 2>(&job, w, tile, row);
                    row += 2;
                }
                if row < end {
                    block_rows::<V, W, 1, 2>(&job, w, tile, row);
                }
            }
        }
    }
}

/// R rows against one tile, in C sums each: several where rows are few, so that one addition does not wait for the last
/// (integers add up to the same in any order).
///
/// # Safety
/// The tile lies in the matrix and rows `row..row + R` in x and y.
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
        let codes = rounded.codes.as_ptr().add(row * stride);
        let x_sums = rounded.sums.as_ptr().add(row * blocks);
        let x_scales = rounded.scales.as_ptr().add(row * blocks);
        let mut totals = [[V::Floats::splat(0.0); R]; HALVES];
        let factor = V::Floats::splat(w.factor());
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
            let mut sums = [[V::begin_narrow(0); R]; HALVES];
            for r in 0..R {
                let offset = V::begin_narrow(-w.zero() * *x_sums.add(r * blocks + block));
                for half in 0..HALVES {
                    sums[half][r] = offset;
                }
            }
            let x = codes.add(block * BLOCK);
            for first in (0..BLOCK / 4).step_by(W::NARROW) {
                let mut narrow = [[[V::narrow(); R]; HALVES]; C];
                for quad in (first..first + narrow_quads).step_by(C) {
                    for c in 0..C {
                        for half in 0..HALVES {
                            let codes = w.codes(from, quad + c, half);
                            for r in 0..R {
                                let x = x.add(r * stride + (quad + c) * 4).cast::<i32>().read_unaligned();
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
            for half in 0..HALVES {
                let scale = V::Floats::load_f16(w.scales(tile, block).add(half * LANES)).mul(factor);
                for r in 0..R {
                    let both = scale.mul(V::Floats::splat(*x_scales.add(r * blocks + block)));
                    totals[half][r] = totals[half][r].fma(sums[half][r].to_floats(), both);
                }
            }
        }
        for half in 0..HALVES {
            store(job, tile, half, row, &totals[half]);
        }
    }
}
