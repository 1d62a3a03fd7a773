//! Training data: conversations out of the formats that people have.
//!
//! A file is a JSON array or JSON lines. Its examples are alpaca, sharegpt, OpenAI messages, or prompt and response;
//! `dataset_info.json` beside it may name the format, columns and tags (as LLaMA-Factory has it), and without that each
//! example shows its format by its fields. Data is untrusted: what does not fit is an error that names file, line and
//! field, never a guess.

mod example;
mod info;

pub use example::{Columns, Format, Tags};

use crate::Error;
use bitdelta_model::chat::Message;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Turns in order; at least one is the assistant's.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// The turns.
    pub messages: Vec<Message>,
}

/// A file and how to read it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    path: PathBuf,
    format: Format,
    /// At most this many examples.
    limit: Option<usize>,
}

/// Loads `path_or_name`: a path, or a name in `dataset_dir/dataset_info.json`; several may be given, with commas.
///
/// # Errors
/// [`Error::Dataset`] when there is no such data set, [`Error::Data`] for the first example that does not fit.
pub fn load(path_or_name: &str, dataset_dir: &Path) -> Result<Vec<Conversation>, Error> {
    let mut conversations = Vec::new();
    for name in path_or_name.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let source = info::find(name, dataset_dir)?;
        let before = conversations.len();
        for (place, value) in examples(&source.path)? {
            if source.limit.is_some_and(|limit| conversations.len() - before >= limit) {
                break;
            }
            conversations.push(source.format.conversation(&value).map_err(|wrong| Error::Data {
                path: source.path.clone(),
                place,
                field: wrong.field,
                problem: wrong.problem,
            })?);
        }
    }
    if conversations.is_empty() {
        return Err(Error::Dataset { name: path_or_name.into(), problem: "it holds no examples".into() });
    }
    Ok(conversations)
}

/// Every example of a file with its place.
fn examples(path: &Path) -> Result<Vec<(String, Value)>, Error> {
    let bytes = fs::read(path).map_err(|source| Error::io(path, source))?;
    let broken =
        |place: String, problem: String| Error::Data { path: path.into(), place, field: "example".into(), problem };
    let text = std::str::from_utf8(&bytes).map_err(|wrong| {
        let line = bytes[..wrong.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
        broken(format!("line {line}"), "not UTF-8".into())
    })?;
    let text = text.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with('[') {
        let values: Vec<Value> = serde_json::from_str(text)
            .map_err(|wrong| broken(format!("line {}", wrong.line()), format!("not a JSON array: {wrong}")))?;
        return Ok(values.into_iter().enumerate().map(|(i, value)| (format!("example {}", i + 1), value)).collect());
    }
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| {
            let place = format!("line {}", i + 1);
            serde_json::from_str(line)
                .map(|value| (place.clone(), value))
                .map_err(|wrong| broken(place, format!("not JSON: {wrong}")))
        })
        .collect()
}
