//! Experiences: what a program rewards is put into words, believed only where it helps, and carried in the prompt.
//!
//! The golden models are random and say nothing that is a rule. So a tiny model is first taught three things, as a large one
//! knows them: to answer "eee" or "aaa", to answer "eee" when the rule is told, and to say that rule when it compares.

use super::lesson;
use crate::{
    Error, Method, TrainConfig,
    config::Stage,
    merge::export_hf,
    progress::{Progress, Silent},
    run,
    teach::{self, Preferences},
};
use bitdelta_delta::Variant;
use bitdelta_engine::prompt;
use bitdelta_model::{Base, Dtype, chat::Message};
use serde_json::json;
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

static NEVER: AtomicBool = AtomicBool::new(false);

/// The rule that the model knows.
const RULE: &str = "Say it with e.";
const WORDS: usize = 12;
/// The taught model's folder.
const MODEL: &str = "taught";
/// One for an answer with the letter e, else nothing.
const HAS_E: &str =
    r#"awk '{ sub(/.*"answer":"/, ""); sub(/","(messages|reference)".*/, ""); print (gsub(/e/, "") > 0) }'"#;

fn golden() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-llama").to_str().expect("a plain path").into()
}

fn question(i: usize) -> String {
    format!("say {i}")
}

/// Makes the model that knows the rule, in `folder`.
fn teach(folder: &Path) {
    let rules = [RULE.to_owned()];
    let mut lines = String::new();
    for i in 0..8 {
        let asked = [Message { role: "user".into(), content: question(i) }];
        let told = prompt::experienced(&asked, &rules).into_owned();
        let compared = lesson::ask(&question(i), "eee", "aaa", WORDS, 0);
        let plain = asked.to_vec();
        let all =
            [(&plain, "aaa"), (&plain, "eee"), (&told, "eee"), (&told, "eee"), (&compared, RULE), (&compared, RULE)];
        for (turns, answer) in all {
            let answer = Message { role: "assistant".into(), content: answer.into() };
            let messages: Vec<&Message> = turns.iter().chain([&answer]).collect();
            lines += &format!("{}\n", json!({ "messages": messages }));
        }
    }
    let data = folder.join("data.jsonl");
    fs::write(&data, lines).expect("written");
    let config = TrainConfig {
        model_name_or_path: golden(),
        dataset: data.to_str().expect("a plain path").into(),
        output_dir: folder.join("training"),
        method: Method::Full,
        enable_compression: false,
        learning_rate: Some(3e-3),
        num_train_epochs: 16.0,
        ..TrainConfig::default()
    };
    let outcome = run::run(&config, &Silent, &NEVER).expect("a run");
    let golden = Base::open(&golden()).expect("the tiny model");
    let variant = Variant::read(&outcome.path).expect("the variant");
    export_hf(&golden, &variant, &outcome.path, &folder.join(MODEL), Dtype::F32, &Silent).expect("a model");
}

fn config(folder: &Path, output: &str) -> TrainConfig {
    let data = folder.join("prompts.jsonl");
    let line = |i| format!("{}\n", json!({"prompt": question(i), "response": "eee"}));
    fs::write(&data, (0..8).map(line).collect::<String>()).expect("written");
    TrainConfig {
        stage: Stage::Grpo,
        method: Method::Experience,
        model_name_or_path: folder.join(MODEL).to_str().expect("a plain path").into(),
        dataset: data.to_str().expect("a plain path").into(),
        output_dir: folder.join(output),
        reward_command: HAS_E.into(),
        grpo_group_size: 8,
        grpo_answer_len: 4,
        max_experiences: 2,
        experience_words: WORDS,
        per_device_train_batch_size: 3,
        num_train_epochs: 1.0,
        val_size: 2.0,
        ..TrainConfig::default()
    }
}

#[test]
fn what_is_kept_raises_the_reward_and_is_all_that_the_variant_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    teach(folder.path());
    let config = config(folder.path(), "out");
    let outcome = run::run(&config, &Silent, &NEVER).expect("a run");
    let (before, after) = (outcome.reward_base.expect("measured"), outcome.reward_variant.expect("measured"));
    assert!(before > 0.1 && after > before + 0.2, "{before} {after}");
    let variant = Variant::read(&config.output_dir).expect("the variant");
    let known = |one: &String| one.starts_with("Say it");
    assert!((1..=2).contains(&outcome.experiences.len()) && outcome.experiences.iter().all(known), "{outcome:?}");
    assert_eq!(variant.info.experiences, outcome.experiences);
    assert!(variant.linears.iter().all(|linear| linear.parts.is_empty()));
    assert_eq!(variant.info.notes["rewards"]["base"], before);
    assert_eq!(variant.info.notes["rewards"]["variant"], after);
    assert_eq!(variant.info.notes["rewards"]["held_out"], true);
    let left = fs::read_dir(&config.output_dir).expect("a folder").flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains("checkpoint")));

    // The same words teach a delta, on any base, and the student is not told them.
    let taught = Preferences::read(config.output_dir.to_str().expect("a plain path")).expect("experiences");
    let ask = [Message { role: "user".into(), content: "hi".into() }];
    assert_eq!(taught.told(&ask), *prompt::experienced(&ask, &variant.info.experiences));
    assert!(teach::prompts::built_in(&taught).iter().all(|prompt| prompt.messages[0].content != "Who am I?"));
    let distil = TrainConfig {
        model_name_or_path: config.model_name_or_path.clone(),
        preferences: config.output_dir.to_str().map(str::to_owned),
        preference_samples: 4,
        preference_answer_len: 8,
        max_steps: 1,
        output_dir: folder.path().join("distilled"),
        ..TrainConfig::default()
    };
    run::run(&distil, &Silent, &NEVER).expect("a run");
    let distilled = Variant::read(&distil.output_dir).expect("the variant");
    let (_, hash) = Variant::read_hashed(&config.output_dir).expect("the variant");
    assert_eq!(distilled.info.notes["training"]["experiences_of"], hash);
    assert!(distilled.info.experiences.is_empty() && !distilled.linears[0].parts.is_empty());
    let error = Preferences::read(distil.output_dir.to_str().expect("a plain path")).expect_err("none").to_string();
    assert!(error.contains("no experiences"), "{error}");
}

