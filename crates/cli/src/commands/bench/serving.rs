//! The measurement behind `decode`, `prefill` and `sweep`: requests that run together through the engine.
//!
//! The variants are random, of the true shapes: what a product costs does not depend on its values. Before anything is
//! timed, one answer is checked to be the same alone and in the batch.

use crate::{Context, Error, output, sizes::format_bytes};
use bitdelta_engine::{Engine, EngineOptions, Model, Phases, Resident, Sampling, backend::PAGE};
use serde::Serialize;
use std::{
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
    prompt: usize,
    generate: usize,
    /// Generated tokens a second in all; of `prefill`, prompt tokens.
    pub tokens_per_second: f64,
    seconds: f64,
    base_bytes: u64,
    /// Weights in the linears.
    weights: u64,
    variant_bytes: u64,
    /// Base and distinct variants: what one step reads at least.
    bytes_per_step: u64,
    /// Read bandwidth of this machine with as many threads, in bytes a second.
    read_bandwidth: f64,
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

/// Times `setting` with these users' variants, the request at index i asking variant i modulo their number.
///
/// # Errors
/// An engine that does not start, or that gives other answers in company.
pub fn measure(machine: &Machine, users: &[Arc<Resident>], setting: Setting) -> Result<Measured, Error> {
    let Setting { what, batch, prompt, generate, runs } = setting;
    let model = &machine.model;
    let engine = start(model, batch, prompt + generate)?;
    let bench = Bench { engine: &engine, users, batch, prompt, generate };
    bench.check()?;
    let mut seconds = f64::INFINITY;
    let mut phases = PhaseSeconds::between(Phases::default(), Phases::default());
    for _ in 0..runs {
        let before = engine.stats().phases;
        let took = bench.seconds()?;
        if took < seconds {
            (seconds, phases) = (took, PhaseSeconds::between(before, engine.stats().phases));
        }
    }

    let read_bandwidth = machine.read_bandwidth;
    let variant_bytes: u64 = users.iter().map(|user| user.bytes()).sum();
    let bytes_per_step = model.bytes() + variant_bytes;
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
        users: users.len(),
        kind: machine.kind.clone(),
        prompt,
        generate,
        tokens_per_second,
        seconds,
        base_bytes: model.bytes(),
        weights: model.base().linears().iter().map(|linear| (linear.rows * linear.cols) as u64).sum(),
        variant_bytes,
        bytes_per_step,
        read_bandwidth,
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
        kv_bytes: (batch * max_context.div_ceil(PAGE)) as u64 * model.kv_page_bytes(),
        max_context,
        // Every run computes its prompts: nothing is taken from the run before.
        share_prefixes: false,
        max_queue: 2 * batch,
        ..EngineOptions::default()
    };
    Engine::start(Arc::clone(model), options).context("starting the engine")
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
    engine: &'a Engine,
    users: &'a [Arc<Resident>],
    batch: usize,
    prompt: usize,
    generate: usize,
}

impl Bench<'_> {
    /// Request `index`'s tokens.
    fn one(&self, index: usize) -> Result<Vec<u32>, Error> {
        let vocab = self.engine.model().base().config.vocab;
        let prompt = prompt_tokens(index, self.prompt, vocab);
        let variant = (!self.users.is_empty()).then(|| Arc::clone(&self.users[index % self.users.len()]));
        let answer = self.engine.generate(prompt, variant, Sampling::GREEDY, self.generate, Vec::new());
        Ok(answer.context("generating")?.1.tokens)
    }

    /// All requests at once.
    fn all(&self) -> Result<Vec<Vec<u32>>, Error> {
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..self.batch).map(|index| scope.spawn(move || self.one(index))).collect();
            let lost = |_| Err(Error::Failed("a thread that asked died".to_owned()));
            running.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
        })
    }

    /// The last request alone has the answer that it has in company. Warms up, too.
    fn check(&self) -> Result<(), Error> {
        let (alone, together) = (self.one(self.batch - 1)?, self.all()?);
        if together.last() == Some(&alone) && together.iter().all(|answer| answer.len() == self.generate) {
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
