//! A dense delta's product with rounded activations: `Y (m, n) += X (m, k) · Dᵀ`, in the way of [`crate::int8`].
//!
//! The planes of the variant file are laid out again for it once, when the variant is loaded: 16 inputs of the 32 outputs of a
//! tile make 64 bytes, see [`Layout`], those of a block follow each other, and so do a tile's blocks. The bytes stay the same.
//!
//! Nothing is multiplied: for every few inputs of a row a table has what they come to for the bits of an output, and the
//! products look it up, see [`crate::vector::lookup`]. Two planes are looked up in sums of their own, of which the second
//! counts twice; four planes are two times two, of which the second counts four times.

// As in `int8`: loops over an index keep the sums in registers.
#![allow(clippy::needless_range_loop)]

use crate::{
    again::{Again, Keep},
    ahead::Pieces,
    arena::{Arena, Slab},
    int8::{HALVES, TILE, store},
    isa::{Isa, dispatch_lookup},
    packed::Packed,
    parallel::{Before, Output},
    project::Job,
    rounded::{BLOCK, Rounded},
    vector::{
        LANES, Vector,
        lookup::{self, Layout, Lookup, UNIT},
    },
};
use std::{cell::Cell, mem::MaybeUninit, ops::Range, thread::LocalKey};

/// Units of inputs that share a scale.
const UNITS: usize = BLOCK / UNIT;
/// Bytes of a unit's codes for the outputs of a tile.
const UNIT_BYTES: usize = UNIT * TILE / 8;
/// Words of a block's plane for the outputs of a tile.
const BLOCK_WORDS: usize = UNITS * UNIT_BYTES / 8;

/// A packed matrix in tiles of 32 outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct PlaneTiles {
    layout: Layout,
    /// Planes in memory: 1, 2 or 4.
    bits: usize,
    /// An element is `scale · (2 · code − zero)`: 2^bits − 1 of the bits that it was quantised to, or one less with a level
    /// at zero.
    zero: i32,
    rows: usize,
    cols: usize,
    /// Blocks of 64 inputs that share a scale.
    blocks_per_group: usize,
    /// tile → block → plane → unit of inputs.
    words: Slab<u64>,
    /// tile → group → the layout's place of the output: f16 bits.
    scales: Slab<u16>,
    tensor_scale: f32,
}

impl PlaneTiles {
    /// Lays `d` out in tiles that lie in `arena`. `None` for what this product cannot do: more than four bits, offsets other than the
    /// scales, and groups that are neither a multiple of 64 inputs nor the whole row.
    pub fn new(d: &Packed, arena: &mut Arena) -> Option<Self> {
        Self::new_on(Isa::selected(), d, arena)
    }

    /// [`Self::new`] for products on a given instruction set.
    pub fn new_on(isa: Isa, d: &Packed, arena: &mut Arena) -> Option<Self> {
        if d.bits > 4 || !(d.offsets.is_empty() || d.has_level_at_zero()) || !d.has_whole_blocks() {
            return None;
        }
        d.check();
        let (tiles, blocks, groups) = (d.rows.div_ceil(TILE), d.cols.div_ceil(BLOCK), d.cols.div_ceil(d.group));
        let layout = Layout::of(isa);
        // Three planes and one of zeros.
        let bits = if d.bits == 3 { 4 } else { d.bits };
        let mut words = arena.take::<u64>(tiles * blocks * bits * BLOCK_WORDS);
        let mut scales = arena.take::<u16>(tiles * groups * TILE);
        for (tile, to) in words.chunks_mut((blocks * bits * BLOCK_WORDS).max(1)).enumerate() {
            let lanes = TILE.min(d.rows - tile * TILE);
            for (block, to) in to.chunks_mut(bits * BLOCK_WORDS).enumerate() {
                for (plane, to) in to.as_chunks_mut().0.iter_mut().enumerate().take(d.bits) {
                    let mut rows = [0u64; TILE];
                    for (lane, row) in rows[..lanes].iter_mut().enumerate() {
                        *row = d.planes[((tile * TILE + lane) * d.bits + plane) * blocks + block];
                    }
                    layout.put(&rows, to);
                }
            }
        }
        for (tile, to) in scales.chunks_mut((groups * TILE).max(1)).enumerate() {
            for (lane, scales) in d.scales[tile * TILE * groups..].chunks(groups).enumerate().take(TILE) {
                for (group, scale) in scales.iter().enumerate() {
                    to[group * TILE + layout.place(lane)] = *scale;
                }
            }
        }
        let blocks_per_group = d.group.div_ceil(BLOCK).min(blocks.max(1));
        let Packed { rows, cols, tensor_scale, .. } = *d;
        Some(Self { layout, bits, zero: d.zero(), rows, cols, blocks_per_group, words, scales, tensor_scale })
    }

