//! One task and one seed: every entry is trained or compressed, and all are measured on the same held-out conversations.

use super::{
    plan::{Entry, FULL, Family, Make},
    runs::{Runner, Saved, shown},
};
use crate::{Context, Error};
use bitdelta_delta::Variant;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// What a user teaches: a folder with `train.jsonl` and `held.jsonl`.
#[derive(Debug, Clone)]
pub struct Task {
    /// The folder's name.
    pub name: String,
    /// The folder.
    pub folder: PathBuf,
}

/// What all runs share.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The base.
    pub model: String,
    /// General conversations, for the drift.
    pub general: Option<PathBuf>,
    /// Where runs are kept.
    pub output: PathBuf,
    /// Multiples of each method's own rate that are tried with the first seed.
    pub rates: Vec<f64>,
    /// More options of every training.
    pub train: Vec<String>,
    /// Requests at the same time when tokens a second are measured; 0: they are not.
    pub batch: usize,
    /// Keep the full fine-tunes' merged weights.
    pub keep: bool,
}

/// What one variant measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    /// The run's seed.
    pub seed: u64,
    /// Peak learning rate; of a compressed variant that of its fine-tune.
    pub rate: f64,
    /// The command that made it.
    pub command: String,
    /// `bitdelta eval`'s figures.
    pub eval: Value,
    /// Seconds that making it took, without its fine-tune.
    pub seconds: Option<f64>,
    /// Most memory that making it held, in bytes.
    pub peak_memory: Option<f64>,
    /// Training tokens a second.
    pub training_tokens_per_second: Option<f64>,
    /// Generated tokens a second in a batch, a variant like this one each; with the first seed alone.
    pub tokens_per_second: Option<f64>,
}

/// Figures of one entry over all seeds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// The task.
    pub task: String,
    /// The entry's id.
    pub id: String,
    /// The entry's name.
    pub label: String,
    /// Its line in the plots.
    pub family: Family,
    /// One for each seed.
    pub runs: Vec<Figures>,
}

/// What a command that made a variant printed, beside the variant.
const RESULT: &str = "result.json";
/// Variants above so many bytes are not served in a batch to see how fast they are.
const LARGEST_SERVED: u64 = 100_000_000;

/// Rates that were best with the first seed, by the entry's id.
pub type Rates = BTreeMap<String, f64>;

/// A variant that was made.
struct Made {
    variant: PathBuf,
    saved: Saved,
    rate: f64,
}

/// The work on one task with one seed.
pub struct Study<'a> {
    /// What all runs share.
    pub setting: &'a Setting,
    /// The task.
    pub task: &'a Task,
    /// The seed.
    pub seed: u64,
}

