//! A low-rank delta's product with rounded activations: `t = A · x`, then `y += Bᵀ · t`, both in integers.
//!
//! ```text
//! A[r, i] = scale[r, i / 64] · (2c − zero)      c a code of 2 or 4 bits, zero = 2^bits − 1; B[r, o] alike
//!                                               2^bits − 2 where each offset is its scale: codes with a level at zero
//! ```
//!
//! The planes of the variant file are laid out again, once, when the variant is loaded: four ranks and a block of 64 are
//! 256 codes, a *unit* of 128 bytes at four bits and 64 at two, of which a shift and a mask make four vectors of 64
//! bytes for `vpdpbusd`. In a vector of A, a quarter of the register is a rank and holds 16 neighbouring inputs; in one of
//! B, each sum is an output and its four bytes are four ranks. Units follow each other in the order in which they are
//! read, so that a factor is one stream (as planes it was a stream for each rank and plane).
//!
//! The second product needs t in integers, yet the scales of B run along the outputs: t[r] counts scale[r, o / 64]
//! times. So for every row and every group of outputs `scale · t` is rounded anew over the ranks, to one digit: an error of
//! half a hundredth of the largest beside that of the codes, which is ten times as much. That is done once, with the first
//! product, sixteen groups in the lanes of a vector ([`Digits`]): done where a task begins its few outputs, it took longer than
//! their products. Another way keeps t exact: the
//! sixteen values of a code, times `scale · t`, in one register, and a permutation that looks codes up; but it takes
//! three operations for 16 outputs of one rank where the digit takes two for four ranks.
//!
//! What has no such layout (odd group sizes, offsets, more than four bits, very many ranks), and exact activations, go the
//! way of [`crate::packed`].

// As in `int8`: loops over an index keep the sums in registers.
#![allow(clippy::needless_range_loop)]

use crate::{
    ahead::Pieces,
    arena::{Arena, Slab},
    isa::{Isa, dispatch_int8},
    packed::Packed,
    project::Job,
    rounded::{BLOCK, LEAST},
    vector::{LANES, Vector, int8::Int8Vector, prefetch_value},
};
use half::f16;
use std::{mem::MaybeUninit, ops::Range};

/// Ranks whose codes lie in one unit.
const QUAD: usize = 4;
/// Bytes of a vector of codes, and of what is loaded at once.
const PACK: usize = 64;
/// The most ranks; their digits lie on the stack.
const MAX_RANK: usize = 256;
/// Quads of products that a narrow sum holds: 8 · 2 · 15 · 127 fit in 16 bits.
const NARROW: usize = 8;
/// Rows that share the unpacking of a unit, where there are as many.
const ROWS: usize = 4;

/// The two factors of a low-rank delta.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRankTiles {
    rank: usize,
    /// (rank, inputs)
    a: Factor,
    /// (rank, outputs)
    b: Factor,
}

/// A (rank, columns) matrix.
#[derive(Debug, Clone, PartialEq)]
struct Factor {
    cols: usize,
    /// Bits of a code in memory: 2 or 4.
    bits: usize,
    /// 2^bits − 1 of the bits that it was quantised to, or one less with a level at zero.
    zero: i32,
    /// Blocks of 64 columns that share a scale.
    blocks_per_group: usize,
    /// A: quad of ranks → block → unit. B: block → pack of a unit → quad of ranks.
    units: Slab<u8>,
    /// f16 bits. A: quad of ranks → group → rank, in whole quads. B: rank → group, then what fills a vector.
    scales: Slab<u16>,
    tensor_scale: f32,
}

/// Which of the two factors, and so which order.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    A,
    B,
}

impl LowRankTiles {
    /// Lays the factors out in `arena`, `b` being (rank, outputs). `None` for what this product cannot do: more than
    /// four bits, offsets other than the scales, groups that are neither a multiple of 64 columns nor the whole row, more than 256 ranks.
    ///
    /// # Panics
    /// When the factors have not one rank.
    pub fn new(a: &Packed, b: &Packed, arena: &mut Arena) -> Option<Self> {
        let fits = |d: &Packed| d.bits <= 4 && (d.offsets.is_empty() || d.has_level_at_zero()) && d.has_whole_blocks();
        if !fits(a) || !fits(b) || a.rows > MAX_RANK {
            return None;
        }
        assert_eq!(a.rows, b.rows, "factors of one rank");
        Some(Self { rank: a.rows, a: Factor::new(a, Side::A, arena), b: Factor::new(b, Side::B, arena) })
    }

