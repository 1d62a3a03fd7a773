//! What a request wants: the fields of `/v1/chat/completions` and `/v1/completions`, checked once.
//!
//! Fields that OpenAI knows and this server does not do yet are refused unless they are neutral, because ignoring one
//! would change the answer in silence. Fields nobody knows are ignored.
use crate::{
    ApiError,
    fields::{Fields, wrong_type},
    logprobs, messages, names,
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
    /// Tokens.
    Tokens(Vec<u32>),
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
    /// Above 0, at most 1.
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
    /// Log-probabilities of the answer's tokens, and of so many likeliest beside each.
    pub logprobs: Option<usize>,
    /// The JSON schema that the answer must fit.
    pub schema: Option<Value>,
}

impl Wanted {
    /// Reads a body; `query_model` is the query string's `model`, which counts when the body has none.
    ///
    /// # Errors
    /// 400 that names the field at fault.
    pub fn read(endpoint: Endpoint, fields: &Fields, query_model: Option<&str>) -> Result<Self, ApiError> {
        refuse_unsupported(fields)?;
        let Some(model) = fields.string("model")?.or(query_model) else {
            return Err(ApiError::invalid("model", "model is required; GET /v1/models lists what is served"));
        };
        let prompt = match endpoint {
            Endpoint::Chat => Prompt::Messages(messages::read(fields)?),
            Endpoint::Completions => prompt(fields)?,
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
            // 0 keeps the likeliest token alone, as the smallest share does.
            top_p: fields.number("top_p", 0.0..=1.0)?.map_or(1.0, |value| (value as f32).max(f32::MIN_POSITIVE)),
            // −1 is how vLLM's clients say "all".
            top_k: fields.integer("top_k", -1..=i64::MAX)?.map_or(0, |k| usize::try_from(k).unwrap_or(0)),
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned),
            max_tokens: max_tokens.map(|most| usize::try_from(most).unwrap_or(usize::MAX)),
            stop: stops(fields)?,
            choices: fields.integer("n", 1..=MAX_CHOICES)?.map_or(1, |n| usize::try_from(n).unwrap_or(1)),
            stream,
            include_usage: include_usage && stream,
            logprobs: logprobs(endpoint, fields)?,
            schema: schema(fields)?,
        })
    }
}

fn prompt(fields: &Fields) -> Result<Prompt, ApiError> {
    let only_one = || ApiError::invalid("prompt", "prompt must be one text or one list of token ids");
    match fields.get("prompt") {
        Some(Value::String(text)) => Ok(Prompt::Text(text.clone())),
        Some(Value::Array(items)) => match items.as_slice() {
            [Value::String(text)] => Ok(Prompt::Text(text.clone())),
            items => {
                let ids = if let [Value::Array(ids)] = items { ids } else { items };
                let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(only_one);
                ids.iter().map(id).collect::<Result<_, _>>().map(Prompt::Tokens)
            }
        },
        Some(other) => Err(wrong_type("prompt", "a string", other)),
        None => Err(ApiError::invalid("prompt", "prompt is required")),
    }
}

/// `logprobs` is a flag beside `top_logprobs` in a chat, and the number itself in a completion.
fn logprobs(endpoint: Endpoint, fields: &Fields) -> Result<Option<usize>, ApiError> {
    let count = |count: i64| usize::try_from(count).unwrap_or_default();
    if endpoint == Endpoint::Completions {
        return Ok(fields.integer("logprobs", 0..=logprobs::MAX_TOP_COMPLETIONS)?.map(count));
    }
    let top = fields.integer("top_logprobs", 0..=logprobs::MAX_TOP_CHAT)?;
    match (fields.boolean("logprobs")?.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.map_or(0, count))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid("top_logprobs", "top_logprobs wants logprobs to be true")),
    }
}