    /// Adds row `row` to `out`.
    ///
    /// # Panics
    /// When `row` is outside the matrix or `out` is not `cols` long.
    pub fn add_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of ({}, {})", self.rows, self.cols);
        let (tile, blocks, groups) = (row / TILE, self.blocks(), self.groups());
        for (i, out) in out.iter_mut().enumerate() {
            let bit = |plane| {
                let at = ((tile * blocks + i / BLOCK) * self.bits + plane) * BLOCK_WORDS;
                self.layout.bit(&self.words[at..], row % TILE, i % BLOCK)
            };
            let code: i32 = (0..self.bits).map(|plane| i32::from(bit(plane)) << plane).sum();
            let group = tile * groups + i / BLOCK / self.blocks_per_group;
            let scale = half::f16::from_bits(self.scales[group * TILE + self.layout.place(row % TILE)]).to_f32()
                * self.tensor_scale;
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

    /// Whether the products of an instruction set find the codes as they read them.
    pub(crate) fn suits(&self, isa: Isa) -> bool {
        self.layout == Layout::of(isa)
    }

    /// What the products for these outputs read.
    pub(crate) fn push_to(&self, pieces: &mut Pieces, outputs: Range<usize>) {
        let (words, scales) = (self.tile_words(), self.groups() * TILE);
        let tiles = outputs.start / TILE..outputs.end.div_ceil(TILE);
        pieces.push(&self.words[tiles.start * words..tiles.end * words]);
        pieces.push(&self.scales[tiles.start * scales..tiles.end * scales]);
    }

    /// Where a tile lies, if there is one.
    #[inline(always)]
    fn tile(&self, tile: usize) -> Option<Tile> {
        // Of everything a tile has as many as every other.
        (tile < self.rows.div_ceil(TILE)).then(|| Tile {
            codes: self.words[tile * self.tile_words()..].as_ptr().cast(),
            scales: self.scales[tile * self.groups() * TILE..].as_ptr(),
            block_bytes: 8 * self.bits * BLOCK_WORDS,
        })
    }

    /// Words of a tile's codes.
    #[inline(always)]
    fn tile_words(&self) -> usize {
        self.blocks() * self.bits * BLOCK_WORDS
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
}

impl Layout {
    /// What an instruction set's look-ups read.
    fn of(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => lookup::Avx2::LAYOUT,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => lookup::Avx512::LAYOUT,
            _ => lookup::Scalar::LAYOUT,
        }
    }

    /// Writes a block's bits of a tile, of which each output's come as a word of 64 inputs.
    fn put(self, rows: &[u64; TILE], to: &mut [u64; BLOCK_WORDS]) {
        match self {
            // Four outputs to a word of 16 inputs each, and sixteen to a word of four each.
            Self::Words => transpose::<4, { TILE / 4 }>(rows, to),
            Self::Nibbles => transpose::<LANES, HALVES>(rows, to),
        }
    }

    /// The bit of input `i` of a block and output `lane` of a tile.
    fn bit(self, words: &[u64], lane: usize, i: usize) -> bool {
        let (at, shift) = match self {
            Self::Words => (i / UNIT * UNIT_BYTES / 8 + lane / 4, lane % 4 * 16 + i % UNIT),
            Self::Nibbles => (i / 4 * HALVES + lane / LANES, lane % LANES * 4 + i % 4),
        };
        words[at] >> shift & 1 == 1
    }
}

/// The sums of inputs that products look up, of some rows of activations, which the threads make that need them.
pub(crate) struct Tables<'a> {
    isa: Isa,
    x: &'a Rounded,
    /// Place of each row among those that are looked up.
    places: Vec<Option<usize>>,
    /// The row of each place.
    wanted: Vec<usize>,
    /// Of a place.
    row_lines: usize,
    /// place → block → unit
    tables: Output<MaybeUninit<Line>>,
    _memory: Again<Lines>,
    /// A task for each place.
    before: Before,
}

