//! What a step learns from: answers, preferences between two answers, judged answers, a teacher's distributions, rewards.
//!
//! An [`Item`] is one thing to learn from with all that stays the same during a run, such as how likely the base finds it
//! (`prepare` works that out once, before anything has learnt: the model is then the base itself). [`pass`] takes items
//! forward, and back if asked. Items of several kinds may share a step.

mod preference;
mod rewarded;
mod taught;

pub use preference::{Judged, Pair};
pub use rewarded::{Asked, Rewarded};
pub use taught::Taught;

use crate::{
    Error, TrainConfig,
    batch::{self, Example},
    graph::{Graph, PackedBatch, loss::cross_entropy},
    progress::Progress,
};

/// One thing to learn from.
#[derive(Debug, Clone)]
pub enum Item {
    /// Tokens to be predicted: every target counts once.
    Answer(Example),
    /// Two answers to one prompt: counts once.
    Pair(Pair),
    /// An answer that was good or bad: counts once.
    Judged(Judged),
    /// An answer of a teacher: every target counts once.
    Taught(Taught),
    /// A prompt whose answers are drawn during the run; it becomes several [`Item::Rewarded`].
    Asked(Asked),
    /// An answer that was drawn and rewarded: counts once.
    Rewarded(Rewarded),
}

/// What a pass over some items found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Σ of the losses of all units.
    pub loss: f64,
    /// Units that were ranked as their data has it.
    pub right: usize,
    /// Units that can be ranked at all.
    pub ranked: usize,
}

impl std::ops::AddAssign for Score {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.right += other.right;
        self.ranked += other.ranked;
    }
}

impl Score {
    /// Share of ranked units that were ranked right; `None` where nothing is ranked.
    pub fn accuracy(&self) -> Option<f64> {
        (self.ranked > 0).then(|| self.right as f64 / self.ranked as f64)
    }
}

impl Item {
    /// What the mean loss of a step is a mean over.
    pub fn units(&self) -> usize {
        match self {
            Self::Answer(example) => example.targets(),
            Self::Taught(taught) => taught.student.targets(),
            Self::Pair(_) | Self::Judged(_) | Self::Asked(_) | Self::Rewarded(_) => 1,
        }
    }

    /// Tokens of its forward pass.
    pub fn tokens(&self) -> usize {
        self.examples().map(|example| example.tokens.len()).sum::<usize>() + self.to_come()
    }

    /// Tokens that are drawn during the run.
    fn to_come(&self) -> usize {
        // And the token that ends the answer.
        if let Self::Asked(asked) = self { asked.answer_len + 1 } else { 0 }
    }

    /// Its longest sequence.
    pub fn longest(&self) -> usize {
        let beside = match self {
            Self::Judged(judged) => Some(&judged.mismatched),
            Self::Taught(taught) => Some(&taught.teacher),
            Self::Answer(_) | Self::Pair(_) | Self::Asked(_) | Self::Rewarded(_) => None,
        };
        self.examples().chain(beside).map(|example| example.tokens.len()).max().unwrap_or(0) + self.to_come()
    }

    /// Its sequences, in the order in which they are learnt from.
    pub fn examples(&self) -> impl Iterator<Item = &Example> {
        let (first, second) = match self {
            Self::Answer(example) => (example, None),
            Self::Pair(pair) => (&pair.chosen, Some(&pair.rejected)),
            Self::Judged(judged) => (&judged.answer, None),
            Self::Taught(taught) => (&taught.student, None),
            Self::Asked(asked) => (&asked.prompt, None),
            Self::Rewarded(rewarded) => (&rewarded.example, None),
        };
        std::iter::once(first).chain(second)
    }
}

/// Works out what stays the same during a run. `graph` must still be the base.
///
/// # Errors
/// [`Error::Graph`].
pub fn prepare(graph: &Graph, items: &mut [Item], batch: usize, progress: &dyn Progress) -> Result<(), Error> {
    let needs = |item: &Item| matches!(item, Item::Pair(_) | Item::Judged(_) | Item::Taught(_));
    if !items.iter().any(needs) {
        return Ok(());
    }
    progress.begin("asking the base", items.len() as u64, "examples");
    for items in items.chunks_mut(batch) {
        preference::prepare(graph, items)?;
        taught::prepare(graph, items)?;
        progress.advance(items.len() as u64, "");
    }
    progress.end();
    Ok(())
}

/// Σ of the losses of `items`. With a `scale`, that times the gradient of the sum is added to what learns.
///
/// # Errors
/// [`Error::Graph`].
pub fn pass(graph: &Graph, config: &TrainConfig, items: &[&Item], scale: Option<f32>) -> Result<Score, Error> {
    let (mut answers, mut pairs, mut judged) = (Vec::new(), Vec::new(), Vec::new());
    let (mut taught, mut rewarded) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::Answer(example) => answers.push(example),
            Item::Pair(pair) => pairs.push(pair),
            Item::Judged(one) => judged.push(one),
            Item::Taught(one) => taught.push(one),
            Item::Rewarded(one) => rewarded.push(one),
            Item::Asked(_) => unreachable!("a prompt is answered before it is learnt from"),
        }
    }
    let mut score = Score::default();
    if !answers.is_empty() {
        let batch = batch::pack(answers);
        score.loss += graph.pass_by(&batch, scale.is_some(), |hidden, head| {
            let found = cross_entropy(hidden, head, &batch.targets, scale)?;
            Ok((found.loss, found.gradient))
        })?;
    }
    if !pairs.is_empty() {
        score += preference::pairs(graph, config, &pairs, scale)?;
    }
    if !judged.is_empty() {
        score += preference::judged(graph, config, &judged, scale)?;
    }
    if !taught.is_empty() {
        score.loss += taught::pass(graph, config, &taught, scale)?;
    }
    if !rewarded.is_empty() {
        score.loss += rewarded::pass(graph, &rewarded, scale)?;
    }
    Ok(score)
}

/// Packs `examples`, and says which of the batch's rows belong to each.
fn pack_with_rows<'a>(
    examples: impl Iterator<Item = &'a Example> + Clone,
) -> (PackedBatch, Vec<std::ops::Range<usize>>) {
    let mut from = 0;
    let rows = examples.clone().map(|example| {
        let to = from + example.targets();
        std::mem::replace(&mut from, to)..to
    });
    let rows = rows.collect();
    (batch::pack(examples), rows)
}
