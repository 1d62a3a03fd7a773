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
    /// A list of turns, as sharegpt and OpenAI write them.
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
    /// The better answer of two ("chosen")
    pub chosen: Option<String>,
    /// The worse one ("rejected")
    pub rejected: Option<String>,
    /// Whether an answer was good ("kto_tag")
    pub kto_tag: Option<String>,
    /// Descriptions of tools ("tools"); only read to say that they are not supported.
    pub tools: Option<String>,
    /// As `tools` ("images").
    pub images: Option<String>,
    /// As `tools` ("videos").
    pub videos: Option<String>,
    /// As `tools` ("audios").
    pub audios: Option<String>,
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
    pub(super) fn openai() -> Self {
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

pub(super) fn wrong<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { field: field.into(), problem: problem.into() })
}

impl Format {
    /// Reads one example.
    pub(super) fn conversation(&self, example: &Value) -> Result<Conversation, Wrong> {
        let Some(example) = example.as_object() else {
            return wrong("example", format!("must be an object, not {}", kind(example)));
        };
        let c = &self.columns;
        for (given, usual, stage) in
            [(&c.chosen, "chosen", "dpo"), (&c.rejected, "rejected", "dpo"), (&c.kto_tag, "kto_tag", "kto")]
        {
            let name = given.as_deref().unwrap_or(usual);
            if example.contains_key(name) {
                return wrong(
                    name,
                    format!("this is preference data, which stage sft does not take; use stage {stage}"),
                );
            }
        }
        let messages = self.messages(example)?;
        if !messages.iter().any(|message| message.role == "assistant") {
            return wrong("example", "there is no assistant turn, so nothing to learn");
        }
        Ok(Conversation { messages })
    }

    /// All turns, answers too.
    pub(super) fn messages(&self, example: &Map<String, Value>) -> Result<Vec<Message>, Wrong> {
        if self.shape_of(example) == Shape::Sharegpt {
            return self.turns(example);
        }
        let mut messages = self.alpaca_prompt(example)?;
        let name = self.response_name(example);
        match self.alpaca_response(example)? {
            Some(answer) => messages.push(message("assistant", &answer)),
            None if example.contains_key(&name) => return wrong(name, "is empty"),
            None => required(example, &name).map(|_| ())?,
        }
        Ok(messages)
    }

    /// The shape of an example: as its data set says, or as its fields show.
    pub(super) fn shape_of(&self, example: &Map<String, Value>) -> Shape {
        self.shape.unwrap_or_else(|| {
            let has = |field: &&str| example.get(*field).is_some_and(|value| !value.is_null());
            let is_list = |field: &&str| example.get(*field).is_some_and(Value::is_array);
            let turns = ["messages", "conversations"].iter().any(has) || is_list(&"prompt");
            if turns { Shape::Sharegpt } else { Shape::Alpaca }
        })
    }

    fn response_name(&self, example: &Map<String, Value>) -> String {
        name_in(example, self.columns.response.as_deref(), &["output", "response", "completion", "answer"])
    }

    /// The answer of an alpaca example; `None` when there is none or it is empty.
    pub(super) fn alpaca_response(&self, example: &Map<String, Value>) -> Result<Option<String>, Wrong> {
        let answer = optional(example, &self.response_name(example))?;
        Ok((!answer.is_empty()).then(|| answer.to_owned()))
    }

    /// All turns of an alpaca example before its answer.
    pub(super) fn alpaca_prompt(&self, example: &Map<String, Value>) -> Result<Vec<Message>, Wrong> {
        self.refuse_unsupported(example)?;
        let c = &self.columns;
        // Without columns of its own, an example may also call its prompt by plainer names.
        let prompt_name = name_in(example, c.prompt.as_deref(), &["instruction", "prompt", "question"]);
        let mut messages = Vec::new();
        let system = optional(example, c.system.as_deref().unwrap_or("system"))?;
        if !system.is_empty() {
            messages.push(message("system", system));
        }
        let history_name = c.history.as_deref().unwrap_or("history");
        match example.get(history_name) {
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
        let prompt = required(example, &prompt_name)?;
        let query = optional(example, c.query.as_deref().unwrap_or("input"))?;
        let asked = [prompt, query].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n");
        if asked.is_empty() {
            return wrong(prompt_name, "is empty");
        }
        messages.push(message("user", &asked));
        Ok(messages)
    }

    /// All turns of a sharegpt example.
    pub(super) fn turns(&self, example: &Map<String, Value>) -> Result<Vec<Message>, Wrong> {
        self.refuse_unsupported(example)?;
        let name = name_in(example, self.columns.messages.as_deref(), &["conversations", "messages", "prompt"]);
        let turns = match example.get(&name) {
            Some(Value::Array(turns)) if !turns.is_empty() => turns,
            Some(Value::Array(_)) => return wrong(name, "is an empty list"),
            Some(other) => return wrong(name, format!("must be a list of turns, not {}", kind(other))),
            None => return wrong(name, "is missing"),
        };
        let mut messages = self.turns_of(&name, turns)?;
        let system = optional(example, self.columns.system.as_deref().unwrap_or("system"))?;
        if !system.is_empty() && messages.first().is_none_or(|first| first.role != "system") {
            messages.insert(0, message("system", system));
        }
        Ok(messages)
    }

    /// A list of turns in field `name`.
    pub(super) fn turns_of(&self, name: &str, turns: &[Value]) -> Result<Vec<Message>, Wrong> {
        // OpenAI's fields are recognised even where no tags say so.
        let openai = Tags::openai();
        let is_openai =
            turns.first().is_some_and(|first| first.get(&self.tags.role_tag).is_none() && first.get("role").is_some());
        let tags = if is_openai { &openai } else { &self.tags };
        let mut messages = Vec::with_capacity(turns.len());
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

impl Format {
    /// What training would otherwise leave out in silence.
    pub(super) fn refuse_unsupported(&self, example: &Map<String, Value>) -> Result<(), Wrong> {
        let c = &self.columns;
        let fields = [(&c.tools, "tools"), (&c.images, "images"), (&c.videos, "videos"), (&c.audios, "audios")];
        for (given, usual) in fields {
            let name = given.as_deref().unwrap_or(usual);
            let empty = match example.get(name) {
                None | Some(Value::Null) => true,
                Some(Value::String(text)) => text.trim().is_empty() || text.trim() == "[]",
                Some(Value::Array(list)) => list.is_empty(),
                Some(_) => false,
            };
            if !empty {
                return wrong(name, format!("{usual} are not supported: only text is learnt; leave the field out"));
            }
        }
        Ok(())
    }
}

/// `given`, or the first of the `usual` names that the example has.
pub(super) fn name_in(example: &Map<String, Value>, given: Option<&str>, usual: &[&str]) -> String {
    let found = || usual.iter().find(|name| example.contains_key(**name)).unwrap_or(&usual[0]);
    given.unwrap_or_else(|| found()).to_owned()
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

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
