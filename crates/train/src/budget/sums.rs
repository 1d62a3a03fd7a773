//! Sums of kinds: low-rank factors, and beside them what they leave, row by row in levels of one step.
//!
//! *One condition for all.* An element of what is left (the rest) that is rounded in steps of D costs as much squared error
//! as an entry of a factor whose steps are D / sensitivity, so one D serves both. Of a row the levels that
//! gain less than their bits cost are zero; so a row is skipped where D is large beside it, a few signs with their places
//! where it is less so, and dense at one to four bits where D is small. A matrix is kept as [`Part::Sparse`] or
//! [`Part::Dense`], whichever takes less memory: in the file both are the same levels in the same stream.
//!
//! *With data* a row's errors count by its weight, which goes by the gradients of the loss ([`row_sensitivities`]), and its
//! steps are D over that.
//!
//! *How many components.* Where the rest is coded, an error that a factor makes is not lost but coded with it. An element
//! of variance σ² coded in steps of D < σ costs more bits by e / (2 ln 2 · σ²) when its variance grows by e, and a bit is worth
//! λ = ln 2 / 6 · D² of squared error: the factor's error weighs D² / 12σ² of what it weighs without a rest. So the factors'
//! own distortion is √12 · σ where that is more than D. A component whose levels take more bits than its energy is worth at that
//! distortion is left to the rest. (Level by level it may seem worth them: either factor is, where the other is there.)

use super::{
    Coded, Factors, Sensitivity,
    distil::{EXAMPLES_PER_PROBE, PROBES},
    linears_of,
    rate::{DEAD, Steps},
};
use crate::{
    Error,
    batch::{self, Example},
    graph::{
        Adaptation, Graph, Keeping,
        linear::Weight,
        matrix::{Matrix, product},
    },
    progress::Progress,
};
use bitdelta_delta::{
    LinearDelta, Part,
    metrics::Distance,
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
/// Bits a weight below which no pair was seen to have any left for a rest (factors alone were taken up to 0.075), which takes
/// minutes to find out for a base of billions of weights.
const LEAST_BITS: f64 = 0.05;
/// Bits of a normally distributed element in steps of its deviation.
const BITS_AT_ONE_DEVIATION: f64 = 2.05;
/// Distortions that are tried until the size is met.
const MOST_TRIALS: usize = 10;
/// A row counts no less than this share of the mean.
const LEAST_SENSITIVITY: f32 = 0.05;
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
    /// How much an error in each row of each linear counts; empty: all the same.
    pub rows: &'a [Vec<f32>],
}

/// Whether so many bytes are enough for anything beside factors.
pub fn are_affordable(base: &Base, bytes: u64) -> bool {
    base.linear_weights() <= bytes * MOST_WEIGHTS_PER_BYTE
}

