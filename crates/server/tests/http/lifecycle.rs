//! Clients that go away, and a server that stops.
use crate::node::{Node, agent, base};
use bitdelta_engine::EngineOptions;
use serde_json::json;
use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

/// One sequence at a time, so that eight answers take a while.
fn slow() -> Node {
    Node::with(EngineOptions { max_batch: 1, ..EngineOptions::default() }, true)
}

/// Eight answers as long as the context allows.
const LONG: usize = 400;

#[test]
fn a_client_that_goes_away_ends_its_generation() {
    let node = slow();
    let mut lines = node.stream(json!({"n": 8, "max_tokens": LONG, "temperature": 1.0, "seed": 1}));
    assert!(lines.next().is_some());
    drop(lines);
    let made = tokens_when_idle(&node);
    assert!(made < 8 * LONG as u64 / 2, "{made} tokens were made for nobody");
}

#[test]
fn stopping_finishes_running_answers_and_takes_no_new_ones() {
    let mut node = slow();
    let mut lines = node.stream(json!({"n": 4, "max_tokens": LONG, "temperature": 1.0, "seed": 1}));
    assert!(lines.next().is_some());
    node.ask_to_stop();
    let rest: Vec<String> = lines.collect();
    assert_eq!(rest.last().map(String::as_str), Some("[DONE]"), "the answer is complete");
    node.join();
    assert!(agent().get(format!("{}/health", node.url)).call().is_err(), "nobody listens any more");
}

#[test]
fn answers_that_outlive_the_shutdown_limit_are_cut_off() {
    let options = EngineOptions { max_batch: 1, ..EngineOptions::default() };
    let mut node = Node::stopping_within(Duration::ZERO, options, true);
    let mut lines = node.stream(json!({"n": 8, "max_tokens": LONG, "temperature": 1.0, "seed": 1}));
    assert!(lines.next().is_some());
    node.join();
}

#[test]
fn a_client_that_goes_away_from_a_whole_answer_ends_it_too() {
    let node = slow();
    let body = crate::node::question(json!({"n": 8, "max_tokens": LONG, "temperature": 1.0, "seed": 1})).to_string();
    let mut socket = TcpStream::connect(node.url.trim_start_matches("http://")).expect("connected");
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length:";
    write!(socket, "{head} {}\r\n\r\n{body}", body.len()).expect("sent");
    let deadline = Instant::now() + Duration::from_secs(10);
    while node.get("/health").1["running"] == 0 {
        assert!(Instant::now() < deadline, "it never ran");
    }
    drop(socket);
    let made = tokens_when_idle(&node);
    assert!(made < 8 * LONG as u64 / 2, "{made} tokens were made for nobody");
}

/// Waits until nothing runs or waits, and says how many tokens were made.
fn tokens_when_idle(node: &Node) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (_, health) = node.get("/health");
        if health["running"] == 0 && health["waiting"] == 0 {
            return health["generated_tokens"].as_u64().expect("a count");
        }
        assert!(Instant::now() < deadline, "still running: {health}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn health_tells_what_is_served() {
    let node = Node::start();
    let (status, health) = node.get("/health");
    assert_eq!((status, &health["status"], &health["model"]), (200, &json!("ok"), &json!(base("tiny-llama").name)));
}

#[test]
fn addresses_beyond_this_machine_need_to_be_meant() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let refused = runtime.block_on(bitdelta_server::bind("0.0.0.0", 0, false));
    assert!(matches!(refused, Err(bitdelta_server::Error::Remote { .. })));
    assert!(runtime.block_on(bitdelta_server::bind("0.0.0.0", 0, true)).is_ok());
    assert!(runtime.block_on(bitdelta_server::bind("localhost", 0, false)).is_ok());
}
