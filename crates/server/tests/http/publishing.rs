//! Variants over HTTP: published by upload, rolled back, deleted; and the document that describes it all.
use crate::node::{Node, agent, variant_bytes, write_variant};
use serde_json::{Value, json};

#[test]
fn an_upload_answers_from_the_next_request_on_and_can_be_taken_back() {
    let node = Node::start();
    let (status, first) = node.put("/v1/variants/ann", &variant_bytes(1));
    assert_eq!((status, &first["version"]), (201, &json!(1)), "{first}");
    let said = node.said(json!({"user_id": "ann"}));
    assert_eq!(node.put("/v1/variants/ann", &variant_bytes(2)).1["version"], 2);
    let later = node.said(json!({"user_id": "ann"}));
    assert_ne!(said, later);
    let (status, back) = node.post("/v1/variants/ann/rollback", &json!({}));
    assert_eq!((status, &back["version"], &back["rolled_back_to"]), (200, &json!(3), &json!(1)), "{back}");
    assert_eq!(node.said(json!({"user_id": "ann"})), said);
    assert_eq!(node.post("/v1/variants/ann/rollback", &json!({"version": 2})).0, 200);
    assert_eq!(node.said(json!({"user_id": "ann"})), later);
    let (_, listed) = node.get("/v1/variants/ann");
    let numbers: Vec<_> = listed["versions"].as_array().expect("versions").iter().map(|v| &v["version"]).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    assert_eq!(
        node.delete("/v1/variants/ann"),
        (200, json!({"object": "variant.deleted", "user_id": "ann", "deleted": true}))
    );
    assert_eq!(node.chat(json!({"user_id": "ann"})).0, 404);
    assert_eq!(node.delete("/v1/variants/ann").0, 404);
    assert_eq!(node.get("/v1/variants/ann").0, 404);
}

#[test]
fn a_file_that_lay_there_becomes_the_version_before_the_upload() {
    let node = Node::start();
    node.publish("ann", 1);
    let said = node.said(json!({"user_id": "ann"}));
    assert_eq!(node.put("/v1/variants/ann", &variant_bytes(2)).1["version"], 2);
    assert_eq!(node.post("/v1/variants/ann/rollback", &json!({})).0, 200);
    assert_eq!(node.said(json!({"user_id": "ann"})), said);
}

#[test]
fn what_could_not_be_served_is_not_published() {
    let node = Node::start();
    node.publish("ann", 1);
    let said = node.said(json!({"user_id": "ann"}));
    let foreign = tempfile::NamedTempFile::new().expect("a file");
    write_variant(foreign.path(), "tiny-llama-ft", 1);
    let mut damaged = variant_bytes(2);
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    for (bytes, code) in [
        (b"junk".to_vec(), "variant_damaged"),
        (Vec::new(), "variant_damaged"),
        (damaged, "variant_damaged"),
        (std::fs::read(foreign.path()).expect("bytes"), "wrong_base"),
    ] {
        let (status, body) = node.put("/v1/variants/ann", &bytes);
        assert!(matches!(status, 400 | 422), "{body}");
        assert_eq!(body["error"]["code"], code);
        let dir = node.variants_dir.path().to_str().expect("UTF-8");
        assert!(!body.to_string().contains(dir), "{body}");
    }
    assert_eq!(node.said(json!({"user_id": "ann"})), said);
    assert_eq!(node.put("/v1/variants/..%2Fann", &variant_bytes(1)).0, 400);
    assert_eq!(node.post("/v1/variants/ann/rollback", &json!({"version": 7})).1["error"]["code"], "version_not_found");
    // Nothing is left of what was refused.
    let left = std::fs::read_dir(node.variants_dir.path()).expect("a folder").count();
    assert!(left <= 2, "the variant, and at most the lock");
}

#[test]
fn an_upload_larger_than_all_variants_may_be_is_refused_before_it_is_all_there() {
    let node = Node::within(1 << 16);
    let (status, body) = node.put("/v1/variants/ann", &vec![0; (1 << 16) + 1]);
    assert_eq!((status, &body["error"]["code"]), (413, &json!("body_too_large")));
}

#[test]
fn no_cache_keeps_an_answer_and_no_browser_guesses_what_it_is() {
    let node = Node::start();
    for path in ["/v1/models", "/v1/variants", "/v1/me", "/metrics", "/nowhere"] {
        let response = agent().get(format!("{}{path}", node.url)).call().expect("an answer");
        let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
        assert_eq!((header("cache-control"), header("x-content-type-options")), ("no-store".into(), "nosniff".into()));
    }
}

#[test]
fn readiness_and_the_document_are_open_and_metrics_count() {
    let node = Node::start();
    assert_eq!(node.get("/ready"), (200, json!({"status": "ready"})));
    let (status, document) = node.get("/openapi.json");
    assert_eq!((status, &document["info"]["title"]), (200, &json!("bitdelta")));
    assert_eq!(node.chat(json!({})).0, 200);
    assert_eq!(node.chat(json!({"model": "none"})).0, 404);
    let text = agent().get(format!("{}/metrics", node.url)).call().expect("an answer").body_mut().read_to_string();
    let text = text.expect("text");
    for line in [
        "bitdelta_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "bitdelta_http_requests_total{route=\"/v1/chat/completions\",status=\"404\"} 1",
        "bitdelta_first_token_seconds_count 1",
        "bitdelta_tenant_completion_tokens_total{tenant=\"anonymous\"} ",
        "bitdelta_memory_bytes{tier=\"base\"}",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
    node.service.engine.drain();
    let (status, body): (u16, Value) = node.get("/ready");
    assert_eq!((status, &body["error"]["code"]), (503, &json!("shutting_down")));
    assert!(body.to_string().contains("stopped"));
}