/// How much an error in each row of each linear matters: the fourth root of the mean squared gradient of the loss by the row's
/// weights, about 1. The square root, which is the curvature's, leaves rows out that are of use: what a small budget leaves
/// out is no small error. (A persona in 340 KB from its weights alone, with nothing trained: retention 0.779 by the square
/// root, 0.893 where all rows count the same, 0.914 by the fourth root.)
///
/// # Errors
/// What the graph reports.
pub fn row_sensitivities(
    model: &Base,
    examples: &[Example],
    seed: u64,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f32>>, Error> {
    let longest = batch::longest(examples);
    let graph = Graph::kept(&model.config, model, Adaptation::Full, Keeping::FAST, longest, false)?;
    let mut sums: Vec<Vec<f32>> = model.linears().iter().map(|linear| vec![0.0; linear.rows]).collect();
    let order = batch::order(examples.len(), usize::MAX >> 1, seed, true);
    let probes: Vec<&[usize]> = order[..PROBES.min(order.len())].chunks(EXAMPLES_PER_PROBE).collect();
    progress.begin("sensitivities", probes.len() as u64, "batches");
    for chosen in probes {
        let packed = batch::pack(chosen.iter().map(|&index| &examples[index]));
        graph.accumulate(&packed, 1.0 / packed.rows.len().max(1) as f32)?;
        for stack in graph.stacks() {
            let Weight::Trained(weights) = &stack.weight else { unreachable!("full adaptation trains every stack") };
            let gradient = weights.gradient().take();
            let Some(gradient) = gradient else { continue };
            for part in &stack.parts {
                let rows = part.rows.clone().zip(&mut sums[part.index]);
                rows.for_each(|(row, sum)| *sum += gradient.row(row).iter().map(|g| g * g).sum::<f32>());
            }
        }
        progress.advance(1, "");
    }
    progress.end();
    for (sums, linear) in sums.iter_mut().zip(model.linears()) {
        sums.iter_mut().for_each(|sum| *sum = (*sum / linear.cols as f32).sqrt().sqrt());
    }
    // Of no consequence but that distortions stay near those of differences.
    let mean = sums.iter().flatten().sum::<f32>() / sums.iter().map(Vec::len).sum::<usize>().max(1) as f32;
    let least = LEAST_SENSITIVITY * mean.max(f32::MIN_POSITIVE);
    sums.iter_mut().flatten().for_each(|sum| *sum = sum.max(least) / mean.max(f32::MIN_POSITIVE));
    Ok(sums)
}

/// All linears at one distortion.
#[derive(Debug, Default)]
pub struct Sums {
    /// Of each linear.
    pub factors: Vec<Coded>,
    /// What is kept of each linear beside its factors.
    pub rests: Vec<Option<Part>>,
    /// How far each linear is from its difference.
    pub distances: Vec<Distance>,
}

impl Sums {
    /// ‖Δ̂ − Δ‖²
    fn error(&self) -> f64 {
        self.distances.iter().map(|distance| distance.error).sum()
    }
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
        if !are_affordable(self.base, bytes) || bytes < super::bytes_at(self.base, LEAST_BITS) {
            return Ok(None);
        }
        let of_factors = self.code(alone, false, progress)?;
        let weights: usize = self.factors.iter().map(|factors| factors.rows * factors.cols).sum();
        let bits = 8.0 * bytes as f64 / weights as f64;
        // As if all were of one variance; at high rates a normal distribution takes so many bits.
        let norm: f64 = of_factors.distances.iter().map(|distance| distance.norm).sum();
        let guess = (norm / weights as f64).sqrt() * (BITS_AT_ONE_DEVIATION - bits).exp2();
        let (least, wanted) = (f64::from(alone).ln(), (bytes as f64).ln());
        // Logarithms of distortions at which the file is too large, and at which it is not, with that of its size.
        let (mut large, mut small) = (None::<(f64, f64)>, None::<(f64, f64)>);
        let (mut best, mut at): (Option<Sums>, f64) = (None, guess.ln().max(least));
        for _ in 0..MOST_TRIALS {
            let sums = self.code(at.exp() as f32, true, progress)?;
            let size = size(linears_of(self.base, &sums.factors, &sums.rests)?)? as f64;
            if size > bytes as f64 {
                large = Some((at, size.ln()));
            } else {
                small = Some((at, size.ln()));
                best = Some(sums).filter(|sums| sums.rests.iter().any(Option::is_some));
                if (best.is_none() && at <= least) || size > NEAR_ENOUGH * bytes as f64 {
                    break;
                }
            }
            at = match (large, small) {
                (Some((a, above)), Some((b, below))) => {
                    let share = (above - wanted) / (above - below);
                    a + (b - a) * (share + 0.02).clamp(0.05, 0.95)
                }
                (Some((a, above)), None) => a + (above - wanted).max(0.05),
                (None, Some((b, below))) => b - (wanted - below).clamp(0.05, 1.0),
                (None, None) => break,
            };
        }
        Ok(best.filter(|sums| sums.error() < of_factors.error()))
    }

    /// Codes every linear, its rest too if `rest`, one difference in memory at a time.
    ///
    /// # Errors
    /// An unreadable tensor, what the product reports.
    pub fn code(&self, distortion: f32, rest: bool, progress: &dyn Progress) -> Result<Sums, Error> {
        let mut sums = Sums::default();
        progress.begin("choosing kinds", self.factors.len() as u64, "tensors");
        for (index, (linear, factors)) in self.base.linears().iter().zip(self.factors).enumerate() {
            let weights = self.rows.get(index).map_or(&[][..], Vec::as_slice);
            let sensitivity = &Sensitivity::of_product_weighted(factors, weights);
            let mut delta = self.finetuned.tensor_f32(&linear.name)?;
            let before = self.base.tensor_f32(&linear.name)?;
            delta.par_iter_mut().zip(&before).for_each(|(after, before)| *after -= before);
            drop(before);
            let norm = weighted_square(&delta, linear.cols, weights);
            if !rest {
                let coded = Coded::round(factors, &Steps::at(factors, sensitivity, distortion), DEAD).compact();
                subtract(&mut delta, &coded)?;
                sums.distances.push(Distance { error: weighted_square(&delta, linear.cols, weights), norm });
                sums.factors.push(coded);
                sums.rests.push(None);
                progress.advance(1, "");
                continue;
            }
            // Few large entries are cheap as they are and dear as components, which the estimate below cannot know.
            let mut chosen = Rest::code(&delta, linear.cols, weights, distortion);
            let mut kept = Coded::default();
            let coded = beside_a_rest(factors, sensitivity, weights, norm, distortion);
            if coded.rank() > 0 {
                subtract(&mut delta, &coded)?;
                let beside = Rest::code(&delta, linear.cols, weights, distortion);
                let more: f32 = [&coded.a, &coded.bt].iter().flat_map(|m| m.levels.chunks(m.cols)).map(bits_of).sum();
                if beside.cost(distortion) + f64::from(WORTH_OF_A_BIT * distortion * distortion * more)
                    < chosen.cost(distortion)
                {
                    (chosen, kept) = (beside, coded);
                }
            }
            sums.distances.push(Distance { error: chosen.error, norm });
            sums.factors.push(kept);
            sums.rests.push(chosen.part(&linear.name)?);
            progress.advance(1, "");
        }
        progress.end();
        Ok(sums)
    }
}

