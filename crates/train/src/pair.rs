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
/// Below so many bits a weight, weights alone lose much that draws keep.
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
    /// Passes over them; 0 trains nothing.
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
        let examples = match self.examples(draws) {
            Err(error) if unasked => {
                progress.say(&format!("warning: the weights alone are used: {error}"));
                Vec::new()
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
            info.notes.insert("trained_on".into(), json!({"examples": examples.len(), "drawn": draws}));
        }
        let watched = self.watched()?;
        budget::compress_to(base, finetuned, &examples, &options, info, self.watch(&watched))
    }

    /// Trains the scales of the codes on the conversations; in no passes, chooses the codes for them instead.
    fn distil(&self, variant: &mut Variant, report: &mut Report) -> Result<(), Error> {
        let Self { base, finetuned, wish, progress, .. } = *self;
        let examples = self.examples(wish.draw.unwrap_or(0))?;
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
            variant
                .info
                .notes
                .insert("distilled".into(), json!({"epochs": schedule.epochs, "examples": examples.len()}));
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

    /// The given conversations and so many drawn ones as the model sees them.
    fn examples(&self, draws: usize) -> Result<Vec<Example>, Error> {
        let mut conversations = self.wish.data.unwrap_or_default().to_vec();
        if draws > 0 {
            let drawn = draw::conversations(self.finetuned, None, &Template::Model, draws, SEED, self.progress)?;
            conversations.extend(drawn);
        }
        budget::examples(self.base, &Template::Model, &conversations)
    }

    /// Whether a budget of so few bytes is worth draws that nobody asked for; says so, or what could be asked for.
    fn draws_unasked(&self, bytes: u64) -> bool {
        let Self { base, finetuned, wish, .. } = *self;
        if wish.data.is_some() || wish.draw.is_some() || bytes >= budget::bytes_at(base, FEW_BITS) {
            return false;
        }
        let possible = finetuned.tokenizer.chat_template().is_some();
        let worth = possible && base.linear_weights() <= WEIGHTS_OF_MINUTES;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn few_bytes_without_data_are_worth_draws_that_nobody_asked_for() {
        let folder = |name: &str| format!("{}/../../tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        let [base, finetuned] =
            ["tiny-llama", "tiny-llama-ft"].map(|name| Base::open(&folder(name)).expect("a tiny model"));
        let (config, never) = (BitDeltaConfig::default(), AtomicBool::new(false));
        let draws = |bytes, data, draw| {
            let size = Size::Bytes(bytes);
            let (rank, epochs, checkpoint) = (None, None, None);
            let wish = &Wish { size, config: &config, rank, data, draw, epochs, watched: &[], patience: 1, checkpoint };
            Work { base: &base, finetuned: &finetuned, wish, progress: &Silent, stop: &never }.draws_unasked(bytes)
        };
        let few = budget::bytes_at(&base, FEW_BITS) - 1;
        assert!(draws(few, None, None));
        assert!(!draws(few + 1, None, None) && !draws(few, Some(&[]), None));
        assert!(!draws(few, None, Some(0)) && !draws(few, None, Some(9)));
    }
}
