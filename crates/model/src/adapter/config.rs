//! `adapter_config.json`: what a LoRA adapter's tensors mean.
//!
//! Fields of PEFT's `LoraConfig` that change the meaning are read or refused; those that only trained it (dropout, the
//! start values, which modules were targets) are left alone, for the tensors themselves say what there is.

use crate::Error;
use regex::RegexBuilder;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// Bytes that a compiled pattern may take: patterns are untrusted.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Settings without a say in what the tensors mean, or read below.
const HARMLESS: [&str; 30] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "parent_library",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
    "loftq_config",
];

/// The settings that matter.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Config {
    peft_type: Option<String>,
    r: Option<u32>,
    lora_alpha: Option<f32>,
    #[serde(default)]
    pub(super) use_rslora: bool,
    #[serde(default)]
    pub(super) use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    lora_bias: bool,
    #[serde(default)]
    pub(super) ensure_weight_tying: bool,
    init_lora_weights: Option<Value>,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
    pub(super) base_model_name_or_path: Option<String>,
}

impl Config {
    /// Reads and judges the settings of the file at `path`.
    ///
    /// # Errors
    /// [`Error::Malformed`] for what is no configuration, [`Error::Unsupported`] for a method or setting that changes
    /// what the tensors mean in a way that is not known here.
    pub(super) fn read(path: &Path, json: &[u8]) -> Result<Self, Error> {
        let malformed = |reason: String| Error::malformed(path, reason);
        let value: Value = serde_json::from_slice(json).map_err(|error| malformed(error.to_string()))?;
        let config = Self::deserialize(&value).map_err(|error| malformed(error.to_string()))?;
        let refuse = |feature: &str, remedy: &str| Err(Error::unsupported(path, feature, remedy));
        let merge = "merge it into its base (peft's merge_and_unload) and compress the pair instead";
        match config.peft_type.as_deref() {
            Some("LORA") => {}
            Some(other) => return refuse(&format!("peft_type {other:?}"), merge),
            None => return Err(malformed("no peft_type: this is no PEFT adapter".to_owned())),
        }
        if config.fan_in_fan_out {
            return refuse("fan_in_fan_out", "the linears of Llama and Qwen3 are not transposed: adapt another base");
        }
        if config.lora_bias {
            return refuse("lora_bias (a bias beside each B)", merge);
        }
        // These start from other base weights than the base's own.
        let moves_the_base = |start: &Value| match start {
            Value::String(name) => !matches!(name.as_str(), "gaussian" | "eva" | "orthogonal"),
            _ => false,
        };
        if let Some(start) = config.init_lora_weights.as_ref().filter(|start| moves_the_base(start)) {
            let remedy = "save it with path_initial_model_for_weight_conversion, which makes a plain LoRA of it";
            return refuse(&format!("init_lora_weights {start}, which changes the base"), remedy);
        }
        let means_something = |value: &Value| match value {
            Value::Bool(on) => *on,
            Value::Object(fields) => !fields.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => false,
        };
        let unknown = value.as_object().into_iter().flatten();
        if let Some((key, _)) =
            unknown.into_iter().find(|(key, value)| !HARMLESS.contains(&key.as_str()) && means_something(value))
        {
            return refuse(&format!("the setting `{key}`"), merge);
        }
        Ok(config)
    }

    /// The rank of `module` by the configuration, where it says one.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a pattern that does not compile or no number.
    pub(super) fn rank(&self, path: &Path, module: &str) -> Result<Option<usize>, Error> {
        let rank = matched(path, self.rank_pattern.as_ref(), module)?;
        Ok(rank.map(|rank| rank as usize).or(self.r.map(|r| r as usize)))
    }

