//! Text from tokens as they come.

use super::Tokenizer;

/// See [`Tokenizer::stream`].
///
/// It keeps the tokens since the last certain border and decodes them together, because a character may take several
/// tokens and a decoder may look at its neighbours. What it hands out, put together, is what [`Tokenizer::decode`] gives
/// for all tokens at once.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The last token whose text is out, as context, and those after it.
    window: Vec<u32>,
    /// Bytes of the window's text that are out.
    emitted: usize,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), emitted: 0 }
    }

    /// Adds a token; returns the text that became certain ("" while inside a character).
    pub fn push(&mut self, id: u32) -> String {
        if self.tokenizer.is_special(id) {
            return String::new();
        }
        self.window.push(id);
        // A byte token's neighbours decide together whether they are text.
        if self.is_byte(id) {
            return String::new();
        }
        let text = self.tokenizer.decode(&self.window);
        // A trailing replacement character may become a whole one; what precedes it cannot change.
        let certain = text.strip_suffix('\u{fffd}').unwrap_or(&text).len();
        let new = text.get(self.emitted..certain).unwrap_or_default().to_owned();
        self.emitted = self.emitted.max(certain);
        if certain == text.len() {
            let context = self.tokenizer.decode(&[id]);
            if !context.is_empty() {
                self.window = vec![id];
                self.emitted = context.len();
            }
        }
        new
    }

    /// What is left at the end.
    pub fn finish(&mut self) -> String {
        let text = self.tokenizer.decode(&self.window);
        let rest = text.get(self.emitted..).unwrap_or_default().to_owned();
        self.window.clear();
        self.emitted = 0;
        rest
    }

    /// Whether a token is SentencePiece's spelling of one byte, `<0xE2>`.
    fn is_byte(&self, id: u32) -> bool {
        self.tokenizer
            .inner()
            .id_to_token(id)
            .is_some_and(|token| token.len() == 6 && token.starts_with("<0x") && token.ends_with('>'))
    }
}
