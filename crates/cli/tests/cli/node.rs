//! A running node from the shell: start, publish, load, list, chat, stop by signal.
use crate::{command, run, stdout};
use bitdelta_delta::{
    BitDeltaConfig,
    file::{Info, LinearDelta, Variant},
    quantize::quantize,
};
use bitdelta_model::Base;
use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

struct Node {
    child: Child,
    url: String,
}

impl Node {
    /// Starts it on a free port and waits until it says where it listens.
    fn start(variants_dir: &Path) -> Self {
        let mut child = command("hanzo-node")
            .args(["start", "--enable-bitdelta", "--port", "0", "--threads", "1", "--model"])
            .arg(base_path())
            .arg("--variants-dir")
            .arg(variants_dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the node starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("a line");
        let url = line.trim().strip_prefix("listening on ").expect("where it listens").to_owned();
        Self { child, url }
    }

    fn variants(&self, arguments: &[&str]) -> Output {
        run("hanzo-node", &[&["variants"], arguments, &["--url", &self.url]].concat())
    }

    fn chat(&self, more: &[&str]) -> Output {
        run("bitdelta", &[&["chat", "--prompt", "Hello!", "--max-tokens", "8", "--url", &self.url], more].concat())
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _already_waited = self.child.wait();
    }
}

fn base_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-llama")
}

/// A variant that answers otherwise than the base.
pub fn write_variant(path: &Path) {
    let base = Base::open(base_path().to_str().expect("UTF-8")).expect("the golden model");
    let config = BitDeltaConfig { clip_outliers: false, ..BitDeltaConfig::default() };
    let linears = base.linears().iter().enumerate().map(|(index, linear)| {
        let delta: Vec<f32> =
            (0..linear.rows * linear.cols).map(|i| ((i * 7919 + index) % 13) as f32 / 13.0 - 0.5).collect();
        let part = quantize(&linear.name, &delta, linear.rows, linear.cols, &config).expect("quantised");
        LinearDelta { rows: linear.rows, cols: linear.cols, parts: vec![part], relative_error: None }
    });
    let linears = linears.collect();
    let info = Info::new(base.fingerprint(), &base.name, config.clone(), "");
    Variant::new(info, linears).write(path).expect("written");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_user_is_published_served_listed_unloaded_and_the_node_stops_cleanly() {
    let dir = tempfile::tempdir().expect("a folder");
    let variants = dir.path().join("variants");
    let mut node = Node::start(&variants);
    let base = stdout(&node.chat(&[]));
    assert_eq!(node.chat(&["--user", "ann"]).status.code(), Some(1), "nobody is answered by the base in silence");

    let made = dir.path().join("ann.safetensors");
    write_variant(&made);
    let published = run("bitdelta", &["publish", text(&made), "--variants-dir", text(&variants)]);
    assert!(published.status.success(), "{published:?}");
    let ann = node.chat(&["--user", "ann"]);
    assert!(ann.status.success(), "{ann:?}");
    assert_ne!(stdout(&ann), base, "a running node sees a published variant at once");

    let elsewhere = dir.path().join("bob.safetensors");
    std::fs::copy(&made, &elsewhere).expect("copied");
    let loaded = node.variants(&["load", text(&elsewhere)]);
    assert!(stdout(&loaded).starts_with("loaded bob ("), "{loaded:?}");
    let listed: serde_json::Value =
        serde_json::from_slice(&node.variants(&["list", "--json"]).stdout).expect("pure JSON");
    let users: Vec<_> =
        listed.as_array().expect("variants").iter().map(|v| v["user_id"].as_str().expect("an id")).collect();
    assert_eq!(users, ["ann", "bob"]);
    assert_eq!(stdout(&node.variants(&["unload", text(&elsewhere)])), "unloaded bob\n");
    assert_eq!(node.variants(&["unload", "bob"]).status.code(), Some(1));

    node.signal("-TERM");
    assert_eq!(node.child.wait().expect("it ends").code(), Some(0));
    let mut log = String::new();
    node.child.stderr.take().expect("a pipe").read_to_string(&mut log).expect("UTF-8");
    assert!(log.contains("answered") && !log.contains("Hello!"), "the log counts tokens and quotes nobody: {log}");
}

#[test]
fn chat_without_a_server_gives_the_servers_answer() {
    let dir = tempfile::tempdir().expect("a folder");
    write_variant(&dir.path().join("ann.safetensors"));
    let node = Node::start(dir.path());
    for user in [&[][..], &["--user", "ann"]] {
        let mut here =
            vec!["chat", "--base", text(&base_path()).to_owned().leak(), "--prompt", "Hello!", "--max-tokens", "8"];
        here.extend(user);
        if !user.is_empty() {
            here.extend(["--variants-dir", text(dir.path())]);
        }
        let here = run("bitdelta", &here);
        assert!(here.status.success(), "{here:?}");
        assert_eq!(stdout(&here), stdout(&node.chat(user)));
    }
}

#[test]
fn a_conversation_goes_on_over_lines_and_can_be_reset() {
    let mut child = command("bitdelta")
        .args(["chat", "--base", text(&base_path()), "--max-tokens", "4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("chat starts");
    let turns = b"Hello!\nAnd now?\n/reset\nHello!\n/quit\nnever read\n";
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), turns).expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let said = stdout(&output);
    let answers: Vec<&str> = said.split_terminator('\n').collect();
    assert!(answers.len() >= 3, "{answers:?}");
    assert_eq!(answers.first(), answers.last(), "after /reset the first question has the first answer again");
}
