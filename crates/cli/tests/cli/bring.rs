//! Adapters in and out, and variants on another base, as a shell sees them.
use crate::{run, stderr, stdout};
use bitdelta_delta::Variant;
use bitdelta_engine::prompt;
use serde_json::Value;
use std::path::Path;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny-llama");
const TUNED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny-llama-ft");

fn figures(arguments: &[&str]) -> Value {
    let output = run("bitdelta", &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).expect("pure JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A LoRA of rank 2 on the first layer's values, in a folder.
fn adapter(folder: &Path) {
    std::fs::create_dir(folder).expect("made");
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["v_proj"]}"#;
    std::fs::write(folder.join("adapter_config.json"), config).expect("written");
    let module = "base_model.model.model.layers.0.self_attn.v_proj";
    let header = format!(
        r#"{{"{module}.lora_A.weight": {{"dtype": "F32", "shape": [2, 64], "data_offsets": [0, 512]}},
            "{module}.lora_B.weight": {{"dtype": "F32", "shape": [32, 2], "data_offsets": [512, 768]}}}}"#
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..192).flat_map(|i| ((i % 17) as f32 / 16.0 - 0.5).to_le_bytes()));
    std::fs::write(folder.join("adapter_model.safetensors"), bytes).expect("written");
}

#[test]
fn an_adapter_comes_in_is_inspected_and_leaves_in_every_format() {
    let dir = tempfile::tempdir().expect("a folder");
    let (given, file) = (dir.path().join("given"), dir.path().join("v.safetensors"));
    adapter(&given);
    let exact = figures(&["import", text(&given), "--base", TINY, "-o", text(&file)]);
    assert_eq!((&exact["report"]["method"], &exact["report"]["rank"]), (&Value::from("lora"), &Value::from(2)));
    assert_eq!(exact["report"]["relative_error"], 0.0);
    let shown = run("bitdelta", &["inspect", text(&file)]);
    assert!(stdout(&shown).contains("lowrank 2: f16, f16"), "{}", stdout(&shown));

    let [back, merged, whole] = ["back", "m.gguf", "hf"].map(|name| dir.path().join(name));
    for (format, place) in [("peft", &back), ("gguf", &merged), ("hf", &whole)] {
        let made = figures(&["export", text(&file), "--base", TINY, "--format", format, "-o", text(place)]);
        assert_eq!((&made["format"], made["path"].as_str()), (&Value::from(format), Some(text(place))));
    }
    let [read, wanted] = [&back, &given].map(|folder| {
        let out = dir.path().join("again.safetensors");
        figures(&["import", text(folder), "--base", TINY, "-o", text(&out)])["report"].clone()
    });
    assert_eq!(read, wanted);
    let chat = |model: &Path| {
        run("bitdelta", &["chat", "--base", text(model), "--prompt", "Hello!", "--max-tokens", "8"]).stdout
    };
    assert_eq!(chat(&merged), chat(&whole), "the same model in two formats");

    let coded = run("bitdelta", &["import", text(&given), "--base", TINY, "--bits", "3", "-o", text(&file)]);
    assert!(stdout(&coded).contains("lora of rank 2, 1 linears, factors at 3 bit"), "{}", stdout(&coded));
}

#[test]
fn a_variant_moves_and_says_what_it_lost_or_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let [file, moved, newer] = ["v.safetensors", "moved.safetensors", "newer"].map(|name| dir.path().join(name));
    let made = run("bitdelta", &["compress", "--base", TINY, "--finetuned", TUNED, "-o", text(&file)]);
    assert!(made.status.success(), "{}", stderr(&made));
    // The base in bf16 is another base, close to the first.
    let nothing = dir.path().join("nothing.safetensors");
    let made = run("bitdelta", &["compress", "--base", TINY, "--finetuned", TINY, "-o", text(&nothing)]);
    assert!(made.status.success(), "{}", stderr(&made));
    figures(&["export", text(&nothing), "--base", TINY, "--dtype", "bf16", "-o", text(&newer)]);

    let arguments = ["rebase", text(&file), "--from", TINY, "--to", text(&newer), "-o", text(&moved)];
    let refused = run("bitdelta", &arguments);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("nothing tells whether it still holds"), "{}", stderr(&refused));
    assert!(!moved.exists());
    let figures = figures(&[&arguments[..], &["--finetuned", TUNED]].concat());
    assert_eq!(figures["report"]["method"], "recompute");
    assert!(figures["report"]["base_moved"].as_f64().expect("a number") < 0.01, "{figures}");
    let shown = run("bitdelta", &["inspect", text(&moved)]);
    assert!(stdout(&shown).contains("newer"), "{}", stdout(&shown));
}

#[test]
fn words_are_shown_and_asked_with_and_stay_out_of_exports() {
    let dir = tempfile::tempdir().expect("a folder");
    let [file, words, merged] = ["v.safetensors", "words.safetensors", "merged"].map(|name| dir.path().join(name));
    let made = run("bitdelta", &["compress", "--base", TINY, "--finetuned", TUNED, "-o", text(&file)]);
    assert!(made.status.success(), "{}", stderr(&made));
    let mut variant = Variant::read(&file).expect("a variant");
    variant.info.experiences = vec!["Be brief.".into(), "Give the unit.".into()];
    variant.write(&file).expect("written");
    let exported = run("bitdelta", &["export", text(&file), "--base", TINY, "-o", text(&merged)]);
    assert!(exported.status.success() && stderr(&exported).contains("2 experiences"), "{}", stderr(&exported));

    variant.linears.iter_mut().for_each(|linear| linear.parts.clear());
    variant.extras.clear();
    variant.write(&words).expect("written");
    let shown = stdout(&run("bitdelta", &["inspect", text(&words)]));
    for line in ["experience 1   Be brief.", "experience 2   Give the unit.", "no weight is changed"] {
        assert!(shown.contains(line), "{shown}");
    }
    let refused = run("bitdelta", &["export", text(&words), "--base", TINY, "-o", text(&dir.path().join("none"))]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("nothing to export"), "{}", stderr(&refused));
    let chat = |more: &[&str]| {
        let output =
            run("bitdelta", &[&["chat", "--base", TINY, "--prompt", "Hi!", "--max-tokens", "8"], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let told = prompt::list(&variant.info.experiences);
    assert_eq!(chat(&["--variant", text(&words)]), chat(&["--system", &told]), "the base, told");
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    for arguments in [
        &["import", "x", "--base", TINY, "-o", "y", "--bits", "5"][..],
        &["export", "x", "--base", TINY, "-o", "y", "--dtype", "q8_0"],
        &["export", "x", "--base", TINY, "-o", "y", "--format", "peft", "--dtype", "bf16"],
        &["rebase", "x", "--from", TINY, "--to", TUNED, "-o", "y", "--template", "mine"],
        &["rebase", "x", "--from", TINY, "--to", TUNED, "-o", "y", "--method", "hope"],
    ] {
        assert_eq!(run("bitdelta", arguments).status.code(), Some(2), "{arguments:?}");
    }
}