/// A line of the cache.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Memory of tables.
#[derive(Debug, Default)]
struct Lines(Vec<MaybeUninit<Line>>);

impl Keep for Lines {
    fn place() -> &'static LocalKey<Cell<Option<Self>>> {
        thread_local!(static KEPT: Cell<Option<Lines>> = const { Cell::new(None) });
        &KEPT
    }
}

impl<'a> Tables<'a> {
    /// Bytes of a row of `width` values.
    pub fn row_bytes(isa: Isa, width: usize) -> usize {
        width.div_ceil(BLOCK) * UNITS * Layout::of(isa).table_bytes()
    }

    /// Of the rows that are looked up, of `rows` in all.
    pub fn new(isa: Isa, x: &'a Rounded, rows: usize, looked_up: impl Iterator<Item = Range<usize>>) -> Self {
        let (mut places, mut wanted) = (vec![None; rows], Vec::new());
        for row in looked_up.flatten() {
            if places[row].is_none() {
                places[row] = Some(wanted.len());
                wanted.push(row);
            }
        }
        let row_lines = Self::row_bytes(isa, x.blocks * BLOCK) / size_of::<Line>();
        let length = wanted.len() * row_lines;
        let mut memory = Again::<Lines>::take();
        let lines = &mut memory.0;
        lines.reserve(length.saturating_sub(lines.len()));
        // SAFETY: there is room, and whoever may be anything need not be written.
        unsafe { lines.set_len(length) };
        let tables = Output::new(lines);
        let before = Before::new(wanted.len());
        Self { isa, x, places, wanted, row_lines, tables, _memory: memory, before }
    }

    /// Bytes of all.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        size_of_val(&self._memory.0[..])
    }

    /// Makes what nobody else has begun.
    pub fn help(&self) {
        self.before.help(|place| self.write(place));
    }

    /// Returns when all are made.
    fn wait(&self) {
        self.before.wait(|place| self.write(place));
    }

    fn write(&self, place: usize) {
        let inputs = self.x.blocks * BLOCK;
        let codes = &self.x.codes[self.wanted[place] * inputs..][..inputs];
        run_tables(self.isa, codes, self.at(place));
    }

    fn at(&self, place: usize) -> *mut u8 {
        // SAFETY: there are as many places.
        unsafe { self.tables.pointer().add(place * self.row_lines) }.cast()
    }

    /// The tables of a row, when all are made.
    #[inline(always)]
    fn of(&self, row: usize) -> *const u8 {
        match self.places[row] {
            Some(place) => self.at(place),
            None => unreachable!("tables were made of every row that is looked up"),
        }
    }
}

fn run_tables(isa: Isa, codes: &[i8], to: *mut u8) {
    dispatch_lookup!(isa, write_tables(codes: &[i8], to: *mut u8));
}

/// # Safety
/// `to` has room for the tables of every unit.
#[inline(always)]
unsafe fn write_tables<L: Lookup>(codes: &[i8], to: *mut u8) {
    for (unit, inputs) in codes.as_chunks::<UNIT>().0.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { L::write_tables(inputs.as_ptr(), to.add(unit * L::LAYOUT.table_bytes())) };
    }
}

