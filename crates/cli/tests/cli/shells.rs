//! Completions that a shell takes, manual pages that `man` shows.
use crate::{run, stderr, stdout};
use std::process::{Command, Output};

fn bash(script: &str) -> Output {
    Command::new("bash").args(["--norc", "-c", script]).output().expect("bash is there")
}

#[test]
fn bash_completes_commands_and_options_of_all_programs() {
    for (program, words, expected) in [
        ("bitdelta", "bitdelta ser", "serve"),
        ("bitdelta", "bitdelta keys rev", "revoke"),
        ("bitdelta", "bitdelta serve --base-d", "--base-dtype"),
        ("hanzo-node", "hanzo-node sta", "start"),
        ("hanzo-node", "hanzo-node variants list --u", "--url"),
        ("llamafactory-cli", "llamafactory-cli train --lora_r", "--lora_rank"),
    ] {
        let script = stdout(&run("bitdelta", &["completions", "bash", program]));
        // What the shell calls when the last word is completed.
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
             complete -p {program} >/dev/null || exit 1\n\
             call=$(complete -p {program} | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n\
             $call {program} \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let output = bash(&ask);
        assert!(stdout(&output).split_whitespace().any(|word| word == expected), "{words}: {output:?}");
    }
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&run("bitdelta", &["completions", shell]));
        assert!(script.contains("serve") && script.contains("variants-dir"), "{shell}");
    }
    let output = run("bitdelta", &["completions", "csh"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("powershell"));
}

#[test]
fn every_command_has_a_manual_page_that_renders() {
    let dir = tempfile::tempdir().expect("a folder");
    let written = run("bitdelta", &["man", dir.path().to_str().expect("UTF-8"), "--json"]);
    assert!(written.status.success(), "{written:?}");
    for name in [
        "bitdelta",
        "bitdelta-serve",
        "bitdelta-keys-add",
        "bitdelta-doctor",
        "hanzo-node",
        "hanzo-node-start",
        "llamafactory-cli-train",
    ] {
        let path = dir.path().join(format!("{name}.1"));
        let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(page.contains(".TH ") && page.contains("SYNOPSIS"), "{name}: {page}");
        // Where the machine has what `man` uses.
        if let Ok(shown) = Command::new("groff").args(["-man", "-Tutf8", "-ww", "-P-cbou"]).arg(&path).output() {
            assert!(shown.status.success() && stderr(&shown).is_empty(), "{name}: {}", stderr(&shown));
            assert!(stdout(&shown).contains("SYNOPSIS"));
        }
    }
}
