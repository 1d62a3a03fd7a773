//! Training over HTTP: a job that is begun, followed, called back, and whose variant answers when it ends.
use crate::node::{Node, agent};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};

fn conversations(count: usize) -> Value {
    let one = |i: usize| json!({"prompt": format!("What is {i}?"), "response": format!("It is number {i}.")});
    (0..count).map(one).collect()
}

/// Every state of the job, to its end.
fn follow(node: &Node, user: &str) -> Vec<Value> {
    let response = agent().get(format!("{}/v1/variants/{user}/train/events", node.url)).call().expect("an answer");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let lines = BufReader::new(response.into_body().into_reader()).lines();
    let data: Vec<String> =
        lines.filter_map(|line| line.expect("a line").strip_prefix("data: ").map(str::to_owned)).collect();
    assert_eq!(data.last().map(String::as_str), Some("[DONE]"));
    data[..data.len() - 1].iter().map(|state| serde_json::from_str(state).expect("JSON")).collect()
}

#[test]
fn a_training_is_followed_to_its_end_and_its_variant_answers() {
    let node = Node::start();
    let settings = json!({"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 0.01, "lora_rank": 2});
    let body = json!({"data": conversations(4), "eval_data": conversations(1), "settings": settings});
    let (status, begun) = node.post("/v1/variants/ann/train", &body);
    assert_eq!((status, &begun["object"]), (202, &json!("training")), "{begun}");
    let states = follow(&node, "ann");
    let last = states.last().expect("a state");
    assert_eq!((&last["status"], &last["version"]), (&json!("succeeded"), &json!(1)), "{last}");
    assert_eq!(last["result"]["steps"], 3);
    assert!(last["result"]["loss_variant"].is_number(), "{last}");
    assert_eq!(node.get("/v1/variants/ann/train").1["status"], "succeeded");
    assert_eq!(node.chat(json!({"user_id": "ann"})).0, 200);
    assert_eq!(node.delete("/v1/variants/ann/train").0, 409);
}

#[test]
fn a_training_that_is_called_back_publishes_nothing() {
    let node = Node::start();
    let body = json!({"data": conversations(4), "settings": {"max_steps": 1_000_000}});
    assert_eq!(node.post("/v1/variants/ann/train", &body).0, 202);
    let (status, second) = node.post("/v1/variants/ann/train", &body);
    assert_eq!((status, &second["error"]["code"]), (409, &json!("training_under_way")));
    // One at a time: the second user's waits.
    assert_eq!(node.post("/v1/variants/bob/train", &body).1["status"], "queued");
    assert_eq!(node.delete("/v1/variants/bob/train").1["status"], "cancelled");
    assert_eq!(node.delete("/v1/variants/ann/train").0, 202);
    assert_eq!(follow(&node, "ann").last().expect("a state")["status"], "cancelled");
    assert_eq!(node.chat(json!({"user_id": "ann"})).0, 404);
}

#[test]
fn what_was_erased_does_not_come_again_from_a_training_under_way() {
    let node = Node::start();
    node.publish("ann", 1);
    let body = json!({"data": conversations(4), "settings": {"max_steps": 1_000_000}});
    assert_eq!(node.post("/v1/variants/ann/train", &body).0, 202);
    assert_eq!(node.delete("/v1/variants/ann").0, 200);
    assert_eq!(follow(&node, "ann").last().expect("a state")["status"], "cancelled");
    assert_eq!(node.get("/v1/variants/ann").0, 404);
    assert_eq!(node.delete("/v1/variants/ann").0, 404);
}

#[test]
fn what_cannot_be_trained_is_refused_or_fails_with_the_reason() {
    let node = Node::start();
    let refused = |body: Value| {
        let (status, answer) = node.post("/v1/variants/ann/train", &body);
        assert_eq!(status, 400, "{answer}");
        answer["error"]["param"].as_str().expect("a field").to_owned()
    };
    assert_eq!(refused(json!({})), "data");
    assert_eq!(refused(json!({"data": ["text"]})), "data[0]");
    assert_eq!(refused(json!({"data": conversations(1), "settings": {"output_dir": "/tmp"}})), "settings.output_dir");
    assert_eq!(refused(json!({"data": conversations(1), "settings": {"lora_rank": 0}})), "settings");
    assert_eq!(refused(json!({"data": conversations(1), "settings": {"lora_rank": [4]}})), "settings.lora_rank");
    assert_eq!(node.get("/v1/variants/ann/train").0, 404);
    assert_eq!(node.post("/v1/variants/..%2Fann/train", &json!({"data": conversations(1)})).0, 400);
    assert_eq!(node.post("/v1/variants/ann/train", &json!({"data": [{"nothing": "here"}]})).0, 202);
    let last = follow(&node, "ann").pop().expect("a state");
    assert_eq!(last["status"], "failed", "{last}");
    let error = last["error"].as_str().expect("a reason");
    assert!(!error.is_empty() && !error.contains("bitdelta-training-"), "{error}");
}
