//! The course of a lesson: step after step towards the teacher; left with a checkpoint and taken up again; ended where it gains
//! no more.

use super::{
    Schedule, Teacher,
    distil::{divergence, divergence_of},
};
use crate::{
    Error, TrainConfig,
    batch::{self, Example},
    checkpoint,
    graph::{Graph, matrix::Matrix, parameter::Parameter},
    optimiser::AdamW,
    progress::Progress,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// The name of a lesson's phase in its [`Progress`]: while it lasts, a raised [`Watch::stop`] is heeded.
pub const LESSON: &str = "distilling";
/// Times in a pass that what is watched is measured, and a checkpoint is written.
const LOOKS_PER_PASS: usize = 4;

/// Who follows a lesson, and when it ends.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Where it is told how far it is.
    pub progress: &'a dyn Progress,
    /// Raised, it ends the lesson: where there is a checkpoint with [`Error::Interrupted`], and otherwise with what was learnt.
    pub stop: &'a AtomicBool,
    /// The folder of its checkpoints, from which the same lesson goes on.
    pub checkpoint: Option<&'a Path>,
    /// Conversations that are not learnt from. What came nearest to the teacher on them is kept; none: what came last.
    pub watched: &'a [Example],
    /// Measurements on `watched` without a gain, four to a pass, after which the lesson ends.
    pub patience: usize,
}

/// What learns.
pub(super) trait Learner {
    /// One step along the gradients that its graph has gathered.
    fn learn(&mut self, rate: f64);
    /// What it multiplies with, as it has learnt so far.
    fn graph(&self) -> &Graph;
    /// What the optimiser moves, each under a name of its own.
    fn parameters(&self) -> Vec<Arc<Parameter>>;
    /// What moves it.
    fn optimiser(&mut self) -> &mut AdamW;
    /// What a checkpoint needs beside both.
    fn notes(&self) -> Value;
    /// Takes what [`Self::notes`] gave; the parameters have their values already.
    fn restore(&mut self, notes: &Value) -> Result<(), Error>;
}

/// How far a lesson is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// Hash of all that decides the result.
    identity: String,
    losses: Vec<f64>,
    notes: Value,
    /// The least divergence on what is watched, and what belongs to it.
    best: Option<(f64, Value)>,
    since_best: usize,
}

/// A lesson under way.
struct Course<'a> {
    learner: &'a mut dyn Learner,
    watch: Watch<'a>,
    state: State,
    best: Option<Vec<Matrix>>,
}

impl<'a> Watch<'a> {
    /// Nothing is watched, and nothing kept to go on from.
    pub fn new(progress: &'a dyn Progress, stop: &'a AtomicBool) -> Self {
        Self { progress, stop, checkpoint: None, watched: &[], patience: usize::MAX }
    }
}

/// What moves these parameters in a lesson.
pub(super) fn adam(parameters: &[Arc<Parameter>]) -> AdamW {
    let config = TrainConfig { weight_decay: 0.0, adam_beta2: 0.99, ..TrainConfig::default() };
    AdamW::new(&config, parameters)
}

/// Takes `learner` through all steps of `schedule` over `examples`. `teacher` was made of them and then of what is watched.
/// Returns the mean divergence of a token in each step.
///
/// # Errors
/// [`Error::Diverged`], [`Error::Interrupted`], a checkpoint that cannot be written, and what the learner reports.
pub(super) fn follow(
    learner: &mut dyn Learner,
    (examples, teacher): (&[Example], &Teacher),
    schedule: Schedule,
    watch: Watch<'_>,
) -> Result<Vec<f64>, Error> {
    let total = schedule.steps(examples.len());
    let look = schedule.steps_per_epoch(examples.len()).div_ceil(LOOKS_PER_PASS).max(1);
    // Only a checkpoint asks for it.
    let identity =
        watch.checkpoint.map(|_| identity(learner, (examples, teacher), schedule, watch)).unwrap_or_default();
    let mut course = Course { learner, watch, state: State { identity, ..State::default() }, best: None };
    course.take_up()?;
    watch.progress.begin(LESSON, total as u64, "steps");
    watch.progress.advance(course.state.losses.len() as u64, "");
    while course.state.losses.len() < total {
        let step = course.state.losses.len();
        if watch.stop.load(Ordering::Relaxed) {
            watch.progress.end();
            match watch.checkpoint {
                Some(folder) => return Err(Error::Interrupted { step, checkpoint: course.save(folder)? }),
                None => break,
            }
        }
        let rate = schedule.rate_at(step, total);
        let chosen = schedule.examples(step, examples.len());
        let packed = batch::pack(chosen.iter().map(|&index| &examples[index]));
        let scale = 1.0 / packed.rows.len() as f32;
        let loss = divergence(course.learner.graph(), &packed, teacher, &chosen, scale)? * f64::from(scale);
        if !loss.is_finite() {
            return Err(Error::Diverged { step: step + 1, loss, learning_rate: rate });
        }
        course.learner.learn(rate);
        course.state.losses.push(loss);
        watch.progress.advance(1, &format!("KL {loss:.4}"));
        if (step + 1).is_multiple_of(look) || step + 1 == total {
            if course.look(teacher, examples.len())? {
                watch.progress.say("what is watched comes no nearer to the teacher: stopping early");
                break;
            }
            if let Some(folder) = watch.checkpoint.filter(|_| step + 1 < total) {
                course.save(folder)?;
            }
        }
    }
    watch.progress.end();
    course.finish()
}

