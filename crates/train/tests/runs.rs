//! Whole runs on a tiny model: they learn, they repeat, they go on after a stop, and they fail clearly.

use bitdelta_delta::{Part, Variant};
use bitdelta_model::Base;
use bitdelta_train::{
    Error, Method, TrainConfig,
    config::Every,
    progress::{Progress, Silent},
    run,
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

static NEVER: AtomicBool = AtomicBool::new(false);

fn base() -> Base {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-llama");
    Base::open(path.to_str().expect("a plain path")).expect("the tiny model")
}

/// Twelve conversations that all end in the same few words.
fn write_data(folder: &Path) -> PathBuf {
    let path = folder.join("data.jsonl");
    let line = |i: usize| format!("{{\"prompt\": \"question {i}?\", \"response\": \"yes, dear {}\"}}\n", i % 3);
    fs::write(&path, (0..12).map(line).collect::<String>()).expect("data written");
    path
}

fn config(folder: &Path, output: &str) -> TrainConfig {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-llama");
    TrainConfig {
        model_name_or_path: base.to_str().expect("a plain path").into(),
        dataset: write_data(folder).to_str().expect("a plain path").into(),
        output_dir: folder.join(output),
        per_device_train_batch_size: 4,
        num_train_epochs: 4.0,
        learning_rate: Some(1e-2),
        val_size: 2.0,
        logging_steps: 1,
        save_steps: 2,
        ..TrainConfig::default()
    }
}

/// Raises the stop flag after a number of training steps.
struct StopAfter<'a> {
    steps: u64,
    seen: AtomicU64,
    stop: &'a AtomicBool,
}

impl Progress for StopAfter<'_> {
    fn begin(&self, _: &str, _: u64, _: &str) {}
    fn advance(&self, n: u64, note: &str) {
        if note.starts_with("loss") && self.seen.fetch_add(n, Ordering::SeqCst) + n == self.steps {
            self.stop.store(true, Ordering::SeqCst);
        }
    }
    fn end(&self) {}
    fn say(&self, _: &str) {}
}

#[test]
fn both_methods_learn_and_write_a_variant_that_says_how() {
    let folder = tempfile::tempdir().expect("a folder");
    for (method, bits) in [(Method::LowRank, 1), (Method::Full, 4)] {
        let config = TrainConfig { method, bits, ..config(folder.path(), &format!("{method:?}")) };
        let outcome = run::run(&config, &Silent, &NEVER).expect("a run");
        let (before, trained) = (outcome.loss_base.expect("held out"), outcome.loss_trained.expect("held out"));
        let variant_loss = outcome.loss_variant.expect("held out");
        assert!(trained < before - 0.5, "{method:?}: {before} -> {trained}");
        assert!((variant_loss - trained).abs() < 0.2 * (before - trained), "{method:?}: {trained} -> {variant_loss}");
        let variant = Variant::read(&config.output_dir).expect("the variant");
        assert_eq!(variant.info.base, base().fingerprint());
        assert_eq!(variant.linears.len(), base().linears().len());
        let is_right = |part: &Part| match method {
            Method::LowRank => matches!(part, Part::LowRank { .. }),
            Method::Full => matches!(part, Part::Dense(_)),
            Method::Experience => false,
        };
        assert!(variant.linears.iter().all(|linear| linear.parts.len() == 1 && is_right(&linear.parts[0])));
        let notes = serde_json::to_string(&variant.info.notes).expect("notes");
        assert!(notes.contains("loss_variant") && !notes.contains("dear"), "figures, and no text of the data: {notes}");
        let log = fs::read_to_string(config.output_dir.join(run::LOG_FILE)).expect("a log");
        assert!(log.lines().count() > 12 && log.contains("grad_norm"));
    }
}

