//! Adapters of all kinds and of all kinds of damage, against a small base.

use crate::open;
use bitdelta_model::{Adapter, Base, Error, adapter::Factors};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A tensor's name, shape and values.
type Tensor<'a> = (&'a str, Vec<usize>, Vec<f32>);

/// Tied, 64 wide, two layers of (64, 32, 32, 64) attention and a 96-wide MLP.
fn tied() -> Base {
    open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-llama"))
}

/// With a head of its own and biases: 72 wide, 300 tokens.
fn untied() -> Base {
    open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-llama3"))
}

fn write(folder: &Path, config: &Value, tensors: &[Tensor]) {
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(folder.join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

fn config(change: &Value) -> Value {
    let mut config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["v_proj"] });
    config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    config
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32 / 8.0 - 1.0).collect()
}

const V: &str = "base_model.model.model.layers.1.self_attn.v_proj";

/// The two tensors of `V` with these shapes.
fn pair<'a>(names: &'a [String; 2], a: [usize; 2], b: [usize; 2]) -> Vec<Tensor<'a>> {
    let tensor = |name: &'a str, shape: [usize; 2]| (name, shape.to_vec(), ramp(shape[0] * shape[1]));
    vec![tensor(&names[0], a), tensor(&names[1], b)]
}

fn names(module: &str) -> [String; 2] {
    ["lora_A", "lora_B"].map(|side| format!("{module}.{side}.weight"))
}

/// The message that `tensors` are refused with.
fn refused(base: &Base, change: Value, tensors: &[Tensor]) -> String {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &config(&change), tensors);
    Adapter::open(folder.path(), base).unwrap_err().to_string()
}

#[test]
fn factors_come_as_they_are_with_their_scale() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &config(&json!({})), &pair(&names(V), [2, 64], [32, 2]));
    let adapter = Adapter::open(folder.path(), &tied()).unwrap();
    let tensor = "model.layers.1.self_attn.v_proj.weight";
    assert_eq!(adapter.tensors().collect::<Vec<_>>(), [tensor]);
    assert_eq!((adapter.rank(), adapter.parameters(), adapter.method()), (2, 192, "lora"));
    let expected = Factors { rank: 2, a: ramp(128), b: ramp(64), scale: 2.0, magnitude: None };
    assert_eq!(adapter.factors(tensor).unwrap(), Some(expected));
    assert_eq!(adapter.factors("model.layers.0.self_attn.v_proj.weight").unwrap(), None);
}

#[test]
fn an_embeddings_factors_are_turned_round() {
    let folder = tempfile::tempdir().unwrap();
    let module = "base_model.model.model.embed_tokens.lora_embedding";
    let [a, b] = ["A", "B"].map(|side| format!("{module}_{side}"));
    let tensors = [(a.as_str(), vec![2, 300], ramp(600)), (b.as_str(), vec![72, 2], ramp(144))];
    write(folder.path(), &config(&json!({})), &tensors);
    let adapter = Adapter::open(folder.path(), &untied()).unwrap();
    let Factors { a, b, .. } = adapter.factors("model.embed_tokens.weight").unwrap().unwrap();
    assert_eq!((a.len(), b.len()), (144, 600));
    assert_eq!((a[1], b[1]), (ramp(3)[2], ramp(301)[300]), "a (2, 72) is Bᵀ, b (300, 2) is Aᵀ");
    let message =
        refused(&tied(), json!({}), &[(tensors[0].0, vec![2, 288], ramp(576)), (tensors[1].0, vec![64, 2], ramp(128))]);
    assert!(message.contains("ensure_weight_tying"), "{message}");
}

