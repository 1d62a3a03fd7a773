//! GRPO without training (Training-Free GRPO, arXiv 2510.08191): the model stays as it is, and what rewards teach is kept
//! in words, as experiences that stand in the system turn of every chat with the variant.
//!
//! A step draws a group of answers to each of its prompts, with the experiences so far, and has them rewarded, as GRPO on
//! weights does. Of a group with better and worse answers the model itself is shown the best and the worst and asked for
//! one rule (`lesson.rs`). A weak model's rules may be worthless or harmful (the paper's own weaker model gets worse with
//! them), so none is believed: a rule is added to the list, or takes the place of an entry like it, only where the mean
//! reward over the training prompts rises, measured with the same prompts and seeds for both lists (`list.rs`). Each step
//! draws new seeds for that, so that a list that was lucky once does not stay. After each epoch every entry is tried
//! without, and goes unless that much is lost.
//!
//! What was chosen by a measurement looks better in it than it is. The figures that are reported are therefore measured
//! once more at the end, with seeds of their own, and on the held-out prompts where there are any: no experience was
//! chosen by them. Where the reward does not rise there, the run ends in an error with both figures and no variant is
//! written; one that is there stays.
//!
//! Answers are drawn from an int8 copy of the base, at `grpo_temperature`. Everything follows from the settings and the
//! number of the step, and the state, a few lines of text, is saved after each step: a run that goes on ends with the same
//! file as an unbroken one.

mod lesson;
mod list;
#[cfg(test)]
mod tests;

use super::{LOG_FILE, Outcome, VARIANT_FILE, append, data::Data, identity, reward};
use crate::{
    Error, TrainConfig, batch, checkpoint,
    objective::{Asked, Item},
    progress::{Progress, Silent},
    sample::{Answer, Drawing, Sampler},
};
use bitdelta_delta::{Info, LinearDelta, Variant};
use bitdelta_engine::{BaseDtype, prompt};
use bitdelta_model::{Base, chat::Template};
use list::Rise;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Instant,
};

/// Most lessons that are measured in a step; those of the groups whose rewards lie farthest apart.
const LESSONS: usize = 4;
/// Answers that a list is measured by at least, where there are fewer prompts.
const MEASURED: usize = 64;
/// How freely lessons are drawn.
const LESSON: (f32, f32) = (0.7, 0.95);

/// What seeds are for: none is used for two purposes.
#[derive(Clone, Copy)]
enum Purpose {
    Groups,
    Lessons,
    Measuring,
    Reporting,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
struct State {
    /// Steps done.
    step: usize,
    /// Hash of the settings, data and base that decide the result.
    identity: String,
    /// The list so far.
    experiences: Vec<String>,
    /// Lessons that did not help beside this list.
    refused: Vec<String>,
    /// Lessons measured so far.
    lessons: usize,
    /// Mean rewards before and after the change that helped most, or harmed least.
    best: Option<(f64, f64)>,
}

/// What a run works with.
pub(super) struct Work<'a> {
    pub base: &'a Base,
    pub template: &'a Template,
    pub config: &'a TrainConfig,
    pub data: &'a Data,
    pub progress: &'a dyn Progress,
    pub stop: &'a AtomicBool,
}

/// A run under way.
struct Learner<'a> {
    work: &'a Work<'a>,
    sampler: Sampler,
    /// Most tokens of a prompt with its answer.
    context: usize,
    train: Vec<&'a Asked>,
    held_out: Vec<&'a Asked>,
    /// Training prompts that lists are compared by.
    compared: Vec<&'a Asked>,
    state: State,
    /// Tokens drawn.
    tokens: Cell<usize>,
}

/// Answers and what each is worth.
struct Drawn {
    answers: Vec<Answer>,
    rewards: Vec<f64>,
}

/// A prompt, its answers and what each is worth.
type Group<'a> = (&'a Asked, &'a [Answer], &'a [f64]);

/// What a step did.
struct Step {
    state: State,
    reward: f64,
    groups: usize,
    best: Option<Rise>,
}

