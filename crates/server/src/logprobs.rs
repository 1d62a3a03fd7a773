//! Log-probabilities as the two endpoints write them.
use crate::wanted::Endpoint;
use bitdelta_engine::Scored;
use bitdelta_model::chat::Tokenizer;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Most likeliest tokens that a chat may ask for, as with OpenAI.
pub const MAX_TOP_CHAT: i64 = 20;
/// The same of `/v1/completions`.
pub const MAX_TOP_COMPLETIONS: i64 = 5;

/// One token of an answer with its neighbours, spelled.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    chosen: Spelled,
    top: Vec<Spelled>,
}

#[derive(Debug, Clone, PartialEq)]
struct Spelled {
    bytes: Vec<u8>,
    logprob: f32,
}

impl Line {
    /// Spells the tokens; `bytes` is what each token of the vocabulary stands for.
    pub fn new(scored: &Scored, bytes: &Arc<Vec<Vec<u8>>>, tokenizer: &Tokenizer) -> Self {
        let spell = |token: u32, logprob| {
            let own = bytes.get(token as usize).filter(|bytes| !bytes.is_empty()).cloned();
            // Special tokens stand for nothing; their names say more.
            let name = || tokenizer.inner().id_to_token(token).unwrap_or_default().into_bytes();
            Spelled { bytes: own.unwrap_or_else(name), logprob }
        };
        let top = scored.top.iter().map(|(token, logprob)| spell(*token, *logprob)).collect();
        Self { chosen: spell(scored.token, scored.logprob), top }
    }
}

impl Spelled {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    fn json(&self) -> Value {
        json!({"token": self.text(), "logprob": self.logprob, "bytes": self.bytes})
    }
}

/// The `logprobs` field for some tokens of an answer; `null` where none were asked for. `offset` is the number of
/// characters of the answer before them.
pub fn field(endpoint: Endpoint, lines: Option<&[Line]>, offset: usize) -> Value {
    let Some(lines) = lines else { return Value::Null };
    match endpoint {
        Endpoint::Chat => {
            let line = |line: &Line| {
                let mut token = line.chosen.json();
                token["top_logprobs"] = line.top.iter().map(Spelled::json).collect();
                token
            };
            json!({"content": lines.iter().map(line).collect::<Vec<_>>(), "refusal": null})
        }
        Endpoint::Completions => {
            let offsets = lines.iter().scan(offset, |at, line| {
                let here = *at;
                *at += line.chosen.text().chars().count();
                Some(here)
            });
            let top = |line: &Line| {
                // The chosen token is always among them, as with OpenAI.
                let all = line.top.iter().chain([&line.chosen]);
                all.map(|token| (token.text(), json!(token.logprob))).collect::<Map<_, _>>()
            };
            json!({
                "tokens": lines.iter().map(|line| line.chosen.text()).collect::<Vec<_>>(),
                "token_logprobs": lines.iter().map(|line| line.chosen.logprob).collect::<Vec<_>>(),
                "top_logprobs": lines.iter().map(top).collect::<Vec<_>>(),
                "text_offset": offsets.collect::<Vec<_>>(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, logprob: f32) -> Line {
        let spelled = |text: &str, logprob| Spelled { bytes: text.as_bytes().to_vec(), logprob };
        Line { chosen: spelled(text, logprob), top: vec![spelled("x", -0.5)] }
    }

    #[test]
    fn a_chat_gets_a_list_and_a_completion_gets_columns() {
        let lines = [line("Hé", -1.0), line("!", -2.0)];
        let chat = field(Endpoint::Chat, Some(&lines), 0);
        assert_eq!(chat["content"][0]["bytes"], json!([72, 195, 169]));
        assert_eq!(chat["content"][1]["top_logprobs"][0]["token"], "x");
        let columns = field(Endpoint::Completions, Some(&lines), 5);
        assert_eq!((&columns["tokens"], &columns["text_offset"]), (&json!(["Hé", "!"]), &json!([5, 7])));
        assert_eq!(columns["top_logprobs"][1], json!({"x": -0.5, "!": -2.0}));
        assert_eq!(field(Endpoint::Chat, None, 0), Value::Null);
    }
}
