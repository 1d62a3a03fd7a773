//! A variant of so many bytes: the difference of a pair, or what is trained, as low-rank factors whose levels are coded by
//! an entropy coder ([`bitdelta_delta::tread`]).
//!
//! ```text
//! fine-tune − base ── SVD of each linear ─▶ factors ── sensitivities ─▶ one distortion for all ── levels ─▶ file
//!                                              ▲                              │
//!                                              └──── distil: Adam on the ─────┘  levels in the forward pass, straight-
//!                                                    factors behind the levels   through gradients, KL to the fine-tune
//! ```
//!
//! *Who gets the bits.* A row of a factor with sensitivity s (the root of the mean squared gradient of the loss by its
//! elements) is rounded in steps of D / s. One D for all rows makes the loss's second-order rise by rounding equal
//! everywhere, which is the optimum (reverse water-filling): a row whose values stay below half its step becomes zeros
//! and costs nothing, so ranks and bits of each linear follow from D, and D from the budget by bisection.
//!
//! *What factors leave* is coded beside them where that gains more than further components (`sums.rs`).
//!
//! *Without data* the sensitivities are those of ‖Δ̂ − Δ‖²; *with data* they are measured, and the factors are then trained
//! through their rounding. Kinds that were tried and lost are in `docs/src/explanation/quality.md`.

mod calibrate;
mod course;
mod distil;
mod factors;
mod rate;
mod refit;
mod scales;
mod sums;
mod svd;

pub use calibrate::refine_codes;
pub use course::{LESSON, Watch};
use distil::Merged;
pub use distil::{Distillation, Lesson, Schedule, Teacher, distil};
pub use factors::{Factors, Student};
pub use rate::{Coded, Sensitivity, fit_to};
pub use refit::refit;
pub use scales::{SCALE_RATE, distil_scales};
use sums::{Pair, row_sensitivities};
pub use svd::truncated;

use crate::{
    Error, TrainConfig,
    batch::{self, Example},
    compress::{check_shapes, moved_vectors, tables_moved},
    data::Conversation,
    graph::{Adaptation, Graph, Keeping},
    progress::Progress,
};
use bitdelta_delta::{
    Extra, Info, LinearDelta, Part, Variant,
    metrics::{Distance, distance},
};
use bitdelta_model::{Base, chat::Template};

/// Bits an entry that the largest rank is chosen by where a pair's factors learn: at fewer, most levels are zero and more
/// components only cost time.
const BITS_AN_ENTRY: f64 = 1.2;
/// The same where factors are trained from the start: what they learn is spread over all of them, so none is to be lost.
const BITS_AN_ENTRY_TRAINED: f64 = 2.0;
/// The same without data: components beyond cost nothing, and one distortion finds how many are of use.
const BITS_AN_ENTRY_WITHOUT_DATA: f64 = 0.3;
/// Adam's rate at the start, in steps of the rounding, where factors have far to go: those of a pair, of few components each
/// ([`Schedule::for_rank`]).
const RATE: f64 = 0.2;
/// The same where rounding is all that is between them and their teacher. (At 0.2 they went past it: on the conversations
/// of the first pass the divergence was four times as large in the second.)
pub const TRAINED_RATE: f64 = 0.05;
/// Norms and biases may take one part of so many of a budget.
const EXTRAS_SHARE: u64 = 8;
/// Bytes of a manifest for distinct shapes with their ranks and bits, while those are not known.
const CLASSES_BYTES: u64 = 400;
/// Largest rank.
const MOST_RANK: usize = 128;

/// How a budget is met.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// The file's size, header and all.
    pub bytes: u64,
    /// Largest rank; `None` goes by the bytes.
    pub rank: Option<usize>,
    /// How factors are trained where there are examples.
    pub schedule: Schedule,
}

impl Options {
    /// A budget with everything else as it is best.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, rank: None, schedule: Schedule { epochs: 4.0, batch: 8, rate: RATE, seed: 42 } }
    }
}

/// Conversations as the model sees them, of which the answers count; what is longer than a training run takes is cut, and
/// what has no answer is left out.
///
/// # Errors
/// A conversation that the template cannot render.
pub fn examples(base: &Base, template: &Template, conversations: &[Conversation]) -> Result<Vec<Example>, Error> {
    let config = TrainConfig::default();
    let mut examples = conversations
        .iter()
        .map(|conversation| Example::new(&base.tokenizer, template, &conversation.messages, &config))
        .collect::<Result<Vec<_>, Error>>()?;
    for example in &mut examples {
        example.cut(config.cutoff_len);
    }
    examples.retain(|example| example.targets() > 0);
    Ok(examples)
}

