//! The training graph's numbers against those of `transformers` (golden files of tiny random models, see
//! `tests/golden/make_tiny.py`) and of the engine.

use bitdelta_engine::{Model, ModelOptions};
use bitdelta_model::Base;
use bitdelta_train::graph::{Adaptation, Graph, PackedBatch};
use safetensors::SafeTensors;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Two f32 forward passes whose sums run in another order differ by about 1e-5 on logits of size 1 to 10;
/// any wrong constant (an epsilon, a rotary frequency) moves them by 1e-2 and more.
const LOGIT_TOLERANCE: f32 = 2e-4;
/// The same for a mean loss of size 7.
const LOSS_TOLERANCE: f64 = 1e-4;
/// Of a gradient, against its largest value: it went through as many sums again on the way back.
const GRADIENT_TOLERANCE: f32 = 1e-4;

const MODELS: [&str; 4] = ["tiny-llama", "tiny-llama-ft", "tiny-llama3", "tiny-qwen3"];
const LONGEST: usize = 64;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn open(name: &str) -> Base {
    Base::open(golden(name).to_str().expect("a plain path")).expect("the base opens")
}

fn graph(base: &Base, adaptation: Adaptation, checkpointing: bool) -> Graph {
    Graph::new(&base.config, base, adaptation, LONGEST, checkpointing).expect("a graph")
}

/// One golden file.
struct Golden(Vec<u8>);

impl Golden {
    fn of(model: &str) -> Self {
        Self(std::fs::read(golden(model).join("golden.safetensors")).expect("a golden file"))
    }

    fn chunks<const N: usize>(&self, name: &str) -> Vec<[u8; N]> {
        let file = SafeTensors::deserialize(&self.0).expect("safetensors");
        let tensor = file.tensor(name).expect("a golden tensor");
        tensor.data().chunks_exact(N).map(|bytes| bytes.try_into().expect("N bytes")).collect()
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        self.chunks(name).into_iter().map(i64::from_le_bytes).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.integers(name).into_iter().map(|id| u32::try_from(id).expect("an id")).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.chunks(name).into_iter().map(f32::from_le_bytes).collect()
    }

    /// The masked batch without its padding, packed.
    fn batch(&self) -> PackedBatch {
        let (ids, labels) = (self.ids("batch_ids"), self.integers("batch_labels"));
        let width = ids.len() / 2;
        let mut batch = PackedBatch { starts: vec![0], ..Default::default() };
        for (ids, labels) in ids.chunks(width).zip(labels.chunks(width)) {
            let start = batch.tokens.len();
            let length = 1 + labels.iter().rposition(|&label| label >= 0).expect("something to learn");
            batch.tokens.extend(&ids[..length]);
            batch.starts.push(start + length);
            for row in (1..length).filter(|&row| labels[row] >= 0) {
                batch.rows.push(start + row - 1);
                batch.targets.push(ids[row]);
            }
        }
        batch
    }
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        // Not `>`: NaN must fail too.
        assert!((found - expected).abs() <= tolerance, "{what}: {found} at {at}, expected {expected}");
    }
}

#[test]
fn logits_equal_transformers() {
    for model in MODELS {
        let expected = Golden::of(model);
        let found = graph(&open(model), Adaptation::Frozen, false).logits(&expected.ids("input_ids")).expect("logits");
        assert_close(found.values(), &expected.floats("logits"), LOGIT_TOLERANCE, model);
    }
}

#[test]
fn logits_equal_the_engines() {
    for model in MODELS {
        let base = Arc::new(open(model));
        let tokens: Vec<u32> = Golden::of(model).ids("input_ids").into_iter().rev().collect();
        let found = graph(&base, Adaptation::Frozen, false).logits(&tokens).expect("logits");
        let engine = Model::load(base, ModelOptions { threads: 1, ..ModelOptions::default() }).expect("the base loads");
        let mut expected = Vec::new();
        let mut each = |_: usize, row: &[f32]| expected.extend_from_slice(row);
        engine.logits(&tokens, 0..tokens.len(), None, &mut each).expect("logits");
        assert_close(found.values(), &expected, LOGIT_TOLERANCE, model);
    }
}

#[test]
fn the_loss_of_a_masked_batch_equals_transformers() {
    for model in MODELS {
        let expected = Golden::of(model);
        let batch = expected.batch();
        let sum = graph(&open(model), Adaptation::Frozen, false).loss(&batch).expect("a loss");
        let (found, expected) = (sum / batch.targets.len() as f64, f64::from(expected.floats("loss")[0]));
        assert!((found - expected).abs() <= LOSS_TOLERANCE, "{model}: {found}, expected {expected}");
    }
}

#[test]
fn the_gradient_of_the_first_q_projection_equals_transformers() {
    for (model, checkpointing) in MODELS.into_iter().zip([false, true].into_iter().cycle()) {
        let (expected, base) = (Golden::of(model), open(model));
        let batch = expected.batch();
        let graph = graph(&base, Adaptation::Full, checkpointing);
        let sum = graph.accumulate(&batch, 1.0 / batch.targets.len() as f32).expect("a loss");
        let mean = sum / batch.targets.len() as f64;
        assert!((mean - f64::from(expected.floats("loss")[0])).abs() <= LOSS_TOLERANCE, "{model}: loss {mean}");

        let parameters = graph.parameters();
        let gradient = parameters[0].gradient();
        let stacked = gradient.as_ref().expect("a gradient").values();
        let expected = expected.floats("gradient");
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        // The q projection's rows come first in the stack of q, k and v.
        assert_close(&stacked[..expected.len()], &expected, GRADIENT_TOLERANCE * largest, model);
    }
}

#[test]
fn low_rank_factors_start_as_the_base() {
    let expected = Golden::of("tiny-qwen3");
    let adaptation = Adaptation::LowRank { rank: 4, scale: 2.0, seed: 7 };
    let found = graph(&open("tiny-qwen3"), adaptation, false).logits(&expected.ids("input_ids")).expect("logits");
    assert_close(found.values(), &expected.floats("logits"), LOGIT_TOLERANCE, "tiny-qwen3");
}
