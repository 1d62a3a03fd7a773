//! Tokenizer and chat template.
use crate::base::Error;
use serde::{Deserialize, Serialize};

/// One turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user", "assistant", "tool".
    pub role: String,
    /// Text.
    pub content: String,
}

/// Tokenizer with the model's chat template.
#[derive(Debug)]
pub struct Tokenizer {}

/// Which template makes prompts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Template {
    /// The model's own.
    #[default]
    Model,
    /// ChatML without a default system turn.
    ChatMl,
}

impl Tokenizer {
    /// Token ids of text; special tokens in the text are recognised only if `special`.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        let _ = (text, special);
        unimplemented!()
    }
    /// Text of ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        let _ = ids;
        unimplemented!()
    }
    /// The prompt's text.
    pub fn render(&self, messages: &[Message], template: &Template, add_generation_prompt: bool) -> Result<String, Error> {
        let _ = (messages, template, add_generation_prompt);
        unimplemented!()
    }
    /// The prompt's tokens: content cannot forge special tokens (content is encoded with special = false).
    pub fn encode_chat(&self, messages: &[Message], template: &Template, add_generation_prompt: bool) -> Result<Vec<u32>, Error> {
        let _ = (messages, template, add_generation_prompt);
        unimplemented!()
    }
    /// An incremental decoder for streaming: never emits half a UTF-8 character.
    pub fn stream(&self) -> StreamDecoder<'_> {
        unimplemented!()
    }
    /// Short stable id of the template used (name or hash), recorded in variant files.
    pub fn template_id(&self, template: &Template) -> String {
        let _ = template;
        unimplemented!()
    }
    /// Rows of the embedding that name a token.
    pub fn vocab_size(&self) -> usize {
        unimplemented!()
    }
}

/// See [`Tokenizer::stream`].
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    _tokenizer: &'a Tokenizer,
}

impl StreamDecoder<'_> {
    /// Adds a token; returns the text that became certain ("" while inside a character).
    pub fn push(&mut self, id: u32) -> String {
        let _ = id;
        unimplemented!()
    }
    /// What is left at the end.
    pub fn finish(&mut self) -> String {
        unimplemented!()
    }
}
