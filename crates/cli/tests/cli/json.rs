//! `--json` on every command that reports something: one JSON value on stdout, all else on stderr.
use crate::{command, golden, run, stderr, stdout};
use bitdelta_cli::bitdelta::Cli;
use clap::{Command, CommandFactory};
use serde_json::Value;
use std::process::Stdio;

/// Commands that report nothing: what they print is not theirs, or they run until they are stopped.
const SILENT: [&str; 2] = ["serve", "completions"];

fn leaves(command: &Command) -> Vec<&Command> {
    let below: Vec<&Command> = command.get_subcommands().flat_map(leaves).collect();
    if below.is_empty() { vec![command] } else { below }
}

#[test]
fn every_command_that_reports_something_has_the_option() {
    let program = Cli::command();
    for command in leaves(&program).into_iter().filter(|command| !SILENT.contains(&command.get_name())) {
        assert!(command.get_arguments().any(|arg| arg.get_long() == Some("json")), "{}", command.get_name());
    }
}

/// What a command with `--json` reports.
fn report(arguments: &[&str]) -> Value {
    let output = run("bitdelta", &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", stdout(&output)))
}

#[test]
fn the_way_of_a_variant_is_reported_as_json_at_every_step() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let (base, tuned) = (golden("tiny-llama"), golden("tiny-llama-ft"));
    let (made, data) = (path("maya.safetensors"), path("held.jsonl"));
    std::fs::write(&data, "{\"prompt\": \"Hello!\", \"response\": \"Hi.\"}\n").expect("written");

    assert_eq!(report(&["compress", "--base", &base, "--finetuned", &tuned, "-o", &made])["path"], made);
    assert!(report(&["inspect", &made])["linears"].is_array());
    let codes = path("codes");
    let pair = ["compress", "--base", &base, "--finetuned", &tuned, "-o", &codes];
    let chosen = ["--bits", "1", "--data", &data, "--epochs", "0"];
    assert!(report(&[&pair[..], &chosen].concat())["bytes"].is_number());
    let chosen = report(&["inspect", &codes]);
    assert_eq!(chosen["info"]["notes"]["codes_chosen_for"]["examples"], 1, "{chosen}");
    let drawn = ["--budget", "2500B", "--draw", "4", "--epochs", "1"];
    assert!(report(&[&pair[..], &drawn].concat())["bytes"].as_u64() <= Some(2_500));
    let drawn = report(&["inspect", &codes]);
    assert_eq!(drawn["info"]["notes"]["trained_on"]["drawn"], 4, "{drawn}");
    for (general, count) in [("3", 3), (&data[..], 1)] {
        let learnt = ["--budget", "2500B", "--data", &data, "--general", general, "--epochs", "1"];
        assert!(report(&[&pair[..], &learnt].concat())["bytes"].as_u64() <= Some(2_500));
        let learnt = report(&["inspect", &codes]);
        assert_eq!(learnt["info"]["notes"]["trained_on"]["general"], count, "{learnt}");
    }
    let eval = report(&["eval", &made, "--model", &base, "--data", &data, "--finetuned", &tuned]);
    assert!(eval["retention"].is_number() && eval["bytes"].is_number(), "{eval}");
    assert_eq!(report(&["export", &made, "--base", &base, "-o", &path("merged")])["format"], "hf");
    let published = report(&["publish", &made, "--variants-dir", &path("variants")]);
    assert_eq!((&published["user_id"], &published["version"]), (&"maya".into(), &1.into()));
    assert_eq!(published["content_hash"], report(&["inspect", &made])["content_hash"]);
    let chat = report(&["chat", "--model", &base, "--variant", &made, "--prompt", "Hello!", "--max-tokens", "4"]);
    assert!(chat["answer"].is_string() && chat["usage"]["completion_tokens"].as_u64() <= Some(4), "{chat}");
    let trained = report(&["train", "--base", &base, "--data", &data, "--max-steps", "1", "--output-dir", &path("t")]);
    assert!(trained["bytes"].is_number(), "{trained}");
}

#[test]
fn a_conversation_is_a_line_for_each_answer() {
    let mut child = command("bitdelta")
        .args(["chat", "--base", &golden("tiny-llama"), "--max-tokens", "4", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("chat starts");
    let turns = b"Hello!\n/fly\nAnd now?\n";
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), turns).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let said = stdout(&output);
    let answers: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(answers.len(), 2, "{said}");
    assert!(stderr(&output).contains("/fly is no command"));
}
