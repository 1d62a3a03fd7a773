//! `bitdelta bench`: how fast the engine serves many users on this machine, how near that is to the memory's speed,
//! and what the faster types cost in precision.

mod base;
mod compress;
mod load;
mod precision;
mod rate;
mod serving;
mod sweep;
mod train;
mod variants;

use crate::{Context, Error, commands::progress::Bar, output};
use base::BenchBase;
use serving::{Machine, Setting, What};
use std::path::PathBuf;
use variants::Source;

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
        /// Ask through the server, over HTTP on this machine
        #[arg(long)]
        over_http: bool,
    },
    /// Prompts alone: the time to the first token of each
    Prefill {
        #[command(flatten)]
        common: CommonArgs,
        /// Tokens of each prompt
        #[arg(long, value_name = "N", default_value_t = 512)]
        prompt: usize,
    },
    /// A variant from its file into a running engine: how soon it answers, and whether others wait for it
    Load(load::LoadArgs),
    /// One matrix of a pair into packed codes
    Compress(compress::CompressArgs),
    /// Training: forward and backward passes, of everything or of factors
    Train(train::TrainArgs),
    /// How far rounding (--base-dtype, --kv-dtype) moves the predictions from those of exact f32, on conversations
    Precision(precision::PrecisionArgs),
    /// Decode or prefill at several batch sizes, for the base alone, one variant, and a variant each; with a plot
    Sweep(sweep::SweepArgs),
}

#[derive(Debug, Clone, clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    base: BenchBase,
    /// Requests at the same time
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Distinct users among them, each with a variant; 0 asks the base alone
    #[arg(long, value_name = "N", default_value_t = 0)]
    users: usize,
    /// What the variants are made of, random
    #[arg(long, value_name = "KIND", default_value = "dense1", conflicts_with = "variant")]
    kind: variants::Kind,
    /// Each user's variant is a copy of this file
    #[arg(long, value_name = "FILE")]
    variant: Option<PathBuf>,
    /// Runs; the fastest counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Measures.
///
/// # Errors
/// A base that does not load, memory that does not hold what is asked, or an engine that gives other answers in company.
pub fn run(args: &BenchArgs) -> Result<(), Error> {
    match &args.command {
        BenchCommand::Decode { common, prompt, generate, over_http } => {
            serve(common, What::Decode, *prompt, *generate, *over_http)
        }
        BenchCommand::Prefill { common, prompt } => serve(common, What::Prefill, *prompt, 1, false),
        BenchCommand::Load(args) => load::run(args),
        BenchCommand::Compress(args) => compress::run(args),
        BenchCommand::Train(args) => train::run(args),
        BenchCommand::Precision(args) => precision::run(args),
        BenchCommand::Sweep(args) => sweep::run(args),
    }
}

fn serve(common: &CommonArgs, what: What, prompt: usize, generate: usize, over_http: bool) -> Result<(), Error> {
    let setting = Setting { what, batch: common.batch, prompt, generate, runs: common.runs };
    setting.check()?;
    let bar = Bar::new();
    let source = common.variant.as_ref().map_or(Source::Random(common.kind), |path| Source::Copies(path));
    let machine = machine(&common.base, source, &bar)?;
    let count = common.users.min(common.batch);
    let measured = if over_http {
        let folder = tempfile::tempdir().context("making a temporary folder")?;
        bar.during("making variants", || source.files(&machine.model, count, folder.path()))?;
        bar.during("measuring", || serving::measure_server(&machine, folder.path(), count, setting))?
    } else {
        let users = bar.during("making variants", || source.residents(&machine.model, count))?;
        bar.during("measuring", || serving::measure_engine(&machine, &users, setting))?
    };
    if common.json { print_json(&measured) } else { measured.print() }
}

/// Loads the base, and measures the memory's speed and the products'.
fn machine(base: &BenchBase, source: Source<'_>, bar: &Bar) -> Result<Machine, Error> {
    let model = base.load(bar)?;
    let threads = model.threads();
    let read_bandwidth = bar.during("measuring the memory", || bitdelta_kernels::read_bandwidth(threads));
    let delta_rate = source.bits().map(|bits| bar.during("measuring the products", || rate::dense(bits, threads)));
    Ok(Machine { model, base_dtype: base.dtype(), kind: source.name(), read_bandwidth, delta_rate })
}

/// Qwen3-4B's published shape.
pub(super) fn qwen3_4b() -> bitdelta_model::ModelConfig {
    base::Shape::Qwen3Four.config()
}

fn print_json(figures: &impl serde::Serialize) -> Result<(), Error> {
    output::line(&serde_json::to_string(figures).context("writing JSON")?)
}
