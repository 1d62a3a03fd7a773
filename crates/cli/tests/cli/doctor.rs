//! `doctor` finds what would keep a server from working, says what to do, and ends with 1 then.
use crate::{golden, node::write_variant, run, stderr, stdout};
use serde_json::Value;
use std::{net::TcpListener, path::Path, process::Output};

fn doctor(dir: &Path, more: &[&str]) -> (Output, Value) {
    let (model, dir) = (golden("tiny-llama"), dir.to_str().expect("UTF-8"));
    let usual = ["doctor", "--json", "--model", &model, "--variants-dir", dir, "--port", "0"];
    let output = run("hanzo-node", &[&usual[..], more].concat());
    let report = serde_json::from_slice(&output.stdout).expect("pure JSON on stdout");
    (output, report)
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

#[test]
fn a_machine_that_can_serve_has_no_problem() {
    let dir = tempfile::tempdir().expect("a folder");
    write_variant(&dir.path().join("ann.safetensors"));
    let (output, report) = doctor(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["problems"], 0);
    for name in ["cpu", "cores", "memory", "bandwidth", "configuration", "disk", "port"] {
        assert!(check(&report, name)["found"].as_str().is_some_and(|found| !found.is_empty()));
    }
    assert_eq!(check(&report, "model")["figures"]["architecture"], "LlamaForCausalLM");
    let bytes = &check(&report, "base memory")["figures"]["base_bytes"];
    assert!(bytes["int8"].as_u64() < bytes["bf16"].as_u64() && bytes["bf16"].as_u64() < bytes["f32"].as_u64());
    assert_eq!(check(&report, "variants")["figures"]["users"], 1);
}

#[test]
fn a_damaged_variant_is_a_problem_that_names_its_user() {
    let dir = tempfile::tempdir().expect("a folder");
    write_variant(&dir.path().join("ann.safetensors"));
    std::fs::write(dir.path().join("bob.safetensors"), b"not a variant").expect("written");
    let (output, report) = doctor(dir.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output).lines().last(), Some("error: a problem was found"));
    let found = check(&report, "variants");
    assert_eq!((&found["state"], &found["figures"]["damaged"]), (&"problem".into(), &1.into()));
    assert!(
        found["found"].as_str().is_some_and(|found| found.contains("bob (") && !found.contains("ann (")),
        "{found}"
    );
}

#[test]
fn a_variant_of_another_base_is_a_problem() {
    let dir = tempfile::tempdir().expect("a folder");
    write_variant(&dir.path().join("ann.safetensors"));
    let arguments = ["doctor", "--model", &golden("tiny-qwen3"), "--port", "0", "--variants-dir"];
    let output = run("bitdelta", &[&arguments[..], &[dir.path().to_str().expect("UTF-8")]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = stdout(&output);
    assert!(said.contains("PROBLEM  variants") && said.contains("ann (made on tiny-llama)"), "{said}");
    assert!(said.contains("bitdelta rebase"), "it says what to do: {said}");
}

#[test]
fn no_model_a_taken_port_and_a_bad_file_are_problems() {
    let dir = tempfile::tempdir().expect("a folder");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, "train:\n  epoch: 3\n").expect("written");
    let config = config.to_str().expect("UTF-8");
    let output = run("bitdelta", &["doctor", "--json", "--port", &port, "--config", config]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for name in ["model", "port", "configuration"] {
        assert_eq!(check(&report, name)["state"], "problem", "{report}");
        assert!(check(&report, name)["advice"].is_string(), "{report}");
    }
    let found = check(&report, "configuration")["found"].to_string();
    assert!(found.contains("train.epoch") && found.contains("did you mean `epochs`"), "{found}");
}

#[test]
fn an_address_beyond_this_machine_needs_keys() {
    let output = run("bitdelta", &["doctor", "--json", "--port", "0", "--host", "0.0.0.0"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(check(&report, "port")["state"], "problem", "{report}");
}
