//! Activations, and what the integer products make of them: int8 in blocks of 64.

use crate::{
    isa::{Isa, dispatch},
    parallel::{Output, for_each},
    vector::{LANES, Vector},
};

/// Inputs that share a scale.
pub const BLOCK: usize = 64;
/// Values below which one thread rounds all rows.
const WORTH_SPLITTING: usize = 1 << 13;

/// Rows of activations that several products have in common.
#[derive(Debug)]
pub struct Activations<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) width: usize,
    pub(crate) rows: usize,
    pub(crate) rounded: Option<Rounded>,
}

impl<'a> Activations<'a> {
    /// `values` in rows of `width`, for products in f32.
    ///
    /// # Panics
    /// When they are not whole rows.
    pub fn exact(values: &'a [f32], width: usize) -> Self {
        assert!(width > 0 && values.len().is_multiple_of(width), "{} values in rows of {width}", values.len());
        Self { values, width, rows: values.len() / width, rounded: None }
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

    /// [`Self::rounded`] on a given instruction set, which must be one of [`Isa::available`].
    ///
    /// # Panics
    /// As [`Self::exact`].
    pub fn rounded_on(isa: Isa, values: &'a [f32], width: usize) -> Self {
        let exact = Self::exact(values, width);
        Self { rounded: Some(Rounded::new(isa, values, width)), ..exact }
    }
}

/// Rows of activations in blocks of int8.
#[derive(Debug)]
pub(crate) struct Rounded {
    /// Blocks in a row.
    pub blocks: usize,
    /// row → block → input; 0 where there is none.
    pub codes: Vec<i8>,
    /// row → block: greatest magnitude over 127.
    pub scales: Vec<f32>,
    /// row → block: Σ codes.
    pub sums: Vec<i32>,
}

impl Rounded {
    fn new(isa: Isa, x: &[f32], width: usize) -> Self {
        assert!(Isa::available().contains(&isa), "{isa:?} is not available here");
        let (rows, blocks) = (x.len() / width, width.div_ceil(BLOCK));
        let (mut codes, mut scales) = (vec![0i8; rows * blocks * BLOCK], vec![0f32; rows * blocks]);
        let mut sums = vec![0i32; rows * blocks];
        let to = (Output::new(&mut codes), Output::new(&mut scales), Output::new(&mut sums));
        let together = WORTH_SPLITTING.div_ceil(width);
        for_each(rows.div_ceil(together), |i| {
            for row in i * together..rows.min((i + 1) * together) {
                let x = &x[row * width..(row + 1) * width];
                let first = row * blocks;
                // SAFETY: the three vectors hold `blocks` blocks for each row, and every row is rounded once.
                let to = unsafe {
                    (to.0.pointer().add(first * BLOCK), to.1.pointer().add(first), to.2.pointer().add(first))
                };
                run(isa, x, to);
            }
        });
        Self { blocks, codes, scales, sums }
    }
}

fn run(isa: Isa, x: &[f32], to: (*mut i8, *mut f32, *mut i32)) {
    dispatch!(isa, round_row(x: &[f32], to: (*mut i8, *mut f32, *mut i32)));
}

/// # Safety
/// `to` has room for the codes, scales and sums of the row's blocks.
#[inline(always)]
unsafe fn round_row<V: Vector>(x: &[f32], to: (*mut i8, *mut f32, *mut i32)) {
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
            let inverse = V::splat(if greatest > 0.0 { 127.0 / greatest } else { 0.0 });
            let codes = to.0.add(block * BLOCK);
            for (part, values) in parts.into_iter().enumerate() {
                values.mul(inverse).store_i8(codes.add(part * LANES));
            }
            let codes = std::slice::from_raw_parts(codes, BLOCK);
            to.1.add(block).write(greatest / 127.0);
            to.2.add(block).write(codes.iter().map(|code| i32::from(*code)).sum());
        }
    }
}
