//! `config.json` and `generation_config.json`, as transformers 4 and 5 write them.

use super::{Architecture, ModelConfig, RopeScaling};
use crate::Error;
use serde_json::Value;
use std::path::Path;

/// Reads a configuration. `generation` is `generation_config.json` where the folder has one.
///
/// `bos` is left to the tokenizer, which knows whether it adds one.
///
/// # Errors
/// [`Error::UnknownArchitecture`], [`Error::Unsupported`] for a feature that the forward pass lacks,
/// [`Error::Malformed`] for a value that is missing, of the wrong type or impossible.
pub(crate) fn read(path: &Path, config: &Value, generation: Option<&Value>) -> Result<ModelConfig, Error> {
    let fields = Fields { path, object: config };
    let architecture = architecture(&fields)?;
    refuse_unsupported(&fields)?;

    let (hidden, heads) = (fields.usize("hidden_size")?, fields.usize("num_attention_heads")?);
    let (default_head_dim, default_positions) = match architecture {
        Architecture::Llama => (hidden.checked_div(heads).unwrap_or(0), 2048),
        Architecture::Qwen3 => (128, 32768),
    };
    let max_positions = fields.usize_or("max_position_embeddings", default_positions)?;
    // Version 5 keeps theta and scaling together in `rope_parameters`; version 4 had two keys.
    let rope = ["rope_parameters", "rope_scaling"].into_iter().filter_map(|key| fields.get(key)).next();
    let rope = Fields { path, object: rope.unwrap_or(&Value::Null) };
    let rope_theta = match rope.f32("rope_theta")? {
        Some(theta) => theta,
        None => fields.f32("rope_theta")?.unwrap_or(10_000.0),
    };
    let mut eos = Vec::new();
    let sources = [generation.and_then(|generation| generation.get("eos_token_id")), config.get("eos_token_id")];
    for ids in sources.into_iter().flatten() {
        push_ids(path, ids, &mut eos)?;
    }
    ModelConfig {
        architecture,
        hidden,
        layers: fields.usize("num_hidden_layers")?,
        heads,
        kv_heads: fields.usize_or("num_key_value_heads", heads)?,
        head_dim: fields.usize_or("head_dim", default_head_dim)?,
        intermediate: fields.usize("intermediate_size")?,
        vocab: fields.usize("vocab_size")?,
        rms_eps: fields.f32("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta,
        rope_scaling: rope_scaling(&rope, max_positions)?,
        tied: fields.bool("tie_word_embeddings")?,
        qk_norm: architecture == Architecture::Qwen3,
        attention_bias: fields.bool("attention_bias")?,
        mlp_bias: architecture == Architecture::Llama && fields.bool("mlp_bias")?,
        max_positions,
        eos,
        bos: None,
    }
    .validate(path)
}

fn architecture(fields: &Fields<'_>) -> Result<Architecture, Error> {
    let class = fields.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let found = class.or_else(|| fields.get("model_type").and_then(Value::as_str)).unwrap_or("(none named)");
    match found {
        "LlamaForCausalLM" | "llama" => Ok(Architecture::Llama),
        "Qwen3ForCausalLM" | "qwen3" => Ok(Architecture::Qwen3),
        // Without a sliding window, which `refuse_unsupported` sees to, Mistral is Llama.
        "MistralForCausalLM" | "mistral" => Ok(Architecture::Llama),
        _ => Err(Error::UnknownArchitecture { path: fields.path.to_owned(), found: found.to_owned() }),
    }
}

fn refuse_unsupported(fields: &Fields<'_>) -> Result<(), Error> {
    let refuse = |feature: String, remedy: &str| Err(Error::unsupported(fields.path, feature, remedy));
    let other_model = "take a model of the plain Llama or Qwen3 family";
    if let Some(method) = fields.get("quantization_config") {
        let method = method.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        return refuse(
            format!("quantization_config ({method})"),
            "take the unquantised folder or a GGUF file of the model",
        );
    }
    if let Some(activation) = fields.get("hidden_act").and_then(Value::as_str).filter(|name| *name != "silu") {
        return refuse(format!("hidden_act `{activation}`"), other_model);
    }
    if let Some(part) = fields.f32("partial_rotary_factor")?.filter(|part| *part != 1.0) {
        return refuse(format!("partial_rotary_factor {part}"), other_model);
    }
    // Qwen3 writes a window that it does not use; Mistral has no switch, only a window or null.
    let positions = fields.usize_or("max_position_embeddings", 0)?;
    let window = fields.get("sliding_window").and_then(Value::as_u64).filter(|window| (*window as usize) < positions);
    let switched_off = fields.get("use_sliding_window").and_then(Value::as_bool) == Some(false);
    if let Some(window) = window.filter(|_| !switched_off) {
        return refuse(format!("sliding_window {window}"), other_model);
    }
    Ok(())
}

/// The `rope_scaling` or `rope_parameters` object.
fn rope_scaling(rope: &Fields<'_>, max_positions: usize) -> Result<RopeScaling, Error> {
    // Old files say `type`.
    let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
    let number = |key: &str| {
        rope.f32(key)?.ok_or_else(|| Error::malformed(rope.path, format!("RoPE scaling `{kind}` lacks `{key}`")))
    };
    let original = rope.usize_or("original_max_position_embeddings", max_positions)?;
    let original_max_positions = u32::try_from(original)
        .map_err(|_| Error::malformed(rope.path, format!("original_max_position_embeddings is {original}")))?;
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: number("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_positions,
        }),
        "yarn" => {
            if rope.get("truncate").and_then(Value::as_bool) == Some(false) {
                return Err(Error::unsupported(rope.path, "yarn with truncate = false", "take another model"));
            }
            let factor = rope.f32("factor")?.unwrap_or(max_positions as f32 / original_max_positions as f32);
            let attention_factor = match rope.f32("attention_factor")? {
                Some(factor) => factor,
                None => match (rope.f32("mscale")?, rope.f32("mscale_all_dim")?) {
                    (Some(part), Some(all)) if part != 0.0 && all != 0.0 => {
                        yarn_magnitude(factor, part) / yarn_magnitude(factor, all)
                    }
                    _ => yarn_magnitude(factor, 1.0),
                },
            };
            Ok(RopeScaling::Yarn {
                factor,
                original_max_positions,
                beta_fast: rope.f32("beta_fast")?.unwrap_or(32.0),
                beta_slow: rope.f32("beta_slow")?.unwrap_or(1.0),
                attention_factor,
            })
        }
        _ => Err(Error::unsupported(
            rope.path,
            format!("RoPE scaling `{kind}`"),
            "take a model with default, linear, llama3 or yarn scaling, or remove rope_scaling to use its original context",
        )),
    }
}