/// The schema of `response_format`: any object for `json_object`.
fn schema(fields: &Fields) -> Result<Option<Value>, ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    match format.string("type")? {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(json!({"type": "object"}))),
        Some("json_schema") => {
            let wanted =
                || ApiError::invalid("response_format", "response_format.json_schema.schema must be an object");
            let schema = format.object("json_schema")?.ok_or_else(wanted)?;
            Ok(Some(schema.get("schema").filter(|schema| schema.is_object()).ok_or_else(wanted)?.clone()))
        }
        _ => Err(ApiError::invalid("response_format", "response_format.type must be text, json_object or json_schema")),
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
fn refuse_unsupported(fields: &Fields) -> Result<(), ApiError> {
    let neutral: &[(&str, Value)] = &[
        ("tools", json!([[]])),
        ("functions", json!([[]])),
        ("tool_choice", json!(["none", "auto"])),
        ("function_call", json!(["none", "auto"])),
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
    Ok(())
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
        for (name, value) in
            [("tools", r#"[{"type": "function"}]"#), ("frequency_penalty", "0.5"), ("logit_bias", r#"{"5": 1}"#)]
        {
            let error = chat(&format!(r#", "{name}": {value}"#)).unwrap_err();
            assert_eq!((error.param.as_deref(), error.code), (Some(name), Some("unsupported_parameter")));
        }
    }

    #[test]
    fn logprobs_are_a_flag_and_a_number_in_a_chat_and_a_number_in_a_completion() {
        let top = |extra: &str| chat(extra).map(|wanted| wanted.logprobs);
        assert_eq!(top(r#", "logprobs": true"#), Ok(Some(0)));
        assert_eq!(top(r#", "logprobs": true, "top_logprobs": 3"#), Ok(Some(3)));
        assert_eq!(top(r#", "logprobs": false, "top_logprobs": 0"#), Ok(None));
        assert_eq!(top(r#", "top_logprobs": 3"#).unwrap_err().param.as_deref(), Some("top_logprobs"));
        assert!(top(r#", "logprobs": true, "top_logprobs": 21"#).is_err() && top(r#", "logprobs": 3"#).is_err());
        let fields = Fields::parse(br#"{"model": "m", "prompt": [5, 6], "logprobs": 2}"#).expect("an object");
        let wanted = Wanted::read(Endpoint::Completions, &fields, None).expect("good");
        assert_eq!((wanted.logprobs, wanted.prompt), (Some(2), Prompt::Tokens(vec![5, 6])));
    }

    #[test]
    fn a_response_format_is_text_any_object_or_a_schema() {
        let schema = |format: &str| chat(&format!(r#", "response_format": {format}"#)).map(|wanted| wanted.schema);
        assert_eq!(schema(r#"{"type": "text"}"#), Ok(None));
        assert_eq!(schema(r#"{"type": "json_object"}"#), Ok(Some(json!({"type": "object"}))));
        let given =
            r#"{"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"type": "array"}}}"#;
        assert_eq!(schema(given), Ok(Some(json!({"type": "array"}))));
        for bad in [
            r#"{}"#,
            r#"{"type": "yaml"}"#,
            r#"{"type": "json_schema"}"#,
            r#"{"type": "json_schema", "json_schema": {"schema": 1}}"#,
        ] {
            assert_eq!(schema(bad).unwrap_err().param.as_deref(), Some("response_format"), "{bad}");
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
    fn a_top_p_of_0_is_the_likeliest_token() {
        let top_p = |value: &str| chat(&format!(r#", "top_p": {value}"#)).map(|wanted| wanted.top_p);
        for smallest in ["0", "0.0", "5e-324"] {
            assert_eq!(top_p(smallest), Ok(f32::MIN_POSITIVE));
        }
        assert_eq!((top_p("1"), top_p("null")), (Ok(1.0), Ok(1.0)));
        for bad in ["-0.1", "1.1"] {
            assert_eq!(top_p(bad).unwrap_err().param.as_deref(), Some("top_p"));
        }
        let message = chat(r#", "temperature": 1e300"#).unwrap_err().message;
        assert!(message.contains("temperature = 1e300") && message.len() < 100, "{message}");
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