    /// (outputs, inputs).
    pub fn shape(&self) -> (usize, usize) {
        (self.b.cols, self.a.cols)
    }

    /// How many ranks there are.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        let each = |factor: &Factor| factor.units.len() + 2 * factor.scales.len();
        (each(&self.a) + each(&self.b)) as u64
    }

    /// Adds row `row` of Bᵀ · A to `out`.
    ///
    /// # Panics
    /// When `row` is outside the matrix or `out` is not as long as there are inputs.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.b.cols && out.len() == self.a.cols, "row {row} of {:?}", self.shape());
        for rank in 0..self.rank {
            let factor = self.b.value(Side::B, self.rank, rank, row);
            for (col, out) in out.iter_mut().enumerate() {
                *out += factor * self.a.value(Side::A, self.rank, rank, col);
            }
        }
    }

    /// Values that [`run_first`] makes of a row: its [`Digits`].
    pub(crate) fn digits(&self) -> usize {
        self.b.groups().next_multiple_of(LANES) * (2 + self.rank.div_ceil(QUAD))
    }

    /// Asks for what `run_first` reads.
    pub(crate) fn prefetch_first(&self) {
        prefetch_value(&self.a.units[..]);
        prefetch_value(&self.a.scales[..]);
        prefetch_value(&self.b.scales[..]);
    }

    /// What the second products for these outputs read.
    pub(crate) fn push_second_to(&self, pieces: &mut Pieces, outputs: Range<usize>) {
        let block = self.b.bits * PACK / 2 * self.rank.div_ceil(QUAD);
        let end = (outputs.end.div_ceil(BLOCK) * block).min(self.b.units.len());
        pieces.push(&self.b.units[outputs.start / BLOCK * block..end]);
    }
}

impl Factor {
    fn new(d: &Packed, side: Side, arena: &mut Arena) -> Self {
        d.check();
        let Packed { bits, rows: rank, cols, tensor_scale, .. } = *d;
        let (blocks, groups, quads) = (cols.div_ceil(BLOCK), d.groups(), rank.div_ceil(QUAD));
        let laid_out = if bits <= 2 { 2 } else { 4 };
        let mut factor = Self {
            cols,
            bits: laid_out,
            zero: d.zero(),
            blocks_per_group: d.group.div_ceil(BLOCK).min(blocks.max(1)),
            units: arena.take(quads * blocks * PACK * laid_out / 2),
            scales: arena.take(match side {
                Side::A => groups * quads * QUAD,
                Side::B => groups * rank + LANES,
            }),
            tensor_scale,
        };
        for r in 0..rank {
            for group in 0..groups {
                let at = factor.scale_at(side, r, group);
                factor.scales[at] = d.scales[r * groups + group];
            }
            for col in 0..cols {
                let plane = |plane: usize| d.planes[(r * bits + plane) * blocks + col / BLOCK] >> (col % BLOCK) & 1;
                let code: u64 = (0..bits).map(|p| plane(p) << p).sum();
                let (at, shift) = factor.code_at(side, rank, r, col);
                factor.units[at] |= (code as u8) << shift;
            }
        }
        factor
    }

    /// Groups of columns that share a scale.
    fn groups(&self) -> usize {
        self.cols.div_ceil(BLOCK).div_ceil(self.blocks_per_group)
    }

    /// The byte and the bit where a code begins.
    fn code_at(&self, side: Side, rank: usize, r: usize, col: usize) -> (usize, usize) {
        let (packs, vectors) = (self.bits / 2, 8 / self.bits);
        let (block, inside) = (col / BLOCK, col % BLOCK);
        let (quads, blocks) = (rank.div_ceil(QUAD), self.cols.div_ceil(BLOCK));
        let vector = inside / LANES;
        let (pack, shift) = (vector / vectors, vector % vectors * self.bits);
        let byte = match side {
            Side::A => ((r / QUAD * blocks + block) * packs + pack) * PACK + r % QUAD * LANES + inside % LANES,
            Side::B => ((block * packs + pack) * quads + r / QUAD) * PACK + inside % LANES * QUAD + r % QUAD,
        };
        (byte, shift)
    }

    fn scale_at(&self, side: Side, r: usize, group: usize) -> usize {
        let groups = self.groups();
        match side {
            Side::A => (r / QUAD * groups + group) * QUAD + r % QUAD,
            Side::B => r * groups + group,
        }
    }

