//! How far rounded arithmetic moves a model's predictions: two loadings of one base over the same conversations.
//!
//! Both are teacher-forced, so a token on which they disagree does not change what the next one is asked. The positions
//! that count are those whose next token is an answer's; agreement is also given over all positions that have a next token.

use super::{divergence, normaliser};
use crate::{Error, progress::Progress};
use bitdelta_engine::{Model, Resident};
use bitdelta_kernels::argmax;
use bitdelta_model::chat::ChatTokens;
use serde::Serialize;
use std::{ops::Range, sync::Arc};

/// Positions whose logits are held at a time: (256, vocabulary) in f32 at most. A longer conversation is run once more up to
/// the end of each further window, so that the need for memory does not grow with its length.
const WINDOW: usize = 256;

/// A loaded base, alone or with a variant that was prepared on it.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// The base.
    pub model: &'a Model,
    /// The variant.
    pub variant: Option<&'a Arc<Resident>>,
}

/// The figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Precision {
    /// Positions whose next token is an answer's.
    pub positions: usize,
    /// Mean −ln p of those tokens under the exact side.
    pub loss_exact: f64,
    /// The same under the rounded side.
    pub loss: f64,
    /// (`loss` − `loss_exact`) ÷ `loss_exact`.
    pub loss_change: f64,
    /// Share of those positions where both sides have the same likeliest token.
    pub agreement: f64,
    /// Positions that have a next token, prompts included.
    pub positions_all: usize,
    /// The same share over them.
    pub agreement_all: f64,
    /// Mean KL(exact ‖ rounded) of a position before an answer's token, nats.
    pub kl: f64,
}

/// Compares `rounded` with `exact` on `samples`.
///
/// # Errors
/// A conversation that is longer than the context, or no answer's token at all.
pub fn compare(
    exact: Side<'_>,
    rounded: Side<'_>,
    samples: &[ChatTokens],
    progress: &dyn Progress,
) -> Result<Precision, Error> {
    let mut sums = Sums::default();
    progress.begin("comparing", samples.len() as u64, "conversations");
    for sample in samples {
        let all = sample.ids.len().saturating_sub(1);
        for start in (0..all).step_by(WINDOW) {
            sums.add(exact, rounded, sample, start..all.min(start + WINDOW))?;
        }
        progress.advance(1, &sums.note());
    }
    progress.end();
    sums.precision()
}

/// Sums over the positions so far.
#[derive(Debug, Default)]
struct Sums {
    loss_exact: f64,
    loss: f64,
    kl: f64,
    positions: usize,
    agree: usize,
    positions_all: usize,
    agree_all: usize,
}

impl Sums {
    /// Adds the positions of `window`. What comes after them is not run: it does not change them.
    fn add(
        &mut self,
        exact: Side<'_>,
        rounded: Side<'_>,
        sample: &ChatTokens,
        window: Range<usize>,
    ) -> Result<(), Error> {
        let tokens = &sample.ids[..window.end];
        let counts = |position: usize| sample.is_answer[position + 1];
        let mut choices = Vec::with_capacity(window.len());
        let mut scored = Vec::new();
        exact.model.logits(tokens, window.clone(), exact.variant, &mut |position, logits| {
            choices.push(argmax(logits));
            if counts(position) {
                scored.push(logits.to_vec());
            }
        })?;
        let (mut choices, mut scored) = (choices.into_iter(), scored.iter());
        rounded.model.logits(tokens, window, rounded.variant, &mut |position, logits| {
            let agrees = usize::from(choices.next() == Some(argmax(logits)));
            self.positions_all += 1;
            self.agree_all += agrees;
            let reference = if counts(position) { scored.next() } else { None };
            if let Some(reference) = reference {
                let target = sample.ids[position + 1] as usize;
                self.positions += 1;
                self.agree += agrees;
                self.loss_exact += normaliser(reference) - f64::from(reference[target]);
                self.loss += normaliser(logits) - f64::from(logits[target]);
                self.kl += divergence(reference, logits);
            }
        })?;
        Ok(())
    }

    fn note(&self) -> String {
        if self.positions == 0 { String::new() } else { format!("{} of {} agree", self.agree, self.positions) }
    }

    fn precision(self) -> Result<Precision, Error> {
        if self.positions == 0 {
            return Err(Error::setting("data", "no conversation has an answer to score"));
        }
        let mean = |sum: f64| sum / self.positions as f64;
        Ok(Precision {
            positions: self.positions,
            loss_exact: mean(self.loss_exact),
            loss: mean(self.loss),
            loss_change: (self.loss - self.loss_exact) / self.loss_exact,
            agreement: mean(self.agree as f64),
            positions_all: self.positions_all,
            agreement_all: self.agree_all as f64 / self.positions_all as f64,
            kl: mean(self.kl),
        })
    }
}
