//! An exported folder is the same model.

use crate::{open, tiny, tiny_folder};
use bitdelta_model::{
    Base, Dtype, Error,
    chat::{Message, Template},
};
use std::fs;

#[test]
fn an_exported_folder_holds_the_same_values_configuration_and_tokens() {
    let (_keep, folder) = tiny_folder();
    let (gguf, hf) = (tiny(), open(&folder));
    assert_eq!(gguf.config, hf.config);
    for tensor in gguf.tensors() {
        assert_eq!(gguf.tensor_f32(&tensor.name).unwrap(), hf.tensor_f32(&tensor.name).unwrap(), "{}", tensor.name);
    }
    let messages = [Message { role: "user".into(), content: "hello  world 123\n\nÄ".into() }];
    let encode = |base: &bitdelta_model::Base| base.tokenizer.encode_chat(&messages, &Template::Model, true).unwrap();
    assert_eq!(encode(&gguf), encode(&hf));
    assert_ne!(gguf.fingerprint(), hf.fingerprint(), "a fingerprint names what is stored");
}

#[test]
fn config_json_speaks_to_both_generations_of_transformers() {
    let (_keep, folder) = tiny_folder();
    let config: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["rope_theta"], 10000.0);
    assert_eq!(config["rope_parameters"]["rope_theta"], 10000.0);
    assert_eq!(config["rope_parameters"]["rope_type"], "default");
    assert_eq!(config["torch_dtype"], "float32");
    assert_eq!(config["dtype"], "float32");
    assert_eq!(config["rms_norm_eps"], 1e-5);
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
}

#[test]
fn a_second_export_rounds_to_the_type_asked_for() {
    let (keep, folder) = tiny_folder();
    let base = open(&folder);
    for (dtype, error_max) in [(Dtype::F16, 1.0 / 2048.0), (Dtype::Bf16, 1.0 / 256.0)] {
        let half = keep.path().join(dtype.name());
        base.export_hf(&half, dtype, &mut |_, values| Ok(values)).unwrap();
        let half = open(&half);
        assert_eq!(half.tensors()[0].dtype, dtype);
        let name = "model.layers.0.mlp.down_proj.weight";
        let (exact, rounded) = (base.tensor_f32(name).unwrap(), half.tensor_f32(name).unwrap());
        for (exact, rounded) in exact.iter().zip(rounded) {
            assert!((exact - rounded).abs() <= exact.abs() * error_max + 1e-7, "{exact} {rounded}");
        }
    }
}

#[test]
fn a_failed_or_refused_export_leaves_nothing() {
    let keep = tempfile::tempdir().unwrap();
    let folder = keep.path().join("out");
    let mut calls = 0;
    let result = tiny().export_hf(&folder, Dtype::F32, &mut |_, mut values| {
        calls += 1;
        if calls == 3 {
            values.pop();
        }
        Ok(values)
    });
    assert!(matches!(result, Err(Error::Export { .. })), "{result:?}");
    assert_eq!(fs::read_dir(keep.path()).unwrap().count(), 0);

    assert!(matches!(tiny().export_hf(&folder, Dtype::Q4_0, &mut |_, values| Ok(values)), Err(Error::Export { .. })));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("mine"), "x").unwrap();
    assert!(matches!(tiny().export_hf(&folder, Dtype::F32, &mut |_, values| Ok(values)), Err(Error::Export { .. })));
    assert!(folder.join("mine").exists());
}

#[test]
fn a_bare_fine_tune_borrows_the_tokenizer_of_its_base_and_exports_with_it() {
    let (keep, folder) = tiny_folder();
    let base = tiny();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"] {
        fs::remove_file(folder.join(name)).unwrap();
    }
    let path = folder.to_str().unwrap();
    assert!(matches!(Base::open(path), Err(Error::MissingFile { .. })), "alone it cannot talk");
    let bare = Base::open_beside(path, &base).unwrap();
    assert!(std::sync::Arc::ptr_eq(&bare.tokenizer, &base.tokenizer));
    assert_eq!((&bare.config.eos, bare.config.bos), (&base.config.eos, base.config.bos));

    let whole = keep.path().join("whole");
    bare.export_hf(&whole, Dtype::F32, &mut |_, values| Ok(values)).unwrap();
    let messages = [Message { role: "user".into(), content: "hello 12".into() }];
    let encode = |base: &Base| base.tokenizer.encode_chat(&messages, &Template::Model, true).unwrap();
    assert_eq!(encode(&open(&whole)), encode(&base));
}

#[test]
fn a_folder_with_half_a_tokenizer_borrows_none() {
    let (_keep, folder) = tiny_folder();
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let error = Base::open_beside(folder.to_str().unwrap(), &tiny()).unwrap_err();
    assert!(matches!(error, Error::MissingFile { .. }), "{error}");
}
