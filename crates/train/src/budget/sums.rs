//! Sums of kinds: low-rank factors, and beside them what they leave, row by row in levels of one step.
//!
//! *One condition for all.* An element of what is left (the rest) that is rounded in steps of D costs as much squared error
//! as an entry of a factor whose steps are D / sensitivity, so one D serves both. Of a row the levels that gain less than their bits cost are zero;
//! so a row is skipped where D is large beside it, a few signs with their places where it is less so, and dense at one to
//! four bits where D is small. A matrix is kept as [`Part::Sparse`] or [`Part::Dense`], whichever takes less memory: in the file
//! both are the same levels in the same stream.
//!
//! *How many components.* Where the rest is coded, an error that a factor makes is not lost but coded with it. An element
//! of variance σ² coded in steps of D < σ costs more bits by e / (2 ln 2 · σ²) when its variance grows by e, and a bit is worth
//! λ = ln 2 / 6 · D² of squared error: the factor's error weighs D² / 12σ² of what it weighs without a rest. So the factors'
//! own distortion is √12 · σ where that is more than D, and components that do not stand out of the rest by so much round to
//! zeros.

use super::{
    Coded, Factors, Sensitivity, linears_of,
    rate::{DEAD, Steps},
};
use crate::{
    Error,
    graph::matrix::{Matrix, product},
    progress::Progress,
};
use bitdelta_delta::{
    LinearDelta, Part,
    tread::{LARGEST, Levels, SMALLEST, Step},
};
use bitdelta_model::Base;
use rayon::prelude::*;

/// Squared error that a bit is worth, in D²: ln 2 / 6, as at high rates.
const WORTH_OF_A_BIT: f32 = 0.1155;
/// Steps of a factor in standard deviations of the rest, where the rest is coded.
const FACTOR_STEP: f32 = 3.46;
/// Rounds in which the factors' distortion and the rest settle.
const ROUNDS: usize = 4;
/// Magnitudes above one step are rounded down by this much of one.
const DEAD_ABOVE: f32 = 0.1;
/// Bits that a row's step takes in the stream, about.
const STEP_BITS: f32 = 4.0;
/// Share of the squared error that may be added where levels are clamped into fewer bits in memory.
const CLAMPED: f32 = 0.01;
/// Of a sparse matrix less than one in so many levels is not zero: it takes three bytes for each, planes a quarter of one
/// for every weight.
const SPARSE: usize = 12;
/// A file so small beside the weights has none left for them one by one; a coded stream may not hold more of them either.
const MOST_WEIGHTS_PER_BYTE: u64 = 1000;
/// Distortions that are tried until the size is met.
const MOST_TRIALS: usize = 10;
/// Share of the bytes that ends the search.
const NEAR_ENOUGH: f64 = 0.995;

/// The pair whose difference is coded.
pub struct Pair<'a> {
    /// The base.
    pub base: &'a Base,
    /// The fine-tuned model.
    pub finetuned: &'a Base,
    /// The largest components of each linear's difference.
    pub factors: &'a [Factors],
    /// Those of their rounding.
    pub sensitivities: &'a [Sensitivity],
}

/// All linears at one distortion.
#[derive(Debug, Default)]
pub struct Sums {
    /// Of each linear.
    pub factors: Vec<Coded>,
    /// What is kept of each linear beside its factors.
    pub rests: Vec<Option<Part>>,
    /// ‖Δ̂ − Δ‖²
    pub error: f64,
}

