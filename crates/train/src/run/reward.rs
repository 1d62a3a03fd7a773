//! What answers are worth: a program of the user's says it.
//!
//! It is run by the shell once for a batch of answers, reads a JSON line for each and prints a number for each, in order.
//! Anything else is an error that shows what it said.

use crate::{Error, objective::Asked, sample::Answer};
use serde_json::json;
use std::{
    io::Write,
    process::{Command, Stdio},
    thread,
};

/// Bytes of a failing program's messages that are shown.
const SHOWN: usize = 2000;

/// The reward of each of `answers`: as many to each prompt, in the prompts' order.
///
/// # Errors
/// [`Error::Reward`].
pub(super) fn of(command: &str, asked: &[&Asked], answers: &[Answer]) -> Result<Vec<f64>, Error> {
    let group = answers.len() / asked.len().max(1);
    let mut lines = String::new();
    for (asked, answers) in asked.iter().zip(answers.chunks(group.max(1))) {
        for answer in answers {
            let line = json!({
                "prompt": asked.question(), "messages": asked.messages, "answer": answer.text,
                "reference": asked.reference,
            });
            lines += &format!("{line}\n");
        }
    }
    rewards(command, &lines, answers.len())
}

/// Runs `command` in a shell with `lines` as its input; it must print `count` numbers, one a line.
fn rewards(command: &str, lines: &str, count: usize) -> Result<Vec<f64>, Error> {
    let wrong = |problem: String| Error::Reward { command: command.into(), problem };
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| wrong(format!("it could not be started: {error}")))?;
    let input = child.stdin.take();
    // Written beside the reading, so that neither side waits for the other with a full pipe.
    let output = thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut input) = input {
                // A program that stops reading early is judged by what it prints.
                let _ = input.write_all(lines.as_bytes());
            }
        });
        child.wait_with_output()
    })
    .map_err(|error| wrong(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let from = said.char_indices().rev().nth(SHOWN).map_or(0, |(at, _)| at);
        return Err(wrong(format!("{}: {}", output.status, said[from..].trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let found: Vec<f64> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| match line.trim().parse::<f64>() {
            Ok(reward) if reward.is_finite() => Ok(reward),
            _ => Err(wrong(format!("it printed {:?} where a number was expected", line.trim()))),
        })
        .collect::<Result<_, _>>()?;
    match found.len() == count {
        true => Ok(found),
        false => Err(wrong(format!("it printed {} numbers for {count} answers", found.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reward_program_is_heard_or_named() {
        assert_eq!(rewards("cat >/dev/null; printf '1\\n\\n-0.5\\n'", "a\nb\n", 2).expect("two"), [1.0, -0.5]);
        let long = "x".repeat(1 << 20);
        assert_eq!(rewards("echo 3", &long, 1).expect("it need not read"), [3.0]);
        for (command, word) in [
            ("echo 1", "1 numbers for 2"),
            ("echo good; echo 1", "good"),
            ("echo inf; echo 1", "inf"),
            ("echo oops >&2; exit 3", "oops"),
        ] {
            let error = rewards(command, "a\nb\n", 2).expect_err(command).to_string();
            assert!(error.contains(word) && error.contains("reward_command"), "{error}");
        }
    }
}
