//! An exported GGUF is the same model, whatever it was made from.

use crate::{golden, open, tiny};
use bitdelta_model::{
    Base, Dtype, Error,
    chat::{Message, Template},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn small(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn unchanged(base: &Base, path: &Path, dtype: Dtype) -> Base {
    base.export_gguf(path, dtype, &mut |_, values| Ok(values)).unwrap();
    open(path)
}

fn assert_same_words(before: &Base, after: &Base) {
    let text = "hello  World's 123\n\nna\u{ef}ve <|im_start|>\u{1f980}";
    assert_eq!(before.tokenizer.encode(text, true).unwrap(), after.tokenizer.encode(text, true).unwrap());
    let messages = [Message { role: "user".into(), content: "hello  world 123".into() }];
    let chat = |base: &Base| base.tokenizer.encode_chat(&messages, &Template::Model, true).map_err(|e| e.to_string());
    if before.tokenizer.chat_template().is_some() {
        assert_eq!(chat(before).unwrap(), chat(after).unwrap());
    }
}

#[test]
fn folders_of_every_family_keep_values_configuration_and_tokens() {
    for name in ["tiny-llama", "tiny-qwen3", "tiny-llama3"] {
        let (keep, before) = (tempfile::tempdir().unwrap(), open(&small(name)));
        let after = unchanged(&before, &keep.path().join("m.gguf"), Dtype::F32);
        for tensor in before.tensors() {
            let [wanted, found] = [&before, &after].map(|base| base.tensor_f32(&tensor.name).unwrap());
            assert_eq!(wanted, found, "{name} {}", tensor.name);
        }
        assert_eq!(before.config, after.config, "{name}");
        assert_same_words(&before, &after);
    }
}

#[test]
fn a_gguf_base_keeps_its_metadata_and_tensors_and_comes_out_changed_where_asked() {
    let keep = tempfile::tempdir().unwrap();
    let (before, path) = (tiny(), keep.path().join("m.gguf"));
    let name = "model.layers.0.self_attn.k_proj.weight";
    before
        .export_gguf(&path, Dtype::F32, &mut |tensor, mut values| {
            if tensor == name {
                // Row by row, so that a row out of place shows.
                values.iter_mut().enumerate().for_each(|(at, value)| *value += (at / 64) as f32);
            }
            Ok(values)
        })
        .unwrap();
    let after = open(&path);
    assert_eq!(before.config, after.config);
    assert_same_words(&before, &after);
    let (old, new) = (before.tensor_f32(name).unwrap(), after.tensor_f32(name).unwrap());
    assert!(old.iter().zip(&new).enumerate().all(|(at, (old, new))| old + (at / 64) as f32 == *new));
    // Once more gives the same bytes: nothing is lost or added by a round.
    let again = keep.path().join("again.gguf");
    unchanged(&after, &again, Dtype::F32);
    assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
}

#[test]
fn types_round_as_they_promise_and_vectors_stay_f32() {
    let (keep, before) = (tempfile::tempdir().unwrap(), open(&small("tiny-llama")));
    let name = "model.layers.0.mlp.down_proj.weight";
    let exact = before.tensor_f32(name).unwrap();
    let most = exact.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    for (dtype, share) in [(Dtype::F16, 1.0 / 2048.0), (Dtype::Bf16, 1.0 / 256.0), (Dtype::Q8_0, 1.0 / 250.0)] {
        let after = unchanged(&before, &keep.path().join(dtype.name()), dtype);
        assert_eq!(after.tensor(name).unwrap().dtype, dtype);
        assert_eq!(after.tensor("model.norm.weight").unwrap().dtype, Dtype::F32);
        let error = exact.iter().zip(after.tensor_f32(name).unwrap()).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(error <= share * most, "{dtype:?}: {error} of {most}");
    }
    // Rows of 72 are no whole blocks.
    let odd = unchanged(&open(&small("tiny-llama3")), &keep.path().join("odd.gguf"), Dtype::Q8_0);
    assert_eq!(odd.tensor(name).unwrap().dtype, Dtype::F16);
}

#[test]
fn a_refused_or_failed_export_leaves_nothing_and_overwrites_nothing() {
    let keep = tempfile::tempdir().unwrap();
    let path = keep.path().join("m.gguf");
    let mut calls = 0;
    let result = tiny().export_gguf(&path, Dtype::F32, &mut |_, mut values| {
        calls += 1;
        if calls == 3 {
            values.pop();
        }
        Ok(values)
    });
    assert!(matches!(result, Err(Error::Export { .. })), "{result:?}");
    assert_eq!(fs::read_dir(keep.path()).unwrap().count(), 0);
    let refused = |path: &Path, dtype| tiny().export_gguf(path, dtype, &mut |_, values| Ok(values)).unwrap_err();
    assert!(refused(&path, Dtype::Q4K).to_string().contains("Q4_K is not written"));
    let own = golden("tiny-llama.gguf");
    assert!(refused(&own, Dtype::F32).to_string().contains("there already"));
}

#[test]
fn a_tokenizer_without_a_name_in_gguf_is_refused() {
    let keep = tempfile::tempdir().unwrap();
    let folder = keep.path().join("odd");
    open(&small("tiny-llama")).export_hf(&folder, Dtype::F32, &mut |_, values| Ok(values)).unwrap();
    crate::edit_json(&folder.join("tokenizer.json"), |json| {
        json["normalizer"] = serde_json::json!({"type": "Lowercase"})
    });
    let error = open(&folder).export_gguf(&keep.path().join("m.gguf"), Dtype::F32, &mut |_, values| Ok(values));
    assert!(error.unwrap_err().to_string().contains("no name"));
}
