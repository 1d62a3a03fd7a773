//! Names for models of this machine, one definition for every command, the server and Python.
//!
//! `BITDELTA_MODELS="qwen3-4b=/models/qwen3"` (several with commas) and the `models:` of the configuration file make a
//! name stand for a local model; an existing path goes before a name, a name before a hub id. `BITDELTA_MODEL` and
//! `model:` say what is meant where none is named. The environment goes before the file, which is `BITDELTA_CONFIG`, or
//! `bitdelta/config.yaml` in the user's configuration folder:
//!
//! ```yaml
//! model: qwen3-4b
//! models:
//!   qwen3-4b: /models/qwen3
//! ```

use crate::Error;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

/// Environment variable: `NAME=PATH`, several with commas.
pub const ALIASES: &str = "BITDELTA_MODELS";
/// Environment variable: the model where none is named.
pub const DEFAULT: &str = "BITDELTA_MODEL";
/// Environment variable: the configuration file.
pub const CONFIG: &str = "BITDELTA_CONFIG";

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    model: Option<String>,
    models: BTreeMap<String, String>,
}

/// The local model that `name` stands for, if it is an alias. Case does not matter, nor does an owner that only one of
/// the two has: `qwen3-4b` also answers to `Qwen/Qwen3-4B`.
///
/// # Errors
/// [`Error::Malformed`] for a configuration file or variable that cannot be read, [`Error::Io`].
pub fn resolve(name: &str) -> Result<Option<String>, Error> {
    let spelled = variable(ALIASES).unwrap_or_default();
    for entry in spelled.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let Some((alias, path)) = entry.split_once('=') else {
            return Err(Error::malformed(ALIASES, format!("{entry:?}: write it as NAME=PATH, several with commas")));
        };
        if same(alias.trim(), name) {
            return Ok(Some(path.trim().to_owned()));
        }
    }
    let file = file()?;
    Ok(file.models.into_iter().find_map(|(alias, path)| same(&alias, name).then_some(path)))
}

/// The model to use where none is named.
///
/// # Errors
/// As [`resolve`].
pub fn default_model() -> Result<Option<String>, Error> {
    match variable(DEFAULT) {
        Some(model) => Ok(Some(model)),
        None => Ok(file()?.model),
    }
}

fn same(alias: &str, name: &str) -> bool {
    let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let both_owned = alias.contains('/') && name.contains('/');
    alias.eq_ignore_ascii_case(name) || (!both_owned && last(alias) == last(name))
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The configuration file, empty where there is none.
fn file() -> Result<File, Error> {
    let named = variable(CONFIG).map(PathBuf::from);
    let Some(path) = named.clone().or_else(usual_place) else { return Ok(File::default()) };
    match fs::read_to_string(&path) {
        Ok(text) => read(&text, &path),
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// `path` is for error messages and for paths that are relative to the file.
fn read(text: &str, path: &Path) -> Result<File, Error> {
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    let mut file: File = serde_saphyr::from_str(text).map_err(|error| Error::malformed(path, error.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for model in file.models.values_mut() {
        let home = model.strip_prefix("~/").zip(variable("HOME"));
        let full = home.map_or_else(|| folder.join(&*model), |(rest, home)| Path::new(&home).join(rest));
        *model = full.to_string_lossy().into_owned();
    }
    Ok(file)
}

fn usual_place() -> Option<PathBuf> {
    let base = variable("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| variable("HOME").map(|home| Path::new(&home).join(".config")))?;
    Some(base.join("bitdelta").join("config.yaml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alias_answers_with_and_without_an_owner_in_any_case() {
        for (alias, name) in
            [("qwen3-4b", "Qwen/Qwen3-4B"), ("Qwen/Qwen3-4B", "qwen3-4b"), ("Qwen/Qwen3-4B", "qwen/qwen3-4b")]
        {
            assert!(same(alias, name), "{alias} {name}");
        }
        for (alias, name) in [("qwen3-4b", "qwen3-8b"), ("mine/qwen3-4b", "Qwen/Qwen3-4B"), ("", "x")] {
            assert!(!same(alias, name), "{alias} {name}");
        }
    }

    #[test]
    fn the_file_names_a_default_and_paths_beside_itself() {
        let path = Path::new("/etc/bitdelta/config.yaml");
        let file = read("model: small\nmodels:\n  small: models/a\n  large: /b.gguf\n", path).unwrap();
        assert_eq!(file.model.as_deref(), Some("small"));
        assert_eq!(file.models["small"], "/etc/bitdelta/models/a");
        assert_eq!(file.models["large"], "/b.gguf");
        assert!(read("\n", path).unwrap().models.is_empty());
        let error = read("modles: {}", path).unwrap_err().to_string();
        assert!(error.contains("/etc/bitdelta/config.yaml") && error.contains("modles"), "{error}");
    }
}
