//! Every error has OpenAI's shape and the right status, and none is an answer from the base.
use crate::node::{BASE, Node, agent, write_variant};
use bitdelta_engine::EngineOptions;
use serde_json::{Value, json};

/// Status, code and param of an error in OpenAI's shape.
fn shape(answer: &(u16, Value)) -> (u16, &str, Option<&str>) {
    let (status, body) = answer;
    let error = &body["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    assert!(error["type"].is_string(), "{body}");
    assert!(error.get("param").is_some() && body.get("choices").is_none(), "{body}");
    (*status, error["code"].as_str().expect("a code"), error["param"].as_str())
}

#[test]
fn an_unknown_user_is_a_404_and_never_the_base() {
    let node = Node::start();
    for more in [json!({"user_id": "eve"}), json!({"user": "eve"}), json!({"model": format!("{BASE}:eve")})] {
        let answer = node.chat(more);
        assert_eq!(shape(&answer), (404, "variant_not_found", Some("user_id")));
        let dir = node.variants_dir.path().to_str().expect("UTF-8");
        assert!(!answer.1.to_string().contains(dir), "no paths of the server in answers");
    }
}

#[test]
fn a_user_id_is_never_a_path() {
    let node = Node::start();
    for user in ["../ann", "/etc/passwd", "..", "a/b", "", "a\0b"] {
        let (status, code, _) = {
            let answer = node.chat(json!({"user_id": user}));
            let (status, code, param) = shape(&answer);
            (status, code.to_owned(), param.map(str::to_owned))
        };
        assert_eq!((status, code.as_str()), (400, "invalid_user"), "{user:?}");
    }
}

#[test]
fn an_unknown_model_is_a_404_that_lists_what_is_served() {
    let node = Node::start();
    let answer = node.chat(json!({"model": "gpt-4o"}));
    assert_eq!(shape(&answer), (404, "model_not_found", Some("model")));
    assert!(answer.1["error"]["message"].as_str().expect("text").contains(BASE));
}

#[test]
fn a_variant_of_another_base_is_refused_by_name() {
    let node = Node::start();
    write_variant(&node.variants_dir.path().join("ann.safetensors"), "tiny-llama-ft", 1);
    let answer = node.chat(json!({"user_id": "ann"}));
    assert_eq!(shape(&answer), (400, "wrong_base", Some("user_id")));
    assert!(answer.1["error"]["message"].as_str().expect("text").contains("tiny-llama-ft"));
}

#[test]
fn a_damaged_variant_is_a_422_wherever_the_damage_is() {
    let node = Node::start();
    let path = node.publish("ann", 1);
    let good = std::fs::read(&path).expect("bytes");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for bad in [flipped, good[..good.len() / 2].to_vec(), b"not a variant".to_vec(), Vec::new()] {
        std::fs::write(&path, bad).expect("written");
        assert_eq!(shape(&node.chat(json!({"user_id": "ann"}))), (422, "variant_damaged", Some("user_id")));
    }
    std::fs::write(&path, good).expect("written");
    assert_eq!(node.chat(json!({"user_id": "ann"})).0, 200, "a repaired file is found by itself");
}

#[test]
fn bad_requests_name_the_field() {
    let node = Node::start();
    let fault = |more: Value| {
        let answer = node.chat(more);
        let (status, _, param) = shape(&answer);
        assert_eq!(status, 400);
        param.expect("a param").to_owned()
    };
    assert_eq!(fault(json!({"messages": []})), "messages");
    assert_eq!(fault(json!({"messages": "Hello!"})), "messages");
    assert_eq!(fault(json!({"user_id": 123})), "user_id");
    assert_eq!(fault(json!({"temperature": 3})), "temperature");
    assert_eq!(fault(json!({"top_p": 1.5})), "top_p");
    assert_eq!(fault(json!({"stream": "yes"})), "stream");
    assert_eq!(fault(json!({"n": 100})), "n");
    assert_eq!(fault(json!({"model": null})), "model");
    assert_eq!(fault(json!({"tools": [{"type": "function"}]})), "tools");
}

#[test]
fn too_long_a_prompt_is_openais_context_error() {
    let node = Node::start();
    let long = "word ".repeat(2000);
    let answer = node.chat(json!({"messages": [{"role": "user", "content": long}]}));
    assert_eq!(shape(&answer), (400, "context_length_exceeded", Some("messages")));
    // A stream has not begun yet, so it has the status too.
    let answer = node.chat(json!({"messages": [{"role": "user", "content": long}], "stream": true}));
    assert_eq!(shape(&answer).0, 400);
}

#[test]
fn a_body_that_is_no_json_or_too_large_is_refused() {
    let node = Node::start();
    assert_eq!(shape(&node.post_raw("/v1/chat/completions", b"{\"model\":")).0, 400);
    assert_eq!(shape(&node.post_raw("/v1/chat/completions", b"\"text\"")).1, "invalid_json");
    // A little over the limit, so that the server reads on while the client still writes.
    let large = vec![b' '; (8 << 20) + 1];
    assert_eq!(shape(&node.post_raw("/v1/chat/completions", &large)), (413, "body_too_large", None));
}

#[test]
fn unknown_urls_and_wrong_methods_have_the_same_shape() {
    let node = Node::start();
    assert_eq!(shape(&node.get("/v2/nothing")), (404, "unknown_url", None));
    assert_eq!(shape(&node.get("/v1/chat/completions")), (405, "method_not_allowed", None));
}

#[test]
fn a_full_queue_is_a_429_that_says_when_to_come_back() {
    let options = EngineOptions { max_batch: 1, max_queue: 1, ..EngineOptions::default() };
    let node = Node::with(options, true);
    let body = crate::node::question(json!({"n": 8, "max_tokens": 400}));
    let response = agent().post(format!("{}/v1/chat/completions", node.url)).send_json(&body).expect("an answer");
    assert_eq!(response.status().as_u16(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
}

#[test]
fn without_bitdelta_the_base_answers_and_a_user_is_told_how_to_enable_it() {
    let node = Node::with(EngineOptions::default(), false);
    assert_eq!(node.chat(json!({})).0, 200);
    let answer = node.chat(json!({"user_id": "ann"}));
    assert_eq!(shape(&answer), (400, "bitdelta_disabled", Some("user_id")));
    assert!(answer.1["error"]["message"].as_str().expect("text").contains("--enable-bitdelta"));
    assert_eq!(shape(&node.get("/v1/variants")).0, 400);
}
