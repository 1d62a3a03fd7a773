//! `dataset_info.json`: from a data set's name to its file and format.

use super::{
    Source,
    example::{Columns, Format, Shape, Tags},
};
use crate::Error;
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The file beside the data that names data sets.
const FILE_NAME: &str = "dataset_info.json";

/// What a file of a data set may end in.
const EXTENSIONS: [&str; 3] = ["jsonl", "json", "csv"];

/// One entry.
#[derive(Debug, Deserialize)]
struct Entry {
    /// A file, or a folder of them.
    file_name: Option<String>,
    /// "alpaca", "sharegpt" or "openai".
    formatting: Option<String>,
    #[serde(default)]
    ranking: bool,
    num_samples: Option<usize>,
    /// A folder inside the data set's.
    #[serde(alias = "folder")]
    subset: Option<String>,
    /// Of a folder, the files that have this word in their names.
    split: Option<String>,
    #[serde(default)]
    columns: Columns,
    tags: Option<Tags>,
}

/// The file of data set `name`: by `dataset_info.json`, else a path, else a file of that name in `dataset_dir`.
pub(super) fn find(name: &str, dataset_dir: &Path) -> Result<Source, Error> {
    let info_path = dataset_dir.join(FILE_NAME);
    let missing = |problem: String| Error::Dataset { name: name.into(), problem };
    if info_path.is_file() {
        let text = fs::read_to_string(&info_path).map_err(|source| Error::io(&info_path, source))?;
        // Entries are read one by one, so that a strange one does not spoil the others.
        let entries: BTreeMap<String, Value> = serde_json::from_str(&text)
            .map_err(|wrong| missing(format!("{} is not readable: {wrong}", info_path.display())))?;
        if let Some(entry) = entries.get(name) {
            let entry: Entry = serde_json::from_value(entry.clone())
                .map_err(|wrong| missing(format!("its entry in {}: {wrong}", info_path.display())))?;
            return entry
                .source(dataset_dir)
                .map_err(|problem| missing(format!("its entry in {}: {problem}", info_path.display())));
        }
    }
    let candidates = [
        name.into(),
        dataset_dir.join(name),
        dataset_dir.join(format!("{name}.jsonl")),
        dataset_dir.join(format!("{name}.json")),
        dataset_dir.join(format!("{name}.csv")),
    ];
    match candidates.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(Source { paths: vec![path], format: Format::default(), limit: None, ranking: false }),
        None => Err(missing(format!(
            "no file of that name, and no entry of that name in {} (--dataset takes a path, or a name with --dataset_dir)",
            info_path.display()
        ))),
    }
}

impl Entry {
    /// Its files and their format, or what is wrong with it.
    fn source(self, dataset_dir: &Path) -> Result<Source, String> {
        let Some(file_name) = &self.file_name else {
            return Err("there is no file_name; only local files are read, so download the data first".into());
        };
        let paths = self.files(&dataset_dir.join(file_name))?;
        // An entry that gives no formatting is alpaca, unless its columns say that there are turns.
        let shape = match self.formatting.as_deref() {
            Some("alpaca") => Shape::Alpaca,
            Some("sharegpt" | "openai") => Shape::Sharegpt,
            Some(other) => {
                return Err(format!("formatting {other:?} is unknown; alpaca, sharegpt and openai are known"));
            }
            None if self.columns.messages.is_some() => Shape::Sharegpt,
            None => Shape::Alpaca,
        };
        let tags = match (self.tags, self.formatting.as_deref()) {
            (Some(tags), _) => tags,
            (None, Some("openai")) => Tags::openai(),
            (None, _) => Tags::default(),
        };
        let format = Format { shape: Some(shape), columns: self.columns, tags };
        Ok(Source { paths, format, limit: self.num_samples, ranking: self.ranking })
    }

    /// The file that an entry names, or the files of the folder by name.
    fn files(&self, path: &Path) -> Result<Vec<PathBuf>, String> {
        if path.is_file() {
            return match self.split.as_deref() {
                None | Some("train") => Ok(vec![path.into()]),
                Some(split) => Err(format!("split {split:?}: a single file has only its `train` split")),
            };
        }
        let folder = self.subset.as_ref().map_or_else(|| path.to_owned(), |subset| path.join(subset));
        let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file() && stem(path) != "dataset_info")
            .filter(|path| {
                EXTENSIONS.iter().any(|known| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(known)))
            })
            .collect();
        files.sort();
        if let Some(split) = &self.split {
            let has_word = |path: &PathBuf| stem(path).split(|c: char| !c.is_alphanumeric()).any(|word| word == split);
            files.retain(has_word);
        }
        match files.is_empty() {
            true => Err(format!(
                "{} has no .json, .jsonl or .csv file{}",
                folder.display(),
                self.split.as_ref().map(|split| format!(" of split {split:?}")).unwrap_or_default()
            )),
            false => Ok(files),
        }
    }
}
