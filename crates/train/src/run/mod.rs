//! One training run: data in, a variant file out.
//!
//! [`run`] is the whole of it in order: read the data, check the memory, build the graph, train, quantise, measure,
//! write. The loop counts optimiser steps; which examples a step takes follows from its number alone, so a run that goes
//! on from a checkpoint sees what an unbroken one would have seen, and ends with the same bits. Where words are to be learnt
//! and no weights, everything from the graph on is `experience`'s.

mod budget;
mod data;
mod experience;
mod explore;
pub mod memory;
mod result;
mod reward;

use crate::{
    Error, TrainConfig, batch,
    batch::Example,
    checkpoint,
    config::{Every, Method, Stage},
    graph::{Adaptation, Graph, matrix::Matrix, parameter::Parameter},
    objective::{self, Asked, Item, Score},
    optimiser::{self, AdamW},
    progress::Progress,
    teach::{self, Preferences},
    template,
};
use bitdelta_delta::{Info, Variant};
use bitdelta_model::{Base, chat::Template};
use data::Data;
use explore::Explorer;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// The variant's name in `output_dir`.
pub use bitdelta_delta::file::FILE_NAME as VARIANT_FILE;
/// The log's name in `output_dir`: one JSON object a line.
pub const LOG_FILE: &str = "training_log.jsonl";

/// What a finished run gives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The variant file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Optimiser steps.
    pub steps: usize,
    /// Mean held-out loss under the base, of an answer's token or of a preference; `None` without held-out data, as the
    /// two below.
    pub loss_base: Option<f64>,
    /// The same after training.
    pub loss_trained: Option<f64>,
    /// The same with the quantised variant.
    pub loss_variant: Option<f64>,
    /// Share of held-out preferences that the variant ranks as their data does, more than the base; `None` for answers.
    pub accuracy: Option<f64>,
    /// Mean reward of the base where experiences were learnt, on held-out prompts if there are any; else `None`.
    pub reward_base: Option<f64>,
    /// The same with the experiences.
    pub reward_variant: Option<f64>,
    /// What was learnt in words.
    pub experiences: Vec<String>,
    /// Training tokens a second; drawn ones where words are learnt.
    pub tokens_per_second: f64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Trains as `config` says. When `stop` becomes true, the run saves a checkpoint and returns [`Error::Interrupted`].
///
/// # Errors
/// Everything in [`Error`]; published files and earlier checkpoints stay intact.
pub fn run(config: &TrainConfig, progress: &dyn Progress, stop: &AtomicBool) -> Result<Outcome, Error> {
    config.validate()?;
    // The base first: a wrong path is the likeliest mistake.
    let base = Base::open(&config.model_name_or_path)?;
    run_on(&base, config, progress, stop)
}

