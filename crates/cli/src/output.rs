//! Writing to stdout without dying of a closed pipe (`bitdelta inspect V | head`).
use crate::Error;
use std::io::{ErrorKind, Write};

/// Writes text as it is and shows it at once.
///
/// # Errors
/// A reader that closed the pipe has seen enough: that is no error. Anything else is.
pub fn text(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => crate::Context::context(result, "writing to stdout"),
    }
}

/// Writes one line.
///
/// # Errors
/// As [`text`].
pub fn line(line: &str) -> Result<(), Error> {
    text(&format!("{line}\n"))
}