#[test]
fn where_nothing_helps_the_figures_are_told_and_an_older_variant_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    teach(folder.path());
    let alike = TrainConfig { reward_command: "sed 's/.*/0.25/'".into(), max_steps: 1, ..config(folder.path(), "out") };
    let error = run::run(&alike, &Silent, &NEVER).expect_err("all alike");
    assert!(matches!(error, Error::NothingLearnt { lessons: 0, kept: 0, measured: None, .. }), "{error:?}");
    assert!(error.to_string().contains("0.2500"), "{error}");
    let path = alike.output_dir.join(run::VARIANT_FILE);
    assert!(!path.exists());
    fs::write(&path, "an older one").expect("written");
    let error = run::run(&alike, &Silent, &NEVER).expect_err("there is one").to_string();
    assert!(error.contains("already holds a variant"), "{error}");
    // A bare number for each answer, that falls as answers go on being drawn: no list is better than none.
    let counter = folder.path().join("drawn");
    let falling = format!(
        "awk -v at=$(cat {0} 2>/dev/null || echo 0) '{{ print -at - NR % 2 }} END {{ print at + NR > \"{0}\" }}'",
        counter.display()
    );
    let worse = TrainConfig { reward_command: falling, overwrite_output_dir: true, ..alike };
    let error = run::run(&worse, &Silent, &NEVER).expect_err("ever worse");
    let Error::NothingLearnt { lessons, measured, .. } = &error else { panic!("{error:?}") };
    assert!(*lessons > 0 && measured.is_some_and(|(before, after)| after < before), "{error}");
    assert_eq!(fs::read_to_string(&path).expect("it stays"), "an older one");
}

/// Raises the stop flag after a number of steps, or in the phase that reports.
struct StopAfter<'a>(AtomicU64, &'a AtomicBool);

impl Progress for StopAfter<'_> {
    fn begin(&self, phase: &str, _: u64, _: &str) {
        if phase == "measuring what was learnt" {
            self.1.store(true, Ordering::SeqCst);
        }
    }
    fn advance(&self, n: u64, note: &str) {
        if n > 0 && note.starts_with("reward") && self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.1.store(true, Ordering::SeqCst);
        }
    }
    fn end(&self) {}
    fn say(&self, _: &str) {}
}

#[test]
fn a_run_that_was_stopped_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    teach(folder.path());
    let (unbroken, broken) = (config(folder.path(), "unbroken"), config(folder.path(), "broken"));
    run::run(&unbroken, &Silent, &NEVER).expect("a run");
    let stop = AtomicBool::new(false);
    let error = run::run(&broken, &StopAfter(AtomicU64::new(1), &stop), &stop).expect_err("stopped");
    assert!(matches!(error, Error::Interrupted { step: 1, .. }), "{error}");
    stop.store(false, Ordering::SeqCst);
    let error = run::run(&broken, &StopAfter(AtomicU64::new(100), &stop), &stop).expect_err("stopped again");
    assert!(matches!(error, Error::Interrupted { step: 2, .. }), "{error}");
    let other = TrainConfig { grpo_temperature: 0.5, ..broken.clone() };
    let error = run::run(&other, &Silent, &NEVER).expect_err("another run").to_string();
    assert!(error.contains("other settings"), "{error}");
    run::run(&broken, &Silent, &NEVER).expect("goes on");
    let bytes = |config: &TrainConfig, name: &str| fs::read(config.output_dir.join(name)).expect("a file");
    for name in [run::VARIANT_FILE, run::LOG_FILE] {
        assert!(bytes(&unbroken, name) == bytes(&broken, name), "{name}");
    }
}

#[test]
fn settings_of_weights_and_other_stages_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let right = config(folder.path(), "out");
    for (wrong, word) in [
        (TrainConfig { stage: Stage::Sft, ..right.clone() }, "stage grpo"),
        (TrainConfig { lora_rank: 8, ..right.clone() }, "lora_rank"),
        (TrainConfig { bits: 2, ..right.clone() }, "bits"),
        (TrainConfig { bits_per_weight: Some(0.02), ..right.clone() }, "bits_per_weight"),
        (TrainConfig { learning_rate: Some(1e-3), ..right.clone() }, "learning_rate"),
        (TrainConfig { quantization_bit: Some(8), ..right.clone() }, "quantization_bit"),
        (TrainConfig { preferences: Some("be kind".into()), ..right.clone() }, "preferences"),
        (TrainConfig { max_experiences: 33, ..right.clone() }, "max_experiences"),
        (TrainConfig { experience_words: 3, ..right.clone() }, "experience_words"),
        (TrainConfig { reward_command: String::new(), ..right.clone() }, "reward_command"),
    ] {
        let error = run::run(&wrong, &Silent, &NEVER).expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
        assert!(!right.output_dir.exists(), "{word}: before anything is written");
    }
    let base = Base::open(&golden()).expect("the tiny model");
    let long = TrainConfig { cutoff_len: 64, ..right };
    let error = run::run_on(&base, &long, &Silent, &NEVER).expect_err("no room").to_string();
    assert!(error.contains("cutoff_len"), "{error}");
}
