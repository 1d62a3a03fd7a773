//! The arguments of the `hanzo-node` binary.
use crate::{
    Error,
    commands::{keys, serve, variants},
    logging,
};
use clap::{Parser, Subcommand};

/// Serve a base model and its users' variants
#[derive(Debug, Parser)]
#[command(name = "hanzo-node", version, term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// Logs on stderr: error, warn, info, debug, trace, or a filter as in RUST_LOG
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the node: OpenAI-compatible HTTP on port 8080
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
}

/// Runs the command.
///
/// # Errors
/// What the command returns.
pub fn run(cli: &Cli) -> Result<(), Error> {
    let default = if matches!(cli.command, Command::Start { .. }) { "info" } else { "warn" };
    logging::start(cli.log_level.as_deref(), default)?;
    match &cli.command {
        Command::Start { enable_bitdelta, serve } => serve::run(serve, *enable_bitdelta),
        Command::Variants(args) => variants::run(args),
        Command::Keys(args) => keys::run(args),
    }
}
