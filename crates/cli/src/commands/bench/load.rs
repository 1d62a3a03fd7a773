//! `bitdelta bench load`: a published variant from its file into an engine that is answering others.
//!
//! The file is in the page cache. `ready` is what the registry does at a user's first request: read, hash, check, repack.
//! Steps of the engine are seen from outside, by its counter of generated tokens: while every running row gets a token
//! in each step, the time between two changes of the counter is what each of them waits.

use super::{base::BenchBase, print_json, serving, variants};
use crate::{Context, Error, commands::progress::Bar, output, sizes::format_bytes};
use bitdelta_delta::Variant;
use bitdelta_engine::{Cancel, Engine, Model, Registry, Request, Resident, Sampling, backend::PAGE};
use serde::Serialize;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Arguments of `bench load`.
#[derive(Debug, Clone, clap::Args)]
pub struct LoadArgs {
    #[command(flatten)]
    base: BenchBase,
    /// What the variant is made of
    #[arg(long, value_name = "KIND", default_value = "dense1")]
    kind: variants::Kind,
    /// Requests that the engine answers meanwhile
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// Distinct users among them, each with a variant; 0 asks the base alone
    #[arg(long, value_name = "N", default_value_t = 8)]
    users: usize,
    /// Tokens of the newcomer's prompt
    #[arg(long, value_name = "N", default_value_t = 32)]
    prompt: usize,
    /// Loads; the median counts
    #[arg(long, value_name = "N", default_value_t = 20)]
    runs: usize,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// What was measured. Times are medians but for the longest gaps.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    what: &'static str,
    model: String,
    base_dtype: String,
    isa: &'static str,
    threads: usize,
    kind: String,
    file_bytes: u64,
    resident_bytes: u64,
    /// The file alone, on an idle engine: read, hashed, checked.
    read_seconds: f64,
    /// The same and repacked for the kernels: ready to run.
    ready_seconds: f64,
    /// `file_bytes` ÷ `ready_seconds`.
    bytes_per_second: f64,
    batch: usize,
    users: usize,
    prompt: usize,
    /// Ready, while the engine answers others on the same cores.
    ready_seconds_busy: f64,
    /// From a request to its first token beside the others, the variant not loaded: loading, what is left of the running
    /// step, and the step that runs the prompt.
    first_token_seconds: f64,
    /// The same with the variant loaded already.
    first_token_seconds_loaded: f64,
    /// Time between two tokens of the running rows while nothing else happens.
    gap_seconds: f64,
    longest_gap_seconds: f64,
    /// The same while variants load.
    gap_seconds_loading: f64,
    longest_gap_seconds_loading: f64,
}

/// Bytes of KV cache that all rows may use.
const KV_BYTES: u64 = 1 << 30;

/// Most tokens of a running row, prompt and answer.
const MOST_TOKENS: u64 = 2048;

/// Steps that are watched while nothing else happens.
const QUIET_STEPS: usize = 64;

