//! A PEFT adapter as a variant.
//!
//! LoRA and rsLoRA are what a low-rank part is: the factors stay as the adapter's file has them, to the bit, or are rotated,
//! balanced and quantised: to a size, and at 2 and 3 bits, as one budget for all factors, which goes where it matters
//! ([`crate::budget`]: components by their size, levels entropy-coded), above with as many bits for every entry. DoRA is not low-rank: with s·B·A the change, n the norms
//! of the rows of W + s·B·A and m its magnitudes, the adapted weight is
//!
//! ```text
//! W' = g ⊙ (W + s·B·A)   g = m ÷ n        Δ = s·(g ⊙ B)·A  +  (g − 1) ⊙ W
//! ```
//!
//! whose first term is low-rank again and whose second is the base's rows, each stretched a little: that one is kept in
//! codes of [`DORA_BITS`] bits (at least [`DORA_BITS_LEAST`] where fewer are asked for, and so many under a size), with the
//! error stated as for any dense part.
//! Whole tensors (`modules_to_save`, biases) become differences from the base, in f16 or in codes.

use crate::{
    Error,
    budget::{Coded, Factors as Balanced, Sensitivity, fit_to},
    progress::Progress,
};
use bitdelta_delta::{
    BitDeltaConfig, Extra, Info, LinearDelta, Part, Variant, exact_factors, factor,
    file::coded_bytes,
    lowrank::balance,
    metrics::{Distance, distance},
    quantize,
    quantize::{Codes, pack},
};
use bitdelta_model::{Adapter, Base, TensorRef, adapter::Factors, chat::Template};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use std::convert::Infallible;

/// The most bits an entry at which one budget for all factors is better than as many bits for each: a coded level has four.
const BITS_AS_BUDGET: u8 = 3;
/// Bits of the stretched rows of a DoRA adapter, unless fewer are asked for.
pub const DORA_BITS: u8 = 8;
/// The fewest bits of the stretched rows: they are as large as the base's own.
pub const DORA_BITS_LEAST: u8 = 4;
/// Inputs that share a scale in dense parts.
const GROUP: usize = 64;

/// What became of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// "lora", "rslora" or "dora".
    pub method: &'static str,
    /// The largest rank.
    pub rank: usize,
    /// Numbers that the adapter holds.
    pub parameters: u64,
    /// Linears with a delta.
    pub linears: usize,
    /// Tables (embedding, untied head) with a delta.
    pub tables: usize,
    /// Vectors (norms, biases) with a delta.
    pub vectors: usize,
    /// Weights in the linears.
    pub weights: u64,
    /// ‖Δ̂ − Δ‖ ÷ ‖Δ‖ over all matrices; 0 where all factors are kept as they are.
    pub relative_error: f32,
    /// The matrix with the largest relative error, and that error.
    pub worst: Option<(String, f32)>,
    /// Sentences that the user should read.
    pub warnings: Vec<String>,
}

/// How an adapter's factors are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// As they are.
    Exactly,
    /// In so many bits an entry, 1 to 8.
    Bits(u8),
    /// In what a file of so many bytes leaves for them.
    Bytes(u64),
}

impl Keep {
    /// Whether all factors share what there is for them.
    fn shares(self) -> bool {
        match self {
            Self::Exactly => false,
            Self::Bits(bits) => bits <= BITS_AS_BUDGET,
            Self::Bytes(_) => true,
        }
    }

    /// Bits of what is not low-rank; `None` keeps it as it is.
    fn dense_bits(self) -> Option<u8> {
        match self {
            Self::Exactly => None,
            Self::Bits(bits) => Some(bits),
            Self::Bytes(_) => Some(DORA_BITS_LEAST),
        }
    }
}

/// Makes a variant of `base` out of `adapter`.
///
/// # Errors
/// A value that is not finite, named; bits out of range; [`Error::Budget`] where a size does not hold what has no factors.
pub fn import(base: &Base, adapter: &Adapter, keep: Keep, progress: &dyn Progress) -> Result<(Variant, Report), Error> {
    if let Keep::Bits(bits) = keep
        && !(1..=8).contains(&bits)
    {
        return Err(Error::setting("bits", format!("{bits}: 1 to 8 bits a factor's entry")));
    }
    adapter.warnings().iter().for_each(|warning| progress.say(warning));
    if let Keep::Bytes(bytes) = keep {
        // A size that holds more than coded levels say is used for more.
        for finer in [Keep::Exactly, Keep::Bits(8)] {
            let found = import_as(base, adapter, finer, progress)?;
            if found.0.to_bytes()?.len() as u64 <= bytes {
                return Ok(found);
            }
        }
    }
    import_as(base, adapter, keep, progress)
}

