//! The report on a tiny model: what it writes, and that it goes on where it was.
use crate::{run, stderr, stdout};
use serde_json::{Value, json};
use std::{fs, path::Path};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny-llama");

fn write_conversations(path: &Path, count: usize) {
    let one = |n: usize| {
        let turn = |role: &str, content: String| json!({ "role": role, "content": content });
        let turns = [turn("user", format!("Hello {n}")), turn("assistant", "good day".repeat(1 + n % 2))];
        format!("{}\n", json!({ "messages": turns }))
    };
    fs::write(path, (0..count).map(one).collect::<String>()).expect("written");
}

#[test]
fn a_report_has_every_entry_for_every_seed_and_is_not_made_twice() {
    let keep = tempfile::tempdir().expect("a folder");
    let task = keep.path().join("greetings");
    fs::create_dir(&task).expect("made");
    write_conversations(&task.join("train.jsonl"), 4);
    write_conversations(&task.join("held.jsonl"), 2);
    let general = keep.path().join("general.jsonl");
    write_conversations(&general, 2);
    let output = keep.path().join("out");
    let [task, general, folder] = [&task, &general, &output].map(|path| path.to_str().expect("UTF-8"));
    let arguments = [
        ["report", "--model", TINY, "--task", task, "--general", general, "--output", folder].as_slice(),
        &["--seeds", "2", "--sizes", "8KB", "--rates", "1,0.01", "--batch", "2", "--json"],
        &["--only", "full,bits1,data-8KB,trained-8KB,lora-r1", "--train", "--max-steps 2 --cutoff-len 64"],
    ]
    .concat();
    let first = run("bitdelta", &arguments);
    assert!(first.status.success(), "{}", stderr(&first));
    let report: Value = serde_json::from_str(&stdout(&first)).expect("pure JSON");
    let summaries = report["summaries"].as_array().expect("an array");
    let ids: Vec<&str> = summaries.iter().map(|summary| summary["id"].as_str().expect("text")).collect();
    assert_eq!(ids, ["full", "bits1", "data-8KB", "trained-8KB", "lora-r1"]);
    for summary in summaries {
        assert_eq!(summary["seeds"], 2);
        for figure in ["bytes", "retention", "loss", "kl", "exact", "drift", "seconds", "peak_memory", "load_seconds"] {
            assert!(summary[figure]["median"].is_number(), "{figure} of {}: {}", summary["id"], summary[figure]);
        }
        assert!(summary["tokens_per_second"]["median"].as_f64().expect("a number") > 0.0);
    }
    let budgets = summaries.iter().filter(|summary| summary["id"].as_str().is_some_and(|id| id.ends_with("8KB")));
    budgets.for_each(|summary| assert!(summary["bytes"]["greatest"].as_f64().expect("a number") <= 8000.0));
    assert_eq!(report["claims"].as_array().map(Vec::len), Some(5));

    let page = fs::read_to_string(output.join("report.html")).expect("written");
    assert!(page.contains("<svg") && page.contains("trained for the budget") && page.contains("10 MB"), "{page}");
    let markdown = fs::read_to_string(output.join("report.md")).expect("written");
    assert!(markdown.contains("| 8KB, trained for it |") && markdown.contains("## greetings"), "{markdown}");

    // What ran is not run again, and the merged weights are not needed any more.
    assert!(!output.join("runs/greetings/seed-1/finetuned").exists());
    let second = run("bitdelta", &arguments);
    assert_eq!((stderr(&second), stdout(&second)), (String::new(), stdout(&first)));

    // Nor what else is made from, when the report is known.
    let known = output.join("report.json");
    let known = known.to_str().expect("UTF-8");
    let more = [&arguments[..], &["--known", known, "--only", "weights-8KB"]].concat();
    let more = run("bitdelta", &more);
    assert!(more.status.success(), "{}", stderr(&more));
    let said = stderr(&more);
    assert!(said.contains("seed 2: weights-8KB") && !said.contains(": full"), "{said}");

    // Nor elsewhere, by who knows the report; a third seed is trained at the rates that were found.
    let elsewhere = keep.path().join("elsewhere");
    let elsewhere = elsewhere.to_str().expect("UTF-8");
    let one_more = [
        ["report", "--model", TINY, "--task", task, "--general", general, "--output", elsewhere].as_slice(),
        &["--seeds", "3", "--sizes", "8KB", "--batch", "0", "--json", "--only", "full,lora-r1"],
        &["--train", "--max-steps 2 --cutoff-len 64", "--known", known],
    ]
    .concat();
    let third = run("bitdelta", &one_more);
    assert!(third.status.success(), "{}", stderr(&third));
    assert!(!stderr(&third).contains("seed 1") && stderr(&third).contains("seed 3: lora-r1@"), "{}", stderr(&third));
    let together: Value = serde_json::from_str(&stdout(&third)).expect("pure JSON");
    let summaries = together["summaries"].as_array().expect("an array");
    let seeds: Vec<_> =
        summaries.iter().map(|one| (one["id"].as_str().expect("text"), one["seeds"].as_u64())).collect();
    let two = Some(2);
    let both = ["bits1", "weights-8KB", "trained-8KB", "data-8KB"].map(|id| (id, two));
    let want = [[("full", Some(3)), ("lora-r1", Some(3))].as_slice(), &both].concat();
    assert!(want.iter().all(|one| seeds.contains(one)) && seeds.len() == want.len(), "{seeds:?}");
}

#[test]
fn a_task_without_its_files_or_an_entry_that_is_none_is_a_usage_error() {
    let keep = tempfile::tempdir().expect("a folder");
    let task = keep.path().to_str().expect("UTF-8");
    let missing = run("bitdelta", &["report", "--model", TINY, "--task", task]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("train.jsonl"), "{}", stderr(&missing));
    write_conversations(&keep.path().join("train.jsonl"), 1);
    write_conversations(&keep.path().join("held.jsonl"), 1);
    let unknown = run("bitdelta", &["report", "--model", TINY, "--task", task, "--only", "bits3"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("lora-r16"), "{}", stderr(&unknown));
}
