//! Learning a teacher's distributions: KL(teacher ‖ student) at each token of an answer.
//!
//! The teacher is the base with something more in its prompt. What it says does not change during a run, so its last hidden
//! states are kept, from which the frozen head makes its distributions again (`graph/distil_loss.rs`).

use super::{Item, pack_with_rows};
use crate::{
    Error, TrainConfig,
    batch::{self, Example},
    graph::{Graph, distil_loss::kl, matrix::Matrix},
};

/// One answer after the student's prompt and after the teacher's.
#[derive(Debug, Clone)]
pub struct Taught {
    /// The prompt as it will be asked, and the answer, which counts.
    pub student: Example,
    /// The prompt with what the teacher is told, and the same answer.
    pub teacher: Example,
    /// The teacher's hidden states before each target, (targets, hidden), once prepared.
    hidden: Option<Matrix>,
}

impl Taught {
    /// Both must have the same targets.
    pub fn new(student: Example, teacher: Example) -> Self {
        assert_eq!(student.targets(), teacher.targets(), "one answer");
        Self { student, teacher, hidden: None }
    }
}

/// Asks the teacher.
pub(super) fn prepare(graph: &Graph, items: &mut [Item]) -> Result<(), Error> {
    let mut taught: Vec<&mut Taught> = items
        .iter_mut()
        .filter_map(|item| match item {
            Item::Taught(taught) => Some(taught),
            _ => None,
        })
        .collect();
    if taught.is_empty() {
        return Ok(());
    }
    let (batch, rows) = pack_with_rows(taught.iter().map(|one| &one.teacher));
    let hidden = graph.hidden(&batch)?;
    for (one, rows) in taught.iter_mut().zip(rows) {
        one.hidden = Some(hidden.select_rows(&rows.collect::<Vec<_>>()));
    }
    Ok(())
}

/// Σ over all targets, times `config.preference_weight`.
pub(super) fn pass(graph: &Graph, config: &TrainConfig, taught: &[&Taught], scale: Option<f32>) -> Result<f64, Error> {
    let batch = batch::pack(taught.iter().map(|one| &one.student));
    let mut values = Vec::new();
    for one in taught {
        let Some(hidden) = &one.hidden else { unreachable!("a run prepares its items before it passes them") };
        values.extend_from_slice(hidden.values());
    }
    let weight = config.preference_weight;
    graph.pass_by(&batch, scale.is_some(), |hidden, head| {
        let teacher = Matrix::new(hidden.rows(), hidden.cols(), values);
        let found = kl(hidden, &teacher, head, head, scale.map(|scale| scale * weight as f32))?;
        Ok((found.loss * weight, found.gradient))
    })
}
