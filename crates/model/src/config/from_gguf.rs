//! Model configuration from GGUF metadata and the tensors that the file holds.

use super::{Architecture, ModelConfig, RopeScaling, from_hf::yarn_magnitude, rope};
use crate::{
    Error,
    gguf::{Entry, Gguf, Value},
    source::Dtype,
};
use std::path::Path;

/// Reads a configuration. `bytes` is the whole file, for `rope_freqs.weight`.
///
/// `eos` and `bos` are left to the tokenizer's metadata.
///
/// # Errors
/// [`Error::UnknownArchitecture`], [`Error::Unsupported`] for a feature that the forward pass lacks,
/// [`Error::Malformed`] for a key that is missing, of the wrong type or impossible.
pub(crate) fn read(gguf: &Gguf, bytes: &[u8]) -> Result<ModelConfig, Error> {
    let metadata = &gguf.metadata;
    let path = metadata.path();
    let name = metadata.require("general.architecture", metadata.text("general.architecture")?)?;
    let architecture = match name {
        "llama" => Architecture::Llama,
        "qwen3" => Architecture::Qwen3,
        _ => return Err(Error::UnknownArchitecture { path: path.to_owned(), found: name.to_owned() }),
    };
    let key = |field: &str| format!("{name}.{field}");
    let optional = |field: &str| metadata.usize(&key(field));
    let required = |field: &str| metadata.require(&key(field), optional(field)?);
    let has = |tensor: &str| gguf.tensors.iter().any(|entry| entry.name == tensor);

    if metadata.usize("split.count")?.is_some_and(|count| count > 1) {
        return Err(Error::unsupported(
            path,
            "a GGUF split into several files",
            "join them with `llama-gguf-split --merge`",
        ));
    }
    if optional("expert_count")?.is_some_and(|count| count > 0) {
        return Err(Error::unsupported(path, "a mixture of experts", "take a dense model"));
    }
    let (hidden, heads) = (required("embedding_length")?, required("attention.head_count")?);
    let head_dim = match optional("attention.key_length")? {
        Some(width) => width,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    let rotary = optional("rope.dimension_count")?.unwrap_or(head_dim);
    if rotary != head_dim || optional("attention.value_length")?.is_some_and(|width| width != head_dim) {
        return Err(Error::unsupported(
            path,
            format!("rope.dimension_count {rotary} or a value width other than the head width {head_dim}"),
            "take a model of the plain Llama or Qwen3 family",
        ));
    }
    let embedding = gguf.tensors.iter().find(|entry| entry.name == "token_embd.weight");
    let embedding = embedding
        .ok_or_else(|| Error::MissingTensor { path: path.to_owned(), name: "model.embed_tokens.weight".to_owned() })?;
    let max_positions = required("context_length")?;
    let mut config = ModelConfig {
        architecture,
        hidden,
        layers: required("block_count")?,
        heads,
        kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        intermediate: required("feed_forward_length")?,
        vocab: embedding.shape[0],
        rms_eps: metadata.require(
            &key("attention.layer_norm_rms_epsilon"),
            metadata.f32(&key("attention.layer_norm_rms_epsilon"))?,
        )?,
        rope_theta: metadata.f32(&key("rope.freq_base"))?.unwrap_or(10_000.0),
        rope_scaling: rope_scaling(gguf, name, max_positions)?,
        tied: !has("output.weight"),
        qk_norm: architecture == Architecture::Qwen3,
        attention_bias: has("blk.0.attn_q.bias"),
        mlp_bias: has("blk.0.ffn_up.bias"),
        max_positions,
        eos: Vec::new(),
        bos: None,
    }
    .validate(path)?;
    if let Some(entry) = gguf.tensors.iter().find(|entry| entry.name == "rope_freqs.weight") {
        let original = optional("rope.scaling.original_context_length")?;
        config.rope_scaling = from_factors(entry, &config, &bytes[entry.range.clone()], original, path)?;
    }
    Ok(config)
}

fn rope_scaling(gguf: &Gguf, name: &str, max_positions: usize) -> Result<RopeScaling, Error> {
    let metadata = &gguf.metadata;
    let number = |field: &str| metadata.f32(&format!("{name}.rope.scaling.{field}"));
    let kind_key = format!("{name}.rope.scaling.type");
    // Files of 2023 say only `rope.scale_linear`.
    let (kind, factor) = match metadata.text(&kind_key)? {
        Some(kind) => (kind, number("factor")?),
        None => ("linear", metadata.f32(&format!("{name}.rope.scale_linear"))?),
    };
    let factor = factor.filter(|factor| *factor != 0.0).unwrap_or(1.0);
    match kind {
        "none" => Ok(RopeScaling::None),
        "linear" if factor == 1.0 => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor }),
        "yarn" => {
            let original = metadata.usize(&format!("{name}.rope.scaling.original_context_length"))?;
            Ok(RopeScaling::Yarn {
                factor,
                original_max_positions: original.unwrap_or(max_positions) as u32,
                beta_fast: number("yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: number("yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: yarn_magnitude(factor, 1.0) * number("attn_factor")?.unwrap_or(1.0),
            })
        }
        _ => Err(Error::unsupported(
            metadata.path(),
            format!("RoPE scaling `{kind}`"),
            "take a model with no, linear, llama3 or yarn scaling",
        )),
    }
}