/// Each kind of [`Keep`] by itself.
fn import_as(base: &Base, adapter: &Adapter, keep: Keep, progress: &dyn Progress) -> Result<(Variant, Report), Error> {
    let report = Report {
        method: adapter.method(),
        rank: adapter.rank(),
        parameters: adapter.parameters(),
        linears: 0,
        tables: 0,
        vectors: 0,
        weights: 0,
        relative_error: 0.0,
        worst: None,
        warnings: adapter.warnings().to_vec(),
    };
    progress.begin("importing", base.matrices().count() as u64, "matrices");
    let template = base.tokenizer.template_id(&Template::Model);
    let mut info = Info::new(base.fingerprint(), &base.name, BitDeltaConfig::default(), &template);
    info.notes.insert("method".into(), json!("import"));
    info.notes.insert("adapter".into(), json!({ "method": report.method, "rank": report.rank }));
    match keep {
        Keep::Exactly => info.notes.insert("factor_bits".into(), json!("as the adapter's")),
        Keep::Bits(bits) => info.notes.insert("factor_bits".into(), json!(bits)),
        Keep::Bytes(bytes) => info.notes.insert("budget".into(), json!(bytes)),
    };
    if let Some(name) = adapter.trained_on() {
        info.notes.insert("adapter_base".into(), json!(name.chars().take(200).collect::<String>()));
    }

    let mut import = Import { base, adapter, keep, total: Distance::default(), report, waiting: Vec::new() };
    let matrices = import.matrices(progress)?;
    let extras = import.vectors()?;
    let mut variant = Variant { extras, ..Variant::new(info, matrices) };
    import.code(&mut variant)?;
    progress.end();
    Ok((variant, import.report))
}

/// The work in hand.
struct Import<'a> {
    base: &'a Base,
    adapter: &'a Adapter,
    keep: Keep,
    total: Distance,
    report: Report,
    /// Factors that share one budget, and the matrix that each belongs to.
    waiting: Vec<(usize, Balanced)>,
}

