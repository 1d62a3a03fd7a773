//! Claims about adapters that come and go, and about variants that move to another base.

#![allow(clippy::unwrap_used)]

use bitdelta_delta::{BitDeltaConfig, Part, Variant, part};
use bitdelta_engine::{Model, ModelOptions};
use bitdelta_model::{
    Adapter, Base, Dtype,
    adapter::{self, Factors},
    chat::{Message, Template},
};
use bitdelta_train::{
    Error,
    compress::compress_pair,
    data::Conversation,
    evaluate::{Subject, evaluate},
    import::{Keep, import},
    merge::{export_adapter, export_gguf},
    progress::Silent,
    rebase::{Method, Report, Request, rebase},
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn open(path: &Path) -> Base {
    Base::open(path.to_str().unwrap()).unwrap()
}

/// Deterministic values of about `size`.
fn noise(n: usize, seed: usize, size: f32) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 613) as f32 / 306.0 - 1.0).map(|x| x * size).collect()
}

/// An adapter of `rank` on every linear of `base`, in a folder.
fn adapter(base: &Base, folder: &Path, rank: usize) -> PathBuf {
    let modules = base.linears().iter().enumerate().map(|(seed, linear)| {
        let (a, b) = (noise(rank * linear.cols, seed, 0.1), noise(linear.rows * rank, seed + 500, 0.1));
        (linear.name.clone(), Factors { rank, a, b, scale: 0.5, magnitude: None })
    });
    let path = folder.join("adapter");
    adapter::write(base, modules.collect(), &path).unwrap();
    path
}

/// Adds tensors to an adapter's file and settings to its configuration.
fn amend(folder: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)], settings: serde_json::Value) {
    let (file, config) = (folder.join("adapter_model.safetensors"), folder.join("adapter_config.json"));
    let bytes = std::fs::read(&file).unwrap();
    let mut all: Vec<(String, Vec<usize>, Vec<u8>)> = safetensors::SafeTensors::deserialize(&bytes)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.shape().to_vec(), view.data().to_vec()))
        .collect();
    all.extend(tensors.iter().map(|(name, shape, values)| {
        (name.clone(), shape.clone(), values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }));
    let views = all.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    std::fs::write(&config, json.to_string()).unwrap();
}

fn product(factors: &Factors) -> Vec<f32> {
    let Factors { rank, a, b, scale, .. } = factors;
    let cols = a.len() / rank;
    let sum = |at: usize| (0..*rank).map(|r| b[at / cols * rank + r] * a[r * cols + at % cols]).sum::<f32>();
    (0..b.len() / rank * cols).map(|at| scale * sum(at)).collect()
}

fn distance(found: &[f32], wanted: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut found.iter().zip(wanted).map(|(x, y)| x - y)) / norm(&mut wanted.iter().copied())
}

#[test]
fn an_adapter_is_held_exactly_or_within_its_bits() {
    let (keep, base) = (tempfile::tempdir().unwrap(), open(&golden("tiny-llama")));
    let adapter = Adapter::open(&adapter(&base, keep.path(), 6), &base).unwrap();
    let mut last = f32::INFINITY;
    let bits = [(2, 0.6), (3, 0.3), (4, 0.15), (8, 0.02)].map(|(bits, error_max)| (Keep::Bits(bits), error_max));
    for (keep, error_max) in bits.into_iter().chain([(Keep::Exactly, 1e-6)]) {
        let (variant, report) = import(&base, &adapter, keep, &Silent).unwrap();
        assert_eq!((report.method, report.rank, report.linears, report.tables), ("lora", 6, 14, 0));
        assert!(report.relative_error <= error_max && report.relative_error < last, "{keep:?}: {report:?}");
        last = report.relative_error;
        for (linear, delta) in base.linears().iter().zip(&variant.linears) {
            let wanted = product(&adapter.factors(&linear.name).unwrap().unwrap());
            let found = part::dequantize(&delta.parts, delta.rows, delta.cols);
            assert!(distance(&found, &wanted) <= 1.5 * error_max, "{keep:?} {}", linear.name);
        }
    }
    assert!(matches!(import(&base, &adapter, Keep::Bits(9), &Silent), Err(Error::Setting { .. })));
}

