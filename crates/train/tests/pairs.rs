//! Claims about pairs: what compressing, exporting and evaluating a small model and its fine-tune give.

#![allow(clippy::unwrap_used)]

use bitdelta_delta::{BitDeltaConfig, Variant};
use bitdelta_engine::{Model, ModelOptions, check_fits, prompt};
use bitdelta_model::{
    Base, Dtype,
    chat::{Message, Template},
};
use bitdelta_train::{
    Error,
    compress::compress_pair,
    data::Conversation,
    evaluate::{
        Report, Subject, evaluate,
        precision::{Side, compare},
        recorded_template, samples,
    },
    merge::export_hf,
    progress::Silent,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn open(path: &Path) -> Base {
    Base::open(path.to_str().unwrap()).unwrap()
}

fn load(path: &Path) -> Model {
    Model::load(Arc::new(open(path)), ModelOptions::default()).unwrap()
}

/// The figures of a variant in a file of 1000 bytes, over two conversations.
fn figures(base: &Model, variant: Variant, finetuned: &Model) -> Report {
    let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let conversation =
        Conversation { messages: vec![turn("user", "hello there"), turn("assistant", "good day to you")] };
    let subject = Subject { base, variant, path: Path::new("v"), bytes: 1000, finetuned: Some(finetuned) };
    evaluate(subject, &Template::ChatMl, &[conversation.clone(), conversation], &Silent).unwrap()
}

fn config(bits: u8) -> BitDeltaConfig {
    BitDeltaConfig { bits, ..Default::default() }
}

/// tiny-llama with `change` applied to each tensor, in a folder.
fn changed(folder: &Path, change: &dyn Fn(&str, &mut [f32])) -> PathBuf {
    let path = folder.join("changed");
    let edit = &mut |name: &str, mut values: Vec<f32>| {
        change(name, &mut values);
        Ok(values)
    };
    open(&golden("tiny-llama")).export_hf(&path, Dtype::F32, edit).unwrap();
    path
}

#[test]
fn more_bits_come_closer_and_norms_are_kept() {
    let (base, tuned) = (open(&golden("tiny-llama")), open(&golden("tiny-llama-ft")));
    let errors = [1, 2, 4].map(|bits| {
        let (variant, report) = compress_pair(&base, &tuned, &config(bits), &Silent).unwrap();
        assert_eq!((variant.linears.len(), variant.extras.len()), (14, 5));
        assert_eq!(report.vectors, 5);
        check_fits(&base, &variant, Path::new("v")).unwrap();
        report.relative_error
    });
    assert!(errors[0] < 0.7 && errors[1] < 0.6 * errors[0] && errors[2] < 0.4 * errors[1], "{errors:?}");
}

#[test]
fn an_exported_model_is_base_plus_what_the_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let (base, tuned) = (open(&golden("tiny-llama")), open(&golden("tiny-llama-ft")));
    let uncompressed = BitDeltaConfig { enable_compression: false, clip_outliers: false, ..Default::default() };
    let (variant, _) = compress_pair(&base, &tuned, &uncompressed, &Silent).unwrap();
    let path = folder.path().join("v.safetensors");
    variant.write(&path).unwrap();
    let merged = folder.path().join("merged");
    export_hf(&base, &Variant::read(&path).unwrap(), &path, &merged, Dtype::F32, &Silent).unwrap();
    let merged = open(&merged);
    for tensor in base.tensors() {
        let (found, wanted) = (merged.tensor_f32(&tensor.name).unwrap(), tuned.tensor_f32(&tensor.name).unwrap());
        let before = base.tensor_f32(&tensor.name).unwrap();
        for ((found, wanted), before) in found.iter().zip(&wanted).zip(before) {
            // The delta is rounded to f16 (2^-11 of itself), the sum to f32.
            let slack = (wanted - before).abs() / 1024.0 + 1e-6;
            assert!((found - wanted).abs() <= slack, "{}: {found} {wanted}", tensor.name);
        }
    }
}

