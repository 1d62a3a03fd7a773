//! The HF tokenizer that a GGUF file's metadata describes.
//!
//! llama.cpp stores tokens, types and merges, and names the pre-tokenisation in a word (`tokenizer.ggml.pre`). Each word
//! stands for the pre-tokenizer in the `tokenizer.json` of the model family that it was named after; a word that is not in
//! [`byte_level_parts`] is refused, because a guess would change the tokens of every prompt without a sign.

use super::{Gguf, Value};
use crate::{Error, chat::SpecialNames};
use std::collections::{HashMap, HashSet};
use tokenizers::{
    AddedToken, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as DecoderSequence, strip::Strip},
    models::bpe::{BPE, Vocab},
    normalizers::{Prepend, Replace, Sequence as NormalizerSequence, unicode::NFC},
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    processors::{sequence::Sequence as ProcessorSequence, template::TemplateProcessing},
    tokenizer::SplitDelimiterBehavior,
};

/// Token types of the metadata that matter here.
const TYPE_UNKNOWN: i64 = 2;
const TYPE_CONTROL: i64 = 3;
const TYPE_USER_DEFINED: i64 = 4;

/// Llama 3's words: up to three digits together. Qwen takes digits one by one.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A tokenizer, its special tokens by role, and its chat template.
pub(crate) struct Parts {
    pub tokenizer: Tokenizer,
    pub names: SpecialNames,
    pub chat_template: Option<String>,
    /// The beginning-of-sequence token, if the tokenizer adds one.
    pub bos: Option<u32>,
}

/// Builds the tokenizer.
///
/// # Errors
/// [`Error::Unsupported`] for a kind of tokenizer that is not here, [`Error::Malformed`] for metadata that does not fit.
pub(crate) fn build(gguf: &Gguf) -> Result<Parts, Error> {
    let metadata = &gguf.metadata;
    let model = metadata.require("tokenizer.ggml.model", metadata.text("tokenizer.ggml.model")?)?;
    let tokens = texts(gguf, "tokenizer.ggml.tokens")?;
    let types = match metadata.get("tokenizer.ggml.token_type") {
        Some(Value::Ints(types)) if types.len() == tokens.len() => types.as_slice(),
        Some(_) => return Err(metadata.wrong("tokenizer.ggml.token_type", "a list of one integer per token")),
        None => &[],
    };
    let token = |role: &str| -> Result<Option<(u32, String)>, Error> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        let Some(id) = metadata.usize(&key)? else { return Ok(None) };
        // Converters write −1 or the vocabulary's size where there is no such token.
        Ok(tokens.get(id).map(|text| (id as u32, text.clone())))
    };
    let (bos, eos, pad) = (token("bos")?, token("eos")?, token("padding")?);
    let unknown = token("unknown")?;

    let pre = metadata.text("tokenizer.ggml.pre")?;
    let (mut tokenizer, adds_bos_by_default) = match model {
        "gpt2" => byte_level(gguf, tokens, pre)?,
        "llama" => (sentence_piece(gguf, tokens, unknown.as_ref().map(|(_, text)| text.as_str()))?, true),
        _ => {
            return Err(Error::unsupported(
                metadata.path(),
                format!("tokenizer `{model}`"),
                "use the model's HF folder, whose tokenizer.json says all",
            ));
        }
    };

    // Added tokens are found in the model's vocabulary, so they keep their ids.
    let always_special: HashSet<&str> = [&bos, &eos].into_iter().flatten().map(|(_, text)| text.as_str()).collect();
    let added = tokens.iter().enumerate().filter_map(|(id, text)| {
        let kind = types.get(id).copied().unwrap_or(0);
        let special = kind == TYPE_CONTROL
            || (kind == TYPE_UNKNOWN && model == "llama")
            || always_special.contains(text.as_str());
        let token = AddedToken::from(text.clone(), special).normalized(false);
        (special || kind == TYPE_USER_DEFINED).then_some(token)
    });
    tokenizer.add_tokens(&added.collect::<Vec<_>>());

    let adds_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos_by_default);
    let added_bos = bos.clone().filter(|_| adds_bos);
    if let Some((id, text)) = &added_bos {
        let template = TemplateProcessing::builder()
            .try_single(vec![text.clone(), "$A".to_owned()])
            .and_then(|builder| {
                builder.try_pair(vec![text.clone(), "$A".to_owned(), text.clone() + ":1", "$B:1".to_owned()])
            })
            .map_err(|error| Error::Tokenizer { reason: error.to_string() })?
            .special_tokens(vec![(text.clone(), *id)])
            .build()
            .map_err(|error| Error::Tokenizer { reason: error.to_string() })?;
        let template = PostProcessorWrapper::from(template);
        let all = match tokenizer.get_post_processor().cloned() {
            Some(before) => ProcessorSequence::new(vec![before, template]).into(),
            None => template,
        };
        tokenizer.with_post_processor(Some(all));
    }
    Ok(Parts {
        tokenizer,
        names: SpecialNames {
            bos: bos.map(|(_, text)| text),
            eos: eos.map(|(_, text)| text),
            pad: pad.map(|(_, text)| text),
            unk: unknown.map(|(_, text)| text),
        },
        chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
        bos: added_bos.map(|(id, _)| id),
    })
}