/// How much row `row` counts.
fn weight(weights: &[f32], row: usize) -> f32 {
    weights.get(row).copied().unwrap_or(1.0)
}

fn square(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x).powi(2)).sum()
}

/// Σ of the squares of rows of `cols`, each times its weight.
fn weighted_square(values: &[f32], cols: usize, weights: &[f32]) -> f64 {
    let rows = values.par_chunks(cols).enumerate();
    rows.map(|(row, values)| square(values) * f64::from(weight(weights, row)).powi(2)).sum()
}

/// The components that are worth their bits at a distortion.
fn worthy(factors: &Factors, sensitivity: &Sensitivity, weights: &[f32], distortion: f32) -> Coded {
    let all = Coded::round(factors, &Steps::at(factors, sensitivity, distortion), DEAD);
    let (a, bt) = (all.a.values(), all.bt.values());
    let worth = |row: usize| {
        if all.a.steps[row].is_none() {
            return false;
        }
        let (rows, cols) = (row * factors.rows..(row + 1) * factors.rows, row * factors.cols..(row + 1) * factors.cols);
        let (rounded_a, rounded_bt) = (&a[cols.clone()], &bt[rows.clone()]);
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum::<f64>();
        let weighed: Vec<f32> =
            rounded_bt.iter().enumerate().map(|(row, b)| b * weight(weights, row).powi(2)).collect();
        let common = dot(&factors.a[cols.clone()], rounded_a) * dot(&factors.bt[rows.clone()], &weighed);
        let gain = 2.0 * common - square(rounded_a) * dot(rounded_bt, &weighed);
        let bits = bits_of(&all.a.levels[cols]) + bits_of(&all.bt.levels[rows]);
        gain > f64::from(WORTH_OF_A_BIT * distortion * distortion * bits)
    };
    let keep: Vec<bool> = (0..factors.rank()).map(worth).collect();
    Coded { a: all.a.rows_where(|row| keep[row]), bt: all.bt.rows_where(|row| keep[row]) }
}

/// The factors of a difference of squared norm `norm` whose rest will be coded.
fn beside_a_rest(factors: &Factors, sensitivity: &Sensitivity, weights: &[f32], norm: f64, distortion: f32) -> Coded {
    let elements = (factors.rows * factors.cols) as f64;
    let mut rest = norm;
    let mut coded = Coded::default();
    for _ in 0..ROUNDS {
        let spread = (rest / elements).sqrt() as f32;
        coded = worthy(factors, sensitivity, weights, distortion.max(FACTOR_STEP * spread));
        // Components are orthogonal, and so nearly are their rounded ones.
        let (a, bt) = (coded.a.values(), coded.bt.values());
        let components = a.chunks(factors.cols).zip(bt.chunks(factors.rows));
        let kept: f64 = components.map(|(a, bt)| square(a) * weighted_square(bt, 1, weights)).sum();
        rest = (norm - kept).max(0.0);
    }
    coded
}

