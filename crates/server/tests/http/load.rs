//! Many users at once: what one sends, queues or leaves behind does not cost the others their answers.
use crate::node::{Node, agent, question};
use bitdelta_engine::EngineOptions;
use bitdelta_server::Defaults;
use serde_json::{Value, json};
use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

/// As long as the context allows.
const LONG: usize = 400;

/// Waits until `is_so`; no test depends on how long that takes.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn post(node: &Node, more: Value) -> ureq::http::Response<ureq::Body> {
    agent().post(format!("{}/v1/chat/completions", node.url)).send_json(question(more)).expect("an answer")
}

/// Begins a request by hand; `length` is what the header says of the body.
fn begin(node: &Node, body: &[u8], length: usize) -> TcpStream {
    let mut socket = TcpStream::connect(node.url.trim_start_matches("http://")).expect("connected");
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length:";
    write!(socket, "{head} {length}\r\n\r\n").expect("sent");
    // A server that refuses it need not read to its end.
    let _refused = socket.write_all(body);
    socket
}

#[test]
fn a_repeated_prompt_is_counted_as_cached_for_its_own_user_alone() {
    let node = Node::start();
    node.publish("ann", 1);
    node.publish("bob", 1);
    let content = "What do you know of the history of the lighthouse on the northern island? ".repeat(2);
    let ask = |user: Value| {
        let more = json!({"user_id": user, "messages": [{"role": "user", "content": content}]});
        let (status, body) = node.chat(more);
        assert_eq!(status, 200, "{body}");
        let usage = &body["usage"];
        let count = |value: &Value| value.as_u64().expect("a count");
        let cached = count(&usage["prompt_tokens_details"]["cached_tokens"]);
        (count(&usage["prompt_tokens"]), cached, body["choices"][0]["message"]["content"].clone())
    };
    let (tokens, cached, said) = ask(json!("ann"));
    assert!(tokens > 64 && cached == 0, "{tokens} tokens, {cached} cached");
    // All full pages but that of the last token.
    assert_eq!(ask(json!("ann")), (tokens, (tokens - 1) / 32 * 32, said.clone()));
    assert_eq!(ask(json!("bob")), (tokens, 0, said), "the same file in other hands");
    assert_eq!(ask(json!(null)).1, 0, "the base");
    assert!(node.get("/health").1["reused_tokens"].as_u64() > Some(0));
}

#[test]
fn a_user_who_fills_the_queue_leaves_room_for_others() {
    let node = Node::with(EngineOptions { max_batch: 1, max_queue: 8, ..EngineOptions::default() }, true);
    node.publish("ann", 1);
    node.publish("bob", 2);
    let mut held = node.stream(json!({"user_id": "ann", "n": 4, "max_tokens": LONG, "temperature": 1.0}));
    assert!(held.next().is_some());
    let refused = post(&node, json!({"user_id": "ann", "n": 8, "max_tokens": LONG, "temperature": 1.0}));
    assert_eq!(refused.status().as_u16(), 429);
    let seconds = refused.headers()["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds");
    assert!((1..=60).contains(&seconds));
    assert_eq!(node.chat(json!({"user_id": "bob"})).0, 200);
    drop(held);
    wait_until("what was refused or left is gone", || {
        let (_, health) = node.get("/health");
        health["running"] == 0 && health["waiting"] == 0
    });
}

#[test]
fn a_client_that_leaves_the_queue_is_not_waited_for() {
    let node = Node::with(EngineOptions { max_batch: 1, ..EngineOptions::default() }, true);
    let mut held = node.stream(json!({"n": 8, "max_tokens": LONG, "temperature": 1.0, "seed": 1}));
    assert!(held.next().is_some());
    let body = question(json!({"max_tokens": LONG, "temperature": 1.0})).to_string();
    // One that leaves before it is read was never there; another try follows.
    wait_until("one that leaves is let go", || {
        let socket = begin(&node, body.as_bytes(), body.len());
        std::thread::sleep(Duration::from_millis(5));
        drop(socket);
        node.get("/health").1["cancelled"].as_u64() >= Some(1)
    });
    drop(held);
    wait_until("the other is let go", || node.get("/health").1["running"] == 0);
}

#[test]
fn a_request_whose_time_is_over_in_the_queue_is_a_503_to_try_again() {
    let limit = Duration::from_secs(20);
    let waits = EngineOptions { max_wait: Some(Duration::ZERO), ..EngineOptions::default() };
    let late = Defaults { timeout: Some(Duration::ZERO), ..Defaults::default() };
    for (options, defaults) in [(waits, Defaults::default()), (EngineOptions::default(), late)] {
        let node = Node::new(limit, options, false, defaults);
        let mut answer = post(&node, json!({}));
        assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"1".parse().expect("a value")));
        let body: Value = answer.body_mut().read_json().expect("JSON");
        assert_eq!(body["error"]["code"], "queue_timeout", "{body}");
        // A stream has begun by then; the error travels in it.
        let lines: Vec<String> = node.stream(json!({})).collect();
        assert!(lines.iter().any(|line| line.contains("queue_timeout")), "{lines:?}");
        assert_eq!(lines.last().map(String::as_str), Some("[DONE]"));
    }
}

#[test]
fn bodies_that_never_end_are_bounded_together() {
    let node = Node::start();
    let part = vec![b' '; 1 << 19];
    let content = "x".repeat(1 << 20);
    let status = || post(&node, json!({"messages": [{"role": "user", "content": content}]})).status().as_u16();
    let mut stalled = Vec::new();
    wait_until("the budget is spent", || {
        stalled.extend((0..16).map(|_| begin(&node, &part, 8 << 20)));
        status() == 503
    });
    drop(stalled);
    wait_until("the budget is back", || status() == 400);
    assert_eq!(node.chat(json!({})).0, 200);
}

#[test]
fn a_body_of_countless_values_is_refused_before_they_are_made() {
    let node = Node::start();
    let zeros = format!("{{\"model\": [{}0]}}", "0,".repeat(1 << 20));
    let (status, body) = node.post_raw("/v1/chat/completions", zeros.as_bytes());
    assert_eq!((status, &body["error"]["code"]), (400, &json!("body_too_complex")));
}
