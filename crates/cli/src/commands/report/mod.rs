//! `bitdelta report`: what each way to make a variant keeps of a fine-tune, in how many bytes, at what cost; over several tasks and
//! seeds, every training with a swept learning rate, as a page (HTML), as Markdown and as JSON.
//!
//! It runs this program's own commands (`runs`), a task and a seed at a time (`study`), for the entries of `plan`, less what earlier
//! reports have (`known`); `summary` takes medians, `tables` holds the ZIP-7 page's claims beside what was measured, and `page` writes it down.

mod known;
mod page;
mod plan;
mod runs;
mod study;
mod summary;
mod tables;

use crate::{Error, output};
use known::Known;
use plan::{Entry, FULL, entries};
use runs::Runner;
use std::path::PathBuf;
use study::{Setting, Study, Task};
use summary::Summary;

/// Arguments of `report`.
#[derive(Debug, Clone, clap::Args)]
pub struct ReportArgs {
    /// Base model: a Hugging Face folder, a .gguf file, or a hub id
    #[arg(long, visible_alias = "base", value_name = "PATH", env = "BITDELTA_MODEL", hide_env_values = true)]
    model: String,
    /// What is learnt: a folder with train.jsonl and held.jsonl; may be given several times
    #[arg(long = "task", value_name = "DIR", required = true)]
    tasks: Vec<PathBuf>,
    /// Conversations about other things, for the drift
    #[arg(long, value_name = "FILE")]
    general: Option<PathBuf>,
    /// Folder of the report and of its runs; a report that was interrupted goes on where it was
    #[arg(short, long, value_name = "DIR", default_value = "report")]
    output: PathBuf,
    /// Seeds of every training; figures are medians, with least and greatest
    #[arg(long, value_name = "N", default_value_t = 3)]
    seeds: u64,
    /// Budgets
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "16.6MB,1MB,340KB,86KB,34KB")]
    sizes: Vec<String>,
    /// Multiples of each method's own learning rate that are tried with the first seed; the best on the held-out answers is
    /// taken for all seeds
    #[arg(long, value_name = "X", value_delimiter = ',', default_value = "0.5,1,2")]
    rates: Vec<f64>,
    /// Only these entries, and the full fine-tune that others are made from (full, bits1, data-340KB, lora-r16, …)
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    only: Vec<String>,
    /// Earlier reports (report.json): what they have is not run again, and is in the new one too
    #[arg(long, value_name = "FILE")]
    known: Vec<PathBuf>,
    /// More options of every training, as in --train '--epochs 1'; may be given several times
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    train: Vec<String>,
    /// Requests at the same time, a variant each, when tokens a second are measured; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// Keep the full fine-tunes' merged weights
    #[arg(long)]
    keep: bool,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Runs what has not run yet, and writes the report.
///
/// # Errors
/// Arguments that make no sense, the message of the first command that fails, or a folder that cannot be written.
pub fn run(args: &ReportArgs) -> Result<(), Error> {
    let (tasks, entries) = (args.tasks()?, entries(&args.sizes, &args.only)?);
    if args.seeds == 0 || args.rates.iter().any(|rate| !rate.is_finite() || *rate <= 0.0) {
        return Err(Error::Usage("--seeds is at least 1, and --rates are above 0".to_owned()));
    }
    let setting = Setting {
        model: args.model.clone(),
        general: args.general.clone(),
        output: args.output.clone(),
        rates: args.rates.clone(),
        train: args.train.iter().flat_map(|options| options.split_whitespace()).map(str::to_owned).collect(),
        batch: args.batch,
        keep: args.keep,
    };
    let mut known = Known::read(&args.known)?;
    let mut runner = Runner::new()?;
    for task in &tasks {
        let mut rates = known.rates(&task.name);
        for seed in 1..=args.seeds {
            let missing = |entry: &&Entry| !known.has(&task.name, &entry.id, seed);
            if !entries.iter().any(|entry| missing(&entry)) {
                continue;
            }
            // Others are made from the full fine-tune.
            let wanted: Vec<&Entry> = entries.iter().filter(|entry| entry.id == FULL || missing(entry)).collect();
            let study = Study { setting: &setting, task, seed };
            let found = study.run(&wanted, &mut rates, &mut runner)?;
            wanted.iter().zip(found).for_each(|(entry, figures)| known.add(&task.name, entry, figures));
        }
    }
    let rows = known.rows(&entries);
    let base = setting.base_speed(&mut runner)?;
    let summaries: Vec<Summary> = rows.iter().map(Summary::of).collect();
    let written = page::write(&args.output, &setting.model, &rows, &summaries, base)?;
    if args.json {
        return output::text(&written.json);
    }
    output::text(&written.markdown)?;
    output::line(&format!("{}, report.md and report.json beside it", args.output.join(page::HTML_FILE).display()))
}

impl ReportArgs {
    fn tasks(&self) -> Result<Vec<Task>, Error> {
        let mut tasks: Vec<Task> = Vec::new();
        for folder in &self.tasks {
            for file in ["train.jsonl", "held.jsonl"] {
                if !folder.join(file).is_file() {
                    let message = format!("--task {}: there is no {file} in it", folder.display());
                    return Err(Error::Usage(message));
                }
            }
            let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
            let name =
                name.ok_or_else(|| Error::Usage(format!("--task {}: the folder has no name", folder.display())))?;
            if tasks.iter().any(|task| task.name == name) {
                return Err(Error::Usage(format!("--task {}: another task has that name", folder.display())));
            }
            tasks.push(Task { name, folder: folder.clone() });
        }
        Ok(tasks)
    }
}
