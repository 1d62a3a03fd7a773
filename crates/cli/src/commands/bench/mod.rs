//! `bitdelta bench`: how fast the engine serves many users on this machine, and how near that is to the memory's speed.
//!
//! The variants are random, of the true shapes: what a product costs does not depend on its values. Before anything is
//! timed, one answer is checked to be the same alone and in the batch.

mod variants;

use crate::{Context, Error, commands::base::BaseArgs, commands::progress::Bar, output, sizes::format_bytes};
use bitdelta_engine::{Engine, EngineOptions, Model, Resident, Sampling};
use bitdelta_model::Base;
use serde::Serialize;
use std::{sync::Arc, time::Instant};

/// Arguments of `bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum BenchCommand {
    /// Requests that generate together: prompts and all their answers, inside the clock
    Decode {
        #[command(flatten)]
        common: CommonArgs,
        /// Tokens of each prompt
        #[arg(long, value_name = "N", default_value_t = 32)]
        prompt: usize,
        /// Tokens of each answer
        #[arg(long, value_name = "N", default_value_t = 64)]
        generate: usize,
    },
    /// Prompts alone: the time to the first token of each
    Prefill {
        #[command(flatten)]
        common: CommonArgs,
        /// Tokens of each prompt
        #[arg(long, value_name = "N", default_value_t = 512)]
        prompt: usize,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    base: BaseArgs,
    /// Requests at the same time
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Distinct users among them, each with a variant; 0 asks the base alone
    #[arg(long, value_name = "N", default_value_t = 0)]
    users: usize,
    /// What the variants are made of
    #[arg(long, value_name = "KIND", default_value = "dense1")]
    kind: variants::Kind,
    /// Runs; the fastest counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    what: &'static str,
    model: String,
    base_dtype: String,
    isa: &'static str,
    threads: usize,
    batch: usize,
    users: usize,
    kind: String,
    prompt: usize,
    generate: usize,
    /// Generated tokens a second in all; of `prefill`, prompt tokens.
    tokens_per_second: f64,
    seconds: f64,
    base_bytes: u64,
    variant_bytes: u64,
    /// Base and distinct variants: what one step reads at least.
    bytes_per_step: u64,
    /// Read bandwidth of this machine with as many threads, in bytes a second.
    read_bandwidth: f64,
    /// `bytes_per_step` · steps a second ÷ `read_bandwidth`; only of `decode`.
    bandwidth_share: Option<f64>,
}

/// Measures.
///
/// # Errors
/// A base that does not load, or an engine that gives other answers in company.
pub fn run(args: &BenchArgs) -> Result<(), Error> {
    let (what, common, prompt, generate) = match &args.command {
        BenchCommand::Decode { common, prompt, generate } => ("decode", common, *prompt, *generate),
        BenchCommand::Prefill { common, prompt } => ("prefill", common, *prompt, 1),
    };
    if common.batch == 0 || prompt == 0 || generate == 0 || common.runs == 0 {
        return Err(Error::Usage("--batch, --prompt, --generate and --runs are at least 1".to_owned()));
    }
    let bar = Bar::new();
    let doing = "loading the base model";
    let name = common.base.check()?;
    let mut base = Base::open(name).context(doing)?;
    // Every answer has its full length.
    base.config.eos.clear();
    let model =
        bar.during(doing, || Model::load(Arc::new(base), common.base.options()).map(Arc::new)).context(doing)?;
    let make = || (0..common.users.min(common.batch)).map(|user| variants::random(&model, common.kind, user)).collect();
    let users: Vec<Arc<Resident>> = bar.during("making variants", || -> Result<_, Error> { make() })?;

    // Every run computes its prompts: nothing is taken from the run before.
    let options = EngineOptions {
        max_batch: common.batch,
        prefill_chunk: 512,
        share_prefixes: false,
        max_queue: 2 * common.batch,
        ..EngineOptions::default()
    };
    let engine = Engine::start(Arc::clone(&model), options).context("starting the engine")?;
    let bench = Bench { engine: &engine, users: &users, batch: common.batch, prompt, generate };
    bench.check()?;
    let seconds = bar.during("measuring", || -> Result<f64, Error> {
        let mut fastest = f64::INFINITY;
        for _ in 0..common.runs {
            fastest = fastest.min(bench.seconds()?);
        }
        Ok(fastest)
    })?;

    let threads = model.threads();
    let read_bandwidth = bitdelta_kernels::read_bandwidth(threads);
    let variant_bytes: u64 = users.iter().map(|user| user.bytes()).sum();
    let bytes_per_step = model.bytes() + variant_bytes;
    let counted = if what == "decode" { generate } else { prompt };
    let tokens_per_second = (common.batch * counted) as f64 / seconds;
    let steps_per_second = tokens_per_second / common.batch as f64;
    let measured = Measured {
        what,
        model: model.base().name.clone(),
        base_dtype: format!("{:?}", common.base.base_dtype).to_lowercase(),
        isa: bitdelta_kernels::Isa::selected().name(),
        threads,
        batch: common.batch,
        users: users.len(),
        kind: format!("{:?}", common.kind).to_lowercase(),
        prompt,
        generate,
        tokens_per_second,
        seconds,
        base_bytes: model.bytes(),
        variant_bytes,
        bytes_per_step,
        read_bandwidth,
        bandwidth_share: (what == "decode").then(|| bytes_per_step as f64 * steps_per_second / read_bandwidth),
    };
    print(&measured, common.json)
}

fn print(m: &Measured, json: bool) -> Result<(), Error> {
    if json {
        return output::line(&serde_json::to_string(m).context("writing JSON")?);
    }
    let share = m.bandwidth_share.map_or_else(String::new, |s| format!(", {:.0} % of the read bandwidth", 100.0 * s));
    output::line(&format!(
        "{}: {:.1} tokens/s ({} requests, {} users, {} + {} tokens, {:.2} s; base {} as {}, variants {}; {} threads, {}, {}/s{share})",
        m.what,
        m.tokens_per_second,
        m.batch,
        m.users,
        m.prompt,
        m.generate,
        m.seconds,
        format_bytes(m.base_bytes),
        m.base_dtype,
        format_bytes(m.variant_bytes),
        m.threads,
        m.isa,
        format_bytes(m.read_bandwidth as u64),
    ))
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
        let prompt = (0..self.prompt).map(|i| ((index * 7919 + i * 104_729 + 11) % vocab) as u32).collect();
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
