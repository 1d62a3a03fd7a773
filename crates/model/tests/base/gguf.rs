//! What is read from a GGUF file is the model that was put in.

use crate::{golden, tiny};
use bitdelta_model::{Architecture, Dtype, Error};
use std::fs;

#[test]
fn the_configuration_comes_from_metadata_and_tensors() {
    let base = tiny();
    let config = &base.config;
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.hidden, config.layers, config.heads, config.kv_heads, config.head_dim), (64, 1, 4, 2, 16));
    assert_eq!((config.intermediate, config.vocab, config.max_positions), (96, 300, 128));
    assert!(config.tied && !config.qk_norm);
    assert_eq!((config.eos.as_slice(), config.bos), ([2].as_slice(), None));
    assert_eq!(base.linears().len(), 7);
    assert_eq!(base.name, "tiny-llama");
}

#[test]
fn llama_q_and_k_rows_come_back_in_hf_order() {
    let base = tiny();
    let expected = fs::read(golden("tiny-llama.f32")).unwrap();
    let mut expected = expected.as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw));
    for module in ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"] {
        let values = base.tensor_f32(&format!("model.layers.0.{module}.weight")).unwrap();
        let expected: Vec<f32> = expected.by_ref().take(values.len()).collect();
        assert_eq!(values, expected, "{module}");
    }
}

#[test]
fn runs_of_rows_are_the_rows_of_the_whole() {
    let base = tiny();
    for tensor in base.tensors() {
        let whole = base.tensor_f32(&tensor.name).unwrap();
        let middle = tensor.rows / 3..tensor.rows;
        let mut rows = vec![0.0; middle.len() * tensor.cols];
        base.rows_f32(&tensor.name, middle.clone(), &mut rows).unwrap();
        assert_eq!(rows, whole[middle.start * tensor.cols..], "{}", tensor.name);
    }
}

#[test]
fn rows_outside_a_tensor_and_unknown_tensors_are_errors() {
    let base = tiny();
    let mut out = [0.0; 64];
    let error = base.rows_f32("model.norm.weight", 1..2, &mut out).unwrap_err();
    assert!(matches!(error, Error::Rows { rows: 1, .. }), "{error}");
    let error = base.rows_f32("model.norm.weight", 0..1, &mut out[..63]).unwrap_err();
    assert!(matches!(error, Error::Rows { expected: 64, got: 63, .. }), "{error}");
    let error = base.tensor_f32("lm_head.weight").unwrap_err();
    assert!(matches!(error, Error::NoSuchTensor { .. }), "{error}");
}

#[test]
fn only_plain_unpermuted_tensors_are_lent_raw() {
    let base = tiny();
    let raw = base.raw("model.layers.0.mlp.up_proj.weight").unwrap().unwrap();
    assert_eq!((raw.dtype, raw.rows, raw.cols, raw.bytes.len()), (Dtype::Bf16, 96, 64, 96 * 64 * 2));
    assert!(base.raw("model.layers.0.self_attn.k_proj.weight").unwrap().is_none(), "f16, but permuted");
    assert!(base.raw("model.layers.0.self_attn.v_proj.weight").unwrap().is_none(), "quantised");
}

#[test]
fn a_fingerprint_names_one_file_s_weights() {
    let (one, again) = (tiny(), tiny());
    assert_eq!(one.fingerprint(), again.fingerprint());
    assert_eq!(one.fingerprint().len(), 64);
    let mut bytes = fs::read(golden("tiny-llama.gguf")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("changed.gguf");
    fs::write(&changed, bytes).unwrap();
    // The last byte may be padding; the 256 before it hold values of the last tensor.
    let mut bytes = fs::read(&changed).unwrap();
    let at = bytes.len() - 40;
    bytes[at] ^= 1;
    fs::write(&changed, bytes).unwrap();
    assert_ne!(crate::open(&changed).fingerprint(), one.fingerprint());
}

#[test]
fn sizes_add_up() {
    let base = tiny();
    let weights: usize = base.tensors().iter().map(|tensor| tensor.rows * tensor.cols).sum();
    assert_eq!(base.bytes_f32(), 4 * weights as u64);
    assert!(base.stored_bytes() < base.bytes_f32() / 2);
}
