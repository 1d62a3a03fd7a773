//! Training data: conversations, preferences and prompts out of the formats that people have.
//!
//! A file is a JSON array, JSON lines or CSV. Its examples are alpaca, sharegpt, OpenAI messages, or prompt and response;
//! with `chosen` and `rejected` they are preferences, with `kto_tag` judged answers. `dataset_info.json` beside it may
//! name the format, columns and tags (as LLaMA-Factory has it), and without that each example shows its format by its
//! fields. Data is untrusted: what does not fit is an error that names file, line and field, never a guess.

mod example;
mod info;
mod preference;
mod read;

pub use example::{Columns, Format, Tags};

use crate::Error;
use bitdelta_model::chat::Message;
use example::Wrong;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Turns in order; at least one is the assistant's.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// The turns.
    pub messages: Vec<Message>,
}

/// One prompt and two answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// The turns before the answer.
    pub prompt: Vec<Message>,
    /// The better answer.
    pub chosen: String,
    /// The worse one.
    pub rejected: String,
}

/// A conversation whose last answer was found good or bad.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// It ends with the answer.
    pub conversation: Conversation,
    /// Whether the answer was good.
    pub good: bool,
}

/// What is asked, without an answer to learn.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The turns before the answer.
    pub messages: Vec<Message>,
    /// The answer in the data, if there is one.
    pub reference: Option<String>,
}

/// Files and how to read them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    paths: Vec<PathBuf>,
    format: Format,
    /// At most this many examples.
    limit: Option<usize>,
    /// Whether `dataset_info.json` says that these are preferences.
    ranking: bool,
}

/// Loads conversations from `path_or_name`: a path, or a name in `dataset_dir/dataset_info.json`; several may be given,
/// with commas.
///
/// # Errors
/// [`Error::Dataset`] when there is no such data set, [`Error::Data`] for the first example that does not fit.
pub fn load(path_or_name: &str, dataset_dir: &Path) -> Result<Vec<Conversation>, Error> {
    load_as(path_or_name, dataset_dir, |source, name| match source.ranking {
        false => Ok(Format::conversation),
        true => {
            let problem = "it is preference data (ranking), which stage sft does not take; use stage dpo".into();
            Err(Error::Dataset { name: name.into(), problem })
        }
    })
}

/// As [`load`], pairs of a chosen and a rejected answer.
///
/// # Errors
/// As [`load`].
pub fn load_preferences(path_or_name: &str, dataset_dir: &Path) -> Result<Vec<Preference>, Error> {
    load_as(path_or_name, dataset_dir, |_, _| Ok(Format::preference))
}

/// As [`load`], conversations with a judgement.
///
/// # Errors
/// As [`load`].
pub fn load_judged(path_or_name: &str, dataset_dir: &Path) -> Result<Vec<Judged>, Error> {
    load_as(path_or_name, dataset_dir, |_, _| Ok(Format::judged))
}

/// As [`load`], what is asked alone, from data of any kind.
///
/// # Errors
/// As [`load`].
pub fn load_prompts(path_or_name: &str, dataset_dir: &Path) -> Result<Vec<Prompt>, Error> {
    load_as(path_or_name, dataset_dir, |_, _| Ok(Format::prompt))
}

/// How one example is read.
type Reader<T> = fn(&Format, &Value) -> Result<T, Wrong>;

fn load_as<T>(
    path_or_name: &str,
    dataset_dir: &Path,
    reader: impl Fn(&Source, &str) -> Result<Reader<T>, Error>,
) -> Result<Vec<T>, Error> {
    let mut found = Vec::new();
    for name in path_or_name.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let source = info::find(name, dataset_dir)?;
        let read = reader(&source, name)?;
        let mut left = source.limit.unwrap_or(usize::MAX);
        for path in &source.paths {
            for (place, value) in read::examples(path)? {
                if left == 0 {
                    break;
                }
                left -= 1;
                found.push(read(&source.format, &value).map_err(|wrong| Error::Data {
                    path: path.clone(),
                    place,
                    field: wrong.field,
                    problem: wrong.problem,
                })?);
            }
        }
    }
    if found.is_empty() {
        return Err(Error::Dataset { name: path_or_name.into(), problem: "it holds no examples".into() });
    }
    Ok(found)
}