impl Import<'_> {
    /// The linears, and the tables where one of them changed.
    fn matrices(&mut self, progress: &dyn Progress) -> Result<Vec<LinearDelta>, Error> {
        let linears = self.base.linears().len();
        let changed = |table: &TensorRef| self.adapter.tensors().any(|name| name == table.name);
        let tables = if self.base.tables().any(changed) { self.base.tables().count() } else { 0 };
        let mut deltas = Vec::with_capacity(linears + tables);
        for (index, matrix) in self.base.matrices().take(linears + tables).enumerate() {
            let (delta, waits) = match self.waits(matrix)? {
                Some(factors) => {
                    self.waiting.push((index, factors));
                    (
                        LinearDelta { rows: matrix.rows, cols: matrix.cols, parts: Vec::new(), relative_error: None },
                        true,
                    )
                }
                None => (self.delta(matrix)?, false),
            };
            let moved = waits || !delta.parts.is_empty();
            if index < linears {
                self.report.weights += matrix.rows as u64 * matrix.cols as u64;
                self.report.linears += usize::from(moved);
            } else {
                self.report.tables += usize::from(moved);
            }
            deltas.push(delta);
            progress.advance(1, "");
        }
        Ok(deltas)
    }

    /// The factors of a plain low-rank matrix that shares the budget of all.
    fn waits(&self, matrix: &TensorRef) -> Result<Option<Balanced>, Error> {
        if !self.keep.shares() {
            return Ok(None);
        }
        let Some(Factors { rank, a, mut b, scale, magnitude: None }) = self.adapter.factors(&matrix.name)? else {
            return Ok(None);
        };
        let (rows, cols) = (matrix.rows, matrix.cols);
        // Checks all values.
        exact_factors(&matrix.name, &a, &b, (rows, rank, cols), scale)?;
        b.iter_mut().for_each(|b| *b *= scale);
        let (a, bt) = balance(&a, &b, (rows, rank, cols));
        Ok(Some(Balanced { rows, cols, a, bt }))
    }

    /// Puts the waiting factors into their matrices, all at one distortion: in so many bits an entry on average, or so that
    /// the file has its size.
    fn code(&mut self, variant: &mut Variant) -> Result<(), Error> {
        let (places, factors): (Vec<usize>, Vec<Balanced>) = std::mem::take(&mut self.waiting).into_iter().unzip();
        let sensitivities: Vec<Sensitivity> = factors.iter().map(Sensitivity::of_product).collect();
        let base = self.base;
        let names: Vec<&str> = base.matrices().map(|matrix| matrix.name.as_str()).collect();
        let with = |coded: &[Coded]| {
            let mut variant = variant.clone();
            for (place, coded) in places.iter().zip(coded) {
                variant.linears[*place].parts.extend(coded.part(names[*place])?);
            }
            Ok::<_, Error>(variant)
        };
        let coded = match self.keep {
            Keep::Exactly => Vec::new(),
            Keep::Bits(bits) => {
                let entries: usize = factors.iter().map(|factors| factors.a.len() + factors.bt.len()).sum();
                let stream = |coded: &[Coded]| coded_bytes(coded.iter().flat_map(|coded| [&coded.a, &coded.bt])) as u64;
                let found = fit_to(&factors, &sensitivities, entries as u64 * u64::from(bits) / 8, |coded| {
                    Ok::<_, Infallible>(stream(coded))
                });
                found.unwrap_or_else(|never| match never {}).1
            }
            Keep::Bytes(bytes) => {
                let size = |coded: &[Coded]| Ok::<_, Error>(with(coded)?.to_bytes()?.len() as u64);
                fit_to(&factors, &sensitivities, bytes, size)?.1
            }
        };
        *variant = with(&coded)?;
        for (place, factors) in places.into_iter().zip(&factors) {
            let matrix = &mut variant.linears[place];
            let here = distance(&matrix.parts, &factors.product(), matrix.cols);
            matrix.relative_error = Some(self.count(names[place], here));
        }
        self.report.relative_error = self.total.relative();
        let Keep::Bytes(bytes) = self.keep else { return Ok(()) };
        match variant.to_bytes()?.len() as u64 {
            least if least > bytes => Err(Error::Budget { bytes, least }),
            _ => Ok(()),
        }
    }

    /// Adds a matrix's distance to the report; its relative error.
    fn count(&mut self, name: &str, here: Distance) -> f32 {
        self.total = self.total + here;
        let error = here.relative();
        if self.report.worst.as_ref().is_none_or(|(_, worst)| error > *worst) {
            self.report.worst = Some((name.to_owned(), error));
        }
        error
    }

    fn delta(&mut self, matrix: &TensorRef) -> Result<LinearDelta, Error> {
        let TensorRef { name, rows, cols, .. } = matrix;
        let (rows, cols) = (*rows, *cols);
        let (parts, exact) = if let Some(factors) = self.adapter.factors(name)? {
            self.adapted(name, factors, (rows, cols))?
        } else if let Some(whole) = self.adapter.whole(name) {
            let base = self.base.tensor_f32(name)?;
            let delta: Vec<f32> = whole.par_iter().zip(&base).map(|(whole, base)| whole - base).collect();
            (vec![self.dense(name, &delta, rows, cols)?], delta)
        } else {
            return Ok(LinearDelta { rows, cols, parts: Vec::new(), relative_error: Some(0.0) });
        };
        // Plain factors that are kept as they are have nothing to be measured against.
        let here = match exact.is_empty() {
            true => Distance::default(),
            false => distance(&parts, &exact, cols),
        };
        let error = self.count(name, here);
        Ok(LinearDelta { rows, cols, parts, relative_error: Some(error) })
    }

    /// The parts of an adapted matrix, and the delta that they stand for; none where they are exactly that.
    fn adapted(
        &self,
        name: &str,
        factors: Factors,
        (rows, cols): (usize, usize),
    ) -> Result<(Vec<Part>, Vec<f32>), Error> {
        let Factors { rank, a, mut b, scale, magnitude } = factors;
        let shape = (rows, rank, cols);
        let Some(magnitude) = magnitude else {
            let Some(bits) = self.keep.dense_bits() else {
                return Ok((vec![exact_factors(name, &a, &b, shape, scale)?], Vec::new()));
            };
            b.iter_mut().for_each(|b| *b *= scale);
            let part = factor(name, &a, &b, shape, bits)?;
            return Ok((vec![part], product(&a, &b, shape)));
        };
        // Checks all values.
        exact_factors(name, &a, &b, shape, scale)?;
        b.iter_mut().for_each(|b| *b *= scale);
        let weights = self.base.tensor_f32(name)?;
        let mut adapted = product(&a, &b, shape);
        adapted.par_iter_mut().zip(&weights).for_each(|(adapted, weight)| *adapted += weight);
        let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let gains: Vec<f32> =
            adapted.par_chunks(cols).zip(&magnitude).map(|(row, m)| (f64::from(*m) / norm(row)) as f32).collect();
        if let Some(row) = gains.iter().position(|gain| !gain.is_finite()) {
            let problem = format!("{name}: row {row} has magnitude {} over a norm of zero", magnitude[row]);
            return Err(Error::setting("adapter", problem));
        }
        b.chunks_mut(rank).zip(&gains).for_each(|(b, gain)| b.iter_mut().for_each(|b| *b *= gain));
        let stretched: Vec<f32> =
            weights.par_iter().enumerate().map(|(at, weight)| (gains[at / cols] - 1.0) * weight).collect();
        let (low_rank, bits) = match self.keep.dense_bits() {
            Some(bits) => (factor(name, &a, &b, shape, bits)?, bits.max(DORA_BITS_LEAST)),
            None => (exact_factors(name, &a, &b, shape, 1.0)?, DORA_BITS),
        };
        let dense = Part::Dense(pack(name, &stretched, rows, cols, codes(bits, cols))?);
        adapted
            .par_iter_mut()
            .zip(&weights)
            .enumerate()
            .for_each(|(at, (adapted, weight))| *adapted = gains[at / cols] * *adapted - weight);
        Ok((vec![low_rank, dense], adapted))
    }

    /// A difference that has no factors.
    fn dense(&self, name: &str, delta: &[f32], rows: usize, cols: usize) -> Result<Part, Error> {
        match self.keep.dense_bits() {
            Some(bits) => Ok(Part::Dense(pack(name, delta, rows, cols, codes(bits, cols))?)),
            None => Ok(quantize(name, delta, rows, cols, &exact_config())?),
        }
    }

    /// The norms and biases that the adapter replaces.
    fn vectors(&mut self) -> Result<Vec<Extra>, Error> {
        let mut extras = Vec::new();
        for (tensor, reference) in self.base.tensors().iter().enumerate().filter(|(_, tensor)| tensor.rows == 1) {
            let Some(whole) = self.adapter.whole(&reference.name) else { continue };
            let base = self.base.tensor_f32(&reference.name)?;
            let delta: Vec<f32> = whole.iter().zip(&base).map(|(whole, base)| whole - base).collect();
            if delta.iter().all(|&x| x == 0.0) {
                continue;
            }
            if let Part::Full { values, .. } = quantize(&reference.name, &delta, 1, delta.len(), &exact_config())? {
                extras.push(Extra { tensor, values });
                self.report.vectors += 1;
            }
        }
        Ok(extras)
    }
}

/// f16, nothing clipped.
fn exact_config() -> BitDeltaConfig {
    BitDeltaConfig { enable_compression: false, clip_outliers: false, ..BitDeltaConfig::default() }
}

fn codes(bits: u8, cols: usize) -> Codes {
    Codes { bits, group: GROUP.min(cols), symmetric: true, clip: None }
}

/// b (rows, rank) · a (rank, cols)
fn product(a: &[f32], b: &[f32], (rows, rank, cols): (usize, usize, usize)) -> Vec<f32> {
    let mut out = vec![0.0; rows * cols];
    out.par_chunks_mut(cols).zip(b.par_chunks(rank)).for_each(|(out, b)| {
        for (factor, a) in b.iter().zip(a.chunks_exact(cols)) {
            out.iter_mut().zip(a).for_each(|(out, a)| *out += factor * a);
        }
    });
    out
}
