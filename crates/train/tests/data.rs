//! Training data in every format, and what is said about data that does not fit.

use bitdelta_train::data;
use std::{error::Error, fs, path::Path};

/// Role and text of each turn of each conversation.
type Turns = Vec<Vec<(String, String)>>;

/// Loads `text` as a file of the given name in a fresh folder.
fn load_as(name: &str, text: &str) -> Result<Turns, Box<dyn Error>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    fs::write(&path, text).expect("written");
    turns(path.to_str().expect("a plain path"), Path::new("nowhere"))
}

fn turns(name: &str, dir: &Path) -> Result<Turns, Box<dyn Error>> {
    let turn = |m: &bitdelta_model::chat::Message| (m.role.clone(), m.content.clone());
    Ok(data::load(name, dir)?.iter().map(|c| c.messages.iter().map(turn).collect()).collect())
}

fn expected(turns: &[(&str, &str)]) -> Vec<(String, String)> {
    turns.iter().map(|(role, text)| ((*role).into(), (*text).into())).collect()
}

#[test]
fn all_formats_give_the_same_conversation() {
    let want = vec![expected(&[("system", "be brief"), ("user", "hi"), ("assistant", "hello")])];
    for (name, text) in [
        ("a.jsonl", r#"{"instruction": "hi", "input": "", "output": "hello", "system": "be brief"}"#),
        ("b.jsonl", r#"{"prompt": "hi", "response": "hello", "system": "be brief"}"#),
        (
            "c.json",
            r#"[{"system": "be brief", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}]"#,
        ),
        (
            "d.jsonl",
            r#"{"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}]}"#,
        ),
    ] {
        assert_eq!(load_as(name, text).expect(name), want, "{name}");
    }
}

#[test]
fn alpaca_joins_the_input_and_puts_history_first() {
    let text = r#"{"instruction": "add", "input": "1 2", "output": "3", "history": [["hi", "hello"]]}"#;
    let want = expected(&[("user", "hi"), ("assistant", "hello"), ("user", "add\n1 2"), ("assistant", "3")]);
    assert_eq!(load_as("a.jsonl", text).expect("alpaca"), [want]);
}

#[test]
fn dataset_info_names_columns_and_tags() {
    let folder = tempfile::tempdir().expect("a folder");
    let info = r#"{
        "mine": {"file_name": "mine.json", "columns": {"prompt": "q", "response": "a"}},
        "chat": {"file_name": "chat.jsonl", "formatting": "sharegpt", "columns": {"messages": "dialog"},
                 "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "U", "assistant_tag": "A"}},
        "pairs": {"file_name": "pairs.json", "ranking": true},
        "hub": {"hf_hub_url": "someone/something"}
    }"#;
    fs::write(folder.path().join("dataset_info.json"), info).expect("written");
    fs::write(folder.path().join("mine.json"), r#"[{"q": "hi", "a": "hello"}]"#).expect("written");
    let chat = r#"{"dialog": [{"who": "U", "said": "hi"}, {"who": "A", "said": "hello"}]}"#;
    fs::write(folder.path().join("chat.jsonl"), chat).expect("written");
    let one = expected(&[("user", "hi"), ("assistant", "hello")]);
    assert_eq!(turns("mine,chat", folder.path()).expect("both"), [one.clone(), one]);
    for (name, word) in [("pairs", "preference"), ("hub", "file_name"), ("absent", "no entry of that name")] {
        let error = turns(name, folder.path()).expect_err(name).to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn wrong_data_is_named_by_file_place_and_field() {
    for (name, text, words) in [
        (
            "a.jsonl",
            "{\"prompt\": \"hi\", \"response\": \"x\"}\n{\"prompt\": \"hi\"",
            vec!["a.jsonl", "line 2", "not JSON"],
        ),
        ("a.jsonl", "\n{\"prompt\": 3, \"response\": \"x\"}", vec!["line 2", "prompt", "a number"]),
        ("a.jsonl", r#"{"prompt": "hi", "reply": "x"}"#, vec!["line 1", "output", "missing", "reply"]),
        ("a.json", r#"[{"prompt": "hi", "response": "x"}, 7]"#, vec!["example 2", "must be an object"]),
        (
            "a.json",
            r#"[{"messages": [{"role": "robot", "content": "x"}]}]"#,
            vec!["messages[0].role", "robot", "assistant"],
        ),
        ("a.json", r#"[{"messages": [{"role": "user", "content": "x"}]}]"#, vec!["no assistant turn"]),
        ("a.json", r#"[{"conversations": {}}]"#, vec!["conversations", "a list of turns", "an object"]),
        ("a.jsonl", r#"{"prompt": "x", "chosen": "a", "rejected": "b"}"#, vec!["preference"]),
        ("a.jsonl", "", vec!["no examples"]),
        ("a.json", "[", vec!["not a JSON array"]),
    ] {
        let error = load_as(name, text).expect_err(text).to_string();
        for word in words {
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}

#[test]
fn bytes_that_are_no_text_are_an_error_with_their_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.jsonl");
    fs::write(&path, b"{\"prompt\": \"a\", \"response\": \"b\"}\n\xff\xfe").expect("written");
    let error = turns(path.to_str().expect("a plain path"), Path::new("nowhere")).expect_err("not UTF-8").to_string();
    assert!(error.contains("line 2") && error.contains("UTF-8"), "{error}");
}
