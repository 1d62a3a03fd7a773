//! The arguments of the `hanzo-node` binary.
use crate::{
    Error,
    commands::{doctor, keys, serve, variants},
    logging,
    settings::{self, GlobalArgs},
};
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;

/// Serve a base model and its users' variants
#[derive(Debug, Parser)]
#[command(name = "hanzo-node", version, term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the node: OpenAI-compatible HTTP on port 8080
    #[command(after_help = serve::SETTINGS)]
    Start {
        /// Serve users' variants; without it the node answers from the base alone
        #[arg(long)]
        enable_bitdelta: bool,
        #[command(flatten)]
        serve: Box<serve::ServeArgs>,
    },
    /// Load, unload and list the variants of a running node
    Variants(variants::VariantsArgs),
    /// Make, list and revoke the API keys of a node
    Keys(keys::KeysArgs),
    /// Look at what a node would meet here: CPU, memory, disk, model, variants, port
    #[command(after_help = serve::SETTINGS)]
    Doctor(Box<doctor::DoctorArgs>),
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
    let default = if matches!(cli.command, Command::Start { .. }) { "info" } else { "warn" };
    logging::start(cli.global.log_level.as_deref(), default)?;
    match &cli.command {
        Command::Start { enable_bitdelta, serve } => serve::run(serve, *enable_bitdelta),
        Command::Variants(args) => variants::run(args),
        Command::Keys(args) => keys::run(args),
        Command::Doctor(args) => doctor::run(args, Cli::command()),
    }
}