fn texts<'a>(gguf: &'a Gguf, key: &str) -> Result<&'a [String], Error> {
    match gguf.metadata.get(key) {
        Some(Value::Texts(texts)) => Ok(texts),
        Some(_) => Err(gguf.metadata.wrong(key, "a list of strings")),
        None => gguf.metadata.require(key, None),
    }
}

fn vocabulary(gguf: &Gguf, tokens: &[String]) -> Result<Vocab, Error> {
    let vocabulary: Vocab = tokens.iter().cloned().zip(0..).collect();
    if vocabulary.len() != tokens.len() {
        return Err(Error::malformed(gguf.metadata.path(), "tokenizer.ggml.tokens holds a token twice"));
    }
    Ok(vocabulary)
}

/// What surrounds a byte-level BPE model in `tokenizer.json`.
struct ByteLevelParts {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: PreTokenizerWrapper,
    post_processor: Option<PostProcessorWrapper>,
    decoder: ByteLevel,
    ignore_merges: bool,
    adds_bos: bool,
}

fn byte_level_parts(gguf: &Gguf, pre: Option<&str>) -> Result<ByteLevelParts, Error> {
    let words = |pattern: &str| -> Result<PreTokenizerWrapper, Error> {
        let split = Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|error| Error::Tokenizer { reason: error.to_string() })?;
        Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
    };
    let gpt2 = ByteLevelParts {
        normalizer: None,
        pre_tokenizer: ByteLevel::new(false, true, true).into(),
        post_processor: None,
        decoder: ByteLevel::new(true, true, true),
        ignore_merges: false,
        adds_bos: false,
    };
    Ok(match pre {
        Some("smollm" | "starcoder" | "refact" | "codeshell") => ByteLevelParts {
            pre_tokenizer: Sequence::new(vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()])
                .into(),
            ..gpt2
        },
        Some("gpt-2" | "default") => gpt2,
        None => {
            tracing::warn!(file = %gguf.metadata.path().display(), "tokenizer.ggml.pre is missing; taking GPT-2's words");
            gpt2
        }
        Some("llama-bpe" | "llama-v3" | "llama3") => ByteLevelParts {
            pre_tokenizer: words(LLAMA3_WORDS)?,
            post_processor: Some(ByteLevel::new(true, false, true).into()),
            ignore_merges: true,
            adds_bos: true,
            ..gpt2
        },
        Some("qwen2") => ByteLevelParts {
            normalizer: Some(NFC.into()),
            pre_tokenizer: words(QWEN2_WORDS)?,
            post_processor: Some(ByteLevel::new(false, false, false).into()),
            decoder: ByteLevel::new(false, false, false),
            ..gpt2
        },
        Some(other) => {
            return Err(Error::unsupported(
                gguf.metadata.path(),
                format!("pre-tokenizer `{other}`"),
                "use the model's HF folder, whose tokenizer.json says all",
            ));
        }
    })
}