impl Course<'_> {
    /// Goes on from the newest checkpoint, if it is of this lesson.
    fn take_up(&mut self) -> Result<(), Error> {
        let Some(folder) = self.watch.checkpoint else { return Ok(()) };
        checkpoint::clean(folder);
        let Some((step, folder)) = checkpoint::list(folder).pop() else { return Ok(()) };
        let parameters = self.learner.parameters();
        let identity = self.state.identity.clone();
        let optimiser = self.learner.optimiser();
        match checkpoint::load(&folder, &identity, |state: &State| &state.identity, &parameters, optimiser) {
            Ok((state, best)) => {
                optimiser.step = step;
                (self.state, self.best) = (state, best);
                self.watch.progress.say(&format!("continuing after step {step}"));
                self.learner.restore(&self.state.notes)
            }
            Err(Error::Checkpoint { path, .. }) => {
                let what = format!("{} is damaged, or of another lesson", path.display());
                self.watch.progress.say(&format!("warning: {what}: starting at the beginning"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Measures what is watched; whether it has gained nothing for long enough.
    fn look(&mut self, teacher: &Teacher, learnt_from: usize) -> Result<bool, Error> {
        let watched = self.watch.watched;
        if watched.is_empty() {
            return Ok(false);
        }
        let found = divergence_of(self.learner.graph(), teacher, learnt_from, watched)?;
        self.watch.progress.say(&format!("KL on what is watched: {found:.4}"));
        if self.state.best.as_ref().is_none_or(|(best, _)| found < *best) {
            self.state.best = Some((found, self.learner.notes()));
            self.state.since_best = 0;
            self.best = Some(self.learner.parameters().iter().map(|parameter| parameter.value().clone()).collect());
        } else {
            self.state.since_best += 1;
        }
        Ok(self.state.since_best >= self.watch.patience.max(1))
    }

    /// Writes a checkpoint, and removes the one before.
    fn save(&mut self, folder: &Path) -> Result<std::path::PathBuf, Error> {
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        self.state.notes = self.learner.notes();
        let (parameters, step) = (self.learner.parameters(), self.state.losses.len());
        let optimiser = self.learner.optimiser();
        checkpoint::save(folder, (step, &self.state), &parameters, optimiser, self.best.as_deref(), Some(1))
    }

    /// Puts back what came nearest on what is watched.
    fn finish(self) -> Result<Vec<f64>, Error> {
        if let (Some(best), Some((_, notes))) = (self.best, &self.state.best) {
            for (parameter, best) in self.learner.parameters().iter().zip(best) {
                *parameter.value_mut() = best;
            }
            self.learner.restore(notes)?;
        }
        Ok(self.state.losses)
    }
}

/// Hash of what the learner starts from, of what it learns, and how.
fn identity(
    learner: &dyn Learner,
    (examples, teacher): (&[Example], &Teacher),
    schedule: Schedule,
    watch: Watch<'_>,
) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{schedule:?} {} {}", examples.len(), watch.patience).as_bytes());
    for example in examples.iter().chain(watch.watched) {
        hasher.update(bytemuck::cast_slice(&example.tokens));
    }
    for parameter in learner.parameters() {
        hasher.update(bytemuck::cast_slice(parameter.value().values()));
    }
    hasher.update(learner.notes().to_string().as_bytes());
    teacher.states().for_each(|states| {
        hasher.update(bytemuck::cast_slice(states.values()));
    });
    hasher.finalize().to_hex().to_string()
}
