//! How much of a fine-tune a variant keeps, on held-out conversations.
//!
//! Every figure is over the tokens of answers, teacher-forced through the engine, so it is what a server would compute.
//! With L the mean of −ln p(token): `retention` = (L_base − L_variant) / (L_base − L_finetuned); `kl` is the mean over
//! those tokens of KL(fine-tuned ‖ variant) in nats; `exact` is the share of answers whose every token is the likeliest;
//! `drift` is L_variant / L_base − 1 on general conversations, which nobody was tuned on.
//! A variant that has experiences is asked with them, as a server would; its base and the fine-tuned model are not.
//! [`precision`] compares two loadings of one base instead.

pub mod precision;

use crate::{Error, data::Conversation, progress::Progress};
use bitdelta_delta::{Variant, metrics::bits_per_weight};
use bitdelta_engine::{Model, Resident, prompt};
use bitdelta_kernels::argmax;
use bitdelta_model::chat::{ChatTokens, Template, Tokenizer};
use rayon::prelude::*;
use serde::Serialize;
use std::{ops::Range, path::Path, sync::Arc};

/// What one variant is compared with.
pub struct Subject<'a> {
    /// The loaded base.
    pub base: &'a Model,
    /// The variant.
    pub variant: Variant,
    /// Its file, for messages.
    pub path: &'a Path,
    /// The file's size in bytes.
    pub bytes: u64,
    /// The fine-tuned model that the variant stands for, loaded too; `None` leaves out what needs it.
    pub finetuned: Option<&'a Model>,
}

/// What any number of variants are compared with.
#[derive(Clone, Copy)]
pub struct Yardstick<'a> {
    /// The loaded base.
    pub base: &'a Model,
    /// The fine-tuned model that the variants stand for, loaded too; `None` leaves out what needs it.
    pub finetuned: Option<&'a Model>,
    /// What prompts are made with.
    pub template: &'a Template,
    /// Held-out conversations.
    pub conversations: &'a [Conversation],
    /// Conversations about other things, for the drift; may be empty.
    pub general: &'a [Conversation],
}

/// A variant that is ready to run.
pub struct Candidate {
    /// The variant.
    pub resident: Arc<Resident>,
    /// Its file's size in bytes.
    pub bytes: u64,
    /// Weights in its linears.
    pub weights: u64,
}

/// The figures. Those that need the fine-tuned model are `None` without it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Mean −ln p of an answer's token under the base.
    pub loss_base: f64,
    /// The same under base plus variant.
    pub loss_variant: f64,
    /// The same under the fine-tuned model.
    pub loss_finetuned: Option<f64>,
    /// Share of the fine-tune's gain that the variant keeps; `None` too when the fine-tune gains nothing.
    pub retention: Option<f64>,
    /// Mean KL(fine-tuned ‖ variant) of a token, nats.
    pub kl: Option<f64>,
    /// Share of answers whose every token is the variant's likeliest.
    pub exact: f64,
    /// The same of the base.
    pub exact_base: f64,
    /// The same of the fine-tuned model.
    pub exact_finetuned: Option<f64>,
    /// Relative rise of the loss on general conversations against the base; `None` without any.
    pub drift: Option<f64>,
    /// The same of the fine-tuned model.
    pub drift_finetuned: Option<f64>,
    /// Bytes of the variant's file.
    pub bytes: u64,
    /// 8 · bytes ÷ weights in the linears.
    pub bits_per_weight: f64,
    /// Conversations.
    pub conversations: usize,
    /// Answers in them.
    pub answers: usize,
    /// Scored tokens.
    pub tokens: u64,
}

/// The template whose id a variant recorded; `None` when it recorded none, or one that this base does not have.
pub fn recorded_template(variant: &Variant, tokenizer: &Tokenizer) -> Option<Template> {
    let known = [Template::Model, Template::ChatMl, Template::Qwen3];
    known.into_iter().find(|template| tokenizer.template_id(template) == variant.info.template)
}

/// Tokenises conversations, as a variant with these experiences is asked, marking their answers.
///
/// # Errors
/// A conversation that the template cannot render.
pub fn samples(
    tokenizer: &Tokenizer,
    template: &Template,
    conversations: &[Conversation],
    experiences: &[String],
) -> Result<Vec<ChatTokens>, Error> {
    let encode = |conversation: &Conversation| {
        tokenizer.encode_chat_masked(&prompt::experienced(&conversation.messages, experiences), template)
    };
    Ok(conversations.par_iter().map(encode).collect::<Result<_, _>>()?)
}

/// Evaluates one variant on the answers of `conversations`.
///
/// # Errors
/// As [`Yardstick::measure`], and a variant that does not fit the base.
pub fn evaluate(
    subject: Subject<'_>,
    template: &Template,
    conversations: &[Conversation],
    progress: &dyn Progress,
) -> Result<Report, Error> {
    let Subject { base, variant, path, bytes, finetuned } = subject;
    let weights = variant.weights(base.base().linears().len());
    let candidate = Candidate { resident: base.prepare("evaluation", path, variant)?, bytes, weights };
    let yardstick = Yardstick { base, finetuned, template, conversations, general: &[] };
    Ok(yardstick.measure(&[candidate], progress)?.remove(0))
}

