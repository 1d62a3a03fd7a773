//! The arguments of the `bitdelta` binary.
use crate::{
    Error,
    commands::{
        bench, chat, compress, demo, eval, export, import, inspect, keys, publish, rebase, report, serve, train,
        variants,
    },
    logging,
};
use clap::{Parser, Subcommand};

/// One base model, one small file per user
#[derive(Debug, Parser)]
#[command(name = "bitdelta", version, term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// Logs on stderr: error, warn, info, debug, trace, or a filter as in RUST_LOG
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a variant file of a base and a model that was fine-tuned from it
    Compress(compress::CompressArgs),
    /// Show what is in a variant file
    Inspect(inspect::InspectArgs),
    /// Measure on held-out conversations what a variant keeps of its fine-tune
    Eval(eval::EvalArgs),
    /// Make a variant file of a LoRA, rsLoRA or DoRA adapter
    Import(import::ImportArgs),
    /// Write a variant for other programs: merged into its base, or as a LoRA adapter
    Export(export::ExportArgs),
    /// Move a variant to a new version of its base
    Rebase(rebase::RebaseArgs),
    /// Train a user's variant from conversations
    Train(Box<train::TrainArgs>),
    /// Put a variant into a server's folder, checked and whole
    Publish(publish::PublishArgs),
    /// Serve a base and its users' variants over OpenAI-compatible HTTP
    Serve {
        #[command(flatten)]
        serve: Box<serve::ServeArgs>,
        /// Always on here; taken so that hanzo-node's arguments work as they are
        #[arg(long, hide = true)]
        enable_bitdelta: bool,
    },
    /// Load, unload and list the variants of a running server
    Variants(variants::VariantsArgs),
    /// Make, list and revoke the API keys of a server
    Keys(keys::KeysArgs),
    /// Measure how fast this machine serves many users
    Bench(bench::BenchArgs),
    /// Compare every way to make a variant: quality against bytes, over tasks and seeds, as a page
    Report(report::ReportArgs),
    /// See it work: two users trained, compressed, served and asked
    Demo(demo::DemoArgs),
    /// Talk to the base or to a user's variant in the terminal
    Chat(chat::ChatArgs),
}

/// Runs the command.
///
/// # Errors
/// What the command returns.
pub fn run(cli: &Cli) -> Result<(), Error> {
    let default = if matches!(cli.command, Command::Serve { .. }) { "info" } else { "warn" };
    logging::start(cli.log_level.as_deref(), default)?;
    match &cli.command {
        Command::Compress(args) => compress::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Import(args) => import::run(args),
        Command::Export(args) => export::run(args),
        Command::Rebase(args) => rebase::run(args),
        Command::Train(args) => train::run(args),
        Command::Publish(args) => publish::run(args),
        Command::Serve { serve, .. } => serve::run(serve, true),
        Command::Variants(args) => variants::run(args),
        Command::Keys(args) => keys::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Report(args) => report::run(args),
        Command::Demo(args) => demo::run(args),
    }
}
