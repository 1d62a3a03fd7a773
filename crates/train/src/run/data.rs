//! From the data sets of a run to the items that it learns from, and those that it is measured on.

use crate::{
    Error, TrainConfig,
    batch::{self, Example},
    config::{Method, Stage},
    data::{self, Conversation},
    objective::{Asked, Item, Judged, Pair, Taught},
};
use bitdelta_model::{
    Base,
    chat::{Message, Template},
};
use rayon::prelude::*;

/// What is learnt from and what is held out.
pub(super) struct Data {
    pub train: Vec<Item>,
    pub held_out: Vec<Item>,
    /// Examples of the data set, whole and cut.
    pub examples: usize,
}

/// Items of a data set, and what was left out.
#[derive(Default)]
struct Encoded {
    items: Vec<Item>,
    /// How many were cut at `cutoff_len`.
    truncated: usize,
    /// How many had nothing to learn left after the cut.
    dropped: usize,
}

/// What turns conversations into items.
struct Encoder<'a> {
    base: &'a Base,
    template: &'a Template,
    config: &'a TrainConfig,
}

impl Data {
    pub fn load(
        base: &Base,
        template: &Template,
        config: &TrainConfig,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Error> {
        let encoder = Encoder { base, template, config };
        let (examples, train, held) = match config.stage {
            _ if config.dataset.is_empty() => (0, Encoded::default(), Encoded::default()),
            Stage::Sft => encoder.load(data::load, Encoder::answers)?,
            Stage::Dpo => encoder.load(data::load_preferences, Encoder::pairs)?,
            Stage::Kto => encoder.load(data::load_judged, Encoder::judged)?,
            Stage::Grpo => encoder.load(data::load_prompts, Encoder::asked)?,
        };
        if train.truncated > 0 {
            warnings.push(format!(
                "{} of {examples} conversations were cut at {} tokens (cutoff_len)",
                train.truncated, config.cutoff_len
            ));
        }
        if train.dropped > 0 {
            warnings.push(format!(
                "{} conversations leave no answer to learn from within cutoff_len and were left out",
                train.dropped
            ));
        }
        if train.items.is_empty() && !config.dataset.is_empty() {
            let problem = "no conversation has an answer to learn from within cutoff_len".into();
            return Err(Error::Dataset { name: config.dataset.clone(), problem });
        }
        Ok(Self { train: train.items, held_out: held.items, examples })
    }

    /// Adds what a teacher teaches. Where there is no data set, some of it is held out as `val_size` says.
    pub fn add_lessons(&mut self, mut lessons: Vec<Taught>, config: &TrainConfig) -> Result<(), Error> {
        if config.dataset.is_empty() {
            self.held_out = split(&mut lessons, config)?.into_iter().map(Item::Taught).collect();
        }
        self.train.extend(lessons.into_iter().map(Item::Taught));
        Ok(())
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.train.iter().chain(&self.held_out).map(Item::longest).max().unwrap_or(0)
    }

    /// Of all tokens to learn from and which of them count.
    pub fn hash(&self) -> String {
        hash(&self.train)
    }

    /// Values that are kept for the whole run beside the model: a teacher's hidden states, `width` a token.
    pub fn cached_values(&self, width: usize) -> usize {
        let items = self.train.iter().chain(&self.held_out);
        width * items.filter(|item| matches!(item, Item::Taught(_))).map(Item::units).sum::<usize>()
    }

    /// Tokens of the largest batch that any order can give.
    pub fn largest_batch(&self, config: &TrainConfig) -> usize {
        let mut lengths: Vec<usize> = self.train.iter().map(Item::tokens).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.iter().take(config.per_device_train_batch_size).sum()
    }
}

impl Encoder<'_> {
    /// The number of training examples, their items, and the held-out items.
    fn load<T>(
        &self,
        read: fn(&str, &std::path::Path) -> Result<Vec<T>, Error>,
        encode: fn(&Self, &[T]) -> Result<Encoded, Error>,
    ) -> Result<(usize, Encoded, Encoded), Error> {
        let config = self.config;
        let mut examples = read(&config.dataset, &config.dataset_dir)?;
        examples.truncate(config.max_samples.unwrap_or(usize::MAX));
        let held_out = match &config.eval_dataset {
            Some(name) => read(name, &config.dataset_dir)?,
            None => split(&mut examples, config)?,
        };
        Ok((examples.len(), encode(self, &examples)?, encode(self, &held_out)?))
    }

    fn answers(&self, conversations: &[Conversation]) -> Result<Encoded, Error> {
        let (base, template, config) = (self.base, self.template, self.config);
        self.encode(conversations.par_iter().map(|conversation| {
            Ok(Item::Answer(Example::new(&base.tokenizer, template, &conversation.messages, config)?))
        }))
    }

    fn pairs(&self, preferences: &[data::Preference]) -> Result<Encoded, Error> {
        self.encode(preferences.par_iter().map(|preference| {
            let side = |answer: &str| self.answer(&preference.prompt, answer);
            let (chosen, rejected) = (side(&preference.chosen)?, side(&preference.rejected)?);
            Ok(Item::Pair(Pair { chosen, rejected, reference: [0.0; 2] }))
        }))
    }

