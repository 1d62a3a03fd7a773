//! How much of a fine-tune a variant keeps, on held-out conversations.
//!
//! Every figure is over the tokens of answers, teacher-forced through the engine, so it is what a server would compute.
//! With L the mean of −ln p(token): `retention` = (L_base − L_variant) / (L_base − L_finetuned); `kl` is the mean over
//! those tokens of KL(fine-tuned ‖ variant) in nats; `exact` is the share of answers whose every token is the likeliest.
//! [`precision`] compares two loadings of one base instead.

pub mod precision;

use crate::{Error, data::Conversation, progress::Progress};
use bitdelta_delta::{Variant, metrics::bits_per_weight};
use bitdelta_engine::{Model, Resident};
use bitdelta_model::chat::{ChatTokens, Template, Tokenizer};
use rayon::prelude::*;
use serde::Serialize;
use std::{ops::Range, path::Path, sync::Arc};

/// What is compared.
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

/// Tokenises conversations for [`evaluate`], marking their answers.
///
/// # Errors
/// A conversation that the template cannot render.
pub fn samples(
    tokenizer: &Tokenizer,
    template: &Template,
    conversations: &[Conversation],
) -> Result<Vec<ChatTokens>, Error> {
    let encode = |conversation: &Conversation| tokenizer.encode_chat_masked(&conversation.messages, template);
    Ok(conversations.par_iter().map(encode).collect::<Result<_, _>>()?)
}

/// Evaluates on the answers of `samples`. Holds one conversation's logits of the fine-tuned model at a time.
///
/// # Errors
/// A variant that does not fit the base, a conversation longer than the context, or no scored token at all.
pub fn evaluate(subject: Subject<'_>, samples: &[ChatTokens], progress: &dyn Progress) -> Result<Report, Error> {
    let Subject { base, variant, path, bytes, finetuned } = subject;
    let weights = variant.weights(base.base().linears().len());
    let resident = base.prepare("evaluation", path, variant)?;
    let (mut of_base, mut of_variant, mut of_finetuned) = (Tally::default(), Tally::default(), Tally::default());
    let mut kl = 0.0;
    progress.begin("evaluating", samples.len() as u64, "conversations");
    for sample in samples {
        if let Some(positions) = positions(sample) {
            of_base.add(base, None, sample, &positions, &mut |_, _| {})?;
            let mut reference = Vec::new();
            if let Some(model) = finetuned {
                of_finetuned.add(model, None, sample, &positions, &mut |_, logits| reference.push(logits.to_vec()))?;
            }
            let mut reference = reference.iter();
            of_variant.add(base, Some(&resident), sample, &positions, &mut |_, logits| {
                kl += reference.next().map_or(0.0, |reference| divergence(reference, logits));
            })?;
        }
        progress.advance(1, &of_variant.note());
    }
    progress.end();
    let tokens = of_base.tokens;
    if tokens == 0 {
        return Err(Error::setting("data", "no conversation has an answer to score"));
    }
    let (loss_base, loss_variant) = (of_base.loss(), of_variant.loss());
    let loss_finetuned = finetuned.map(|_| of_finetuned.loss());
    let gain = loss_finetuned.map(|loss| loss_base - loss).filter(|gain| *gain > 0.0);
    Ok(Report {
        loss_base,
        loss_variant,
        loss_finetuned,
        retention: gain.map(|gain| (loss_base - loss_variant) / gain),
        kl: finetuned.map(|_| kl / tokens as f64),
        exact: of_variant.exact(),
        exact_base: of_base.exact(),
        exact_finetuned: finetuned.map(|_| of_finetuned.exact()),
        bytes,
        bits_per_weight: bits_per_weight(bytes, weights),
        conversations: samples.len(),
        answers: of_base.answers,
        tokens,
    })
}

/// Positions whose logits predict an answer's tokens: from before the first to before the last.
fn positions(sample: &ChatTokens) -> Option<Range<usize>> {
    let scored = |at: &usize| sample.is_answer[*at];
    let first = (1..sample.ids.len()).find(scored)?;
    let last = (first..sample.ids.len()).rfind(scored)?;
    Some(first - 1..last)
}

/// Sums over one model's predictions.
#[derive(Debug, Default)]
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

/// The first of the largest.
fn argmax(logits: &[f32]) -> usize {
    let better = |best: usize, (at, x): (usize, &f32)| if *x > logits[best] { at } else { best };
    logits.iter().enumerate().fold(0, better)
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
