//! What was measured already: by earlier reports, and by this one so far.

use super::{
    plan::Entry,
    study::{Figures, Rates, Row},
};
use crate::{Context, Error};
use serde::Deserialize;
use std::{fs, path::PathBuf};

/// Rows in the order in which they came.
#[derive(Debug, Default)]
pub struct Known {
    rows: Vec<Row>,
}

/// Of a `report.json`, what is read again.
#[derive(Deserialize)]
struct Report {
    runs: Vec<Row>,
}

impl Known {
    /// Of these reports together; where two have the same entry with the same seed, the first counts.
    ///
    /// # Errors
    /// A file that cannot be read, or is no `report.json`.
    pub fn read(files: &[PathBuf]) -> Result<Self, Error> {
        let mut known = Self::default();
        for file in files {
            let content = fs::read(file).context(format!("reading {}", file.display()))?;
            let report: Report = serde_json::from_slice(&content)
                .context(format!("reading {}: it should be the report.json of a `bitdelta report`", file.display()))?;
            for row in report.runs {
                known.merge(row);
            }
        }
        Ok(known)
    }

    /// Whether there are figures of this entry with this seed.
    pub fn has(&self, task: &str, id: &str, seed: u64) -> bool {
        self.row(task, id).is_some_and(|row| row.runs.iter().any(|run| run.seed == seed))
    }

    /// The rates that a task's entries were trained at.
    pub fn rates(&self, task: &str) -> Rates {
        let rows = self.rows.iter().filter(|row| row.task == task);
        rows.filter_map(|row| Some((row.id.clone(), row.runs.first()?.rate))).collect()
    }

    /// Adds what was measured, unless it is known.
    pub fn add(&mut self, task: &str, entry: &Entry, figures: Figures) {
        let Entry { id, label, family, .. } = entry.clone();
        self.merge(Row { task: task.to_owned(), id, label, family, runs: vec![figures] });
    }

    /// All rows, a task after the other; within a task as `entries` are ordered, others behind.
    pub fn rows(mut self, entries: &[Entry]) -> Vec<Row> {
        let mut tasks: Vec<String> = Vec::new();
        for row in &self.rows {
            if !tasks.contains(&row.task) {
                tasks.push(row.task.clone());
            }
        }
        let place = |row: &Row| {
            let task = tasks.iter().position(|task| *task == row.task);
            (task, entries.iter().position(|entry| entry.id == row.id).unwrap_or(entries.len()))
        };
        self.rows.sort_by_key(place);
        self.rows
    }

    fn row(&self, task: &str, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.task == task && row.id == id)
    }

    fn merge(&mut self, row: Row) {
        match self.rows.iter_mut().find(|known| known.task == row.task && known.id == row.id) {
            None => self.rows.push(row),
            Some(known) => {
                for run in row.runs {
                    if known.runs.iter().all(|known| known.seed != run.seed) {
                        known.runs.push(run);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::entries;
    use super::*;
    use serde_json::json;

    fn row(id: &str, seeds: &[u64]) -> serde_json::Value {
        let run = |seed: &u64| {
            json!({
                "seed": seed, "rate": 0.5 * *seed as f64, "command": "", "eval": {}, "seconds": null, "peak_memory": null,
                "training_tokens_per_second": null, "tokens_per_second": null,
            })
        };
        json!({"task": "talk", "id": id, "label": id, "family": "lora", "runs": seeds.iter().map(run).collect::<Vec<_>>()})
    }

    #[test]
    fn reports_are_put_together_by_entry_and_seed_in_the_order_of_the_entries() {
        let keep = tempfile::tempdir().expect("a folder");
        let files = [
            ("a", json!([row("lora-r1", &[2, 1]), row("old", &[1])])),
            ("b", json!([row("full", &[1]), row("lora-r1", &[1, 3])])),
        ];
        let files = files.map(|(name, runs)| {
            let file = keep.path().join(name);
            fs::write(&file, json!({ "runs": runs }).to_string()).expect("written");
            file
        });
        let known = Known::read(&files).expect("reports");
        assert!(known.has("talk", "lora-r1", 3) && !known.has("talk", "full", 2) && !known.has("other", "full", 1));
        assert_eq!(known.rates("talk")["lora-r1"], 1.0);
        let rows = known.rows(&entries(&[], &[]).expect("entries"));
        let seeds = |row: &Row| row.runs.iter().map(|run| run.seed).collect::<Vec<_>>();
        let found: Vec<_> = rows.iter().map(|row| (row.id.as_str(), seeds(row))).collect();
        assert_eq!(found, [("full", vec![1]), ("lora-r1", vec![2, 1, 3]), ("old", vec![1])]);

        let none = keep.path().join("none");
        fs::write(&none, "{}").expect("written");
        let message = Known::read(&[none]).expect_err("no report").to_string();
        assert!(message.contains("report.json"), "{message}");
    }
}