/// As [`run`], on a base that is already open.
///
/// # Errors
/// As [`run`].
pub fn run_on(base: &Base, config: &TrainConfig, progress: &dyn Progress, stop: &AtomicBool) -> Result<Outcome, Error> {
    config.validate()?;
    let config = &config.for_base(base)?;
    let mut warnings = config.bitdelta()?.warnings();
    let (template, warning) = template::choose(config.template.as_deref(), &base.tokenizer)?;
    warnings.extend(warning);
    let mut data = Data::load(base, &template, config, &mut warnings)?;
    let _lock = lock(&config.output_dir)?;
    let resume = prepare_output(config, progress)?;
    if config.method == Method::Experience {
        let work = experience::Work { base, template: &template, config, data: &data, progress, stop };
        return experience::learn(&work, resume.as_deref(), warnings);
    }
    let preferences = config.preferences.as_deref().map(Preferences::read).transpose()?;
    if let Some(preferences) = &preferences {
        let lessons = teach::lessons(base, &template, config, preferences, progress, stop)?;
        let Some(lessons) = lessons else {
            return Err(Error::Interrupted { step: 0, checkpoint: config.output_dir.clone() });
        };
        data.add_lessons(lessons, config)?;
    }
    let load = memory::Load {
        tokens: data.largest_batch(config),
        cached_values: data.cached_values(base.config.hidden),
        samples: config.stage == Stage::Grpo,
    };
    let checkpointing = memory::plan(&base.config, config, load, bitdelta_model::memory::available())?;
    if checkpointing && config.gradient_checkpointing.is_none() {
        progress.say("activations are formed again on the way back (gradient_checkpointing), to fit in memory");
    }
    for warning in &warnings {
        progress.say(&format!("warning: {warning}"));
    }
    let adaptation = match config.method {
        Method::Full => Adaptation::Full,
        Method::LowRank => {
            Adaptation::LowRank { rank: config.lora_rank, scale: config.factor_scale(), seed: config.seed }
        }
        Method::Experience => unreachable!("such a run has returned above"),
    };
    let explorer = match config.stage {
        Stage::Grpo => Some(Explorer::new(base, &template, config, data.longest())?),
        Stage::Sft | Stage::Dpo | Stage::Kto => None,
    };
    let graph = Graph::kept(&base.config, base, adaptation, config.keeping(), data.longest(), checkpointing)?;
    objective::prepare(&graph, &mut data.train, config.per_device_eval_batch_size, progress)?;
    objective::prepare(&graph, &mut data.held_out, config.per_device_eval_batch_size, progress)?;
    let parameters = graph.parameters();
    let mut session = Session {
        config,
        data: &data,
        graph: &graph,
        explorer,
        taught_from: preferences.and_then(|preferences| preferences.variant),
        optimiser: AdamW::new(config, &parameters),
        parameters,
        state: State { identity: identity(base, config, &data), ..State::default() },
        best: None,
        progress,
        stop,
        trained_tokens: 0,
        seconds: 0.0,
    };
    session.start(resume.as_deref())?;
    session.train()?;
    session.finish(base, &template, warnings)
}

/// Makes `output_dir` and takes it for this process: two runs that write one folder would continue each other.
fn lock(folder: &Path) -> Result<fs::File, Error> {
    fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
    let open = fs::File::open(folder).map_err(|source| Error::io(folder, source))?;
    match open.try_lock() {
        Ok(()) => Ok(open),
        Err(fs::TryLockError::WouldBlock) => {
            let problem =
                format!("another training is writing {}; wait for it, or use another folder", folder.display());
            Err(Error::setting("output_dir", problem))
        }
        Err(fs::TryLockError::Error(source)) => Err(Error::io(folder, source)),
    }
}

/// Makes or checks `output_dir`; returns the checkpoint to go on from.
fn prepare_output(config: &TrainConfig, progress: &dyn Progress) -> Result<Option<PathBuf>, Error> {
    let folder = &config.output_dir;
    checkpoint::clean(folder);
    let checkpoints = checkpoint::list(folder);
    let latest = checkpoints.last().map(|(_, path)| path.clone());
    let holds_variant = folder.join(VARIANT_FILE).exists();
    match config.resume_from_checkpoint.as_deref() {
        Some("auto" | "true" | "True" | "latest") if latest.is_none() && !holds_variant => {
            progress.say("no checkpoint to continue from; starting at the beginning");
            return Ok(None);
        }
        Some("auto" | "true" | "True" | "latest") if latest.is_none() => {
            let problem = format!("{} holds a finished variant and no checkpoint to continue from", folder.display());
            return Err(Error::setting("resume_from_checkpoint", problem));
        }
        Some("auto" | "true" | "True" | "latest") => return Ok(latest),
        Some("false" | "False" | "none") | None => {}
        Some(path) => return Ok(Some(path.into())),
    }
    if config.overwrite_output_dir {
        for (_, path) in checkpoints {
            fs::remove_dir_all(&path).map_err(|source| Error::io(&path, source))?;
        }
        return Ok(None);
    }
    if holds_variant {
        let problem = format!(
            "{} already holds a variant; use another folder, or --overwrite (llamafactory-cli: --overwrite_output_dir)",
            folder.display()
        );
        return Err(Error::setting("output_dir", problem));
    }
    if let Some(path) = &latest {
        progress.say(&format!(
            "found {}: continuing from it (--overwrite or --overwrite_output_dir starts anew)",
            path.display()
        ));
    }
    Ok(latest)
}