/// Yarn's factor on cos and sin for a context stretched `factor` times.
pub(crate) fn yarn_magnitude(factor: f32, mscale: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// An id or a list of ids; `null` is none.
fn push_ids(path: &Path, ids: &Value, into: &mut Vec<u32>) -> Result<(), Error> {
    let list = match ids {
        Value::Null => return Ok(()),
        Value::Array(list) => list.as_slice(),
        one => std::slice::from_ref(one),
    };
    for id in list {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id
            .ok_or_else(|| Error::malformed(path, format!("eos_token_id is {ids}, expected an id or a list of ids")))?;
        if !into.contains(&id) {
            into.push(id);
        }
    }
    Ok(())
}

/// Typed access to a JSON object; `null` is the same as absent.
struct Fields<'a> {
    path: &'a Path,
    object: &'a Value,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, value: &Value, expected: &str) -> Error {
        Error::malformed(self.path, format!("`{key}` is {value}, expected {expected}"))
    }

    fn optional_usize(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Some tools write whole numbers as 32768.0.
        let whole = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=1e15).contains(number));
        whole.map(|number| Some(number as usize)).ok_or_else(|| self.wrong(key, value, "a whole number"))
    }

    fn usize(&self, key: &str) -> Result<usize, Error> {
        self.optional_usize(key)?.ok_or_else(|| Error::malformed(self.path, format!("`{key}` is missing")))
    }

    fn usize_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        Ok(self.optional_usize(key)?.unwrap_or(default))
    }

    fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(|number| Some(number as f32)).ok_or_else(|| self.wrong(key, value, "a number"))
    }

    fn bool(&self, key: &str) -> Result<bool, Error> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn llama(change: Value) -> Result<ModelConfig, Error> {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 300, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "eos_token_id": 2,
        });
        for (key, value) in change.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        read(Path::new("config.json"), &config, None)
    }

    #[test]
    fn both_generations_of_transformers_say_the_same() {
        let scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024});
        let old =
            llama(json!({"rope_theta": 5e5, "rope_scaling": scaling.clone(), "torch_dtype": "bfloat16"})).unwrap();
        let mut parameters = scaling;
        parameters["rope_theta"] = json!(5e5);
        let new = llama(json!({"rope_parameters": parameters, "dtype": "bfloat16"})).unwrap();
        assert_eq!(old, new);
        assert_eq!(old.rope_theta, 5e5);
        let RopeScaling::Yarn { attention_factor, .. } = old.rope_scaling else { panic!("{:?}", old.rope_scaling) };
        assert!((attention_factor - 1.138_629_4).abs() < 1e-6);
    }

    #[test]
    fn generation_config_adds_tokens_that_end_an_answer() {
        let config = json!({
            "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 96, "vocab_size": 300, "eos_token_id": 5,
            "sliding_window": 4096, "use_sliding_window": false, "max_window_layers": 36,
        });
        let read = read(Path::new("config.json"), &config, Some(&json!({"eos_token_id": [7, 5]}))).unwrap();
        assert_eq!(read.eos, [7, 5]);
        assert!(read.qk_norm);
        assert_eq!((read.head_dim, read.max_positions), (32, 32768));
    }

    #[test]
    fn what_the_forward_pass_lacks_is_refused_by_name() {
        let cases = [
            (json!({"architectures": ["GPT2LMHeadModel"]}), "GPT2LMHeadModel"),
            (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "dynamic"),
            (json!({"rope_parameters": {"rope_type": "longrope"}}), "longrope"),
            (json!({"hidden_act": "gelu"}), "gelu"),
            (json!({"quantization_config": {"quant_method": "gptq"}}), "gptq"),
            (json!({"architectures": ["MistralForCausalLM"], "sliding_window": 1024}), "sliding_window 1024"),
            (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ];
        for (change, name) in cases {
            let error = llama(change).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("config.json"), "{error}");
        }
    }

    #[test]
    fn impossible_numbers_are_refused_before_anything_is_computed() {
        let cases = [
            (json!({"num_key_value_heads": 3}), "divide"),
            (json!({"hidden_size": 0}), "hidden size"),
            (json!({"hidden_size": 1_u64 << 40}), "hidden size"),
            (json!({"vocab_size": "many"}), "vocab_size"),
            (json!({"hidden_size": null}), "hidden_size"),
            (json!({"head_dim": 15}), "odd"),
            (json!({"rope_theta": 0.0}), "theta"),
            (json!({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}), "RoPE scaling"),
            (json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}), "low_freq_factor"),
            (json!({"eos_token_id": "</s>"}), "eos_token_id"),
        ];
        for (change, name) in cases {
            let error = llama(change).unwrap_err().to_string();
            assert!(error.contains(name), "{error} lacks {name}");
        }
    }
}