impl Yardstick<'_> {
    /// A report of each candidate, in their order. Every model sees one conversation before the next is begun: of the
    /// fine-tuned model's logits, one conversation's are held at a time.
    ///
    /// # Errors
    /// A conversation longer than the context, or no scored token at all.
    pub fn measure(&self, candidates: &[Candidate], progress: &dyn Progress) -> Result<Vec<Report>, Error> {
        let Self { base, finetuned, conversations, general, .. } = *self;
        let (samples, own) = self.samples(conversations, candidates)?;
        let nothing = || vec![Tally::default(); candidates.len()];
        let (mut of_base, mut of_finetuned, mut of_variants) = (Tally::default(), Tally::default(), nothing());
        let mut kl = vec![0.0; candidates.len()];
        progress.begin("evaluating", samples.len() as u64, "conversations");
        for (index, sample) in samples.iter().enumerate() {
            if let Some(positions) = positions(sample) {
                of_base.add(base, None, sample, &positions, &mut |_, _| {})?;
                let mut reference = Vec::new();
                if let Some(model) = finetuned {
                    let mut keep = |_, logits: &[f32]| reference.push(logits.to_vec());
                    of_finetuned.add(model, None, sample, &positions, &mut keep)?;
                }
                let tallies = candidates.iter().zip(&own).zip(&mut of_variants).zip(&mut kl);
                for (((candidate, own), tally), kl) in tallies {
                    let mut reference = reference.iter();
                    tally.add_own(base, candidate, (sample, own.get(index)), &mut |_, logits| {
                        *kl += reference.next().map_or(0.0, |reference| divergence(reference, logits));
                    })?;
                }
            }
            progress.advance(1, &of_variants.last().map_or_else(String::new, Tally::note));
        }
        progress.end();
        let tokens = of_base.tokens;
        if tokens == 0 {
            return Err(Error::setting("data", "no conversation has an answer to score"));
        }
        let (drifts, drift_finetuned) = match general.is_empty() {
            true => (vec![None; candidates.len()], None),
            false => self.drifts(candidates, progress)?,
        };
        let loss_finetuned = finetuned.map(|_| of_finetuned.loss());
        let gain = loss_finetuned.map(|loss| of_base.loss() - loss).filter(|gain| *gain > 0.0);
        let figures = candidates.iter().zip(of_variants).zip(kl).zip(drifts);
        let report = figures.map(|(((candidate, tally), kl), drift)| Report {
            loss_base: of_base.loss(),
            loss_variant: tally.loss(),
            loss_finetuned,
            retention: gain.map(|gain| (of_base.loss() - tally.loss()) / gain),
            kl: finetuned.map(|_| kl / tokens as f64),
            exact: tally.exact(),
            exact_base: of_base.exact(),
            exact_finetuned: finetuned.map(|_| of_finetuned.exact()),
            drift,
            drift_finetuned,
            bytes: candidate.bytes,
            bits_per_weight: bits_per_weight(candidate.bytes, candidate.weights),
            conversations: samples.len(),
            answers: of_base.answers,
            tokens,
        });
        Ok(report.collect())
    }

    /// The tokens of conversations as a base is asked, and as each candidate is; the latter are empty for a candidate
    /// that is asked as its base.
    fn samples(
        &self,
        conversations: &[Conversation],
        candidates: &[Candidate],
    ) -> Result<(Vec<ChatTokens>, Vec<Vec<ChatTokens>>), Error> {
        let of =
            |experiences: &[String]| samples(&self.base.base().tokenizer, self.template, conversations, experiences);
        let plain = of(&[])?;
        let mut own = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let experiences = &candidate.resident.info().experiences;
            let samples = if experiences.is_empty() { Vec::new() } else { of(experiences)? };
            let answers = |sample: &ChatTokens| -> Vec<u32> {
                let tokens = sample.ids.iter().zip(&sample.is_answer);
                tokens.filter(|(_, is_answer)| **is_answer).map(|(token, _)| *token).collect()
            };
            if plain.iter().zip(&samples).any(|(plain, own)| answers(plain) != answers(own)) {
                let problem = "writes answers otherwise after a system turn, so that the variant's experiences cannot be \
                               compared with its base";
                return Err(Error::setting("template", problem));
            }
            own.push(samples);
        }
        Ok((plain, own))
    }

    /// Of each candidate and of the fine-tuned model on the general conversations.
    fn drifts(
        &self,
        candidates: &[Candidate],
        progress: &dyn Progress,
    ) -> Result<(Vec<Option<f64>>, Option<f64>), Error> {
        let (mut of_base, mut of_finetuned) = (Tally::default(), Tally::default());
        let mut of_variants = vec![Tally::default(); candidates.len()];
        let (samples, own) = self.samples(self.general, candidates)?;
        progress.begin("evaluating drift", samples.len() as u64, "conversations");
        for (index, sample) in samples.iter().enumerate() {
            if let Some(positions) = positions(sample) {
                of_base.add(self.base, None, sample, &positions, &mut |_, _| {})?;
                if let Some(model) = self.finetuned {
                    of_finetuned.add(model, None, sample, &positions, &mut |_, _| {})?;
                }
                for ((candidate, own), tally) in candidates.iter().zip(&own).zip(&mut of_variants) {
                    tally.add_own(self.base, candidate, (sample, own.get(index)), &mut |_, _| {})?;
                }
            }
            progress.advance(1, "");
        }
        progress.end();
        if of_base.tokens == 0 {
            return Err(Error::setting("general", "no conversation has an answer to score"));
        }
        let drift = |tally: &Tally| tally.loss() / of_base.loss() - 1.0;
        Ok((of_variants.iter().map(|tally| Some(drift(tally))).collect(), self.finetuned.map(|_| drift(&of_finetuned))))
    }
}