#[test]
fn an_adapter_is_cut_to_a_files_size_and_the_larger_one_is_nearer() {
    let (folder, base) = (tempfile::tempdir().unwrap(), open(&golden("tiny-llama")));
    let adapter = Adapter::open(&adapter(&base, folder.path(), 6), &base).unwrap();
    let at = |keep| {
        let (variant, report) = import(&base, &adapter, keep, &Silent).unwrap();
        (variant.to_bytes().unwrap().len() as u64, report.relative_error)
    };
    let mut last = 1.0;
    for bytes in [3_500, 4_000, 5_000] {
        let (found, error) = at(Keep::Bytes(bytes));
        assert!(found <= bytes && found > bytes * 9 / 10, "{found} of {bytes}");
        assert!(error < last, "{error} at {bytes}");
        last = error;
    }
    // Where eight bits an entry fit, or the entries as they are, so it is.
    for finer in [Keep::Bits(8), Keep::Exactly] {
        let (bytes, error) = at(finer);
        assert_eq!(at(Keep::Bytes(bytes)), (bytes, error));
        assert!(at(Keep::Bytes(bytes - 1)).1 > error);
    }
    let too_small = import(&base, &adapter, Keep::Bytes(100), &Silent);
    assert!(matches!(too_small, Err(Error::Budget { bytes: 100, .. })), "{too_small:?}");
}

#[test]
fn dora_is_its_factors_and_the_stretch_of_the_bases_rows() {
    let (keep, base) = (tempfile::tempdir().unwrap(), open(&golden("tiny-llama")));
    let folder = adapter(&base, keep.path(), 3);
    let magnitudes: Vec<_> = base
        .linears()
        .iter()
        .enumerate()
        .map(|(seed, linear)| {
            let module = linear.name.strip_suffix(".weight").unwrap();
            let values = noise(linear.rows, seed, 0.5).iter().map(|x| x + 1.5).collect();
            (format!("base_model.model.{module}.lora_magnitude_vector"), vec![linear.rows], values)
        })
        .collect();
    amend(&folder, &magnitudes, serde_json::json!({ "use_dora": true }));
    let adapter = Adapter::open(&folder, &base).unwrap();
    for (keep, error_max) in [(Keep::Exactly, 0.01), (Keep::Bits(4), 0.2)] {
        let (variant, report) = import(&base, &adapter, keep, &Silent).unwrap();
        assert_eq!((report.method, report.linears), ("dora", 14));
        assert!(report.relative_error <= error_max, "{report:?}");
        for (linear, delta) in base.linears().iter().zip(&variant.linears) {
            let factors = adapter.factors(&linear.name).unwrap().unwrap();
            let weights = base.tensor_f32(&linear.name).unwrap();
            let mut wanted: Vec<f32> = product(&factors).iter().zip(&weights).map(|(x, w)| x + w).collect();
            let magnitude = factors.magnitude.unwrap();
            for (row, m) in wanted.chunks_mut(linear.cols).zip(&magnitude) {
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.iter_mut().for_each(|x| *x *= m / norm);
            }
            wanted.iter_mut().zip(&weights).for_each(|(x, w)| *x -= w);
            let found = part::dequantize(&delta.parts, delta.rows, delta.cols);
            assert!(distance(&found, &wanted) <= error_max * 1.5, "{}", linear.name);
        }
    }
    let (variant, _) = import(&base, &adapter, Keep::Exactly, &Silent).unwrap();
    let error = export_adapter(&base, &variant, Path::new("v"), &keep.path().join("back")).unwrap_err().to_string();
    assert!(error.contains("q_proj.weight holds a dense part"), "{error}");
}

#[test]
fn whole_norms_and_heads_become_differences() {
    let (keep, base) = (tempfile::tempdir().unwrap(), open(&golden("tiny-llama3")));
    let folder = adapter(&base, keep.path(), 2);
    let moved = |name: &str| -> Vec<f32> { base.tensor_f32(name).unwrap().iter().map(|x| x * 1.25 + 0.125).collect() };
    let saved = |name: &str, shape: Vec<usize>| (format!("base_model.model.{name}"), shape, moved(name));
    let tensors = [
        saved("lm_head.weight", vec![300, 72]),
        saved("model.norm.weight", vec![72]),
        saved("model.layers.0.self_attn.q_proj.bias", vec![72]),
    ];
    amend(&folder, &tensors, serde_json::json!({ "modules_to_save": ["lm_head", "norm"], "bias": "lora_only" }));
    let adapter = Adapter::open(&folder, &base).unwrap();
    let (variant, report) = import(&base, &adapter, Keep::Exactly, &Silent).unwrap();
    assert_eq!((report.linears, report.tables, report.vectors), (14, 1, 2));
    let merged = keep.path().join("merged.gguf");
    export_gguf(&base, &variant, Path::new("v"), &merged, Dtype::F32, &Silent).unwrap();
    let merged = open(&merged);
    for (name, _, wanted) in &tensors {
        let found = merged.tensor_f32(name.strip_prefix("base_model.model.").unwrap()).unwrap();
        assert!(distance(&found, wanted) < 1e-3, "{name}");
    }
    let error = export_adapter(&base, &variant, Path::new("v"), &keep.path().join("back")).unwrap_err().to_string();
    assert!(error.contains("changes model.layers.0.self_attn.q_proj.bias"), "{error}");
}