/// The difference of a pair in at most `options.bytes`, trained towards the fine-tuned model on `examples` where there are
/// any. `info` is what the file will say about itself, whose size counts too; `watch` follows the lesson.
///
/// # Errors
/// [`Error::Budget`] when not even the header fits; models that are no pair; what training reports.
pub fn compress_to(
    base: &Base,
    finetuned: &Base,
    examples: &[Example],
    options: &Options,
    info: Info,
    watch: Watch<'_>,
) -> Result<Variant, Error> {
    let progress = watch.progress;
    check_shapes(base, finetuned)?;
    let extras = affordable(base, finetuned, options.bytes, progress)?;
    let learns = !examples.is_empty() && options.schedule.epochs > 0.0;
    let bits = if learns { BITS_AN_ENTRY } else { BITS_AN_ENTRY_WITHOUT_DATA };
    let rank = options.rank.unwrap_or_else(|| rank_at(base, options.bytes, bits));
    let factors = factors_of_pair(base, finetuned, rank, options.schedule.seed, progress)?;
    let rows = match examples.is_empty() || !sums::are_affordable(base, options.bytes) {
        true => Vec::new(),
        false => row_sensitivities(finetuned, examples, options.schedule.seed, progress)?,
    };
    let weights = |index: usize| rows.get(index).map_or(&[][..], Vec::as_slice);
    let each = factors.iter().enumerate();
    let sensitivities: Vec<Sensitivity> =
        each.map(|(index, factors)| Sensitivity::of_product_weighted(factors, weights(index))).collect();
    let whole = |linears| Variant { extras: extras.clone(), ..Variant::new(info.clone(), linears) };
    let size = |variant: &Variant| Ok::<_, Error>(variant.to_bytes()?.len() as u64);
    let alone = |coded: &[Coded]| Ok::<_, Error>(whole(linears_of(base, coded, &[])?));
    let (distortion, coded) = fit_to(&factors, &sensitivities, options.bytes, |coded| size(&alone(coded)?))?;
    let pair = Pair { base, finetuned, factors: &factors, rows: &rows };
    let sums = pair.fit_to(distortion, options.bytes, |linears| size(&whole(linears)), progress)?;
    let sums = sums.map(|sums| {
        let mut linears = linears_of(base, &sums.factors, &sums.rests)?;
        for (linear, distance) in linears.iter_mut().zip(&sums.distances) {
            linear.relative_error = Some(distance.relative());
        }
        Ok::<_, Error>(whole(linears))
    });
    let sums = sums.transpose()?;
    let variant = if !learns {
        sums.map_or_else(|| alone(&coded), Ok)?
    } else {
        let all = [examples, watch.watched].concat();
        let teacher = &Teacher::new(finetuned, base, &all, progress)?;
        let longest = batch::longest(&all);
        let adaptation = Adaptation::LowRank { rank, scale: 1.0, seed: 0 };
        let still = &Merged { base, variant: &whole(Vec::new()) };
        let graph = Graph::kept(&base.config, still, adaptation, Keeping::FAST, longest, false)?;
        let student = &Student::new(&graph);
        let beside: usize = extras.iter().map(|extra| 2 * extra.values.len()).sum();
        let stream = options.bytes.saturating_sub(header_bytes(base, &info)? + beside as u64);
        let schedule = options.schedule.for_rank(rank);
        let done = distil(&Lesson { student, examples, teacher, schedule, watch }, &factors, stream)?;
        let learnt = alone(&done.coded(options.bytes, |coded| size(&alone(coded)?))?)?;
        // Nothing but the answers can tell whether factors that learnt or a sum that did not is nearer.
        let divergence = |variant: &Variant| teacher.divergence_of(base, variant, examples);
        match sums {
            Some(sums) if divergence(&sums)? < divergence(&learnt)? => sums,
            _ => learnt,
        }
    };
    match size(&variant)? {
        bytes if bytes <= options.bytes => Ok(variant),
        least => Err(Error::Budget { bytes: options.bytes, least }),
    }
}

/// The norms and biases that moved, where they are a small part of the budget. What is left out is said.
fn affordable(base: &Base, finetuned: &Base, bytes: u64, progress: &dyn Progress) -> Result<Vec<Extra>, Error> {
    let extras = moved_vectors(base, finetuned)?;
    if tables_moved(base, finetuned)? {
        progress.say("warning: the embedding or head moved too; a budget keeps the linears' change alone");
    }
    let needed: u64 = extras.iter().map(|extra| 2 * extra.values.len() as u64).sum();
    if needed * EXTRAS_SHARE <= bytes {
        return Ok(extras);
    }
    progress
        .say(&format!("warning: norms and biases moved too, by {needed} bytes of f16, which this budget leaves out"));
    Ok(Vec::new())
}