#[test]
fn a_run_that_was_stopped_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = base();
    let unbroken = config(folder.path(), "unbroken");
    run::run_on(&base, &unbroken, &Silent, &NEVER).expect("a run");
    let broken = TrainConfig { load_best_model_at_end: false, ..config(folder.path(), "broken") };
    for steps in [1, 4] {
        let stop = AtomicBool::new(false);
        let progress = StopAfter { steps, seen: AtomicU64::new(0), stop: &stop };
        let error = run::run_on(&base, &broken, &progress, &stop).expect_err("stopped");
        let Error::Interrupted { checkpoint, .. } = error else { panic!("{error}") };
        assert!(checkpoint.join("state.json").is_file());
        assert!(!broken.output_dir.join(run::VARIANT_FILE).exists(), "no variant before the end");
    }
    run::run_on(&base, &broken, &Silent, &NEVER).expect("goes on by itself");
    let bytes = |config: &TrainConfig| fs::read(config.output_dir.join(run::VARIANT_FILE)).expect("a variant");
    assert!(bytes(&unbroken) == bytes(&broken), "interrupted twice, yet the same variant byte for byte");
}

#[test]
fn accumulated_batches_equal_one_large_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = base();
    let losses = [(6, 1), (2, 3)].map(|(batch, accumulation)| {
        let config = TrainConfig {
            per_device_train_batch_size: batch,
            gradient_accumulation_steps: accumulation,
            ..config(folder.path(), &format!("{batch}x{accumulation}"))
        };
        run::run_on(&base, &config, &Silent, &NEVER).expect("a run").loss_trained.expect("held out")
    });
    assert!((losses[0] - losses[1]).abs() < 1e-3, "{losses:?}: only the order of sums differs");
}

#[test]
fn a_checkpoint_of_other_settings_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = base();
    let config = config(folder.path(), "out");
    let stop = AtomicBool::new(false);
    let progress = StopAfter { steps: 1, seen: AtomicU64::new(0), stop: &stop };
    run::run_on(&base, &config, &progress, &stop).expect_err("stopped");
    let other = TrainConfig { seed: 7, ..config.clone() };
    let error = run::run_on(&base, &other, &Silent, &NEVER).expect_err("refused");
    assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
    let anew = TrainConfig { overwrite_output_dir: true, ..other };
    run::run_on(&base, &anew, &Silent, &NEVER).expect("starts anew");
    let again = run::run_on(&base, &config, &Silent, &NEVER).expect_err("a variant is there");
    assert!(again.to_string().contains("overwrite_output_dir"), "{again}");
}

#[test]
fn a_folder_that_another_run_writes_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), "out");
    fs::create_dir_all(&config.output_dir).expect("the folder");
    let other = fs::File::open(&config.output_dir).expect("the folder");
    other.lock().expect("a lock");
    let error = run::run_on(&base(), &config, &Silent, &NEVER).expect_err("refused").to_string();
    assert!(error.contains("another training"), "{error}");
    drop(other);
    run::run_on(&base(), &config, &Silent, &NEVER).expect("a run");
}

#[test]
fn resuming_without_a_checkpoint_never_replaces_a_finished_variant() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = TrainConfig { resume_from_checkpoint: Some("auto".into()), ..config(folder.path(), "out") };
    fs::create_dir_all(&config.output_dir).expect("the folder");
    let finished = config.output_dir.join(run::VARIANT_FILE);
    fs::write(&finished, b"finished").expect("written");
    let error = run::run_on(&base(), &config, &Silent, &NEVER).expect_err("refused").to_string();
    assert!(error.contains("finished variant"), "{error}");
    assert_eq!(fs::read(&finished).expect("still there"), b"finished");
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let base = base();
    let config = config(folder.path(), "out");
    let stop = AtomicBool::new(false);
    let progress = StopAfter { steps: 1, seen: AtomicU64::new(0), stop: &stop };
    run::run_on(&base, &config, &progress, &stop).expect_err("stopped");
    let tensors = config.output_dir.join("checkpoint-1/tensors.safetensors");
    let bytes = fs::read(&tensors).expect("tensors");
    fs::write(&tensors, &bytes[..bytes.len() / 2]).expect("cut");
    let error = run::run_on(&base, &config, &Silent, &NEVER).expect_err("refused").to_string();
    assert!(error.contains("checkpoint-1") && error.contains("tensors.safetensors"), "{error}");
}

