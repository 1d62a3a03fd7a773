//! `bitdelta bench train`: forward and backward passes of training, without the optimiser, on random tokens.

use super::{print_json, serving::prompt_tokens};
use crate::{Context, Error, output, sizes::format_bytes};
use bitdelta_model::{Base, memory};
use bitdelta_train::{
    batch::{Example, pack},
    config::TrainConfig,
    graph::{Adaptation, Graph},
    pool,
};
use serde::Serialize;
use std::time::Instant;

/// Arguments of `bench train`.
#[derive(Debug, Clone, clap::Args)]
pub struct TrainArgs {
    /// Base model: a Hugging Face folder, a .gguf file, or a hub id
    #[arg(long, visible_alias = "base", value_name = "PATH", env = "BITDELTA_MODEL", hide_env_values = true)]
    model: String,
    /// Rank of the factors that learn beside each linear; 0 trains the linears themselves
    #[arg(long, value_name = "R", default_value_t = 0)]
    rank: usize,
    /// Multiply in bfloat16, where the CPU does
    #[arg(long)]
    bf16: bool,
    /// Sequences in a pass
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// Tokens of each, all of which count
    #[arg(long, value_name = "N", default_value_t = 64)]
    length: usize,
    /// Passes; the fastest counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Serialize)]
struct Measured {
    what: &'static str,
    model: String,
    threads: usize,
    rank: usize,
    /// Whether products were of bfloat16.
    bf16: bool,
    batch: usize,
    length: usize,
    tokens_per_second: f64,
    seconds: f64,
    /// The most memory that the process held.
    peak_memory: Option<u64>,
}

/// Measures.
///
/// # Errors
/// A base that cannot be opened, or does not fit.
pub fn run(args: &TrainArgs) -> Result<(), Error> {
    let TrainArgs { rank, batch, length, runs, .. } = *args;
    if batch == 0 || length < 2 || runs == 0 {
        return Err(Error::Usage("--batch and --runs are at least 1, --length at least 2".to_owned()));
    }
    pool::join();
    let base = Base::open(&args.model).context("opening the base model")?;
    let adaptation = match rank {
        0 => Adaptation::Full,
        rank => Adaptation::LowRank { rank, scale: 1.0, seed: 42 },
    };
    let keeping = TrainConfig { bf16: Some(args.bf16), ..TrainConfig::default() }.keeping();
    let graph = Graph::kept(&base.config, &base, adaptation, keeping, length, false);
    let graph = graph.context("loading the base model")?;
    let prompts = (0..batch).map(|index| prompt_tokens(index, length, base.config.vocab));
    let examples: Vec<Example> = prompts.map(|tokens| Example { counts: vec![true; tokens.len()], tokens }).collect();
    let packed = pack(&examples);
    let mut seconds = f64::INFINITY;
    // One more warms up.
    for run in 0..=runs {
        let begun = Instant::now();
        graph.accumulate(&packed, 1.0 / packed.targets.len() as f32).context("training")?;
        if run > 0 {
            seconds = seconds.min(begun.elapsed().as_secs_f64());
        }
        for parameter in graph.parameters() {
            *parameter.gradient() = None;
        }
    }
    let measured = Measured {
        what: "train",
        model: base.name.clone(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        rank,
        bf16: keeping.precision.rounds(),
        batch,
        length,
        tokens_per_second: packed.tokens.len() as f64 / seconds,
        seconds,
        peak_memory: memory::peak(),
    };
    if args.json { print_json(&measured) } else { print(&measured) }
}

fn print(m: &Measured) -> Result<(), Error> {
    let learns = if m.rank == 0 { "all linears".to_owned() } else { format!("factors of rank {}", m.rank) };
    let memory = m.peak_memory.map_or_else(String::new, |peak| format!(", at most {} of memory", format_bytes(peak)));
    output::line(&format!(
        "train: {:.1} tokens/s forward and back in {} ({learns}; {} sequences of {} tokens, {:.2} s; {} threads{memory})",
        m.tokens_per_second,
        if m.bf16 { "bf16" } else { "f32" },
        m.batch,
        m.length,
        m.seconds,
        m.threads
    ))
}