/// A byte-level BPE tokenizer, and whether its family adds a beginning-of-sequence token unless told otherwise.
fn byte_level(gguf: &Gguf, tokens: &[String], pre: Option<&str>) -> Result<(Tokenizer, bool), Error> {
    let parts = byte_level_parts(gguf, pre)?;
    let merges = texts(gguf, "tokenizer.ggml.merges")?
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(Error::malformed(gguf.metadata.path(), format!("merge `{merge}` is not two tokens"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary(gguf, tokens)?, merges)
        .ignore_merges(parts.ignore_merges)
        .build()
        .map_err(|error| Error::malformed(gguf.metadata.path(), format!("tokenizer.ggml.merges: {error}")))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(parts.normalizer)
        .with_pre_tokenizer(Some(parts.pre_tokenizer))
        .with_post_processor(parts.post_processor)
        .with_decoder(Some(parts.decoder));
    Ok((tokenizer, parts.adds_bos))
}

/// A SentencePiece BPE tokenizer (Llama 2 and its kin) in the form that transformers' converter gives it: merges are all
/// pairs of pieces that make a piece, the best-scored piece first, and unknown characters fall back to bytes.
fn sentence_piece(gguf: &Gguf, tokens: &[String], unknown: Option<&str>) -> Result<Tokenizer, Error> {
    let metadata = &gguf.metadata;
    let path = metadata.path();
    let scores = match metadata.get("tokenizer.ggml.scores") {
        Some(Value::Floats(scores)) if scores.len() == tokens.len() => scores,
        _ => return Err(metadata.wrong("tokenizer.ggml.scores", "a list of one number per token")),
    };
    let ids: HashMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
    let mut merges = Vec::new();
    for (piece, score) in tokens.iter().zip(scores) {
        let mut pairs: Vec<(usize, usize)> = piece
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((*ids.get(&piece[..at])?, *ids.get(&piece[at..])?)))
            .collect();
        // The converter orders the ways to make one piece by the scores of their parts, highest last, before it sorts all.
        pairs.sort_by(|a, b| {
            (scores[a.0], scores[a.1]).partial_cmp(&(scores[b.0], scores[b.1])).unwrap_or(std::cmp::Ordering::Equal)
        });
        merges.extend(pairs.into_iter().map(|pair| (*score, pair)));
    }
    let length = |id: usize| tokens[id].chars().count();
    let rank = |merge: &(f32, (usize, usize))| (merge.0, length(merge.1.0), length(merge.1.1));
    // Stable, as Python's `sorted(reverse=True)` is.
    merges.sort_by(|a, b| rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal));
    let merges = merges.into_iter().map(|(_, (left, right))| (tokens[left].clone(), tokens[right].clone())).collect();

    let mut model =
        BPE::builder().vocab_and_merges(vocabulary(gguf, tokens)?, merges).fuse_unk(true).byte_fallback(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown.to_owned());
    }
    let model = model.build().map_err(|error| Error::malformed(path, format!("tokenizer: {error}")))?;
    let tokenizer_error =
        |error: Box<dyn std::error::Error + Send + Sync>| Error::Tokenizer { reason: error.to_string() };
    let to_bar = Replace::new(" ", "\u{2581}").map_err(tokenizer_error)?;
    let from_bar = Replace::new("\u{2581}", " ").map_err(tokenizer_error)?;
    let prefix_space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders = vec![from_bar.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix_space {
        normalizers.push(Prepend::new("\u{2581}".to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(to_bar.into());
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(NormalizerSequence::new(normalizers)))
        .with_decoder(Some(DecoderSequence::new(decoders)));
    Ok(tokenizer)
}