/// `delta` −= the product of the factors.
fn subtract(delta: &mut [f32], coded: &Coded) -> Result<(), Error> {
    let (a, bt) = (&coded.a, &coded.bt);
    if coded.rank() == 0 {
        return Ok(());
    }
    let made =
        product(Matrix::new(bt.rows(), bt.cols, bt.values()).t(), Matrix::new(a.rows(), a.cols, a.values()).view())?;
    delta.par_iter_mut().zip(made.values()).for_each(|(delta, made)| *delta -= made);
    Ok(())
}

/// What is worth keeping of what factors leave of a linear.
struct Rest {
    levels: Levels,
    /// Squared, rows by their weights.
    error: f64,
    /// In the stream, about.
    bits: f64,
}

impl Rest {
    fn code(rest: &[f32], cols: usize, weights: &[f32], distortion: f32) -> Self {
        let rows = rest.par_chunks(cols).enumerate();
        let rows: Vec<Row> = rows.map(|(row, values)| Row::code(values, distortion / weight(weights, row))).collect();
        let mut levels = Levels { cols, steps: Vec::with_capacity(rows.len()), levels: Vec::with_capacity(rest.len()) };
        let (mut error, mut bits, mut beyond) = (0.0f64, 0.0f64, [0.0f64; 5]);
        for (index, row) in rows.into_iter().enumerate() {
            let weight = f64::from(weight(weights, index)).powi(2);
            error += weight * f64::from(row.error);
            bits += f64::from(row.bits);
            for (bits, sum) in beyond.iter_mut().enumerate().skip(2) {
                *sum += weight * f64::from(row.beyond(bits as u8));
            }
            levels.steps.push(row.step);
            levels.levels.extend(row.levels);
        }
        if let Some(few) = (2..4).find(|bits| beyond[*bits] < f64::from(CLAMPED) * error) {
            let (least, most) = range(few as u8);
            levels.levels.par_iter_mut().for_each(|level| *level = (*level).clamp(least, most));
            error += beyond[few];
        }
        Self { levels, error, bits }
    }

    /// Error and what the bits are worth.
    fn cost(&self, distortion: f32) -> f64 {
        self.error + f64::from(WORTH_OF_A_BIT * distortion * distortion) * self.bits
    }

    /// In the kind that takes less memory; `None` where nothing is kept.
    fn part(&self, name: &str) -> Result<Option<Part>, Error> {
        let count = self.levels.levels.par_iter().filter(|level| **level != 0).count();
        if count == 0 {
            return Ok(None);
        }
        let sparse = if count * SPARSE < self.levels.levels.len() { self.levels.sparse() } else { None };
        Ok(Some(match sparse {
            Some(rows) => Part::Sparse(rows),
            None => Part::Dense(self.levels.pack(name)?),
        }))
    }
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
    /// About.
    bits: f32,
}

impl Row {
    /// Levels that are worth their bits, at the step that fits them best.
    fn code(values: &[f32], distortion: f32) -> Self {
        let norm: f32 = values.iter().map(|x| x * x).sum();
        let empty = || Self { step: None, levels: vec![0; values.len()], error: norm, bits: 0.0 };
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
        let bits = bits(&counts, values.len());
        if gain <= WORTH_OF_A_BIT * distortion * distortion * bits {
            return empty();
        }
        Self { step: Some(step), levels, error: (norm - gain).max(0.0), bits }
    }

    /// Squared error that is added when the levels are clamped into so many bits.
    fn beyond(&self, bits: u8) -> f32 {
        let ((least, most), step) = (range(bits), self.step.map_or(0.0, Step::value));
        let over = |level: &i8| f32::from(level - level.clamp(&least, &most)).powi(2);
        step * step * self.levels.iter().map(over).sum::<f32>()
    }
}

fn bits_of(levels: &[i8]) -> f32 {
    let mut counts = [0usize; LARGEST as usize + 1];
    levels.iter().for_each(|level| counts[usize::from(level.unsigned_abs())] += 1);
    bits(&counts, levels.len())
}

/// About the bits of a row with so many levels of each magnitude but zero.
fn bits(counts: &[usize], length: usize) -> f32 {
    let kept: usize = counts[1..].iter().sum();
    let entropy = |count: usize| if count == 0 { 0.0 } else { count as f32 * (length as f32 / count as f32).log2() };
    entropy(length - kept) + counts[1..].iter().map(|count| entropy(*count)).sum::<f32>() + kept as f32 + STEP_BITS
}
