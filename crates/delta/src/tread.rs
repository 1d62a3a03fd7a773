//! Codes with a level at zero ("mid-tread"), one step a row: what entropy-coded factors are made of.
//!
//! An element is `k · step`, k a small whole number. At one or two bits a weight a uniform step with a level at zero and
//! an entropy coder behind it comes within a tenth of a bit of the best possible code (Gish and Pierce 1968), and rows
//! whose values are all below half a step cost nothing at all: with one distortion for all rows, bits flow by themselves to
//! where they matter. A [`PackedMatrix`] holds such codes as any others: its offset equals its scale (half a step), so that
//! code u stands for `step · (u − 2^(b−1) + 1)`.
//!
//! Steps come from a table of 240 ([`Step`]): a byte a row in the file.

use crate::{Error, PackedMatrix};
use bitdelta_kernels::SparseRows;
use half::f16;
use rayon::prelude::*;

/// The scale of a matrix of steps: scales in the table are multiples of it, exact in f16.
const UNIT: f32 = 1.0 / 16384.0;
/// Steps in the table.
const STEPS: u8 = 240;
/// Largest level: four bits, for which the kernels are made.
pub const LARGEST: i32 = 8;
/// Smallest level of four bits.
pub const SMALLEST: i32 = -7;

/// A step out of a table in which each is 2^⅛ times the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step(u8);

impl Step {
    /// The nearest step to `step`, which is above 0.
    pub fn nearest(step: f32) -> Self {
        let code = (8.0 * (f64::from(step) / (2.0 * f64::from(UNIT))).log2() + 112.0).round();
        Self(code.clamp(0.0, f64::from(STEPS - 1)) as u8)
    }

    /// The step.
    pub fn value(self) -> f32 {
        2.0 * f16::from_bits(self.half()).to_f32() * UNIT
    }

    /// Its place in the table.
    pub fn code(self) -> u8 {
        self.0
    }

    /// The step at a place; `None` beyond the table.
    pub fn from_code(code: u8) -> Option<Self> {
        (code < STEPS).then_some(Self(code))
    }

    /// Half of it as a matrix stores it: f16 bits in units of [`UNIT`], from 2^-14 to 2^15.875.
    pub(crate) fn half(self) -> u16 {
        f16::from_f64(((f64::from(self.0) - 112.0) / 8.0).exp2()).to_bits()
    }

    fn from_half(half: u16) -> Option<Self> {
        let step = Self::nearest(2.0 * f16::from_bits(half).to_f32() * UNIT);
        (step.half() == half).then_some(step)
    }
}

/// Levels of a (rows, cols) matrix, a row after the other, and each row's step; `None` for a row of zeros.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Levels {
    /// Inputs.
    pub cols: usize,
    /// One a row.
    pub steps: Vec<Option<Step>>,
    /// `rows · cols` levels from [`SMALLEST`] to [`LARGEST`].
    pub levels: Vec<i8>,
}

impl Levels {
    /// The nearest levels to `values` (steps.len(), cols) row-major; a magnitude less than `0.5 + dead` of a step becomes
    /// zero, and further ones are rounded at the same fraction. A row of zeros loses its step.
    pub fn of(values: &[f32], cols: usize, steps: &[Step], dead: f32) -> Self {
        let mut levels = vec![0i8; values.len()];
        let rows = levels.par_chunks_mut(cols).zip(values.par_chunks(cols)).zip(steps);
        let steps = rows.map(|((levels, values), step)| {
            let inverse = 1.0 / step.value();
            let mut any = 0;
            for (level, value) in levels.iter_mut().zip(values) {
                *level = nearest_level(value * inverse, dead) as i8;
                any |= *level;
            }
            (any != 0).then_some(*step)
        });
        let steps = steps.collect();
        Self { cols, steps, levels }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.steps.len()
    }

    /// The values that the levels stand for, row-major.
    pub fn values(&self) -> Vec<f32> {
        let rows = self.levels.chunks(self.cols).zip(&self.steps);
        rows.flat_map(|(levels, step)| {
            let step = step.map_or(0.0, Step::value);
            levels.iter().map(move |level| f32::from(*level) * step)
        })
        .collect()
    }