/// Learns experiences and writes the variant.
pub(super) fn learn(work: &Work<'_>, resume: Option<&Path>, warnings: Vec<String>) -> Result<Outcome, Error> {
    let Work { base, config, data, progress, .. } = *work;
    for warning in &warnings {
        progress.say(&format!("warning: {warning}"));
    }
    let (train, held_out) = (asked(&data.train), asked(&data.held_out));
    let longest = train.iter().chain(&held_out).map(|asked| asked.prompt.tokens.len()).max().unwrap_or(0);
    // A lesson is asked for with two answers beside the prompt, and with examples.
    let answer = config.grpo_answer_len;
    let context = (longest + answer + config.experience_room()).max(longest + 2 * answer + lesson::ROOM);
    let context = context.min(base.config.max_positions);
    let order = batch::order(train.len(), usize::MAX - 1, config.seed, config.shuffle);
    let compared = order.iter().take(MEASURED).map(|&index| train[index]).collect();
    let identity = identity(base, config, data);
    let state = match resume {
        Some(folder) => checkpoint::load_state(folder, &identity, |state: &State| &state.identity)?,
        None => State { identity, ..State::default() },
    };
    let log = config.output_dir.join(LOG_FILE);
    match resume {
        Some(_) => progress.say(&format!("continuing after step {}", state.step)),
        None => fs::write(&log, "").map_err(|source| Error::io(&log, source))?,
    }
    let sampler = Sampler::new(base, BaseDtype::Int8, context)?;
    let tokens = Cell::new(0);
    let start = Instant::now();
    let mut learner = Learner { work, sampler, context, train, held_out, compared, state, tokens };
    learner.train()?;
    learner.finish(start, warnings)
}

/// The prompts among items, which are nothing else in this stage.
fn asked(items: &[Item]) -> Vec<&Asked> {
    let asked = items.iter().filter_map(|item| if let Item::Asked(asked) = item { Some(asked) } else { None });
    asked.collect()
}

