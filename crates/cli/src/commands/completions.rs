//! `bitdelta completions`: what a shell needs to complete the commands and options of a program.
use crate::{
    Error,
    commands::programs::{Program, definition},
    output,
};
use clap_complete::Shell;

/// Arguments of `completions`.
#[derive(Debug, Clone, clap::Args)]
pub struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell
    #[arg(value_name = "SHELL")]
    shell: Shell,
    /// The program to complete
    #[arg(value_name = "PROGRAM", default_value = "bitdelta")]
    program: Program,
}

/// Prints the script.
///
/// # Errors
/// Writing to stdout.
pub fn run(args: &CompletionsArgs) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition(args.program), args.program.name(), &mut script);
    output::text(&String::from_utf8_lossy(&script))
}