#[test]
fn values_that_are_not_finite_are_named() {
    let (keep, base) = (tempfile::tempdir().unwrap(), open(&golden("tiny-llama")));
    let linear = &base.linears()[3];
    for (value, kept) in [(f32::NAN, Keep::Exactly), (f32::INFINITY, Keep::Bits(4))] {
        let mut b = noise(linear.rows * 2, 1, 0.1);
        b[5] = value;
        let factors = Factors { rank: 2, a: noise(2 * linear.cols, 2, 0.1), b, scale: 1.0, magnitude: None };
        let folder = keep.path().join(format!("{value}"));
        adapter::write(&base, vec![(linear.name.clone(), factors)], &folder).unwrap();
        let adapter = Adapter::open(&folder, &base).unwrap();
        let message = import(&base, &adapter, kept, &Silent).unwrap_err().to_string();
        assert!(message.contains("o_proj.weight (B)[2, 1]"), "{message}");
    }
}

#[test]
fn several_low_rank_parts_leave_as_one_adapter_and_come_back() {
    let (keep, base) = (tempfile::tempdir().unwrap(), open(&golden("tiny-llama")));
    let first = Adapter::open(&adapter(&base, keep.path(), 4), &base).unwrap();
    let (mut variant, _) = import(&base, &first, Keep::Exactly, &Silent).unwrap();
    let (second, _) = import(&base, &first, Keep::Bits(4), &Silent).unwrap();
    // One linear changed by two parts, one by none.
    variant.linears[2].parts.extend(second.linears[2].parts.clone());
    variant.linears[5].parts.clear();
    let folder = keep.path().join("back");
    export_adapter(&base, &variant, Path::new("v"), &folder).unwrap();
    let back = Adapter::open(&folder, &base).unwrap();
    assert_eq!((back.rank(), back.tensors().count()), (8, 13));
    let (again, _) = import(&base, &back, Keep::Exactly, &Silent).unwrap();
    for (before, after) in variant.linears.iter().zip(&again.linears) {
        let [before, after] = [before, after].map(|delta| part::dequantize(&delta.parts, delta.rows, delta.cols));
        assert!(before.iter().zip(&after).all(|(x, y)| (x - y).abs() < 1e-6));
    }
    variant.linears.iter_mut().for_each(|delta| delta.parts.clear());
    let error = export_adapter(&base, &variant, Path::new("v"), &keep.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("changes nothing"), "{error}");
}

/// tiny-llama, its fine-tune as a variant at `bits`, and a newer tiny-llama whose weights moved by `share`.
fn versions(keep: &Path, bits: u8, share: f32) -> (Base, Base, Base, Variant) {
    let (old, tuned) = (open(&golden("tiny-llama")), open(&golden("tiny-llama-ft")));
    let path = keep.join("new");
    let mut seed = 0;
    old.export_hf(&path, Dtype::F32, &mut |_, mut values| {
        seed += 1;
        let size = values.iter().map(|x| x.abs()).sum::<f32>() / values.len() as f32 * share;
        let noise = noise(values.len(), seed, size);
        values.iter_mut().zip(noise).for_each(|(value, noise)| *value += noise);
        Ok(values)
    })
    .unwrap();
    let config = BitDeltaConfig { bits, clip_outliers: false, ..Default::default() };
    let (variant, _) = compress_pair(&old, &tuned, &config, &Silent).unwrap();
    (old, tuned, open(&path), variant)
}

/// Of a few sentences the one that `variant` likes most beside its base: models of random weights know no language.
fn conversations(base: &Base, variant: &Variant) -> Vec<Conversation> {
    let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let model = Model::load(Arc::new(open(&base.path)), ModelOptions::default()).unwrap();
    let gain = |text: &str| {
        let talk = Conversation { messages: vec![turn("user", "hello"), turn("assistant", text)] };
        let (variant, path) = (variant.clone(), Path::new("v"));
        let subject = Subject { base: &model, variant, path, bytes: 1, finetuned: None };
        let report = evaluate(subject, &Template::ChatMl, std::slice::from_ref(&talk), &Silent).unwrap();
        (report.loss_base - report.loss_variant, talk)
    };
    let texts = ["good day", "a b c", "1 2 3", "zebra", "no!", "what is it?", "yes", "(x)", "the end", "oh well"];
    let (gain, talk) = texts.iter().map(|text| gain(text)).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    assert!(gain > 0.1, "the variant likes nothing ({gain})");
    vec![talk]
}

fn moved(
    (from, to): (&Base, &Base),
    variant: &Variant,
    finetuned: Option<&Base>,
    data: Option<&[Conversation]>,
    method: Option<Method>,
) -> Result<(Variant, Report), Error> {
    let again = |base: &Base| Arc::new(open(&base.path));
    let request = Request {
        variant,
        path: Path::new("user.safetensors"),
        from: again(from),
        to: again(to),
        finetuned,
        conversations: data,
        lessons: None,
        template: Some(Template::ChatMl),
        method,
        options: ModelOptions::default(),
    };
    rebase(&request, (&Silent, &AtomicBool::new(false)))
}