/// Cuts the rows' words into N pieces each, and makes words of the first pieces of N rows, of their second pieces, and so on:
/// each N rows are a square, in which piece i of word j changes places with piece j of word i, halves of the square first, then
/// quarters. WIDE squares lie side by side, in `to` as well.
fn transpose<const N: usize, const WIDE: usize>(rows: &[u64; TILE], to: &mut [u64; BLOCK_WORDS]) {
    const { assert!(N * WIDE == TILE && TILE == BLOCK_WORDS) };
    let mut squares = [[0u64; WIDE]; N];
    for (lane, row) in rows.iter().enumerate() {
        squares[lane % N][lane / N] = *row;
    }
    let mut distance = N / 2;
    while distance > 0 {
        let shift = distance * 64 / N;
        // The lower of each two runs of `shift` bits.
        let keep = u64::MAX / ((1 << shift) + 1);
        for i in (0..N).filter(|i| i & distance == 0) {
            for square in 0..WIDE {
                let (low, high) = (squares[i][square], squares[i + distance][square]);
                let moved = (low >> shift ^ high) & keep;
                squares[i + distance][square] = high ^ moved;
                squares[i][square] = low ^ moved << shift;
            }
        }
        distance /= 2;
    }
    to.copy_from_slice(squares.as_flattened());
}

pub(crate) fn run_planes(isa: Isa, job: Job, d: &PlaneTiles, tables: &Tables) {
    tables.wait();
    match d.bits {
        1 => look_up_1(isa, job, d, tables),
        2 => look_up_2(isa, job, d, tables),
        _ => look_up_4(isa, job, d, tables),
    }
}

fn look_up_1(isa: Isa, job: Job, d: &PlaneTiles, tables: &Tables) {
    dispatch_lookup!(isa, look_up::<1>(job: Job, d: &PlaneTiles, tables: &Tables));
}

fn look_up_2(isa: Isa, job: Job, d: &PlaneTiles, tables: &Tables) {
    dispatch_lookup!(isa, look_up::<2>(job: Job, d: &PlaneTiles, tables: &Tables));
}

fn look_up_4(isa: Isa, job: Job, d: &PlaneTiles, tables: &Tables) {
    dispatch_lookup!(isa, look_up::<4>(job: Job, d: &PlaneTiles, tables: &Tables));
}

/// # Safety
/// The job's operands were checked, its outputs are a range of the matrix that starts at a tile, its rows have tables, and
/// the matrix has `BITS` planes, which lie as the instruction set reads them.
#[inline(always)]
unsafe fn look_up<L: Lookup, const BITS: usize>(job: Job, d: &PlaneTiles, tables: &Tables) {
    for rows in job.row_blocks(L::LAYOUT.table_bytes() / UNIT) {
        let job = Job { rows, ..job.clone() };
        let (mut tile, last) = (job.first / TILE, job.last.div_ceil(TILE));
        while tile < last {
            let two = L::HOLDS_FOUR && tile + 2 <= last;
            let (mut row, end) = (job.rows.start, job.rows.end);
            // SAFETY: the tiles lie in the range, and the rows of every call are the job's.
            unsafe {
                while two && row + 2 <= end {
                    look_up_rows::<L, BITS, 2, 2>(&job, d, tables, tile, row);
                    row += 2;
                }
                while row < end {
                    if two {
                        look_up_rows::<L, BITS, 1, 2>(&job, d, tables, tile, row);
                    } else {
                        look_up_rows::<L, BITS, 1, 1>(&job, d, tables, tile, row);
                    }
                    row += 1;
                }
            }
            tile += if two { 2 } else { 1 };
        }
    }
}

