//! Preference losses and gradients against PyTorch's (golden files, see `tests/golden/make_tiny.py`), and whole runs that
//! learn from preferences.

use bitdelta_model::Base;
use bitdelta_train::{
    TrainConfig,
    batch::Example,
    config::{PreferenceLoss, Stage},
    graph::{Adaptation, Graph},
    objective::{self, Item, Judged, Pair},
    progress::Silent,
    run,
};
use safetensors::SafeTensors;
use std::{fs, path::PathBuf, sync::atomic::AtomicBool};

static NEVER: AtomicBool = AtomicBool::new(false);

/// Relative, of a loss; two f32 forward passes in another order of sums differ by 1e-5 at most.
const LOSS_TOLERANCE: f64 = 1e-4;
/// Of a gradient, against its largest value.
const GRADIENT_TOLERANCE: f32 = 2e-4;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn graph(name: &str, adaptation: Adaptation) -> Graph {
    let base = Base::open(golden(name).to_str().expect("a plain path")).expect("the tiny model");
    Graph::new(&base.config, &base, adaptation, 64, false).expect("a graph")
}

fn floats(file: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).expect("a golden tensor");
    tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The two sequences of the golden batch.
fn sequences() -> [Example; 2] {
    let bytes = fs::read(golden("tiny-llama-ft/golden.safetensors")).expect("a golden file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let integers = |name: &str| -> Vec<i64> {
        let tensor = file.tensor(name).expect("a golden tensor");
        tensor.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
    };
    let (ids, labels) = (integers("batch_ids"), integers("batch_labels"));
    let width = ids.len() / 2;
    [0, 1].map(|row| {
        let labels = &labels[row * width..(row + 1) * width];
        let length = 1 + labels.iter().rposition(|&label| label >= 0).expect("something to learn");
        Example {
            tokens: ids[row * width..][..length].iter().map(|&id| id as u32).collect(),
            counts: labels[..length].iter().map(|&label| label >= 0).collect(),
        }
    })
}

