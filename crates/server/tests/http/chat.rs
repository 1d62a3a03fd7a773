//! Chats and completions, whole and streamed, as real clients ask for them.
use crate::node::{BASE, Node};
use bitdelta_delta::Variant;
use bitdelta_engine::{EngineOptions, prompt};
use serde_json::{Value, json};

#[test]
fn the_pages_curl_works_as_written() {
    let node = Node::start();
    node.publish("user_123", 7);
    let body = r#"{
    "model": "qwen3-4b",
    "user_id": "user_123",
    "messages": [{"role": "user", "content": "Hello!"}]
  }"#;
    let (status, answer) = node.post_raw("/v1/chat/completions", body.as_bytes());
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "qwen3-4b");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert!(answer["choices"][0]["message"]["content"].is_string());
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().expect("a count");
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    assert!(count("prompt_tokens") > 10);
}

#[test]
fn each_user_is_answered_by_their_own_variant_and_nobody_by_the_base() {
    let node = Node::start();
    node.publish("ann", 1);
    node.publish("bob", 2);
    let base = node.said(json!({}));
    let ann = node.said(json!({"user_id": "ann"}));
    let bob = node.said(json!({"user": "bob"}));
    assert!(base != ann && base != bob && ann != bob, "{base:?} {ann:?} {bob:?}");
    // Every way to name ann, and nulls in between.
    assert_eq!(node.said(json!({"safety_identifier": "ann"})), ann);
    assert_eq!(node.said(json!({"model": format!("{BASE}:ann")})), ann);
    assert_eq!(node.said(json!({"user_id": null, "user": "ann", "tools": null, "stop": null})), ann);
    assert_eq!(node.said(json!({"user_id": "ann", "user": "bob", "model": format!("{BASE}:bob")})), ann);
    assert_eq!(node.said(json!({"user_id": null})), base);
}

#[test]
fn the_fingerprint_names_what_answered() {
    let node = Node::start();
    node.publish("ann", 1);
    let fingerprint = |more| node.chat(more).1["system_fingerprint"].as_str().expect("a fingerprint").to_owned();
    assert_eq!(fingerprint(json!({})), fingerprint(json!({})));
    assert_ne!(fingerprint(json!({})), fingerprint(json!({"user_id": "ann"})));
}

#[test]
fn a_stream_says_the_same_as_the_whole_answer() {
    let node = Node::start();
    node.publish("ann", 1);
    let whole = node.said(json!({"user_id": "ann"}));
    let lines: Vec<String> =
        node.stream(json!({"user_id": "ann", "stream_options": {"include_usage": true}})).collect();
    assert_eq!(lines.last().map(String::as_str), Some("[DONE]"));
    let chunks: Vec<Value> =
        lines[..lines.len() - 1].iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"]));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, whole);
    let (counts, rest) = chunks.split_last().expect("chunks");
    assert_eq!(counts["choices"], json!([]));
    assert!(counts["usage"]["completion_tokens"].as_u64() > Some(0));
    let closing = rest.last().expect("a closing chunk");
    assert!(closing["choices"][0]["finish_reason"].is_string(), "{closing}");
    let without = node.stream(json!({"user_id": "ann"}));
    assert!(without.filter(|line| line != "[DONE]").all(|line| !line.contains("\"usage\"")));
}

#[test]
fn the_model_may_stand_in_the_query() {
    let node = Node::start();
    node.publish("ann", 1);
    let body = json!({"user_id": "ann", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 12});
    let (status, answer) = node.post(&format!("/v1/chat/completions?model={BASE}"), &body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["message"]["content"], node.said(json!({"user_id": "ann"})));
}

#[test]
fn several_answers_are_sampled_apart_and_a_seed_repeats_them() {
    let node = Node::start();
    let sampled = |seed: u64| {
        let (status, answer) = node.chat(json!({"n": 3, "temperature": 1.5, "seed": seed}));
        assert_eq!(status, 200, "{answer}");
        let choices = answer["choices"].as_array().expect("choices").clone();
        choices.iter().map(|choice| choice["message"]["content"].to_string()).collect::<Vec<_>>()
    };
    let first = sampled(5);
    assert_eq!(first.len(), 3);
    assert!(first[0] != first[1] || first[1] != first[2], "{first:?}");
    assert_eq!(first, sampled(5));
}

