//! What a request wants: the fields of `/v1/chat/completions` and `/v1/completions`, checked once.
//!
//! Fields that OpenAI knows and this server does not do yet are refused unless they are neutral, because ignoring one
//! would change the answer in silence. Fields nobody knows are ignored.
use crate::{
    ApiError,
    fields::{Fields, wrong_type},
    messages, names,
};
use bitdelta_model::chat::Message;
use serde_json::{Value, json};

/// Most answers (`n`) to one request.
pub const MAX_CHOICES: i64 = 8;
/// Most stop texts, as with OpenAI.
const MAX_STOPS: usize = 4;
/// Most bytes of a stop text.
const MAX_STOP_BYTES: usize = bitdelta_engine::MAX_STOP_BYTES;

/// Which endpoint was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

/// What the answer continues.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Turns for the chat template.
    Messages(Vec<Message>),
    /// Text as it is; special tokens written in it count as such.
    Text(String),
}

/// One request, checked. `None` leaves the choice to the server's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Model name as asked.
    pub model: String,
    /// User as named in the body.
    pub user: Option<String>,
    /// What to continue.
    pub prompt: Prompt,
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// Above 0, to 1.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// Same seed, same answer.
    pub seed: Option<u64>,
    /// Most tokens of answer.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Number of answers.
    pub choices: usize,
    /// Server-sent events.
    pub stream: bool,
    /// A last chunk with the token counts.
    pub include_usage: bool,
}

impl Wanted {
    /// Reads a body; `query_model` is the query string's `model`, which counts when the body has none.
    ///
    /// # Errors
    /// 400 that names the field at fault.
    pub fn read(endpoint: Endpoint, fields: &Fields, query_model: Option<&str>) -> Result<Self, ApiError> {
        refuse_unsupported(endpoint, fields)?;
        let Some(model) = fields.string("model")?.or(query_model) else {
            return Err(ApiError::invalid("model", "model is required; GET /v1/models lists what is served"));
        };
        let prompt = match endpoint {
            Endpoint::Chat => Prompt::Messages(messages::read(fields)?),
            Endpoint::Completions => Prompt::Text(prompt_text(fields)?),
        };
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let stream_options = fields.object("stream_options")?;
        let include_usage = match &stream_options {
            Some(options) => options.boolean("include_usage")?.unwrap_or(false),
            None => false,
        };
        let old_max = fields.integer("max_tokens", 1..=i64::MAX)?;
        let max_tokens = fields.integer("max_completion_tokens", 1..=i64::MAX)?.or(old_max);
        Ok(Self {
            model: model.to_owned(),
            user: names::user_in(fields)?.map(str::to_owned),
            prompt,
            temperature: fields.number("temperature", 0.0..=2.0)?.map(|value| value as f32),
            top_p: fields.number("top_p", f64::MIN_POSITIVE..=1.0)?.map_or(1.0, |value| value as f32),
            // −1 is how vLLM's clients say "all".
            top_k: fields.integer("top_k", -1..=i64::MAX)?.map_or(0, |k| usize::try_from(k).unwrap_or(0)),
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned),
            max_tokens: max_tokens.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
            stop: stops(fields)?,
            choices: fields.integer("n", 1..=MAX_CHOICES)?.map_or(1, |n| usize::try_from(n).unwrap_or(1)),
            stream,
            include_usage: include_usage && stream,
        })
    }
}

fn prompt_text(fields: &Fields) -> Result<String, ApiError> {
    match fields.get("prompt") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(items)) => match items.as_slice() {
            [Value::String(text)] => Ok(text.clone()),
            _ => Err(ApiError::invalid("prompt", "prompt must be one text; lists and token ids are not supported yet")),
        },
        Some(other) => Err(wrong_type("prompt", "a string", other)),
        None => Err(ApiError::invalid("prompt", "prompt is required")),
    }
}

fn stops(fields: &Fields) -> Result<Vec<String>, ApiError> {
    let items = match fields.get("stop") {
        None => return Ok(Vec::new()),
        Some(text @ Value::String(_)) => std::slice::from_ref(text),
        Some(Value::Array(items)) => items.as_slice(),
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", other)),
    };
    if items.len() > MAX_STOPS {
        return Err(ApiError::invalid("stop", format!("stop has {} texts; the most is {MAX_STOPS}", items.len())));
    }
    let stop = |item: &Value| match item.as_str() {
        Some("") => Err(ApiError::invalid("stop", "a stop text must not be empty")),
        Some(text) if text.len() > MAX_STOP_BYTES => {
            Err(ApiError::invalid("stop", format!("a stop text must not be longer than {MAX_STOP_BYTES} bytes")))
        }
        Some(text) => Ok(text.to_owned()),
        None => Err(wrong_type("stop", "a string or an array of strings", item)),
    };
    items.iter().map(stop).collect()
}

