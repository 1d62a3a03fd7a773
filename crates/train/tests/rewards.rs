//! GRPO: what a program rewards becomes likelier.

use bitdelta_train::{
    Error, TrainConfig,
    batch::Example,
    config::Stage,
    graph::{Adaptation, Graph},
    objective::{self, Item, Rewarded},
    progress::{Progress, Silent},
    run,
};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

static NEVER: AtomicBool = AtomicBool::new(false);

/// Counts the letter e in each line's answer.
const COUNT_E: &str = r#"awk '{ sub(/.*"answer":"/, ""); sub(/","reference".*/, ""); print gsub(/e/, "") }'"#;

fn base() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-llama").to_str().expect("a plain path").into()
}

fn config(folder: &Path, output: &str) -> TrainConfig {
    let data = folder.join("prompts.jsonl");
    let line = |i: usize| format!("{{\"prompt\": \"say {i}\", \"response\": \"{i}\"}}\n");
    fs::write(&data, (0..4).map(line).collect::<String>()).expect("written");
    TrainConfig {
        stage: Stage::Grpo,
        model_name_or_path: base(),
        dataset: data.to_str().expect("a plain path").into(),
        output_dir: folder.join(output),
        reward_command: COUNT_E.into(),
        grpo_group_size: 6,
        grpo_answer_len: 12,
        per_device_train_batch_size: 4,
        max_steps: 12,
        learning_rate: Some(2e-2),
        logging_steps: 1,
        ..TrainConfig::default()
    }
}

#[test]
fn the_reward_rises() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), "out");
    run::run(&config, &Silent, &NEVER).expect("a run");
    let log = fs::read_to_string(config.output_dir.join(run::LOG_FILE)).expect("a log");
    let rewards: Vec<f64> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?.get("reward")?.as_f64())
        .collect();
    assert_eq!(rewards.len(), 12);
    let (first, last): (f64, f64) = (rewards[..3].iter().sum(), rewards[9..].iter().sum());
    assert!(last > 1.5 * first + 0.1, "{rewards:?}");
}

/// Raises the stop flag after a number of steps.
struct StopAfter<'a>(AtomicU64, &'a AtomicBool);

impl Progress for StopAfter<'_> {
    fn begin(&self, _: &str, _: u64, _: &str) {}
    fn advance(&self, _: u64, note: &str) {
        if note.starts_with("reward") && self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.1.store(true, Ordering::SeqCst);
        }
    }
    fn end(&self) {}
    fn say(&self, _: &str) {}
}

#[test]
fn a_run_that_was_stopped_draws_what_it_would_have_drawn() {
    let folder = tempfile::tempdir().expect("a folder");
    let short = |output| TrainConfig { max_steps: 4, ..config(folder.path(), output) };
    let (unbroken, broken) = (short("unbroken"), short("broken"));
    run::run(&unbroken, &Silent, &NEVER).expect("a run");
    let stop = AtomicBool::new(false);
    let error = run::run(&broken, &StopAfter(AtomicU64::new(2), &stop), &stop).expect_err("stopped");
    assert!(matches!(error, Error::Interrupted { step: 2, .. }), "{error}");
    run::run(&broken, &Silent, &NEVER).expect("goes on");
    let bytes = |config: &TrainConfig| fs::read(config.output_dir.join(run::VARIANT_FILE)).expect("a variant");
    assert!(bytes(&unbroken) == bytes(&broken));
}

#[test]
fn an_advantage_moves_its_answer_by_the_mean_of_its_tokens() {
    let base = bitdelta_model::Base::open(&base()).expect("the tiny model");
    let graph = Graph::new(&base.config, &base, Adaptation::Full, 64, false).expect("a graph");
    let example = |tokens: &[u32], from: usize| Example {
        tokens: tokens.to_vec(),
        counts: (0..tokens.len()).map(|at| at >= from).collect(),
    };
    let (a, b) = (example(&[20, 21, 22, 23, 24], 2), example(&[30, 31, 32], 1));
    let mean = |example: &Example| {
        let batch = bitdelta_train::batch::pack([example]);
        graph.loss(&batch).expect("a loss") / batch.targets.len() as f64
    };
    let want = 1.5 * mean(&a) - 0.5 * mean(&b);
    let items = [Rewarded { example: a.clone(), advantage: 1.5 }, Rewarded { example: b.clone(), advantage: -0.5 }];
    let items = items.map(Item::Rewarded);
    let items: Vec<&Item> = items.iter().collect();
    let config = TrainConfig::default();
    let found = objective::pass(&graph, &config, &items, Some(1.0)).expect("a pass").loss;
    assert!((found - want).abs() < 1e-4 * want.abs(), "{found} {want}");
    let (before_a, before_b) = (mean(&a), mean(&b));
    for parameter in graph.parameters() {
        let gradient = parameter.gradient().take().expect("a gradient");
        let cols = gradient.cols();
        parameter.value_mut().add_to_columns(0..cols, &gradient, -1e-3);
    }
    assert!(mean(&a) < before_a && mean(&b) > before_b, "what is worth more becomes likelier, what less, less likely");
}

#[test]
fn settings_that_make_no_sense_and_failing_programs_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let right = config(folder.path(), "out");
    for (wrong, word) in [
        (TrainConfig { reward_command: String::new(), ..right.clone() }, "reward_command"),
        (TrainConfig { grpo_group_size: 1, ..right.clone() }, "grpo_group_size"),
        (TrainConfig { val_size: 1.0, ..right.clone() }, "val_size"),
        (TrainConfig { bits_per_weight: Some(0.02), ..right.clone() }, "budget"),
        (TrainConfig { reward_command: "echo no such thing >&2; exit 1".into(), ..right.clone() }, "no such thing"),
    ] {
        let error = run::run(&wrong, &Silent, &NEVER).expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    }
}
