//! A dense delta's product with rounded activations: `Y (m, n) += X (m, k) · Dᵀ`, in the way of [`crate::int8`].
//!
//! The planes of the variant file are laid out again for it once, when the variant is loaded: bit 4o + i of a 64-bit word
//! is input i (of four) of output o (of sixteen, half a tile), and the words of a tile follow each other. The bytes stay
//! the same.
//!
//! Two ways to multiply, which give the same integers: with the bits made bytes, once for all rows, or, where the
//! instruction set has no dot product of bytes, by looking up what four inputs come to for the four bits of an output, see
//! [`crate::vector::lookup`].

// As in `int8`: loops over an index keep the sums in registers.
#![allow(clippy::needless_range_loop)]

use crate::{
    arena::{Arena, Slab},
    int8::{HALVES, TILE, store},
    isa::{Isa, dispatch_int8, dispatch_lookup},
    packed::Packed,
    parallel::{Output, for_each},
    project::Job,
    rounded::{BLOCK, Rounded},
    vector::{
        LANES, Vector,
        int8::Int8Vector,
        lookup::{Lookup, PAIR, TABLES},
        prefetch_far,
    },
};
use std::ops::Range;

/// Quads of inputs that share a scale.
const QUADS: usize = BLOCK / 4;
/// Pairs of quads.
const PAIRS: usize = BLOCK / PAIR;
/// Tables that one thread makes sooner by itself.
const WORTH_SPLITTING: usize = 1 << 12;
/// Rows for which tables are made: they take eight times the memory of the inputs' codes.
const MOST_LOOKED_UP: usize = 32;

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
    /// tile → pair of quads of inputs → plane → quad → half.
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
        let quads = blocks * QUADS;
        // Three planes and one of zeros.
        let bits = if d.bits == 3 { 4 } else { d.bits };
        let mut words = arena.take::<u64>(tiles * quads * bits * HALVES);
        let mut scales = arena.take::<u16>(tiles * groups * TILE);
        for half in 0..d.rows.div_ceil(LANES) {
            let (tile, first) = (half / HALVES, half * LANES);
            let lanes = LANES.min(d.rows - first);
            for plane in 0..d.bits {
                for block in 0..blocks {
                    let mut square = [0u64; LANES];
                    for (lane, row) in square[..lanes].iter_mut().enumerate() {
                        *row = d.planes[((first + lane) * d.bits + plane) * blocks + block];
                    }
                    transpose(&mut square);
                    for (quad, word) in square.into_iter().enumerate() {
                        words[place(tile * quads + block * QUADS + quad, plane, bits) + half % HALVES] = word;
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
        let (quads, groups) = (self.blocks() * QUADS, self.groups());
        for (i, out) in out.iter_mut().enumerate() {
            let word = |plane| self.words[place(tile * quads + i / 4, plane, self.bits) + half];
            let code: i32 = (0..self.bits).map(|plane| ((word(plane) >> (4 * lane + i % 4) & 1) as i32) << plane).sum();
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

    fn groups(&self) -> usize {
        self.blocks().div_ceil(self.blocks_per_group)
    }

    /// Whether the product looks up what so many rows come to in [`Tables`].
    pub(crate) fn looks_up(&self, isa: Isa, rows: usize) -> bool {
        self.bits <= 2 && isa < Isa::Avx512Vnni && rows <= MOST_LOOKED_UP
    }

    /// Asks for the first tile of `outputs`, which nobody else reads.
    pub(crate) fn prefetch(&self, outputs: Range<usize>) {
        if let Some(tile) = self.tile(outputs.start / TILE).filter(|_| !outputs.is_empty()) {
            (0..self.blocks()).for_each(|block| tile.prefetch_codes(block));
            (0..self.groups()).for_each(|group| tile.prefetch_scales(group));
        }
    }

    /// The blocks that share scales.
    #[inline(always)]
    fn blocks_of(&self, group: usize) -> Range<usize> {
        let first = group * self.blocks_per_group;
        first..self.blocks().min(first + self.blocks_per_group)
    }

    /// Where a tile lies, if there is one.
    #[inline(always)]
    fn tile(&self, tile: usize) -> Option<Tile> {
        // Of everything a tile has as many as every other.
        (tile < self.rows.div_ceil(TILE)).then(|| Tile {
            codes: self.words[tile * (self.blocks() * self.block_bytes() / 8)..].as_ptr().cast(),
            scales: self.scales[tile * self.groups() * TILE..].as_ptr(),
            block_bytes: self.block_bytes(),
        })
    }

    /// Bytes of a tile's block.
    #[inline(always)]
    fn block_bytes(&self) -> usize {
        QUADS * self.bits * HALVES * 8
    }
}

/// A tile's codes and scales.
#[derive(Clone, Copy)]
struct Tile {
    codes: *const u8,
    scales: *const u16,
    block_bytes: usize,
}

impl Tile {
    /// Where a block's codes begin: inside the matrix for a block that there is.
    #[inline(always)]
    fn block(self, block: usize) -> *const u8 {
        self.codes.wrapping_add(block * self.block_bytes)
    }

    /// The f16 scales of a group: inside the matrix for a group that there is.
    #[inline(always)]
    fn scales(self, group: usize) -> *const u16 {
        self.scales.wrapping_add(group * TILE)
    }

    #[inline(always)]
    fn prefetch_codes(self, block: usize) {
        for line in 0..self.block_bytes / 64 {
            prefetch_far(self.block(block).wrapping_add(64 * line));
        }
    }

    #[inline(always)]
    fn prefetch_scales(self, group: usize) {
        prefetch_far(self.scales(group).cast());
    }
}

/// Where the two halves' words of a quad's plane lie.
#[inline(always)]
fn place(quad: usize, plane: usize, bits: usize) -> usize {
    ((quad / 2 * bits + plane) * 2 + quad % 2) * HALVES
}

/// The sums of inputs that products look up, of some rows of activations.
pub(crate) struct Tables {
    /// Place of each row in `tables`, in rows.
    places: Vec<Option<usize>>,
    /// row → block → pair of quads.
    tables: Vec<PairTables>,
    blocks: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct PairTables([u8; TABLES]);

impl Tables {
    /// Of the rows that are looked up, of `rows` in all.
    pub fn new(isa: Isa, x: &Rounded, rows: usize, looked_up: impl Iterator<Item = Range<usize>>) -> Self {
        let (mut places, mut wanted) = (vec![None; rows], Vec::new());
        for row in looked_up.flatten() {
            if places[row].is_none() {
                places[row] = Some(wanted.len());
                wanted.push(row);
            }
        }
        let each = x.blocks * PAIRS;
        let mut tables = vec![PairTables([0; TABLES]); wanted.len() * each];
        let to = Output::new(&mut tables);
        let write = |i: usize| {
            let codes = &x.codes[wanted[i] * x.blocks * BLOCK..][..x.blocks * BLOCK];
            // SAFETY: the row's tables lie there, and each row is written once.
            let to = unsafe { to.pointer().add(i * each) }.cast::<u8>();
            run_tables(isa, codes, to);
        };
        if wanted.len() * each < WORTH_SPLITTING {
            (0..wanted.len()).for_each(write);
        } else {
            for_each(wanted.len(), write);
        }
        Self { places, tables, blocks: x.blocks }
    }

    /// The tables of a row.
    fn of(&self, row: usize) -> &[PairTables] {
        let each = self.blocks * PAIRS;
        match self.places[row] {
            Some(place) => &self.tables[place * each..][..each],
            None => unreachable!("tables were made of every row that is looked up"),
        }
    }
}

fn run_tables(isa: Isa, codes: &[i8], to: *mut u8) {
    dispatch_lookup!(isa, write_tables(codes: &[i8], to: *mut u8));
}

/// # Safety
/// `to` has room for the tables of every pair of quads.
#[inline(always)]
unsafe fn write_tables<L: Lookup>(codes: &[i8], to: *mut u8) {
    for (pair, inputs) in codes.as_chunks().0.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { L::write_tables(*inputs, to.add(pair * TABLES)) };
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

/// A matrix whose turn it is, and the one of the same shape that the thread multiplies after it: its pieces come from the
/// memory while this one is multiplied. (They are short, and from many places, so that no hardware foresees them. Asking
/// further ahead than the next tile was no faster.)
#[derive(Clone, Copy)]
pub(crate) struct Turn<'a> {
    pub d: &'a PlaneTiles,
    pub next: Option<&'a PlaneTiles>,
}

impl Turn<'_> {
    /// The tile to ask for while `tile` is multiplied: the next of this matrix, or the next one's first.
    #[inline(always)]
    fn tile_after(self, job: &Job, tile: usize) -> Option<Tile> {
        if (tile + 1) * TILE < job.last { self.d.tile(tile + 1) } else { self.next?.tile(job.first / TILE) }
    }
}

pub(crate) fn run_planes(isa: Isa, job: Job, turn: Turn, tables: Option<&Tables>) {
    if let Some(tables) = tables.filter(|_| turn.d.looks_up(isa, job.rows.len())) {
        return match turn.d.bits {
            1 => look_up_1(isa, job, turn, tables),
            _ => look_up_2(isa, job, turn, tables),
        };
    }
    match turn.d.bits {
        1 => run_1(isa, job, Planes(turn)),
        2 => run_2(isa, job, Planes(turn)),
        _ => run_4(isa, job, Planes(turn)),
    }
}

/// The tiles of a matrix of `BITS` planes.
#[derive(Clone, Copy)]
struct Planes<'a, const BITS: usize>(Turn<'a>);

fn run_1(isa: Isa, job: Job, d: Planes<1>) {
    dispatch_int8!(isa, tiles(job: Job, d: Planes<1>));
}

fn run_2(isa: Isa, job: Job, d: Planes<2>) {
    dispatch_int8!(isa, tiles(job: Job, d: Planes<2>));
}

fn run_4(isa: Isa, job: Job, d: Planes<4>) {
    dispatch_int8!(isa, tiles(job: Job, d: Planes<4>));
}

fn look_up_1(isa: Isa, job: Job, turn: Turn, tables: &Tables) {
    dispatch_lookup!(isa, look_up::<1>(job: Job, turn: Turn, tables: &Tables));
}

fn look_up_2(isa: Isa, job: Job, turn: Turn, tables: &Tables) {
    dispatch_lookup!(isa, look_up::<2>(job: Job, turn: Turn, tables: &Tables));
}

/// # Safety
/// The job's operands were checked, its outputs are a range of the matrix that starts at a tile, its rows have tables, and
/// the matrix has `BITS` planes.
#[inline(always)]
unsafe fn look_up<L: Lookup, const BITS: usize>(job: Job, turn: Turn, tables: &Tables) {
    let (rounded, d) = (job.rounded(), turn.d);
    let blocks = rounded.blocks;
    for tile in job.first / TILE..job.last.div_ceil(TILE) {
        for row in job.rows.clone() {
            let tables = tables.of(row).as_ptr().cast::<u8>();
            // SAFETY: the tile and its blocks lie in the matrix, those of each of their pairs in `tables`, and the row in x
            // and y.
            unsafe {
                let x_sums = rounded.sums.as_ptr().add(row * blocks);
                let x_scales = rounded.scales.as_ptr().add(row * blocks);
                let mut totals = [L::Floats::splat(0.0); HALVES];
                let Some(from) = d.tile(tile) else { unreachable!("the job's outputs are the matrix's") };
                let next = turn.tile_after(&job, tile).filter(|_| row == job.rows.start);
                for group in 0..d.groups() {
                    let scales = from.scales(group);
                    if let Some(next) = next {
                        next.prefetch_scales(group);
                    }
                    for block in d.blocks_of(group) {
                        let (from, tables) = (from.block(block), tables.add(block * PAIRS * TABLES));
                        if let Some(next) = next {
                            next.prefetch_codes(block);
                        }
                        // What fits 16 bits in the end may go over on the way: additions wrap.
                        let mut sums = L::begin((-d.zero * *x_sums.add(block)) as i16);
                        for pair in 0..PAIRS {
                            let mut tables = L::tables(tables.add(pair * TABLES));
                            for plane in 0..BITS {
                                sums = sums.add(tables, from.add((pair * BITS + plane) * 2 * HALVES * 8));
                                if plane + 1 < BITS {
                                    tables = L::doubled(tables);
                                }
                            }
                        }
                        let x_scale = L::Floats::splat(*x_scales.add(block));
                        let sums = sums.to_floats();
                        for half in 0..HALVES {
                            let scale = L::Floats::load_f16(scales.add(half * LANES));
                            totals[half] = totals[half].fma(sums[half], scale.mul(x_scale));
                        }
                    }
                }
                let factor = L::Floats::splat(d.tensor_scale);
                for half in 0..HALVES {
                    store(&job, tile, half, row, &[totals[half].mul(factor)]);
                }
            }
        }
    }
}

/// What the kernel asks of [`Planes`], whatever their number.
///
/// # Safety
/// Codes are read from the block alone.
unsafe trait Tiles<V: Int8Vector>: Copy {
    /// How many quads of products a narrow sum holds.
    const NARROW: usize;
    /// The matrix, and the next.
    fn turn(&self) -> Turn<'_>;
    /// 4 inputs of 16 outputs of the block that starts there.
    unsafe fn codes(self, block: *const u8, quad: usize, half: usize) -> V::Codes;
}

// SAFETY: reads a tile's words only.
unsafe impl<V: Int8Vector, const BITS: usize> Tiles<V> for Planes<'_, BITS> {
    const NARROW: usize = if BITS <= 2 { QUADS } else { 4 };

    #[inline(always)]
    fn turn(&self) -> Turn<'_> {
        self.0
    }
    #[inline(always)]
    unsafe fn codes(self, block: *const u8, quad: usize, half: usize) -> V::Codes {
        // SAFETY: the caller stays inside the block; every quad has a word of each plane for each half, aligned as words.
        unsafe {
            let words = block.cast::<u64>().add(half);
            let mut planes = [0; BITS];
            for plane in 0..BITS {
                planes[plane] = words.add(place(quad, plane, BITS)).read();
            }
            V::load_planes(planes)
        }
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
        let (turn, d) = (w.turn(), w.turn().d);
        let Some(from) = d.tile(tile) else { unreachable!("the job's outputs are the matrix's") };
        let next = turn.tile_after(job, tile).filter(|_| row == job.rows.start);
        // Unknown to the compiler, which would unroll the loop whole, load all masks first and spill them.
        let narrow_quads = std::hint::black_box(W::NARROW);
        for group in 0..d.groups() {
            let mut scales = [V::Floats::splat(0.0); HALVES];
            for half in 0..HALVES {
                scales[half] = V::Floats::load_f16(from.scales(group).add(half * LANES));
            }
            if let Some(next) = next {
                next.prefetch_scales(group);
            }
            for block in d.blocks_of(group) {
                let from = from.block(block);
                if let Some(next) = next {
                    next.prefetch_codes(block);
                }
                let mut sums = [[V::begin_narrow(0); R]; HALVES];
                for r in 0..R {
                    let offset = V::begin_narrow(-d.zero * *x_sums.add(r * blocks + block));
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
                for r in 0..R {
                    let x_scale = V::Floats::splat(*x_scales.add(r * blocks + block));
                    for half in 0..HALVES {
                        totals[half][r] = totals[half][r].fma(sums[half][r].to_floats(), scales[half].mul(x_scale));
                    }
                }
            }
        }
        let factor = V::Floats::splat(d.tensor_scale);
        for half in 0..HALVES {
            for r in 0..R {
                totals[half][r] = totals[half][r].mul(factor);
            }
            store(job, tile, half, row, &totals[half]);
        }
    }
}
