//! A pair of models, base and fine-tuned, into a variant as a user asks for it: to a size or in codes of some bits, by the weights
//! alone or trained towards the fine-tuned model on conversations, given or drawn from it.

use crate::{
    Error,
    batch::Example,
    budget::{self, SCALE_RATE, Schedule, Teacher, Watch, distil_scales},
    compress::{Report, compress_pair},
    data::Conversation,
    draw,
    progress::Progress,
};
use bitdelta_delta::{BitDeltaConfig, Info, Variant, sizes::format_bytes};
use bitdelta_model::{Base, chat::Template};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

/// Of what is drawn and of the order of training.
const SEED: u64 = 42;
/// Below so many bits a weight, weights alone lose much that draws keep, and a budget that is learnt on a user's conversations alone
/// drifts elsewhere further than the fine-tune did. (So do scales, which are learnt at any size.)
const FEW_BITS: f64 = 0.1;
/// Weights of the linears up to which drawing and training on it takes minutes, and is done unasked.
const WEIGHTS_OF_MINUTES: u64 = 500_000_000;

/// How large a variant is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// At most so many bytes, header and all.
    Bytes(u64),
    /// The same as bits a weight of the linears.
    BitsPerWeight(f64),
    /// What codes of the configuration take.
    Codes,
    /// What keeps most for its bytes: a quarter of a bit a weight; or the configuration's codes where an embedding or a head
    /// moved, which a budget leaves out.
    Best,
}

impl Size {
    /// Of what a user names: bytes, or bits a weight, or else codes; nothing: what is best.
    pub fn of(bytes: Option<u64>, bits_per_weight: Option<f64>, codes: bool) -> Self {
        match (bytes, bits_per_weight) {
            (Some(bytes), _) => Self::Bytes(bytes),
            (None, Some(bits)) => Self::BitsPerWeight(bits),
            (None, None) if codes => Self::Codes,
            (None, None) => Self::Best,
        }
    }
}

/// Text of no user's, on which a variant is to stay what the fine-tuned model is there.
#[derive(Debug, Clone, Copy)]
pub enum General<'a> {
    /// Drawn from the base beside data, where the variant would drift, and it takes seconds.
    Unasked,
    /// So many conversations, drawn from the base itself.
    Drawn(usize),
    /// These conversations.
    Given(&'a [Conversation]),
}

impl<'a> General<'a> {
    /// Of what a user names: conversations, or how many to draw.
    pub fn of(given: Option<&'a [Conversation]>, drawn: Option<usize>) -> Self {
        match (given, drawn) {
            (Some(given), _) => Self::Given(given),
            (None, Some(count)) => Self::Drawn(count),
            (None, None) => Self::Unasked,
        }
    }

    /// Conversations that are asked for.
    fn count(self) -> usize {
        match self {
            Self::Unasked => 0,
            Self::Drawn(count) => count,
            Self::Given(given) => given.len(),
        }
    }
}

/// What is wanted of a pair.
#[derive(Clone, Copy)]
pub struct Wish<'a> {
    /// How large.
    pub size: Size,
    /// Codes.
    pub config: &'a BitDeltaConfig,
    /// Largest rank of a budget's factors; `None` goes by the bytes.
    pub rank: Option<usize>,
    /// Conversations to train on.
    pub data: Option<&'a [Conversation]>,
    /// Conversations to draw from the fine-tuned model for it; `None` draws where that is worth minutes.
    pub draw: Option<usize>,
    /// What to train on beside them.
    pub general: General<'a>,
    /// Passes over all; 0 trains nothing.
    pub epochs: Option<f64>,
    /// See [`Watch::watched`].
    pub watched: &'a [Conversation],
    /// See [`Watch::patience`].
    pub patience: usize,
    /// See [`Watch::checkpoint`].
    pub checkpoint: Option<&'a Path>,
}

/// Compresses the pair tensor by tensor, and trains what is kept where there are conversations. The report is that of codes.
///
/// # Errors
/// Options out of range, models that are no pair, weights that are not finite, conversations that the model's template cannot
/// render, [`Error::Budget`], [`Error::Interrupted`] when `stop` is raised while it trains.
pub fn compress(
    base: &Base,
    finetuned: &Base,
    wish: &Wish<'_>,
    (progress, stop): (&dyn Progress, &AtomicBool),
) -> Result<(Variant, Option<Report>), Error> {
    let work = Work { base, finetuned, wish, progress, stop };
    if let Some(bytes) = work.bytes()? {
        return Ok((work.to_budget(bytes)?, None));
    }
    let (mut variant, mut report) = compress_pair(base, finetuned, wish.config, progress)?;
    if wish.data.is_some() || wish.draw.is_some_and(|count| count > 0) {
        work.distil(&mut variant, &mut report)?;
    }
    Ok((variant, Some(report)))
}

