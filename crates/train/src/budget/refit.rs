//! A variant fitted anew to a base that moved: what it keeps starts from what it was and is trained so that the new base
//! with it answers as the old base did with it.

use super::{
    CLASSES_BYTES, Coded, Factors, Lesson, RATE, SCALE_RATE, Schedule, Student, Teacher, Watch, distil, distil::Merged,
    distil_scales,
};
use crate::{
    Error,
    batch::{self, Example},
    graph::{Adaptation, Graph, Keeping},
};
use bitdelta_delta::{Part, Variant, tread::Levels};
use bitdelta_model::Base;

/// `variant` of base `from`, fitted to the base `to` on `examples`: the scales of dense codes, or else low-rank factors
/// through their rounding, in a file of at most `bytes`. Other parts stay as they are. Nothing is watched here.
///
/// # Errors
/// [`Error::Setting`] without examples or without codes or factors; [`Error::Diverged`]; what the graph reports.
pub fn refit(
    (from, to): (&Base, &Base),
    variant: &Variant,
    examples: &[Example],
    bytes: u64,
    watch: Watch<'_>,
) -> Result<Variant, Error> {
    if examples.is_empty() {
        return Err(Error::setting("data", "fitting a variant anew needs conversations with an answer"));
    }
    let teacher =
        &Teacher::with_weights((&from.config, &Merged { base: from, variant }), to, examples, watch.progress)?;
    let mut fitted = variant.clone();
    let linears = &mut fitted.linears[..to.linears().len()];
    let schedule = Schedule { epochs: 2.0, batch: 8, rate: SCALE_RATE, seed: 42 };
    // Scales of codes in the stream are steps, which only few values can be.
    let scaled = |part: &Part| matches!(part, Part::Dense(matrix) if Levels::of_matrix(matrix).is_none());
    if linears.iter().flat_map(|linear| &linear.parts).any(scaled) {
        distil_scales(to, teacher, &mut fitted, examples, schedule, watch)?;
        return Ok(fitted);
    }
    let factors: Vec<Factors> =
        linears.iter_mut().map(|linear| take_factors(&mut linear.parts, (linear.rows, linear.cols))).collect();
    let rank = factors.iter().map(Factors::rank).max().unwrap_or(0);
    if rank == 0 {
        return Err(Error::setting(
            "method",
            "the variant holds neither dense codes nor low-rank factors, which alone learn",
        ));
    }
    let factors: Vec<Factors> = factors.into_iter().map(|factors| factors.padded(rank)).collect();
    // What does not learn is a part of the weights that the student reads.
    let rest = fitted;
    let whole = |coded: &[Coded]| {
        let mut all = rest.clone();
        for ((delta, coded), linear) in all.linears.iter_mut().zip(coded).zip(to.linears()) {
            delta.parts.splice(0..0, coded.part(&linear.name)?);
            delta.relative_error = None;
        }
        Ok::<_, Error>(all)
    };
    let size = |coded: &[Coded]| Ok::<_, Error>(whole(coded)?.to_bytes()?.len() as u64);
    let longest = batch::longest(examples);
    let adaptation = Adaptation::LowRank { rank, scale: 1.0, seed: 0 };
    let graph =
        Graph::kept(&to.config, &Merged { base: to, variant: &rest }, adaptation, Keeping::FAST, longest, false)?;
    let student = &Student::new(&graph);
    let beside = rest.to_bytes()?.len() as u64 + CLASSES_BYTES;
    let schedule = Schedule { rate: RATE, ..schedule }.for_rank(rank);
    let lesson = Lesson { student, examples, teacher, schedule, watch };
    let done = distil(&lesson, &factors, bytes.saturating_sub(beside))?;
    whole(&done.coded(bytes, size)?)
}

/// Takes the low-rank parts out of a linear's, as one.
fn take_factors(parts: &mut Vec<Part>, (rows, cols): (usize, usize)) -> Factors {
    let mut factors = Factors { rows, cols, a: Vec::new(), bt: Vec::new() };
    parts.retain(|part| match part {
        Part::LowRank { a, bt } => {
            factors.a.extend(a.dequantize());
            factors.bt.extend(bt.dequantize());
            false
        }
        _ => true,
    });
    factors
}
