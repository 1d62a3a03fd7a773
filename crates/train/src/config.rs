//! The one set of training settings: names, defaults and checks.
//!
//! Flags, `key=value` words, a YAML file, `bitdelta train` and Python all fill this struct; the names are
//! LLaMA-Factory's, which users bring. A setting that has no meaning on this machine is in [`WITHOUT_EFFECT`] and
//! noted, never silently taken; an unknown one is an error with the nearest name.

use crate::{
    Error,
    budget::{Schedule, TRAINED_RATE, bytes_at, rank_for},
    graph::{Keeping, Precision, Storage},
    template,
};
use bitdelta_delta::{BitDeltaConfig, GroupSize, file::MAX_EXPERIENCES, sizes::parse_bytes};
use bitdelta_model::{Base, nearest::nearest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// Settings of other trainers that are accepted and do nothing here.
pub const WITHOUT_EFFECT: [&str; 19] = [
    "fp16",
    "do_train",
    "do_eval",
    "plot_loss",
    "report_to",
    "logging_dir",
    "run_name",
    "preprocessing_num_workers",
    "dataloader_num_workers",
    "ddp_timeout",
    "overwrite_cache",
    "trust_remote_code",
    "use_fast_tokenizer",
    "flash_attn",
    "lora_target",
    "save_only_model",
    "include_num_input_tokens_seen",
    "optim",
    "packing",
];

/// Settings whose text is never read as a number or a boolean.
const TEXT: [&str; 10] = [
    "model_name_or_path",
    "dataset",
    "dataset_dir",
    "eval_dataset",
    "preferences",
    "preference_prompts",
    "reward_command",
    "output_dir",
    "template",
    "resume_from_checkpoint",
];

/// Settings of weights that learn, which mean nothing where words are learnt.
const OF_WEIGHTS: [&str; 23] = [
    "lora_rank",
    "lora_alpha",
    "factor_bits",
    "bits",
    "group_size",
    "symmetric",
    "quantization_bit",
    "budget",
    "bits_per_weight",
    "budget_epochs",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "gradient_checkpointing",
    "load_best_model_at_end",
    "early_stopping_steps",
    "mask_history",
    "train_on_prompt",
    "preferences",
    "preference_prompts",
];

/// What learns, and in which form the result is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// All attention and MLP projections learn; their change is quantised to `bits`.
    #[serde(alias = "bitdelta")]
    Full,
    /// Low-rank factors learn and are quantised to `factor_bits`.
    #[default]
    #[serde(alias = "lora")]
    LowRank,
    /// No weight learns: what rewards teach is kept in words, see [`crate::run`].
    Experience,
}

/// What is learnt from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Answers.
    #[default]
    Sft,
    /// Pairs of a chosen and a rejected answer.
    Dpo,
    /// Answers judged good or bad.
    Kto,
    /// The model's own answers, rewarded by a program.
    Grpo,
}

/// What is made small over a pair's margin; see [`crate::objective`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreferenceLoss {
    /// DPO.
    #[default]
    Sigmoid,
    /// SLiC's hinge.
    Hinge,
    /// IPO: towards a margin of 1/2β.
    Ipo,
}

/// How the learning rate goes after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Straight down to 0.
    #[default]
    Linear,
    /// Half a cosine down to 0.
    Cosine,
    /// As it is.
    #[serde(alias = "constant_with_warmup")]
    Constant,
}

/// When something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Every {
    /// Never.
    No,
    /// After so many optimiser steps.
    Steps,
    /// After each epoch.
    Epoch,
}

