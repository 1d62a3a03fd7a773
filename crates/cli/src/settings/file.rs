//! Settings of the configuration file as words of a command line.
use super::{Called, is_given, is_model, is_path, is_setting, section, takes_value};
use crate::Error;
use bitdelta_model::{
    configuration::{Configuration, full_path},
    nearest::nearest,
};
use clap::{Arg, ArgAction, Command};
use serde_json::Value;
use std::ffi::OsString;

/// A setting that the file gives, as words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FromFile {
    /// The option's id in its command.
    pub id: String,
    /// Its place in the file, as in `serve.port`.
    pub place: String,
    /// The option as clap writes it in messages.
    pub option: String,
    words: Vec<OsString>,
}

/// What the file gives to this command and neither the command line nor the environment does.
///
/// # Errors
/// [`Error::Usage`] for a name that no option has, or a value of the wrong kind.
pub(super) fn settings(
    configuration: &Configuration,
    program: &Command,
    called: &Called<'_>,
) -> Result<Vec<FromFile>, Error> {
    let Called { names, command: leaf, matches: given } = called;
    let mut found = Vec::new();
    let wanted = |arg: &Arg| {
        let excludes =
            |a: &Arg, b: &Arg| leaf.get_arg_conflicts_with(a).iter().any(|other| other.get_id() == b.get_id());
        let given_to = |other: &&Arg| is_given(given, other);
        !is_given(given, arg)
            && !leaf.get_arguments().filter(given_to).any(|other| excludes(arg, other) || excludes(other, arg))
    };
    let at_top = section(names).and_then(|section| Some((section, configuration.sections.get(section)?)));
    if let Some((section, settings)) = at_top {
        for (name, value) in settings {
            let place = format!("{section}.{name}");
            // Another command of the section may have it: `variants` has three.
            let Some(arg) = option(leaf, name) else {
                let mut all = of_section(program, section);
                if all.any(|command| option(command, name).is_some()) {
                    continue;
                }
                return Err(unknown(configuration, program, section, name));
            };
            let words = words(configuration, &place, arg, value)?;
            if wanted(arg) && !words.is_empty() {
                found.push(FromFile { id: arg.get_id().to_string(), place, option: arg.to_string(), words });
            }
        }
    }
    if let Some(model) = &configuration.model
        && let Some(arg) = leaf.get_arguments().find(|arg| is_model(arg))
        && wanted(arg)
        && !found.iter().any(|setting| setting.id == arg.get_id().as_str())
    {
        let words = words(configuration, "model", arg, &Value::from(model.as_str()))?;
        found.push(FromFile { id: arg.get_id().to_string(), place: "model".into(), option: arg.to_string(), words });
    }
    Ok(found)
}

/// The words with the file's settings at the end of the options.
pub(super) fn insert(words: &[OsString], settings: &[FromFile]) -> Vec<OsString> {
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let (before, after) = words.split_at(end);
    let from_file = settings.iter().flat_map(|setting| &setting.words);
    before.iter().chain(from_file).chain(after).cloned().collect()
}

/// Clap's message about an option that the file gave, with the place in the file.
pub(super) fn blame(error: &clap::Error, settings: &[FromFile], file: &Configuration) -> Option<String> {
    let text = error.render().to_string();
    let name = |setting: &FromFile| setting.option.split(' ').next().unwrap_or_default().to_owned();
    let blamed: Vec<&str> =
        settings.iter().filter(|setting| text.contains(&name(setting))).map(|setting| setting.place.as_str()).collect();
    let path = file.path.as_ref().filter(|_| !blamed.is_empty())?;
    let text = text.strip_prefix("error: ").unwrap_or(&text).lines().next().unwrap_or_default().to_owned();
    Some(format!("{text}\n  set in {}: {}", path.display(), blamed.join(", ")))
}

/// Checks all names and kinds of value in the sections of the commands that `program` has.
///
/// # Errors
/// [`Error::Usage`] for the first that is wrong.
pub(super) fn check(configuration: &Configuration, program: &Command) -> Result<(), Error> {
    for (section, settings) in &configuration.sections {
        if of_section(program, section).next().is_none() {
            continue;
        }
        for (name, value) in settings {
            let Some(arg) = of_section(program, section).find_map(|command| option(command, name)) else {
                return Err(unknown(configuration, program, section, name));
            };
            words(configuration, &format!("{section}.{name}"), arg, value)?;
        }
    }
    Ok(())
}

/// The commands whose settings the section holds, those below a command among them.
fn of_section<'a>(program: &'a Command, name: &str) -> impl Iterator<Item = &'a Command> {
    let commands = program.get_subcommands().filter(move |command| section(&[command.get_name()]) == Some(name));
    commands.flat_map(|command| std::iter::once(command).chain(command.get_subcommands()))
}

/// The option of this name in the file: its long name or another one of it, with `-` or `_`.
fn option<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let name = name.replace('_', "-");
    let has = |arg: &&Arg| {
        let other = arg.get_all_aliases().unwrap_or_default();
        is_setting(arg) && (arg.get_long() == Some(&name) || other.contains(&name.as_str()))
    };
    command.get_arguments().find(has)
}

fn unknown(configuration: &Configuration, program: &Command, section: &str, name: &str) -> Error {
    let shown = |arg: &&Arg| is_setting(arg) && !arg.is_hide_set();
    let known = of_section(program, section).flat_map(Command::get_arguments).filter(shown).filter_map(Arg::get_long);
    let advice = match nearest(&name.replace('_', "-"), known) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => {
            let command = of_section(program, section).next().map_or(section, Command::get_name);
            format!("`{} {command} --help` lists the options", program.get_name())
        }
    };
    wrong(configuration, &format!("{section}.{name}"), &format!("no option has this name; {advice}"))
}

/// A value of the file as words of a command line: none for `null`, and for a switch that is off.
fn words(configuration: &Configuration, place: &str, arg: &Arg, value: &Value) -> Result<Vec<OsString>, Error> {
    let long = arg.get_long().unwrap_or_default();
    let wrong = |problem: &str| Err(wrong(configuration, place, problem));
    let plain = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        _ => wrong("must be a plain value").map(|()| String::new()),
    };
    let word = |value: &Value| -> Result<OsString, Error> {
        let text = plain(value)?;
        let mut word = OsString::from(format!("--{long}="));
        match (is_path(arg), &configuration.path) {
            (true, Some(file)) => word.push(full_path(&text, file)),
            _ => word.push(text),
        }
        Ok(word)
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Bool(on) if !takes_value(arg) => Ok(if *on { vec![format!("--{long}").into()] } else { Vec::new() }),
        _ if !takes_value(arg) => wrong("must be true or false").map(|()| Vec::new()),
        Value::Array(values) if matches!(arg.get_action(), ArgAction::Append) => values.iter().map(word).collect(),
        Value::Array(_) | Value::Object(_) => wrong("must be one plain value").map(|()| Vec::new()),
        value => Ok(vec![word(value)?]),
    }
}

fn wrong(configuration: &Configuration, place: &str, problem: &str) -> Error {
    let path = configuration.path.as_ref().map(|path| format!("{}: ", path.display())).unwrap_or_default();
    Error::Usage(format!("{path}{place}: {problem}"))
}
