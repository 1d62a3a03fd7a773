//! From a command's result to what the shell sees: the causes on stderr, and a stable exit code.
use crate::Error;
use std::{error::Error as StdError, process::ExitCode};

/// Prints `error: …` with one line a cause to stderr and gives the exit code (0 when all went well).
#[allow(clippy::print_stderr)]
pub fn report(result: Result<(), Error>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if !matches!(error, Error::Interrupted) {
        eprint!("{}", describe(&error));
    }
    ExitCode::from(error.exit_code())
}

/// `error: …` and a `  caused by: …` line for each further cause. A cause whose text its parent already ends with
/// (a transparent wrapper) is left out.
fn describe(error: &Error) -> String {
    let mut last = error.to_string();
    let mut text = format!("error: {last}\n");
    let mut cause = error.source();
    while let Some(inner) = cause {
        let line = inner.to_string();
        if !last.ends_with(&line) {
            text += &format!("  caused by: {line}\n");
        }
        last = line;
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Context;

    #[test]
    fn causes_are_printed_once_each_from_the_outside_in() {
        let io = std::io::Error::new(std::io::ErrorKind::NotFound, "no such file");
        let error = Err::<(), _>(io).context("opening the base model").unwrap_err();
        assert_eq!(describe(&error), "error: opening the base model\n  caused by: no such file\n");
    }

    #[test]
    fn exit_codes_are_stable() {
        assert_eq!(Error::Failed(String::new()).exit_code(), 1);
        assert_eq!(Error::Usage(String::new()).exit_code(), 2);
        assert_eq!(Error::Interrupted.exit_code(), 130);
    }
}
