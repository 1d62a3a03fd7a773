//! A variant moved to a new version of its base.
//!
//! There are three honest ways, and where conversations are given, all that apply are measured and the best is taken:
//!
//! | method | what the new file holds | what it stands for |
//! | --- | --- | --- |
//! | [`Method::Keep`] | the same parts | what the user's training changed, on top of the new base |
//! | [`Method::Recompute`] | fine-tune − new base, quantised or made to a size as before | the user's fine-tune as it was |
//! | [`Method::Refit`] | the same parts, trained so that the new base with them answers as the old one did | the user's answers as they were |
//!
//! A variant fits a base by its weights, so nothing is moved on trust: without conversations and without the fine-tune
//! there is nothing to tell whether it still holds, and a variant that makes answers on the new base worse than none is
//! refused. Refitting takes minutes, so it is tried where it is named or conversations to learn from are given.

use crate::{
    Error,
    budget::{self, Watch, compress_to},
    compress::{check_shapes, compress_pair},
    data::Conversation,
    draw,
    evaluate::{Subject, evaluate, recorded_template},
    progress::Progress,
};
use bitdelta_delta::{Part, Variant, part};
use bitdelta_engine::{Model, ModelOptions, check_fits};
use bitdelta_model::{
    Base,
    chat::{Template, Tokenizer},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

/// Of what is drawn.
const SEED: u64 = 42;

/// How a variant is moved. See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Method {
    /// The parts as they are.
    Keep,
    /// The kept fine-tune's difference from the new base.
    Recompute,
    /// The parts, trained on the new base towards the old one with them.
    Refit,
}

impl Method {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Recompute => "recompute",
            Self::Refit => "refit",
        }
    }
}

/// What is to be moved, and from where to where.
pub struct Request<'a> {
    /// The variant.
    pub variant: &'a Variant,
    /// Its file, for messages.
    pub path: &'a Path,
    /// The base it was made on.
    pub from: Arc<Base>,
    /// The base it is to fit.
    pub to: Arc<Base>,
    /// The fine-tune that it was made from.
    pub finetuned: Option<&'a Base>,
    /// Held-out conversations of the user.
    pub conversations: Option<&'a [Conversation]>,
    /// Conversations that refitting learns from; without any, the old base with the variant is made to say some.
    pub lessons: Option<&'a [Conversation]>,
    /// The template that prompts are made with; by default the one that the variant recorded.
    pub template: Option<Template>,
    /// The only method to try.
    pub method: Option<Method>,
    /// How bases are loaded to be measured.
    pub options: ModelOptions,
}

/// Mean −ln p of an answer's token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Losses {
    /// Under the base alone.
    pub base: f64,
    /// Under base and variant.
    pub variant: f64,
}

/// A method that was tried.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tried {
    /// Which.
    pub method: Method,
    /// Bytes of packed deltas.
    pub bytes: u64,
    /// What it measures; `None` without conversations.
    pub losses: Option<Losses>,
}

/// What became of a variant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The method taken.
    pub method: Method,
    /// On the old base; `None` without conversations.
    pub before: Option<Losses>,
    /// On the new base; `None` without conversations.
    pub after: Option<Losses>,
    /// All that was tried.
    pub tried: Vec<Tried>,
    /// ‖new − old‖ ÷ ‖old‖ over the bases' matrices.
    pub base_moved: f64,
    /// ‖Δ̂‖ ÷ ‖old‖ over the same: what the variant moves.
    pub variant_moves: f64,
    /// Sentences that the user should read.
    pub warnings: Vec<String>,
}

impl Report {
    /// Whether refitting was not tried and more than a tenth of what the variant gained on the old base is lost.
    pub fn loses(&self) -> bool {
        let (Some(before), Some(after)) = (self.before, self.after) else { return false };
        let refitted = self.tried.iter().any(|tried| tried.method == Method::Refit);
        !refitted && after.variant - before.variant > 0.1 * (before.base - before.variant)
    }
}

