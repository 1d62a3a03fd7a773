//! Claims about variants made to a size, on a tiny model: the size is kept, more bytes come closer, and data helps.

#![allow(clippy::unwrap_used)]

use bitdelta_delta::{BitDeltaConfig, Info, LinearDelta, Part, Variant};
use bitdelta_model::{
    Base, Dtype,
    chat::{Message, Template},
};
use bitdelta_train::{
    Error, TrainConfig,
    batch::Example,
    budget::{
        self, Options, SCALE_RATE, Schedule, Teacher, Watch, compress_to, distil_scales, measure_errors, refine_codes,
        refit,
    },
    compress::compress_pair,
    config::Size,
    data::Conversation,
    draw,
    merge::export_hf,
    progress::Silent,
    run,
};
use std::{path::Path, sync::atomic::AtomicBool};

static NEVER: AtomicBool = AtomicBool::new(false);

fn golden(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name).to_str().unwrap().into()
}

fn pair() -> (Base, Base) {
    (Base::open(&golden("tiny-llama")).unwrap(), Base::open(&golden("tiny-llama-ft")).unwrap())
}

/// Nobody follows.
fn alone() -> Watch<'static> {
    Watch::new(&Silent, &NEVER)
}

fn info(base: &Base) -> Info {
    Info::new(base.fingerprint(), &base.name, BitDeltaConfig::default(), "")
}

fn examples(base: &Base) -> Vec<Example> {
    let turn = |role: &str, content: String| Message { role: role.into(), content };
    let conversations: Vec<Conversation> = (0..24)
        .map(|i| Conversation {
            messages: vec![
                turn("user", format!("question {i} about {}", i * 7 % 5)),
                turn("assistant", format!("answer {} is {}", i % 4, ["yes", "no", "perhaps"][i % 3])),
            ],
        })
        .collect();
    budget::examples(base, &Template::ChatMl, &conversations).unwrap()
}

fn parts(variant: &Variant) -> Vec<&Part> {
    variant.linears.iter().flat_map(|linear| &linear.parts).collect()
}

fn options(bytes: u64, epochs: f64) -> Options {
    let options = Options::new(bytes);
    Options { schedule: Schedule { epochs, ..options.schedule }, ..options }
}

#[test]
fn a_file_keeps_its_size_to_the_byte_or_less_and_more_bytes_come_closer() {
    let (base, tuned) = pair();
    let errors: Vec<f32> = [2_500, 5_000, 12_345, 20_000]
        .into_iter()
        .map(|bytes| {
            let mut variant = compress_to(&base, &tuned, &[], &options(bytes, 1.0), info(&base), alone()).unwrap();
            let found = variant.to_bytes().unwrap();
            assert!(found.len() as u64 <= bytes && found.len() as u64 > bytes * 8 / 10, "{} of {bytes}", found.len());
            let (read, _) = Variant::from_bytes(&found, Path::new("v")).unwrap();
            assert!(parts(&read) == parts(&variant), "what is written is read");
            measure_errors(&mut variant, &base, &tuned).unwrap()
        })
        .collect();
    assert!(errors.windows(2).all(|pair| pair[1] < pair[0]) && errors[3] < 0.5, "{errors:?}");
}

/// tiny-llama and itself with `change` added to each linear.
fn changed(change: impl Fn(usize, usize) -> Vec<f32>) -> (tempfile::TempDir, Base, Base) {
    let folder = tempfile::tempdir().unwrap();
    let base = Base::open(&golden("tiny-llama")).unwrap();
    let path = folder.path().join("changed");
    let edit = &mut |name: &str, mut values: Vec<f32>| {
        if let Some(linear) = base.linears().iter().find(|linear| linear.name == name) {
            values.iter_mut().zip(change(linear.rows, linear.cols)).for_each(|(value, change)| *value += change);
        }
        Ok(values)
    };
    base.export_hf(&path, Dtype::F32, edit).unwrap();
    let tuned = Base::open(path.to_str().unwrap()).unwrap();
    (folder, base, tuned)
}

/// Values like those of a normal distribution.
fn normal(count: usize, seed: usize) -> Vec<f32> {
    let mut state = 12_345 + seed as u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).map(|normal| 1e-3 * normal).collect()
}