/// Hash of all that decides the result, so that a checkpoint is never continued with something else.
fn identity(base: &Base, config: &TrainConfig, data: &Data) -> String {
    // Where and how often things are written, and how memory is used, change nothing.
    let neutral = TrainConfig {
        model_name_or_path: String::new(),
        dataset: String::new(),
        dataset_dir: PathBuf::new(),
        eval_dataset: config.eval_dataset.as_ref().map(|_| String::new()),
        // What they say is in the data's hash.
        preferences: config.preferences.as_ref().map(|_| String::new()),
        preference_prompts: config.preference_prompts.as_ref().map(|_| String::new()),
        output_dir: PathBuf::new(),
        overwrite_output_dir: false,
        resume_from_checkpoint: None,
        gradient_checkpointing: None,
        logging_steps: 1,
        save_strategy: Every::No,
        save_steps: 1,
        save_total_limit: None,
        ..config.clone()
    };
    let settings = serde_json::to_string(&neutral).unwrap_or_default();
    let text = format!("{settings}\n{}\n{}\n{}", data.hash(), base.fingerprint(), data.held_out.len());
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// Adds a line to the log.
fn append(output_dir: &Path, line: &serde_json::Value) -> Result<(), Error> {
    let path = output_dir.join(LOG_FILE);
    let written =
        OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| writeln!(file, "{line}"));
    written.map_err(|source| Error::io(&path, source))
}

/// What is not a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
struct State {
    /// Optimiser steps done.
    step: usize,
    /// Hash of the settings, data and base that decide the result.
    identity: String,
    /// Held-out loss of the base.
    loss_base: Option<f64>,
    /// Held-out loss when last measured.
    loss_held_out: Option<f64>,
    /// Lowest held-out loss so far.
    best: Option<f64>,
    /// Measurements since then.
    since_best: usize,
}

/// What one optimiser step did.
struct Step {
    loss: f64,
    accuracy: Option<f64>,
    reward: Option<f64>,
    norm: f64,
    rate: f64,
}

/// What the held-out items say.
#[derive(Debug, Clone, Copy)]
struct Measured {
    loss: f64,
    accuracy: Option<f64>,
}

/// A run under way.
struct Session<'a> {
    config: &'a TrainConfig,
    data: &'a Data,
    graph: &'a Graph,
    explorer: Option<Explorer<'a>>,
    /// Content hash of the variant whose experiences are taught.
    taught_from: Option<String>,
    parameters: Vec<Arc<Parameter>>,
    optimiser: AdamW,
    state: State,
    best: Option<Vec<Matrix>>,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
    trained_tokens: usize,
    seconds: f64,
}

