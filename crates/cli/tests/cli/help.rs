//! The reference pages of the book are the help of every command. A command that is added is found by itself;
//! `UPDATE_DOCS=1 cargo test -p bitdelta-cli --test cli help` writes the pages anew, and the change shows in review.
use crate::{root, run, stdout};

/// The help of `path` and of every command below it, each under its own heading.
fn all_help(binary: &str, path: &[&str]) -> String {
    let output = run(binary, &[path, &["--help"]].concat());
    assert!(output.status.success(), "{binary} {path:?} --help");
    let help = stdout(&output);
    let heading = [&[binary], path].concat().join(" ");
    let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    let mut text = format!("\n## {heading}\n\n```text\n{}\n```\n", lines.join("\n"));
    for name in subcommands(&help).filter(|name| *name != "help") {
        text += &all_help(binary, &[path, &[name]].concat());
    }
    text
}

/// The names under `Commands:`.
fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A description that goes on in the next line is indented further.
    lines
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
}

fn check(binary: &str) {
    let help = all_help(binary, &[]);
    let page =
        format!("# Commands: {binary}\n\nWhat `--help` prints, of every command; a test keeps this page so.\n{help}");
    let path = root().join(format!("docs/src/reference/{binary}.md"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = written.lines().zip(page.lines()).find(|(old, new)| old != new);
    assert!(written == page, "{} is out of date: set UPDATE_DOCS=1; first change: {differs:?}", path.display());
}

#[test]
fn bitdelta() {
    check("bitdelta");
}

#[test]
fn hanzo_node() {
    check("hanzo-node");
}

#[test]
fn llamafactory_cli() {
    check("llamafactory-cli");
}