impl Pair<'_> {
    /// The sum of kinds in at most `bytes`, where it is nearer to the pair than factors alone, which take as much at
    /// `alone`. `size` is that of a file of linears.
    ///
    /// # Errors
    /// As [`Pair::code`].
    pub fn fit_to(
        &self,
        alone: f32,
        bytes: u64,
        size: impl Fn(Vec<LinearDelta>) -> Result<u64, Error>,
        progress: &dyn Progress,
    ) -> Result<Option<Sums>, Error> {
        let weights: u64 = self.base.linears().iter().map(|linear| linear.rows as u64 * linear.cols as u64).sum();
        if weights > bytes * MOST_WEIGHTS_PER_BYTE {
            return Ok(None);
        }
        // Logarithms of distortions at which the file is too large, and at which it is not, with that of its size.
        let (mut large, mut small): (Option<(f64, f64)>, Option<(f64, f64)>) = (None, None);
        let mut best = None;
        let (wanted, mut at) = ((bytes as f64).ln(), f64::from(alone).ln());
        for _ in 0..MOST_TRIALS {
            let sums = self.code(at.exp() as f32, true, progress)?;
            if sums.rests.iter().all(Option::is_none) {
                break;
            }
            let size = size(linears_of(self.base, &sums.factors, &sums.rests)?)? as f64;
            if size <= bytes as f64 {
                small = Some((at, size.ln()));
                best = Some(sums);
                if size > NEAR_ENOUGH * bytes as f64 {
                    break;
                }
            } else {
                large = Some((at, size.ln()));
            }
            // About one bit an element more at half the distortion, until there are two points to draw a line through.
            at = match (large, small) {
                (Some((a, above)), Some((b, below))) => {
                    let share = (above - wanted) / (above - below);
                    a + (b - a) * (share + 0.02).clamp(0.05, 0.95)
                }
                (Some((a, above)), None) => a + (above - wanted).max(0.05),
                (None, Some((b, below))) => b - (wanted - below).max(0.05),
                (None, None) => break,
            };
        }
        let Some(sums) = best else { return Ok(None) };
        let of_factors = self.code(alone, false, progress)?.error;
        Ok((sums.error < of_factors).then_some(sums))
    }

    /// Codes every linear, its rest too if `rest`, one difference in memory at a time.
    ///
    /// # Errors
    /// An unreadable tensor, what the product reports.
    pub fn code(&self, distortion: f32, rest: bool, progress: &dyn Progress) -> Result<Sums, Error> {
        let mut sums = Sums::default();
        progress.begin("choosing kinds", self.factors.len() as u64, "tensors");
        for ((linear, factors), sensitivity) in self.base.linears().iter().zip(self.factors).zip(self.sensitivities) {
            let mut delta = self.finetuned.tensor_f32(&linear.name)?;
            let before = self.base.tensor_f32(&linear.name)?;
            delta.par_iter_mut().zip(&before).for_each(|(after, before)| *after -= before);
            drop(before);
            let coded = match rest {
                true => beside_a_rest(factors, sensitivity, square(&delta), distortion),
                false => round(factors, sensitivity, distortion),
            };
            if coded.rank() > 0 {
                subtract(&mut delta, &coded)?;
            }
            let (part, error) = match rest {
                true => code_rest(&delta, linear.cols, distortion, &linear.name)?,
                false => (None, square(&delta)),
            };
            sums.factors.push(coded);
            sums.rests.push(part);
            sums.error += error;
            progress.advance(1, "");
        }
        progress.end();
        Ok(sums)
    }
}

fn square(values: &[f32]) -> f64 {
    values.par_chunks(1 << 14).map(|chunk| chunk.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()).sum()
}

fn round(factors: &Factors, sensitivity: &Sensitivity, distortion: f32) -> Coded {
    Coded::round(factors, &Steps::at(factors, sensitivity, distortion), DEAD).compact()
}

/// The factors of a difference of squared norm `norm` whose rest will be coded.
fn beside_a_rest(factors: &Factors, sensitivity: &Sensitivity, norm: f64, distortion: f32) -> Coded {
    let elements = (factors.rows * factors.cols) as f64;
    let mut rest = norm;
    let mut coded = Coded::default();
    for _ in 0..ROUNDS {
        let spread = (rest / elements).sqrt() as f32;
        coded = round(factors, sensitivity, distortion.max(FACTOR_STEP * spread));
        // Components are orthogonal, and so nearly are their rounded ones.
        let components = coded.a.values();
        let components = components.chunks(factors.cols.max(1)).zip(coded.bt.steps.iter().enumerate());
        let bt = coded.bt.values();
        let kept: f64 = components
            .map(|(a, (row, _))| {
                let norm = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                norm(a) * norm(&bt[row * factors.rows..(row + 1) * factors.rows])
            })
            .sum();
        rest = (norm - kept).max(0.0);
    }
    coded
}

/// `delta` −= the product of the factors.
fn subtract(delta: &mut [f32], coded: &Coded) -> Result<(), Error> {
    let (a, bt) = (&coded.a, &coded.bt);
    let made =
        product(Matrix::new(bt.rows(), bt.cols, bt.values()).t(), Matrix::new(a.rows(), a.cols, a.values()).view())?;
    delta.par_iter_mut().zip(made.values()).for_each(|(delta, made)| *delta -= made);
    Ok(())
}