    fn value(&self, side: Side, rank: usize, r: usize, col: usize) -> f32 {
        let (at, shift) = self.code_at(side, rank, r, col);
        let code = i32::from(self.units[at] >> shift) & ((1 << self.bits) - 1);
        let scale = self.scales[self.scale_at(side, r, col / BLOCK / self.blocks_per_group)];
        f16::from_bits(scale).to_f32() * self.tensor_scale * (2 * code - self.zero) as f32
    }
}

/// `x[job.rows] · Aᵀ`, as [`Digits`] for each group of outputs: (job.rows, [`LowRankTiles::digits`]).
pub(crate) fn run_first(isa: Isa, job: Job, d: &LowRankTiles) {
    match d.a.bits {
        2 => first_2(isa, job, Codes(d)),
        _ => first_4(isa, job, Codes(d)),
    }
}

/// `y[job.rows] += x · Aᵀ · B` for the job's outputs, of what [`run_first`] made of the job's rows.
pub(crate) fn run_second(isa: Isa, job: Job, digits: &[f32], d: &LowRankTiles) {
    match d.b.bits {
        2 => second_2(isa, job, digits, Codes(d)),
        _ => second_4(isa, job, digits, Codes(d)),
    }
}

/// Factors of which the one in question has codes of `BITS` bits in memory.
#[derive(Clone, Copy)]
struct Codes<'a, const BITS: usize>(&'a LowRankTiles);

/// What the kernels ask of [`Codes`], whatever their width.
trait Tiles: Copy {
    const BITS: usize;
    /// Packs of a unit.
    const PACKS: usize = Self::BITS / 2;
    /// Vectors of a pack.
    const VECTORS: usize = 8 / Self::BITS;
    fn tiles(&self) -> &LowRankTiles;
    /// # Safety
    /// A pack is readable.
    unsafe fn load<V: Int8Vector>(pack: *const u8, vector: usize) -> V::Codes;
}

impl<const BITS: usize> Tiles for Codes<'_, BITS> {
    const BITS: usize = BITS;
    #[inline(always)]
    fn tiles(&self) -> &LowRankTiles {
        self.0
    }
    #[inline(always)]
    unsafe fn load<V: Int8Vector>(pack: *const u8, vector: usize) -> V::Codes {
        // SAFETY: the caller's promise.
        unsafe { V::load_fields::<BITS>(pack, vector) }
    }
}

macro_rules! runners {
    ($($bits:literal: $first:ident, $second:ident;)*) => {$(
        fn $first(isa: Isa, job: Job, d: Codes<$bits>) {
            dispatch_int8!(isa, first(job: Job, d: Codes<$bits>));
        }
        fn $second(isa: Isa, job: Job, digits: &[f32], d: Codes<$bits>) {
            dispatch_int8!(isa, second(job: Job, digits: &[f32], d: Codes<$bits>));
        }
    )*};
}
runners! { 2: first_2, second_2; 4: first_4, second_4; }

/// `A · x` of a few rows.
type Ranks = [[f32; MAX_RANK]; ROWS];

/// # Safety
/// The job was checked, its result has room for all rows' digits, and its activations are rounded.
#[inline(always)]
unsafe fn first<V: Int8Vector, D: Tiles>(job: Job, d: D) {
    let mut t = MaybeUninit::<Ranks>::uninit();
    let LowRankTiles { rank, b, .. } = d.tiles();
    let mut row = job.rows.start;
    while row < job.rows.end {
        let rows = if row + ROWS <= job.rows.end { ROWS } else { 1 };
        // SAFETY: the rows of every call are the job's, the quad is one of the factor's, and all ranks are written before
        // they are read.
        unsafe {
            for quad in 0..rank.div_ceil(QUAD) {
                if rows == ROWS {
                    dots::<V, D, ROWS>(&job, d, row, quad, t.as_mut_ptr());
                } else {
                    dots::<V, D, 1>(&job, d, row, quad, t.as_mut_ptr());
                }
            }
            for i in 0..rows {
                let t = std::slice::from_raw_parts(t.as_ptr().cast::<f32>().add(i * MAX_RANK), *rank);
                let to = job.y.add((row + i - job.y_row) * job.outputs);
                Digits::of(to, b).round::<V::Floats>(t, b);
            }
        }
        row += rows;
    }
}

