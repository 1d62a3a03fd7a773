//! `bitdelta keys` as a shell sees it: the key is shown once, lists never show it.
use crate::{run, stderr, stdout};

#[test]
fn keys_are_made_listed_and_revoked() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("keys.json");
    let file = file.to_str().expect("UTF-8");
    let keys = |arguments: &[&str]| run("bitdelta", &[&["keys"], arguments, &["--key-file", file]].concat());
    let added = keys(&["add", "--user", "ann", "--user", "bob", "--rights", "chat,publish", "--note", "a phone"]);
    assert!(added.status.success(), "{added:?}");
    let secret = stdout(&added).trim().to_owned();
    assert!(secret.starts_with("bd-") && secret.len() == 67, "{secret}");
    let listed = stdout(&keys(&["list"]));
    assert!(listed.contains("chat,publish  ann bob  a phone") && !listed.contains(&secret[3..]), "{listed}");
    let id = listed.split_whitespace().next().expect("an id");
    assert_eq!(stdout(&keys(&["revoke", id])), format!("revoked {id}\n"));
    assert_eq!(stdout(&keys(&["list"])), "no keys\n");
    assert_eq!(keys(&["revoke", id]).status.code(), Some(1));
    let json: serde_json::Value =
        serde_json::from_slice(&keys(&["add", "--all-users", "--json"]).stdout).expect("JSON");
    assert!(json["key"].is_string() && json["id"].is_string());
}

#[test]
fn a_key_is_for_somebody_and_rights_have_names() {
    let add = |more: &[&str]| run("bitdelta", &[&["keys", "add", "--key-file", "/nowhere/keys.json"], more].concat());
    for more in [&[][..], &["--user", "ann", "--all-users"], &["--user", "ann", "--rights", "fly"]] {
        assert_eq!(add(more).status.code(), Some(2), "{more:?}");
    }
    assert!(stderr(&add(&["--user", "ann", "--rights", "fly"])).contains("chat, publish, train and admin"));
    assert_eq!(add(&["--user", "../ann"]).status.code(), Some(1));
}

#[test]
fn limits_without_keys_are_a_mistake() {
    let started = run("hanzo-node", &["start", "--model", "/nowhere", "--requests-per-minute", "5"]);
    assert_eq!(started.status.code(), Some(2));
    assert!(stderr(&started).contains("--key-file"), "{started:?}");
}
