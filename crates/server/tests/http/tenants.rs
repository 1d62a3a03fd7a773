//! Two tenants attack each other: what one key reaches of another's user, by every way in.
use crate::node::{BASE, Node, agent, question};
use bitdelta_server::{
    Auth,
    auth::{
        KeyFile, Limits, Right, Users,
        keys::{self, NewKey},
    },
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, path::PathBuf};

/// A guarded server with the users ann and bob, a key file, and keys of both.
struct Town {
    node: Node,
    file: PathBuf,
    ann: String,
    bob: String,
    _folder: tempfile::TempDir,
}

pub fn only(user: &str) -> Users {
    Users::Only(BTreeSet::from([user.to_owned()]))
}

pub fn new_key(users: Users, rights: &[Right]) -> NewKey {
    let rights = rights.iter().copied().collect();
    NewKey { note: String::new(), users, rights, tenant: None, limits: Limits::default() }
}

impl Town {
    fn new(rights: &[Right], limits: Limits) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys.json");
        let make = |user| keys::add(&file, new_key(only(user), rights)).expect("a key").0;
        let (ann, bob) = (make("ann"), make("bob"));
        let node = Node::guarded(Auth::new(Some(KeyFile::open(&file).expect("keys")), None, limits));
        node.publish("ann", 1);
        // The same file in other hands: where anything were shared by content, this would show it.
        node.publish("bob", 1);
        Self { node, file, ann, bob, _folder: folder }
    }

    fn key(&self, users: Users, rights: &[Right]) -> String {
        keys::add(&self.file, new_key(users, rights)).expect("a key").0
    }
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error"]["code"].as_str().unwrap_or_default())
}

#[test]
fn without_a_good_key_nothing_is_answered_and_no_body_read() {
    let town = Town::new(&[Right::Chat], Limits::default());
    for key in ["", "x", &format!("{}x", town.ann), &town.ann[..town.ann.len() - 1]] {
        let client = town.node.with_key(key);
        assert_eq!(code(&client.chat(json!({}))), (401, "invalid_api_key"), "{key}");
        for path in ["/v1/models", "/v1/variants", "/metrics", "/v1/models/tiny-llama"] {
            assert_eq!(code(&client.get(path)), (401, "invalid_api_key"), "{path}");
        }
    }
    assert_eq!(code(&town.node.chat(json!({"user_id": "ann"}))), (401, "invalid_api_key"));
    assert_eq!(code(&town.node.post_raw("/v1/chat/completions", b"{")), (401, "invalid_api_key"));
    let response = agent().get(format!("{}/v1/models", town.node.url)).call().expect("an answer");
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
}

#[test]
fn a_key_reaches_its_own_user_however_the_name_comes_and_nobody_elses() {
    let town = Town::new(&[Right::Chat], Limits::default());
    let ann = town.node.with_key(&town.ann);
    let names = |user: &str| {
        [
            json!({"user_id": user}),
            json!({"user": user}),
            json!({"safety_identifier": user}),
            json!({"model": format!("{BASE}:{user}")}),
            json!({"model": format!("qwen3-4b:{user}"), "user": null}),
        ]
    };
    for named in names("ann") {
        assert_eq!(ann.chat(named.clone()).0, 200, "{named}");
    }
    for user in ["bob", "nobody", "../bob", "ann/../bob", "bob.safetensors", "ANN", "ann ", "*"] {
        for named in names(user) {
            assert_eq!(code(&ann.chat(named.clone())), (403, "user_not_allowed"), "{named}");
        }
    }
    // The name that counts decides, not one that is beside it.
    assert_eq!(ann.chat(json!({"user_id": "bob", "user": "ann"})).0, 403);
    assert_eq!(ann.chat(json!({"user_id": "ann", "user": "bob"})).0, 200);
    assert_eq!(ann.chat(json!({})).0, 200, "the base is everybody's");
}

#[test]
fn a_refusal_is_the_same_word_for_word_whether_the_user_exists() {
    let town = Town::new(&[Right::Chat, Right::Publish, Right::Train], Limits::default());
    let ann = town.node.with_key(&town.ann);
    let answers = |user: &str| {
        let text = |(status, body): (u16, Value)| (status, body.to_string().replace(user, "USER"));
        [text(ann.chat(json!({"user_id": user}))), text(ann.get(&format!("/v1/models/{BASE}:{user}")))]
    };
    assert_eq!(answers("bob"), answers("eve"));
    assert!(answers("bob").iter().all(|(status, _)| *status == 403));
}

