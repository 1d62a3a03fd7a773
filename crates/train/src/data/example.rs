//! One example becomes one conversation.

use super::Conversation;
use bitdelta_model::chat::Message;
use serde::Deserialize;
use serde_json::{Map, Value};

/// How a file's examples are written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Format {
    /// `None`: each example shows it by its fields.
    pub shape: Option<Shape>,
    /// Which fields hold what.
    pub columns: Columns,
    /// How turns of sharegpt examples are marked.
    pub tags: Tags,
}

/// The two shapes that `dataset_info.json` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// instruction, input, output
    Alpaca,
    /// A list of turns.
    #[serde(alias = "openai")]
    Sharegpt,
}

/// Names of fields; `None` is the usual name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Columns {
    /// alpaca: what is asked ("instruction")
    pub prompt: Option<String>,
    /// alpaca: more of what is asked ("input")
    pub query: Option<String>,
    /// alpaca: the answer ("output")
    pub response: Option<String>,
    /// alpaca: earlier turns, pairs of strings ("history")
    pub history: Option<String>,
    /// The system turn ("system")
    pub system: Option<String>,
    /// sharegpt: the turns ("conversations")
    pub messages: Option<String>,
}

/// How sharegpt turns name their parts and speakers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Tags {
    /// Field of the speaker.
    pub role_tag: String,
    /// Field of the text.
    pub content_tag: String,
    /// The user.
    pub user_tag: String,
    /// The assistant.
    pub assistant_tag: String,
    /// A tool's result.
    pub observation_tag: String,
    /// The assistant calling a tool.
    pub function_tag: String,
    /// The system turn.
    pub system_tag: String,
}

impl Default for Tags {
    fn default() -> Self {
        let [role, content, user, assistant, observation, function, system] =
            ["from", "value", "human", "gpt", "observation", "function_call", "system"].map(String::from);
        Self {
            role_tag: role,
            content_tag: content,
            user_tag: user,
            assistant_tag: assistant,
            observation_tag: observation,
            function_tag: function,
            system_tag: system,
        }
    }
}

impl Tags {
    /// OpenAI's messages.
    fn openai() -> Self {
        let [role, content, user, assistant, tool, system] =
            ["role", "content", "user", "assistant", "tool", "system"].map(String::from);
        Self {
            role_tag: role,
            content_tag: content,
            user_tag: user,
            assistant_tag: assistant.clone(),
            observation_tag: tool,
            function_tag: assistant,
            system_tag: system,
        }
    }

    fn role(&self, tag: &str) -> Option<&'static str> {
        [
            (&self.user_tag, "user"),
            (&self.assistant_tag, "assistant"),
            (&self.system_tag, "system"),
            (&self.observation_tag, "tool"),
            (&self.function_tag, "assistant"),
        ]
        .into_iter()
        .find_map(|(known, role)| (known == tag).then_some(role))
    }
}

/// A field that does not fit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub field: String,
    pub problem: String,
}

fn wrong<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { field: field.into(), problem: problem.into() })
}

impl Format {
    /// Reads one example.
    pub(super) fn conversation(&self, example: &Value) -> Result<Conversation, Wrong> {
        let Some(example) = example.as_object() else {
            return wrong("example", format!("must be an object, not {}", kind(example)));
        };
        if example.contains_key("chosen") || example.contains_key("rejected") || example.contains_key("kto_tag") {
            return wrong("chosen", "this is preference data, which stage sft does not take");
        }
        let shape = self.shape.or_else(|| {
            let turns = ["messages", "conversations"].iter().any(|field| example.contains_key(*field));
            turns.then_some(Shape::Sharegpt)
        });
        let messages = match shape {
            Some(Shape::Sharegpt) => self.turns(example)?,
            _ => self.alpaca(example)?,
        };
        if !messages.iter().any(|message| message.role == "assistant") {
            return wrong("example", "there is no assistant turn, so nothing to learn");
        }
        Ok(Conversation { messages })
    }