/// Moves a variant. Holds one loaded model at a time. A raised `stop` ends refitting early with what it has.
///
/// # Errors
/// [`Error::Rebase`] for bases that are no two versions of one model, for nothing to measure or recompute by, and for a
/// variant that no longer helps; a variant that is not of `from` ([`check_fits`]); what compressing and evaluating return.
pub fn rebase(
    request: &Request<'_>,
    (progress, stop): (&dyn Progress, &AtomicBool),
) -> Result<(Variant, Report), Error> {
    let Request { variant, path, from, to, .. } = request;
    check_fits(from, variant, path)?;
    let mut warnings = request.check()?;
    let methods = request.methods(&mut warnings)?;
    let (base_moved, variant_moves) = request.movement(progress)?;
    let before = match request.conversations {
        Some(conversations) => Some(request.measure(from, (*variant).clone(), conversations, progress)?),
        None => None,
    };
    let mut made = Vec::new();
    for method in methods {
        let moved = request.moved(method, progress, stop)?;
        made.push((method, moved));
    }
    let mut tried = Vec::new();
    for (method, moved) in &made {
        let losses = match request.conversations {
            Some(conversations) => Some(request.measure(to, moved.clone(), conversations, progress)?),
            None => None,
        };
        tried.push(Tried { method: *method, bytes: moved.payload_bytes(), losses });
    }
    // The first of equals: keeping changes least.
    let loss = |tried: &Tried| tried.losses.map_or(0.0, |losses| losses.variant);
    let best = (0..tried.len()).min_by(|a, b| loss(&tried[*a]).total_cmp(&loss(&tried[*b])));
    let Some(best) = best else { return Err(request.refuse("no method applies")) };
    let (method, mut moved) = made.swap_remove(best);
    let after = tried[best].losses;
    if let Some(Losses { base, variant }) = after.filter(|after| after.variant >= after.base) {
        let problem = format!("on the new base it makes answers worse than none (loss {variant:.4} against {base:.4})");
        let what = match method {
            Method::Refit => "train it anew",
            _ => "refit it to answer as before (--method refit), or train it anew",
        };
        return Err(request.refuse(&format!("{problem}: {what}")));
    }
    moved.info.notes.insert("rebased".into(), request.note(method, before, after));
    warnings.iter().for_each(|warning| progress.say(warning));
    Ok((moved, Report { method, before, after, tried, base_moved, variant_moves, warnings }))
}