/// R rows of x against four ranks. Each rank has four sums, which are added up at the end.
///
/// # Safety
/// As [`first`], for rows `row..row + R`.
#[inline(always)]
unsafe fn dots<V: Int8Vector, D: Tiles, const R: usize>(job: &Job, d: D, row: usize, quad: usize, t: *mut Ranks) {
    let LowRankTiles { rank, a, .. } = d.tiles();
    let rounded = job.rounded();
    let (blocks, groups) = (rounded.blocks, a.groups());
    // SAFETY: the rows are the job's, every row of x has whole blocks, and the factor a unit for each quad and block.
    unsafe {
        let units = a.units.as_ptr().add(quad * blocks * D::PACKS * PACK);
        let scales = a.scales.as_ptr().add(quad * groups * QUAD);
        let x = rounded.codes.as_ptr().add(row * blocks * BLOCK);
        // Σ scale · Σ c · x and Σ scale · Σ x: a weight is 2c − zero.
        let mut totals = [V::Floats::splat(0.0); R];
        let mut sums = [V::Floats::splat(0.0); R];
        let mut scale = V::Floats::splat(0.0);
        // In one loop, as in `planes`.
        let (mut group, mut of_group) = (0, 0);
        for block in 0..blocks {
            if of_group == 0 {
                scale = V::Floats::load_f16_by_four(scales.add(group * QUAD));
                group += 1;
                of_group = a.blocks_per_group;
            }
            of_group -= 1;
            let mut narrow = [V::narrow(); R];
            for pack in 0..D::PACKS {
                let from = units.add((block * D::PACKS + pack) * PACK);
                for vector in 0..D::VECTORS {
                    let codes = D::load::<V>(from, vector);
                    let at = block * BLOCK + (pack * D::VECTORS + vector) * LANES;
                    for r in 0..R {
                        let x = V::load_inputs_four_times(x.add(r * blocks * BLOCK + at));
                        narrow[r] = V::add_narrow_neighbours(narrow[r], codes, x);
                    }
                }
            }
            for r in 0..R {
                let at = (row + r) * blocks + block;
                let both = scale.mul(V::Floats::splat(*rounded.scales.as_ptr().add(at)));
                let dots = V::begin_narrow().widen(narrow[r]).to_floats();
                totals[r] = totals[r].fma(dots, both);
                sums[r] = sums[r].fma(both, V::Floats::splat(*rounded.sums.as_ptr().add(at) as f32));
            }
        }
        for r in 0..R {
            // All four sums of a rank subtract the same, so each a quarter.
            let less = V::Floats::splat(-0.25 * a.zero as f32);
            let mut lanes = [0f32; LANES];
            totals[r].add(totals[r]).fma(sums[r], less).store(lanes.as_mut_ptr());
            let t = t.cast::<f32>().add(r * MAX_RANK + quad * QUAD);
            for i in 0..QUAD.min(rank - quad * QUAD) {
                let four = &lanes[i * 4..i * 4 + 4];
                *t.add(i) = ((four[0] + four[2]) + (four[1] + four[3])) * a.tensor_scale;
            }
        }
    }
}

/// `scale · t` of a row for each group of outputs, rounded over the ranks.
#[derive(Clone, Copy)]
struct Digits {
    /// Group → what codes are multiplied with.
    steps: *mut f32,
    /// Group → Σ codes.
    sums: *mut f32,
    /// Quad of ranks → group → four codes, 0 from the last rank on.
    codes: *mut i32,
    /// Groups, those that fill the last vector among them.
    groups: usize,
}

impl Digits {
    /// Those at `row`, for the groups of the second factor.
    ///
    /// # Safety
    /// As many values as [`LowRankTiles::digits`] says lie there.
    #[inline(always)]
    unsafe fn of(row: *mut f32, b: &Factor) -> Self {
        let groups = b.groups().next_multiple_of(LANES);
        // SAFETY: the caller's promise.
        unsafe { Self { steps: row, sums: row.add(groups), codes: row.add(2 * groups).cast(), groups } }
    }