#[test]
fn max_tokens_ends_an_answer_and_a_stop_text_is_left_out() {
    let node = Node::start();
    let (_, answer) = node.chat(json!({"max_tokens": 3}));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let whole = node.said(json!({"max_tokens": 12}));
    let stop: String = whole.chars().skip(3).take(1).collect();
    let (_, stopped) = node.chat(json!({"max_tokens": 12, "stop": [stop]}));
    let text = stopped["choices"][0]["message"]["content"].as_str().expect("text");
    assert!(!text.contains(&stop) && whole.starts_with(text), "{text:?} of {whole:?}");
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

#[test]
fn a_completion_continues_the_text_as_it_is() {
    let node = Node::start();
    let body = json!({"model": BASE, "prompt": "Hello", "max_tokens": 4});
    let (status, answer) = node.post("/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["choices"][0]["text"].is_string());
    assert!(answer["usage"]["prompt_tokens"].as_u64() < Some(6), "no template is put around it");
}

#[test]
fn the_base_is_listed_first_and_each_variant_after_it() {
    let node = Node::start();
    node.publish("bob", 2);
    node.publish("ann", 1);
    let (status, models) = node.get("/v1/models");
    assert_eq!(status, 200);
    let ids: Vec<_> =
        models["data"].as_array().expect("models").iter().map(|m| m["id"].as_str().expect("an id")).collect();
    assert_eq!(ids, ["tiny-llama", "qwen3-4b", "tiny-llama:ann", "tiny-llama:bob"]);
    assert_eq!(node.get("/v1/models/tiny-llama:ann").1["id"], "tiny-llama:ann");
    assert_eq!(node.get("/v1/models/tiny-llama%3Aeve").0, 404);
    assert_eq!(node.get("/v1/models/gpt-4o").0, 404);
}

#[test]
fn a_variants_experiences_stand_in_the_system_turn_of_every_chat_and_count() {
    let node = Node::start();
    node.publish("ann", 1);
    let path = node.publish("bob", 1);
    let experiences = vec!["Be brief.".to_owned(), "Give the unit with every number.".to_owned()];
    let mut variant = Variant::read(&path).expect("the variant");
    variant.info.experiences.clone_from(&experiences);
    variant.write(&path).expect("written");
    // What ann, with the same weights, is told outright.
    let told = |system: &str| json!([{"role": "system", "content": system}, {"role": "user", "content": "Hello!"}]);
    let ask = |user: &str, messages: Option<Value>| {
        let mut more = json!({"user_id": user});
        if let Some(messages) = messages {
            more["messages"] = messages;
        }
        let (status, answer) = node.chat(more);
        assert_eq!(status, 200, "{answer}");
        (answer["choices"][0]["message"]["content"].clone(), answer["usage"]["prompt_tokens"].clone())
    };
    let list = prompt::list(&experiences);
    assert_eq!(ask("bob", None), ask("ann", Some(told(&list))));
    assert_ne!(ask("bob", None), ask("ann", None));
    let own = "You are Bo.";
    assert_eq!(ask("bob", Some(told(own))), ask("ann", Some(told(&format!("{own}\n\n{list}")))));
    // A raw prompt is as it is.
    let raw = |user: &str| {
        let body = json!({"model": BASE, "user_id": user, "prompt": "Hello", "max_tokens": 6});
        let (status, answer) = node.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        (answer["choices"][0]["text"].clone(), answer["usage"].clone())
    };
    assert_eq!(raw("bob"), raw("ann"));
}

#[test]
fn experiences_that_leave_no_room_are_a_prompt_that_is_too_long() {
    let node = Node::with(EngineOptions { max_context: 64, ..EngineOptions::default() }, true);
    node.publish("ann", 1);
    let path = node.publish("bob", 1);
    assert_eq!(node.chat(json!({"user_id": "ann"})).0, 200);
    let mut variant = Variant::read(&path).expect("the variant");
    variant.info.experiences = vec!["word ".repeat(100).trim().to_owned()];
    variant.write(&path).expect("written");
    let (status, answer) = node.chat(json!({"user_id": "bob"}));
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("context_length_exceeded")), "{answer}");
}
