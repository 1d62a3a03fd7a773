//! One definition of every setting: a command's own options. Flags go before variables of the environment, and both before
//! the configuration file.
//!
//! A line of the file's section `serve:` is that option of `serve`, given in front: what it may be, what it needs and what
//! it excludes is checked by the one definition that clap has. So the words of a command line are read twice: once to see
//! which options they (or the environment) give, and again with the file's words for the options that are left (`file.rs`).
//! `show.rs` prints where each value came from.
mod file;
mod show;

use crate::{Context, Error, output};
use bitdelta_model::configuration::{self, Configuration};
use clap::{
    Arg, ArgMatches, Command, Parser,
    builder::{BoolishValueParser, Resettable},
    error::ErrorKind,
    parser::ValueSource,
};
use std::{any::TypeId, ffi::OsString, path::PathBuf};

/// Options that every command has.
#[derive(Debug, Clone, clap::Args)]
pub struct GlobalArgs {
    /// Logs on stderr: error, warn, info, debug, trace, or a filter as in RUST_LOG
    #[arg(long, global = true, value_name = "LEVEL", display_order = 990)]
    pub log_level: Option<String>,
    /// Configuration file, in place of ~/.config/bitdelta/config.yaml
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "BITDELTA_CONFIG",
        hide_env_values = true,
        display_order = 991
    )]
    config: Option<PathBuf>,
    /// Print the settings and where each comes from, as a configuration file, and end
    #[arg(long, global = true, display_order = 992)]
    show_config: bool,
}

/// Reads the command line. `None` when there is nothing left to do: `--show-config` has printed.
///
/// Help, the version, and what clap finds wrong with the words themselves end the process as clap ends it.
///
/// # Errors
/// [`Error::Usage`] for settings of the file that are unknown or cannot be, [`Error::Step`] for a file that cannot be read.
pub fn parse<P: Parser>(words: impl IntoIterator<Item = OsString>) -> Result<Option<P>, Error> {
    let words: Vec<OsString> = words.into_iter().collect();
    let command = definition(P::command());
    if let Err(error) = command.clone().try_get_matches_from(&words)
        // What is missing may be in the file.
        && error.kind() != ErrorKind::MissingRequiredArgument
    {
        error.exit();
    }
    // The environment's values and what was read so far, without complaint about what is missing.
    let given = command.clone().ignore_errors(true).try_get_matches_from(&words).unwrap_or_else(|error| error.exit());
    if let Some(path) = given.get_one::<PathBuf>("config").filter(|path| !path.as_os_str().is_empty()) {
        configuration::choose(path.clone());
    }
    let configuration = load()?;
    let mut built = command.clone();
    built.build();
    let from_file = file::settings(&configuration, &built, &Called::innermost(&built, &given))?;
    let matches = match command.try_get_matches_from(file::insert(&words, &from_file)) {
        Ok(matches) => matches,
        Err(error) => match file::blame(&error, &from_file, &configuration) {
            Some(message) => return Err(Error::Usage(message)),
            None => error.exit(),
        },
    };
    if matches.get_flag("show_config") {
        output::text(&show::text(&configuration, &Called::innermost(&built, &matches), &from_file)?)?;
        return Ok(None);
    }
    P::from_arg_matches(&matches).map(Some).map_err(|error| Error::Usage(error.to_string()))
}

/// Checks every section of the configuration file whose command this program has.
///
/// # Errors
/// [`Error::Usage`] for the first setting that is unknown, [`Error::Step`] for a file that does not read.
pub fn check_file(program: Command) -> Result<Configuration, Error> {
    let configuration = load()?;
    let mut program = definition(program);
    program.build();
    file::check(&configuration, &program)?;
    Ok(configuration)
}

/// The configuration file; one that says what cannot be is as wrong as such words.
fn load() -> Result<Configuration, Error> {
    match configuration::load() {
        Err(error @ bitdelta_model::Error::Malformed { .. }) => Err(Error::Usage(error.to_string())),
        result => result.context("reading the configuration"),
    }
}

/// The section that holds a command's settings: `start` is `serve`, and `doctor` looks at what `serve` would meet.
fn section<'a>(names: &[&'a str]) -> Option<&'a str> {
    match names.first() {
        Some(&("serve" | "start" | "doctor")) => Some("serve"),
        Some(name) if configuration::SECTIONS.contains(name) => Some(name),
        _ => None,
    }
}

/// The program with a variable for each option of its server: `BITDELTA_` and the option's name.
fn definition(program: Command) -> Command {
    program.mut_args(without_empty).mut_subcommands(|command| match section(&[command.get_name()]) {
        Some("serve") => command.mut_args(variable).mut_args(without_empty),
        _ => command.mut_args(without_empty).mut_subcommands(|below| below.mut_args(without_empty)),
    })
}

fn variable(arg: Arg) -> Arg {
    let Some(long) = arg.get_long().filter(|_| arg.get_env().is_none() && is_setting(&arg)) else { return arg };
    let name = variable_name(long);
    let arg = match takes_value(&arg) {
        true => arg,
        false => arg.value_parser(BoolishValueParser::new()),
    };
    arg.env(name).hide_env(true)
}

/// A variable that is there and empty says nothing.
fn without_empty(arg: Arg) -> Arg {
    match arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty()) {
        true => arg.env(Resettable::Reset),
        false => arg,
    }
}

fn variable_name(long: &str) -> String {
    format!("BITDELTA_{}", long.replace('-', "_").to_ascii_uppercase())
}

/// Whether an option is a setting, and not a word about this one call.
fn is_setting(arg: &Arg) -> bool {
    arg.get_long().is_some() && !["config", "show_config", "help", "version", "json"].contains(&arg.get_id().as_str())
}

/// Whether an option is followed by a value.
fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// Whether an option's values are paths.
fn is_path(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<PathBuf>()
}

/// Whether this option is the base model, which has a place of its own at the file's top.
fn is_model(arg: &Arg) -> bool {
    matches!(arg.get_long(), Some("model" | "base"))
}

/// The innermost command that was called.
struct Called<'a> {
    /// The names on the way to it, without the program's.
    names: Vec<&'a str>,
    command: &'a Command,
    /// What was given to it.
    matches: &'a ArgMatches,
}

impl<'a> Called<'a> {
    fn innermost(program: &'a Command, matches: &'a ArgMatches) -> Self {
        let mut called = Self { names: Vec::new(), command: program, matches };
        while let Some((name, below)) = called.matches.subcommand()
            && let Some(found) = called.command.find_subcommand(name)
        {
            called.names.push(found.get_name());
            (called.command, called.matches) = (found, below);
        }
        called
    }
}

/// Whether the command line or the environment gives this option.
fn is_given(matches: &ArgMatches, arg: &Arg) -> bool {
    let source = matches.try_contains_id(arg.get_id().as_str()).ok().and(matches.value_source(arg.get_id().as_str()));
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}