    fn judged(&self, judged: &[data::Judged]) -> Result<Encoded, Error> {
        self.encode(judged.par_iter().enumerate().map(|(at, one)| {
            let parts = |one: &data::Judged| -> (Vec<Message>, String) {
                let mut prompt = one.conversation.messages.clone();
                let answer = prompt.pop().map(|last| last.content).unwrap_or_default();
                (prompt, answer)
            };
            let (prompt, answer) = parts(one);
            // The answer before it in the data, the last one's for the first, as TRL has it.
            let other = parts(&judged[(at + judged.len() - 1) % judged.len()]).1;
            Ok(Item::Judged(Judged {
                answer: self.answer(&prompt, &answer)?,
                mismatched: self.answer(&prompt, &other)?,
                good: one.good,
                reference: [0.0; 2],
            }))
        }))
    }

    /// Prompts that leave room for an answer.
    fn asked(&self, prompts: &[data::Prompt]) -> Result<Encoded, Error> {
        let (base, config) = (self.base, self.config);
        let mut out = Encoded::default();
        let (beside, longest) = match config.method {
            Method::Experience => (config.experience_room(), config.cutoff_len.min(base.config.max_positions)),
            Method::Full | Method::LowRank => (0, config.cutoff_len),
        };
        for prompt in prompts {
            let tokens = base.tokenizer.encode_chat(&prompt.messages, self.template, true)?;
            match tokens.len() + beside + config.grpo_answer_len <= longest {
                true => out.items.push(Item::Asked(Asked::new(prompt.clone(), tokens, config.grpo_answer_len))),
                false => out.dropped += 1,
            }
        }
        Ok(out)
    }

    /// A prompt and its answer, of which the answer counts.
    fn answer(&self, prompt: &[Message], answer: &str) -> Result<Example, Error> {
        let answer = Message { role: "assistant".into(), content: answer.into() };
        let messages: Vec<Message> = prompt.iter().cloned().chain([answer]).collect();
        Example::last_answer(&self.base.tokenizer, self.template, &messages)
    }

    /// Cuts items at `cutoff_len` and leaves out those with nothing left to learn.
    fn encode(&self, items: impl IndexedParallelIterator<Item = Result<Item, Error>>) -> Result<Encoded, Error> {
        let longest = self.config.cutoff_len;
        let items: Vec<Item> = items.collect::<Result<_, _>>()?;
        let mut out = Encoded::default();
        for mut item in items {
            let (first, second) = match &mut item {
                Item::Answer(example) => (example, None),
                Item::Pair(pair) => (&mut pair.chosen, Some(&mut pair.rejected)),
                Item::Judged(judged) => (&mut judged.answer, Some(&mut judged.mismatched)),
                Item::Taught(_) | Item::Asked(_) | Item::Rewarded(_) => unreachable!("these are made to fit"),
            };
            let (mut truncated, mut empty) = (false, false);
            for example in std::iter::once(first).chain(second) {
                truncated |= example.cut(longest);
                empty |= example.targets() == 0;
            }
            out.truncated += usize::from(truncated);
            match empty {
                true => out.dropped += 1,
                false => out.items.push(item),
            }
        }
        Ok(out)
    }
}

/// Takes the held-out share from `examples`: drawn by the seed, or the last ones when nothing is shuffled.
fn split<T>(examples: &mut Vec<T>, config: &TrainConfig) -> Result<Vec<T>, Error> {
    let total = examples.len();
    let count =
        if config.val_size < 1.0 { (total as f64 * config.val_size).ceil() as usize } else { config.val_size as usize };
    if count == 0 {
        return Ok(Vec::new());
    }
    if count >= total {
        let problem = format!("{} leaves nothing of {total} conversations to learn from", config.val_size);
        return Err(Error::setting("val_size", problem));
    }
    let mut drawn = batch::order(total, usize::MAX, config.seed, config.shuffle).split_off(total - count);
    drawn.sort_unstable();
    let mut held_out = Vec::with_capacity(count);
    for index in drawn.into_iter().rev() {
        held_out.push(examples.remove(index));
    }
    held_out.reverse();
    Ok(held_out)
}

fn hash(items: &[Item]) -> String {
    let mut hasher = blake3::Hasher::new();
    for item in items {
        if let Item::Judged(judged) = item {
            hasher.update(&[u8::from(judged.good)]);
        }
        if let Item::Asked(asked) = item {
            hasher.update(asked.reference.as_deref().unwrap_or_default().as_bytes());
        }
        let told = match item {
            Item::Taught(taught) => Some(&taught.teacher),
            _ => None,
        };
        for example in item.examples().chain(told) {
            hasher.update(&(example.tokens.len() as u64).to_le_bytes());
            for (token, counts) in example.tokens.iter().zip(&example.counts) {
                hasher.update(&token.to_le_bytes());
                hasher.update(&[u8::from(*counts)]);
            }
        }
    }
    hasher.finalize().to_hex().to_string()
}
