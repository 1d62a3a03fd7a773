//! `bitdelta train`, and the part of training that `llamafactory-cli train` shares with it: running and reporting.
use crate::{Context, Error, commands::progress::Bar, cost::Cost, interrupt::Interrupt, output, sizes::format_bytes};
use bitdelta_train::{
    TrainConfig, pool,
    progress::Progress,
    run::{self, Outcome},
};
use std::path::{Path, PathBuf};

/// Arguments of `train`.
#[derive(Debug, Clone, clap::Args)]
pub struct TrainArgs {
    /// Base model: a Hugging Face folder, a .gguf file, or a hub id
    #[arg(long, visible_alias = "model", value_name = "PATH", env = "BITDELTA_MODEL", hide_env_values = true)]
    base: String,
    /// Conversations: a JSON, JSONL or CSV file (messages, sharegpt, alpaca, or prompt and response)
    #[arg(long, value_name = "FILE", required_unless_present = "preferences")]
    data: Option<String>,
    /// What the user prefers: text, a JSON dictionary, a file of either, or a variant whose experiences become a delta;
    /// learnt beside the data, or alone
    #[arg(long, value_name = "FILE|TEXT")]
    preferences: Option<String>,
    /// Data whose prompts the preferences are taught on, instead of built-in ones
    #[arg(long, value_name = "FILE")]
    preference_prompts: Option<String>,
    /// What is learnt from: sft (answers), dpo (chosen and rejected answers), kto (answers with a
    /// kto_tag) or grpo (prompts, with reward_command)
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Held-out conversations; or hold some out of the data with --val-size
    #[arg(long, value_name = "FILE")]
    eval_data: Option<String>,
    /// Share (below 1) or number of conversations to hold out
    #[arg(long, value_name = "N")]
    val_size: Option<String>,
    /// User whose variant this is: it goes to VARIANTS_DIR/USER
    #[arg(long, value_name = "USER", required_unless_present_any = ["output", "output_dir"])]
    user: Option<String>,
    /// Folder that servers read variants from
    #[arg(long, value_name = "DIR", default_value = "variants")]
    variants_dir: PathBuf,
    /// Write the variant to exactly this file
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["user", "output_dir"])]
    output: Option<PathBuf>,
    /// Write variant.safetensors, the log and checkpoints into this folder
    #[arg(long, value_name = "DIR", conflicts_with = "user")]
    output_dir: Option<PathBuf>,
    /// What learns: lowrank (small factors, the smallest files), full (all projections), or with --stage grpo
    /// experience (no weight; rules in words, carried in the prompt)
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Rank of the factors
    #[arg(long, value_name = "R")]
    rank: Option<String>,
    /// Bits a weight of the factors, 1 to 8; 16 keeps them in f16, as a LoRA file does
    #[arg(long, value_name = "BITS")]
    factor_bits: Option<String>,
    /// Make the file at most so large (340KB, 10MB): trains low-rank factors of a rank that follows, then their rounded form
    #[arg(long, value_name = "SIZE")]
    budget: Option<String>,
    /// The same as bits a weight of the linears, such as 0.02
    #[arg(long, value_name = "B", conflicts_with = "budget")]
    bits_per_weight: Option<String>,
    /// Bits a weight after full training: 1, 2 or 4
    #[arg(long, value_name = "BITS")]
    bits: Option<String>,
    /// Inputs that share a scale after full training: 32 to 256, or row
    #[arg(long, value_name = "N")]
    group_size: Option<String>,
    /// Passes over the data
    #[arg(long, value_name = "N")]
    epochs: Option<String>,
    /// Optimiser steps, instead of epochs
    #[arg(long, value_name = "N")]
    max_steps: Option<String>,
    /// Peak learning rate
    #[arg(long, visible_alias = "learning-rate", value_name = "RATE")]
    lr: Option<String>,
    /// Conversations of one forward pass
    #[arg(long, value_name = "N")]
    batch_size: Option<String>,
    /// Forward passes of one optimiser step
    #[arg(long, value_name = "N")]
    accumulate: Option<String>,
    /// Chat template: model (the model's own), chatml, qwen3
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Longest conversation in tokens
    #[arg(long, value_name = "N")]
    cutoff_len: Option<String>,
    /// Seed of the order and of the factors' start
    #[arg(long, value_name = "N")]
    seed: Option<String>,
    /// Continue from the latest checkpoint (auto) or from this one
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "auto")]
    resume: Option<String>,
    /// Start anew where an earlier run wrote
    #[arg(long)]
    overwrite: bool,
    /// Any other setting by its LLaMA-Factory name, as in --set warmup_ratio=0.1
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