    fn alpaca(&self, example: &Map<String, Value>) -> Result<Vec<Message>, Wrong> {
        let c = &self.columns;
        // Without columns of its own, an example may also call the two by plainer names.
        let name = |given: &Option<String>, usual: &[&str]| match given {
            Some(given) => given.clone(),
            None => (*usual.iter().find(|name| example.contains_key(**name)).unwrap_or(&usual[0])).to_owned(),
        };
        let prompt_name = name(&c.prompt, &["instruction", "prompt", "question"]);
        let response_name = name(&c.response, &["output", "response", "completion", "answer"]);
        let mut messages = Vec::new();
        let system = optional(example, &name(&c.system, &["system"]))?;
        if !system.is_empty() {
            messages.push(message("system", system));
        }
        let history_name = name(&c.history, &["history"]);
        match example.get(&history_name) {
            None | Some(Value::Null) => {}
            Some(Value::Array(turns)) => {
                for (i, turn) in turns.iter().enumerate() {
                    let pair = turn.as_array().map(Vec::as_slice);
                    let Some([Value::String(asked), Value::String(answered)]) = pair else {
                        return wrong(
                            format!("{history_name}[{i}]"),
                            "must be two strings: what was asked and answered",
                        );
                    };
                    messages.push(message("user", asked));
                    messages.push(message("assistant", answered));
                }
            }
            Some(other) => return wrong(history_name, format!("must be a list, not {}", kind(other))),
        }
        let (prompt, query) = (required(example, &prompt_name)?, optional(example, &name(&c.query, &["input"]))?);
        let asked = [prompt, query].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n");
        if asked.is_empty() {
            return wrong(prompt_name, "is empty");
        }
        let answer = required(example, &response_name)?;
        if answer.is_empty() {
            return wrong(response_name, "is empty");
        }
        messages.push(message("user", &asked));
        messages.push(message("assistant", answer));
        Ok(messages)
    }

    fn turns(&self, example: &Map<String, Value>) -> Result<Vec<Message>, Wrong> {
        let usual = if example.contains_key("messages") { "messages" } else { "conversations" };
        let name = self.columns.messages.as_deref().unwrap_or(usual);
        let turns = match example.get(name) {
            Some(Value::Array(turns)) if !turns.is_empty() => turns,
            Some(Value::Array(_)) => return wrong(name, "is an empty list"),
            Some(other) => return wrong(name, format!("must be a list of turns, not {}", kind(other))),
            None => return wrong(name, "is missing"),
        };
        // OpenAI's fields are recognised even where no tags say so.
        let openai = Tags::openai();
        let is_openai = turns[0].get(&self.tags.role_tag).is_none() && turns[0].get("role").is_some();
        let tags = if is_openai { &openai } else { &self.tags };
        let mut messages = Vec::with_capacity(turns.len() + 1);
        let system = optional(example, self.columns.system.as_deref().unwrap_or("system"))?;
        if !system.is_empty() {
            messages.push(message("system", system));
        }
        for (i, turn) in turns.iter().enumerate() {
            let at = |field: &str| format!("{name}[{i}].{field}");
            let Some(turn) = turn.as_object() else {
                return wrong(format!("{name}[{i}]"), format!("must be an object, not {}", kind(turn)));
            };
            let tag = match turn.get(&tags.role_tag) {
                Some(Value::String(tag)) => tag,
                Some(other) => return wrong(at(&tags.role_tag), format!("must be a string, not {}", kind(other))),
                None => return wrong(at(&tags.role_tag), "is missing"),
            };
            let Some(role) = tags.role(tag) else {
                let known = format!("{}, {} or {}", tags.user_tag, tags.assistant_tag, tags.system_tag);
                return wrong(at(&tags.role_tag), format!("is {tag:?}, expected {known}"));
            };
            match turn.get(&tags.content_tag) {
                Some(Value::String(text)) => messages.push(message(role, text)),
                Some(Value::Array(parts)) => messages.push(message(role, &text_parts(parts, &at(&tags.content_tag))?)),
                Some(other) => return wrong(at(&tags.content_tag), format!("must be a string, not {}", kind(other))),
                None => return wrong(at(&tags.content_tag), "is missing"),
            }
        }
        Ok(messages)
    }
}

/// OpenAI's content as a list of parts, all of which must be text.
fn text_parts(parts: &[Value], field: &str) -> Result<String, Wrong> {
    parts
        .iter()
        .map(|part| match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => Ok(text),
            _ => wrong(field, "only parts of type text are supported"),
        })
        .collect()
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

fn required<'a>(example: &'a Map<String, Value>, field: &str) -> Result<&'a str, Wrong> {
    match example.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => wrong(field, format!("must be a string, not {}", kind(other))),
        None => {
            let fields: Vec<&str> = example.keys().map(String::as_str).collect();
            wrong(field, format!("is missing (the example has {})", fields.join(", ")))
        }
    }
}

fn optional<'a>(example: &'a Map<String, Value>, field: &str) -> Result<&'a str, Wrong> {
    match example.get(field) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(other) => wrong(field, format!("must be a string, not {}", kind(other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