/// What suits a pair whose user names no size: a quarter of a bit a weight, which keeps more of a fine-tune than one bit a
/// weight does, at a fifth of the bytes and at more speed (the book, "Quality per byte"). `None` where an embedding or a head
/// moved, which dense codes keep and a budget leaves out.
///
/// # Errors
/// Models that are no pair, or an unreadable tensor.
pub fn default_bytes(base: &Base, finetuned: &Base) -> Result<Option<u64>, Error> {
    /// Of a linear in the manifest and its norms, and of the header: what counts in small models alone.
    const LINEAR_BYTES: u64 = 256;
    const HEADER_BYTES: u64 = 4096;
    check_shapes(base, finetuned)?;
    let tables = tables_moved(base, finetuned)?;
    Ok((!tables).then(|| bytes_at(base, 0.25) + LINEAR_BYTES * base.linears().len() as u64 + HEADER_BYTES))
}

/// Bytes that so many bits for each weight of the linears come to.
pub fn bytes_at(base: &Base, bits: f64) -> u64 {
    (bits * base.linear_weights() as f64 / 8.0) as u64
}

/// Bytes of the file that these factors make.
pub(crate) fn size_of(base: &Base, info: &Info, coded: &[Coded]) -> Result<u64, Error> {
    Ok(variant_of(base, info.clone(), coded)?.to_bytes()?.len() as u64)
}

/// About what a file takes beside its coded stream: the header, the description of each linear, the info.
pub(crate) fn header_bytes(base: &Base, info: &Info) -> Result<u64, Error> {
    Ok(size_of(base, info, &vec![Coded::default(); base.linears().len()])? + CLASSES_BYTES)
}

/// The rank at which `bytes` leave about two bits for each entry of all factors.
pub fn rank_for(base: &Base, bytes: u64) -> usize {
    rank_at(base, bytes, BITS_AN_ENTRY_TRAINED)
}

fn rank_at(base: &Base, bytes: u64, bits_an_entry: f64) -> usize {
    let entries: u64 = base.linears().iter().map(|linear| (linear.rows + linear.cols) as u64).sum();
    let rank = (8.0 * bytes as f64 / (bits_an_entry * entries as f64)).round() as usize;
    let narrowest = base.linears().iter().map(|linear| linear.rows.min(linear.cols)).min().unwrap_or(1);
    rank.clamp(1, MOST_RANK.min(narrowest))
}

/// The difference of a pair as factors of `rank`, linear by linear, so that memory holds one difference at a time.
///
/// # Errors
/// An unreadable tensor, or NaN and infinity in one.
pub fn factors_of_pair(
    base: &Base,
    finetuned: &Base,
    rank: usize,
    seed: u64,
    progress: &dyn Progress,
) -> Result<Vec<Factors>, Error> {
    progress.begin("singular values", base.linears().len() as u64, "tensors");
    let mut factors = Vec::with_capacity(base.linears().len());
    for linear in base.linears() {
        let mut delta = finetuned.tensor_f32(&linear.name)?;
        let before = base.tensor_f32(&linear.name)?;
        delta.iter_mut().zip(&before).for_each(|(after, before)| *after -= before);
        bitdelta_delta::quantize::check(&linear.name, &delta, linear.rows, linear.cols)?;
        factors.push(truncated(delta, linear.rows, linear.cols, rank, seed)?);
        progress.advance(1, "");
    }
    progress.end();
    Ok(factors)
}

/// A variant of coded factors; components that became zeros are left out.
///
/// # Errors
/// None that coded factors give.
pub fn variant_of(base: &Base, info: Info, coded: &[Coded]) -> Result<Variant, Error> {
    Ok(Variant::new(info, linears_of(base, coded, &[])?))
}

/// Linears of coded factors, and beside each what is kept of its rest, where there is any.
fn linears_of(base: &Base, coded: &[Coded], rests: &[Option<Part>]) -> Result<Vec<LinearDelta>, Error> {
    let linears = base.linears().iter().zip(coded).enumerate().map(|(index, (linear, coded))| {
        let mut parts = Vec::from_iter(coded.part(&linear.name)?);
        parts.extend(rests.get(index).cloned().flatten());
        Ok(LinearDelta { rows: linear.rows, cols: linear.cols, parts, relative_error: None })
    });
    linears.collect()
}

/// Records each linear's relative error against the pair; returns that of all together.
///
/// # Errors
/// An unreadable tensor.
pub fn measure_errors(variant: &mut Variant, base: &Base, finetuned: &Base) -> Result<f32, Error> {
    let mut total = Distance::default();
    for (delta, linear) in variant.linears.iter_mut().zip(base.linears()) {
        let (before, mut after) = (base.tensor_f32(&linear.name)?, finetuned.tensor_f32(&linear.name)?);
        after.iter_mut().zip(&before).for_each(|(after, before)| *after -= before);
        let distance = distance(&delta.parts, &after, linear.cols);
        delta.relative_error = Some(distance.relative());
        total = total + distance;
    }
    Ok(total.relative())
}