#[test]
fn each_difference_gets_the_kind_that_suits_it() {
    let outer = |rows: usize, cols: usize| -> Vec<f32> {
        let (left, right) = (normal(rows, 1), normal(cols, 2));
        left.iter().flat_map(|l| right.iter().map(move |r| 2e3 * l * r)).collect()
    };
    let noise = |rows: usize, cols: usize| normal(rows * cols, 3);
    let few = |rows: usize, cols: usize| -> Vec<f32> {
        normal(rows * cols, 4).into_iter().map(|x| if x.abs() > 2.5e-3 { 2e-3 * x.signum() } else { 0.0 }).collect()
    };
    let both = |rows, cols| outer(rows, cols).iter().zip(noise(rows, cols)).map(|(a, b)| a + b).collect();
    // (what it is, bytes, whether factors, sparse rows, dense codes are among the kinds where that is to be said, largest
    // relative error)
    type Case<'a> = (&'a str, &'a dyn Fn(usize, usize) -> Vec<f32>, u64, [Option<bool>; 3], f32);
    let cases: [Case<'_>; 4] = [
        ("one component", &outer, 1_600, [Some(true), Some(false), Some(false)], 0.3),
        ("full rank", &noise, 16_000, [None, None, Some(true)], 0.35),
        ("few entries", &few, 1_900, [Some(false), Some(true), Some(false)], 0.3),
        ("a component and full rank", &both, 16_000, [Some(true), None, Some(true)], 0.3),
    ];
    for (what, change, bytes, kinds, most) in cases {
        let (_folder, base, tuned) = changed(change);
        let mut variant = compress_to(&base, &tuned, &[], &options(bytes, 1.0), info(&base), alone()).unwrap();
        assert!(variant.to_bytes().unwrap().len() as u64 <= bytes, "{what}");
        let error = measure_errors(&mut variant, &base, &tuned).unwrap();
        let is_there = |kind: fn(&Part) -> bool| parts(&variant).into_iter().any(kind);
        let found = [
            is_there(|part| matches!(part, Part::LowRank { .. })),
            is_there(|part| matches!(part, Part::Sparse(_))),
            is_there(|part| matches!(part, Part::Dense(_))),
        ];
        let as_wanted = kinds.iter().zip(found).all(|(wanted, found)| wanted.is_none_or(|wanted| wanted == found));
        assert!(as_wanted, "{what}: factors, sparse rows, dense codes: {found:?}");
        assert!(error < most, "{what}: {error}");
        let (read, _) = Variant::from_bytes(&variant.to_bytes().unwrap(), Path::new("v")).unwrap();
        assert!(parts(&read) == parts(&variant), "{what}: what is written is read");
    }
}

#[test]
fn rows_that_matter_more_to_the_answers_get_more_of_the_bits() {
    let mix = |rows: usize, cols: usize| -> Vec<f32> {
        let (left, right) = (normal(rows, 1), normal(cols, 2));
        let outer = left.iter().flat_map(|l| right.iter().map(move |r| 2e3 * l * r));
        outer.zip(normal(rows * cols, 3)).map(|(a, b)| 10.0 * (a + b)).collect()
    };
    let (_folder, base, tuned) = changed(mix);
    let examples = examples(&base);
    let teacher = Teacher::new(&tuned, &base, &examples, &Silent).unwrap();
    let made = |with: &[Example]| {
        let variant = compress_to(&base, &tuned, with, &options(16_000, 6.0), info(&base), alone()).unwrap();
        assert!(variant.to_bytes().unwrap().len() <= 16_000);
        variant
    };
    let (without, with) = (made(&[]), made(&examples));
    let kinds = [&without, &with].map(|variant| parts(variant).iter().any(|part| part.kind() != "lowrank"));
    assert_eq!(kinds, [true; 2], "something beside factors");
    let divergence = |variant| teacher.divergence_of(&base, variant, &examples).unwrap();
    let (before, after) = (divergence(&without), divergence(&with));
    assert!(after < before, "{after} {before}");
}