impl Session<'_> {
    /// Optimiser steps of one pass over the data.
    fn steps_per_epoch(&self) -> usize {
        let batches = self.data.train.len().div_ceil(self.config.per_device_train_batch_size);
        batches.div_ceil(self.config.gradient_accumulation_steps)
    }

    fn total_steps(&self) -> usize {
        match usize::try_from(self.config.max_steps) {
            Ok(steps) => steps,
            Err(_) => (self.config.num_train_epochs * self.steps_per_epoch() as f64).ceil() as usize,
        }
    }

    fn start(&mut self, resume: Option<&Path>) -> Result<(), Error> {
        if let Some(folder) = resume {
            let identity = self.state.identity.clone();
            (self.state, self.best) = checkpoint::load(
                folder,
                &identity,
                |state: &State| &state.identity,
                &self.parameters,
                &mut self.optimiser,
            )?;
            self.optimiser.step = self.state.step;
            self.progress.say(&format!("continuing after step {}", self.state.step));
            return Ok(());
        }
        let log = self.config.output_dir.join(LOG_FILE);
        fs::write(&log, "").map_err(|source| Error::io(&log, source))?;
        self.state.loss_base = self.held_out("measuring the base")?.map(|found| found.loss);
        if let Some(loss) = self.state.loss_base {
            self.progress.say(&format!("held-out loss before training: {loss:.4}"));
        }
        Ok(())
    }

    fn train(&mut self) -> Result<(), Error> {
        let (total, per_epoch) = (self.total_steps(), self.steps_per_epoch());
        self.progress.begin("training", total as u64, "steps");
        self.progress.advance(self.state.step as u64, "");
        let (mut loss_sum, mut loss_steps) = (0.0, 0usize);
        while self.state.step < total {
            let Some(Step { loss, accuracy, reward, norm, rate }) = self.step(total)? else {
                self.progress.end();
                let checkpoint = self.save()?;
                return Err(Error::Interrupted { step: self.state.step, checkpoint });
            };
            loss_sum += loss;
            loss_steps += 1;
            let note = reward.map_or_else(|| format!("loss {loss:.3}"), |reward| format!("reward {reward:.3}"));
            self.progress.advance(1, &note);
            let step = self.state.step;
            let epoch = step as f64 / per_epoch as f64;
            if step.is_multiple_of(self.config.logging_steps) || step == total {
                let mean = loss_sum / loss_steps as f64;
                let mut line = json!({
                    "step": step, "epoch": epoch, "loss": mean, "learning_rate": rate, "grad_norm": norm,
                    "tokens_per_second": self.tokens_per_second(),
                });
                for (name, figure) in [("accuracy", accuracy), ("reward", reward)] {
                    if let Some(figure) = figure {
                        line[name] = json!(figure);
                    }
                }
                self.log(&line)?;
                (loss_sum, loss_steps) = (0.0, 0);
            }
            let due = |every: Every, steps: usize| match every {
                Every::No => false,
                Every::Steps => step.is_multiple_of(steps),
                Every::Epoch => step.is_multiple_of(per_epoch),
            };
            let ends = step == total;
            let mut enough = false;
            if due(self.config.eval_strategy, self.config.eval_steps)
                || (ends && self.config.eval_strategy != Every::No)
            {
                enough = self.evaluate(epoch)?;
            }
            if due(self.config.save_strategy, self.config.save_steps) && !ends {
                self.save()?;
            }
            if enough {
                self.progress.say("the held-out loss no longer falls: stopping early");
                break;
            }
        }
        self.progress.end();
        Ok(())
    }

    /// One optimiser step. `None` when asked to stop; then nothing has changed.
    fn step(&mut self, total: usize) -> Result<Option<Step>, Error> {
        let config = self.config;
        let per_epoch = self.steps_per_epoch();
        let (epoch, place) = (self.state.step / per_epoch, self.state.step % per_epoch);
        let order = batch::order(self.data.train.len(), epoch, config.seed, config.shuffle);
        let per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps;
        let chosen: Vec<&Item> =
            order.iter().skip(place * per_step).take(per_step).map(|&index| &self.data.train[index]).collect();
        let start = Instant::now();
        let explored = match &self.explorer {
            None => None,
            Some(explorer) => {
                let asked: Vec<&Asked> = chosen
                    .iter()
                    .filter_map(|item| match item {
                        Item::Asked(asked) => Some(asked),
                        _ => None,
                    })
                    .collect();
                match explorer.explore(self.graph, &asked, self.state.step, self.stop)? {
                    None => return Ok(None),
                    found => found,
                }
            }
        };
        let chosen = explored.as_ref().map_or(chosen, |explored| explored.items.iter().collect());
        let reward = explored.as_ref().map(|explored| explored.reward);
        // Without any group that says something there is nothing to learn in this step.
        let units = chosen.iter().map(|item| item.units()).sum::<usize>().max(1);
        let mut score = Score::default();
        for items in chosen.chunks(config.per_device_train_batch_size) {
            if self.stop.load(Ordering::Relaxed) {
                for parameter in &self.parameters {
                    *parameter.gradient() = None;
                }
                return Ok(None);
            }
            self.trained_tokens += items.iter().map(|item| item.tokens()).sum::<usize>();
            // The mean is over all units of the step, however they fall into forward passes.
            score += objective::pass(self.graph, config, items, Some(1.0 / units as f32))?;
        }
        let loss = score.loss / units as f64;
        let rate = optimiser::learning_rate(config, self.state.step, total);
        let norm = optimiser::gradient_norm(&self.parameters);
        if !loss.is_finite() || !norm.is_finite() {
            return Err(Error::Diverged { step: self.state.step + 1, loss, learning_rate: rate });
        }
        self.optimiser.update(&self.parameters, rate, optimiser::clip_factor(norm, config.max_grad_norm));
        self.seconds += start.elapsed().as_secs_f64();
        self.state.step += 1;
        Ok(Some(Step { loss, accuracy: score.accuracy(), reward, norm, rate }))
    }

    /// Measures the held-out loss; true when it has not fallen for long enough to stop.
    fn evaluate(&mut self, epoch: f64) -> Result<bool, Error> {
        let Some(Measured { loss, accuracy }) = self.held_out("")? else { return Ok(false) };
        let mut line = json!({"step": self.state.step, "epoch": epoch, "eval_loss": loss});
        if let Some(accuracy) = accuracy {
            line["eval_accuracy"] = json!(accuracy);
        }
        self.log(&line)?;
        self.progress.say(&format!("epoch {epoch:.2}: held-out loss {loss:.4}"));
        self.state.loss_held_out = Some(loss);
        if self.state.best.is_none_or(|best| loss < best) {
            self.state.best = Some(loss);
            self.state.since_best = 0;
            if self.config.load_best_model_at_end {
                self.best = Some(self.parameters.iter().map(|parameter| parameter.value().clone()).collect());
            }
        } else {
            self.state.since_best += 1;
        }
        Ok(self.config.early_stopping_steps.is_some_and(|patience| self.state.since_best >= patience.max(1)))
    }

    /// The mean loss over the held-out items' units; `None` without held-out data. A named phase shows its progress.
    fn held_out(&self, phase: &str) -> Result<Option<Measured>, Error> {
        if self.data.held_out.is_empty() {
            return Ok(None);
        }
        let batches = self.data.held_out.chunks(self.config.per_device_eval_batch_size);
        if !phase.is_empty() {
            self.progress.begin(phase, batches.len() as u64, "batches");
        }
        let (mut score, mut units) = (Score::default(), 0);
        for items in batches {
            let items: Vec<&Item> = items.iter().collect();
            score += objective::pass(self.graph, self.config, &items, None)?;
            units += items.iter().map(|item| item.units()).sum::<usize>();
            if !phase.is_empty() {
                self.progress.advance(1, "");
            }
        }
        if !phase.is_empty() {
            self.progress.end();
        }
        Ok(Some(Measured { loss: score.loss / units as f64, accuracy: score.accuracy() }))
    }

    fn save(&self) -> Result<PathBuf, Error> {
        let keep = self.config.save_total_limit;
        checkpoint::save(
            &self.config.output_dir,
            (self.state.step, &self.state),
            &self.parameters,
            &self.optimiser,
            self.best.as_deref(),
            keep,
        )
    }

    fn log(&self, line: &serde_json::Value) -> Result<(), Error> {
        append(&self.config.output_dir, line)
    }

    fn tokens_per_second(&self) -> f64 {
        self.trained_tokens as f64 / self.seconds.max(1e-9)
    }

    /// Quantises, measures and writes the variant.
    fn finish(mut self, base: &Base, template: &Template, mut warnings: Vec<String>) -> Result<Outcome, Error> {
        let mut loss_trained = self.state.loss_held_out;
        if let Some(best) = self.best.take() {
            for (parameter, best) in self.parameters.iter().zip(best) {
                *parameter.value_mut() = best;
            }
            loss_trained = self.state.best;
        }
        if loss_trained.is_none() {
            loss_trained = self.held_out("measuring what was learnt")?.map(|found| found.loss);
        }
        let saved = if self.config.budget.is_some() { Some(self.save()?) } else { None };
        // Moments and gradients are done with; their memory serves what follows.
        self.optimiser.moments.clear();
        let weights = base.tensors().iter().map(|tensor| tensor.rows as u64 * tensor.cols as u64).sum();
        let bitdelta = self.config.bitdelta()?.for_model(weights);
        let mut info = Info::new(base.fingerprint(), &base.name, bitdelta, &base.tokenizer.template_id(template));
        let linears = match self.config.budget_bytes()? {
            None => result::quantise(base, self.graph, self.config, &info.config, self.progress)?,
            Some(bytes) => {
                // The figures that are still missing take as much as these.
                info.notes = self.notes(loss_trained, loss_trained, &warnings);
                let examples: Vec<Example> = self.data.train.iter().flat_map(Item::examples).cloned().collect();
                let work = (bytes, self.config.budget_schedule());
                budget::round(base, self.graph, &examples, work, &info, (self.progress, self.stop))?
            }
        };
        if let Some(checkpoint) = saved {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { step: self.state.step, checkpoint });
            }
            fs::remove_dir_all(&checkpoint).map_err(|source| Error::io(&checkpoint, source))?;
        }
        let measured = self.held_out("measuring the variant")?;
        let loss_variant = measured.map(|found| found.loss);
        if let (Some(before), Some(after)) = (self.state.loss_base, loss_variant)
            && after >= before
        {
            warnings.push(format!(
                "the variant is no better than the base on held-out data ({after:.4} against {before:.4})"
            ));
        }
        info.notes = self.notes(loss_trained, loss_variant, &warnings);
        let path = self.config.output_dir.join(VARIANT_FILE);
        let bytes = Variant::new(info, linears).write(&path)?;
        teach::clean(&self.config.output_dir)?;
        self.log(&json!({
            "loss_base": self.state.loss_base, "loss_trained": loss_trained, "loss_variant": loss_variant, "bytes": bytes,
        }))?;
        Ok(Outcome {
            path,
            bytes,
            steps: self.state.step,
            loss_base: self.state.loss_base,
            loss_trained,
            loss_variant,
            accuracy: measured.and_then(|found| found.accuracy),
            reward_base: None,
            reward_variant: None,
            experiences: Vec::new(),
            tokens_per_second: self.tokens_per_second(),
            warnings,
        })
    }

    /// What the variant file tells of its making. No text of the data is in it.
    fn notes(
        &self,
        loss_trained: Option<f64>,
        loss_variant: Option<f64>,
        warnings: &[String],
    ) -> serde_json::Map<String, serde_json::Value> {
        let config = self.config;
        let mut training = json!({
            "type": config.method,
            "stage": config.stage,
            "steps": self.state.step,
            "epochs": self.state.step as f64 / self.steps_per_epoch() as f64,
            "batch": config.per_device_train_batch_size * config.gradient_accumulation_steps,
            "learning_rate": config.learning_rate(),
            "seed": config.seed,
            "conversations": self.data.examples,
            "data": self.data.hash(),
        });
        if config.stage == Stage::Grpo {
            training["group_size"] = json!(config.grpo_group_size);
        }
        if config.preferences.is_some() {
            let lessons = self.data.train.iter().filter(|item| matches!(item, Item::Taught(_))).count();
            training["lessons_of_preferences"] = json!(lessons);
            if let Some(variant) = &self.taught_from {
                training["experiences_of"] = json!(variant);
            }
        }
        if matches!(config.stage, Stage::Dpo | Stage::Kto) {
            training["pref_beta"] = json!(config.pref_beta);
        }
        if config.stage == Stage::Dpo {
            training["pref_loss"] = json!(config.pref_loss);
        }
        if config.method == Method::LowRank {
            training["rank"] = json!(config.lora_rank);
            if let Some(bits) = config.quantization_bit {
                training["base_bits"] = json!(bits);
            }
            training["factor_bits"] = json!(config.factor_bits);
        }
        let mut notes = serde_json::Map::new();
        notes.insert("method".into(), json!("train"));
        notes.insert("training".into(), training);
        if !self.data.held_out.is_empty() {
            let fidelity = json!({
                "held_out": self.data.held_out.len(),
                "loss_base": self.state.loss_base,
                "loss_trained": loss_trained,
                "loss_variant": loss_variant,
            });
            notes.insert("fidelity".into(), fidelity);
        }
        if !warnings.is_empty() {
            notes.insert("warnings".into(), json!(warnings));
        }
        notes
    }
}
