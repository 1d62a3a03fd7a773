//! The operator's endpoints, and files that change under a running server.
use crate::node::{BASE, Node, agent, write_variant};
use bitdelta_server::HttpOptions;
use serde_json::{Value, json};

#[test]
fn variants_are_loaded_listed_and_unloaded() {
    let node = Node::start();
    let elsewhere = tempfile::tempdir().expect("a folder");
    let folder = elsewhere.path().join("user_456");
    std::fs::create_dir(&folder).expect("made");
    write_variant(&folder.join("variant.safetensors"), BASE, 3);
    let (status, loaded) = node.post("/v1/variants", &json!({"path": folder}));
    assert_eq!((status, &loaded["user_id"]), (200, &json!("user_456")), "{loaded}");
    assert!(loaded["resident_bytes"].as_u64() > Some(0));
    assert_eq!(node.chat(json!({"user_id": "user_456"})).0, 200);
    node.publish("ann", 1);
    let (_, list) = node.get("/v1/variants");
    let states: Vec<_> =
        list["data"].as_array().expect("variants").iter().map(|v| (&v["user_id"], &v["loaded"])).collect();
    assert_eq!(states, [(&json!("ann"), &json!(false)), (&json!("user_456"), &json!(true))]);
    assert_eq!(node.post("/v1/variants/user%5F456/unload", &json!({})).0, 200);
    assert_eq!(node.post("/v1/variants/user_456/unload", &json!({})).0, 404);
    assert_eq!(node.chat(json!({"user_id": "user_456"})).0, 404, "it is in no folder of this server");
}

#[test]
fn loading_what_is_no_variant_says_why() {
    let node = Node::start();
    let (status, body) = node.post("/v1/variants", &json!({"path": "/nowhere/ann"}));
    assert_eq!(status, 404, "{body}");
    assert!(body["error"]["message"].as_str().expect("text").contains("/nowhere/ann"), "{body}");
    assert_eq!(node.post("/v1/variants", &json!({})).0, 400);
    let junk = node.variants_dir.path().join("junk.safetensors");
    std::fs::write(&junk, b"junk").expect("written");
    assert_eq!(node.post("/v1/variants", &json!({"path": junk})).0, 422);
}

#[test]
fn a_web_page_or_a_proxy_is_not_the_operator() {
    let node = Node::start();
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("x-forwarded-for", "10.0.0.9"),
    ] {
        let request = agent().get(format!("{}/v1/variants", node.url)).header(name, value);
        let mut response = request.call().expect("an answer");
        let body: Value = response.body_mut().read_json().expect("JSON");
        assert_eq!((response.status().as_u16(), &body["error"]["code"]), (403, &json!("operator_only")), "{name}");
    }
}

#[test]
fn without_keys_nothing_is_answered_under_anothers_name() {
    // As a web page sees it whose name was made to resolve to this machine.
    let node = Node::start();
    node.publish("ann", 1);
    let ask = |node: &Node, host: &str| {
        let request = agent().get(format!("{}/v1/models", node.url)).header("host", host);
        let mut response = request.call().expect("an answer");
        let body: Value = response.body_mut().read_json().expect("JSON");
        (response.status().as_u16(), body["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"] {
        assert_eq!(ask(&node, host), (403, "host_not_allowed".to_owned()), "{host}");
    }
    for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:80"] {
        assert_eq!(ask(&node, host).0, 200, "{host}");
    }
    let open = Node::over(HttpOptions { loopback_names_only: false, ..HttpOptions::default() });
    assert_eq!(ask(&open, "node.example").0, 200);
}

#[test]
fn a_replaced_file_answers_from_the_next_request_on() {
    let node = Node::start();
    node.publish("ann", 1);
    let before = node.said(json!({"user_id": "ann"}));
    let path = node.publish("ann", 9);
    let after = node.said(json!({"user_id": "ann"}));
    assert_ne!(before, after);
    std::fs::remove_file(path).expect("removed");
    assert_eq!(node.chat(json!({"user_id": "ann"})).0, 404, "a withdrawn variant is gone");
}

#[test]
fn many_users_at_once_get_what_each_gets_alone() {
    let node = Node::start();
    let users: Vec<String> = (0..6).map(|i| format!("user_{i}")).collect();
    for (seed, user) in users.iter().enumerate() {
        node.publish(user, seed as u64 * 2 + 1);
    }
    let alone: Vec<String> = users.iter().map(|user| node.said(json!({"user_id": user}))).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let ask = |user: &String| node.said(json!({"user_id": user}));
        let asked: Vec<_> = users.iter().map(|user| scope.spawn(move || ask(user))).collect();
        asked.into_iter().map(|thread| thread.join().expect("answered")).collect()
    });
    assert_eq!(alone, together);
}