impl Learner<'_> {
    fn steps_per_epoch(&self) -> usize {
        let config = self.work.config;
        self.train.len().div_ceil(config.per_device_train_batch_size * config.gradient_accumulation_steps)
    }

    fn total_steps(&self) -> usize {
        let config = self.work.config;
        let by_epochs = || (config.num_train_epochs * self.steps_per_epoch() as f64).ceil() as usize;
        usize::try_from(config.max_steps).unwrap_or_else(|_| by_epochs())
    }

    fn train(&mut self) -> Result<(), Error> {
        let Work { progress, config, .. } = *self.work;
        let (total, per_epoch) = (self.total_steps(), self.steps_per_epoch());
        progress.begin("learning experiences", total as u64, "steps");
        progress.advance(self.state.step as u64, "");
        while self.state.step < total {
            let Some(Step { state, reward, groups, best }) = self.step(total)? else {
                progress.end();
                return Err(self.interrupted()?);
            };
            self.tell(&state, best);
            let line = json!({
                "step": state.step, "epoch": state.step as f64 / per_epoch as f64, "reward": reward,
                "groups": groups, "lessons": state.lessons - self.state.lessons, "experiences": state.experiences,
                "best_rise": best.map(|rise| rise.difference()),
            });
            self.state = state;
            append(&config.output_dir, &line)?;
            checkpoint::save_state(&config.output_dir, self.state.step, &self.state)?;
            progress.advance(1, &format!("reward {reward:.3}, {} experiences", self.state.experiences.len()));
        }
        progress.end();
        Ok(())
    }

    /// One step. `None` when asked to stop; nothing has changed then.
    fn step(&self, total: usize) -> Result<Option<Step>, Error> {
        let Work { config, progress, .. } = *self.work;
        let per_epoch = self.steps_per_epoch();
        let (epoch, place) = (self.state.step / per_epoch, self.state.step % per_epoch);
        let order = batch::order(self.train.len(), epoch, config.seed, config.shuffle);
        let batch = config.per_device_train_batch_size * config.gradient_accumulation_steps;
        let chosen: Vec<&Asked> = order.iter().skip(place * batch).take(batch).map(|&at| self.train[at]).collect();
        let mut state = State { step: self.state.step + 1, ..self.state.clone() };
        progress.advance(0, "drawing answers");
        let group = config.grpo_group_size;
        let Some(Drawn { answers, rewards }) =
            self.draw(&chosen, &state.experiences, group, self.seed(Purpose::Groups))?
        else {
            return Ok(None);
        };
        let mut groups: Vec<Group<'_>> = chosen
            .iter()
            .zip(answers.chunks(group).zip(rewards.chunks(group)))
            .map(|(asked, (answers, rewards))| (*asked, answers, rewards))
            .filter(|(.., rewards)| spread(rewards) > 0.0)
            .collect();
        groups.sort_by(|a, b| spread(b.2).total_cmp(&spread(a.2)));
        let Some(lessons) = self.lessons(&groups)? else { return Ok(None) };
        state.lessons += lessons.len();
        let seed = self.seed(Purpose::Measuring);
        let mut measure = |list: &[String]| {
            progress.advance(0, &format!("measuring {} lessons", lessons.len()));
            self.measure(&self.compared, list, seed)
        };
        let improved = list::improve(&state.experiences, &lessons, config.max_experiences, &mut measure)?;
        let Some(improved) = improved else { return Ok(None) };
        let ends = state.step.is_multiple_of(per_epoch) || state.step == total;
        let kept = if ends { list::prune(&improved.list, &mut measure)? } else { Some(improved.list) };
        let Some(kept) = kept else { return Ok(None) };
        if kept != state.experiences {
            // Beside another list another lesson may help.
            state.refused.clear();
        }
        state.experiences = kept;
        state.refused.extend(improved.refused);
        if let Some(rise) = improved.best
            && state.best.is_none_or(|(before, after)| rise.difference() > after - before)
        {
            state.best = Some((rise.before, rise.after));
        }
        let groups = groups.len();
        Ok(Some(Step { state, reward: list::mean(&rewards), groups, best: improved.best }))
    }

    /// Says what changed in the list.
    fn tell(&self, state: &State, best: Option<Rise>) {
        let progress = self.work.progress;
        let missing = |from: &[String], of: &[String]| -> Vec<String> {
            of.iter().filter(|one| !from.contains(one)).cloned().collect()
        };
        for one in missing(&self.state.experiences, &state.experiences) {
            let rise =
                best.map_or_else(String::new, |rise| format!(" (reward {:.3} -> {:.3})", rise.before, rise.after));
            progress.say(&format!("step {}: learnt \"{one}\"{rise}", state.step));
        }
        for one in missing(&state.experiences, &self.state.experiences) {
            progress.say(&format!("step {}: dropped \"{one}\"", state.step));
        }
    }

    /// What the model says of the best and the worst answers of these groups: each rule once, none that is known.
    fn lessons(&self, groups: &[Group<'_>]) -> Result<Option<Vec<String>>, Error> {
        let Work { base, template, config, stop, .. } = *self.work;
        let (words, most) = (config.experience_words, config.experience_tokens());
        let mut prompts = Vec::new();
        for (asked, answers, rewards) in groups {
            let at = |better: fn(f64, f64) -> bool| {
                (1..rewards.len()).fold(0, |best, at| if better(rewards[at], rewards[best]) { at } else { best })
            };
            let (best, worst) = (&answers[at(|a, b| a > b)].text, &answers[at(|a, b| a < b)].text);
            for examples in (0..=lesson::EXAMPLES).rev() {
                let turns = lesson::ask(asked.question(), best, worst, words, examples);
                let tokens = base.tokenizer.encode_chat(&turns, template, true)?;
                if tokens.len() + most <= self.context {
                    prompts.push(tokens);
                    break;
                }
            }
        }
        let (temperature, top_p) = LESSON;
        let drawing = Drawing { temperature, top_p, max_tokens: most };
        let said = self.sampler.answers(&prompts, None, drawing, self.seed(Purpose::Lessons), &Silent, stop)?;
        let Some(said) = said else { return Ok(None) };
        let mut lessons: Vec<String> = Vec::new();
        for answer in said {
            self.tokens.set(self.tokens.get() + answer.tokens.len());
            let Some(rule) = lesson::clean(&answer.text, words) else { continue };
            let known = [&lessons, &self.state.experiences, &self.state.refused].into_iter().flatten();
            let is_known = known.into_iter().any(|known| known.to_lowercase() == rule.to_lowercase());
            if !is_known && base.tokenizer.encode(&rule, false)?.len() <= most && lessons.len() < LESSONS {
                lessons.push(rule);
            }
        }
        Ok(Some(lessons))
    }

    /// `draws` answers to each prompt with these experiences, and their rewards. `None` when asked to stop.
    fn draw(&self, asked: &[&Asked], experiences: &[String], draws: usize, seed: u64) -> Result<Option<Drawn>, Error> {
        let Work { base, template, config, stop, .. } = *self.work;
        let mut prompts = Vec::with_capacity(asked.len() * draws);
        for asked in asked {
            let turns = prompt::experienced(&asked.messages, experiences);
            let tokens = base.tokenizer.encode_chat(&turns, template, true)?;
            prompts.extend(std::iter::repeat_n(tokens, draws));
        }
        let drawing = Drawing { temperature: config.grpo_temperature, top_p: 1.0, max_tokens: config.grpo_answer_len };
        let found = self.sampler.answers(&prompts, None, drawing, seed, &Silent, stop)?;
        let Some(answers) = found else { return Ok(None) };
        self.tokens.set(self.tokens.get() + answers.iter().map(|answer| answer.tokens.len()).sum::<usize>());
        let rewards = reward::of(&config.reward_command, asked, &answers)?;
        Ok(Some(Drawn { answers, rewards }))
    }

    /// The rewards of a list on some prompts.
    fn measure(&self, asked: &[&Asked], experiences: &[String], seed: u64) -> Result<Option<Vec<f64>>, Error> {
        let draws = MEASURED.div_ceil(asked.len()).min(self.work.config.grpo_group_size);
        Ok(self.draw(asked, experiences, draws, seed)?.map(|drawn| drawn.rewards))
    }

    /// For this step: the first of as many seeds as may be wanted.
    fn seed(&self, purpose: Purpose) -> u64 {
        let place = 4 * self.state.step as u64 + purpose as u64 + 1;
        self.work.config.seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Saves the state of the last whole step; the error that says where.
    fn interrupted(&self) -> Result<Error, Error> {
        let checkpoint = checkpoint::save_state(&self.work.config.output_dir, self.state.step, &self.state)?;
        Ok(Error::Interrupted { step: self.state.step, checkpoint })
    }

    /// Measures the list once more, on prompts that it was not chosen by if there are any, and writes the variant.
    fn finish(&self, start: Instant, mut warnings: Vec<String>) -> Result<Outcome, Error> {
        let Work { base, template, config, data, progress, .. } = *self.work;
        let State { step, experiences, lessons, .. } = &self.state;
        let prompts = if self.held_out.is_empty() { &self.train } else { &self.held_out };
        let seed = self.seed(Purpose::Reporting);
        progress.begin("measuring what was learnt", 2, "passes");
        let Some(before) = self.measure(prompts, &[], seed)? else { return Err(self.interrupted()?) };
        progress.advance(1, "");
        let after =
            if experiences.is_empty() { Some(before.clone()) } else { self.measure(prompts, experiences, seed)? };
        let Some(after) = after else { return Err(self.interrupted()?) };
        progress.end();
        let rise = Rise::of(&before, &after);
        let folder = &config.output_dir;
        append(
            folder,
            &json!({
                "experiences": experiences, "reward_base": rise.before, "reward_variant": rise.after, "error": rise.error,
                "held_out": !self.held_out.is_empty(),
            }),
        )?;
        if !rise.counts() {
            clear(folder)?;
            return Err(Error::NothingLearnt {
                lessons: *lessons,
                kept: experiences.len(),
                measured: if experiences.is_empty() { self.state.best } else { Some((rise.before, rise.after)) },
                without: rise.before,
            });
        }
        if self.held_out.is_empty() {
            let sentence = "the rewards before and after are of the training prompts, which the experiences were chosen \
                            by: hold some out (val_size, eval_dataset) to know what they are worth on others";
            progress.say(&format!("warning: {sentence}"));
            warnings.push(sentence.into());
        }
        let id = base.tokenizer.template_id(template);
        let mut info = Info::new(base.fingerprint(), &base.name, config.bitdelta()?, &id);
        info.experiences.clone_from(experiences);
        info.notes.insert("method".into(), json!("train"));
        let training = json!({
            "type": config.method, "stage": config.stage, "steps": step,
            "epochs": *step as f64 / self.steps_per_epoch() as f64,
            "batch": config.per_device_train_batch_size * config.gradient_accumulation_steps,
            "group_size": config.grpo_group_size, "temperature": config.grpo_temperature,
            "answer_len": config.grpo_answer_len, "seed": config.seed, "conversations": data.examples,
            "data": data.hash(), "lessons_tried": lessons,
        });
        info.notes.insert("training".into(), training);
        let rewards = json!({
            "prompts": prompts.len(), "held_out": !self.held_out.is_empty(), "answers": before.len(),
            "base": rise.before, "variant": rise.after, "error": rise.error,
        });
        info.notes.insert("rewards".into(), rewards);
        if !warnings.is_empty() {
            info.notes.insert("warnings".into(), json!(warnings));
        }
        let unchanged = |linear: &bitdelta_model::Linear| LinearDelta {
            rows: linear.rows,
            cols: linear.cols,
            parts: Vec::new(),
            relative_error: None,
        };
        let path = folder.join(VARIANT_FILE);
        let bytes = Variant::new(info, base.linears().iter().map(unchanged).collect()).write(&path)?;
        clear(folder)?;
        Ok(Outcome {
            path,
            bytes,
            steps: *step,
            loss_base: None,
            loss_trained: None,
            loss_variant: None,
            accuracy: None,
            reward_base: Some(rise.before),
            reward_variant: Some(rise.after),
            experiences: experiences.clone(),
            tokens_per_second: self.tokens.get() as f64 / start.elapsed().as_secs_f64().max(1e-9),
            warnings,
        })
    }
}

/// Removes what only a run that goes on needs.
fn clear(folder: &Path) -> Result<(), Error> {
    let remove = |path: PathBuf| fs::remove_dir_all(&path).map_err(|source| Error::io(path, source));
    checkpoint::list(folder).into_iter().try_for_each(|(_, path)| remove(path))
}

/// How far a group's rewards lie apart.
fn spread(rewards: &[f64]) -> f64 {
    let (least, most) = rewards.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (x.min(a), x.max(b)));
    most - least
}
