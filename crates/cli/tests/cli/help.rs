//! A snapshot of every `--help`. A command that is added is found by itself; `INSTA_UPDATE=always cargo test -p
//! bitdelta-cli` writes the new snapshot, and the change shows in review.
use crate::{run, stdout};

/// The help of `path` and of every command below it, each under its own heading.
fn all_help(binary: &str, path: &[&str]) -> String {
    let output = run(binary, &[path, &["--help"]].concat());
    assert!(output.status.success(), "{binary} {path:?} --help");
    let help = stdout(&output);
    let heading = [&[binary], path].concat().join(" ");
    let mut text = format!("## {heading}\n\n{}\n\n", help.trim_end());
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

#[test]
fn bitdelta() {
    insta::assert_snapshot!(all_help("bitdelta", &[]));
}

#[test]
fn hanzo_node() {
    insta::assert_snapshot!(all_help("hanzo-node", &[]));
}

#[test]
fn llamafactory_cli() {
    insta::assert_snapshot!(all_help("llamafactory-cli", &[]));
}
