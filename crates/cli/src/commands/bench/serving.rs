//! The measurement behind `decode`, `prefill` and `sweep`: requests that run together through the engine.
//!
//! The variants are random, of the true shapes: what a product costs does not depend on its values. Before anything is
//! timed, one answer is checked to be the same alone and in the batch.

use crate::{Context, Error, commands::served::Served, output, sizes::format_bytes};
use bitdelta_engine::{Engine, EngineOptions, Model, Phases, Registry, Resident, Sampling, backend::PAGE};
use bitdelta_model::memory;
use bitdelta_server::{Defaults, Service};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Prompts and all their answers
    Decode,
    /// Prompts, and the first token of each answer
    Prefill,
}

impl What {
    /// The word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
        }
    }
}

/// One measurement's setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// What is timed.
    pub what: What,
    /// Requests at the same time.
    pub batch: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens of each answer.
    pub generate: usize,
    /// Runs; the fastest counts.
    pub runs: usize,
}

impl Setting {
    /// Refuses zeros.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn check(&self) -> Result<(), Error> {
        if self.batch == 0 || self.prompt == 0 || self.generate == 0 || self.runs == 0 {
            return Err(Error::Usage("--batch, --prompt, --generate and --runs are at least 1".to_owned()));
        }
        Ok(())
    }
}

/// What a measurement runs on; the same for all of a sweep.
pub struct Machine {
    /// The base.
    pub model: Arc<Model>,
    /// `--base-dtype`.
    pub base_dtype: String,
    /// What variants are made of.
    pub kind: String,
    /// Read bandwidth with as many threads as compute, in bytes a second.
    pub read_bandwidth: f64,
    /// Multiply-adds a second of the product with the variants' codes, from cache and with as many threads; only of
    /// dense variants.
    pub delta_rate: Option<f64>,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// `decode` or `prefill`.
    pub what: &'static str,
    model: String,
    base_dtype: String,
    isa: &'static str,
    threads: usize,
    /// Requests at the same time.
    pub batch: usize,
    /// Distinct variants among them.
    pub users: usize,
    kind: String,
    /// Whether requests came over HTTP.
    over_http: bool,
    prompt: usize,
    generate: usize,
    /// Generated tokens a second in all; of `prefill`, prompt tokens.
    pub tokens_per_second: f64,
    seconds: f64,
    base_bytes: u64,
    /// Weights in the linears.
    weights: u64,
    variant_bytes: u64,
    /// Pages of keys and values that the requests fill.
    kv_bytes: u64,
    /// What this process held after the runs, mapped files among it.
    memory_bytes: Option<u64>,
    /// `memory_bytes` ÷ (base + variants + KV).
    memory_share: Option<f64>,
    /// Base and distinct variants: what one step reads at least.
    bytes_per_step: u64,
    /// Read bandwidth of this machine with as many threads, in bytes a second.
    read_bandwidth: f64,
    /// Multiply-adds a second of the product with dense variants' codes, from cache and with as many threads.
    delta_rate: Option<f64>,
    /// Seconds of the fastest run by phase.
    phases: PhaseSeconds,
    /// `bytes_per_step` · steps a second ÷ `read_bandwidth`; only of `decode`.
    bandwidth_share: Option<f64>,
}

/// Where the time went; what is missing to the whole is the scheduler and the texts.
#[derive(Debug, Clone, Copy, Serialize)]
struct PhaseSeconds {
    rows: f64,
    projections: f64,
    attention: f64,
    head: f64,
    choice: f64,
}

impl PhaseSeconds {
    fn between(before: Phases, after: Phases) -> Self {
        let part = |of: fn(&Phases) -> Duration| (of(&after) - of(&before)).as_secs_f64();
        Self {
            rows: part(|p| p.rows),
            projections: part(|p| p.projections),
            attention: part(|p| p.attention),
            head: part(|p| p.head),
            choice: part(|p| p.choice),
        }
    }
}

/// [`measure`] on an engine of its own, with these users' variants.
///
/// # Errors
/// An engine that does not start; as [`measure`].
pub fn measure_engine(machine: &Machine, variants: &[Arc<Resident>], setting: Setting) -> Result<Measured, Error> {
    let engine = start(&machine.model, setting.batch, setting.prompt + setting.generate)?;
    let bytes = variants.iter().map(|variant| variant.bytes()).sum();
    measure(machine, &Asked::Engine(&engine, variants), bytes, setting)
}

