//! `bitdelta man`: the manual pages of all three programs and their commands.
use crate::{
    Context, Error,
    commands::programs::{Program, definition},
    output,
};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `man`.
#[derive(Debug, Clone, clap::Args)]
pub struct ManArgs {
    /// Folder to write to, as ~/.local/share/man/man1; made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Writes a page for each program and each command, as `bitdelta-serve.1`.
///
/// # Errors
/// A folder that cannot be made or written.
pub fn run(args: &ManArgs) -> Result<(), Error> {
    let doing = format!("writing manual pages to {}", args.dir.display());
    std::fs::create_dir_all(&args.dir).context(doing.as_str())?;
    for program in Program::ALL {
        clap_mangen::generate_to(definition(program), &args.dir).context(doing.as_str())?;
    }
    if args.json {
        return output::line(&json!({"dir": args.dir}).to_string());
    }
    output::line(&format!("wrote manual pages to {}", args.dir.display()))
}
