//! The benches on a tiny model: what they print, not how fast it is.
use crate::{node::write_variant, run, stderr, stdout};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny-llama");

#[test]
fn a_sweep_has_a_figure_for_each_batch_and_spread_of_users_and_draws_them() {
    let keep = tempfile::tempdir().expect("a folder");
    let (plot, peers) = (keep.path().join("sweep.svg"), keep.path().join("peers.json"));
    let figure =
        r#"{"figures":[{"peer":"elsewhere","what":"decode","adapter":"base","batch":2,"tokens_per_second":5}]}"#;
    std::fs::write(&peers, figure).expect("written");
    let [plot_text, peers_text] = [&plot, &peers].map(|path| path.to_str().expect("UTF-8"));
    let lengths = ["--batch", "1,3", "--users", "0,each", "--prompt", "4", "--generate", "2", "--runs", "1"];
    let arguments =
        [&["bench", "sweep", "--model", TINY, "--json", "--plot", plot_text, "--peers", peers_text], &lengths[..]];
    let output = run("bitdelta", &arguments.concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let figures: Vec<serde_json::Value> = serde_json::from_str(&stdout(&output)).expect("a JSON array");
    let settings: Vec<_> = figures.iter().map(|f| (f["batch"].as_u64(), f["users"].as_u64())).collect();
    let expected = [(1, 0), (3, 0), (1, 1), (3, 3)].map(|(batch, users)| (Some(batch), Some(users)));
    assert_eq!(settings, expected);
    for figure in &figures {
        let bytes = |key: &str| figure[key].as_u64().expect("a number");
        assert_eq!(bytes("bytes_per_step"), bytes("base_bytes") + bytes("variant_bytes"));
        assert!(figure["tokens_per_second"].as_f64().expect("a number") > 0.0);
    }
    let svg = std::fs::read_to_string(plot).expect("drawn");
    assert!(svg.contains("a dense1 variant each") && svg.contains("elsewhere"), "{svg}");
}

#[test]
fn users_are_asked_for_over_http_too_and_memory_and_products_are_told() {
    let keep = tempfile::tempdir().expect("a folder");
    let variant = keep.path().join("ann.safetensors");
    write_variant(&variant);
    let of_a_file = ["--variant", variant.to_str().expect("UTF-8")];
    for (source, kind, rated) in [(&["--kind", "dense2"], "dense2", true), (&of_a_file, of_a_file[1], false)] {
        let lengths =
            ["--batch", "3", "--users", "2", "--prompt", "4", "--generate", "2", "--runs", "1", "--over-http"];
        let arguments = [&["bench", "decode", "--model", TINY, "--json"], &lengths[..], source].concat();
        let output = run("bitdelta", &arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        let figure: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("a JSON object");
        assert_eq!((figure["over_http"].as_bool(), figure["users"].as_u64()), (Some(true), Some(2)));
        assert_eq!((figure["kind"].as_str(), figure["delta_rate"].is_number()), (Some(kind), rated));
        let bytes = |key: &str| figure[key].as_u64().expect("a number") as f64;
        assert!(bytes("variant_bytes") > 0.0 && bytes("kv_bytes") > 0.0);
        let share = bytes("memory_bytes") / (bytes("base_bytes") + bytes("variant_bytes") + bytes("kv_bytes"));
        assert_eq!(figure["memory_share"].as_f64(), Some(share));
    }
}

#[test]
fn compressing_reports_its_bytes() {
    let shape = ["--rows", "6", "--cols", "130", "--dtype", "f32", "--group-size", "64", "--runs", "1"];
    let output = run("bitdelta", &[&["bench", "compress", "--json"], &shape[..]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let figure: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("a JSON object");
    assert_eq!(figure["input_bytes"], 2 * 4 * 6 * 130);
    // Three words and three scales a row, and the matrix's own.
    assert_eq!(figure["output_bytes"], 6 * (3 * 8 + 3 * 2) + 4);
}

#[test]
fn precision_is_whole_in_f32_and_is_told_for_int8_with_and_without_a_variant() {
    let keep = tempfile::tempdir().expect("a folder");
    let (data, variant) = (keep.path().join("held.jsonl"), keep.path().join("ann.safetensors"));
    let conversation = |n: usize| {
        let turn = |role: &str, content: String| serde_json::json!({ "role": role, "content": content });
        let turns = [turn("user", format!("Hello {n}, there")), turn("assistant", "good day to you ".repeat(1 + n))];
        format!("{}\n", serde_json::json!({ "messages": turns }))
    };
    std::fs::write(&data, (0..4).map(conversation).collect::<String>()).expect("written");
    write_variant(&variant);
    let [data, variant] = [&data, &variant].map(|path| path.to_str().expect("UTF-8"));
    let figures = |more: &[&str]| -> serde_json::Value {
        let arguments = ["bench", "precision", "--model", TINY, "--data", data, "--threads", "1", "--json"];
        let output = run("bitdelta", &[&arguments, more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).expect("a JSON object")
    };
    let number = |figures: &serde_json::Value, key: &str| figures[key].as_f64().expect("a number");

    let limited = figures(&["--limit", "2"]);
    assert_eq!(limited["conversations"], 2);
    for with in [&[][..], &["--variant", variant]] {
        let same = figures(&[&["--base-dtype", "f32"], with].concat());
        assert!(number(&same, "positions") > number(&limited, "positions"), "{same}");
        assert!(number(&same, "positions_all") > number(&same, "positions"), "a prompt has positions too: {same}");
        assert_eq!(same["loss"], same["loss_exact"]);
        let exact = ["loss_change", "agreement", "agreement_all", "kl"].map(|key| number(&same, key));
        assert_eq!(exact, [0.0, 1.0, 1.0, 0.0]);

        let rounded = figures(&[&["--base-dtype", "int8", "--kv-dtype", "int8"], with].concat());
        assert_eq!(rounded["loss_exact"], same["loss_exact"], "the reference does not depend on what is asked");
        assert_ne!(rounded["loss"], same["loss"], "something was rounded");
        assert!(number(&rounded, "kl") > 0.0, "{rounded}");
        for key in ["agreement", "agreement_all"] {
            assert!((0.0..=1.0).contains(&number(&rounded, key)), "{rounded}");
        }
    }
    let [alone, with] = [&[][..], &["--variant", variant]].map(|with| number(&figures(with), "loss_exact"));
    assert!((alone - with).abs() > 1e-3, "the variant speaks on both sides");

    let table = run("bitdelta", &["bench", "precision", "--model", TINY, "--data", data]);
    assert!(stdout(&table).contains("agreement         100.00 %"), "{}", stdout(&table));
}

#[test]
fn what_cannot_be_measured_is_a_usage_error() {
    for arguments in [
        &["bench", "decode", "--model", TINY, "--batch", "0"][..],
        &["bench", "load", "--model", TINY, "--runs", "0"],
        &["bench", "compress", "--rows", "0"],
        &["bench", "compress", "--bits", "3"],
        &["bench", "sweep", "--model", TINY, "--users", "many"],
        &["bench", "decode", "--model", TINY, "--cache-dir", "x"],
        &["bench", "precision", "--model", TINY],
        &["bench", "precision", "--model", TINY, "--data", "x", "--limit", "0"],
    ] {
        assert_eq!(run("bitdelta", arguments).status.code(), Some(2), "{arguments:?}");
    }
}