#[test]
fn a_variant_of_another_base_is_refused_by_name() {
    let (base, tuned) = (open(&golden("tiny-llama")), open(&golden("tiny-llama-ft")));
    let (variant, _) = compress_pair(&base, &tuned, &config(1), &Silent).unwrap();
    let error = check_fits(&tuned, &variant, Path::new("user.safetensors")).unwrap_err().to_string();
    assert!(error.contains("user.safetensors") && error.contains("tiny-llama"), "{error}");
}

#[test]
fn models_of_different_shapes_are_no_pair() {
    let error = compress_pair(&open(&golden("tiny-llama")), &open(&golden("tiny-qwen3")), &config(1), &Silent);
    assert!(matches!(error, Err(Error::Pair { .. })), "{error:?}");
}

#[test]
fn equal_models_make_a_variant_of_nothing_and_say_so() {
    let base = open(&golden("tiny-llama"));
    let (variant, report) = compress_pair(&base, &base, &config(1), &Silent).unwrap();
    assert_eq!((report.linears, report.unchanged, variant.payload_bytes()), (0, 14, 0));
    assert!(report.warnings.iter().any(|warning| warning.contains("changes nothing")), "{:?}", report.warnings);
}

#[test]
fn a_moved_embedding_is_carried_and_scores_like_the_merged_model() {
    let folder = tempfile::tempdir().unwrap();
    // As after training: some tokens moved, the others stand still.
    let tuned = changed(folder.path(), &|name, values| {
        if name.contains("embed_tokens") {
            let half = values.len() / 2;
            values[..half].iter_mut().for_each(|x| *x *= 1.5);
        }
    });
    let base = load(&golden("tiny-llama"));
    let whole = BitDeltaConfig { enable_compression: false, ..Default::default() };
    for (config, error_max) in [(whole, 1e-3), (config(1), 0.9), (config(4), 0.2)] {
        let (variant, report) = compress_pair(base.base(), &open(&tuned), &config, &Silent).unwrap();
        assert_eq!((report.linears, report.unchanged, report.tables), (0, 14, 1));
        assert_eq!((variant.linears.len(), report.weights, &report.warnings[..]), (15, 61440, &config.warnings()[..]));
        assert_eq!(report.worst.as_ref().unwrap().0, "model.embed_tokens.weight");
        assert!(report.relative_error < error_max, "{report:?}");

        let merged = tempfile::tempdir().unwrap();
        let merged = merged.path().join("merged");
        export_hf(base.base(), &variant, Path::new("v"), &merged, Dtype::F32, &Silent).unwrap();
        let figures = figures(&base, variant, &load(&merged));
        assert_eq!(figures.bits_per_weight, 8.0 * 1000.0 / 61440.0, "the embedding is not in the denominator");
        let merged = figures.loss_finetuned.unwrap();
        assert!((figures.loss_variant - merged).abs() < 1e-4 && figures.kl.unwrap() < 1e-6, "{figures:?}");
        assert!((figures.loss_base - merged).abs() > 1e-2, "{figures:?}");
    }
}

#[test]
fn nan_in_a_fine_tune_is_named_by_tensor_row_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = changed(folder.path(), &|name, values| {
        if name.ends_with("layers.1.mlp.up_proj.weight") {
            values[64 * 3 + 5] = f32::NAN;
        }
    });
    let error = compress_pair(&open(&golden("tiny-llama")), &open(&tuned), &config(1), &Silent).unwrap_err();
    assert!(error.to_string().contains("layers.1.mlp.up_proj.weight[3, 5] is NaN"), "{error}");
}

#[test]
fn a_variant_close_to_its_fine_tune_scores_like_it() {
    let (base, tuned) = (load(&golden("tiny-llama")), load(&golden("tiny-llama-ft")));
    let tokenizer = &base.base().tokenizer;
    let figures = |variant| figures(&base, variant, &tuned);
    let compress = |config: &BitDeltaConfig| compress_pair(base.base(), tuned.base(), config, &Silent).unwrap().0;
    let signs = figures(compress(&config(1)));
    let whole = BitDeltaConfig { enable_compression: false, clip_outliers: false, ..Default::default() };
    let whole = figures(compress(&whole));
    assert_eq!((whole.conversations, whole.answers), (2, 2));
    assert_eq!(whole.bits_per_weight, 8.0 * 1000.0 / 61440.0);
    let finetuned = whole.loss_finetuned.unwrap();
    // f16 deltas: the difference that rounding makes is far below what signs lose.
    assert!((whole.loss_variant - finetuned).abs() < 1e-2 && whole.kl.unwrap() < 1e-3, "{whole:?}");
    assert!(signs.kl.unwrap() > 10.0 * whole.kl.unwrap(), "{signs:?}");
    assert_eq!(signs.loss_base, whole.loss_base);
    assert_eq!(recorded_template(&compress(&config(1)), tokenizer), Some(Template::Model));
}

