//! Flags before variables before the file, all by one definition.
use crate::{command, run, stderr, stdout};
use std::{
    path::{Path, PathBuf},
    process::Output,
};
use tempfile::TempDir;

fn file(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("config.yaml");
    std::fs::write(&path, text).expect("written");
    (dir, path)
}

fn with(path: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = command("bitdelta");
    command.env("BITDELTA_CONFIG", path).envs(variables.iter().copied());
    command.args(arguments).output().expect("it runs")
}

/// The line of `--show-config` for an option, with one blank between words.
fn line(output: &Output, option: &str) -> String {
    let text = stdout(output);
    let found = text.lines().find(|line| line.contains(&format!("{option}:")));
    let words: Vec<&str> =
        found.unwrap_or_else(|| panic!("{option} in {text}{}", stderr(output))).split_whitespace().collect();
    words.join(" ")
}

#[test]
fn a_flag_goes_before_a_variable_and_a_variable_before_the_file() {
    let (_dir, path) = file("serve:\n  port: 9001\n  max-batch: 3\n  max_queue: 7\n");
    let variables = [
        ("BITDELTA_MAX_BATCH", "4"),
        ("BITDELTA_PORT", "9002"),
        ("BITDELTA_HOST", ""),
        ("BITDELTA_ALLOW_REMOTE", "yes"),
    ];
    let shown = with(&path, &variables, &["serve", "--port", "9003", "--show-config"]);
    assert!(shown.status.success(), "{shown:?}");
    assert_eq!(line(&shown, "port"), "port: 9003 # flag");
    assert_eq!(line(&shown, "max-batch"), "max-batch: 4 # environment, BITDELTA_MAX_BATCH");
    assert_eq!(line(&shown, "allow-remote"), "allow-remote: true # environment, BITDELTA_ALLOW_REMOTE");
    assert_eq!(line(&shown, "max-queue"), "max-queue: 7 # file, serve.max_queue");
    assert_eq!(line(&shown, "host"), "host: \"127.0.0.1\" # default", "an empty variable says nothing");
    assert!(line(&shown, "max-wait").starts_with("# max-wait: not set"));
}

#[test]
fn what_is_shown_means_the_same_when_it_is_read() {
    let (_dir, path) =
        file("model: small\nserve:\n  cors-origin: [https://a.example, https://b.example]\n  allow-remote: true\n");
    let variables = [("BITDELTA_KV_CACHE_SIZE", "1GB"), ("BITDELTA_MODEL_NAME", "a,b")];
    let shown = with(&path, &variables, &["serve", "--temperature", "0.5", "--show-config"]);
    let (_dir, again) = file(&stdout(&shown));
    let read = with(&again, &[], &["serve", "--show-config"]);
    let values = |output: &Output| -> Vec<String> {
        let lines = stdout(output);
        lines.lines().skip(2).map(|line| line.split(" #").next().unwrap_or_default().trim_end().to_owned()).collect()
    };
    assert_eq!(values(&shown), values(&read), "{}", stderr(&read));
    assert_eq!(line(&shown, "model"), "model: small # file, model");
    assert_eq!(line(&shown, "model-name"), "model-name: [a, b] # environment, BITDELTA_MODEL_NAME");
}

#[test]
fn an_unknown_name_is_an_error_with_the_nearest_one() {
    for (text, says) in [
        ("serve:\n  prot: 9000\n", "serve.prot: no option has this name; did you mean `port`?"),
        ("serv:\n  port: 9000\n", "did you mean `serve`?"),
        ("serve:\n  port: [1, 2]\n", "serve.port: must be one plain value"),
        ("serve:\n  allow-remote: 3\n", "serve.allow-remote: must be true or false"),
        ("serve:\n  port: 99999\n", "serve.port"),
        ("serve:\n  jwt-issuer: me\n", "serve.jwt-issuer"),
    ] {
        let (_dir, path) = file(text);
        let output = with(&path, &[], &["serve", "--show-config"]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let message = stderr(&output);
        assert!(message.contains(says) && message.contains("config.yaml"), "{text}: {message}");
    }
}

#[test]
fn what_an_option_needs_may_stand_in_the_file_and_what_it_excludes_gives_way() {
    let (dir, path) = file("serve:\n  tls-key: key.pem\nchat:\n  user: maya\n");
    let shown = with(&path, &[], &["serve", "--tls-cert", "cert.pem", "--show-config"]);
    assert!(shown.status.success(), "{}", stderr(&shown));
    let beside = dir.path().join("key.pem");
    assert!(line(&shown, "tls-key").contains(beside.to_str().expect("UTF-8")), "a path lies beside the file");
    let shown = with(&path, &[], &["chat", "--variant", "x", "--show-config"]);
    assert!(line(&shown, "user").starts_with("# user: not set"), "{}", stdout(&shown));
}

#[test]
fn the_file_may_give_what_a_command_cannot_do_without() {
    let (_dir, path) = file("publish:\n  variants-dir: shared\n");
    let shown = with(&path, &[], &["publish", "x.safetensors", "--show-config"]);
    assert!(line(&shown, "variants-dir").contains("shared"), "{}", stderr(&shown));
    assert_eq!(run("bitdelta", &["publish", "x.safetensors"]).status.code(), Some(2));
}

#[test]
fn a_command_below_another_takes_what_it_has_of_their_section() {
    let (_dir, path) = file("keys:\n  key-file: k.json\n  note: mine\n");
    for arguments in [&["keys", "list", "--show-config"][..], &["keys", "add", "--all-users", "--show-config"]] {
        let shown = with(&path, &[], arguments);
        assert!(line(&shown, "key-file").contains("k.json"), "{}", stderr(&shown));
    }
}

#[test]
fn a_file_that_is_named_must_be_there_and_keys_are_not_shown() {
    let output = run("bitdelta", &["serve", "--config", "/nowhere/config.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nowhere/config.yaml"));
    let shown =
        with(Path::new("/dev/null"), &[("BITDELTA_API_KEY", "bd-secret")], &["variants", "list", "--show-config"]);
    assert!(!stdout(&shown).contains("secret") && stdout(&shown).contains("api-key: not shown"), "{shown:?}");
}

#[test]
fn a_node_reads_the_section_of_its_server() {
    let (_dir, path) = file("serve:\n  port: 9001\n  enable-bitdelta: true\n  weather: fine\n");
    let config = path.to_str().expect("UTF-8");
    let refused = run("hanzo-node", &["start", "--config", config, "--show-config"]);
    assert!(stderr(&refused).contains("`hanzo-node start --help`"), "{}", stderr(&refused));
    std::fs::write(&path, "serve:\n  port: 9001\n  enable-bitdelta: true\n").expect("written");
    let shown = run("hanzo-node", &["start", "--config", config, "--show-config"]);
    assert_eq!(line(&shown, "port"), "port: 9001 # file, serve.port");
    assert_eq!(line(&shown, "enable-bitdelta"), "enable-bitdelta: true # file, serve.enable-bitdelta");
}

#[test]
fn a_command_without_settings_in_the_file_says_so() {
    let output = run("bitdelta", &["inspect", "x", "--show-config"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("serve, train"), "{}", stderr(&output));
}