impl Study<'_> {
    /// Makes and measures every entry. `rates` holds what the first seed found; where it has none for an entry, the rates
    /// are swept and the best is added.
    ///
    /// # Errors
    /// What a command reports.
    pub fn run(&self, entries: &[&Entry], rates: &mut Rates, runner: &mut Runner) -> Result<Vec<Figures>, Error> {
        let mut made: Vec<Made> = Vec::new();
        for entry in entries {
            made.push(match &entry.make {
                Make::Train(options) => self.train(entry, options, rates, runner)?,
                Make::TrainAsFull(options) => self.train_at(entry, options, rates.get(FULL).copied(), runner)?,
                Make::Compress { options, data } => self.compress(entry, options, *data, (&made[0], rates), runner)?,
            });
        }
        let evals = self.measure(&made, runner)?;
        let merged = self.merged();
        if !self.setting.keep && merged.exists() {
            fs::remove_dir_all(&merged).context(format!("removing {}", merged.display()))?;
        }
        let mut all = Vec::new();
        for (made, eval) in made.into_iter().zip(evals) {
            let printed = |name: &str| made.saved.result[name].as_f64();
            all.push(Figures {
                seed: self.seed,
                rate: made.rate,
                command: format!("bitdelta {}", shown(&made.saved.command)),
                eval,
                seconds: printed("seconds"),
                peak_memory: printed("peak_memory"),
                training_tokens_per_second: printed("tokens_per_second"),
                tokens_per_second: self.speed(&made.variant, runner)?,
            });
        }
        Ok(all)
    }

    fn folder(&self) -> PathBuf {
        self.setting.output.join("runs").join(&self.task.name).join(format!("seed-{}", self.seed))
    }

    fn doing(&self, what: &str) -> String {
        format!("{}, seed {}: {what}", self.task.name, self.seed)
    }

    /// At the rate that is known to be best, or at each rate.
    fn train(&self, entry: &Entry, options: &[String], rates: &mut Rates, runner: &mut Runner) -> Result<Made, Error> {
        if let Some(rate) = rates.get(&entry.id) {
            // Where that is the method's own, it may have been trained without being named.
            let (folder, arguments) = self.training(entry, options, None);
            if runner.knows(&folder.join(RESULT), &arguments) {
                let own = self.train_at(entry, options, None, runner)?;
                if own.rate.total_cmp(rate).is_eq() {
                    return Ok(own);
                }
            }
            return self.train_at(entry, options, Some(*rate), runner);
        }
        // The method's own rate follows from the rank, which follows from the budget: the first run tells it.
        let own = self.train_at(entry, options, None, runner)?;
        let own_rate = own.rate;
        let mut all = vec![own];
        for multiple in self.setting.rates.iter().filter(|multiple| **multiple != 1.0) {
            all.push(self.train_at(entry, options, Some(own_rate * multiple), runner)?);
        }
        let loss = |made: &Made| made.saved.result["loss_variant"].as_f64().unwrap_or(f64::INFINITY);
        all.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
        let best = all.swap_remove(0);
        rates.insert(entry.id.clone(), best.rate);
        Ok(best)
    }

    fn train_at(
        &self,
        entry: &Entry,
        options: &[String],
        rate: Option<f64>,
        runner: &mut Runner,
    ) -> Result<Made, Error> {
        let (folder, arguments) = self.training(entry, options, rate);
        let doing = self.doing(&named(entry, rate));
        let saved = runner.run(&doing, &folder.join(RESULT), arguments)?;
        let variant = folder.join("variant.safetensors");
        let info = Variant::read(&variant).context(format!("reading {}", variant.display()))?.info;
        let rate = info.notes["training"]["learning_rate"].as_f64().unwrap_or(f64::NAN);
        Ok(Made { variant, saved, rate })
    }

    /// The folder and the command of a training.
    fn training(&self, entry: &Entry, options: &[String], rate: Option<f64>) -> (PathBuf, Vec<String>) {
        let folder = self.folder().join(named(entry, rate));
        let mut arguments = words(["train", "--base", &self.setting.model, "--data"]);
        arguments.extend([path(&self.task.folder.join("train.jsonl")), "--eval-data".into()]);
        arguments.extend([path(&self.task.folder.join("held.jsonl")), "--output-dir".into(), path(&folder)]);
        arguments.extend(options.iter().cloned());
        arguments.extend(["--seed".into(), self.seed.to_string()]);
        if let Some(rate) = rate {
            arguments.extend(["--lr".into(), rate.to_string()]);
        }
        arguments.extend(self.setting.train.iter().cloned());
        arguments.extend(words(["--overwrite", "--quiet", "--json"]));
        (folder, arguments)
    }

    fn compress(
        &self,
        entry: &Entry,
        options: &[String],
        data: bool,
        (full, rates): (&Made, &Rates),
        runner: &mut Runner,
    ) -> Result<Made, Error> {
        let variant = self.folder().join(&entry.id).join("variant.safetensors");
        let mut arguments = words(["compress", "--base", &self.setting.model, "--finetuned"]);
        arguments.extend([path(&self.merged()), "-o".into(), path(&variant)]);
        arguments.extend(options.iter().cloned());
        if data {
            arguments.extend(["--data".into(), path(&self.task.folder.join("train.jsonl"))]);
        }
        arguments.push("--json".into());
        let saved = self.of_pair(full, &self.doing(&entry.id), &variant.with_file_name(RESULT), arguments, runner)?;
        Ok(Made { variant, saved, rate: rates.get(FULL).copied().unwrap_or(f64::NAN) })
    }

    /// Runs a command that reads the merged fine-tune, which is written first where it is not there; neither when its result is
    /// known.
    fn of_pair(
        &self,
        full: &Made,
        doing: &str,
        file: &Path,
        arguments: Vec<String>,
        runner: &mut Runner,
    ) -> Result<Saved, Error> {
        let merged = self.merged();
        if !runner.knows(file, &arguments) && !merged.exists() {
            let result = self.folder().join("finetuned.json");
            if result.exists() {
                fs::remove_file(&result).context(format!("removing {}", result.display()))?;
            }
            let mut export = words(["export", "--base", &self.setting.model, "--format", "hf", "-o"]);
            export.extend([path(&merged), "--json".into(), path(&full.variant)]);
            runner.run(&self.doing("merging the fine-tune"), &result, export)?;
        }
        runner.run(doing, file, arguments)
    }

    fn measure(&self, made: &[Made], runner: &mut Runner) -> Result<Vec<Value>, Error> {
        let mut arguments = words(["eval", "--model", &self.setting.model, "--finetuned"]);
        arguments.extend([path(&self.merged()), "--data".into(), path(&self.task.folder.join("held.jsonl"))]);
        if let Some(general) = &self.setting.general {
            arguments.extend(["--general".into(), path(general)]);
        }
        arguments.push("--json".into());
        arguments.extend(made.iter().map(|made| path(&made.variant)));
        let file = self.folder().join("eval.json");
        let saved = self.of_pair(&made[0], &self.doing("measuring all"), &file, arguments, runner)?;
        match saved.result {
            Value::Array(all) => Ok(all),
            one => Ok(vec![one]),
        }
    }

    /// Tokens a second of a batch in which everybody has such a variant.
    fn speed(&self, variant: &Path, runner: &mut Runner) -> Result<Option<f64>, Error> {
        let batch = self.setting.batch;
        // A fine-tune in f16 takes 200 MB a user, and nobody serves it like that.
        let large = fs::metadata(variant).context(format!("reading {}", variant.display()))?.len() > LARGEST_SERVED;
        if self.seed != 1 || batch == 0 || large {
            return Ok(None);
        }
        let mut arguments = speed_of(self.setting);
        arguments.extend(["--users".into(), batch.to_string(), "--variant".into(), path(variant)]);
        let doing = self.doing(&format!("tokens a second of {}", variant.display()));
        let saved = runner.run(&doing, &variant.with_file_name("speed.json"), arguments)?;
        Ok(saved.result["tokens_per_second"].as_f64())
    }

    /// The full fine-tune as a model of its own.
    fn merged(&self) -> PathBuf {
        self.folder().join("finetuned")
    }
}

impl Setting {
    /// Tokens a second of the base alone in such a batch; `None` where they are not measured.
    ///
    /// # Errors
    /// What the command reports.
    pub fn base_speed(&self, runner: &mut Runner) -> Result<Option<f64>, Error> {
        if self.batch == 0 {
            return Ok(None);
        }
        let file = self.output.join("runs").join("base-speed.json");
        Ok(runner.run("tokens a second of the base", &file, speed_of(self))?.result["tokens_per_second"].as_f64())
    }
}

/// An entry's folder, at its method's own rate or at another.
fn named(entry: &Entry, rate: Option<f64>) -> String {
    rate.map_or_else(|| entry.id.clone(), |rate| format!("{}@{rate}", entry.id))
}

fn speed_of(setting: &Setting) -> Vec<String> {
    let mut arguments = words(["bench", "decode", "--model", &setting.model, "--base-dtype", "int8", "--batch"]);
    arguments.extend([setting.batch.to_string(), "--json".into()]);
    arguments
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
