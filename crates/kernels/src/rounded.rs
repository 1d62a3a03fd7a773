//! Activations, and what the integer products make of them: one or two int8 digits in blocks of 64.
//!
//! ```text
//! x ≈ scale · (code + fine / 128)       scale = greatest magnitude of the block / 127
//! ```
//!
//! A delta's product takes the code alone: it is small beside the base's. The base's product takes both digits, since with
//! one the outliers of a block leave the others too few steps: measured on SmolLM2, of the tokens that the exact path
//! chooses 95.8 % are chosen with one digit and over 99.5 % with two. What lies between was measured, too: a second digit
//! only for the quads that hold a block's outliers (a sixth of them) leaves a KL of 4 to 7e-4 nats, where two digits have 5e-5,
//! and 98.1 to 99.5 % of the tokens of answers; the error comes from all projections and layers alike.

use crate::{
    again::{Again, Keep, reach},
    isa::{Isa, dispatch},
    narrow::{narrows, round},
    parallel::{Output, for_each, for_each_chunk},
    vector::{LANES, Vector},
};
use std::{cell::Cell, thread::LocalKey};

/// Inputs that share a scale.
pub const BLOCK: usize = 64;
/// Fine steps in a step.
pub(crate) const FINE: f32 = 128.0;
/// What the greatest of some values is taken for where it is less: the inverse would not be finite.
pub(crate) const LEAST: f32 = 1e-30;
/// Values below which one thread rounds all rows.
const WORTH_SPLITTING: usize = 1 << 11;

/// Rows of activations that several products have in common.
#[derive(Debug)]
pub struct Activations<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) width: usize,
    pub(crate) rows: usize,
    pub(crate) rounded: Option<Again<Rounded>>,
    /// `values` as bf16.
    pub(crate) narrow: Option<Vec<u16>>,
}

impl<'a> Activations<'a> {
    /// `values` in rows of `width`, for products in f32.
    ///
    /// # Panics
    /// When they are not whole rows.
    pub fn exact(values: &'a [f32], width: usize) -> Self {
        assert!(width > 0 && values.len().is_multiple_of(width), "{} values in rows of {width}", values.len());
        Self { values, width, rows: values.len() / width, rounded: None, narrow: None }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The same, rounded to int8 for the products that take it so.
    ///
    /// # Panics
    /// As [`Self::exact`].
    pub fn rounded(values: &'a [f32], width: usize) -> Self {
        Self::rounded_on(Isa::selected(), values, width)
    }

    /// The same, rounded to bf16 for products with bf16 matrices, where the instruction set has dot products of them;
    /// elsewhere as [`Self::exact`].
    ///
    /// # Panics
    /// As [`Self::exact`].
    pub fn narrow(values: &'a [f32], width: usize) -> Self {
        Self::narrow_on(Isa::selected(), values, width)
    }

    /// [`Self::narrow`] on a given instruction set, which must be one of [`Isa::available`].
    ///
    /// # Panics
    /// As [`Self::exact`].
    pub fn narrow_on(isa: Isa, values: &'a [f32], width: usize) -> Self {
        isa.check();
        let exact = Self::exact(values, width);
        if !narrows(isa) {
            return exact;
        }
        let mut narrow = vec![0u16; values.len()];
        for_each_chunk(&mut narrow, WORTH_SPLITTING, |i, to| {
            round(isa, &values[i * WORTH_SPLITTING..][..to.len()], to)
        });
        Self { narrow: Some(narrow), ..exact }
    }

    /// [`Self::rounded`] on a given instruction set, which must be one of [`Isa::available`].
    ///
    /// # Panics
    /// As [`Self::exact`].
    pub fn rounded_on(isa: Isa, values: &'a [f32], width: usize) -> Self {
        let exact = Self::exact(values, width);
        Self { rounded: Some(Rounded::new(isa, values, width)), ..exact }
    }
}

/// Rows of activations in blocks of int8. Its vectors may be longer than they need to be.
#[derive(Debug, Default)]
pub(crate) struct Rounded {
    /// The rows' inputs, whole blocks of them.
    inputs: usize,
    /// Blocks in a row.
    pub blocks: usize,
    /// row → block → input; 0 where there is none.
    pub codes: Vec<i8>,
    /// row → block: greatest magnitude over 127.
    pub scales: Vec<f32>,
    /// row → block: Σ codes.
    pub sums: Vec<i32>,
    /// Like `codes`, a step of 1/128: −64..=64.
    pub fine: Vec<i8>,
    /// row → block: the value of a fine step.
    pub steps: Vec<f32>,
    /// row → block → first half, second half, both: Σ x.
    pub totals: Vec<[f32; 3]>,
    /// 128 · code + fine, for instruction sets that multiply 16 bits better than 8; else empty.
    pub joined: Vec<i16>,
}

impl Rounded {
    /// Bytes of a row of `width` values.
    pub fn row_bytes(isa: Isa, width: usize) -> usize {
        let value = 2 * size_of::<i8>() + if joins(isa) { size_of::<i16>() } else { 0 };
        let block = 2 * size_of::<f32>() + size_of::<i32>() + size_of::<[f32; 3]>();
        width.div_ceil(BLOCK) * (BLOCK * value + block)
    }