impl TrainArgs {
    fn config(&self) -> Result<TrainConfig, Error> {
        let given = [
            ("dataset", &self.data),
            ("preferences", &self.preferences),
            ("preference_prompts", &self.preference_prompts),
            ("stage", &self.stage),
            ("eval_dataset", &self.eval_data),
            ("val_size", &self.val_size),
            ("finetuning_type", &self.method),
            ("lora_rank", &self.rank),
            ("factor_bits", &self.factor_bits),
            ("budget", &self.budget),
            ("bits_per_weight", &self.bits_per_weight),
            ("bits", &self.bits),
            ("group_size", &self.group_size),
            ("num_train_epochs", &self.epochs),
            ("max_steps", &self.max_steps),
            ("learning_rate", &self.lr),
            ("per_device_train_batch_size", &self.batch_size),
            ("gradient_accumulation_steps", &self.accumulate),
            ("template", &self.template),
            ("cutoff_len", &self.cutoff_len),
            ("seed", &self.seed),
            ("resume_from_checkpoint", &self.resume),
        ];
        let folder = self.folder()?;
        let folder = folder.to_str().ok_or_else(|| Error::Usage("the output path is not UTF-8".to_owned()))?;
        let mut pairs = vec![("model_name_or_path", self.base.as_str()), ("output_dir", folder)];
        pairs.extend(given.iter().filter_map(|(name, value)| value.as_deref().map(|value| (*name, value))));
        if self.overwrite {
            pairs.push(("overwrite_output_dir", "true"));
        }
        for setting in &self.set {
            let pair = setting.split_once('=');
            pairs.push(pair.ok_or_else(|| Error::Usage(format!("--set {setting}: write it as NAME=VALUE")))?);
        }
        let (config, _) = TrainConfig::from_pairs(pairs).context("reading the settings")?;
        Ok(config)
    }

    /// Where the run keeps its files. For a single output file that is a folder beside it, removed in the end.
    fn folder(&self) -> Result<PathBuf, Error> {
        if let Some(file) = &self.output {
            if file.exists() && !self.overwrite {
                return Err(Error::Usage(format!("{} exists; use --overwrite to replace it", file.display())));
            }
            let mut name = file.file_name().unwrap_or_default().to_os_string();
            name.push(".training");
            return Ok(file.with_file_name(name));
        }
        match (&self.output_dir, &self.user) {
            (Some(folder), _) => Ok(folder.clone()),
            (None, Some(user)) => {
                let plain = !user.is_empty() && !user.starts_with('.') && !user.contains(['/', '\\', '\0']);
                match plain {
                    true => Ok(self.variants_dir.join(user)),
                    false => {
                        Err(Error::Usage(format!("{user:?} cannot name a variant: no slashes, no dot at its start")))
                    }
                }
            }
            (None, None) => Err(Error::Usage("where should the variant go? --user, -o or --output-dir".to_owned())),
        }
    }
}

/// Trains a variant.
///
/// # Errors
/// Settings that make no sense, and everything that training reports; [`Error::Interrupted`] after Ctrl-C.
pub fn run(args: &TrainArgs) -> Result<(), Error> {
    let cost = Cost::begin();
    let config = args.config()?;
    let mut outcome = train(&config, args.quiet)?;
    if let Some(file) = &args.output {
        let doing = || format!("moving the variant to {}", file.display());
        std::fs::rename(&outcome.path, file).context(doing())?;
        std::fs::remove_dir_all(&config.output_dir).context(doing())?;
        outcome.path.clone_from(file);
    }
    report(&outcome, args.json.then_some(cost))
}

/// Runs a training with progress on stderr. Ctrl-C saves a checkpoint first and says how to go on.
pub(crate) fn train(config: &TrainConfig, quiet: bool) -> Result<Outcome, Error> {
    pool::join();
    let interrupt = Interrupt::watch()?;
    let bar = if quiet { Bar::quiet() } else { Bar::new() };
    match interrupt.during(|| run::run(config, &bar, interrupt.flag())) {
        Err(stopped @ bitdelta_train::Error::Interrupted { .. }) => {
            Bar::new().say(&stopped.to_string());
            Err(Error::Interrupted)
        }
        result => result.context("training"),
    }
}

/// Prints what came out: for people, or with what it cost as JSON.
pub(crate) fn report(outcome: &Outcome, json: Option<Cost>) -> Result<(), Error> {
    if let Some(cost) = json {
        let doing = "writing the outcome";
        let mut figures = serde_json::to_value(outcome).context(doing)?;
        cost.add_to(&mut figures);
        return output::line(&serde_json::to_string_pretty(&figures).context(doing)?);
    }
    let figure = |loss: Option<f64>| loss.map(|loss| format!("{loss:.4}"));
    if let (Some(base), Some(trained), Some(variant)) =
        (figure(outcome.loss_base), figure(outcome.loss_trained), figure(outcome.loss_variant))
    {
        output::line(&format!("held-out loss: base {base}, trained {trained}, variant {variant}"))?;
    }
    if let Some(accuracy) = outcome.accuracy {
        output::line(&format!(
            "held-out preferences that the variant ranks as the data does: {:.1} %",
            100.0 * accuracy
        ))?;
    }
    if let (Some(base), Some(variant)) = (outcome.reward_base, outcome.reward_variant) {
        output::line(&format!(
            "mean reward: base {base:.4}, with {} experiences {variant:.4}",
            outcome.experiences.len()
        ))?;
        for experience in &outcome.experiences {
            output::line(&format!("- {experience}"))?;
        }
    }
    let name = |path: &Path| path.display().to_string();
    output::line(&format!(
        "{} steps at {:.0} tokens/s; wrote {} ({})",
        outcome.steps,
        outcome.tokens_per_second,
        name(&outcome.path),
        format_bytes(outcome.bytes)
    ))
}