#[test]
fn tensors_that_do_not_fit_are_refused_before_a_value_is_used() {
    let base = tied();
    let own = names(V);
    let one = |n: usize| pair(&own, [2, 64], [32, 2]).swap_remove(n);
    for (tensors, change, expected) in [
        (pair(&own, [2, 63], [32, 2]), json!({}), "lora_A has shape [2, 63], [2, 64] fits"),
        (pair(&own, [2, 64], [33, 2]), json!({}), "lora_B has shape [33, 2], [32, 2] fits"),
        (pair(&own, [2, 64], [32, 3]), json!({}), "lora_B has shape [32, 3]"),
        (pair(&own, [3, 64], [32, 3]), json!({}), "rank 3, the configuration says 2"),
        (pair(&own, [40, 64], [32, 40]), json!({ "r": 40 }), "rank 40 of a matrix of 32 x 64"),
        (pair(&own, [0, 64], [32, 0]), json!({ "r": 0 }), "rank 0 of a matrix"),
        (vec![one(0)], json!({}), "lora_A without its lora_B"),
        (vec![one(1)], json!({}), "lora_B without its lora_A"),
        (vec![], json!({}), "no tensors"),
        (pair(&own, [2, 64], [32, 2]), json!({ "use_dora": true }), "no lora_magnitude_vector"),
        (pair(&names("base_model.model.model.layers.7.self_attn.v_proj"), [2, 64], [32, 2]), json!({}), "layers.7"),
        (pair(&names("base_model.model.model.layers.0.mlp.experts"), [2, 64], [32, 2]), json!({}), "another model"),
        (pair(&names("base_model.model.lm_head"), [2, 64], [288, 2]), json!({}), "`lm_head`, which is no linear"),
        (pair(&names("base_model.model.../../../etc/passwd"), [2, 64], [32, 2]), json!({}), "../../../etc/passwd"),
        (pair(&names("base_model.model.model.embed_tokens"), [2, 288], [64, 2]), json!({}), "wrong kind of module"),
    ] {
        let message = refused(&base, change, &tensors);
        assert!(message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn magnitudes_and_whole_tensors_are_checked_too() {
    let (base, own) = (untied(), names(V));
    let magnitude = format!("{V}.lora_magnitude_vector");
    let with = |name, shape: Vec<usize>| {
        let mut tensors = pair(&own, [2, 72], [36, 2]);
        let count = shape.iter().product();
        tensors.push((name, shape, ramp(count)));
        tensors
    };
    let dora = json!({ "use_dora": true });
    let message = refused(&base, dora.clone(), &with(&magnitude, vec![35]));
    assert!(message.contains("expected 36 values"), "{message}");
    let message = refused(&base, json!({}), &with(&magnitude, vec![36]));
    assert!(message.contains("use_dora is not set"), "{message}");
    let message = refused(&base, dora, &[(&magnitude, vec![36], ramp(36))]);
    assert!(message.contains("a magnitude without factors"), "{message}");
    let message = refused(&base, json!({}), &with("base_model.model.lm_head.weight", vec![299, 72]));
    assert!(message.contains("[299, 72]") && message.contains("[300, 72]"), "{message}");
    let message = refused(&base, json!({}), &with("base_model.model.model.visual.weight", vec![1]));
    assert!(message.contains("visual"), "{message}");

    let folder = tempfile::tempdir().unwrap();
    let norm = "base_model.model.model.norm.weight";
    write(folder.path(), &config(&json!({ "modules_to_save": ["norm"] })), &with(norm, vec![72]));
    let adapter = Adapter::open(folder.path(), &base).unwrap();
    assert_eq!(adapter.whole("model.norm.weight"), Some(ramp(72)));
    assert_eq!(adapter.whole("model.layers.0.input_layernorm.weight"), None);
}

#[test]
fn a_copy_of_another_bases_embedding_is_pointed_out() {
    let (base, own) = (untied(), names(V));
    let copy = "base_model.model.model.embed_tokens.base_layer.weight";
    let same = base.tensor_f32("model.embed_tokens.weight").unwrap();
    for (values, warnings) in [(same, 0), (ramp(300 * 72), 1)] {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = pair(&own, [2, 72], [36, 2]);
        tensors.push((copy, vec![300, 72], values));
        write(folder.path(), &config(&json!({})), &tensors);
        let adapter = Adapter::open(folder.path(), &base).unwrap();
        assert_eq!(adapter.warnings().len(), warnings, "{:?}", adapter.warnings());
        assert_eq!(adapter.whole("model.embed_tokens.weight"), None);
    }
}

#[test]
fn files_that_are_missing_large_or_damaged_are_errors() {
    let (base, own) = (tied(), names(V));
    let folder = tempfile::tempdir().unwrap();
    let error = |expected: &str| {
        let message = Adapter::open(folder.path(), &base).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    };
    error("adapter_config.json: not there");
    fs::write(folder.path().join("adapter_config.json"), config(&json!({})).to_string()).unwrap();
    fs::write(folder.path().join("adapter_model.bin"), "pickle").unwrap();
    error("only safetensors are read");

    write(folder.path(), &config(&json!({})), &pair(&own, [2, 64], [32, 2]));
    let path: PathBuf = folder.path().join("adapter_model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(7) {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(Adapter::open(folder.path(), &base), Err(Error::Malformed { .. })), "{length}");
    }
    fs::write(&path, &whole).unwrap();
    fs::write(folder.path().join("adapter_config.json"), " ".repeat(2 << 20)).unwrap();
    error("bytes are no adapter's configuration");
    fs::write(folder.path().join("adapter_config.json"), "[]").unwrap();
    error("adapter_config.json");
}