    /// What multiplies B·A in `module`, of rank `rank`.
    ///
    /// # Errors
    /// As [`Self::rank`]; no alpha at all, or one that is not finite.
    pub(super) fn scale(&self, path: &Path, module: &str, rank: usize) -> Result<f32, Error> {
        let alpha = match matched(path, self.alpha_pattern.as_ref(), module)? {
            Some(alpha) => alpha,
            None => f64::from(self.lora_alpha.ok_or_else(|| Error::malformed(path, "no lora_alpha"))?),
        };
        let rank = rank as f64;
        let scale = (alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32;
        if !scale.is_finite() {
            return Err(Error::malformed(path, format!("lora_alpha {alpha} over rank {rank} is {scale}")));
        }
        Ok(scale)
    }
}

/// The number of the first pattern that fits the end of `module`, as PEFT matches them.
fn matched(path: &Path, patterns: Option<&Map<String, Value>>, module: &str) -> Result<Option<f64>, Error> {
    for (pattern, number) in patterns.into_iter().flatten() {
        let whole = format!(r"^(?:.*\.)?(?:{pattern})$");
        let regex = RegexBuilder::new(&whole).size_limit(PATTERN_BYTES_MAX).build();
        let regex = regex.map_err(|error| Error::malformed(path, format!("pattern {pattern:?}: {error}")))?;
        if regex.is_match(module) {
            let number = number.as_f64().filter(|number| number.is_finite() && *number >= 0.0);
            let wrong = || Error::malformed(path, format!("pattern {pattern:?} gives no number"));
            return number.map(Some).ok_or_else(wrong);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(change: Value) -> Result<Config, Error> {
        let mut all = json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear",
            "init_lora_weights": true, "loftq_config": {}, "qalora_group_size": 16, "layer_replication": null,
            "megatron_core": "megatron.core", "bias": "none", "inference_mode": true, "alora_invocation_tokens": null,
        });
        let fields = all.as_object_mut().unwrap();
        fields.extend(change.as_object().unwrap().clone());
        Config::read(Path::new("adapter_config.json"), all.to_string().as_bytes())
    }

    #[test]
    fn scales_follow_alpha_rank_and_their_patterns() {
        let path = Path::new("adapter_config.json");
        let scale = |change, module: &str, rank| read(change).unwrap().scale(path, module, rank).unwrap();
        let module = "model.layers.3.self_attn.q_proj";
        assert_eq!(scale(json!({}), module, 8), 2.0);
        assert_eq!(scale(json!({"use_rslora": true}), module, 16), 4.0);
        let patterns = json!({"alpha_pattern": {"v_proj": 1, "layers.3.self_attn.q_proj": 64, "q_proj": 8}});
        assert_eq!(scale(patterns.clone(), module, 8), 8.0);
        assert_eq!(scale(patterns.clone(), "model.layers.13.self_attn.q_proj", 8), 1.0);
        assert_eq!(scale(patterns, "model.layers.3.mlp.up_proj", 8), 2.0);
        let ranks = read(json!({"rank_pattern": {r"^model\.layers\.[0-3]\..*": 4}})).unwrap();
        assert_eq!(ranks.rank(path, module).unwrap(), Some(4));
        assert_eq!(ranks.rank(path, "model.layers.4.self_attn.q_proj").unwrap(), Some(8));
    }

    #[test]
    fn what_would_change_the_meaning_is_refused_by_name() {
        for (change, named) in [
            (json!({"peft_type": "LOHA"}), "LOHA"),
            (json!({"peft_type": null}), "no peft_type"),
            (json!({"fan_in_fan_out": true}), "fan_in_fan_out"),
            (json!({"lora_bias": true}), "lora_bias"),
            (json!({"init_lora_weights": "pissa_niter_4"}), "pissa"),
            (json!({"alora_invocation_tokens": [1, 2]}), "alora_invocation_tokens"),
            (json!({"layer_replication": [[0, 4], [2, 5]]}), "layer_replication"),
            (json!({"use_qalora": true}), "use_qalora"),
            (json!({"trainable_token_indices": {"embed_tokens": [3]}}), "trainable_token_indices"),
            (json!({"lora_alpha": "two"}), "two"),
            (json!({"r": -1}), "-1"),
        ] {
            let message = read(change).unwrap_err().to_string();
            assert!(message.contains(named), "{named}: {message}");
        }
    }

    #[test]
    fn patterns_of_strangers_cost_little() {
        let path = Path::new("adapter_config.json");
        for pattern in ["(", r"(a{9999}){9999}"] {
            let config = read(json!({"alpha_pattern": {pattern: 1}})).unwrap();
            assert!(config.scale(path, "q_proj", 8).unwrap_err().to_string().contains("pattern"));
        }
        // A pattern that takes a backtracking engine an age.
        let config = read(json!({"alpha_pattern": {"(a+)+b": 1}})).unwrap();
        assert_eq!(config.scale(path, &"a".repeat(5000), 8).unwrap(), 2.0);
        assert!(read(json!({"lora_alpha": 1e39})).and_then(|config| config.scale(path, "q_proj", 8)).is_err());
    }
}
