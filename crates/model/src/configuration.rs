//! The configuration file: names for models, which one is meant where none is named, and settings of commands.
//!
//! It is the file that `--config` names, else `BITDELTA_CONFIG`, else `bitdelta/config.yaml` in the user's configuration
//! folder:
//!
//! ```yaml
//! model: qwen3-4b
//! models:
//!   qwen3-4b: /models/qwen3
//! serve:
//!   port: 9000
//! ```
//!
//! What a section may hold is the command's business (the command line checks it against the command's own options); here
//! only the names of the sections are known, so that a slip in one is an error for every reader of the file.

use crate::{Error, nearest::nearest};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Environment variable: the configuration file.
pub const CONFIG: &str = "BITDELTA_CONFIG";
/// The commands whose settings the file may hold.
pub const SECTIONS: [&str; 6] = ["serve", "train", "chat", "publish", "variants", "keys"];

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Configuration {
    /// Where it was read from; `None` where there is none.
    pub path: Option<PathBuf>,
    /// The model where none is named.
    pub model: Option<String>,
    /// Local models by name; full paths.
    pub models: BTreeMap<String, String>,
    /// Settings by command, as they are written.
    pub sections: BTreeMap<String, Map<String, Value>>,
}

static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Takes this file for the rest of the process, whatever the environment says. The first call counts.
pub fn choose(path: PathBuf) {
    let _first = CHOSEN.set(path);
}

/// Reads the file; empty where there is none.
///
/// # Errors
/// [`Error::Malformed`] for a file that is not as described, [`Error::Io`] for one that is named and cannot be read.
pub fn load() -> Result<Configuration, Error> {
    let named = CHOSEN.get().cloned().or_else(|| variable(CONFIG).map(PathBuf::from));
    let Some(path) = named.clone().or_else(usual_place) else { return Ok(Configuration::default()) };
    match fs::read_to_string(&path) {
        Ok(text) => read(&text, &path),
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(Configuration::default()),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// A path as the file writes it: `~/` is the user's home, and what is relative lies beside the file.
pub fn full_path(text: &str, file: &Path) -> PathBuf {
    match text.strip_prefix("~/").zip(variable("HOME")) {
        Some((rest, home)) => Path::new(&home).join(rest),
        None => file.parent().unwrap_or(Path::new("")).join(text),
    }
}

/// A variable that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn usual_place() -> Option<PathBuf> {
    let base = variable("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".config")))?;
    Some(base.join("bitdelta").join("config.yaml"))
}

fn read(text: &str, path: &Path) -> Result<Configuration, Error> {
    let wrong = |problem: String| Error::malformed(path, problem);
    let mut found = Configuration { path: Some(path.to_owned()), ..Configuration::default() };
    // Nothing, or nothing but comments.
    let value: Option<Value> = match text.trim() {
        "" => None,
        _ => serde_saphyr::from_str(text).map_err(|error| wrong(error.to_string()))?,
    };
    let entries = match value {
        None | Some(Value::Null) => return Ok(found),
        Some(Value::Object(entries)) => entries,
        Some(_) => return Err(wrong("must be `name: value` lines".to_owned())),
    };
    for (name, value) in entries {
        match (name.as_str(), value) {
            (_, Value::Null) if known().any(|known| known == name) => {}
            ("model", Value::String(model)) => found.model = Some(model),
            ("model", _) => return Err(wrong("model: must be a name or a path".to_owned())),
            ("models", Value::Object(models)) => {
                for (alias, model) in models {
                    let Value::String(model) = model else {
                        return Err(wrong(format!("models: {alias}: must be a path")));
                    };
                    found.models.insert(alias, full_path(&model, path).to_string_lossy().into_owned());
                }
            }
            ("models", _) => return Err(wrong("models: must be `NAME: PATH` lines".to_owned())),
            (section, Value::Object(settings)) if SECTIONS.contains(&section) => {
                found.sections.insert(name, settings);
            }
            (section, _) if SECTIONS.contains(&section) => {
                return Err(wrong(format!("{section}: must be `name: value` lines")));
            }
            (unknown, _) => {
                let meant = nearest(unknown, known()).map(|name| format!("; did you mean `{name}`?"));
                let known = known().collect::<Vec<_>>().join(", ");
                let meant = meant.unwrap_or_else(|| format!("; known: {known}"));
                return Err(wrong(format!("unknown name `{unknown}`{meant}")));
            }
        }
    }
    Ok(found)
}

fn known() -> impl Iterator<Item = &'static str> {
    ["model", "models"].into_iter().chain(SECTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/etc/bitdelta/config.yaml";

    #[test]
    fn the_file_names_a_default_and_paths_beside_itself() {
        let file = read("model: small\nmodels:\n  small: models/a\n  large: /b.gguf\n", Path::new(PATH)).unwrap();
        assert_eq!(file.model.as_deref(), Some("small"));
        assert_eq!(file.models["small"], "/etc/bitdelta/models/a");
        assert_eq!(file.models["large"], "/b.gguf");
        for empty in ["", "\n", "# nothing yet\n", "serve:\n"] {
            assert!(read(empty, Path::new(PATH)).unwrap().sections.is_empty(), "{empty:?}");
        }
    }

    #[test]
    fn a_section_holds_a_commands_settings_as_they_are_written() {
        let file = read("serve:\n  port: 9000\n  cors-origin: [a, b]\n", Path::new(PATH)).unwrap();
        assert_eq!(file.sections["serve"]["port"], 9000);
        assert_eq!(file.sections["serve"]["cors-origin"][1], "b");
    }

    #[test]
    fn what_is_unknown_or_of_another_kind_is_an_error_that_says_where() {
        for (text, says) in [
            ("modles: {}", "did you mean `models`"),
            ("weather: fine", "known: model, models, serve"),
            ("serve: 8080", "serve: must be"),
            ("model: [a]", "model: must be"),
            ("models: {a: {}}", "models: a: must be a path"),
            ("- a", "`name: value` lines"),
            ("model: a\nmodel: b", "model"),
        ] {
            let error = read(text, Path::new(PATH)).unwrap_err().to_string();
            assert!(error.contains(PATH) && error.contains(says), "{text}: {error}");
        }
    }
}
