//! The arguments of the `bitdelta` binary.
use crate::{
    Error,
    commands::{
        bench, chat, completions, compress, demo, doctor, eval, export, import, inspect, keys, man, publish, rebase,
        report, serve, train, variants,
    },
    logging,
    settings::{self, GlobalArgs},
};
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;

/// One base model, one small file per user
#[derive(Debug, Parser)]
#[command(name = "bitdelta", version, term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
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
    #[command(after_help = serve::SETTINGS)]
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
    /// Look at what a server would meet here: CPU, memory, disk, model, variants, port
    #[command(after_help = serve::SETTINGS)]
    Doctor(Box<doctor::DoctorArgs>),
    /// Measure how fast this machine serves many users
    Bench(bench::BenchArgs),
    /// Compare every way to make a variant: quality against bytes, over tasks and seeds, as a page
    Report(report::ReportArgs),
    /// See it work: two users trained, compressed, served and asked
    Demo(demo::DemoArgs),
    /// Talk to the base or to a user's variant in the terminal
    Chat(chat::ChatArgs),
    /// Print a shell's completions of a program
    Completions(completions::CompletionsArgs),
    /// Write the manual pages of all programs
    Man(man::ManArgs),
}

/// Reads the command line with its environment and configuration file, and runs the command.
///
/// # Errors
/// Settings of the file that cannot be, and what the command returns.
pub fn start(words: impl IntoIterator<Item = OsString>) -> Result<(), Error> {
    match settings::parse::<Cli>(words)? {
        Some(cli) => run(&cli),
        None => Ok(()),
    }
}

fn run(cli: &Cli) -> Result<(), Error> {
    let default = if matches!(cli.command, Command::Serve { .. }) { "info" } else { "warn" };
    logging::start(cli.global.log_level.as_deref(), default)?;
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
        Command::Doctor(args) => doctor::run(args, Cli::command()),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    }
}