/// [`measure`] through a server of its own, with the variants of the users 0 to `users` that lie in `folder`.
///
/// # Errors
/// A server that does not start; as [`measure`].
pub fn measure_server(machine: &Machine, folder: &Path, users: usize, setting: Setting) -> Result<Measured, Error> {
    let model = &machine.model;
    let engine = start(model, setting.batch, setting.prompt + setting.generate)?;
    let registry = Registry::new(Arc::clone(model), Some(folder.to_owned()));
    let mut bytes = 0;
    for user in 0..users {
        bytes += registry.resolve(&user.to_string()).context("loading the variants")?.bytes();
    }
    let served = Served::start(Service::new(engine, Some(registry), Vec::new(), Defaults::default()))?;
    let measured = measure(machine, &Asked::Server(&served, users), bytes, setting);
    served.stop()?;
    measured
}

/// Who is asked.
enum Asked<'a> {
    /// The engine, with these users' variants.
    Engine(&'a Engine, &'a [Arc<Resident>]),
    /// A server before it, with the variants of this many users, named after their numbers.
    Server(&'a Served, usize),
}

/// Times `setting`, the request at index i asking for user i modulo their number; their variants are loaded and have
/// `variant_bytes` in all.
///
/// # Errors
/// What answers with an error, or with another answer in company than alone.
fn measure(machine: &Machine, asked: &Asked<'_>, variant_bytes: u64, setting: Setting) -> Result<Measured, Error> {
    let Setting { what, batch, prompt, generate, runs } = setting;
    let model = &machine.model;
    let bench = Bench { asked, batch, prompt, generate };
    bench.check()?;
    let mut seconds = f64::INFINITY;
    let mut phases = PhaseSeconds::between(Phases::default(), Phases::default());
    for _ in 0..runs {
        let before = bench.engine().stats().phases;
        let took = bench.seconds()?;
        if took < seconds {
            (seconds, phases) = (took, PhaseSeconds::between(before, bench.engine().stats().phases));
        }
    }

    let read_bandwidth = machine.read_bandwidth;
    let bytes_per_step = model.bytes() + variant_bytes;
    let (kv_bytes, memory_bytes) = (kv_bytes(model, batch, prompt + generate), memory::held());
    let counted = if what == What::Decode { generate } else { prompt };
    let tokens_per_second = (batch * counted) as f64 / seconds;
    let steps_per_second = tokens_per_second / batch as f64;
    let share = bytes_per_step as f64 * steps_per_second / read_bandwidth;
    Ok(Measured {
        what: what.name(),
        model: model.base().name.clone(),
        base_dtype: machine.base_dtype.clone(),
        isa: bitdelta_kernels::Isa::selected().name(),
        threads: model.threads(),
        batch,
        users: bench.users(),
        kind: machine.kind.clone(),
        over_http: matches!(asked, Asked::Server(..)),
        prompt,
        generate,
        tokens_per_second,
        seconds,
        base_bytes: model.bytes(),
        weights: model.base().linear_weights(),
        variant_bytes,
        kv_bytes,
        memory_bytes,
        memory_share: memory_bytes.map(|held| held as f64 / (model.bytes() + variant_bytes + kv_bytes) as f64),
        bytes_per_step,
        read_bandwidth,
        delta_rate: machine.delta_rate,
        phases,
        bandwidth_share: (what == What::Decode).then_some(share),
    })
}

/// An engine for `batch` requests of `tokens` tokens each, prompt and answer, with the KV cache that they need.
///
/// # Errors
/// What keeps an engine from starting: memory first of all.
pub fn start(model: &Arc<Model>, batch: usize, tokens: usize) -> Result<Engine, Error> {
    let max_context = tokens + 1;
    let options = EngineOptions {
        max_batch: batch,
        prefill_chunk: 512,
        kv_bytes: kv_bytes(model, batch, tokens),
        max_context,
        // Every run computes its prompts: nothing is taken from the run before.
        share_prefixes: false,
        max_queue: 2 * batch,
        ..EngineOptions::default()
    };
    Engine::start(Arc::clone(model), options).context("starting the engine")
}