/// Everything a training run depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// What is learnt from.
    pub stage: Stage,
    /// The base: a folder, a GGUF file, or a hub id.
    pub model_name_or_path: String,
    /// A path, or a name in `dataset_dir/dataset_info.json`; several with commas.
    pub dataset: String,
    /// Where data sets are.
    pub dataset_dir: PathBuf,
    /// Held-out data, named as `dataset` is.
    pub eval_dataset: Option<String>,
    /// What the user prefers: text, a JSON dictionary, or a file of either. The base with it in its prompt teaches the
    /// variant.
    pub preferences: Option<String>,
    /// Data whose prompts the preferences are taught on, named as `dataset` is; `None`: built-in ones.
    pub preference_prompts: Option<String>,
    /// Answers of the teacher, one a prompt, over again when there are fewer prompts.
    pub preference_samples: usize,
    /// Most tokens of such an answer.
    pub preference_answer_len: usize,
    /// How freely the teacher answers.
    pub preference_temperature: f32,
    /// Weight of a token of the teacher's answers against one of the data set's.
    pub preference_weight: f64,
    /// Held out from `dataset`: a share below 1, a number of examples from 1.
    pub val_size: f64,
    /// At most so many training examples.
    pub max_samples: Option<usize>,
    /// Chat template; `None` is the model's own.
    pub template: Option<String>,
    /// Longest example in tokens; longer ones are cut.
    pub cutoff_len: usize,
    /// Learn only the last answer of a conversation.
    pub mask_history: bool,
    /// Learn every token.
    pub train_on_prompt: bool,
    /// DPO and KTO: how much the base holds the model back.
    pub pref_beta: f64,
    /// DPO: the loss of a pair.
    pub pref_loss: PreferenceLoss,
    /// DPO: weight of the chosen answer's own mean loss beside it.
    pub pref_ftx: f64,
    /// DPO, sigmoid: share of pairs that are taken to be the wrong way round.
    pub dpo_label_smoothing: f64,
    /// KTO: weight of good answers.
    pub kto_chosen_weight: f64,
    /// KTO: weight of bad answers.
    pub kto_rejected_weight: f64,
    /// GRPO: a program, run by the shell for each step, that reads JSON lines (`prompt`, `messages`, `answer`, `reference`)
    /// and prints a number for each.
    pub reward_command: String,
    /// GRPO: answers to each prompt.
    pub grpo_group_size: usize,
    /// GRPO: most tokens of an answer.
    pub grpo_answer_len: usize,
    /// GRPO: how freely answers are drawn.
    pub grpo_temperature: f32,
    /// GRPO with finetuning_type experience: most experiences that are kept.
    pub max_experiences: usize,
    /// Most words of one.
    pub experience_words: usize,
    /// What learns.
    #[serde(rename = "finetuning_type")]
    pub method: Method,
    /// Rank of the factors.
    #[serde(alias = "rank")]
    pub lora_rank: usize,
    /// The factors' product is multiplied by alpha / rank; `None` is 2 · rank, so that the rate means the same at every rank.
    pub lora_alpha: Option<f32>,
    /// Bits a weight of the frozen base while factors learn: 16, 8 or 4 (QLoRA); `None` is f32.
    pub quantization_bit: Option<u8>,
    /// Multiply in bfloat16, adding up in f32: faster where the CPU has dot products of it, else without effect. `None`:
    /// where factors learn, but not where the weights themselves do, whose change is of the size of the rounding.
    pub bf16: Option<bool>,
    /// Bits a weight of the quantised factors, 1 to 8; 16 keeps them in f16, as a LoRA file does.
    pub factor_bits: u8,
    /// Size that the variant's file may have ("340KB", "10MB", or bytes): low-rank factors of a rank that follows from it,
    /// trained first as they are and then through their rounding.
    pub budget: Option<Size>,
    /// The same as bits a weight of the linears.
    pub bits_per_weight: Option<f64>,
    /// Passes over the data while the factors are rounded; `None` is one.
    pub budget_epochs: Option<f64>,
    /// Only "bitdelta".
    pub quantization_method: String,
    /// Bits a weight of a dense delta: 1, 2 or 4.
    pub bits: u8,
    /// Inputs a scale: 32 to 256, or "row"; `None` goes by the model's size.
    pub group_size: Option<GroupWord>,
    /// No offsets.
    pub symmetric: bool,
    /// Clip a dense delta at mean ± outlier_threshold·σ.
    pub clip_outliers: bool,
    /// σ multiple.
    pub outlier_threshold: f32,
    /// False keeps a dense delta in f16, for comparison.
    pub enable_compression: bool,
    /// Recorded; nothing enforces it yet.
    pub safety_threshold: f32,
    /// Offer the variant to aggregation. Recorded, as the two below; nothing aggregates yet.
    pub enable_deltasoup: bool,
    /// Weight of the aggregate, 0 to 1.
    pub aggregation_weight: f32,
    /// Aggregate by a robust rule.
    pub byzantine_robust: bool,
    /// Where the variant, the log and the checkpoints go.
    pub output_dir: PathBuf,
    /// Start anew in a folder that holds an earlier run.
    pub overwrite_output_dir: bool,
    /// Conversations of one forward pass.
    pub per_device_train_batch_size: usize,
    /// The same when evaluating.
    pub per_device_eval_batch_size: usize,
    /// Forward passes of one optimiser step.
    pub gradient_accumulation_steps: usize,
    /// Passes over the data; ignored when `max_steps` is positive.
    pub num_train_epochs: f64,
    /// Optimiser steps; −1 goes by epochs.
    pub max_steps: i64,
    /// Peak rate; `None` goes by method and rank, see [`TrainConfig::learning_rate`].
    pub learning_rate: Option<f64>,
    /// Decay.
    pub lr_scheduler_type: Decay,
    /// Optimiser steps of warm-up; goes before `warmup_ratio`.
    pub warmup_steps: usize,
    /// The same as a share of all steps.
    pub warmup_ratio: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// AdamW.
    pub adam_beta1: f64,
    /// AdamW.
    pub adam_beta2: f64,
    /// AdamW.
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this norm; 0 leaves them.
    pub max_grad_norm: f64,
    /// Of the order and the factors' start.
    pub seed: u64,
    /// A new order each epoch; false keeps the data's.
    pub shuffle: bool,
    /// Form activations again on the way back; `None`: when memory asks for it.
    pub gradient_checkpointing: Option<bool>,
    /// Steps between lines of the log.
    pub logging_steps: usize,
    /// When to save a checkpoint.
    pub save_strategy: Every,
    /// Steps between checkpoints.
    pub save_steps: usize,
    /// Checkpoints kept; `None` keeps all.
    pub save_total_limit: Option<usize>,
    /// "auto" for the latest checkpoint in `output_dir`, or a path.
    pub resume_from_checkpoint: Option<String>,
    /// When to measure the held-out loss.
    #[serde(alias = "evaluation_strategy")]
    pub eval_strategy: Every,
    /// Steps between measurements.
    pub eval_steps: usize,
    /// Keep the weights of the lowest held-out loss instead of the last.
    pub load_best_model_at_end: bool,
    /// Stop after so many measurements without a lower held-out loss.
    pub early_stopping_steps: Option<usize>,
}