/// How often the counter is looked at: well below a step.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// Longest time without a step before the measurement gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures.
///
/// # Errors
/// A base that does not load, memory that does not hold the variants, a temporary folder that cannot be written.
pub fn run(args: &LoadArgs) -> Result<(), Error> {
    if args.batch == 0 || args.prompt == 0 || args.runs == 0 {
        return Err(Error::Usage("--batch, --prompt and --runs are at least 1".to_owned()));
    }
    let bar = Bar::new();
    let model = args.base.load(&bar)?;
    let count = args.users.min(args.batch);
    let users = bar.during("making variants", || variants::Source::Random(args.kind).residents(&model, count))?;
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let file = folder.path().join("newcomer.safetensors");
    let newcomer = variants::random(model.base(), args.kind, count);
    let file_bytes = newcomer.write(&file).context("writing the newcomer's variant")?;
    drop(newcomer);
    let registry = Registry::new(Arc::clone(&model), Some(folder.path().to_owned()));
    let loads = Loads { registry: &registry, file: &file };
    let resident_bytes = loads.ready()?.0.bytes();

    let (read, ready) = bar.during("loading into an idle engine", || {
        Ok::<_, Error>((loads.times(args.runs, Loads::read)?, loads.times(args.runs, |loads| Ok(loads.ready()?.1))?))
    })?;

    let engine = serving::start(&model, args.batch + 1, tokens_of_a_row(&model, args.batch + 1))?;
    let busy = bar.during("loading beside running requests", || {
        Running::start(&engine, &users, args.batch, args.prompt)?.measure(&loads, args.runs)
    })?;

    let ready_seconds = median(ready);
    let measured = Measured {
        what: "load",
        model: model.base().name.clone(),
        base_dtype: args.base.dtype(),
        isa: bitdelta_kernels::Isa::selected().name(),
        threads: model.threads(),
        kind: args.kind.name(),
        file_bytes,
        resident_bytes,
        read_seconds: median(read),
        ready_seconds,
        bytes_per_second: file_bytes as f64 / ready_seconds,
        batch: args.batch,
        users: users.len(),
        prompt: args.prompt,
        ready_seconds_busy: median(busy.ready),
        first_token_seconds: median(busy.first),
        first_token_seconds_loaded: median(busy.first_loaded),
        longest_gap_seconds: longest(&busy.quiet),
        gap_seconds: median(busy.quiet),
        longest_gap_seconds_loading: longest(&busy.loading),
        gap_seconds_loading: median(busy.loading),
    };
    if args.json { print_json(&measured) } else { print(&measured) }
}

fn print(m: &Measured) -> Result<(), Error> {
    let ms = |seconds: f64| format!("{:.1} ms", 1e3 * seconds);
    output::text(&format!(
        "load: {} ({}) ready in {} on an idle engine (read, hashed and checked in {}), {} beside {} requests\n  \
         first token {} after the request, {} where the variant was loaded already\n  \
         tokens of the running rows every {}, at most {}; while variants load every {}, at most {}\n",
        format_bytes(m.file_bytes),
        m.kind,
        ms(m.ready_seconds),
        ms(m.read_seconds),
        ms(m.ready_seconds_busy),
        m.batch,
        ms(m.first_token_seconds),
        ms(m.first_token_seconds_loaded),
        ms(m.gap_seconds),
        ms(m.longest_gap_seconds),
        ms(m.gap_seconds_loading),
        ms(m.longest_gap_seconds_loading),
    ))
}

/// How long a running row can get.
fn tokens_of_a_row(model: &Model, rows: usize) -> usize {
    let tokens = (KV_BYTES * PAGE as u64 / rows as u64 / model.kv_page_bytes()).min(MOST_TOKENS) as usize;
    tokens.min(model.base().config.max_positions) - 1
}

/// The newcomer's file and the registry that finds it.
struct Loads<'a> {
    registry: &'a Registry,
    file: &'a Path,
}

impl Loads<'_> {
    /// Seconds of reading, hashing and checking the file alone.
    fn read(&self) -> Result<f64, Error> {
        let begun = Instant::now();
        Variant::read_hashed(self.file).context("reading the newcomer's variant")?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// The newcomer's variant, loaded anew, and the seconds that took.
    fn ready(&self) -> Result<(Arc<Resident>, f64), Error> {
        let doing = "loading the newcomer's variant";
        self.registry.unload("newcomer").context(doing)?;
        let begun = Instant::now();
        let resident = self.registry.resolve("newcomer").context(doing)?;
        Ok((resident, begun.elapsed().as_secs_f64()))
    }

    fn times(&self, runs: usize, one: impl Fn(&Self) -> Result<f64, Error>) -> Result<Vec<f64>, Error> {
        (0..runs).map(|_| one(self)).collect()
    }
}

/// What was seen beside the running rows.
struct Busy {
    quiet: Vec<f64>,
    loading: Vec<f64>,
    ready: Vec<f64>,
    first: Vec<f64>,
    first_loaded: Vec<f64>,
}

/// An engine whose rows are running.
struct Running<'a> {
    engine: &'a Engine,
    rows: usize,
    prompt: usize,
}