impl Request<'_> {
    fn refuse(&self, problem: &str) -> Error {
        Error::Rebase {
            variant: self.path.to_owned(),
            from: self.from.name.clone(),
            to: self.to.name.clone(),
            problem: problem.to_owned(),
        }
    }

    /// Refuses bases between which nothing can be moved; warns of what differs and may matter.
    fn check(&self) -> Result<Vec<String>, Error> {
        let (from, to) = (&*self.from, &*self.to);
        if from.fingerprint() == to.fingerprint() {
            return Err(self.refuse("it is the same base: the variant fits it as it is"));
        }
        let heads = |base: &Base| (base.config.architecture, base.config.heads, base.config.kv_heads, base.config.tied);
        if heads(from) != heads(to) {
            return Err(self.refuse("the bases are built differently (family, heads, or a tied head)"));
        }
        check_shapes(from, to).map_err(|error| match error {
            Error::Pair { problem, .. } => self.refuse(&format!("the bases have other shapes ({problem})")),
            other => other,
        })?;
        let vocabulary = |base: &Base| base.tokenizer.inner().get_vocab(true);
        if vocabulary(from) != vocabulary(to) {
            return Err(self.refuse("the bases have other tokenizers: the same ids are other texts"));
        }
        let mut warnings = Vec::new();
        let rope = |base: &Base| (base.config.rope_theta, base.config.rope_scaling);
        if rope(from) != rope(to) {
            warnings.push("the bases turn positions differently (RoPE): look at the loss on long conversations".into());
        }
        let [before, after] = [from, to].map(|base| base.tokenizer.template_id(&Template::Model));
        if before != after {
            warnings.push(format!("chat templates differ ({before}, {after}); the variant learnt with the first"));
        }
        Ok(warnings)
    }

    /// The methods to try, the one that changes least first.
    fn methods(&self, warnings: &mut Vec<String>) -> Result<Vec<Method>, Error> {
        let (recomputes, measures) = (self.finetuned.is_some(), self.conversations.is_some());
        match self.method {
            Some(Method::Recompute) if !recomputes => Err(self.refuse("recomputing needs the fine-tune (--finetuned)")),
            None | Some(Method::Recompute) if recomputes && !measures => Ok(vec![Method::Recompute]),
            _ if !measures => Err(self.refuse(
                "nothing tells whether it still holds on the new base: give held-out conversations (--data), or the \
                 fine-tune to recompute it from (--finetuned)",
            )),
            Some(method) => Ok(vec![method]),
            None => {
                let mut methods = vec![Method::Keep];
                if recomputes && (self.has_codes() || self.budget().is_some()) {
                    methods.push(Method::Recompute);
                } else if recomputes {
                    warnings.push(
                        "the variant is low-rank and a difference of models is not: it is not recomputed (ask for \
                         recompute to have a dense variant of the fine-tune)"
                            .into(),
                    );
                }
                methods.extend(self.lessons.map(|_| Method::Refit));
                Ok(methods)
            }
        }
    }

    /// Whether it holds more than low-rank factors.
    fn has_codes(&self) -> bool {
        let mut parts = self.variant.linears.iter().flat_map(|linear| &linear.parts);
        parts.any(|part| matches!(part, Part::Dense(_) | Part::Sparse(_) | Part::Full { .. }))
    }

    /// The bytes that the variant was made to have, if it was, less what its note of this move takes.
    fn budget(&self) -> Option<u64> {
        /// Nothing is written longer.
        const DIGITS: f64 = -std::f64::consts::PI / 1e100;
        let losses = Some(Losses { base: DIGITS, variant: DIGITS });
        let note = json!({ "rebased": self.note(Method::Recompute, losses, losses) }).to_string();
        Some(self.variant.info.notes.get("budget")?.as_u64()?.saturating_sub(note.len() as u64))
    }

    /// What the file says of its move.
    fn note(&self, method: Method, before: Option<Losses>, after: Option<Losses>) -> Value {
        let loss = |losses: Option<Losses>| losses.map(|losses| losses.variant);
        json!({ "from": self.from.name, "from_base": self.from.fingerprint(), "method": method.name(),
            "loss_before": loss(before), "loss_after": loss(after) })
    }

    /// The prompts' template, unless the model's own.
    fn template(&self, tokenizer: &Tokenizer) -> Template {
        self.template.clone().or_else(|| recorded_template(self.variant, tokenizer)).unwrap_or_default()
    }

    /// The variant trained on the new base.
    fn refitted(&self, progress: &dyn Progress, stop: &AtomicBool) -> Result<Variant, Error> {
        let template = self.template(&self.from.tokenizer);
        let drawn;
        let lessons = match self.lessons {
            Some(lessons) => lessons,
            None => {
                let variant = Some(self.variant.clone());
                drawn = draw::conversations(&self.from, variant, &template, draw::COUNT, SEED, progress)?;
                &drawn
            }
        };
        let examples = budget::examples(&self.from, &template, lessons)?;
        let bytes = match self.budget() {
            Some(bytes) => bytes,
            None => self.variant.to_bytes()?.len() as u64,
        };
        budget::refit((&self.from, &self.to), self.variant, &examples, bytes, Watch::new(progress, stop))
    }

    /// The variant on the new base.
    fn moved(&self, method: Method, progress: &dyn Progress, stop: &AtomicBool) -> Result<Variant, Error> {
        let mut moved = match (method, self.finetuned, self.budget()) {
            // What was made to a size is made to it again.
            (Method::Recompute, Some(finetuned), Some(bytes)) => {
                let options = budget::Options::new(bytes);
                let info = self.variant.info.clone();
                compress_to(&self.to, finetuned, &[], &options, info, Watch::new(progress, stop))?
            }
            (Method::Recompute, Some(finetuned), None) => {
                let (moved, _) = compress_pair(&self.to, finetuned, &self.variant.info.config, progress)?;
                moved
            }
            (Method::Refit, ..) => self.refitted(progress, stop)?,
            _ => self.variant.clone(),
        };
        let made = std::mem::take(&mut moved.info.notes);
        moved.info = self.variant.info.clone();
        // What the compression found out is newer than what the old variant says of itself.
        moved.info.notes.extend(made);
        moved.info.base = self.to.fingerprint().to_owned();
        moved.info.base_name.clone_from(&self.to.name);
        Ok(moved)
    }

    fn measure(
        &self,
        base: &Arc<Base>,
        variant: Variant,
        conversations: &[Conversation],
        progress: &dyn Progress,
    ) -> Result<Losses, Error> {
        let template = self.template(&base.tokenizer);
        let model = Model::load(Arc::clone(base), self.options.clone())?;
        let bytes = variant.payload_bytes();
        let subject = Subject { base: &model, variant, path: self.path, bytes, finetuned: None };
        let report = evaluate(subject, &template, conversations, progress)?;
        Ok(Losses { base: report.loss_base, variant: report.loss_variant })
    }

    /// (‖new − old‖, ‖Δ̂‖) ÷ ‖old‖ over all matrices.
    fn movement(&self, progress: &dyn Progress) -> Result<(f64, f64), Error> {
        let square = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let (mut old, mut moved, mut moves) = (0.0, 0.0, 0.0);
        progress.begin("comparing the bases", self.from.matrices().count() as u64, "tensors");
        for (index, matrix) in self.from.matrices().enumerate() {
            let before = self.from.tensor_f32(&matrix.name)?;
            let mut after = self.to.tensor_f32(&matrix.name)?;
            after.iter_mut().zip(&before).for_each(|(after, before)| *after -= before);
            old += square(&before);
            moved += square(&after);
            if let Some(delta) = self.variant.linears.get(index) {
                moves += square(&part::dequantize(&delta.parts, delta.rows, delta.cols));
            }
            progress.advance(1, "");
        }
        progress.end();
        Ok(((moved / old).sqrt(), (moves / old).sqrt()))
    }
}