#[test]
fn a_variant_moves_to_a_new_base_by_keeping_or_from_its_fine_tune() {
    let keep = tempfile::tempdir().unwrap();
    let (old, tuned, new, variant) = versions(keep.path(), 4, 0.02);
    let (recomputed, report) = moved((&old, &new), &variant, Some(&tuned), None, None).unwrap();
    assert_eq!((report.method, report.before, report.after), (Method::Recompute, None, None));
    assert!(report.base_moved > 0.0 && report.base_moved < 0.05, "{report:?}");
    assert_eq!((&recomputed.info.base, &recomputed.info.config), (&new.fingerprint().to_owned(), &variant.info.config));
    assert_eq!(recomputed.info.notes["rebased"]["from_base"], old.fingerprint());
    // On the new base it is the fine-tune, to the quantiser's error of the difference.
    let name = &new.linears()[0].name;
    let mut weights = new.tensor_f32(name).unwrap();
    part::add_to(&recomputed.linears[0].parts, &mut weights, new.linears()[0].cols);
    assert!(distance(&weights, &tuned.tensor_f32(name).unwrap()) < 0.1);

    let data = conversations(&old, &variant);
    for finetuned in [None, Some(&tuned)] {
        let (best, report) = moved((&old, &new), &variant, finetuned, Some(&data), None).unwrap();
        let before = report.before.unwrap();
        assert!(before.variant < before.base, "{report:?}");
        assert_eq!(report.tried.len(), 1 + usize::from(finetuned.is_some()));
        let losses: Vec<f64> = report.tried.iter().map(|tried| tried.losses.unwrap().variant).collect();
        let after = report.after.unwrap();
        assert!(losses.iter().all(|loss| after.variant <= *loss) && after.variant < after.base, "{report:?}");
        assert_eq!(best.info.base, new.fingerprint());
    }
    let (refitted, report) = moved((&old, &new), &variant, None, Some(&data), Some(Method::Refit)).unwrap();
    assert_eq!(
        (report.method, report.tried.len(), &refitted.info.base),
        (Method::Refit, 1, &new.fingerprint().to_owned())
    );
    assert_ne!(refitted.linears, variant.linears);
    assert!(report.after.unwrap().variant < report.after.unwrap().base, "{report:?}");
}

#[test]
fn what_nobody_can_vouch_for_is_not_moved() {
    let keep = tempfile::tempdir().unwrap();
    let (old, tuned, new, variant) = versions(keep.path(), 1, 0.02);
    let refused = |bases: (&Base, &Base), finetuned, data, method| {
        moved(bases, &variant, finetuned, data, method).unwrap_err().to_string()
    };
    let message = refused((&old, &new), None, None, None);
    assert!(message.contains("--data") && message.contains("--finetuned"), "{message}");
    assert!(refused((&old, &new), None, None, Some(Method::Recompute)).contains("needs the fine-tune"));
    assert!(refused((&old, &new), Some(&tuned), None, Some(Method::Refit)).contains("--data"));
    assert!(refused((&old, &old), Some(&tuned), None, None).contains("the same base"));
    assert!(refused((&new, &old), Some(&tuned), None, None).contains("was made on base"));
    let other = open(&golden("tiny-qwen3"));
    assert!(refused((&old, &other), Some(&tuned), None, None).contains("built differently"));
    assert!(matches!(moved((&old, &new), &variant, Some(&other), None, None), Err(Error::Pair { .. })));

    let vocabulary = keep.path().join("vocabulary");
    new.export_hf(&vocabulary, Dtype::F32, &mut |_, values| Ok(values)).unwrap();
    let path = vocabulary.join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("<|endoftext|>", "<|end|>", 1)).unwrap();
    let other = open(&vocabulary);
    assert!(refused((&old, &other), Some(&tuned), None, None).contains("other tokenizers"));
}

#[test]
fn a_variant_that_harms_on_the_new_base_is_refused_with_both_losses() {
    let keep = tempfile::tempdir().unwrap();
    let (old, _, new, mut variant) = versions(keep.path(), 1, 0.02);
    let data = conversations(&old, &variant);
    // Far too large a change of everything.
    for delta in &mut variant.linears {
        for part in &mut delta.parts {
            if let Part::Dense(matrix) = part {
                matrix.tensor_scale *= -60.0;
            }
        }
    }
    let result = moved((&old, &new), &variant, None, Some(&data), None);
    let message = result.map(|(_, report)| report).unwrap_err().to_string();
    assert!(message.contains("worse than none (loss"), "{message}");
}