impl<'a> Running<'a> {
    /// Starts `rows` requests that run until the engine is dropped, and waits until all decode.
    fn start(engine: &'a Engine, users: &[Arc<Resident>], rows: usize, prompt: usize) -> Result<Self, Error> {
        let vocab = engine.model().base().config.vocab;
        for row in 0..rows {
            let request = Request {
                tenant: "".into(),
                deadline: None,
                cancel: Cancel::default(),
                prompt: serving::prompt_tokens(row, prompt, vocab),
                variant: (!users.is_empty()).then(|| Arc::clone(&users[row % users.len()])),
                sampling: Sampling::GREEDY,
                max_tokens: usize::MAX,
                stop: Vec::new(),
                sink: Box::new(|_| true),
            };
            engine.submit(request).context("keeping the engine busy")?;
        }
        let (running, begun) = (Self { engine, rows, prompt }, Instant::now());
        while engine.stats().generated_tokens < 2 * rows as u64 {
            running.wait(begun)?;
        }
        Ok(running)
    }

    /// A short sleep, unless the time since `begun` is beyond all patience.
    fn wait(&self, begun: Instant) -> Result<(), Error> {
        if begun.elapsed() > PATIENCE {
            return Err(Error::Failed(format!("no step ended within {} s", PATIENCE.as_secs())));
        }
        std::thread::sleep(LOOK_EVERY);
        Ok(())
    }

    /// Waits for the end of the step that runs now.
    fn step(&self) -> Result<(), Error> {
        let (before, begun) = (self.engine.stats().generated_tokens, Instant::now());
        while self.engine.stats().generated_tokens == before {
            if self.engine.stats().running < self.rows {
                let message =
                    "the running rows ended before the measurement did: take fewer --runs or a smaller --batch";
                return Err(Error::Failed(message.to_owned()));
            }
            self.wait(begun)?;
        }
        Ok(())
    }

    /// Runs `work` and returns, beside its result, the time between each two steps that ended meanwhile.
    fn watching<T: Send>(&self, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<(T, Vec<f64>), Error> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| -> Result<Vec<f64>, Error> {
                let mut gaps = Vec::new();
                self.step()?;
                while !over.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    self.step()?;
                    gaps.push(begun.elapsed().as_secs_f64());
                }
                Ok(gaps)
            });
            let result = work();
            over.store(true, Ordering::Relaxed);
            let lost = |_| Err(Error::Failed("the thread that watched the steps died".to_owned()));
            let gaps = watcher.join().unwrap_or_else(lost)?;
            Ok((result?, gaps))
        })
    }

    /// Seconds from a request of the newcomer to its first token; `find` brings the variant.
    fn first_token(&self, find: impl Fn() -> Result<Arc<Resident>, Error>) -> Result<f64, Error> {
        let prompt = serving::prompt_tokens(self.rows, self.prompt, self.engine.model().base().config.vocab);
        let begun = Instant::now();
        let variant = find()?;
        self.engine.generate(prompt, Some(variant), Sampling::GREEDY, 1, Vec::new()).context("asking as newcomer")?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// All measurements beside the running rows.
    fn measure(&self, loads: &Loads<'_>, runs: usize) -> Result<Busy, Error> {
        let ((), quiet) = self.watching(|| (0..QUIET_STEPS).try_for_each(|_| self.step()))?;
        // A load in every other step, at any moment of it.
        let load = |run: usize| {
            self.step()?;
            std::thread::sleep(Duration::from_secs_f64(median(quiet.clone()) * run as f64 / runs as f64));
            let (_, seconds) = loads.ready()?;
            self.step()?;
            Ok(seconds)
        };
        let (ready, loading) = self.watching(|| (0..runs).map(load).collect::<Result<Vec<f64>, Error>>())?;
        let first = (0..runs).map(|_| {
            self.step()?;
            self.first_token(|| Ok(loads.ready()?.0))
        });
        let first = first.collect::<Result<_, Error>>()?;
        let (resident, _) = loads.ready()?;
        let first_loaded = (0..runs).map(|_| {
            self.step()?;
            self.first_token(|| Ok(Arc::clone(&resident)))
        });
        let first_loaded = first_loaded.collect::<Result<_, Error>>()?;
        Ok(Busy { quiet, loading, ready, first, first_loaded })
    }
}

/// The middle value; of an even number, the mean of the two in the middle. 0 for none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.as_slice() {
        [] => 0.0,
        values if values.len().is_multiple_of(2) => (values[half - 1] + values[half]) / 2.0,
        values => values[half],
    }
}

fn longest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