/// R rows against T tiles.
///
/// # Safety
/// As [`look_up`]; the tiles lie in the matrix and rows `row..row + R` in x and y.
#[inline(always)]
unsafe fn look_up_rows<L: Lookup, const BITS: usize, const R: usize, const T: usize>(
    job: &Job,
    d: &PlaneTiles,
    tables: &Tables,
    tile: usize,
    row: usize,
) {
    let rounded = job.rounded();
    let blocks = rounded.blocks;
    let mut of_rows = [tables.of(row); R];
    for r in 1..R {
        of_rows[r] = tables.of(row + r);
    }
    let (Some(from), Some(_)) = (d.tile(tile), d.tile(tile + T - 1)) else {
        unreachable!("the job's outputs are the matrix's")
    };
    // SAFETY: as promised, and every array holds whole blocks.
    unsafe {
        let x_sums = rounded.sums.as_ptr().add(row * blocks);
        let x_scales = rounded.scales.as_ptr().add(row * blocks);
        let mut totals = [[[L::Floats::splat(0.0); R]; HALVES]; T];
        // Unknown to the compiler, which would unroll the loop whole and do a row after the other, with what they share in
        // memory. One row shares nothing, and unrolled it is faster but for four bits (by 6 % slower).
        let units = if R > 1 || BITS > 2 { std::hint::black_box(UNITS) } else { UNITS };
        let mut scales = [[L::Floats::splat(0.0); HALVES]; T];
        // Groups and blocks in one loop. One in the other took half as many instructions as the look-ups of a block: a row by
        // itself was slower by 14 % from cache, and by half from memory.
        let (mut group, mut of_group) = (0, 0);
        for block in 0..blocks {
            if of_group == 0 {
                for t in 0..T {
                    for half in 0..HALVES {
                        let at = from.scales(t * d.groups() + group).add(half * LANES);
                        scales[t][half] = L::Floats::load_f16(at);
                    }
                }
                group += 1;
                of_group = d.blocks_per_group;
            }
            of_group -= 1;
            let mut floats = [[[L::Floats::splat(0.0); R]; HALVES]; T];
            // Two planes at a time.
            for two in 0..BITS.div_ceil(2) {
                let zero = d.zero >> (2 * two) & 3;
                let mut sums = [[L::begin(0); R]; T];
                let mut upper = [[L::begin(0); R]; T];
                for r in 0..R {
                    // What fits 16 bits in the end may go over on the way: additions wrap.
                    let offset = L::begin((-zero * *x_sums.add(r * blocks + block)) as i16);
                    for t in 0..T {
                        sums[t][r] = offset;
                    }
                }
                for unit in 0..units {
                    let at = (2 * two * UNITS + unit) * UNIT_BYTES;
                    let of_unit = (block * UNITS + unit) * L::LAYOUT.table_bytes();
                    for t in 0..T {
                        let from = from.block(t * blocks + block).add(at);
                        let codes = L::codes(from);
                        for r in 0..R {
                            sums[t][r] = sums[t][r].add(codes, of_rows[r].add(of_unit));
                        }
                        if BITS > 1 {
                            let codes = L::codes(from.add(UNITS * UNIT_BYTES));
                            for r in 0..R {
                                upper[t][r] = upper[t][r].add(codes, of_rows[r].add(of_unit));
                            }
                        }
                    }
                }
                for t in 0..T {
                    for r in 0..R {
                        let sums = if BITS > 1 { sums[t][r].add_twice(upper[t][r]) } else { sums[t][r] }.to_floats();
                        for half in 0..HALVES {
                            // Whole numbers below 2²⁴: exact.
                            let to = &mut floats[t][half][r];
                            *to = if two == 0 { sums[half] } else { to.fma(sums[half], L::Floats::splat(4.0)) };
                        }
                    }
                }
            }
            for r in 0..R {
                let x_scale = L::Floats::splat(*x_scales.add(r * blocks + block) * (1.0 / L::ONE));
                for t in 0..T {
                    for half in 0..HALVES {
                        let total = &mut totals[t][half][r];
                        *total = total.fma(floats[t][half][r], scales[t][half].mul(x_scale));
                    }
                }
            }
        }
        let tensor_scale = L::Floats::splat(d.tensor_scale);
        for t in 0..T {
            for r in 0..R {
                let whole = L::in_order([totals[t][0][r], totals[t][1][r]]);
                for half in 0..HALVES {
                    totals[t][half][r] = whole[half].mul(tensor_scale);
                }
            }
            for half in 0..HALVES {
                store(job, tile + t, half, row, &totals[t][half]);
            }
        }
    }
}
