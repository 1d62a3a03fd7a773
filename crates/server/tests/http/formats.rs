//! Log-probabilities, and answers of a certain form.
use crate::node::{BASE, Node};
use serde_json::{Value, json};

fn content(body: &Value) -> &str {
    body["choices"][0]["message"]["content"].as_str().expect("text")
}

#[test]
fn log_probabilities_spell_the_answer_and_greedy_takes_the_likeliest() {
    let node = Node::start();
    let (status, body) = node.chat(json!({"logprobs": true, "top_logprobs": 3}));
    assert_eq!(status, 200, "{body}");
    let lines = body["choices"][0]["logprobs"]["content"].as_array().expect("lines");
    assert_eq!(lines.len() as u64, body["usage"]["completion_tokens"].as_u64().expect("a count"));
    let mut bytes = Vec::new();
    for line in lines {
        assert_eq!(line["top_logprobs"].as_array().expect("top").len(), 3);
        assert_eq!(line["logprob"], line["top_logprobs"][0]["logprob"]);
        assert!(line["logprob"].as_f64().expect("a number") <= 0.0);
        bytes.extend(line["bytes"].as_array().expect("bytes").iter().map(|byte| byte.as_u64().expect("a byte") as u8));
    }
    assert_eq!(String::from_utf8_lossy(&bytes), content(&body));
    assert_eq!(content(&body), node.said(json!({})), "asking changes nothing");
    assert_eq!(node.chat(json!({})).1["choices"][0]["logprobs"], Value::Null);
}

#[test]
fn a_stream_carries_the_same_log_probabilities() {
    let node = Node::start();
    let ask = json!({"logprobs": true, "top_logprobs": 1});
    let whole = node.chat(ask.clone()).1["choices"][0]["logprobs"]["content"].clone();
    let chunks = node.stream(ask).filter(|line| line != "[DONE]");
    let chunks = chunks.map(|line| serde_json::from_str::<Value>(&line).expect("JSON"));
    let streamed: Vec<Value> = chunks
        .flat_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(Value::Array(streamed), whole);
}

#[test]
fn a_completion_has_them_in_columns_and_takes_tokens() {
    let node = Node::start();
    let ask = |prompt: Value| {
        let body = json!({"model": BASE, "prompt": prompt, "max_tokens": 6, "logprobs": 2});
        let (status, body) = node.post("/v1/completions", &body);
        assert_eq!(status, 200, "{body}");
        body["choices"][0].clone()
    };
    let choice = ask(json!("Hello"));
    let columns = &choice["logprobs"];
    let tokens: String =
        columns["tokens"].as_array().expect("tokens").iter().map(|t| t.as_str().expect("text")).collect();
    assert_eq!(columns["text_offset"][0], 0);
    assert_eq!(columns["token_logprobs"].as_array().map(Vec::len), columns["tokens"].as_array().map(Vec::len));
    // Half characters are spelled with U+FFFD one by one.
    assert!(tokens == choice["text"] || tokens.contains('\u{fffd}'), "{tokens}");
    let ids = node.service.tokenizer().encode("Hello", true).expect("tokens");
    assert_eq!(ask(json!(ids)), choice);
    let outside = node.post("/v1/completions", &json!({"model": BASE, "prompt": [4_000_000]}));
    assert_eq!((outside.0, &outside.1["error"]["param"]), (400, &json!("prompt")));
}

#[test]
fn an_answer_that_ends_by_itself_fits_the_schema() {
    let node = Node::start();
    let schema = json!({
        "type": "object",
        "properties": {
            "kind": {"$ref": "#/$defs/kind"},
            "size": {"type": "integer", "minimum": 1, "maximum": 9},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["kind", "size", "tags"],
        "additionalProperties": false,
        "$defs": {"kind": {"enum": ["cat", "dog"]}},
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "pet", "strict": true, "schema": schema}});
    for seed in 0..4 {
        let more = json!({"response_format": format, "temperature": 1.5, "seed": seed, "max_tokens": 120});
        let (status, body) = node.chat(more);
        assert_eq!((status, &body["choices"][0]["finish_reason"]), (200, &json!("stop")), "{body}");
        let pet: Value = serde_json::from_str(content(&body)).expect("JSON");
        assert!(pet["kind"] == "cat" || pet["kind"] == "dog", "{pet}");
        assert!((1..=9).contains(&pet["size"].as_i64().expect("an integer")), "{pet}");
        assert!(
            pet["tags"].as_array().is_some_and(|tags| tags.len() <= 2 && tags.iter().all(Value::is_boolean)),
            "{pet}"
        );
        assert_eq!(pet.as_object().map(serde_json::Map::len), Some(3));
    }
}

#[test]
fn any_object_and_the_same_in_a_stream() {
    let node = Node::start();
    let more = json!({"response_format": {"type": "json_object"}, "max_tokens": 40, "seed": 1, "temperature": 1.0});
    let (status, body) = node.chat(more.clone());
    assert_eq!(status, 200, "{body}");
    assert!(content(&body).starts_with('{'), "{body}");
    let streamed: String = node
        .stream(more)
        .filter(|line| line != "[DONE]")
        .filter_map(|line| {
            let chunk: Value = serde_json::from_str(&line).expect("JSON");
            chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
        })
        .collect();
    assert_eq!(streamed, content(&body));
}

#[test]
fn a_schema_that_cannot_be_kept_is_refused_before_anything_is_said() {
    let node = Node::start();
    for schema in [
        json!({"type": "banana"}),
        json!({"$ref": "https://evil.example/schema.json"}),
        json!({"type": "string", "pattern": "("}),
        json!({"allOf": [{"type": "string"}, {"type": "object"}]}),
    ] {
        let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
        let (status, body) = node.chat(json!({"response_format": format}));
        assert_eq!((status, &body["error"]["param"]), (400, &json!("response_format")), "{schema}: {body}");
    }
    assert_eq!(node.chat(json!({})).0, 200, "and nobody else is harmed");
}