#[test]
fn old_checkpoints_go_and_the_limit_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = TrainConfig { save_steps: 1, save_total_limit: Some(2), ..config(folder.path(), "out") };
    run::run_on(&base(), &config, &Silent, &NEVER).expect("a run");
    let entries = fs::read_dir(&config.output_dir).expect("a folder").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names, ["checkpoint-10", "checkpoint-11", "training_log.jsonl", "variant.safetensors"]);
}

#[test]
fn early_stopping_keeps_the_best_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = TrainConfig {
        learning_rate: Some(0.3),
        num_train_epochs: 30.0,
        early_stopping_steps: Some(2),
        load_best_model_at_end: true,
        eval_strategy: Every::Epoch,
        ..config(folder.path(), "out")
    };
    let outcome = run::run_on(&base(), &config, &Silent, &NEVER).expect("a run");
    let log = fs::read_to_string(config.output_dir.join(run::LOG_FILE)).expect("a log");
    let losses: Vec<f64> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?.get("eval_loss")?.as_f64())
        .collect();
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(outcome.loss_trained, Some(best), "{losses:?}");
}

#[test]
fn what_does_not_fit_in_memory_is_refused_with_the_figure() {
    let model = base().config.clone();
    let folder = tempfile::tempdir().expect("a folder");
    let config = TrainConfig { method: Method::Full, ..config(folder.path(), "out") };
    let load = run::memory::Load { tokens: 1000, cached_values: 500, samples: false };
    let plain = run::memory::Need::new(&model, &config, load, false).total();
    let again = run::memory::Need::new(&model, &config, load, true).total();
    assert!(again < plain);
    assert!(!run::memory::plan(&model, &config, load, Some(plain)).expect("fits"));
    assert!(run::memory::plan(&model, &config, load, Some(again)).expect("fits with recomputation"));
    let error = run::memory::plan(&model, &config, load, Some(again - 1)).expect_err("too little").to_string();
    assert!(error.contains("MB") && error.contains("lowrank") && error.contains("batch_size"), "{error}");
}

#[test]
fn an_unwritable_output_is_an_error_with_its_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = config(folder.path(), "out");
    fs::write(folder.path().join("file"), "").expect("a file");
    config.output_dir = folder.path().join("file/out");
    let error = run::run_on(&base(), &config, &Silent, &NEVER).expect_err("no folder there").to_string();
    assert!(error.contains("file/out"), "{error}");
}

#[test]
fn a_base_in_fewer_bits_is_learnt_beside_and_needs_less_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = base().config.clone();
    let mut need = u64::MAX;
    for bits in [None, Some(16), Some(8), Some(4)] {
        let config = TrainConfig { quantization_bit: bits, ..config(folder.path(), &format!("{bits:?}")) };
        let found = run::memory::Need::new(&model, &config, run::memory::Load::default(), false).base;
        assert!(found < need, "{bits:?}: {found}, before {need}");
        need = found;
        if bits != Some(16) {
            let outcome = run::run(&config, &Silent, &NEVER).expect("a run");
            let (before, after) = (outcome.loss_base.expect("held out"), outcome.loss_variant.expect("held out"));
            assert!(after < before - 0.5, "{bits:?}: {before} -> {after}");
        }
    }
    let full = TrainConfig { method: Method::Full, quantization_bit: Some(8), ..config(folder.path(), "full") };
    let error = full.validate().expect_err("what learns is kept in f32").to_string();
    assert!(error.contains("quantization_bit") && error.contains("lowrank"), "{error}");
    let plain = config(folder.path(), "plain");
    let load = run::memory::Load { tokens: 1, cached_values: 0, samples: true };
    let error = run::memory::plan(&model, &plain, load, Some(1000)).expect_err("too little").to_string();
    assert!(error.contains("quantization_bit 8"), "{error}");
}