/// The scaling behind `rope_freqs.weight`: llama.cpp's converter stores Llama 3.1's rule as the number by which it
/// divides each frequency.
///
/// All published Llama 3 models use low 1, high 4 over 8192 positions, and a file may say another length (`original`); the
/// factor is the largest divisor. The rule found must give the stored divisors again, so a file made by another rule is
/// refused and never run wrongly.
fn from_factors(
    entry: &Entry,
    config: &ModelConfig,
    bytes: &[u8],
    original: Option<usize>,
    path: &Path,
) -> Result<RopeScaling, Error> {
    const PAIR_ERROR_MAX: f32 = 1e-3;
    if entry.dtype != Dtype::F32 {
        return Err(Error::malformed(path, format!("rope_freqs.weight is {}, expected F32", entry.dtype.name())));
    }
    let divisors: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect();
    if divisors.len() != config.head_dim / 2 {
        return Err(Error::Shape {
            path: path.to_owned(),
            name: "rope_freqs.weight".to_owned(),
            expected: vec![config.head_dim / 2],
            got: vec![divisors.len()],
        });
    }
    let factor = divisors.iter().copied().fold(1.0, f32::max);
    let (plain, _) = ModelConfig { rope_scaling: RopeScaling::None, ..config.clone() }.rope_frequencies();
    let (low, high) = (1.0, 4.0);
    let stated = original.map(|original| original as u32).filter(|original| *original > 0);
    for original in stated.into_iter().chain([8192, 2048, 4096, 16384, 32768, 65536, 131_072]) {
        let agrees = plain.iter().zip(&divisors).all(|(frequency, divisor)| {
            let scaled = rope::llama3_frequency(*frequency, factor, low, high, original as f32);
            (frequency / scaled - divisor).abs() <= PAIR_ERROR_MAX * divisor
        });
        if agrees && factor == 1.0 {
            return Ok(config.rope_scaling);
        }
        if agrees {
            return Ok(RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original,
            });
        }
    }
    Err(Error::unsupported(
        path,
        "rope_freqs.weight that follows no Llama 3 rule",
        "use the model's HF folder, whose config.json names its scaling",
    ))
}

/// The tokens that end generation, by the tokenizer's metadata: end of sequence, of turn, of message.
pub(crate) fn eos(gguf: &Gguf) -> Result<Vec<u32>, Error> {
    let mut eos = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        if let Some(id) = gguf.metadata.usize(&format!("tokenizer.ggml.{key}"))?
            && !eos.contains(&(id as u32))
        {
            eos.push(id as u32);
        }
    }
    // The plural form is an array.
    if let Some(Value::Ints(ids)) = gguf.metadata.get("tokenizer.ggml.eos_token_ids") {
        for id in ids.iter().filter_map(|id| u32::try_from(*id).ok()) {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
    }
    Ok(eos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            hidden: 512,
            layers: 1,
            heads: 4,
            kv_heads: 4,
            head_dim: 128,
            intermediate: 64,
            vocab: 8,
            rms_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::None,
            tied: true,
            qk_norm: false,
            attention_bias: false,
            mlp_bias: false,
            max_positions: 131_072,
            eos: vec![],
            bos: None,
        }
    }

    fn read_divisors(divisors: &[f32]) -> Result<RopeScaling, Error> {
        let bytes: Vec<u8> = divisors.iter().flat_map(|divisor| divisor.to_le_bytes()).collect();
        let (name, shape) = ("rope_freqs.weight".to_owned(), vec![divisors.len()]);
        let entry = Entry { name, dtype: Dtype::F32, shape, range: 0..bytes.len() };
        from_factors(&entry, &llama(), &bytes, None, Path::new("m.gguf"))
    }

    #[test]
    fn llama3_scaling_is_told_from_the_divisors_that_the_converter_stores() {
        for (factor, original_max_positions) in [(8.0, 8192), (32.0, 8192), (4.0, 4096)] {
            let scaling =
                RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions };
            let (plain, _) = llama().rope_frequencies();
            let (scaled, _) = ModelConfig { rope_scaling: scaling, ..llama() }.rope_frequencies();
            let divisors: Vec<f32> = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
            assert_eq!(read_divisors(&divisors).unwrap(), scaling);
        }
        assert_eq!(read_divisors(&[1.0; 64]).unwrap(), RopeScaling::None);
    }

    #[test]
    fn divisors_of_another_rule_are_refused() {
        let divisors: Vec<f32> = (0..64).map(|i| 1.0 + i as f32 / 10.0).collect();
        assert!(matches!(read_divisors(&divisors), Err(Error::Unsupported { .. })));
        assert!(matches!(read_divisors(&[1.0; 63]), Err(Error::Shape { .. })));
    }
}
