//! The house rules that a machine can check. What needs judgement is in CONTRIBUTING.md.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file this long holds more than one idea.
const MAX_LINES: usize = 1000;

/// The only crate that may be unsafe.
const UNSAFE_CRATE: &str = "kernels";

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folders in `crates/`, by name.
fn crates() -> Vec<String> {
    let folders = fs::read_dir(root().join("crates")).expect("crates/ is there");
    let mut names: Vec<_> =
        folders.map(|entry| entry.expect("readable").file_name().into_string().expect("a plain name")).collect();
    names.sort();
    names
}

/// Every Rust file of the crates with its text, in order.
fn rust_files() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<_> = crates().iter().map(|name| root().join("crates").join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable folder") {
            let path = entry.expect("readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("readable file");
                found.push((path, text));
            }
        }
    }
    found.sort();
    assert!(found.len() > 40, "the walk found only {} files", found.len());
    found
}

/// The lines of `text` without what follows `//`, numbered from 1.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
}

/// Fails with every line of `complaints`.
fn assert_none(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}:\n{}", complaints.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> = rust_files()
        .iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert_none("a file opens with `//!`: what it is and why it is so", &silent);
}

#[test]
fn no_file_is_longer_than_a_thousand_lines() {
    let long: Vec<_> = rust_files()
        .iter()
        .filter(|(_, text)| text.lines().count() > MAX_LINES)
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    assert_none("a file is one idea", &long);
}

#[test]
fn only_the_kernels_are_unsafe() {
    let mut complaints = Vec::new();
    for (path, text) in rust_files() {
        let allowed = path.starts_with(root().join("crates").join(UNSAFE_CRATE));
        for (number, line) in code(&text) {
            if !allowed && ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| line.contains(*word)) {
                // The words in the line above are not code.
                if !path.ends_with("cli/tests/tidy.rs") {
                    complaints.push(format!("{}:{number}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    for name in crates().iter().filter(|name| *name != UNSAFE_CRATE) {
        let manifest = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).expect("a manifest");
        if !manifest.contains("[lints]\nworkspace = true") {
            complaints.push(format!("crates/{name}/Cargo.toml does not take the workspace's lints"));
        }
    }
    assert_none("`unsafe` lives in crates/kernels alone", &complaints);
}

#[test]
fn nothing_is_left_for_later() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimplemented", "!("), concat!("to", "do!(")];
    let mut complaints = Vec::new();
    for (path, text) in rust_files() {
        for (index, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                complaints.push(format!("{}:{}: {}", path.display(), index + 1, line.trim()));
            }
        }
    }
    assert_none("nothing is kept for later", &complaints);
}

#[test]
fn the_architecture_page_names_every_crate() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    let missing: Vec<_> = crates().into_iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert_none("ARCHITECTURE.md's code map has a line for each crate, its name in backquotes", &missing);
}
