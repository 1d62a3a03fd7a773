//! `--show-config`: every setting of a command with its value and where that is from, as a configuration file.
use super::{Called, file::FromFile, is_model, is_path, is_setting, section, takes_value, variable_name};
use crate::Error;
use bitdelta_model::configuration::{Configuration, SECTIONS};
use clap::{Arg, ArgAction, parser::ValueSource};
use std::ffi::OsStr;

/// Column of the sources.
const WIDTH: usize = 40;

/// The text. It means the same as what was called when it is read as a configuration file; a key is not shown.
///
/// # Errors
/// [`Error::Usage`] for a command without settings in the file.
pub(super) fn text(
    configuration: &Configuration,
    called: &Called<'_>,
    from_file: &[FromFile],
) -> Result<String, Error> {
    let Some(section) = section(&called.names) else {
        let with = SECTIONS.join(", ");
        return Err(Error::Usage(format!("--show-config is of commands whose settings may stand in a file: {with}")));
    };
    let mut text = match &configuration.path {
        Some(path) => format!("# configuration file: {}\n", path.display()),
        None => "# no configuration file\n".to_owned(),
    };
    text += &format!("{section}:\n");
    for arg in called.command.get_arguments().filter(|arg| is_setting(arg) && arg.get_id() != "show_config") {
        text += &line(arg, called, from_file);
    }
    Ok(text)
}

fn line(arg: &Arg, called: &Called<'_>, from_file: &[FromFile]) -> String {
    let (long, id) = (arg.get_long().unwrap_or_default(), arg.get_id().as_str());
    let is_key = arg.get_value_names().is_some_and(|names| names.iter().any(|name| name == "KEY"));
    let source = match called.matches.value_source(id) {
        Some(ValueSource::CommandLine) => match from_file.iter().find(|setting| setting.id == id) {
            Some(setting) => format!("file, {}", setting.place),
            None => "flag".to_owned(),
        },
        Some(ValueSource::EnvVariable) => {
            let name = arg.get_env().map(|name| name.to_string_lossy().into_owned());
            format!("environment, {}", name.unwrap_or_else(|| variable_name(long)))
        }
        _ => "default".to_owned(),
    };
    let values: Vec<String> = match takes_value(arg) {
        false => vec![called.matches.get_flag(id).to_string()],
        true => {
            let raw = called.matches.get_raw(id).into_iter().flatten();
            raw.map(|value| if is_path(arg) { absolute(value) } else { scalar(&value.to_string_lossy()) }).collect()
        }
    };
    let value = match (values.as_slice(), arg.get_action()) {
        ([], _) => return format!("  # {long}: not set{}\n", if is_model(arg) { "; nor is `model`" } else { "" }),
        _ if is_key => return format!("  # {long}: not shown ({source})\n"),
        (values, ArgAction::Append) => format!("[{}]", values.join(", ")),
        (values, _) => values.join(","),
    };
    format!("  {:WIDTH$} # {source}\n", format!("{long}: {value}"))
}

/// A path that means the same in a file elsewhere.
fn absolute(path: &OsStr) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    scalar(&absolute.to_string_lossy())
}

/// A text as YAML that is read as that text: in quotes unless it is a plain word or number.
fn scalar(text: &str) -> String {
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
        && !["y", "n", "yes", "no", "on", "off", "null"].contains(&text.to_ascii_lowercase().as_str());
    let is_number = serde_json::from_str::<serde_json::Number>(text).is_ok_and(|number| number.to_string() == text);
    if is_word || is_number { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_quoted_where_yaml_would_read_something_else() {
        for plain in ["8080", "localhost", "/srv/variants", "int8", "0.5"] {
            assert_eq!(scalar(plain), plain);
        }
        for quoted in ["no", "127.0.0.1", "1GiB", "0800", "a: b", "a # b", "", "*"] {
            assert_eq!(scalar(quoted), format!("\"{quoted}\""));
        }
    }
}
