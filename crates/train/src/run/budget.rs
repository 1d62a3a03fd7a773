//! The end of a run that trains for a byte budget: the rounded factors are trained to answer as the exact ones do.
//!
//! The exact ones teach, and not the data once more: further passes over a user's few conversations would learn those by
//! heart, and what was learnt already would be lost.

use crate::{
    Error,
    batch::Example,
    budget::{Coded, Factors, Lesson, Schedule, Student, Teacher, Watch, distil, header_bytes, size_of},
    graph::Graph,
    progress::Progress,
};
use bitdelta_delta::{Info, LinearDelta};
use bitdelta_model::Base;
use std::sync::atomic::AtomicBool;

/// Bytes kept free for figures that are written into the file after its size is settled.
const RESERVED: u64 = 64;

/// Rounds the factors that `graph` learnt so that the file takes at most `bytes`, training them on meanwhile, and leaves
/// the rounded ones in the graph. `info` is what the file will say of itself.
pub(super) fn round(
    base: &Base,
    graph: &Graph,
    examples: &[Example],
    (bytes, schedule): (u64, Schedule),
    info: &Info,
    (progress, stop): (&dyn Progress, &AtomicBool),
) -> Result<Vec<LinearDelta>, Error> {
    let student = Student::new(graph);
    let factors: Vec<Factors> = (0..base.linears().len()).map(|index| student.balanced(index)).collect();
    let room = bytes.saturating_sub(RESERVED);
    let stream = room.saturating_sub(header_bytes(base, info)?);
    let teacher = Teacher::of(graph, examples, progress)?;
    let (student, teacher) = (&student, &teacher);
    let watch = Watch::new(progress, stop);
    let done = distil(&Lesson { student, examples, teacher, schedule, watch }, &factors, stream)?;
    let coded = done.coded(room, |coded: &[Coded]| size_of(base, info, coded))?;
    let least = size_of(base, info, &coded)?;
    if least > room {
        return Err(Error::Budget { bytes, least: least + RESERVED });
    }
    for (index, coded) in coded.iter().enumerate() {
        student.put(index, coded);
    }
    Ok(crate::budget::variant_of(base, info.clone(), &coded)?.linears)
}