/// The folder beside a variant's file in which checkpoints of its lesson are.
pub fn checkpoint_of(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".checkpoints");
    output.with_file_name(name)
}

/// Writes the variant, and removes its lesson's checkpoints, which have had their use. Returns its bytes.
///
/// # Errors
/// A place that cannot be written.
pub fn write(variant: &Variant, output: &Path) -> Result<u64, Error> {
    let bytes = variant.write(output)?;
    let checkpoint = checkpoint_of(output);
    if checkpoint.exists() {
        fs::remove_dir_all(&checkpoint).map_err(|source| Error::io(&checkpoint, source))?;
    }
    Ok(bytes)
}

struct Work<'a> {
    base: &'a Base,
    finetuned: &'a Base,
    wish: &'a Wish<'a>,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
}

impl Work<'_> {
    /// The size in bytes; `None` for codes.
    fn bytes(&self) -> Result<Option<u64>, Error> {
        match self.wish.size {
            Size::Bytes(bytes) => return Ok(Some(bytes)),
            Size::BitsPerWeight(bits) => return Ok(Some(budget::bytes_at(self.base, bits))),
            Size::Codes => return Ok(None),
            Size::Best => {}
        }
        let bytes = budget::default_bytes(self.base, self.finetuned)?;
        self.progress.say(&match bytes {
            Some(bytes) => format!(
                "no size was named: {}, what keeps most for its bytes (budget, bits-per-weight or bits name one)",
                format_bytes(bytes)
            ),
            None => "no size was named: 1 bit a weight, since the embedding or the head moved too".to_owned(),
        });
        Ok(bytes)
    }

    fn to_budget(&self, bytes: u64) -> Result<Variant, Error> {
        let Self { base, finetuned, wish, progress, .. } = *self;
        let unasked = self.draws_unasked(bytes);
        let draws = wish.draw.unwrap_or(if unasked { draw::COUNT } else { 0 });
        let (examples, general) = match self.examples_and_general(draws, self.is_few(bytes)) {
            Err(error) if unasked => {
                progress.say(&format!("warning: the weights alone are used: {error}"));
                (Vec::new(), 0)
            }
            found => found?,
        };
        let mut options = budget::Options { rank: wish.rank, ..budget::Options::new(bytes) };
        options.schedule = self.schedule(options.schedule);
        let template = base.tokenizer.template_id(&Template::Model);
        let mut info = Info::new(base.fingerprint(), &base.name, wish.config.clone(), &template);
        info.notes.insert("method".into(), json!("compress"));
        info.notes.insert("budget".into(), json!(bytes));
        if !examples.is_empty() && options.schedule.epochs > 0.0 {
            let mut trained_on = json!({"examples": examples.len(), "drawn": draws});
            if general > 0 {
                trained_on["general"] = json!(general);
            }
            info.notes.insert("trained_on".into(), trained_on);
        }
        let watched = self.watched()?;
        budget::compress_to(base, finetuned, &examples, &options, info, self.watch(&watched))
    }

    /// Trains the scales of the codes on the conversations; in no passes, chooses the codes for them instead.
    fn distil(&self, variant: &mut Variant, report: &mut Report) -> Result<(), Error> {
        let Self { base, finetuned, wish, progress, .. } = *self;
        let (examples, general) = self.examples_and_general(wish.draw.unwrap_or(0), true)?;
        let schedule = self.schedule(Schedule { epochs: 2.0, batch: 8, rate: SCALE_RATE, seed: SEED });
        if schedule.epochs == 0.0 {
            budget::refine_codes(base, finetuned, variant, &examples, schedule.seed, progress)?;
            variant.info.notes.insert("codes_chosen_for".into(), json!({"examples": examples.len()}));
        } else {
            let watched = self.watched()?;
            let teacher = Teacher::new(finetuned, base, &[&examples[..], &watched].concat(), progress)?;
            let watch = self.watch(&watched);
            let (first, last) = distil_scales(base, &teacher, variant, &examples, schedule, watch)?;
            progress.say(&format!(
                "KL to the fine-tuned model: {first:.4} nats a token in the first pass, {last:.4} in the last"
            ));
            let mut distilled = json!({"epochs": schedule.epochs, "examples": examples.len()});
            if general > 0 {
                distilled["general"] = json!(general);
            }
            variant.info.notes.insert("distilled".into(), distilled);
        }
        report.relative_error = budget::measure_errors(variant, base, finetuned)?;
        Ok(())
    }

    fn watch<'w>(&'w self, watched: &'w [Example]) -> Watch<'w> {
        let Wish { checkpoint, patience, .. } = *self.wish;
        Watch { checkpoint, watched, patience, ..Watch::new(self.progress, self.stop) }
    }

    fn watched(&self) -> Result<Vec<Example>, Error> {
        budget::examples(self.base, &Template::Model, self.wish.watched)
    }

    /// What is learnt from, and how many general conversations are among it. Where `drifts` says that what is made would drift
    /// without any, they may be drawn unasked, and are left out if that fails.
    fn examples_and_general(&self, draws: usize, drifts: bool) -> Result<(Vec<Example>, usize), Error> {
        let general = self.general(drifts);
        match self.examples(draws, general) {
            Err(error) if matches!(self.wish.general, General::Unasked) && general.count() > 0 => {
                let given = self.examples(draws, General::Drawn(0))?;
                self.progress.say(&format!("warning: the data alone is used: {error}"));
                Ok((given, 0))
            }
            found => Ok((found?, general.count())),
        }
    }

    /// What is asked for, or where nobody asks, what is worth it if what is made `drifts`.
    fn general(&self, drifts: bool) -> General<'_> {
        let Self { base, wish, .. } = *self;
        let General::Unasked = wish.general else { return wish.general };
        let learns = wish.data.is_some() && wish.epochs != Some(0.0);
        if !(drifts && learns && draws_in_minutes(base)) {
            return General::Drawn(0);
        }
        self.progress.say(&format!(
            "what learns from the data alone drifts on other text: {} conversations of the base itself are learnt from too \
             (general gives others, general 0 none)",
            draw::GENERAL
        ));
        General::Drawn(draw::GENERAL)
    }

    /// The given conversations, so many drawn ones and general ones as the model sees them.
    fn examples(&self, draws: usize, general: General) -> Result<Vec<Example>, Error> {
        let draw = |model: &Base, count| draw::conversations(model, None, &Template::Model, count, SEED, self.progress);
        let mut conversations = self.wish.data.unwrap_or_default().to_vec();
        if draws > 0 {
            conversations.extend(draw(self.finetuned, draws)?);
        }
        match general {
            General::Given(given) => conversations.extend_from_slice(given),
            General::Drawn(count) if count > 0 => conversations.extend(draw(self.base, count)?),
            General::Drawn(_) | General::Unasked => {}
        }
        budget::examples(self.base, &Template::Model, &conversations)
    }

    fn is_few(&self, bytes: u64) -> bool {
        bytes < budget::bytes_at(self.base, FEW_BITS)
    }

    /// Whether a budget of so few bytes is worth draws that nobody asked for; says so, or what could be asked for.
    fn draws_unasked(&self, bytes: u64) -> bool {
        let Self { finetuned, wish, .. } = *self;
        if wish.data.is_some() || wish.draw.is_some() || !self.is_few(bytes) {
            return false;
        }
        let possible = finetuned.tokenizer.chat_template().is_some();
        let worth = draws_in_minutes(finetuned);
        let how = match (worth, possible) {
            (true, _) => {
                "conversations are drawn from the fine-tuned model, which takes minutes (data gives yours, draw 0 uses the \
                 weights alone)"
            }
            (_, true) => "draw takes conversations from the fine-tuned model, data gives yours",
            _ => "data gives conversations",
        };
        self.progress.say(&format!("so few bytes keep far more when they are trained: {how}"));
        worth
    }

    fn schedule(&self, default: Schedule) -> Schedule {
        Schedule { epochs: self.wish.epochs.unwrap_or(default.epochs), ..default }
    }
}

