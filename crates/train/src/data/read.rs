//! From a file's bytes to its examples, each with its place: JSON arrays, JSON lines, CSV.

use crate::Error;
use serde_json::{Map, Value};
use std::{fs, path::Path};

/// Every example of a file with its place.
pub(super) fn examples(path: &Path) -> Result<Vec<(String, Value)>, Error> {
    let bytes = fs::read(path).map_err(|source| Error::io(path, source))?;
    let broken =
        |place: String, problem: String| Error::Data { path: path.into(), place, field: "example".into(), problem };
    let text = std::str::from_utf8(&bytes).map_err(|wrong| {
        let line = bytes[..wrong.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
        broken(format!("line {line}"), "not UTF-8".into())
    })?;
    let text = text.trim_start_matches('\u{feff}');
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")) {
        return table(text).map_err(|(place, problem)| broken(place, problem));
    }
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

/// A CSV file whose first line names the columns. Cells are text, but lists and objects (`history`, `messages`) may be
/// written in them as JSON.
fn table(text: &str) -> Result<Vec<(String, Value)>, (String, String)> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let place = |position: Option<&csv::Position>| position.map_or("line 1".into(), |p| format!("line {}", p.line()));
    let wrong = |error: csv::Error| (place(error.position()), format!("not CSV: {error}"));
    let names = reader.headers().map_err(wrong)?.clone();
    let mut examples = Vec::new();
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        let cells = names.iter().zip(&record).map(|(name, cell)| (name.to_owned(), value(cell)));
        examples.push((place(record.position()), Value::Object(cells.collect::<Map<_, _>>())));
    }
    Ok(examples)
}

/// A cell: nothing, a list or an object as JSON, or the text that it is.
fn value(cell: &str) -> Value {
    let structured = || serde_json::from_str(cell).ok().filter(|value: &Value| value.is_array() || value.is_object());
    match cell.trim_start().as_bytes().first() {
        None => Value::Null,
        Some(b'[' | b'{') => structured().unwrap_or_else(|| cell.into()),
        Some(_) => cell.into(),
    }
}
