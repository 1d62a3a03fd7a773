//! Names for models of this machine, one definition for every command, the server and Python.
//!
//! `BITDELTA_MODELS="qwen3-4b=/models/qwen3"` (several with commas) and the `models:` of the configuration file make a
//! name stand for a local model; an existing path goes before a name, a name before a hub id. `BITDELTA_MODEL` and
//! `model:` say what is meant where none is named. The environment goes before the file ([`crate::configuration`]).

use crate::{
    Error,
    configuration::{self, variable},
};

/// Environment variable: `NAME=PATH`, several with commas.
pub const ALIASES: &str = "BITDELTA_MODELS";
/// Environment variable: the model where none is named.
pub const DEFAULT: &str = "BITDELTA_MODEL";

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
    let file = configuration::load()?;
    Ok(file.models.into_iter().find_map(|(alias, path)| same(&alias, name).then_some(path)))
}

/// The model to use where none is named.
///
/// # Errors
/// As [`resolve`].
pub fn default_model() -> Result<Option<String>, Error> {
    match variable(DEFAULT) {
        Some(model) => Ok(Some(model)),
        None => Ok(configuration::load()?.model),
    }
}

/// Whether a name means what an alias stands for: in any case, and with an owner (`Qwen/Qwen3-4B`) or without.
pub fn same(alias: &str, name: &str) -> bool {
    let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let both_owned = alias.contains('/') && name.contains('/');
    alias.eq_ignore_ascii_case(name) || (!both_owned && last(alias) == last(name))
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
}
