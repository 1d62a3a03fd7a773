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
    output::text(&script(args.shell, args.program))
}

fn script(shell: Shell, program: Program) -> String {
    let name = program.name();
    // The script for bash loses its way in a program whose name has a hyphen: it is made under another name, and only
    // registered for the true one.
    let plain = if shell == Shell::Bash { name.replace('-', "_") } else { name.to_owned() };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut definition(program), &plain, &mut script);
    String::from_utf8_lossy(&script).replace(&format!(" default {plain}\n"), &format!(" default {name}\n"))
}
