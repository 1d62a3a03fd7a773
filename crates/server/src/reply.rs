//! The JSON of answers, whole and in chunks, for both endpoints.
use crate::{
    logprobs::{self, Line},
    service::{fresh_number, unix_seconds},
    wanted::Endpoint,
};
use bitdelta_engine::{Finish, FinishReason};
use serde_json::{Value, json};

/// Tokens used by one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt, counted once however many answers were asked for.
    pub prompt_tokens: usize,
    /// Those of them that an earlier request had left in the cache; of several answers, the fewest.
    pub cached_tokens: usize,
    /// Of all answers.
    pub completion_tokens: usize,
}

impl Usage {
    /// Counts one finished answer.
    pub fn add(&mut self, finish: &Finish) {
        let first = self.prompt_tokens == 0;
        self.cached_tokens = if first { finish.cached_tokens } else { self.cached_tokens.min(finish.cached_tokens) };
        self.prompt_tokens = finish.prompt_tokens;
        self.completion_tokens += finish.completion_tokens;
    }

    fn json(self) -> Value {
        let total = self.prompt_tokens + self.completion_tokens;
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        })
    }
}

/// One answer as collected so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Why it ended, once it has.
    pub finish: Option<FinishReason>,
    /// Its tokens' log-probabilities, where they were asked for.
    pub logprobs: Option<Vec<Line>>,
}

/// What all parts of one answer have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    endpoint: Endpoint,
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
}

impl Reply {
    /// `model` is echoed as asked; `fingerprint` (hex) of the variant or base that answers becomes `system_fingerprint`.
    pub fn new(endpoint: Endpoint, model: String, fingerprint: &str) -> Self {
        let prefix = if endpoint == Endpoint::Chat { "chatcmpl" } else { "cmpl" };
        Self {
            endpoint,
            id: format!("{prefix}-{:016x}", fresh_number()),
            created: unix_seconds(),
            model,
            fingerprint: format!("fp_{}", fingerprint.get(..16).unwrap_or(fingerprint)),
        }
    }

    /// The whole answer.
    pub fn whole(&self, choices: &[Choice], usage: Usage) -> Value {
        let choice = |(index, choice): (usize, &Choice)| {
            let finish = choice.finish.map(finish_name);
            let logprobs = logprobs::field(self.endpoint, choice.logprobs.as_deref(), 0);
            match self.endpoint {
                Endpoint::Chat => json!({
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": null},
                    "logprobs": logprobs,
                    "finish_reason": finish,
                }),
                Endpoint::Completions => {
                    json!({"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": finish})
                }
            }
        };
        let choices = choices.iter().enumerate().map(choice).collect();
        let mut body =
            self.frame(if self.endpoint == Endpoint::Chat { "chat.completion" } else { "text_completion" }, choices);
        body["usage"] = usage.json();
        body
    }

    /// The chunk that opens answer `index`, where the endpoint has one.
    pub fn opening(&self, index: usize) -> Option<Value> {
        (self.endpoint == Endpoint::Chat)
            .then(|| self.chunk(index, json!({"role": "assistant", "content": ""}), Value::Null, None))
    }

    /// A chunk with more text of answer `index`, and the log-probabilities of its tokens; `characters` came before it.
    pub fn piece(&self, index: usize, text: &str, lines: Option<&[Line]>, characters: usize) -> Value {
        self.chunk(index, json!({"content": text}), logprobs::field(self.endpoint, lines, characters), None)
    }

    /// The chunk that closes answer `index`, with what is left of log-probabilities.
    pub fn closing(&self, index: usize, reason: FinishReason, lines: Option<&[Line]>, characters: usize) -> Value {
        self.chunk(index, json!({}), logprobs::field(self.endpoint, lines, characters), Some(reason))
    }

    /// The chunk without choices that carries the token counts.
    pub fn counts(&self, usage: Usage) -> Value {
        let mut body = self.frame(self.chunk_object(), Vec::new());
        body["usage"] = usage.json();
        body
    }

    fn chunk(&self, index: usize, delta: Value, logprobs: Value, finish: Option<FinishReason>) -> Value {
        let finish = finish.map(finish_name);
        let choice = match self.endpoint {
            Endpoint::Chat => json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}),
            Endpoint::Completions => {
                let text = delta["content"].as_str().unwrap_or_default();
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
            }
        };
        self.frame(self.chunk_object(), vec![choice])
    }

    fn chunk_object(&self) -> &'static str {
        if self.endpoint == Endpoint::Chat { "chat.completion.chunk" } else { "text_completion" }
    }

    fn frame(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }
}

fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        // OpenAI has no name for a deadline; either way the answer was cut.
        FinishReason::Length | FinishReason::Deadline => "length",
    }
}
