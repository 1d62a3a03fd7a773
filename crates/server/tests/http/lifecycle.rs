//! Clients that go away, and a server that stops.
use crate::node::{Node, agent, base};
use bitdelta_engine::EngineOptions;
use serde_json::json;
use std::time::{Duration, Instant};

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
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (_, health) = node.get("/health");
        if health["running"] == 0 && health["waiting"] == 0 {
            let made = health["generated_tokens"].as_u64().expect("a count");
            assert!(made < 8 * LONG as u64 / 2, "{made} tokens were made for nobody");
            return;
        }
        assert!(Instant::now() < deadline, "still running: {health}");
        std::thread::sleep(Duration::from_millis(2));
    }
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