    /// The same without the rows that `keep` refuses by their index.
    pub fn rows_where(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let mut out = Self { cols: self.cols, steps: Vec::new(), levels: Vec::new() };
        for row in (0..self.rows()).filter(|row| keep(*row)) {
            out.steps.push(self.steps[row]);
            out.levels.extend(&self.levels[row * self.cols..(row + 1) * self.cols]);
        }
        out
    }

    /// The fewest bits that hold all levels.
    fn bits(&self) -> u8 {
        let range =
            self.levels.iter().fold((0, 0), |(least, most): (i8, i8), level| (least.min(*level), most.max(*level)));
        let fits = |bits: u8| i32::from(range.0) >= lowest(bits) && i32::from(range.1) < lowest(bits) + (1 << bits);
        (1..=4).find(|bits| fits(*bits)).unwrap_or(4)
    }

    /// As packed planes, with as few bits as the levels ask for.
    ///
    /// # Errors
    /// [`Error::Shape`] for an empty matrix.
    pub fn pack(&self, tensor: &str) -> Result<PackedMatrix, Error> {
        let (rows, cols) = (self.rows(), self.cols);
        if rows == 0 || cols == 0 || self.levels.len() != rows * cols {
            return Err(Error::Shape { tensor: tensor.into(), rows, cols, found: self.levels.len() });
        }
        let bits = self.bits();
        let words = cols.div_ceil(64);
        let mut planes = vec![0u64; rows * usize::from(bits) * words];
        let packed = planes.par_chunks_mut(usize::from(bits) * words).zip(self.levels.par_chunks(cols));
        packed.for_each(|(planes, levels)| {
            for (at, level) in levels.iter().enumerate() {
                let code = (i32::from(*level) - lowest(bits)) as u64;
                for plane in 0..usize::from(bits) {
                    planes[plane * words + at / 64] |= (code >> plane & 1) << (at % 64);
                }
            }
        });
        let scales: Vec<u16> = self.steps.iter().map(|step| step.map_or(0, Step::half)).collect();
        Ok(PackedMatrix { bits, rows, cols, group: cols, planes, offsets: scales.clone(), scales, tensor_scale: UNIT })
    }

    /// As the levels that are not zero alone; `None` where rows are too wide, or levels too many, for that.
    pub fn sparse(&self) -> Option<SparseRows> {
        let mut rows = SparseRows::new(self.cols)?;
        let fit = self.levels.chunks(self.cols).zip(&self.steps).all(|(levels, step)| push(&mut rows, levels, *step));
        fit.then_some(rows)
    }

    /// The levels of a matrix that [`Levels::pack`] could have made.
    pub fn of_matrix(matrix: &PackedMatrix) -> Option<Self> {
        let PackedMatrix { bits, rows, cols, group, .. } = *matrix;
        if bits > 4 || group != cols || matrix.tensor_scale != UNIT || matrix.offsets != matrix.scales {
            return None;
        }
        let step = |half: &u16| if *half == 0 { Some(None) } else { Step::from_half(*half).map(Some) };
        let steps = matrix.scales.iter().map(step).collect::<Option<Vec<_>>>()?;
        let (words, bits) = (matrix.words_per_row(), usize::from(bits));
        let mut levels = vec![0i8; rows * cols];
        let rows = levels.par_chunks_mut(cols).zip(matrix.planes.par_chunks(bits * words)).zip(&steps);
        let consistent = rows.map(|((levels, planes), step)| {
            for (word, levels) in levels.chunks_mut(64).enumerate() {
                for (at, level) in levels.iter_mut().enumerate() {
                    let code: u64 = (0..bits).map(|plane| (planes[plane * words + word] >> at & 1) << plane).sum();
                    *level = (code as i32 + lowest(matrix.bits)) as i8;
                }
            }
            levels.iter().all(|level| *level == 0) == step.is_none()
        });
        if !consistent.reduce(|| true, |all, row| all && row) {
            return None;
        }
        let found = Self { cols, steps, levels };
        (found.bits() == matrix.bits).then_some(found)
    }
}

