//! Claims about variants made to a size, on a tiny model: the size is kept, more bytes come closer, and data helps.

#![allow(clippy::unwrap_used)]

use bitdelta_delta::{BitDeltaConfig, Info, Variant};
use bitdelta_model::{
    Base,
    chat::{Message, Template},
};
use bitdelta_train::{
    Error, TrainConfig,
    batch::Example,
    budget::{self, Options, SCALE_RATE, Schedule, Teacher, compress_to, distil_scales, measure_errors},
    compress::compress_pair,
    config::Size,
    data::Conversation,
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
            let mut variant =
                compress_to(&base, &tuned, &[], &options(bytes, 1.0), info(&base), (&Silent, &NEVER)).unwrap();
            let found = variant.to_bytes().unwrap();
            assert!(found.len() as u64 <= bytes && found.len() as u64 > bytes * 8 / 10, "{} of {bytes}", found.len());
            let (read, _) = Variant::from_bytes(&found, Path::new("v")).unwrap();
            assert_eq!(read, variant, "what is written is read");
            measure_errors(&mut variant, &base, &tuned).unwrap()
        })
        .collect();
    assert!(errors.windows(2).all(|pair| pair[1] < pair[0]) && errors[3] < 0.5, "{errors:?}");
}

#[test]
fn too_few_bytes_are_refused_with_how_many_it_takes() {
    let (base, tuned) = pair();
    match compress_to(&base, &tuned, &[], &options(100, 1.0), info(&base), (&Silent, &NEVER)) {
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
        let variant =
            compress_to(&base, &tuned, with, &options(4_000, epochs), info(&base), (&Silent, &NEVER)).unwrap();
        assert!(variant.to_bytes().unwrap().len() <= 4_000);
        teacher.divergence_of(&base, &variant, &examples).unwrap()
    };
    let (without, with) = (divergence(&[], 1.0), divergence(&examples, 12.0));
    assert!(with < 0.5 * without, "{with} {without}");
}

#[test]
fn trained_scales_come_nearer_than_fitted_ones_and_codes_stay() {
    let (base, tuned) = pair();
    let examples = examples(&base);
    let (mut variant, _) = compress_pair(&base, &tuned, &BitDeltaConfig::default(), &Silent).unwrap();
    let teacher = Teacher::new(&tuned, &base, &examples, &Silent).unwrap();
    let (fitted, before) = (variant.clone(), teacher.divergence_of(&base, &variant, &examples).unwrap());
    let schedule = Schedule { epochs: 6.0, batch: 8, rate: SCALE_RATE, seed: 1 };
    distil_scales(&base, &teacher, &mut variant, &examples, schedule, (&Silent, &NEVER)).unwrap();
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
