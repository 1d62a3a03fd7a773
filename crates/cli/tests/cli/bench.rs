//! The benches on a tiny model: what they print, not how fast it is.
use crate::{run, stderr, stdout};

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
fn what_cannot_be_measured_is_a_usage_error() {
    for arguments in [
        &["bench", "decode", "--model", TINY, "--batch", "0"][..],
        &["bench", "load", "--model", TINY, "--runs", "0"],
        &["bench", "compress", "--rows", "0"],
        &["bench", "compress", "--bits", "3"],
        &["bench", "sweep", "--model", TINY, "--users", "many"],
        &["bench", "decode", "--model", TINY, "--cache-dir", "x"],
    ] {
        assert_eq!(run("bitdelta", arguments).status.code(), Some(2), "{arguments:?}");
    }
}
