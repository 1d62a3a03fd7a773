//! Messages to tokens and tokens to text: the tokenizer with the model's chat template.

mod bytes;
mod masked;
mod stream;
mod template;

pub use masked::ChatTokens;
pub use stream::StreamDecoder;
pub use template::Template;

use crate::Error;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use template::ModelTemplate;
use tokenizers::{Model as _, OffsetType, PreTokenizer as _, tokenizer::AddedVocabulary};

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user", "assistant", "tool".
    pub role: String,
    /// Text.
    pub content: String,
}

/// Texts of the special tokens that templates and exports name by role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SpecialNames {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
}

/// A token and where in the encoded text it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token {
    id: u32,
    /// Byte range in the text.
    start: usize,
    end: usize,
}

/// Tokenizer with the model's chat template.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The added tokens once more, set to leave special tokens in text alone.
    without_special: AddedVocabulary,
    special_ids: HashSet<u32>,
    /// Longest first, so that a token inside another is found after it.
    special_texts: Vec<String>,
    names: SpecialNames,
    template: ModelTemplate,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The vocabulary would fill pages.
        formatter.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    pub(crate) fn new(inner: tokenizers::Tokenizer, names: SpecialNames, chat_template: Option<String>) -> Self {
        let mut without_special = inner.get_added_vocabulary().clone();
        without_special.set_encode_special_tokens(true);
        let special = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special);
        let (special_ids, mut special_texts): (HashSet<u32>, Vec<String>) =
            special.map(|(id, token)| (id, token.content)).filter(|(_, text)| !text.is_empty()).unzip();
        special_texts.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let template = ModelTemplate::new(chat_template);
        Self { inner, without_special, special_ids, special_texts, names, template }
    }

    /// Token ids of text; special tokens in the text are recognised only if `special`. Nothing is added at either end.
    ///
    /// Tokens that the tokenizer adds without calling them special (Qwen's `<think>`) are text like any other.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the model cannot encode the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let tokens = if special { self.tokens(text, true)? } else { self.plain_tokens(text)? };
        Ok(tokens.into_iter().map(|token| token.id).collect())
    }

    /// Text of ids, special tokens left out. Ids without a token are skipped, broken UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        // Decoders fail on no input that the models here can produce; an empty text is the honest rest.
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// The prompt's text.
    ///
    /// # Errors
    /// [`Error::Template`]: the model has no template, it does not compile, or it refused the messages.
    pub fn render(
        &self,
        messages: &[Message],
        template: &Template,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        match template {
            Template::Model => self.template.render(messages, &self.names, add_generation_prompt),
            built_in => {
                built_in.check(|token| self.inner.token_to_id(token).is_some())?;
                Ok(built_in.render_built_in(messages, add_generation_prompt))
            }
        }
    }

    /// The prompt's tokens, as transformers' `apply_chat_template` makes them, except that messages cannot forge special
    /// tokens: `<|im_end|>` inside a message is encoded as the characters that it is made of.
    ///
    /// # Errors
    /// As [`Tokenizer::render`] and [`Tokenizer::encode`].
    pub fn encode_chat(
        &self,
        messages: &[Message],
        template: &Template,
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, Error> {
        let guarded = self.guard(messages)?;
        let text = self.render(guarded.messages(messages), template, add_generation_prompt)?;
        Ok(self.guarded_tokens(&text, guarded.mark())?.into_iter().map(|token| token.id).collect())
    }

    /// An incremental decoder for streaming: never emits half a UTF-8 character.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// Short stable id of the template used (name or hash), recorded in variant files.
    pub fn template_id(&self, template: &Template) -> String {
        match template {
            Template::Model => self.template.id(),
            built_in => built_in.name().to_owned(),
        }
    }

    /// One more than the highest token id; the embedding may have more rows, which name no token.
    pub fn vocab_size(&self) -> usize {
        let highest = self.inner.get_added_tokens_decoder().into_keys().max().map_or(0, |id| id as usize + 1);
        highest.max(self.inner.get_model().get_vocab_size())
    }

    /// Id of a token by its exact text in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether an id is a special token, which decoding leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The tokenizer itself, for what works on whole vocabularies.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// The model's own template as written, if it has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.template.source()
    }

    pub(crate) fn names(&self) -> &SpecialNames {
        &self.names
    }

    /// Encodes with the tokenizer's own steps up to its post-processor, which would add tokens.
    fn tokens(&self, text: &str, special: bool) -> Result<Vec<Token>, Error> {
        let failed = |error: tokenizers::Error| Error::Tokenizer { reason: error.to_string() };
        let added = if special { self.inner.get_added_vocabulary() } else { &self.without_special };
        let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        pieces.tokenize(|piece| self.inner.get_model().tokenize(piece.get())).map_err(failed)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::Byte).map_err(failed)?;
        let offsets = encoding.get_offsets().iter();
        Ok(encoding.get_ids().iter().zip(offsets).map(|(&id, &(start, end))| Token { id, start, end }).collect())
    }

    /// Encodes text in which no special token may be recognised.
    ///
    /// The vocabulary of some models can still spell a special token by merging (`<s>` from `<` and `s>`); then the text
    /// is cut inside each spelling and the parts are encoded alone.
    fn plain_tokens(&self, text: &str) -> Result<Vec<Token>, Error> {
        let tokens = self.tokens(text, false)?;
        if !tokens.iter().any(|token| self.special_ids.contains(&token.id)) {
            return Ok(tokens);
        }
        let mut cuts: Vec<usize> = self
            .special_texts
            .iter()
            .flat_map(|special| {
                let first = special.chars().next().map_or(0, char::len_utf8);
                text.match_indices(special.as_str()).map(move |(at, _)| at + first)
            })
            .chain([0, text.len()])
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut tokens = Vec::new();
        for cut in cuts.windows(2) {
            for token in self.tokens(&text[cut[0]..cut[1]], false)? {
                if self.special_ids.contains(&token.id) {
                    return Err(Error::Tokenizer {
                        reason: "the text spells a special token of one character".to_owned(),
                    });
                }
                tokens.push(Token { start: token.start + cut[0], end: token.end + cut[0], ..token });
            }
        }
        Ok(tokens)
    }

    /// Breaks every special token spelled in a message with a mark that no message holds.
    fn guard(&self, messages: &[Message]) -> Result<Guarded, Error> {
        let spells = |text: &str| self.special_texts.iter().any(|special| text.contains(special.as_str()));
        let texts = || messages.iter().flat_map(|message| [message.role.as_str(), message.content.as_str()]);
        if !texts().any(spells) {
            return Ok(Guarded(None));
        }
        let unused = |mark: &char| !texts().any(|text| text.contains(*mark));
        let mark = ('\u{e000}'..='\u{f8ff}').find(unused).ok_or_else(|| Error::Tokenizer {
            reason: "the messages use every private-use character and spell a special token".to_owned(),
        })?;
        let break_up = |text: &str| {
            self.special_texts.iter().fold(text.to_owned(), |text, special| {
                let first = special.chars().next().map_or(0, char::len_utf8);
                text.replace(special.as_str(), &format!("{}{mark}{}", &special[..first], &special[first..]))
            })
        };
        let messages = messages
            .iter()
            .map(|message| Message { role: break_up(&message.role), content: break_up(&message.content) })
            .collect();
        Ok(Guarded(Some((mark, messages))))
    }

    /// Encodes a rendered prompt whose messages were guarded with `mark`: what is special in it is the template's; what
    /// lies between is encoded without special tokens and without the mark. Offsets are those of the marked text.
    fn guarded_tokens(&self, text: &str, mark: Option<char>) -> Result<Vec<Token>, Error> {
        let recognised = self.tokens(text, true)?;
        let Some(mark) = mark else { return Ok(recognised) };
        let mut tokens = Vec::new();
        let mut done = 0;
        let specials = recognised.into_iter().filter(|token| self.special_ids.contains(&token.id)).map(Some);
        for special in specials.chain([None]) {
            let end = special.map_or(text.len(), |token| token.start);
            let (mut plain, mut positions) = (String::new(), Vec::new());
            for (at, character) in text[done..end].char_indices().filter(|(_, character)| *character != mark) {
                positions.extend((0..character.len_utf8()).map(|byte| done + at + byte));
                plain.push(character);
            }
            positions.push(end);
            for token in self.plain_tokens(&plain)? {
                tokens.push(Token { start: positions[token.start], end: positions[token.end], ..token });
            }
            if let Some(token) = special {
                done = token.end;
                tokens.push(token);
            }
        }
        Ok(tokens)
    }
}

/// Messages in which no special token is spelled, and the mark that broke them up; `None` if there were none.
struct Guarded(Option<(char, Vec<Message>)>);

impl Guarded {
    fn messages<'a>(&'a self, original: &'a [Message]) -> &'a [Message] {
        self.0.as_ref().map_or(original, |(_, messages)| messages)
    }

    fn mark(&self) -> Option<char> {
        self.0.as_ref().map(|(mark, _)| *mark)
    }
}