/// Known fields that are not done yet, each with the values that ask for nothing.
fn refuse_unsupported(endpoint: Endpoint, fields: &Fields) -> Result<(), ApiError> {
    let neutral: &[(&str, Value)] = &[
        ("tools", json!([[]])),
        ("functions", json!([[]])),
        ("tool_choice", json!(["none", "auto"])),
        ("function_call", json!(["none", "auto"])),
        ("response_format", json!([{"type": "text"}])),
        ("top_logprobs", json!([0])),
        ("frequency_penalty", json!([0])),
        ("presence_penalty", json!([0])),
        ("repetition_penalty", json!([1])),
        ("min_p", json!([0])),
        ("logit_bias", json!([{}])),
        ("modalities", json!([["text"]])),
        ("audio", json!([])),
        ("web_search_options", json!([])),
        ("reasoning_effort", json!([])),
        ("verbosity", json!(["medium"])),
        ("best_of", json!([1])),
        ("echo", json!([false])),
        ("suffix", json!([""])),
    ];
    for (name, allowed) in neutral {
        let asks_nothing = |value: &Value| allowed.as_array().is_some_and(|all| all.iter().any(|one| same(one, value)));
        if fields.get(name).is_some_and(|value| !asks_nothing(value)) {
            return Err(ApiError::unsupported(name));
        }
    }
    match (endpoint, fields.get("logprobs")) {
        // A number on the old endpoint, where 0 asks for the chosen tokens' own.
        (_, None) | (Endpoint::Chat, Some(Value::Bool(false))) => Ok(()),
        _ => Err(ApiError::unsupported("logprobs")),
    }
}

/// JSON equality that takes 0 and 0.0 for the same.
fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(extra: &str) -> Result<Wanted, ApiError> {
        let body = format!(r#"{{"model": "m", "messages": [{{"role": "user", "content": "Hello!"}}]{extra}}}"#);
        Wanted::read(Endpoint::Chat, &Fields::parse(body.as_bytes()).expect("an object"), None)
    }

    #[test]
    fn explicit_nulls_of_real_clients_change_nothing() {
        let nulls = r#", "tools": null, "stop": null, "temperature": null, "n": null, "stream": null, "logprobs": null,
            "response_format": null, "user": null, "stream_options": null, "max_tokens": null, "seed": null"#;
        assert_eq!(chat(nulls), chat(""));
    }

    #[test]
    fn neutral_values_pass_and_others_are_refused_by_name() {
        let neutral =
            r#", "tools": [], "frequency_penalty": 0.0, "response_format": {"type": "text"}, "logprobs": false"#;
        assert!(chat(neutral).is_ok());
        for (name, value) in [
            ("tools", r#"[{"type": "function"}]"#),
            ("response_format", r#"{"type": "json_object"}"#),
            ("logprobs", "true"),
            ("frequency_penalty", "0.5"),
            ("logit_bias", r#"{"5": 1}"#),
        ] {
            let error = chat(&format!(r#", "{name}": {value}"#)).unwrap_err();
            assert_eq!((error.param.as_deref(), error.code), (Some(name), Some("unsupported_parameter")));
        }
    }

    #[test]
    fn unknown_fields_are_ignored() {
        assert_eq!(chat(r#", "metadata": {"a": 1}, "flavour": "plum""#), chat(""));
    }

    #[test]
    fn stop_is_one_text_or_up_to_four() {
        assert_eq!(chat(r#", "stop": "x""#).expect("one").stop, ["x"]);
        assert_eq!(chat(r#", "stop": ["x", "y"]"#).expect("two").stop, ["x", "y"]);
        for bad in [r#"["a","b","c","d","e"]"#, r#"[""]"#, "[1]", "7"] {
            assert_eq!(chat(&format!(r#", "stop": {bad}"#)).unwrap_err().param.as_deref(), Some("stop"));
        }
        let long = format!(r#", "stop": "{}""#, "x".repeat(MAX_STOP_BYTES + 1));
        assert_eq!(chat(&long).unwrap_err().param.as_deref(), Some("stop"));
    }

    #[test]
    fn the_new_name_of_max_tokens_wins() {
        let wanted = chat(r#", "max_tokens": 5, "max_completion_tokens": 7"#).expect("both");
        assert_eq!(wanted.max_tokens, Some(7));
        assert_eq!(chat(r#", "max_tokens": 0"#).unwrap_err().param.as_deref(), Some("max_tokens"));
    }

    #[test]
    fn the_model_is_the_bodys_else_the_querys() {
        let fields = Fields::parse(br#"{"messages": [{"role": "user", "content": "x"}]}"#).expect("an object");
        let model = |query| Wanted::read(Endpoint::Chat, &fields, query).map(|wanted| wanted.model);
        assert_eq!(model(Some("q")).as_deref(), Ok("q"));
        assert_eq!(model(None).unwrap_err().param.as_deref(), Some("model"));
    }
}