/// What is worth keeping of a rest, and its squared error.
fn code_rest(rest: &[f32], cols: usize, distortion: f32, name: &str) -> Result<(Option<Part>, f64), Error> {
    let rows: Vec<Row> = rest.par_chunks(cols).map(|row| Row::code(row, distortion)).collect();
    let mut levels = Levels { cols, steps: Vec::with_capacity(rows.len()), levels: Vec::with_capacity(rest.len()) };
    let (mut error, mut beyond) = (0.0f64, [0.0f64; 5]);
    for row in rows {
        error += f64::from(row.error);
        for (bits, sum) in beyond.iter_mut().enumerate().skip(2) {
            *sum += f64::from(row.beyond(bits as u8));
        }
        levels.steps.push(row.step);
        levels.levels.extend(row.levels);
    }
    if let Some(bits) = (2..4).find(|bits| beyond[*bits] < f64::from(CLAMPED) * error) {
        let (least, most) = range(bits as u8);
        levels.levels.par_iter_mut().for_each(|level| *level = (*level).clamp(least, most));
        error += beyond[bits];
    }
    let count = levels.levels.par_iter().filter(|level| **level != 0).count();
    let part = if count > 0 { Some(part(&levels, count, name)?) } else { None };
    Ok((part, error))
}

/// The levels of so many bits.
fn range(bits: u8) -> (i8, i8) {
    (1 - (1 << (bits - 1)), 1 << (bits - 1))
}

/// A row of the rest.
struct Row {
    step: Option<Step>,
    levels: Vec<i8>,
    /// Squared.
    error: f32,
}

impl Row {
    /// Levels that are worth their bits, at the step that fits them best.
    fn code(values: &[f32], distortion: f32) -> Self {
        let norm: f32 = values.iter().map(|x| x * x).sum();
        let empty = || Self { step: None, levels: vec![0; values.len()], error: norm };
        let largest = values.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let step = distortion.max(largest / -(SMALLEST as f32));
        let inverse = 1.0 / step;
        let count = |threshold: f32| values.iter().filter(|x| x.abs() * inverse >= threshold).count();
        // The rarer levels are, the more bits one takes, and the further from zero a value must be to be worth it.
        let mut threshold = 0.5 + DEAD;
        for _ in 0..2 {
            let kept = count(threshold) as f32;
            let share = (kept + 0.5) / (values.len() as f32 + 1.0);
            threshold = 0.5 + 0.5 * WORTH_OF_A_BIT * (1.0 + ((1.0 - share) / share).log2()).max(0.0);
        }
        let mut levels = vec![0i8; values.len()];
        let (mut dot, mut squares) = (0.0f32, 0.0f32);
        let mut counts = [0usize; LARGEST as usize + 1];
        for (level, value) in levels.iter_mut().zip(values) {
            let magnitude = value.abs() * inverse;
            if magnitude < threshold {
                continue;
            }
            let whole = ((magnitude + 0.5 - DEAD_ABOVE) as i32).clamp(1, -SMALLEST);
            counts[whole as usize] += 1;
            *level = (if *value < 0.0 { -whole } else { whole }) as i8;
            dot += value.abs() * whole as f32;
            squares += (whole * whole) as f32;
        }
        if squares == 0.0 {
            return empty();
        }
        let step = Step::nearest(dot / squares);
        let s = step.value();
        let gain = 2.0 * s * dot - s * s * squares;
        if gain <= WORTH_OF_A_BIT * distortion * distortion * bits(&counts, values.len()) {
            return empty();
        }
        Self { step: Some(step), levels, error: (norm - gain).max(0.0) }
    }

    /// Squared error that is added when the levels are clamped into so many bits.
    fn beyond(&self, bits: u8) -> f32 {
        let ((least, most), step) = (range(bits), self.step.map_or(0.0, Step::value));
        let over = |level: &i8| f32::from(level - level.clamp(&least, &most)).powi(2);
        step * step * self.levels.iter().map(over).sum::<f32>()
    }
}

/// About the bits of a row with so many levels of each magnitude but zero.
fn bits(counts: &[usize], length: usize) -> f32 {
    let kept: usize = counts[1..].iter().sum();
    let entropy = |count: usize| if count == 0 { 0.0 } else { count as f32 * (length as f32 / count as f32).log2() };
    entropy(length - kept) + counts[1..].iter().map(|count| entropy(*count)).sum::<f32>() + kept as f32 + STEP_BITS
}

/// The kind that takes less memory.
fn part(levels: &Levels, count: usize, name: &str) -> Result<Part, Error> {
    if count * SPARSE < levels.levels.len()
        && let Some(rows) = levels.sparse()
    {
        return Ok(Part::Sparse(rows));
    }
    Ok(Part::Dense(levels.pack(name)?))
}