/// Positions whose logits predict an answer's tokens: from before the first to before the last.
fn positions(sample: &ChatTokens) -> Option<Range<usize>> {
    let scored = |at: &usize| sample.is_answer[*at];
    let first = (1..sample.ids.len()).find(scored)?;
    let last = (first..sample.ids.len()).rfind(scored)?;
    Some(first - 1..last)
}

/// Sums over one model's predictions.
#[derive(Debug, Clone, Default)]
struct Tally {
    loss: f64,
    tokens: u64,
    answers: usize,
    exact: usize,
}

impl Tally {
    /// Scores one conversation; `each` sees the logits of each scored token in order.
    fn add(
        &mut self,
        model: &Model,
        variant: Option<&Arc<Resident>>,
        sample: &ChatTokens,
        positions: &Range<usize>,
        each: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<(), Error> {
        let mut all_right = true;
        model.logits(&sample.ids, positions.clone(), variant, &mut |position, logits| {
            if !sample.is_answer[position + 1] {
                return;
            }
            let target = sample.ids[position + 1];
            self.loss += normaliser(logits) - f64::from(logits[target as usize]);
            self.tokens += 1;
            all_right &= argmax(logits) == target as usize;
            each(position, logits);
            let ends = sample.is_answer.get(position + 2).is_none_or(|answer| !answer);
            if ends {
                self.answers += 1;
                self.exact += usize::from(std::mem::replace(&mut all_right, true));
            }
        })?;
        Ok(())
    }

    /// Scores one conversation of a candidate: as its base was asked, or as it is asked itself where that differs.
    fn add_own(
        &mut self,
        base: &Model,
        candidate: &Candidate,
        (plain, own): (&ChatTokens, Option<&ChatTokens>),
        each: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<(), Error> {
        let sample = own.unwrap_or(plain);
        match positions(sample) {
            Some(positions) => self.add(base, Some(&candidate.resident), sample, &positions, each),
            None => Ok(()),
        }
    }

    fn loss(&self) -> f64 {
        self.loss / self.tokens as f64
    }

    fn exact(&self) -> f64 {
        self.exact as f64 / self.answers as f64
    }

    fn note(&self) -> String {
        if self.tokens == 0 { String::new() } else { format!("loss {:.4}", self.loss()) }
    }
}

/// ln Σ exp(logit), in f64 from the largest down.
fn normaliser(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(largest) + logits.iter().map(|x| f64::from(x - largest).exp()).sum::<f64>().ln()
}

/// KL(p ‖ q) in nats of the distributions that these logits make.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (normal_p, normal_q) = (normaliser(p), normaliser(q));
    p.iter()
        .zip(q)
        .map(|(p, q)| {
            let (p, q) = (f64::from(*p) - normal_p, f64::from(*q) - normal_q);
            p.exp() * (p - q)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normaliser_is_exact_for_equal_logits_and_safe_for_large_ones() {
        assert!((normaliser(&[0.0; 4]) - 4f64.ln()).abs() < 1e-12);
        assert!((normaliser(&[1e4, 1e4]) - (1e4 + 2f64.ln())).abs() < 1e-9);
    }

    #[test]
    fn a_distribution_has_no_divergence_from_itself_and_some_from_another() {
        let (p, q) = ([1.0, 2.0, -3.0], [0.0, 2.0, 0.5]);
        assert!(divergence(&p, &p).abs() < 1e-12);
        let shifted = p.map(|x| x + 5.0);
        assert!(divergence(&p, &shifted).abs() < 1e-6, "logits have a free constant");
        assert!(divergence(&p, &q) > 0.01);
    }

    #[test]
    fn positions_span_from_before_the_first_scored_token_to_before_the_last() {
        let sample = |scored: &[bool]| ChatTokens { ids: vec![0; scored.len()], is_answer: scored.to_vec() };
        assert_eq!(positions(&sample(&[false, false, true, false, true, false])), Some(1..4));
        assert_eq!(positions(&sample(&[false; 4])), None);
        assert_eq!(positions(&sample(&[true])), None);
    }
}