/// `group_size` as it is written: a number or "row".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GroupWord {
    /// So many inputs.
    Elements(u32),
    /// "row"
    Word(String),
}

/// `budget` as it is written: bytes, or a number and a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// "340KB"
    Word(String),
}

impl Size {
    /// In bytes.
    ///
    /// # Errors
    /// A sentence that says what is accepted.
    pub fn bytes(&self) -> Result<u64, String> {
        match self {
            Self::Bytes(bytes) => Ok(*bytes),
            Self::Word(word) => parse_bytes(word),
        }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            stage: Stage::Sft,
            model_name_or_path: String::new(),
            dataset: String::new(),
            dataset_dir: "data".into(),
            eval_dataset: None,
            preferences: None,
            preference_prompts: None,
            preference_samples: 128,
            preference_answer_len: 96,
            preference_temperature: 0.8,
            preference_weight: 1.0,
            val_size: 0.0,
            max_samples: None,
            template: None,
            cutoff_len: 2048,
            mask_history: false,
            train_on_prompt: false,
            pref_beta: 0.1,
            pref_loss: PreferenceLoss::Sigmoid,
            pref_ftx: 0.0,
            dpo_label_smoothing: 0.0,
            kto_chosen_weight: 1.0,
            kto_rejected_weight: 1.0,
            reward_command: String::new(),
            grpo_group_size: 8,
            grpo_answer_len: 128,
            grpo_temperature: 1.0,
            max_experiences: 8,
            experience_words: 32,
            method: Method::LowRank,
            lora_rank: 4,
            lora_alpha: None,
            quantization_bit: None,
            bf16: None,
            factor_bits: 4,
            budget: None,
            bits_per_weight: None,
            budget_epochs: None,
            quantization_method: "bitdelta".into(),
            bits: 1,
            group_size: None,
            symmetric: true,
            clip_outliers: true,
            outlier_threshold: 3.0,
            enable_compression: true,
            safety_threshold: 0.0,
            enable_deltasoup: false,
            aggregation_weight: 0.1,
            byzantine_robust: true,
            output_dir: PathBuf::new(),
            overwrite_output_dir: false,
            per_device_train_batch_size: 8,
            per_device_eval_batch_size: 8,
            gradient_accumulation_steps: 1,
            num_train_epochs: 3.0,
            max_steps: -1,
            learning_rate: None,
            lr_scheduler_type: Decay::Linear,
            warmup_steps: 0,
            warmup_ratio: 0.0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            seed: 42,
            shuffle: true,
            gradient_checkpointing: None,
            logging_steps: 10,
            save_strategy: Every::Steps,
            save_steps: 500,
            save_total_limit: Some(2),
            resume_from_checkpoint: None,
            eval_strategy: Every::Epoch,
            eval_steps: 500,
            load_best_model_at_end: false,
            early_stopping_steps: None,
        }
    }
}