/// Bytes of the pages that `batch` requests of `tokens` tokens each fill.
fn kv_bytes(model: &Model, batch: usize, tokens: usize) -> u64 {
    (batch * (tokens + 1).div_ceil(PAGE)) as u64 * model.kv_page_bytes()
}

/// The prompt of request `index`; peers are given the same (`benches/`).
pub fn prompt_tokens(index: usize, prompt: usize, vocab: usize) -> Vec<u32> {
    (0..prompt).map(|i| ((index * 7919 + i * 104_729 + 11) % vocab) as u32).collect()
}

impl Measured {
    /// For people.
    ///
    /// # Errors
    /// A stdout that cannot be written to.
    pub fn print(&self) -> Result<(), Error> {
        let share =
            self.bandwidth_share.map_or_else(String::new, |s| format!(", {:.0} % of the read bandwidth", 100.0 * s));
        output::line(&format!(
            "{}: {:.1} tokens/s ({} requests, {} users, {} + {} tokens, {:.2} s; base {} as {}, variants {}; {} threads, {}, {}/s{share})",
            self.what,
            self.tokens_per_second,
            self.batch,
            self.users,
            self.prompt,
            self.generate,
            self.seconds,
            format_bytes(self.base_bytes),
            self.base_dtype,
            format_bytes(self.variant_bytes),
            self.threads,
            self.isa,
            format_bytes(self.read_bandwidth as u64),
        ))
    }
}

/// The requests of one run.
struct Bench<'a> {
    asked: &'a Asked<'a>,
    batch: usize,
    prompt: usize,
    generate: usize,
}

/// What a request came to: text, or tokens, by which it is compared; and its number of tokens.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    said: String,
    tokens: usize,
}

impl Bench<'_> {
    fn engine(&self) -> &Engine {
        match self.asked {
            Asked::Engine(engine, _) => engine,
            Asked::Server(served, _) => &served.service.engine,
        }
    }

    fn users(&self) -> usize {
        match self.asked {
            Asked::Engine(_, variants) => variants.len(),
            Asked::Server(_, users) => *users,
        }
    }

    /// Request `index`'s answer.
    fn one(&self, index: usize) -> Result<Answer, Error> {
        let base = self.engine().model().base();
        let prompt = prompt_tokens(index, self.prompt, base.config.vocab);
        let user = (self.users() > 0).then(|| index % self.users());
        match self.asked {
            Asked::Engine(engine, variants) => {
                let variant = user.map(|user| Arc::clone(&variants[user]));
                let answer = engine.generate(prompt, variant, Sampling::GREEDY, self.generate, Vec::new());
                let tokens = answer.context("generating")?.1.tokens;
                Ok(Answer { said: format!("{tokens:?}"), tokens: tokens.len() })
            }
            Asked::Server(served, _) => {
                let mut body =
                    json!({"model": base.name, "prompt": prompt, "max_tokens": self.generate, "temperature": 0});
                if let Some(user) = user {
                    body["user_id"] = Value::from(user.to_string());
                }
                let answer = served.node.post("/v1/completions", &body)?;
                let said = answer["choices"][0]["text"].as_str().unwrap_or_default().to_owned();
                let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap_or_default();
                Ok(Answer { said, tokens: tokens as usize })
            }
        }
    }

    /// All requests at once.
    fn all(&self) -> Result<Vec<Answer>, Error> {
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..self.batch).map(|index| scope.spawn(move || self.one(index))).collect();
            let lost = |_| Err(Error::Failed("a thread that asked died".to_owned()));
            running.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
        })
    }

    /// The last request alone has the answer that it has in company. Warms up, too.
    fn check(&self) -> Result<(), Error> {
        let (alone, together) = (self.one(self.batch - 1)?, self.all()?);
        if together.last() == Some(&alone) && together.iter().all(|answer| answer.tokens == self.generate) {
            return Ok(());
        }
        Err(Error::Failed("an answer in the batch is not the answer that its request has alone".to_owned()))
    }

    fn seconds(&self) -> Result<f64, Error> {
        let begun = Instant::now();
        self.all()?;
        Ok(begun.elapsed().as_secs_f64())
    }
}
