//! Files that are cut short, changed or wrong are refused with an error, never a panic, and it says what to do.

use crate::{edit_json, golden, tiny_folder};
use bitdelta_model::{Base, Error};
use proptest::prelude::*;
use serde_json::json;
use std::fs;

fn open_bytes(bytes: &[u8]) -> Result<Base, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, bytes).unwrap();
    Base::open(path.to_str().unwrap())
}

#[test]
fn a_gguf_cut_anywhere_is_an_error() {
    let bytes = fs::read(golden("tiny-llama.gguf")).unwrap();
    // Every third offset meets each kind of field in the header; the data behind it is one run of bytes.
    for length in (1..12_000).step_by(3).chain((12_000..bytes.len() - 64).step_by(997)) {
        let error = open_bytes(&bytes[..length]).expect_err("a cut file opened");
        assert!(matches!(error, Error::Malformed { .. }), "{length}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_gguf_header_never_panics(at in 4_usize..12_000, byte: u8) {
        let mut bytes = fs::read(golden("tiny-llama.gguf")).unwrap();
        bytes[at] = byte;
        if let Ok(base) = open_bytes(&bytes) {
            // What opens can also be read.
            for tensor in base.tensors() {
                prop_assert_eq!(base.tensor_f32(&tensor.name).unwrap().len(), tensor.rows * tensor.cols);
            }
        }
    }
}

#[test]
fn other_files_and_versions_are_named() {
    let error = open_bytes(b"PK\x03\x04 not a model").unwrap_err().to_string();
    assert!(error.contains("not a GGUF file"), "{error}");
    let mut bytes = fs::read(golden("tiny-llama.gguf")).unwrap();
    bytes[4] = 1;
    let error = open_bytes(&bytes).unwrap_err().to_string();
    assert!(error.contains("GGUF version 1"), "{error}");
    bytes[4..8].copy_from_slice(&[0, 0, 0, 3]);
    let error = open_bytes(&bytes).unwrap_err().to_string();
    assert!(error.contains("big-endian"), "{error}");
}

#[test]
fn safetensors_cut_anywhere_in_the_header_are_an_error() {
    let (_keep, folder) = tiny_folder();
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for length in (1..=header).step_by(5).chain([bytes.len() - 1]) {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = Base::open(folder.to_str().unwrap()).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{length}: {error}");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn weights_of_another_model_are_refused_by_tensor_and_shape() {
    let (_keep, folder) = tiny_folder();
    let config = folder.join("config.json");
    edit_json(&config, |json| json["intermediate_size"] = json!(128));
    let error = Base::open(folder.to_str().unwrap()).unwrap_err();
    assert!(
        matches!(&error, Error::Shape { name, expected, got, .. }
            if name == "model.layers.0.mlp.gate_proj.weight" && expected == &[128, 64] && got == &[96, 64]),
        "{error}"
    );
    edit_json(&config, |json| {
        json["intermediate_size"] = json!(96);
        json["num_hidden_layers"] = json!(2);
    });
    let error = Base::open(folder.to_str().unwrap()).unwrap_err();
    assert!(
        matches!(&error, Error::MissingTensor { name, .. } if name == "model.layers.1.input_layernorm.weight"),
        "{error}"
    );
}

#[test]
fn a_folder_without_a_file_says_which() {
    for (file, named) in [
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer.json"),
        ("model.safetensors", "model.safetensors"),
    ] {
        let (_keep, folder) = tiny_folder();
        fs::remove_file(folder.join(file)).unwrap();
        let error = Base::open(folder.to_str().unwrap()).unwrap_err();
        assert!(matches!(error, Error::MissingFile { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    let (_keep, folder) = tiny_folder();
    let index = json!({ "weight_map": { "model.norm.weight": "../../etc/passwd" } });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let error = Base::open(folder.to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("not the name of a file in this folder"), "{error}");
}

#[test]
fn a_path_that_is_nothing_says_what_to_pass() {
    let error = Base::open("./no/such/model").unwrap_err().to_string();
    assert!(error.contains("no/such/model") && error.contains("model folder"), "{error}");
}
