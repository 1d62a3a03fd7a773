//! A model of an HF folder in GGUF's metadata, under the keys of llama.cpp's converter.
//!
//! A tokenizer's pre-tokenisation has only a word in GGUF, so the word is found by trial: the tokenizer that the reader
//! ([`super::tokenizer`]) builds for each word it knows is held against the folder's own on a text that tells them apart.
//! Where none agrees, there is no honest GGUF of the model and the export is refused.

use super::{
    Gguf, tokenizer,
    write::{Pairs, header},
};
use crate::{Base, Error, ModelConfig, RopeScaling, config::from_hf::yarn_magnitude};
use serde_json::Value;
use std::path::Path;

/// Token types of the metadata.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Words for pre-tokenisers, one for each that the reader tells apart.
const WORDS: [&str; 4] = ["smollm", "qwen2", "llama-bpe", "gpt-2"];

/// What pre-tokenisers, normalisers and prefixes disagree on: digits, contractions, spaces, line ends, composed letters.
const PROBE: &str = "Hello  World's\n\n I'LL 12345 x=3.14; \t\tna\u{ef}ve cafe\u{301} ???!!\r\n  \u{4e1c}\u{4eac} \u{1f980}a1b22c333 end ";

/// The architecture's constants.
pub(super) fn model(pairs: &mut Pairs, config: &ModelConfig, name: &str) {
    let architecture = config.architecture.model_type();
    pairs.text("general.architecture", architecture);
    pairs.text("general.type", "model");
    pairs.text("general.name", name);
    let key = |field: &str| format!("{architecture}.{field}");
    for (field, value) in [
        ("block_count", config.layers),
        ("context_length", config.max_positions),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.intermediate),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab),
    ] {
        pairs.u32(&key(field), value as u32);
    }
    pairs.f32(&key("rope.freq_base"), config.rope_theta);
    pairs.f32(&key("attention.layer_norm_rms_epsilon"), config.rms_eps);
    match config.rope_scaling {
        RopeScaling::None => {}
        // Llama 3's rule is a tensor (`rope_divisors`); the length from which it counts helps our own reader alone.
        RopeScaling::Llama3 { original_max_positions, .. } => {
            pairs.u32(&key("rope.scaling.original_context_length"), original_max_positions);
        }
        RopeScaling::Linear { factor } => {
            pairs.text(&key("rope.scaling.type"), "linear");
            pairs.f32(&key("rope.scaling.factor"), factor);
        }
        RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, attention_factor } => {
            pairs.text(&key("rope.scaling.type"), "yarn");
            pairs.f32(&key("rope.scaling.factor"), factor);
            pairs.u32(&key("rope.scaling.original_context_length"), original_max_positions);
            pairs.f32(&key("rope.scaling.yarn_beta_fast"), beta_fast);
            pairs.f32(&key("rope.scaling.yarn_beta_slow"), beta_slow);
            pairs.f32(&key("rope.scaling.attn_factor"), attention_factor / yarn_magnitude(factor, 1.0));
        }
    }
}

/// By what llama.cpp is to divide each pair's frequency.
pub(super) fn rope_divisors(config: &ModelConfig) -> Vec<f32> {
    let (plain, _) = ModelConfig { rope_scaling: RopeScaling::None, ..config.clone() }.rope_frequencies();
    let (scaled, _) = config.rope_frequencies();
    plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect()
}

/// The tokenizer, special tokens and chat template of a folder's model.
///
/// # Errors
/// [`Error::Export`] to `path` for a tokenizer that no kind of GGUF's agrees with.
pub(super) fn tokenizer(pairs: &mut Pairs, base: &Base, path: &Path) -> Result<(), Error> {
    let parts = Parts::of(base).map_err(|reason| Error::Export { path: path.to_owned(), reason })?;
    let expected = base.tokenizer.encode(PROBE, true)?;
    let candidates: Vec<Option<&str>> = match parts.byte_fallback {
        true => vec![None],
        false => WORDS.iter().copied().map(Some).collect(),
    };
    for word in candidates {
        let mut found = Pairs::default();
        parts.put(&mut found, base, word);
        // Built as a reader will build it.
        let bytes = header(&found, &[]);
        let built = Gguf::parse(path, &bytes).and_then(|gguf| tokenizer::build(&gguf));
        let same = built.is_ok_and(|built| {
            built.tokenizer.encode_fast(PROBE, false).is_ok_and(|encoded| encoded.get_ids() == expected)
                && built.bos == base.config.bos
        });
        if same {
            parts.put(pairs, base, word);
            return Ok(());
        }
    }
    let reason = "GGUF has no name that is known here for the model's tokenizer; convert an exported folder \
                  (--format hf) with llama.cpp's convert_hf_to_gguf.py";
    Err(Error::Export { path: path.to_owned(), reason: reason.to_owned() })
}

