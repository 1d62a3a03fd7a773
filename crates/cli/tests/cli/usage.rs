//! Exit codes and messages of commands that cannot do what was asked.
use crate::{command, golden, run, stderr, stdout};
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn another_device_than_the_cpu_is_refused_before_anything_is_loaded() {
    for binary in ["bitdelta", "hanzo-node"] {
        let start = if binary == "bitdelta" { "serve" } else { "start" };
        let output = run(binary, &[start, "--model", "/nowhere", "--device", "cuda:0"]);
        assert_eq!(output.status.code(), Some(2));
        let message = stderr(&output);
        assert!(message.contains("\"cuda:0\"") && message.contains("supported: cpu"), "{message}");
    }
}

#[test]
fn no_model_is_an_error_that_says_what_to_do() {
    let output = run("hanzo-node", &["start", "--enable-bitdelta"]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert!(message.contains("--model") && message.contains("BITDELTA_MODEL"), "{message}");
}

#[test]
fn a_model_that_is_not_there_is_a_failure_with_its_cause() {
    let output = run("bitdelta", &["serve", "--port", "0", "--model", "/nowhere/model"]);
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains("error: loading the base model /nowhere/model\n  caused by: "), "{message}");
    assert_eq!(stdout(&output), "", "nothing on stdout");
}

#[test]
fn unknown_arguments_are_usage_errors() {
    for binary in ["bitdelta", "hanzo-node"] {
        assert_eq!(run(binary, &["fly"]).status.code(), Some(2));
        assert_eq!(run(binary, &[]).status.code(), Some(2));
    }
    let output = run("bitdelta", &["serve", "--kv-cache-size", "10parsecs"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("KiB, MiB, GiB binary"));
}

#[test]
fn an_address_beyond_this_machine_has_to_be_meant() {
    let output = run("bitdelta", &["serve", "--port", "0", "--model", "/nowhere", "--host", "0.0.0.0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--allow-remote"));
}

#[test]
fn variants_without_a_running_server_say_so() {
    // Port 1 is reserved and nobody listens there.
    let output = run("hanzo-node", &["variants", "list", "--port", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no server answers at http://127.0.0.1:1"), "{}", stderr(&output));
}

#[test]
fn what_is_no_variant_is_not_published() {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, folder) = (dir.path().join("ann.safetensors"), dir.path().join("variants"));
    std::fs::write(&file, b"not a variant").expect("written");
    let arguments = ["publish", file.to_str().expect("UTF-8"), "--variants-dir", folder.to_str().expect("UTF-8")];
    let output = run("bitdelta", &arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("error: checking"), "{}", stderr(&output));
    assert!(!folder.join("ann.safetensors").exists());
}

#[test]
fn help_and_versions_are_asked_for_and_end_well() {
    for binary in ["bitdelta", "hanzo-node", "llamafactory-cli"] {
        for word in ["--help", "--version"] {
            let output = run(binary, &[word]);
            assert_eq!(output.status.code(), Some(0), "{binary} {word}");
            assert!(!stdout(&output).is_empty() && stderr(&output).is_empty());
        }
    }
}

#[test]
fn an_interrupt_ends_with_130() {
    let mut child = command("bitdelta")
        .args(["chat", "--base", &golden("tiny-llama"), "--max-tokens", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("chat starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"Hello!\n").expect("written");
    let mut answer = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut answer).expect("an answer");
    // It waits for the next turn now, or is about to: while it still answers, the first signal only ends the answer.
    let code = loop {
        let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
        std::thread::sleep(Duration::from_millis(50));
        if let Some(status) = child.try_wait().expect("its status") {
            break status.code();
        }
    };
    assert_eq!(code, Some(130));
}

#[test]
fn a_lesson_that_is_interrupted_is_taken_up_by_the_same_command() {
    let keep = tempfile::tempdir().expect("a folder");
    let (data, output) = (keep.path().join("data.jsonl"), keep.path().join("user.safetensors"));
    let line = |i: usize| format!("{{\"prompt\": \"question {i}?\", \"response\": \"yes, dear {}\"}}\n", i % 3);
    std::fs::write(&data, (0..8).map(line).collect::<String>()).expect("written");
    // Its standard error up to a line with these words.
    let until = |child: &mut std::process::Child, words: &str| -> bool {
        let lines = BufReader::new(child.stderr.as_mut().expect("a pipe")).lines();
        lines.map_while(Result::ok).any(|line| line.contains(words))
    };
    let start = || {
        command("bitdelta")
            .args(["compress", "--base", &golden("tiny-llama"), "--finetuned", &golden("tiny-llama-ft"), "--bits", "1"])
            .args(["--epochs", "100000", "--data"])
            .args([&data, Path::new("-o"), &output])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts")
    };
    let interrupt = |child: &std::process::Child| {
        let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    };
    let mut first = start();
    assert!(until(&mut first, "distilling: "));
    interrupt(&first);
    assert!(until(&mut first, "the same command again continues from"));
    assert_eq!(first.wait().expect("its status").code(), Some(130));
    assert!(!output.exists() && keep.path().join("user.safetensors.checkpoints").is_dir());
    let mut second = start();
    assert!(until(&mut second, "continuing after step"));
    second.kill().expect("killed");
    second.wait().expect("its status");
}

#[test]
fn a_full_disk_behind_stdout_is_a_failure_and_a_closed_pipe_is_none() {
    let full = File::options().write(true).open("/dev/full").expect("the device");
    let output = command("bitdelta").args(["completions", "bash"]).stdout(full).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("writing to stdout"), "{output:?}");
    let mut child =
        command("bitdelta").args(["completions", "bash"]).stdout(Stdio::piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn nothing_is_coloured_where_nobody_looks() {
    for arguments in
        [&["--help"][..], &["fly"], &["serve", "--model", "/nowhere", "--port", "0"], &["doctor", "--port", "0"]]
    {
        let output = command("bitdelta").args(arguments).env_remove("NO_COLOR").output().expect("it runs");
        assert!(!stdout(&output).contains('\u{1b}') && !stderr(&output).contains('\u{1b}'), "{arguments:?}");
    }
}
