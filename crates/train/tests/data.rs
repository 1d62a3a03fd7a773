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
        "pairs": {"file_name": "mine.json", "ranking": true},
        "odd": {"file_name": "mine.json", "formatting": "xml"},
        "hub": {"hf_hub_url": "someone/something"}
    }"#;
    fs::write(folder.path().join("dataset_info.json"), info).expect("written");
    fs::write(folder.path().join("mine.json"), r#"[{"q": "hi", "a": "hello"}]"#).expect("written");
    let chat = r#"{"dialog": [{"who": "U", "said": "hi"}, {"who": "A", "said": "hello"}]}"#;
    fs::write(folder.path().join("chat.jsonl"), chat).expect("written");
    let one = expected(&[("user", "hi"), ("assistant", "hello")]);
    assert_eq!(turns("mine,chat", folder.path()).expect("both"), [one.clone(), one]);
    for (name, word) in
        [("pairs", "preference"), ("hub", "file_name"), ("absent", "no entry of that name"), ("odd", "formatting")]
    {
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

#[test]
fn csv_is_a_table_with_named_columns() {
    let text = "instruction,output,history\n\"say \"\"hi\"\",\nplease\",hi,\"[[\"\"a\"\", \"\"b\"\"]]\"\nadd,3,\n";
    let found = load_as("a.csv", text).expect("a table");
    let first = expected(&[("user", "a"), ("assistant", "b"), ("user", "say \"hi\",\nplease"), ("assistant", "hi")]);
    assert_eq!(found, [first, expected(&[("user", "add"), ("assistant", "3")])]);
    for (text, words) in [
        ("instruction,output\nonly one\n", vec!["line 2", "not CSV"]),
        ("instruction,output\ny,z\nx,\n", vec!["line 3", "output", "empty"]),
    ] {
        let error = load_as("a.csv", text).expect_err(text).to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
    }
}

#[test]
fn a_folder_of_files_has_subsets_and_splits() {
    let folder = tempfile::tempdir().expect("a folder");
    let info = r#"{
        "all": {"file_name": "many"},
        "held": {"file_name": "many", "split": "test"},
        "inner": {"file_name": "many", "subset": "small", "num_samples": 1},
        "none": {"file_name": "many", "split": "validation"},
        "single": {"file_name": "many/test.jsonl", "split": "validation"}
    }"#;
    fs::create_dir_all(folder.path().join("many/small")).expect("folders");
    let write = |name: &str, words: &[&str]| {
        let line = |word: &&str| format!("{{\"instruction\": \"{word}\", \"output\": \"ok\"}}\n");
        fs::write(folder.path().join(name), words.iter().map(line).collect::<String>()).expect("written");
    };
    fs::write(folder.path().join("dataset_info.json"), info).expect("written");
    write("many/train-00000.jsonl", &["a", "b"]);
    write("many/test.jsonl", &["c"]);
    write("many/small/x.json.jsonl", &["d", "e"]);
    fs::write(folder.path().join("many/README.md"), "not data").expect("written");
    let asked = |name: &str| -> Vec<String> {
        turns(name, folder.path()).expect(name).iter().map(|turns| turns[0].1.clone()).collect()
    };
    assert_eq!(asked("all"), ["c", "a", "b"], "files in the order of their names");
    assert_eq!(asked("held"), ["c"]);
    assert_eq!(asked("inner"), ["d"]);
    for name in ["none", "single"] {
        let error = turns(name, folder.path()).expect_err(name).to_string();
        assert!(error.contains("split"), "{error}");
    }
}

#[test]
fn what_cannot_be_learnt_is_refused_rather_than_left_out() {
    for text in [
        r#"{"prompt": "hi", "response": "x", "tools": "[{\"name\": \"clock\"}]"}"#,
        r#"{"conversations": [{"from": "human", "value": "<image>?"}], "images": ["a.png"]}"#,
    ] {
        let error = load_as("a.jsonl", text).expect_err(text).to_string();
        assert!(error.contains("not supported"), "{error}");
    }
    load_as("a.jsonl", r#"{"prompt": "hi", "response": "x", "tools": "", "images": []}"#).expect("empty is nothing");
}

/// Loads `text` as preferences.
fn preferences(text: &str) -> Result<Vec<data::Preference>, Box<dyn Error>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.jsonl");
    fs::write(&path, text).expect("written");
    Ok(data::load_preferences(path.to_str().expect("a plain path"), Path::new("nowhere"))?)
}

#[test]
fn every_form_of_preference_is_the_same_preference() {
    let turn = |(role, text): (&str, &str)| bitdelta_model::chat::Message { role: role.into(), content: text.into() };
    let want = data::Preference {
        prompt: [("system", "s"), ("user", "hi")].map(turn).to_vec(),
        chosen: "hello".into(),
        rejected: "what".into(),
    };
    for text in [
        r#"{"system": "s", "instruction": "hi", "chosen": "hello", "rejected": "what"}"#,
        r#"{"system": "s", "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "hello"}, "rejected": {"from": "gpt", "value": "what"}}"#,
        r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}],
            "chosen": {"role": "assistant", "content": "hello"}, "rejected": {"role": "assistant", "content": "what"}}"#,
        r#"{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}],
            "chosen": [{"role": "assistant", "content": "hello"}], "rejected": [{"role": "assistant", "content": "what"}]}"#,
        r#"{"prompt": "hi",
            "chosen": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
            "rejected": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "what"}]}"#,
    ] {
        let line = text.replace('\n', " ");
        assert_eq!(preferences(&line).expect(text), std::slice::from_ref(&want), "{text}");
    }
    for (text, word) in [
        (r#"{"prompt": "hi", "chosen": "a"}"#, "rejected"),
        (r#"{"prompt": "hi", "chosen": "", "rejected": "b"}"#, "empty"),
        (r#"{"prompt": "hi", "chosen": 3, "rejected": "b"}"#, "a number"),
        (r#"{"chosen": "a", "rejected": "b"}"#, "instruction"),
        (r#"{"prompt": "hi", "chosen": {"from": "human", "value": "x"}, "rejected": "b"}"#, "user"),
        (
            r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "chosen": "a", "rejected": "b"}"#,
            "must end",
        ),
    ] {
        let error = preferences(text).expect_err(text).to_string();
        assert!(error.contains("line 1") && error.contains(word), "{text}: {error}");
    }
}

#[test]
fn dataset_info_names_the_columns_of_preferences_and_judgements() {
    let folder = tempfile::tempdir().expect("a folder");
    let info = r#"{
        "pairs": {"file_name": "pairs.json", "ranking": true, "columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}},
        "judged": {"file_name": "judged.json", "formatting": "openai",
                   "columns": {"messages": "messages", "kto_tag": "liked"}}
    }"#;
    fs::write(folder.path().join("dataset_info.json"), info).expect("written");
    let pairs = r#"[{"q": "hi", "good": "hello", "bad": "what", "chosen": "not this"}]"#;
    fs::write(folder.path().join("pairs.json"), pairs).expect("written");
    let turns = r#"[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]"#;
    let judged = format!(r#"[{{"messages": {turns}, "liked": true}}, {{"messages": {turns}, "liked": false}}]"#);
    fs::write(folder.path().join("judged.json"), judged).expect("written");
    let found = data::load_preferences("pairs", folder.path()).expect("preferences");
    assert_eq!((found[0].chosen.as_str(), found[0].rejected.as_str()), ("hello", "what"));
    let found = data::load_judged("judged", folder.path()).expect("judged");
    assert_eq!(found.iter().map(|example| example.good).collect::<Vec<_>>(), [true, false]);
    assert_eq!(found[0].conversation.messages.len(), 2);
    let error = data::load("judged", folder.path()).expect_err("not for sft").to_string();
    assert!(error.contains("liked") && error.contains("kto"), "{error}");

    let prompts = data::load_prompts("pairs,judged", folder.path()).expect("prompts of anything");
    assert_eq!(prompts.len(), 3);
    assert!(prompts.iter().all(|prompt| prompt.messages.len() == 1 && prompt.messages[0].content == "hi"));
    assert!(prompts.iter().all(|prompt| prompt.reference.as_deref() == Some("hello")));
}
