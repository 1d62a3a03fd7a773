//! `bitdelta doctor` and `hanzo-node doctor`: what a server with these arguments would meet on this machine.
//!
//! It takes the arguments of `serve` (and so its variables and its section of the configuration file), starts nothing and
//! writes nothing. Each check is a line: ok, a warning (it works, less well), or a problem (it does not), and what to do.
mod machine;
mod model;
mod place;
mod variants;

use crate::{
    Error,
    commands::{progress::Bar, serve::ServeArgs},
    output, settings,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{error::Error as StdError, fmt::Write};

/// Arguments of `doctor`.
#[derive(Debug, Clone, clap::Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Read every variant of the folder, however long that takes, and not only the first gigabyte
    #[arg(long)]
    all: bool,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Problem,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// What is there.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    /// Figures for programs.
    #[serde(skip_serializing_if = "Map::is_empty")]
    figures: Map<String, Value>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), advice: None, figures: Map::new() }
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: State::Warning, advice: Some(advice.into()), ..Self::ok(name, found) }
    }

    fn problem(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: State::Problem, advice: Some(advice.into()), ..Self::ok(name, found) }
    }

    fn with(mut self, figure: &str, value: impl Into<Value>) -> Self {
        self.figures.insert(figure.to_owned(), value.into());
        self
    }
}

/// Looks at everything and prints it.
///
/// # Errors
/// [`Error::Failed`] when there is a problem.
pub fn run(args: &DoctorArgs, program: clap::Command) -> Result<(), Error> {
    let mut checks = vec![machine::cpu(), machine::cores(args.serve.base.threads), machine::memory()];
    checks.push(Bar::new().during("measuring the memory", machine::bandwidth));
    checks.push(configuration(program));
    let base = model::open(&args.serve, &mut checks);
    checks.extend(place::folder(&args.serve.variants_dir));
    checks.extend(variants::check(&args.serve.variants_dir, base.as_ref(), args.all));
    checks.extend(place::network(&args.serve));
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let (problems, warnings) = (count(State::Problem), count(State::Warning));
    if args.json {
        let version = env!("CARGO_PKG_VERSION");
        let report = json!({"version": version, "problems": problems, "warnings": warnings, "checks": checks});
        output::line(&report.to_string())?;
    } else {
        output::text(&lines(&checks))?;
    }
    match problems {
        0 => Ok(()),
        1 => Err(Error::Failed("a problem was found".to_owned())),
        several => Err(Error::Failed(format!("{several} problems were found"))),
    }
}

fn lines(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { name, state, found, advice, .. } in checks {
        let state = match state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Problem => "PROBLEM",
        };
        let _ = writeln!(text, "{state:<8} {name:<13} {found}");
        if let Some(advice) = advice {
            let _ = writeln!(text, "{:<22} -> {advice}", "");
        }
    }
    text
}

/// The configuration file: every section of a command that this program has.
fn configuration(program: clap::Command) -> Check {
    let name = "configuration";
    match settings::check_file(program) {
        Ok(configuration) => match configuration.path {
            Some(path) => Check::ok(name, path.display().to_string()),
            None => Check::ok(name, "no file; flags and variables only"),
        },
        Err(error) => Check::problem(name, chain(&error), "correct the file, or name another one with --config"),
    }
}

/// An error with its causes in one line.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let line = inner.to_string();
        if !text.ends_with(&line) {
            text += &format!(": {line}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_there_and_the_next_what_to_do() {
        let checks = [Check::ok("cpu", "fast"), Check::problem("port", "taken", "choose another")];
        let text = lines(&checks);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("PROBLEM  port          taken\n") && text.contains("-> choose another"), "{text}");
    }
}