/// What a tokenizer is made of.
struct Parts {
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Vec<String>,
    /// SentencePiece's kind of BPE: bytes for unknown characters.
    byte_fallback: bool,
}

impl Parts {
    fn of(base: &Base) -> Result<Self, String> {
        let inner = base.tokenizer.inner();
        let model = serde_json::to_value(inner.get_model()).map_err(|error| format!("its tokenizer: {error}"))?;
        if model.get("type").and_then(Value::as_str) != Some("BPE") {
            return Err("its tokenizer is no BPE".to_owned());
        }
        let merges = model.get("merges").and_then(Value::as_array).ok_or("its tokenizer has no merges")?;
        let merges = merges.iter().map(|merge| match merge {
            Value::String(pair) => Some(pair.clone()),
            Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
            _ => None,
        });
        let merges = merges.collect::<Option<Vec<_>>>().ok_or("its tokenizer's merges are of an unknown form")?;
        let byte_fallback = model.get("byte_fallback").and_then(Value::as_bool) == Some(true);

        // Rows of the embedding that no token names are there all the same.
        let mut tokens: Vec<String> = (0..base.config.vocab).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; base.config.vocab];
        for (token, id) in inner.get_vocab(true) {
            let Some(place) = tokens.get_mut(id as usize) else {
                return Err(format!("token {id} has no row in the embedding"));
            };
            let byte = byte_fallback && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
            types[id as usize] = if byte { BYTE } else { NORMAL };
            *place = token;
        }
        for (id, token) in inner.get_added_tokens_decoder() {
            let unknown = base.tokenizer.names().unk.as_ref() == Some(&token.content) && byte_fallback;
            types[id as usize] = match token.special {
                true if unknown => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
        }
        Ok(Self { tokens, types, merges, byte_fallback })
    }

    /// The metadata, with `word` for the pre-tokenizer; without one, as SentencePiece's.
    fn put(&self, pairs: &mut Pairs, base: &Base, word: Option<&str>) {
        pairs.text("tokenizer.ggml.model", if word.is_some() { "gpt2" } else { "llama" });
        pairs.text("tokenizer.ggml.pre", word.unwrap_or("default"));
        pairs.texts("tokenizer.ggml.tokens", self.tokens.iter().map(String::as_str));
        pairs.i32s("tokenizer.ggml.token_type", &self.types);
        match word {
            Some(_) => pairs.texts("tokenizer.ggml.merges", self.merges.iter().map(String::as_str)),
            None => {
                // Pieces lie in the order in which they were learnt, the best first.
                let scores: Vec<f32> = (0..self.tokens.len()).map(|id| -(id as f32)).collect();
                pairs.f32s("tokenizer.ggml.scores", &scores);
            }
        }
        let names = base.tokenizer.names();
        let id = |name: &Option<String>| name.as_deref().and_then(|text| base.tokenizer.token_id(text));
        let eos = id(&names.eos).or(base.config.eos.first().copied());
        let more = base.config.eos.iter().copied().filter(|id| Some(*id) != eos);
        let ends = ["eot", "eom"].into_iter().zip(more).map(|(role, id)| (role, Some(id)));
        let roles = [("bos", id(&names.bos).or(base.config.bos)), ("eos", eos), ("padding", id(&names.pad))];
        let unknown = [("unknown", id(&names.unk))];
        for (role, id) in roles.into_iter().chain(unknown).chain(ends) {
            if let Some(id) = id {
                pairs.u32(&format!("tokenizer.ggml.{role}_token_id"), id);
            }
        }
        pairs.bool("tokenizer.ggml.add_bos_token", base.config.bos.is_some());
        if let Some(template) = base.tokenizer.chat_template() {
            pairs.text("tokenizer.chat_template", template);
        }
    }
}
