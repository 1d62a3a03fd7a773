//! A conversation with a running server, over its OpenAI-compatible HTTP.
use super::{Answer, ChatArgs, Partner, SamplingArgs};
use crate::{Context, Error, node::Node};
use bitdelta_model::chat::Message;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};

/// The server, and who asks.
pub struct Remote {
    node: Node,
    model: String,
    user: Option<String>,
    sampling: SamplingArgs,
}

impl Remote {
    /// Asks the server which base it serves.
    pub fn connect(url: &str, args: &ChatArgs) -> Result<Self, Error> {
        let node = Node::new(url.to_owned()).with_key(args.api_key.as_deref());
        let models = node.get("/v1/models")?;
        let Some(model) = models["data"][0]["id"].as_str() else {
            return Err(Error::Failed(format!("{url} lists no model")));
        };
        Ok(Self { node, model: model.to_owned(), user: args.user.clone(), sampling: args.sampling.clone() })
    }
}

impl Partner for Remote {
    fn answer(&self, messages: &[Message], show: &mut dyn FnMut(&str) -> bool) -> Result<Answer, Error> {
        let body = json!({
            "model": self.model,
            "user_id": self.user,
            "messages": messages,
            "stream": true,
            "stream_options": {"include_usage": true},
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": self.sampling.seed,
            "max_completion_tokens": self.sampling.max_tokens,
        });
        let events = BufReader::new(self.node.stream("/v1/chat/completions", &body)?);
        let mut answer = Answer::default();
        for line in events.lines() {
            let line = line.context("reading the answer")?;
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                return Ok(answer);
            }
            let chunk: Value = serde_json::from_str(data).context("reading the answer")?;
            if let Some(message) = chunk["error"]["message"].as_str() {
                return Err(Error::Failed(message.to_owned()));
            }
            let text = chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
            answer.text += text;
            if let Some(reason) = chunk["choices"][0]["finish_reason"].as_str() {
                answer.finish_reason = json!(reason);
            }
            if let (Some(prompt), Some(completion)) =
                (chunk["usage"]["prompt_tokens"].as_u64(), chunk["usage"]["completion_tokens"].as_u64())
            {
                answer.usage = json!({"prompt_tokens": prompt, "completion_tokens": completion});
            }
            if !show(text) {
                return Ok(answer);
            }
        }
        Err(Error::Failed("the server ended the answer before it was complete".to_owned()))
    }
}
