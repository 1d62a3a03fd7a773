//! `dataset_info.json`: from a data set's name to its file and format.

use super::{
    Source,
    example::{Columns, Format, Shape, Tags},
};
use crate::Error;
use serde::Deserialize;
use std::{collections::BTreeMap, fs, path::Path};

/// The file beside the data that names data sets.
const FILE_NAME: &str = "dataset_info.json";

/// One entry.
#[derive(Debug, Deserialize)]
struct Entry {
    file_name: Option<String>,
    formatting: Option<Shape>,
    #[serde(default)]
    ranking: bool,
    num_samples: Option<usize>,
    #[serde(default)]
    columns: Columns,
    #[serde(default)]
    tags: Tags,
}

/// The file of data set `name`: by `dataset_info.json`, else a path, else a file of that name in `dataset_dir`.
pub(super) fn find(name: &str, dataset_dir: &Path) -> Result<Source, Error> {
    let info_path = dataset_dir.join(FILE_NAME);
    let missing = |problem: String| Error::Dataset { name: name.into(), problem };
    if info_path.is_file() {
        let text = fs::read_to_string(&info_path).map_err(|source| Error::io(&info_path, source))?;
        // Entries are read one by one, so that a strange one does not spoil the others.
        let entries: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text)
            .map_err(|wrong| missing(format!("{} is not readable: {wrong}", info_path.display())))?;
        if let Some(entry) = entries.get(name) {
            let entry: Entry = serde_json::from_value(entry.clone())
                .map_err(|wrong| missing(format!("its entry in {}: {wrong}", info_path.display())))?;
            if entry.ranking {
                return Err(missing("it is preference data (ranking), which stage sft does not take".into()));
            }
            let Some(file_name) = entry.file_name else {
                let problem =
                    format!("its entry in {} has no file_name; only local files are read", info_path.display());
                return Err(missing(problem));
            };
            // An entry that gives no formatting is alpaca, unless its columns say that there are turns.
            let shape = entry.formatting.or_else(|| {
                let turns = entry.columns.messages.is_some();
                Some(if turns { Shape::Sharegpt } else { Shape::Alpaca })
            });
            let format = Format { shape, columns: entry.columns, tags: entry.tags };
            return Ok(Source { path: dataset_dir.join(file_name), format, limit: entry.num_samples });
        }
    }
    let candidates = [
        name.into(),
        dataset_dir.join(name),
        dataset_dir.join(format!("{name}.jsonl")),
        dataset_dir.join(format!("{name}.json")),
    ];
    match candidates.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(Source { path, format: Format::default(), limit: None }),
        None => Err(missing(format!(
            "no file of that name, and no entry of that name in {} (--dataset takes a path, or a name with --dataset_dir)",
            info_path.display()
        ))),
    }
}