/// Adds a row of levels to sparse ones, and returns whether it had room there.
pub(crate) fn push(rows: &mut SparseRows, levels: &[i8], step: Option<Step>) -> bool {
    let kept = (0u16..).zip(levels).filter(|(_, level)| **level != 0).map(|(column, level)| (column, *level));
    rows.push(kept, step.map_or(0.0, Step::value))
}

/// The step of a sparse row with these levels; `None` for a scale that is no step, for levels out of range, and for a step
/// of a row without levels or none of one with some.
pub(crate) fn step_of(levels: &[i8], scale: f32) -> Option<Option<Step>> {
    if levels.is_empty() {
        return (scale.to_bits() == 0).then_some(None);
    }
    let fits = levels.iter().all(|level| (SMALLEST..=LARGEST).contains(&i32::from(*level)));
    let step = Step::nearest(if scale > 0.0 { scale } else { UNIT });
    (fits && step.value() == scale).then_some(Some(step))
}

/// The level that code 0 of so many bits stands for.
pub(crate) fn lowest(bits: u8) -> i32 {
    1 - (1 << (bits - 1))
}

/// The level for a value in steps.
#[inline(always)]
pub fn nearest_level(value: f32, dead: f32) -> i32 {
    let magnitude = (value.abs() + 0.5 - dead).max(0.0) as i32;
    let level = if value < 0.0 { -magnitude } else { magnitude };
    level.clamp(SMALLEST, LARGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_the_table_is_found_again() {
        for code in 0..STEPS {
            let step = Step(code);
            assert_eq!(Step::nearest(step.value()), step);
            assert_eq!(Step::from_half(step.half()), Some(step));
            assert!(code == 0 || step.value() > Step(code - 1).value());
        }
        assert_eq!((Step::from_code(STEPS), Step::from_half(1)), (None, None));
        let ratio = Step(100).value() / Step(92).value();
        assert!((ratio - 2.0).abs() < 1e-2);
    }

    #[test]
    fn packed_codes_stand_for_whole_steps() {
        let values: Vec<f32> =
            (0..3 * 70).map(|i| ((i * 37 % 101) as f32 - 50.0) * [0.01, 0.05, 0.0][i / 70]).collect();
        let steps = [Step::nearest(0.5), Step::nearest(0.4), Step::nearest(1.0)];
        let levels = Levels::of(&values, 70, &steps, 0.0);
        assert_eq!(levels.steps[2], None, "a row of zeros has no step");
        let packed = levels.pack("w").unwrap();
        assert_eq!(packed.bits, 4);
        assert_eq!(packed.dequantize(), levels.values());
        assert_eq!(Levels::of_matrix(&packed), Some(levels.clone()));
        for (value, (coded, step)) in values.iter().zip(levels.values().iter().zip(steps.iter().flat_map(|s| [s; 70])))
        {
            let room = if value.abs() < 7.0 * step.value() { 0.5001 } else { 10.0 };
            assert!((value - coded).abs() <= room * step.value(), "{value} {coded}");
        }
        let few = levels.rows_where(|row| row == 0).pack("w").unwrap();
        assert_eq!((few.rows, few.bits), (1, 2));
    }

    #[test]
    fn other_codes_are_not_taken_for_treads() {
        let levels = Levels::of(&[1.0, -1.0, 0.0], 3, &[Step::nearest(1.0)], 0.0);
        let packed = levels.pack("w").unwrap();
        assert!(Levels::of_matrix(&packed).is_some());
        for changed in [
            PackedMatrix { tensor_scale: 1.0, ..packed.clone() },
            PackedMatrix { offsets: vec![0], ..packed.clone() },
            PackedMatrix { scales: vec![1], offsets: vec![1], ..packed.clone() },
            PackedMatrix { scales: vec![0], offsets: vec![0], ..packed.clone() },
        ] {
            assert_eq!(Levels::of_matrix(&changed), None);
        }
    }
}
