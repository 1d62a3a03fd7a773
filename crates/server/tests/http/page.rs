//! The page's files, and what it asks for that other clients rarely do: who the caller is, and a variant's card.
use crate::{
    node::{BASE, Node, agent, question, variant_bytes},
    tenants::{new_key, only},
};
use bitdelta_server::{
    Auth,
    auth::{KeyFile, Limits, Right, Users, keys},
};
use serde_json::json;

#[test]
fn the_page_is_open_to_all_and_allows_nothing_but_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys.json");
    keys::add(&file, new_key(only("ann"), &[Right::Chat])).expect("a key");
    let node = Node::guarded(Auth::new(Some(KeyFile::open(&file).expect("keys")), None, Limits::default()));
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page/page.js", "text/javascript; charset=utf-8"),
        ("/page/page.css", "text/css; charset=utf-8"),
        ("/page/icon.svg", "image/svg+xml"),
    ] {
        let response = agent().get(format!("{}{path}", node.url)).call().expect("an answer");
        assert_eq!(response.status().as_u16(), 200, "{path}");
        assert_eq!(response.headers()["content-type"], kind);
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        let policy = response.headers()["content-security-policy"].to_str().expect("text");
        for rule in ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    }
    assert_eq!(node.get("/page/").0, 404);
    assert_eq!(node.get("/v1/me").0, 401);
}

#[test]
fn a_caller_hears_what_it_may_and_nothing_of_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys.json");
    let limits = Limits { requests_per_minute: Some(50), tokens_per_minute: None };
    let mut ann = new_key(only("ann"), &[Right::Chat, Right::Train]);
    ann.limits = limits;
    let ann = keys::add(&file, ann).expect("a key").0;
    let all = keys::add(&file, new_key(Users::All, &[Right::Admin])).expect("a key").0;
    let node = Node::guarded(Auth::new(Some(KeyFile::open(&file).expect("keys")), None, Limits::default()));
    node.publish("bob", 1);
    let (status, me) = node.with_key(&ann).get("/v1/me");
    assert_eq!(status, 200);
    assert_eq!(
        (&me["rights"], &me["users"], &me["all_users"]),
        (&json!(["chat", "train"]), &json!(["ann"]), &json!(false))
    );
    assert_eq!((&me["requests_per_minute"], &me["tokens_per_minute"]), (&json!(50), &json!(null)));
    assert_eq!((&me["model"], &me["variants"]), (&json!(BASE), &json!(true)));
    assert!(me["base_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    assert!(!me.to_string().contains("bob") && !me.to_string().contains(&ann), "{me}");
    let (_, me) = node.with_key(&all).get("/v1/me");
    assert_eq!((&me["rights"], &me["all_users"], &me["users"]), (&json!(["admin"]), &json!(true), &json!([])));
    let (_, me) = Node::start().get("/v1/me");
    assert_eq!((&me["key"], &me["rights"]), (&json!(null), &json!(["chat", "publish", "train", "admin"])));
}

#[test]
fn a_card_tells_what_the_served_file_is_and_keeps() {
    let node = Node::start();
    assert_eq!(node.get("/v1/variants/ann/card").0, 404);
    let bytes = variant_bytes(1);
    let (_, version) = node.put("/v1/variants/ann", &bytes);
    let (status, card) = node.get("/v1/variants/ann/card");
    assert_eq!((status, &card["hash"], &card["bytes"]), (200, &version["hash"], &json!(bytes.len())), "{card}");
    let weights = card["weights"].as_f64().expect("a number");
    assert_eq!(card["bits_per_weight"].as_f64(), Some(8.0 * bytes.len() as f64 / weights));
    assert_eq!((&card["base"], &card["config"]["bits"], &card["retention"]), (&json!(BASE), &json!(1), &json!(null)));
    // A card is of what would answer.
    std::fs::write(node.variants_dir.path().join("eve.safetensors"), b"no variant").expect("written");
    let (status, body) = node.get("/v1/variants/eve/card");
    assert_eq!((status, &body["error"]["code"]), (422, &json!("variant_damaged")));
    assert_eq!(node.get("/v1/variants/..%2Fann/card").0, 400);
}

#[test]
fn a_key_that_may_chat_sees_its_own_users_card_and_no_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys.json");
    let ann = keys::add(&file, new_key(only("ann"), &[Right::Chat])).expect("a key").0;
    let trainer = keys::add(&file, new_key(only("ann"), &[Right::Train])).expect("a key").0;
    let node = Node::guarded(Auth::new(Some(KeyFile::open(&file).expect("keys")), None, Limits::default()));
    node.publish("ann", 1);
    node.publish("bob", 2);
    assert_eq!(node.with_key(&ann).get("/v1/variants/ann/card").0, 200);
    for user in ["bob", "nobody", "..%2Fbob"] {
        let (status, body) = node.with_key(&ann).get(&format!("/v1/variants/{user}/card"));
        assert_eq!((status, &body["error"]["code"]), (403, &json!("user_not_allowed")));
    }
    assert_eq!(node.with_key(&trainer).get("/v1/variants/ann/card").1["error"]["code"], "right_missing");
}

#[test]
fn without_keys_the_servers_own_page_is_the_operators_and_other_pages_are_not() {
    let node = Node::start();
    node.publish("ann", 1);
    let train = |origin: &str| {
        let request = agent().post(format!("{}/v1/variants/ann/train", node.url)).header("origin", origin);
        request.send_json(json!({"data": []})).expect("an answer").status().as_u16()
    };
    // Let through to what is wrong with the body, and not.
    assert_eq!(train(&node.url), 400);
    for other in ["https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"] {
        assert_eq!(train(other), 403, "{other}");
    }
    let chat = agent().post(format!("{}/v1/chat/completions", node.url)).header("origin", &node.url);
    assert_eq!(chat.send_json(question(json!({}))).expect("an answer").status().as_u16(), 200);
}
