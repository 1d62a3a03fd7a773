//! Which steps the factors are rounded in, so that the file has the size that was asked for.

use super::Factors;
use crate::Error;
use bitdelta_delta::{
    Part,
    file::coded_bytes,
    tread::{Levels, SMALLEST, Step},
};
use rayon::prelude::*;

/// Magnitudes below `0.5 + DEAD` of a step become zero, and further ones are rounded down by as much: a level nearer to
/// zero is cheaper to code.
pub const DEAD: f32 = 0.15;
/// Halvings of the distortion's range: 2^±30 around the start to a part in ten thousand.
const HALVINGS: usize = 24;
/// A sensitivity below this is none.
const TINY: f32 = 1e-20;

/// How much a row's rounding matters: the root of the mean squared gradient of what is to be kept small by the row's
/// elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// Of each row of A (rank).
    pub a: Vec<f32>,
    /// Of each row of Bᵀ (rank).
    pub bt: Vec<f32>,
}

/// Levels of one linear's factors, without the components that became zeros.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coded {
    /// (rank, cols)
    pub a: Levels,
    /// (rank, rows)
    pub bt: Levels,
}

impl Sensitivity {
    /// Of the squared error of Δ: an error in a row of A is multiplied by the column of B that it meets, and the other
    /// way round.
    pub fn of_product(factors: &Factors) -> Self {
        let norms = |values: &[f32], width: usize| -> Vec<f32> {
            values.chunks(width).map(|row| row.iter().map(|x| x * x).sum::<f32>().sqrt()).collect()
        };
        Self { a: norms(&factors.bt, factors.rows), bt: norms(&factors.a, factors.cols) }
    }

    /// The same where an error in an output counts by its weight; no weights: all the same.
    pub fn of_product_weighted(factors: &Factors, weights: &[f32]) -> Self {
        if weights.is_empty() {
            return Self::of_product(factors);
        }
        let weighed = factors.bt.chunks(factors.rows).flat_map(|bt| bt.iter().zip(weights).map(|(b, w)| b * w));
        let mean = (weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32).sqrt();
        let Self { a, bt } = Self::of_product(&Factors { bt: weighed.collect(), ..factors.clone() });
        Self { a, bt: bt.into_iter().map(|norm| norm * mean).collect() }
    }
}

impl Coded {
    /// Components.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// All components as `rank` rows, zeros for those that are none.
    pub fn round(factors: &Factors, steps: &Steps, dead: f32) -> Self {
        let mut coded = Self {
            a: Levels::of(&factors.a, factors.cols, &steps.a, dead),
            bt: Levels::of(&factors.bt, factors.rows, &steps.bt, dead),
        };
        for row in 0..coded.rank() {
            if coded.a.steps[row].is_none() || coded.bt.steps[row].is_none() {
                clear(&mut coded.a, row);
                clear(&mut coded.bt, row);
            }
        }
        coded
    }

    /// The part of the linear `tensor`; `None` where no component is left.
    ///
    /// # Errors
    /// None that rounded factors give.
    pub fn part(&self, tensor: &str) -> Result<Option<Part>, Error> {
        if self.rank() == 0 {
            return Ok(None);
        }
        Ok(Some(Part::LowRank { a: self.a.pack(tensor)?, bt: self.bt.pack(tensor)? }))
    }

    /// Without components of zeros.
    pub fn compact(&self) -> Self {
        let keep = |row: usize| self.a.steps[row].is_some();
        Self { a: self.a.rows_where(keep), bt: self.bt.rows_where(keep) }
    }
}

fn clear(levels: &mut Levels, row: usize) {
    levels.steps[row] = None;
    levels.levels[row * levels.cols..(row + 1) * levels.cols].fill(0);
}

/// The step of each row of a linear's factors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Steps {
    /// Of A (rank).
    pub a: Vec<Step>,
    /// Of Bᵀ (rank).
    pub bt: Vec<Step>,
}

impl Steps {
    /// Steps at which every row's rounding costs the same: `distortion` / sensitivity, but none so small that a row's largest
    /// value has no level.
    pub fn at(factors: &Factors, sensitivity: &Sensitivity, distortion: f32) -> Self {
        let of = |values: &[f32], width: usize, sensitivities: &[f32]| -> Vec<Step> {
            let rows = values.chunks(width).zip(sensitivities);
            rows.map(|(row, sensitivity)| {
                let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                Step::nearest((distortion / sensitivity.max(TINY)).max(largest / -(SMALLEST as f32)))
            })
            .collect()
        };
        Self { a: of(&factors.a, factors.cols, &sensitivity.a), bt: of(&factors.bt, factors.rows, &sensitivity.bt) }
    }
}

/// All linears at one distortion, zeros left out, and the bytes of their stream.
pub fn code(factors: &[Factors], sensitivities: &[Sensitivity], distortion: f32) -> (Vec<Coded>, usize) {
    let coded: Vec<Coded> = factors
        .par_iter()
        .zip(sensitivities)
        .map(|(factors, sensitivity)| {
            Coded::round(factors, &Steps::at(factors, sensitivity, distortion), DEAD).compact()
        })
        .collect();
    let bytes = coded_bytes(coded.iter().flat_map(|coded| [&coded.a, &coded.bt]));
    (coded, bytes)
}

/// The smallest distortion at which `size` of the coded factors is at most `bytes`, and the factors coded so.
///
/// # Errors
/// Those of `size`.
pub fn fit_to<E>(
    factors: &[Factors],
    sensitivities: &[Sensitivity],
    bytes: u64,
    mut size: impl FnMut(&[Coded]) -> Result<u64, E>,
) -> Result<(f32, Vec<Coded>), E> {
    let (mut low, mut high) = (-60.0f32, 60.0f32);
    let mut best = (high.exp2(), code(factors, sensitivities, high.exp2()).0);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        let (coded, stream) = code(factors, sensitivities, middle.exp2());
        // The stream alone is a lower bound that is quick to have.
        if stream as u64 <= bytes && size(&coded)? <= bytes {
            (high, best) = (middle, (middle.exp2(), coded));
        } else {
            low = middle;
        }
    }
    Ok(best)
}