#[test]
fn too_few_bytes_are_refused_with_how_many_it_takes() {
    let (base, tuned) = pair();
    match compress_to(&base, &tuned, &[], &options(100, 1.0), info(&base), alone()) {
        Err(Error::Budget { bytes: 100, least }) => assert!(least > 100 && least < 2_000, "{least}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn training_on_data_brings_the_same_bytes_nearer_to_the_fine_tune() {
    let (base, tuned) = pair();
    let examples = examples(&base);
    let teacher = Teacher::new(&tuned, &base, &examples, &Silent).unwrap();
    let divergence = |with: &[Example], epochs| {
        let variant = compress_to(&base, &tuned, with, &options(4_000, epochs), info(&base), alone()).unwrap();
        assert!(variant.to_bytes().unwrap().len() <= 4_000);
        teacher.divergence_of(&base, &variant, &examples).unwrap()
    };
    let (without, with) = (divergence(&[], 1.0), divergence(&examples, 12.0));
    assert!(with < 0.5 * without, "{with} {without}");
}

#[test]
fn conversations_drawn_from_the_fine_tune_bring_its_delta_nearer_to_it() {
    let (base, tuned) = pair();
    let draw = |count, seed| draw::conversations(&tuned, None, &Template::Model, count, seed, &Silent).unwrap();
    let drawn = draw(24, 1);
    assert!(drawn.len() > 12);
    assert_eq!(drawn, draw(24, 1), "a seed says what is drawn");
    assert_ne!(drawn, draw(24, 2));
    let marks = |text: &str| text.contains("<|im_") || text.contains("assistant\n");
    for Conversation { messages } in &drawn {
        assert_eq!(messages.iter().map(|turn| turn.role.as_str()).collect::<Vec<_>>(), ["user", "assistant"]);
        assert!(messages.iter().all(|turn| !turn.content.trim().is_empty() && !marks(&turn.content)), "{messages:?}");
    }
    let [drawn, held] = [drawn, draw(24, 3)].map(|drawn| budget::examples(&base, &Template::Model, &drawn).unwrap());
    let teacher = Teacher::new(&tuned, &base, &held, &Silent).unwrap();
    let divergence = |with: &[Example], epochs| {
        let made = compress_to(&base, &tuned, with, &options(4_000, epochs), info(&base), alone()).unwrap();
        teacher.divergence_of(&base, &made, &held).unwrap()
    };
    let (without, with) = (divergence(&[], 1.0), divergence(&drawn, 8.0));
    assert!(with < 0.8 * without, "{with} {without}");
}

#[test]
fn a_variant_refitted_to_a_moved_base_answers_more_as_it_did_on_the_old_one() {
    let (old, tuned) = pair();
    let keep = tempfile::tempdir().unwrap();
    let opened = |name: &str| Base::open(keep.path().join(name).to_str().unwrap()).unwrap();
    let mut state = 1u32;
    let mut moved = |_: &str, values: Vec<f32>| {
        let size = values.iter().map(|x| x.abs()).sum::<f32>() / values.len() as f32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as f32 / u32::MAX as f32 - 0.5
        };
        Ok(values.into_iter().map(|value| value + 0.2 * size * noise()).collect())
    };
    old.export_hf(&keep.path().join("new"), Dtype::F32, &mut moved).unwrap();
    let new = opened("new");
    let (dense, _) = compress_pair(&old, &tuned, &BitDeltaConfig::default(), &Silent).unwrap();
    let sized = compress_to(&old, &tuned, &[], &options(6_000, 0.0), info(&old), alone()).unwrap();
    let examples = examples(&new);
    let (lessons, held) = examples.split_at(16);
    let lessons: &Vec<Example> = &(0..8).flat_map(|_| lessons.iter().cloned()).collect();
    for (kind, variant) in [("dense", dense), ("sized", sized)] {
        export_hf(&old, &variant, Path::new("v"), &keep.path().join(kind), Dtype::F32, &Silent).unwrap();
        let teacher = Teacher::new(&opened(kind), &new, held, &Silent).unwrap();
        let bytes = variant.to_bytes().unwrap().len() as u64;
        let fitted = refit((&old, &new), &variant, lessons, bytes, alone()).unwrap();
        let found = fitted.to_bytes().unwrap().len() as u64;
        assert!(found <= bytes, "{kind}: {found} of {bytes}");
        let [before, after] = [&variant, &fitted].map(|variant| teacher.divergence_of(&new, variant, held).unwrap());
        assert!(after < 0.9 * before, "{kind}: {after} {before}");
        let empty = variant.linears.iter().map(|linear| LinearDelta { parts: Vec::new(), ..linear.clone() });
        let nothing = Variant::new(info(&old), empty.collect());
        let none = refit((&old, &new), &nothing, lessons, bytes, alone()).unwrap_err();
        assert!(none.to_string().contains("neither dense codes nor low-rank factors"), "{none}");
    }
}

#[test]
fn trained_scales_come_nearer_than_fitted_ones_and_codes_stay() {
    let (base, tuned) = pair();
    let examples = examples(&base);
    let (mut variant, _) = compress_pair(&base, &tuned, &BitDeltaConfig::default(), &Silent).unwrap();
    let teacher = Teacher::new(&tuned, &base, &examples, &Silent).unwrap();
    let (fitted, before) = (variant.clone(), teacher.divergence_of(&base, &variant, &examples).unwrap());
    let schedule = Schedule { epochs: 6.0, batch: 8, rate: SCALE_RATE, seed: 1 };
    distil_scales(&base, &teacher, &mut variant, &examples, schedule, alone()).unwrap();
    let after = teacher.divergence_of(&base, &variant, &examples).unwrap();
    assert!(after < 0.8 * before, "{after} {before}");
    for (fitted, trained) in fitted.linears.iter().zip(&variant.linears) {
        let planes = |variant: &bitdelta_delta::LinearDelta| variant.parts[0].matrices()[0].planes.clone();
        assert_eq!(planes(fitted), planes(trained));
    }
    let read = Variant::from_bytes(&variant.to_bytes().unwrap(), Path::new("v")).unwrap().0;
    assert_eq!(read.linears, variant.linears);
}

#[test]
fn codes_chosen_for_the_data_come_nearer_than_the_nearest_codes() {
    let (base, tuned) = pair();
    let examples = examples(&base);
    let teacher = Teacher::new(&tuned, &base, &examples, &Silent).unwrap();
    for bits in [1, 2] {
        let config = BitDeltaConfig { bits, ..BitDeltaConfig::default() };
        let (mut variant, _) = compress_pair(&base, &tuned, &config, &Silent).unwrap();
        let before = teacher.divergence_of(&base, &variant, &examples).unwrap();
        let bytes = variant.to_bytes().unwrap().len();
        refine_codes(&base, &tuned, &mut variant, &examples, 1, &Silent).unwrap();
        let after = teacher.divergence_of(&base, &variant, &examples).unwrap();
        assert!(after < 0.7 * before, "{bits} bits: {after} {before}");
        assert_eq!(variant.to_bytes().unwrap().len(), bytes);
    }
}

#[test]
fn a_run_with_a_budget_learns_within_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data.jsonl");
    let line = |i: usize| format!("{{\"prompt\": \"question {i}?\", \"response\": \"yes, dear {}\"}}\n", i % 3);
    std::fs::write(&data, (0..12).map(line).collect::<String>()).unwrap();
    let config = TrainConfig {
        model_name_or_path: golden("tiny-llama"),
        dataset: data.to_str().unwrap().into(),
        output_dir: folder.path().join("out"),
        per_device_train_batch_size: 4,
        num_train_epochs: 6.0,
        val_size: 2.0,
        budget: Some(Size::Word("3KB".into())),
        ..TrainConfig::default()
    };
    let outcome = run::run(&config, &Silent, &NEVER).unwrap();
    assert!(outcome.bytes <= 3_000 && outcome.bytes > 2_000, "{}", outcome.bytes);
    let (before, after) = (outcome.loss_base.unwrap(), outcome.loss_variant.unwrap());
    assert!(after < 0.7 * before, "{after} {before}");
    assert_eq!(std::fs::metadata(&outcome.path).unwrap().len(), outcome.bytes);
    let wrong = TrainConfig { budget: Some(Size::Word("3 parsecs".into())), ..config };
    let message = run::run(&wrong, &Silent, &NEVER).unwrap_err().to_string();
    assert!(message.starts_with("budget: "), "{message}");
}