/// Whether a model can be asked for conversations, and is small enough to do so unasked.
fn draws_in_minutes(model: &Base) -> bool {
    model.tokenizer.chat_template().is_some() && model.linear_weights() <= WEIGHTS_OF_MINUTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn golden(name: &str) -> String {
        format!("{}/../../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    fn with<T>(change: impl FnOnce(&mut Wish), look: impl FnOnce(&Work) -> T) -> T {
        with_base(&golden("tiny-llama"), change, look)
    }

    fn with_base<T>(base: &str, change: impl FnOnce(&mut Wish), look: impl FnOnce(&Work) -> T) -> T {
        let [base, finetuned] =
            [base, &golden("tiny-llama-ft")].map(|folder| Base::open(folder).expect("a tiny model"));
        let (config, never) = (BitDeltaConfig::default(), AtomicBool::new(false));
        let mut wish = Wish {
            size: Size::Bytes(1),
            config: &config,
            rank: None,
            data: None,
            draw: None,
            general: General::Unasked,
            epochs: None,
            watched: &[],
            patience: 1,
            checkpoint: None,
        };
        change(&mut wish);
        look(&Work { base: &base, finetuned: &finetuned, wish: &wish, progress: &Silent, stop: &never })
    }

    #[test]
    fn few_bytes_without_data_are_worth_draws_that_nobody_asked_for() {
        with(
            |_| {},
            |work| {
                let few = budget::bytes_at(work.base, FEW_BITS);
                assert!(work.draws_unasked(few - 1) && !work.draws_unasked(few));
            },
        );
        assert!(!with(|wish| wish.data = Some(&[]), |work| work.draws_unasked(1)));
        assert!(!with(|wish| wish.draw = Some(0), |work| work.draws_unasked(1)));
        assert!(!with(|wish| wish.draw = Some(9), |work| work.draws_unasked(1)));
    }

    #[test]
    fn few_bytes_with_data_are_learnt_beside_general_text_unless_somebody_says_otherwise() {
        with(
            |wish| wish.data = Some(&[]),
            |work| {
                let few = budget::bytes_at(work.base, FEW_BITS);
                assert_eq!([few - 1, few].map(|bytes| work.is_few(bytes)), [true, false]);
                assert_eq!([true, false].map(|drifts| work.general(drifts).count()), [draw::GENERAL, 0]);
            },
        );
        assert_eq!(with(|_| {}, |work| work.general(true).count()), 0);
        let asked = |general| {
            with(|wish| (wish.data, wish.general) = (Some(&[][..]), general), |work| work.general(true).count())
        };
        assert_eq!([0, 7].map(|count| asked(General::Drawn(count))), [0, 7]);
        assert_eq!(asked(General::Given(&[])), 0);
        let untrained = |wish: &mut Wish| (wish.data, wish.epochs) = (Some(&[][..]), Some(0.0));
        assert_eq!(with(untrained, |work| work.general(true).count()), 0);
    }

    #[test]
    fn data_is_learnt_alone_where_the_base_cannot_be_asked_for_general_text() {
        let folder = tempfile::tempdir().expect("a folder");
        for entry in fs::read_dir(golden("tiny-llama")).expect("a tiny model") {
            let from = entry.expect("a file").path();
            let to = folder.path().join(from.file_name().expect("a name"));
            // Nothing comes before the user's text that a question could follow.
            match fs::read_to_string(&from).ok().filter(|_| from.ends_with("tokenizer_config.json")) {
                Some(text) => {
                    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                    config["chat_template"] = json!("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}");
                    fs::write(to, config.to_string()).expect("written");
                }
                None => drop(fs::copy(&from, to).expect("copied")),
            }
        }
        let turn =
            |role: &str, content: &str| bitdelta_model::chat::Message { role: role.into(), content: content.into() };
        let messages = vec![turn("user", "hello there"), turn("assistant", "good day")];
        let data: &[_] = Box::leak(Box::new([Conversation { messages }]));
        let base = folder.path().to_str().expect("a path");
        let made = |general| {
            let change = |wish: &mut Wish| (wish.data, wish.general, wish.epochs) = (Some(data), general, Some(1.0));
            with_base(base, change, |work| work.to_budget(1))
        };
        let error = made(General::Drawn(3)).expect_err("asked for").to_string();
        assert!(error.contains("begins with the user's text"), "{error}");
        // A byte holds no variant: what comes after the data is not what is asked about here.
        let error = made(General::Unasked).expect_err("too few bytes").to_string();
        assert!(!error.contains("template"), "{error}");
    }
}
