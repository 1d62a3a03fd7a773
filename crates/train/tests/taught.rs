//! Preferences become a variant: the base that is told them teaches the base that is not.

use bitdelta_delta::Variant;
use bitdelta_model::Base;
use bitdelta_train::{
    Error, TrainConfig,
    batch::Example,
    graph::{Adaptation, Graph},
    objective::{self, Item, Taught},
    progress::{Progress, Silent},
    run,
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

static NEVER: AtomicBool = AtomicBool::new(false);

fn base() -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-llama");
    path.to_str().expect("a plain path").into()
}

fn config(folder: &Path, output: &str) -> TrainConfig {
    TrainConfig {
        model_name_or_path: base(),
        preferences: Some(r#"{"dog": "Rex"}"#.into()),
        preference_samples: 12,
        preference_answer_len: 12,
        output_dir: folder.join(output),
        per_device_train_batch_size: 4,
        num_train_epochs: 8.0,
        learning_rate: Some(1e-2),
        val_size: 2.0,
        save_steps: 2,
        ..TrainConfig::default()
    }
}

#[test]
fn the_loss_is_the_divergence_of_the_two_models() {
    let opened = Base::open(&base()).expect("the tiny model");
    let graph = Graph::new(&opened.config, &opened, Adaptation::Full, 64, false).expect("a graph");
    let example = |prompt: &[u32]| Example {
        tokens: prompt.iter().copied().chain([7, 8, 9]).collect(),
        counts: (0..prompt.len() + 3).map(|at| at >= prompt.len()).collect(),
    };
    let (student, teacher) = (example(&[20, 21]), example(&[30, 31, 32, 33, 20, 21]));
    let logs = |tokens: &[u32]| -> Vec<Vec<f64>> {
        let hidden = graph.logits(tokens).expect("logits");
        let rows = tokens.len() - 4..tokens.len() - 1;
        rows.map(|row| {
            let logits: Vec<f64> = hidden.row(row).iter().map(|x| f64::from(*x)).collect();
            let sum = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
            logits.iter().map(|x| x - sum).collect()
        })
        .collect()
    };
    let (q, p) = (logs(&student.tokens), logs(&teacher.tokens));
    let want: f64 = p.iter().flatten().zip(q.iter().flatten()).map(|(p, q)| p.exp() * (p - q)).sum();
    let mut items = vec![Item::Taught(Taught::new(student, teacher))];
    objective::prepare(&graph, &mut items, 1, &Silent).expect("the teacher");
    let config = TrainConfig { preference_weight: 0.5, ..TrainConfig::default() };
    let items: Vec<&Item> = items.iter().collect();
    let found = objective::pass(&graph, &config, &items, Some(1.0)).expect("a pass");
    assert!((found.loss - 0.5 * want).abs() < 1e-4 * want, "{} {want}", found.loss);
    assert!(graph.parameters().iter().all(|parameter| parameter.gradient().is_some()));
    // One step down the gradient brings the two together.
    for parameter in graph.parameters() {
        let gradient = parameter.gradient().take().expect("a gradient");
        let cols = gradient.cols();
        parameter.value_mut().add_to_columns(0..cols, &gradient, -1e-3);
    }
    let after = objective::pass(&graph, &config, &items, None).expect("a pass");
    assert!(after.loss < found.loss, "{} {}", after.loss, found.loss);
}

#[test]
fn preferences_alone_make_a_variant_that_is_nearer_to_the_teacher() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), "out");
    let outcome = run::run(&config, &Silent, &NEVER).expect("a run");
    let (before, after) = (outcome.loss_base.expect("held out"), outcome.loss_variant.expect("held out"));
    assert!(before > 0.0 && after < 0.9 * before, "KL on held-out lessons: {before} -> {after}");
    let variant = Variant::read(&config.output_dir).expect("the variant");
    let notes = serde_json::to_string(&variant.info.notes).expect("notes");
    assert!(notes.contains("lessons_of_preferences") && !notes.contains("Rex"), "figures, not what was told: {notes}");
    let left: Vec<String> = fs::read_dir(&config.output_dir)
        .expect("a folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("answers"))
        .collect();
    assert!(left.is_empty(), "the teacher's answers go with the run: {left:?}");
}

#[test]
fn preferences_and_a_data_set_are_learnt_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data.jsonl");
    let line = |i: usize| format!("{{\"prompt\": \"question {i}?\", \"response\": \"yes, dear\"}}\n");
    fs::write(&data, (0..12).map(line).collect::<String>()).expect("written");
    let config = TrainConfig {
        dataset: data.to_str().expect("a plain path").into(),
        preferences: Some("Speak of dogs.".into()),
        ..config(folder.path(), "both")
    };
    let outcome = run::run(&config, &Silent, &NEVER).expect("a run");
    let (before, after) = (outcome.loss_base.expect("held out"), outcome.loss_variant.expect("held out"));
    assert!(after < before - 0.5, "the data set's held-out answers: {before} -> {after}");
    assert_eq!(outcome.steps, 8 * (10usize + 12).div_ceil(4), "ten conversations and twelve lessons an epoch");
}

/// Raises the stop flag after one step of the given phase.
struct StopIn<'a> {
    phase: &'static str,
    now: AtomicBool,
    stop: &'a AtomicBool,
}

impl Progress for StopIn<'_> {
    fn begin(&self, phase: &str, _: u64, _: &str) {
        self.now.store(phase == self.phase, Ordering::SeqCst);
    }
    fn advance(&self, n: u64, _: &str) {
        if n > 0 && self.now.load(Ordering::SeqCst) {
            self.stop.store(true, Ordering::SeqCst);
        }
    }
    fn end(&self) {}
    fn say(&self, _: &str) {}
}

#[test]
fn a_run_that_was_stopped_while_taught_or_trained_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (unbroken, broken) = (config(folder.path(), "unbroken"), config(folder.path(), "broken"));
    run::run(&unbroken, &Silent, &NEVER).expect("a run");
    for phase in ["the teacher answers", "training"] {
        let stop = AtomicBool::new(false);
        let progress = StopIn { phase, now: AtomicBool::new(false), stop: &stop };
        let error = run::run(&broken, &progress, &stop).expect_err("stopped");
        assert!(matches!(error, Error::Interrupted { .. }), "{phase}: {error}");
    }
    run::run(&broken, &Silent, &NEVER).expect("goes on");
    let bytes = |config: &TrainConfig| fs::read(config.output_dir.join(run::VARIANT_FILE)).expect("a variant");
    assert!(bytes(&unbroken) == bytes(&broken), "the same variant byte for byte");
}

#[test]
fn preferences_that_say_nothing_or_fill_the_context_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for (text, word) in [("{}".to_owned(), "nothing in it"), ("long ".repeat(3000), "no room")] {
        let config = TrainConfig { preferences: Some(text), cutoff_len: 400, ..config(folder.path(), "out") };
        let error = run::run(&config, &Silent, &NEVER).expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    }
}
