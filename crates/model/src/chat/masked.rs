//! Which tokens of a conversation are the assistant's own: what training learns from.

use super::{Message, Template, Token, Tokenizer};
use crate::Error;

/// A conversation's tokens, with those of its answers marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTokens {
    /// The whole conversation, as [`Tokenizer::encode_chat`] gives it without a generation prompt.
    pub ids: Vec<u32>,
    /// For each token, whether it belongs to an assistant's answer or to the end-of-turn token that closes it.
    pub is_answer: Vec<bool>,
}

impl Tokenizer {
    /// Tokens of a conversation and which of them the assistant says.
    ///
    /// An answer starts where the generation prompt ends and goes up to and with the special token that closes the turn;
    /// what the template writes after that (a line break, the next role) is not the answer's. A token that lies across
    /// the start is not counted, because a model that is asked never has to say it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_chat`]; [`Error::Template`] also where the template writes earlier turns in a way from which
    /// an answer's place cannot be told.
    pub fn encode_chat_masked(&self, messages: &[Message], template: &Template) -> Result<ChatTokens, Error> {
        let guarded = self.guard(messages)?;
        let messages = guarded.messages(messages);
        let text = self.render(messages, template, false)?;
        let tokens = self.guarded_tokens(&text, guarded.mark())?;
        let mut is_answer = vec![false; tokens.len()];
        for (turn, message) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            let prompt = self.render(&messages[..turn], template, true)?;
            let upto = self.render(&messages[..=turn], template, false)?;
            let moved = || Error::Template {
                template: self.template_id(template),
                reason: format!(
                    "the answer in turn {turn} is not where the prompt before it ends; \
                     train on single turns or with another template (chatml, qwen3)"
                ),
            };
            let after = text.strip_prefix(prompt.as_str()).ok_or_else(moved)?;
            let start = prompt.len();
            let end = if text.starts_with(upto.as_str()) && upto.len() >= start {
                upto.len()
            } else {
                // Some templates write a turn otherwise once others follow (Qwen3 leaves out its thoughts).
                let said = [message.content.as_str(), message.content.trim()];
                let said = said.into_iter().find(|said| after.starts_with(said)).ok_or_else(moved)?;
                let close = tokens.iter().find(|token| self.is_special(token.id) && token.start >= start + said.len());
                close.map_or(start + said.len(), |token| token.end)
            };
            self.mark_answer(&tokens, start, end, &mut is_answer);
        }
        Ok(ChatTokens { ids: tokens.into_iter().map(|token| token.id).collect(), is_answer })
    }

    /// Marks the tokens between two places of the text, up to the last special token there if there is one.
    fn mark_answer(&self, tokens: &[Token], start: usize, end: usize, is_answer: &mut [bool]) {
        let first = tokens.partition_point(|token| token.start < start);
        let last = tokens.partition_point(|token| token.start < end);
        let close = (first..last).rev().find(|&index| self.is_special(tokens[index].id));
        let last = close.map_or(last, |index| index + 1);
        if first < last {
            is_answer[first..last].fill(true);
        }
    }
}