impl TrainConfig {
    /// Settings from names and values as text, in order; `-` and `_` are the same in a name. With them come notes on
    /// settings that are accepted without effect.
    ///
    /// # Errors
    /// [`Error::UnknownSetting`], or [`Error::Setting`] for a value of the wrong kind.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(Self, Vec<String>), Error> {
        let mut config = Self::default();
        let mut notes = Vec::new();
        for (name, value) in pairs {
            let mut name = name.replace('-', "_");
            if name == "pure_bf16" {
                name = "bf16".into();
            }
            if WITHOUT_EFFECT.contains(&name.as_str()) {
                notes.push(match name.as_str() {
                    "fp16" => format!("{name}: training computes in f32, or with bf16 in bfloat16"),
                    _ => format!("{name} has no effect here"),
                });
            } else if name == "quantization_method" && value != "bitdelta" {
                return Err(Error::setting(&name, format!("must be bitdelta, not {value:?}")));
            } else {
                config = config.with(&name, value)?;
            }
        }
        Ok((config, notes))
    }

    /// Settings of a YAML (or JSON) file, as pairs for [`TrainConfig::from_pairs`].
    ///
    /// # Errors
    /// [`Error::Setting`] when it is no mapping of plain values.
    pub fn pairs_of_yaml(text: &str) -> Result<Vec<(String, String)>, Error> {
        let wrong = |problem: String| Error::setting("settings file", problem);
        let value: Value = serde_saphyr::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let Value::Object(map) = value else { return Err(wrong("must be `name: value` lines".into())) };
        let mut pairs = Vec::new();
        for (name, value) in map {
            let plain = |value: &Value| match value {
                Value::String(text) => Ok(text.clone()),
                Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
                _ => Err(Error::setting(&name, "must be a plain value")),
            };
            match &value {
                Value::Null => {}
                Value::Array(values) => {
                    let words: Vec<String> = values.iter().map(plain).collect::<Result<_, _>>()?;
                    pairs.push((name, words.join(",")));
                }
                value => pairs.push((name.clone(), plain(value)?)),
            }
        }
        Ok(pairs)
    }

    /// These settings with one changed.
    fn with(&self, name: &str, text: &str) -> Result<Self, Error> {
        let impossible = |error: serde_json::Error| Error::setting(name, error.to_string());
        let mut map = serde_json::to_value(self).map_err(impossible)?;
        let Some(fields) = map.as_object_mut() else { unreachable!("a struct becomes an object") };
        let known = match name {
            "rank" => "lora_rank",
            "evaluation_strategy" => "eval_strategy",
            "method" => "finetuning_type",
            name => name,
        };
        if !fields.contains_key(known) {
            let names = fields.keys().map(String::as_str).chain(WITHOUT_EFFECT);
            return Err(Error::UnknownSetting { name: name.into(), nearest: nearest(name, names) });
        }
        let as_text = Value::String(text.into());
        let mut readings = vec![as_text.clone()];
        if !TEXT.contains(&known) {
            let plain = match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Value::Bool(true),
                "false" | "no" | "off" => Value::Bool(false),
                "none" | "null" => Value::Null,
                _ => number(text).unwrap_or(as_text),
            };
            readings.insert(0, plain);
        }
        let mut problem = String::new();
        for reading in readings {
            fields.insert(known.into(), reading);
            match serde_json::from_value(Value::Object(fields.clone())) {
                Ok(config) => return Ok(config),
                // The first reading's complaint is the plainest.
                Err(error) if problem.is_empty() => problem = error.to_string(),
                Err(_) => {}
            }
        }
        Err(Error::setting(name, format!("{text:?} will not do: {problem}")))
    }

    /// Checks everything that can be checked without reading a file.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first setting that makes no sense.
    pub fn validate(&self) -> Result<(), Error> {
        let need = |ok: bool, name: &str, problem: &str| if ok { Ok(()) } else { Err(Error::setting(name, problem)) };
        need(
            !self.model_name_or_path.is_empty(),
            "model_name_or_path",
            "is missing: which base model is to be trained?",
        )?;
        let problem = "is missing: a path, or a name in dataset_dir/dataset_info.json; or give preferences";
        need(!self.dataset.is_empty() || self.preferences.is_some(), "dataset", problem)?;
        need(self.preference_samples > 0, "preference_samples", "must be 1 or more")?;
        need(self.preference_answer_len > 0, "preference_answer_len", "must be 1 or more")?;
        let (temperature, weight) = (self.preference_temperature, self.preference_weight);
        need((0.0..=2.0).contains(&temperature), "preference_temperature", "must be from 0 to 2")?;
        need(weight.is_finite() && weight > 0.0, "preference_weight", "must be above 0")?;
        need(!self.output_dir.as_os_str().is_empty(), "output_dir", "is missing: where should the variant go?")?;
        template::named(self.template.as_deref())?;
        self.bitdelta()?.validate()?;
        need(matches!(self.factor_bits, 1..=8 | 16), "factor_bits", "must be 1 to 8, or 16")?;
        self.budget_bytes()?;
        need(
            self.budget.is_none() || self.bits_per_weight.is_none(),
            "bits_per_weight",
            "says the same as budget: give one",
        )?;
        let bits = self.bits_per_weight.unwrap_or(1.0);
        need(bits.is_finite() && bits > 0.0, "bits_per_weight", "must be above 0")?;
        if self.method == Method::Experience {
            self.validate_experience()?;
        }
        let fits_method = (self.budget.is_none() && self.bits_per_weight.is_none()) || self.method == Method::LowRank;
        need(
            fits_method,
            "budget",
            "is met by low-rank factors: finetuning_type must be lowrank (or compress --budget)",
        )?;
        let epochs = self.budget_epochs.unwrap_or(1.0);
        need(epochs.is_finite() && epochs > 0.0, "budget_epochs", "must be above 0")?;
        need((1..=1024).contains(&self.lora_rank), "lora_rank", "must be 1 to 1024")?;
        need(self.lora_alpha.is_none_or(|a| a.is_finite() && a > 0.0), "lora_alpha", "must be above 0")?;
        need(
            matches!(self.quantization_bit, None | Some(4 | 8 | 16)),
            "quantization_bit",
            "must be 16, 8 or 4, or left out for f32",
        )?;
        let frozen = self.method == Method::LowRank || self.quantization_bit.is_none();
        need(frozen, "quantization_bit", "needs finetuning_type lowrank: what learns is kept in f32")?;
        let both = self.mask_history && self.train_on_prompt;
        need(!both, "train_on_prompt", "and mask_history contradict each other")?;
        need(self.pref_beta.is_finite() && self.pref_beta > 0.0, "pref_beta", "must be above 0")?;
        need((0.0..0.5).contains(&self.dpo_label_smoothing), "dpo_label_smoothing", "must be from 0 to below 0.5")?;
        if self.stage == Stage::Grpo {
            need(!self.reward_command.is_empty(), "reward_command", "is missing: which program rewards the answers?")?;
            need(self.grpo_group_size >= 2, "grpo_group_size", "must be 2 or more: answers are compared")?;
            need(self.grpo_answer_len > 0, "grpo_answer_len", "must be 1 or more")?;
            let temperature = self.grpo_temperature;
            need(temperature > 0.0 && temperature <= 2.0, "grpo_temperature", "must be above 0 and at most 2")?;
            need(self.method != Method::Full, "stage", "grpo needs finetuning_type lowrank or experience")?;
            need(self.preferences.is_none(), "preferences", "and stage grpo make two runs: train one after the other")?;
            let budget = self.budget.is_some() || self.bits_per_weight.is_some();
            need(
                !budget,
                "budget",
                "and stage grpo do not go together: its answers are not kept to fit the budget with",
            )?;
            let held_out = self.eval_dataset.is_some() || self.val_size > 0.0;
            let problem = "and eval_dataset have no meaning in stage grpo with finetuning_type lowrank: the log has the \
                           mean reward";
            need(!held_out || self.method == Method::Experience, "val_size", problem)?;
        }
        for (name, weight) in [
            ("pref_ftx", self.pref_ftx),
            ("kto_chosen_weight", self.kto_chosen_weight),
            ("kto_rejected_weight", self.kto_rejected_weight),
        ] {
            need(weight.is_finite() && weight >= 0.0, name, "must be 0 or more")?;
        }
        need(self.cutoff_len >= 2, "cutoff_len", "must be 2 or more")?;
        need(self.per_device_train_batch_size > 0, "per_device_train_batch_size", "must be 1 or more")?;
        need(self.per_device_eval_batch_size > 0, "per_device_eval_batch_size", "must be 1 or more")?;
        need(self.gradient_accumulation_steps > 0, "gradient_accumulation_steps", "must be 1 or more")?;
        let epochs = self.num_train_epochs;
        need(self.max_steps > 0 || (epochs.is_finite() && epochs > 0.0), "num_train_epochs", "must be above 0")?;
        need(self.max_steps == -1 || self.max_steps > 0, "max_steps", "must be 1 or more, or -1 to go by epochs")?;
        let rate = self.learning_rate();
        need(rate.is_finite() && rate > 0.0, "learning_rate", "must be above 0")?;
        need((0.0..=1.0).contains(&self.warmup_ratio), "warmup_ratio", "must be from 0 to 1")?;
        need(self.weight_decay.is_finite() && self.weight_decay >= 0.0, "weight_decay", "must be 0 or more")?;
        need((0.0..1.0).contains(&self.adam_beta1), "adam_beta1", "must be from 0 to below 1")?;
        need((0.0..1.0).contains(&self.adam_beta2), "adam_beta2", "must be from 0 to below 1")?;
        need(self.adam_epsilon > 0.0, "adam_epsilon", "must be above 0")?;
        need(self.max_grad_norm.is_finite() && self.max_grad_norm >= 0.0, "max_grad_norm", "must be 0 or more")?;
        need(self.val_size.is_finite() && self.val_size >= 0.0, "val_size", "must be 0 or more")?;
        need(self.logging_steps > 0, "logging_steps", "must be 1 or more")?;
        need(self.save_steps > 0, "save_steps", "must be 1 or more")?;
        need(self.eval_steps > 0, "eval_steps", "must be 1 or more")?;
        need(self.save_total_limit != Some(0), "save_total_limit", "must be 1 or more")?;
        let measures = self.eval_strategy != Every::No && (self.eval_dataset.is_some() || self.val_size > 0.0);
        let chooses = self.load_best_model_at_end || self.early_stopping_steps.is_some();
        need(!chooses || measures, "load_best_model_at_end", "needs held-out data: set val_size or eval_dataset")?;
        Ok(())
    }

    /// What must hold where words are learnt and no weights.
    fn validate_experience(&self) -> Result<(), Error> {
        let need = |ok: bool, name: &str, problem: String| if ok { Ok(()) } else { Err(Error::setting(name, problem)) };
        let problem =
            "experience needs stage grpo: lessons come from rewarded answers (for words of your own: preferences)";
        need(self.stage == Stage::Grpo, "finetuning_type", problem.into())?;
        let impossible = |error: serde_json::Error| Error::setting("finetuning_type", error.to_string());
        let given = serde_json::to_value(self).map_err(impossible)?;
        let default = serde_json::to_value(Self::default()).map_err(impossible)?;
        for name in OF_WEIGHTS {
            let problem = "has no meaning with finetuning_type experience, which trains no weights: leave it out";
            need(given[name] == default[name], name, problem.into())?;
        }
        let counts = 1..=MAX_EXPERIENCES;
        need(counts.contains(&self.max_experiences), "max_experiences", format!("must be 1 to {MAX_EXPERIENCES}"))?;
        need((4..=100).contains(&self.experience_words), "experience_words", "must be 4 to 100".into())
    }

    /// Most tokens of one experience: two a word and some, which is also the bound of languages that separate no words.
    pub fn experience_tokens(&self) -> usize {
        2 * self.experience_words + 8
    }

    /// Tokens that all experiences take at most in a prompt, with what stands before them.
    pub fn experience_room(&self) -> usize {
        const HEADING: usize = 64;
        const BULLET: usize = 4;
        HEADING + self.max_experiences * (self.experience_tokens() + BULLET)
    }

    /// How matrices are kept and multiplied.
    pub fn keeping(&self) -> Keeping {
        let storage = match self.quantization_bit {
            Some(16) => Storage::Bf16,
            Some(8) => Storage::Int8,
            Some(4) => Storage::Nf4,
            _ => Storage::F32,
        };
        let bf16 = self.bf16.unwrap_or(self.method == Method::LowRank);
        Keeping { storage, precision: if bf16 { Precision::Bf16 } else { Precision::F32 } }
    }

    /// The size that the file may have.
    ///
    /// # Errors
    /// [`Error::Setting`] for what is no size.
    pub fn budget_bytes(&self) -> Result<Option<u64>, Error> {
        let bytes = self.budget.as_ref().map(Size::bytes).transpose();
        bytes.map_err(|problem| Error::setting("budget", problem))
    }

    /// These settings for a base: with a size asked for, its bytes and the rank that follows from them.
    ///
    /// # Errors
    /// As [`TrainConfig::budget_bytes`].
    pub fn for_base(&self, base: &Base) -> Result<Self, Error> {
        let by_bits = self.bits_per_weight.map(|bits| bytes_at(base, bits));
        Ok(match self.budget_bytes()?.or(by_bits) {
            None => self.clone(),
            Some(bytes) => Self { budget: Some(Size::Bytes(bytes)), lora_rank: rank_for(base, bytes), ..self.clone() },
        })
    }

    /// How factors are trained through their rounding.
    pub fn budget_schedule(&self) -> Schedule {
        Schedule {
            epochs: self.budget_epochs.unwrap_or(1.0),
            batch: self.per_device_train_batch_size * self.gradient_accumulation_steps,
            rate: TRAINED_RATE,
            seed: self.seed,
        }
    }

    /// What B·A is multiplied by: alpha / rank.
    pub fn factor_scale(&self) -> f32 {
        self.lora_alpha.map_or(2.0, |alpha| alpha / self.lora_rank as f32)
    }

    /// The peak rate. Not given, it is 1e-4 for full training, and 4e-3 / √rank for factors, which is the best measured
    /// at ranks 1 (4e-3) and 4 (2e-3) in 72 steps; in twice as many, half of it was better (at rank 4 a held-out loss of
    /// 1.309 against 1.346), but too low a rate for few steps costs far more than that. A tenth of it for preferences and
    /// rewards, as is usual beside fine-tuning.
    pub fn learning_rate(&self) -> f64 {
        let of_answers = match self.method {
            Method::Full => 1e-4,
            Method::LowRank | Method::Experience => 4e-3 / (self.lora_rank.max(1) as f64).sqrt(),
        };
        self.learning_rate.unwrap_or(match self.stage {
            Stage::Sft => of_answers,
            Stage::Dpo | Stage::Kto | Stage::Grpo => of_answers / 10.0,
        })
    }

    /// How the result is quantised, as the variant file records it.
    ///
    /// # Errors
    /// [`Error::Setting`] for a group size that is neither a number nor "row".
    pub fn bitdelta(&self) -> Result<BitDeltaConfig, Error> {
        let group_size = match &self.group_size {
            None => None,
            Some(GroupWord::Elements(elements)) => Some(GroupSize::Elements(*elements)),
            Some(GroupWord::Word(word)) if word == "row" => Some(GroupSize::Row),
            Some(GroupWord::Word(word)) => {
                return Err(Error::setting(
                    "group_size",
                    format!("must be a number from 32 to 256, or row, not {word:?}"),
                ));
            }
        };
        Ok(BitDeltaConfig {
            bits: self.bits,
            group_size,
            symmetric: self.symmetric,
            clip_outliers: self.clip_outliers,
            outlier_threshold: self.outlier_threshold,
            enable_compression: self.enable_compression,
            safety_threshold: self.safety_threshold,
            enable_deltasoup: self.enable_deltasoup,
            aggregation_weight: self.aggregation_weight,
            byzantine_robust: self.byzantine_robust,
            ..BitDeltaConfig::default()
        })
    }
}

/// `text` as a JSON number; whole numbers stay whole, so that `3.0` for a count is refused and `3` for a share is not.
fn number(text: &str) -> Option<Value> {
    match text.parse::<i64>() {
        Ok(whole) => Some(whole.into()),
        Err(_) => text.parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::from),
    }
}