    /// Rounds, sixteen groups at a time.
    ///
    /// # Safety
    /// They are those of `b`, may be written, and `t` has all of its ranks.
    #[inline(always)]
    unsafe fn round<V: Vector>(self, t: &[f32], b: &Factor) {
        let (groups, scales) = (b.groups(), b.scales.as_ptr());
        for first in (0..groups).step_by(LANES) {
            // SAFETY: the caller's promise, and scales end with what fills a vector; what lies in lanes past the last group is
            // read by nobody.
            unsafe {
                let value =
                    |rank: usize| V::splat(*t.get_unchecked(rank)).mul(V::load_f16(scales.add(rank * groups + first)));
                let mut greatest = V::splat(0.0);
                for rank in 0..t.len() {
                    greatest = greatest.max(value(rank).abs());
                }
                let inverse = V::splat(127.0).div(greatest.max(V::splat(LEAST)));
                let mut sums = V::splat(0.0);
                for quad in 0..t.len().div_ceil(QUAD) {
                    let mut four = [V::splat(0.0); QUAD];
                    for i in 0..QUAD.min(t.len() - quad * QUAD) {
                        four[i] = value(quad * QUAD + i).mul(inverse).round();
                        sums = sums.add(four[i]);
                    }
                    V::store_four_i8(four, self.codes.add(quad * self.groups + first));
                }
                greatest.mul(V::splat(1.0 / 127.0)).store(self.steps.add(first));
                sums.store(self.sums.add(first));
            }
        }
    }
}

/// # Safety
/// The job was checked, `digits` are those of the job's rows, and the job's outputs are columns of B that start at a multiple of
/// sixteen.
#[inline(always)]
unsafe fn second<V: Int8Vector, D: Tiles>(job: Job, digits: &[f32], d: D) {
    let tiles = d.tiles();
    let each = tiles.digits();
    let of_row = |row: usize| {
        let first = (row - job.rows.start) * each;
        // SAFETY: they are only read; they are as many as there are rows.
        unsafe { Digits::of(digits.as_ptr().add(first).cast_mut(), &tiles.b) }
    };
    let blocks = job.first / BLOCK..job.last.div_ceil(BLOCK);
    let mut row = job.rows.start;
    // SAFETY: the rows of every call are the job's, and the blocks' columns lie in B.
    unsafe {
        while V::HELD >= 8 && row + 2 <= job.rows.end {
            let two = [of_row(row), of_row(row + 1)];
            blocks.clone().for_each(|block| outputs::<V, D, 2>(&job, d, row, block, two));
            row += 2;
        }
        while row < job.rows.end {
            let one = [of_row(row)];
            blocks.clone().for_each(|block| outputs::<V, D, 1>(&job, d, row, block, one));
            row += 1;
        }
    }
}

/// 64 outputs of R rows, with the digits of each.
///
/// # Safety
/// As [`second`], for rows `row..row + R`.
#[inline(always)]
unsafe fn outputs<V: Int8Vector, D: Tiles, const R: usize>(
    job: &Job,
    d: D,
    row: usize,
    block: usize,
    digits: [Digits; R],
) {
    let LowRankTiles { rank, b, .. } = d.tiles();
    let quads = rank.div_ceil(QUAD);
    let group = block / b.blocks_per_group;
    // SAFETY: as promised; the factor has a unit for each quad and block.
    unsafe {
        for pack in 0..D::PACKS {
            // A job may begin or end within a block.
            let columns = block * BLOCK + pack * D::VECTORS * LANES;
            if columns + D::VECTORS * LANES <= job.first || columns >= job.last {
                continue;
            }
            let from = b.units.as_ptr().add((block * D::PACKS + pack) * quads * PACK);
            // (vectors, rows); vectors are at most four.
            let mut sums = [[V::begin_narrow(); R]; 4];
            for first in (0..quads).step_by(NARROW) {
                let mut narrow = [[V::narrow(); R]; 4];
                for quad in first..quads.min(first + NARROW) {
                    for vector in 0..D::VECTORS {
                        let codes = D::load::<V>(from.add(quad * PACK), vector);
                        for r in 0..R {
                            let four = *digits[r].codes.add(quad * digits[r].groups + group);
                            narrow[vector][r] = V::add_narrow(narrow[vector][r], codes, four);
                        }
                    }
                }
                for vector in 0..D::VECTORS {
                    for r in 0..R {
                        sums[vector][r] = sums[vector][r].widen(narrow[vector][r]);
                    }
                }
            }
            for vector in 0..D::VECTORS {
                let at = columns + vector * LANES;
                if at < job.first || at >= job.last {
                    continue;
                }
                let lanes = LANES.min(job.last - at);
                for r in 0..R {
                    let scale = *digits[r].steps.add(group) * b.tensor_scale;
                    let less = V::Floats::splat(-(b.zero as f32) * scale * *digits[r].sums.add(group));
                    let sum = sums[vector][r].to_floats();
                    let y = job.y.add((row + r - job.y_row) * job.outputs + at);
                    let total = V::Floats::load_partial(y, lanes).add(less);
                    total.fma(sum, V::Floats::splat(2.0 * scale)).store_partial(y, lanes);
                }
            }
        }
    }
}
