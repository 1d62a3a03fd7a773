//! More users than memory holds, and what an operator sees of it.
use crate::node::{BASE, Node, agent, write_variant};
use serde_json::json;

/// What a variant of these tests takes: the larger of its file and its memory.
fn weight() -> u64 {
    let node = Node::start();
    let file = node.publish("ann", 1);
    let (_, loaded) = node.post("/v1/variants", &json!({"path": file}));
    let resident = loaded["resident_bytes"].as_u64().expect("bytes");
    resident.max(std::fs::metadata(file).expect("a file").len())
}

#[test]
fn more_users_at_once_than_fit_are_all_answered_from_their_own_variants() {
    const USERS: u64 = 24;
    let budget = 3 * weight();
    let node = Node::within(budget);
    let users: Vec<String> = (0..USERS).map(|i| format!("user_{i}")).collect();
    for (seed, user) in users.iter().enumerate() {
        node.publish(user, seed as u64 * 2 + 1);
    }
    let alone: Vec<String> = users.iter().map(|user| node.said(json!({"user_id": user}))).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let ask = |user: &String| node.said(json!({"user_id": user, "max_tokens": 12}));
        let asked: Vec<_> = users.iter().map(|user| scope.spawn(move || ask(user))).collect();
        asked.into_iter().map(|thread| thread.join().expect("answered")).collect()
    });
    assert_eq!(alone, together);
    assert_eq!(node.metric("bitdelta_variants_budget_bytes"), budget as f64);
    assert!(node.metric("bitdelta_variants_resident_bytes") <= budget as f64);
    assert!(node.metric("bitdelta_variants_evictions_total") >= (USERS - 3) as f64);
    let requests = node.metric("bitdelta_variants_hits_total") + node.metric("bitdelta_variants_misses_total");
    assert_eq!((requests, node.metric("bitdelta_variants_failed_loads_total")), (2.0 * USERS as f64, 0.0));
}

#[test]
fn cold_loads_that_wait_leave_threads_and_room_for_everybody_else() {
    // More than the runtime has threads for what blocks.
    const COLD: u64 = 30;
    let node = Node::within(2 * weight());
    node.publish("here", 1);
    (0..COLD).for_each(|i| drop(node.publish(&format!("cold_{i}"), 2 * i + 3)));
    let registry = node.service.registry.as_ref().expect("variants");
    let held = registry.resolve("here").expect("a variant");
    let (alone, base) = (node.said(json!({"user_id": "here"})), node.said(json!({})));
    std::thread::scope(|scope| {
        let node = &node;
        let asked: Vec<_> =
            (0..COLD).map(|i| scope.spawn(move || node.said(json!({"user_id": format!("cold_{i}")})))).collect();
        // Eight of them hold a place; what the budget has is in use, so that none can end.
        while node.metric("bitdelta_variants_loads_waiting") < 8.0 {
            std::thread::yield_now();
        }
        assert_eq!(node.said(json!({"user_id": "here"})), alone);
        assert_eq!(node.said(json!({})), base);
        assert_eq!(node.chat(json!({"user_id": "nobody"})).0, 404);
        assert!(asked.iter().all(|thread| !thread.is_finished()));
        drop(held);
        let answers: Vec<String> = asked.into_iter().map(|thread| thread.join().expect("answered")).collect();
        assert!(answers.iter().all(|answer| *answer != base && *answer != alone), "{answers:?}");
    });
}

#[test]
fn residency_shows_in_the_listing_and_in_the_metrics_and_names_nobody_there() {
    let node = Node::start();
    node.publish("ann", 1);
    node.publish("bob", 3);
    let before = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    node.said(json!({"user_id": "ann"}));
    let (_, list) = node.get("/v1/variants");
    let [ann, bob] = list["data"].as_array().expect("variants").as_slice() else { panic!("{list}") };
    assert_eq!((&ann["loaded"], &bob["loaded"]), (&json!(true), &json!(false)));
    assert!(ann["last_used"].as_u64() >= Some(before) && ann["hash"].is_string(), "{ann}");
    assert_eq!((&bob["resident_bytes"], &bob["last_used"], &bob["in_use"]), (&json!(0), &json!(null), &json!(false)));
    assert_eq!(node.metric("bitdelta_variants_resident"), 1.0);
    assert_eq!(node.metric("bitdelta_variants_resident_bytes"), ann["resident_bytes"].as_f64().expect("bytes"));
    assert_eq!(node.metric("bitdelta_variants_loads_total"), 1.0);
    assert!(node.metric("bitdelta_variants_load_seconds_total") > 0.0);
    assert!(node.metric("bitdelta_generated_tokens_total") > 0.0);

    let mut answer = agent().get(format!("{}/metrics", node.url)).call().expect("an answer");
    assert!(answer.headers()["content-type"].to_str().expect("ASCII").starts_with("application/openmetrics-text"));
    let text = answer.body_mut().read_to_string().expect("text");
    assert!(!text.contains("ann") && text.ends_with("# EOF\n"), "{text}");

    assert_eq!(node.post("/v1/variants/ann/unload", &json!({})).0, 200);
    assert_eq!(node.metric("bitdelta_variants_resident"), 0.0);
}

#[test]
fn metrics_are_the_operators() {
    let node = Node::start();
    let request = agent().get(format!("{}/metrics", node.url)).header("x-forwarded-for", "10.0.0.9");
    assert_eq!(request.call().expect("an answer").status().as_u16(), 403);
}

#[test]
fn a_variant_larger_than_the_budget_is_a_422_and_never_the_base() {
    let node = Node::within(weight() / 2);
    node.publish("ann", 1);
    let (status, body) = node.chat(json!({"user_id": "ann"}));
    assert_eq!((status, &body["error"]["code"]), (422, &json!("variant_too_large")), "{body}");
    let message = body["error"]["message"].as_str().expect("text");
    assert!(
        message.contains("--variant-memory") && !message.contains(node.variants_dir.path().to_str().expect("UTF-8"))
    );
    assert_eq!(node.chat(json!({})).0, 200, "the base answers whoever asks for the base");
}

#[test]
fn a_damaged_variant_holds_up_nobody_and_heals_when_it_is_published_again() {
    let node = Node::start();
    let path = node.publish("ann", 1);
    std::fs::write(&path, b"damaged").expect("written");
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(|| node.chat(json!({"user_id": "ann"})).0)).collect();
        asked.into_iter().map(|thread| thread.join().expect("answered")).collect()
    });
    assert_eq!(statuses, [422; 6]);
    write_variant(&path, BASE, 1);
    assert_eq!(node.chat(json!({"user_id": "ann"})).0, 200);
    assert_eq!(node.metric("bitdelta_variants_failed_loads_total"), 6.0);
}