#[test]
fn losses_and_gradients_equal_pytorchs() {
    let bytes = fs::read(golden("tiny-llama-ft/preferences.safetensors")).expect("a golden file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let [a, b] = sequences();
    let pair = |chosen: &Example, rejected: &Example| {
        Item::Pair(Pair { chosen: chosen.clone(), rejected: rejected.clone(), reference: [0.0; 2] })
    };
    let judged = |answer: &Example, mismatched: &Example, good| {
        Item::Judged(Judged { answer: answer.clone(), mismatched: mismatched.clone(), good, reference: [0.0; 2] })
    };
    let base = graph("tiny-llama", Adaptation::Frozen);
    for (name, pref_loss) in [
        ("sigmoid", Some(PreferenceLoss::Sigmoid)),
        ("hinge", Some(PreferenceLoss::Hinge)),
        ("ipo", Some(PreferenceLoss::Ipo)),
        ("kto", None),
    ] {
        let mut items = match pref_loss {
            Some(_) => vec![pair(&a, &b), pair(&b, &a), pair(&a, &b)],
            None => vec![judged(&a, &b, true), judged(&b, &a, false)],
        };
        let is_sigmoid = pref_loss == Some(PreferenceLoss::Sigmoid);
        let config = TrainConfig {
            pref_loss: pref_loss.unwrap_or_default(),
            dpo_label_smoothing: if is_sigmoid { 0.1 } else { 0.0 },
            pref_ftx: if is_sigmoid { 0.5 } else { 0.0 },
            kto_chosen_weight: 1.5,
            kto_rejected_weight: 0.7,
            ..TrainConfig::default()
        };
        objective::prepare(&base, &mut items, 2, &Silent).expect("references");
        let items: Vec<&Item> = items.iter().collect();
        let learning = graph("tiny-llama-ft", Adaptation::Full);
        let units = items.len() as f64;
        let score = objective::pass(&learning, &config, &items, Some(1.0 / units as f32)).expect("a pass");
        let want = f64::from(floats(&file, &format!("{name}_loss"))[0]);
        let mean = score.loss / units;
        assert!((mean - want).abs() < LOSS_TOLERANCE * want, "{name}: {mean} {want}");
        assert_eq!(score.ranked, items.len());
        let without = objective::pass(&learning, &config, &items, None).expect("a pass");
        assert_eq!(without, score, "{name}: measuring finds what learning finds");

        let parameters = learning.parameters();
        let gradient = parameters[0].gradient();
        let want = floats(&file, &format!("{name}_gradient"));
        let largest = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert!(largest > 0.0, "{name}: the golden gradient says something");
        let found = &gradient.as_ref().expect("a gradient").values()[..want.len()];
        for (at, (found, want)) in found.iter().zip(&want).enumerate() {
            assert!((found - want).abs() <= GRADIENT_TOLERANCE * largest, "{name}: {found} at {at}, expected {want}");
        }
    }
}

fn config(folder: &std::path::Path, stage: Stage, lines: &str) -> TrainConfig {
    let data = folder.join("data.jsonl");
    fs::write(&data, lines).expect("data written");
    TrainConfig {
        stage,
        model_name_or_path: golden("tiny-llama").to_str().expect("a plain path").into(),
        dataset: data.to_str().expect("a plain path").into(),
        output_dir: folder.join("out"),
        per_device_train_batch_size: 4,
        num_train_epochs: 4.0,
        learning_rate: Some(1e-2),
        val_size: 4.0,
        logging_steps: 1,
        ..TrainConfig::default()
    }
}

#[test]
fn a_run_on_pairs_learns_to_prefer() {
    let folder = tempfile::tempdir().expect("a folder");
    let line =
        |i: usize| format!("{{\"prompt\": \"question {i}?\", \"chosen\": \"yes, dear\", \"rejected\": \"no way\"}}\n");
    let config = config(folder.path(), Stage::Dpo, &(0..16).map(line).collect::<String>());
    let outcome = run::run(&config, &Silent, &NEVER).expect("a run");
    let before = outcome.loss_base.expect("held out");
    assert!((before - 2f64.ln()).abs() < 1e-9, "the base prefers nothing to itself: {before}");
    assert!(outcome.loss_variant.expect("held out") < 0.3 * before, "{outcome:?}");
    assert_eq!(outcome.accuracy, Some(1.0), "the variant's own ranking");
    let log = fs::read_to_string(config.output_dir.join(run::LOG_FILE)).expect("a log");
    assert!(log.contains("eval_accuracy"));
}

#[test]
fn a_run_on_judged_answers_tells_good_from_bad() {
    let folder = tempfile::tempdir().expect("a folder");
    let line = |i: usize| {
        let (answer, good) = if i.is_multiple_of(2) { ("yes, dear", true) } else { ("no way", false) };
        format!("{{\"prompt\": \"question {i}?\", \"response\": \"{answer}\", \"kto_tag\": {good}}}\n")
    };
    let config = config(folder.path(), Stage::Kto, &(0..16).map(line).collect::<String>());
    let outcome = run::run(&config, &Silent, &NEVER).expect("a run");
    let before = outcome.loss_base.expect("held out");
    assert!((before - 0.5).abs() < 1e-6, "at the base every value is a half: {before}");
    assert!(outcome.loss_variant.expect("held out") < 0.8 * before, "{outcome:?}");
    assert_eq!(outcome.accuracy, Some(1.0));
}

#[test]
fn data_of_another_stage_is_refused_with_the_stage_that_takes_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let pair = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n";
    let answer = "{\"prompt\": \"a\", \"response\": \"b\"}\n";
    for (stage, data, word) in
        [(Stage::Sft, pair, "dpo"), (Stage::Dpo, answer, "chosen"), (Stage::Kto, answer, "kto_tag")]
    {
        let config = config(folder.path(), stage, data);
        let error = run::run(&config, &Silent, &NEVER).expect_err("refused").to_string();
        assert!(error.contains("line 1") && error.contains(word), "{stage:?}: {error}");
    }
}