#[test]
fn a_variant_with_experiences_is_evaluated_as_it_is_asked() {
    let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let talk = [turn("user", "hello there"), turn("assistant", "good day to you")];
    let experiences = vec!["Be brief.".to_owned()];
    let told = Conversation { messages: prompt::experienced(&talk, &experiences).into_owned() };
    let talk = Conversation { messages: talk.to_vec() };
    let base = load(&golden("tiny-llama"));
    let tuned = open(&golden("tiny-llama-ft"));
    let (mut words, _) = compress_pair(base.base(), &tuned, &config(1), &Silent).unwrap();
    words.linears.iter_mut().for_each(|linear| linear.parts.clear());
    words.extras.clear();
    words.info.experiences = experiences;
    let measure = |variant: &Variant, conversation: &Conversation| {
        let variant = variant.clone();
        let subject = Subject { base: &base, variant, path: Path::new("v"), bytes: 1, finetuned: None };
        evaluate(subject, &Template::ChatMl, std::slice::from_ref(conversation), &Silent).unwrap()
    };
    let found = measure(&words, &talk);
    assert_eq!(found.loss_variant, measure(&words, &told).loss_base, "the base that is told");
    assert_ne!(found.loss_variant, found.loss_base);
}

#[test]
fn two_sides_are_compared_by_the_figures_that_evaluation_gives_whatever_the_length() {
    let turn = |role: &str, content: String| Message { role: role.into(), content };
    let talk = |times: usize| Conversation {
        messages: vec![turn("user", "hello there".into()), turn("assistant", "good day to you ".repeat(times))],
    };
    let (base, tuned) = (load(&golden("tiny-llama")), load(&golden("tiny-llama-ft")));
    let (variant, _) = compress_pair(base.base(), tuned.base(), &config(1), &Silent).unwrap();
    let talks = [talk(1), talk(24)];
    let samples = samples(&base.base().tokenizer, &Template::ChatMl, &talks, &[]).unwrap();
    assert!(samples[1].ids.len() > 257, "more than one window of positions: {}", samples[1].ids.len());
    let resident = base.prepare("v", Path::new("v"), variant.clone()).unwrap();
    let (exact, rounded) = (Side { model: &tuned, variant: None }, Side { model: &base, variant: Some(&resident) });
    let found = compare(exact, rounded, &samples, &Silent).unwrap();

    let subject = Subject { base: &base, variant, path: Path::new("v"), bytes: 1, finetuned: Some(&tuned) };
    let wanted = evaluate(subject, &Template::ChatMl, &talks, &Silent).unwrap();
    // The sums have another order.
    let same = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-9, "{found} {wanted}");
    assert_eq!(found.positions as u64, wanted.tokens);
    assert_eq!(found.positions_all, samples.iter().map(|sample| sample.ids.len() - 1).sum::<usize>());
    same(found.loss_exact, wanted.loss_finetuned.unwrap());
    same(found.loss, wanted.loss_variant);
    same(found.loss_change, wanted.loss_variant / wanted.loss_finetuned.unwrap() - 1.0);
    same(found.kl, wanted.kl.unwrap());
    assert!(found.agreement > 0.0 && found.agreement < 1.0, "{found:?}");
    assert_eq!(compare(exact, exact, &samples, &Silent).unwrap().agreement_all, 1.0);

    let mut unanswered = samples;
    unanswered.iter_mut().for_each(|sample| sample.is_answer.fill(false));
    let error = compare(exact, rounded, &unanswered, &Silent).unwrap_err().to_string();
    assert!(error.contains("no conversation has an answer"), "{error}");
}
