//! Runs this program's own commands one after another, each in a process of its own, so that its time and memory are its own, and
//! keeps what each printed: a report that was interrupted goes on where it was.

use crate::{Context, Error, interrupt::Interrupt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What a command printed, and the command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    /// The arguments behind `bitdelta`.
    pub command: Vec<String>,
    /// Its JSON.
    pub result: Value,
}

/// Runs commands.
pub struct Runner {
    program: PathBuf,
    interrupt: Interrupt,
}

impl Runner {
    /// Ready to run.
    ///
    /// # Errors
    /// When this program does not know its own file.
    pub fn new() -> Result<Self, Error> {
        let program = std::env::current_exe().context("looking for this program's own file")?;
        Ok(Self { program, interrupt: Interrupt::watch()? })
    }

    /// Whether [`Self::run`] would find what was printed before.
    pub fn knows(&self, file: &Path, arguments: &[String]) -> bool {
        read(file, arguments).is_some()
    }

    /// The JSON that `bitdelta ARGUMENTS` prints, or printed when it ran before with the same arguments: it is kept in
    /// `file`. `doing` is shown.
    ///
    /// # Errors
    /// The command's own message, when it fails; [`Error::Interrupted`] after Ctrl-C.
    #[allow(clippy::print_stderr)]
    pub fn run(&mut self, doing: &str, file: &Path, arguments: Vec<String>) -> Result<Saved, Error> {
        if let Some(saved) = read(file, &arguments) {
            return Ok(saved);
        }
        eprintln!("{doing}");
        let mut command = Command::new(&self.program);
        command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A Ctrl-C reaches the command too, which ends as it should: a training with its checkpoint.
        let output =
            self.interrupt.during(|| command.output()).context(format!("starting: bitdelta {}", shown(&arguments)))?;
        if self.interrupt.asked() {
            return Err(Error::Interrupted);
        }
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Failed(format!("bitdelta {}\n{}", shown(&arguments), said.trim_end())));
        }
        let doing = || format!("reading what `bitdelta {}` printed", shown(&arguments));
        let result = serde_json::from_slice(&output.stdout).context(doing())?;
        let saved = Saved { command: arguments, result };
        write(file, &serde_json::to_vec_pretty(&saved).context("writing a result")?)?;
        Ok(saved)
    }
}

/// What the same command printed before; `None` if it has not run, or otherwise.
fn read(file: &Path, arguments: &[String]) -> Option<Saved> {
    let saved: Saved = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    (saved.command == arguments).then_some(saved)
}

/// Writes a file whole or not at all, and its folder where there is none.
///
/// # Errors
/// A place that cannot be written.
pub fn write(path: &Path, content: &[u8]) -> Result<(), Error> {
    let doing = || format!("writing {}", path.display());
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).context(doing())?;
    let mut file = tempfile::NamedTempFile::new_in(folder).context(doing())?;
    file.write_all(content).context(doing())?;
    file.persist(path).context(doing())?;
    Ok(())
}

/// As it would be typed.
pub fn shown(arguments: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@".contains(c);
    let quoted = |word: &String| {
        if word.chars().all(plain) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    };
    arguments.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_taken_again_only_for_the_same_command() {
        let keep = tempfile::tempdir().expect("a folder");
        let file = keep.path().join("deep/result.json");
        let command = vec!["train".to_owned(), "--seed".to_owned(), "1".to_owned()];
        let saved = Saved { command: command.clone(), result: serde_json::json!({"bytes": 7}) };
        write(&file, &serde_json::to_vec(&saved).expect("JSON")).expect("written");
        assert_eq!(read(&file, &command).expect("there").result["bytes"], 7);
        assert!(read(&file, &command[..2]).is_none());
        assert!(read(&keep.path().join("none"), &command).is_none());
    }

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        let words = ["eval", "a b", "it's"].map(str::to_owned);
        assert_eq!(shown(&words), r"eval 'a b' 'it'\''s'");
    }
}