    /// Whether an instruction set's product of int8 weights finds here what it reads.
    pub fn suits(&self, isa: Isa) -> bool {
        !joins(isa) || self.joined.len() == self.inputs
    }

    fn new(isa: Isa, x: &[f32], width: usize) -> Again<Self> {
        isa.check();
        let (rows, blocks) = (x.len() / width, width.div_ceil(BLOCK));
        let mut made = Again::<Self>::take();
        let Self { codes, scales, sums, fine, steps, totals, joined, .. } = &mut *made;
        let inputs = rows * blocks * BLOCK;
        [&mut *codes, &mut *fine].into_iter().for_each(|digits| reach(digits, inputs));
        [&mut *scales, &mut *steps].into_iter().for_each(|values| reach(values, rows * blocks));
        reach(sums, rows * blocks);
        reach(totals, rows * blocks);
        let (to_codes, to_fine) = (Output::new(codes), Output::new(fine));
        let to_scales = Output::new(scales);
        let (to_sums, to_steps, to_totals) = (Output::new(sums), Output::new(steps), Output::new(totals));
        let together = WORTH_SPLITTING.div_ceil(width);
        for_each(rows.div_ceil(together), |i| {
            for row in i * together..rows.min((i + 1) * together) {
                let x = &x[row * width..(row + 1) * width];
                let first = row * blocks;
                // SAFETY: the vectors hold `blocks` blocks for each row, and every row is rounded once, the last block with
                // zeros behind its end.
                let to = unsafe {
                    Row {
                        codes: to_codes.pointer().add(first * BLOCK),
                        fine: to_fine.pointer().add(first * BLOCK),
                        scales: to_scales.pointer().add(first),
                        sums: to_sums.pointer().add(first),
                        steps: to_steps.pointer().add(first),
                        totals: to_totals.pointer().add(first),
                    }
                };
                run(isa, x, to);
            }
        });
        let join = |(code, fine): (&i8, &i8)| i16::from(*code) * FINE as i16 + i16::from(*fine);
        joined.clear();
        if joins(isa) {
            joined.extend(codes[..inputs].iter().zip(&fine[..inputs]).map(join));
        }
        (made.inputs, made.blocks) = (inputs, blocks);
        made
    }
}

impl Keep for Rounded {
    fn place() -> &'static LocalKey<Cell<Option<Self>>> {
        thread_local!(static KEPT: Cell<Option<Rounded>> = const { Cell::new(None) });
        &KEPT
    }
}

/// Whether an instruction set multiplies int8 weights with both digits at once, in 16 bits.
fn joins(isa: Isa) -> bool {
    isa == Isa::Avx2
}

/// Where a row's blocks go.
#[derive(Clone, Copy)]
struct Row {
    codes: *mut i8,
    fine: *mut i8,
    scales: *mut f32,
    sums: *mut i32,
    steps: *mut f32,
    totals: *mut [f32; 3],
}

fn run(isa: Isa, x: &[f32], to: Row) {
    dispatch!(isa, round_row(x: &[f32], to: Row));
}

/// # Safety
/// `to` has room for the row's blocks.
#[inline(always)]
unsafe fn round_row<V: Vector>(x: &[f32], to: Row) {
    for (block, x) in x.chunks(BLOCK).enumerate() {
        // SAFETY: chunks stay inside the block, the last may be partial.
        unsafe {
            let mut parts = [V::splat(0.0); BLOCK / LANES];
            let mut greatest = V::splat(0.0);
            for (part, at) in (0..x.len()).step_by(LANES).enumerate() {
                parts[part] = V::load_partial(x.as_ptr().add(at), LANES.min(x.len() - at));
                greatest = greatest.max(parts[part].abs());
            }
            let greatest = greatest.greatest();
            let inverse = V::splat(127.0 / greatest.max(LEAST));
            let (codes, fine) = (to.codes.add(block * BLOCK), to.fine.add(block * BLOCK));
            // Whole numbers, the greatest 64 · (127 · 128 + 64): their sums are exact.
            let mut sums = V::splat(0.0);
            let mut halves = [V::splat(0.0); 2];
            for (part, values) in parts.into_iter().enumerate() {
                let steps = values.mul(inverse);
                let code = steps.round();
                let rest = steps.sub(code).mul(V::splat(FINE)).round();
                code.store_i8(codes.add(part * LANES));
                rest.store_i8(fine.add(part * LANES));
                sums = sums.add(code);
                let half = &mut halves[2 * part * LANES / BLOCK];
                *half = half.add(rest).fma(code, V::splat(FINE));
            }
            to.scales.add(block).write(greatest / 127.0);
            to.sums.add(block).write(sums.sum() as i32);
            let step = greatest / 127.0 / FINE;
            to.steps.add(block).write(step);
            let [low, high] = [halves[0].sum(), halves[1].sum()];
            to.totals.add(block).write([low, high, low + high].map(|sum| step * sum));
        }
    }
}
