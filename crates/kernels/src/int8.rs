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

use crate::{
    isa::{Isa, dispatch_int8},
    parallel::{Output, over_outputs},
    vector::{LANES, Vector, int8::Int8Vector},
};
use half::f16;

/// Inputs that share a scale, on both sides.
pub const BLOCK: usize = 64;
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
        use rayon::prelude::*;
        assert_eq!(weights.len(), rows * cols, "weights of shape ({rows}, {cols})");
        let (tiles, blocks) = (rows.div_ceil(LANES), cols.div_ceil(BLOCK));
        let mut codes = vec![128; tiles * blocks * TILE_BLOCK];
        let mut scales = vec![0; tiles * blocks * LANES];
        let tile_codes = codes.par_chunks_mut((blocks * TILE_BLOCK).max(1));
        let tile_scales = scales.par_chunks_mut((blocks * LANES).max(1));
        tile_codes.zip(tile_scales).enumerate().for_each(|(tile, (codes, scales))| {
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

/// Rows of activations in blocks of int8.
struct Rounded {
    /// row → block → input; 0 where there is none.
    codes: Vec<i8>,
    /// row → block.
    scales: Vec<f32>,
    /// row → block: Σ x.
    sums: Vec<i32>,
}

impl Rounded {
    fn new(x: &[f32], cols: usize) -> Self {
        use rayon::prelude::*;
        let (rows, blocks) = (x.len() / cols, cols.div_ceil(BLOCK));
        let mut rounded = Self {
            codes: vec![0; rows * blocks * BLOCK],
            scales: vec![0.0; rows * blocks],
            sums: vec![0; rows * blocks],
        };
        let codes = rounded.codes.par_chunks_mut(blocks * BLOCK);
        let scales = rounded.scales.par_chunks_mut(blocks);
        let sums = rounded.sums.par_chunks_mut(blocks);
        let rows = x.par_chunks(cols).zip(codes).zip(scales).zip(sums).with_min_len(8);
        rows.for_each(|(((x, codes), scales), sums)| {
            let blocks = x.chunks(BLOCK).zip(codes.chunks_exact_mut(BLOCK)).zip(scales).zip(sums);
            blocks.for_each(|(((x, codes), scale), sum)| (*scale, *sum) = round_block(x, codes));
        });
        rounded
    }
}

/// The nearest integer, ties to even, of a magnitude below 2²²: adding 1.5 · 2²³ leaves it in the low bits. (The library's
/// function is a call for each value where the compiler may not assume SSE 4.1.)
#[inline(always)]
fn nearest(value: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32
}

/// Rounds one block; returns its scale and the sum of its codes.
fn round_block(x: &[f32], codes: &mut [i8]) -> (f32, i32) {
    let mut greatest = [0f32; LANES];
    for chunk in x.chunks(LANES) {
        for (greatest, x) in greatest.iter_mut().zip(chunk) {
            *greatest = if x.abs() > *greatest { x.abs() } else { *greatest };
        }
    }
    let greatest = greatest.into_iter().fold(0.0, f32::max);
    let inverse = if greatest > 0.0 { 127.0 / greatest } else { 0.0 };
    let mut sum = 0;
    for (code, x) in codes.iter_mut().zip(x) {
        let rounded = nearest(x * inverse);
        sum += rounded;
        *code = rounded as i8;
    }
    (greatest / 127.0, sum)
}

/// `y (m, rows) = x (m, cols) · wᵀ`.
///
/// # Panics
/// When a slice is not as long as its shape says.
pub fn matmul_int8(x: &[f32], w: &Int8Weights, y: &mut [f32]) {
    matmul_int8_on(Isa::selected(), x, w, y);
}

/// [`matmul_int8`] on a given instruction set, which must be one of [`Isa::available`].
///
/// # Panics
/// As [`matmul_int8`].
pub fn matmul_int8_on(isa: Isa, x: &[f32], w: &Int8Weights, y: &mut [f32]) {
    over_tiles(isa, x, w.shape(), 1, y, |job| run_int8(isa, job, w));
}

fn run_int8(isa: Isa, job: Job, w: &Int8Weights) {
    dispatch_int8!(isa, tiles(job: Job, w: &Int8Weights));
}

/// Rounds x and calls `run` with tiles that cover the outputs, on all threads where it is worth them: a multiply-add of
/// this product counts as 1 / `cheaper`.
pub(crate) fn over_tiles(
    isa: Isa,
    x: &[f32],
    (rows, cols): (usize, usize),
    cheaper: usize,
    y: &mut [f32],
    run: impl Fn(Job) + Sync,
) {
    assert!(Isa::available().contains(&isa), "{isa:?} is not available here");
    let m = x.len().checked_div(cols).unwrap_or(0);
    assert_eq!(x.len(), m * cols, "inputs of width {cols}");
    assert_eq!(y.len(), m * rows, "outputs of shape ({m}, {rows})");
    if m == 0 {
        return;
    }
    let x = Rounded::new(x, cols);
    let out = Output::new(y);
    over_outputs(rows, LANES, m * rows * cols / cheaper, |range| {
        let (first, last) = (range.start / LANES, range.end.div_ceil(LANES));
        run(Job { x: &x, m, rows, blocks: cols.div_ceil(BLOCK), y: out.pointer(), first, last });
    });
}

/// Tiles `first..last` of all m rows; y is (m, rows).
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    x: &'a Rounded,
    m: usize,
    rows: usize,
    blocks: usize,
    y: *mut f32,
    first: usize,
    last: usize,
}

/// Where a kernel finds its weights.
///
/// # Safety
/// The pointers of `scales` are valid for 16 reads, for every tile and block of the matrix.
pub(crate) unsafe trait Tiles<V: Int8Vector>: Copy {
    /// What makes the codes unsigned, see [`crate::vector::int8`].
    const ZERO: i32;
    /// Whether the product is added to what y holds.
    const ADDS: bool;
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
    const ADDS: bool = false;

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
/// The operands are as [`over_tiles`] checked them, and the tiles lie in the matrix `w`.
#[inline(always)]
pub(crate) unsafe fn tiles<V: Int8Vector, T: Tiles<V>>(job: Job, w: T) {
    for tile in job.first..job.last {
        let mut row = 0;
        // SAFETY: the rows of every call lie in `0..m`.
        unsafe {
            while row + TILE_ROWS <= job.m {
                rows::<V, T, TILE_ROWS, 1>(&job, w, tile, row);
                row += TILE_ROWS;
            }
            if row + 4 <= job.m {
                rows::<V, T, 4, 2>(&job, w, tile, row);
                row += 4;
            }
            if row + 2 <= job.m {
                rows::<V, T, 2, 4>(&job, w, tile, row);
                row += 2;
            }
            if row < job.m {
                rows::<V, T, 1, 8>(&job, w, tile, row);
            }
        }
    }
}

/// MR rows against one tile.
#[inline(always)]
unsafe fn rows<V: Int8Vector, T: Tiles<V>, const MR: usize, const CHAINS: usize>(
    job: &Job,
    w: T,
    tile: usize,
    row: usize,
) {
    // SAFETY: the tile lies in the matrix, row + MR ≤ m, and every array holds whole blocks.
    unsafe {
        let x = job.x.codes.as_ptr().add(row * job.blocks * BLOCK);
        let mut totals = [V::Floats::splat(0.0); MR];
        for block in 0..job.blocks {
            let at = |m: usize| (row + m) * job.blocks + block;
            // Several sums a row where rows are few, so that one addition does not wait for the last; integers add up
            // to the same in any order.
            let mut sums = [[V::begin(0); MR]; CHAINS];
            for (m, sum) in sums[0].iter_mut().enumerate() {
                *sum = V::begin(-T::ZERO * *job.x.sums.as_ptr().add(at(m)));
            }
            for quad in (0..BLOCK / 4).step_by(CHAINS) {
                for (chain, sums) in sums.iter_mut().enumerate() {
                    let codes = w.codes(tile, block, quad + chain);
                    for (m, sum) in sums.iter_mut().enumerate() {
                        let x = x.add((m * job.blocks + block) * BLOCK + (quad + chain) * 4);
                        *sum = sum.add_dots(codes, x.cast::<i32>().read_unaligned());
                    }
                }
            }
            let sums: [V; MR] = std::array::from_fn(|m| {
                let mut sum = sums[0][m];
                for chain in &sums[1..] {
                    sum = sum.add(chain[m]);
                }
                sum
            });
            let scale = V::Floats::load_f16(w.scales(tile, block)).mul(V::Floats::splat(w.factor()));
            for (m, (total, sum)) in totals.iter_mut().zip(sums).enumerate() {
                let both = scale.mul(V::Floats::splat(*job.x.scales.as_ptr().add(at(m))));
                *total = total.fma(sum.to_floats(), both);
            }
        }
        let lanes = LANES.min(job.rows - tile * LANES);
        for (m, total) in totals.into_iter().enumerate() {
            let y = job.y.add((row + m) * job.rows + tile * LANES);
            let total = if T::ADDS { V::Floats::load_partial(y, lanes).add(total) } else { total };
            total.store_partial(y, lanes);
        }
    }
}