#[test]
fn lists_show_the_callers_own() {
    let town = Town::new(&[Right::Chat, Right::Publish], Limits::default());
    let ids = |key: &str, path: &str, field: &str| -> Vec<String> {
        let (status, body) = town.node.with_key(key).get(path);
        assert_eq!(status, 200, "{body}");
        let data = body["data"].as_array().expect("a list").iter();
        data.map(|line| line[field].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(ids(&town.ann, "/v1/models", "id"), [BASE, "qwen3-4b", "tiny-llama:ann"]);
    assert_eq!(ids(&town.bob, "/v1/models", "id"), [BASE, "qwen3-4b", "tiny-llama:bob"]);
    assert_eq!(ids(&town.ann, "/v1/variants", "user_id"), ["ann"]);
    let all = town.key(Users::All, &[Right::Chat]);
    assert_eq!(ids(&all, "/v1/models", "id").len(), 4);
}

#[test]
fn no_prompt_of_one_tenant_is_found_in_the_cache_by_another() {
    let town = Town::new(&[Right::Chat], Limits::default());
    let content = "What do you know of the history of the lighthouse on the northern island? ".repeat(2);
    let cached = |key: &str, user: Value| {
        let more = json!({"user_id": user, "messages": [{"role": "user", "content": content}]});
        let (status, body) = town.node.with_key(key).chat(more);
        assert_eq!(status, 200, "{body}");
        body["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count")
    };
    let (ann, bob) = (town.ann.as_str(), town.bob.as_str());
    assert_eq!(cached(ann, json!("ann")), 0);
    assert!(cached(ann, json!("ann")) > 0, "one's own is found");
    assert_eq!(cached(bob, json!("bob")), 0, "an equal file of another user");
    assert_eq!(cached(ann, json!(null)), 0);
    assert!(cached(ann, json!(null)) > 0);
    assert_eq!(cached(bob, json!(null)), 0, "the base, asked by another tenant");
    // One back end for both: its users stay apart as well.
    let all = town.key(Users::All, &[Right::Chat]);
    assert_eq!(cached(&all, json!("ann")), 0);
    assert_eq!(cached(&all, json!("bob")), 0);
}

#[test]
fn two_users_of_one_named_tenant_do_not_meet_in_the_cache_either() {
    let town = Town::new(&[Right::Chat], Limits::default());
    let both = Users::Only(["ann".to_owned(), "bob".to_owned()].into());
    let new = NewKey { tenant: Some("house".to_owned()), ..new_key(both, &[Right::Chat]) };
    let key = keys::add(&town.file, new).expect("a key").0;
    let cached = |user: &str| {
        let content = "Tell me all about the lighthouse on the island, and be thorough about it. ".repeat(2);
        let more = json!({"user_id": user, "messages": [{"role": "user", "content": content}]});
        town.node.with_key(&key).chat(more).1["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64()
    };
    assert_eq!((cached("ann"), cached("bob")), (Some(0), Some(0)));
    assert!(cached("bob") > Some(0));
}

#[test]
fn rights_are_apart_from_each_other() {
    let town = Town::new(&[Right::Chat], Limits::default());
    let ann = town.node.with_key(&town.ann);
    for answer in [
        ann.put("/v1/variants/ann", b"bytes"),
        ann.delete("/v1/variants/ann"),
        ann.post("/v1/variants/ann/rollback", &json!({})),
        ann.post("/v1/variants/ann/train", &json!({"data": [{"prompt": "a", "response": "b"}]})),
        ann.get("/v1/variants/ann/train"),
        ann.get("/v1/variants"),
    ] {
        assert_eq!(code(&answer), (403, "right_missing"));
    }
    let publisher = town.key(only("ann"), &[Right::Publish]);
    assert_eq!(town.node.with_key(&publisher).delete("/v1/variants/ann").0, 200);
    assert_eq!(ann.chat(json!({"user_id": "ann"})).0, 404);
}

#[test]
fn what_is_the_operators_wants_the_operators_right_also_on_loopback() {
    let town = Town::new(&[Right::Chat, Right::Publish, Right::Train], Limits::default());
    let ann = town.node.with_key(&town.ann);
    assert_eq!(code(&ann.get("/metrics")), (403, "right_missing"));
    assert_eq!(code(&ann.post("/v1/variants", &json!({"path": "/etc/passwd"}))), (403, "right_missing"));
    assert_eq!(code(&ann.post("/v1/variants/ann/unload", &json!({}))), (403, "right_missing"));
    let admin = town.key(Users::All, &[Right::Admin]);
    let metrics = agent().get(format!("{}/metrics", town.node.url)).header("authorization", format!("Bearer {admin}"));
    assert_eq!(metrics.call().expect("an answer").status().as_u16(), 200);
    assert_eq!(code(&town.node.with_key(&admin).chat(json!({}))), (403, "right_missing"), "rights are what was given");
}

#[test]
fn health_tells_a_stranger_that_it_lives_and_no_more() {
    let town = Town::new(&[Right::Chat], Limits::default());
    assert_eq!(town.node.get("/health"), (200, json!({"status": "ok"})));
}

#[test]
fn a_revoked_key_is_refused_from_the_next_request_on() {
    let town = Town::new(&[Right::Chat], Limits::default());
    let ann = town.node.with_key(&town.ann);
    assert_eq!(ann.chat(json!({"user_id": "ann"})).0, 200);
    let id = keys::list(&town.file).expect("keys").into_iter().find(|key| key.users == only("ann")).expect("ann's").id;
    assert!(keys::revoke(&town.file, &id).expect("changed"));
    assert_eq!(code(&ann.chat(json!({"user_id": "ann"}))), (401, "invalid_api_key"));
    assert_eq!(town.node.with_key(&town.bob).chat(json!({"user_id": "bob"})).0, 200);
}

#[test]
fn every_header_that_real_clients_send_carries_the_key() {
    let town = Town::new(&[Right::Chat], Limits::default());
    for name in ["ocp-apim-subscription-key", "x-litellm-api-key", "x-api-key"] {
        let request =
            agent().post(format!("{}/v1/chat/completions?model={BASE}", town.node.url)).header(name, &town.ann);
        let mut body = question(json!({"user_id": "ann"}));
        body.as_object_mut().expect("an object").remove("model");
        assert_eq!(request.send_json(body).expect("an answer").status().as_u16(), 200, "{name}");
    }
}

#[test]
fn one_key_at_its_limit_is_told_when_to_come_back_and_holds_up_nobody() {
    let limits = Limits { requests_per_minute: Some(3), tokens_per_minute: None };
    let town = Town::new(&[Right::Chat], limits);
    let ask = |key: &str| {
        let request = agent().post(format!("{}/v1/chat/completions", town.node.url));
        request.header("authorization", format!("Bearer {key}")).send_json(question(json!({}))).expect("an answer")
    };
    assert!((0..3).all(|_| ask(&town.ann).status().as_u16() == 200));
    let mut refused = ask(&town.ann);
    assert_eq!(refused.status().as_u16(), 429);
    let seconds: u64 = refused.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((1..=20).contains(&seconds), "{seconds}");
    let body: Value = refused.body_mut().read_json().expect("JSON");
    assert_eq!(
        (&body["error"]["code"], &body["error"]["type"]),
        (&json!("rate_limit_exceeded"), &json!("rate_limit_error"))
    );
    assert_eq!(ask(&town.bob).status().as_u16(), 200);
}

#[test]
fn tokens_are_counted_as_they_are_used() {
    let limits = Limits { requests_per_minute: None, tokens_per_minute: Some(150) };
    let town = Town::new(&[Right::Chat], limits);
    let ann = town.node.with_key(&town.ann);
    let (status, body) = ann.chat(json!({"max_tokens": 20}));
    assert_eq!(status, 200, "{body}");
    let used = body["usage"]["total_tokens"].as_u64().expect("a count");
    // As many again as fit in the minute, at most one more for what the bucket gained meanwhile.
    let mut answered = 1;
    while ann.chat(json!({"max_tokens": 20})).0 == 200 {
        answered += 1;
        assert!(answered * used <= 150 + 2 * used, "{answered} answers of {used} tokens in a minute of 150");
    }
    assert_eq!(code(&ann.chat(json!({"max_tokens": 140}))), (429, "rate_limit_exceeded"));
    assert_eq!(town.node.with_key(&town.bob).chat(json!({"max_tokens": 20})).0, 200);
}
