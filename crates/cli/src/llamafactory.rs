//! `llamafactory-cli train`, with LLaMA-Factory's habits: a YAML file, `--flag value`, `--flag=value`, `key=value`,
//! `_` or `-` in names. Every form becomes the same pairs of name and value, and later ones win.
use crate::{
    Context, Error,
    commands::{progress::Bar, train},
    output,
};
use bitdelta_train::{TrainConfig, progress::Progress};
use clap::{Arg, Command};
use std::path::Path;

const USAGE: &str = "\
Usage: llamafactory-cli train [FILE.yaml] [--NAME VALUE | --NAME=VALUE | NAME=VALUE]...

Trains a variant with LLaMA-Factory's settings; the page's command:
  llamafactory-cli train --stage sft --model_name_or_path MODEL --dataset NAME_OR_FILE \\
    --template qwen3 --finetuning_type bitdelta --output_dir ./variants/user_123 \\
    --quantization_method bitdelta --bits 1 --group_size 128 --num_train_epochs 3

stage: sft, dpo, kto or grpo. finetuning_type: bitdelta or full (all projections learn, kept at --bits), lora or lowrank (factors learn, kept
at --factor_bits), experience (with stage grpo: no weight learns; rules in words, carried in the prompt). Other commands: llamafactory-cli version. Serving and chatting: bitdelta serve, bitdelta chat.
Settings and their defaults (name: value):
";

/// Runs the command that `words` (without the program's name) ask for.
///
/// # Errors
/// Unknown commands and settings, and what training reports.
pub fn run(words: &[String]) -> Result<(), Error> {
    match words.first().map(String::as_str) {
        Some("train") if words.iter().any(|word| word == "--help" || word == "-h") => help(),
        Some("train") => {
            let (config, notes) = settings(&words[1..])?;
            let bar = Bar::new();
            notes.iter().for_each(|note| bar.say(&format!("note: {note}")));
            train::report(&train::train(&config, false)?, None)
        }
        Some("version" | "--version" | "-V") => {
            output::line(concat!("llamafactory-cli (bitdelta) ", env!("CARGO_PKG_VERSION")))
        }
        None | Some("help" | "--help" | "-h") => help(),
        Some(other @ ("api" | "chat" | "webchat" | "eval" | "export" | "webui" | "env")) => {
            let message = format!("`{other}` is not part of this llamafactory-cli, only train is; see bitdelta --help");
            Err(Error::Usage(message))
        }
        Some(other) => Err(Error::Usage(format!("unknown command {other:?}; try: llamafactory-cli train --help"))),
    }
}

fn help() -> Result<(), Error> {
    let defaults = serde_json::to_value(TrainConfig::default()).context("listing the settings")?;
    let mut text = USAGE.to_owned();
    for (name, value) in defaults.as_object().into_iter().flatten() {
        text += &format!("  {name}: {value}\n");
    }
    output::text(&text)
}

/// The program for what is made of definitions: completions and the manual page. [`run`] reads words more freely than
/// clap would.
pub fn definition() -> Command {
    let defaults = serde_json::to_value(TrainConfig::default()).unwrap_or_default();
    let settings = defaults.as_object().into_iter().flatten().map(|(name, value)| {
        let arg = Arg::new(name.clone()).long(name.clone()).value_name("VALUE");
        arg.help(format!("A setting of the training; {value} where nothing is said")).num_args(0..=1)
    });
    let file = Arg::new("file").value_name("FILE.yaml").num_args(0..).help("Settings files, and NAME=VALUE words");
    let train = Command::new("train").about("Train a variant with LLaMA-Factory's settings").args(settings).arg(file);
    Command::new("llamafactory-cli")
        .about("Train a variant with LLaMA-Factory's settings: a YAML file, flags, or NAME=VALUE words")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand(train)
        .subcommand(Command::new("version").about("Print the version"))
}

/// Checks the words after `train` as [`run`] would read them.
///
/// # Errors
/// As [`run`], for a setting that is unknown or of the wrong kind.
pub fn check(words: &[String]) -> Result<(), Error> {
    settings(words).map(drop)
}

/// The settings that words after `train` give, and notes on those without effect.
fn settings(words: &[String]) -> Result<(TrainConfig, Vec<String>), Error> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        if let Some(flag) = word.strip_prefix("--") {
            pairs.push(match flag.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                // A flag without a value is a switch; a value may begin with one dash (a negative number).
                None => {
                    let value = words.next_if(|next| !next.starts_with("--"));
                    (flag.to_owned(), value.cloned().unwrap_or_else(|| "true".to_owned()))
                }
            });
        } else if [".yaml", ".yml", ".json"].iter().any(|end| word.ends_with(end)) && Path::new(word).is_file() {
            let text = std::fs::read_to_string(word).context(format!("reading {word}"))?;
            pairs.extend(TrainConfig::pairs_of_yaml(&text).context(format!("reading {word}"))?);
        } else if let Some((name, value)) = word.split_once('=') {
            pairs.push((name.to_owned(), value.to_owned()));
        } else {
            return Err(Error::Usage(format!("{word:?} is neither a settings file, --NAME VALUE nor NAME=VALUE")));
        }
    }
    let pairs = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    // LLaMA-Factory trains LoRA when nothing is said; here that is the low-rank method, the default as well.
    TrainConfig::from_pairs(pairs).context("reading the settings")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitdelta_train::Method;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// The ZIP-7 page's command, flag for flag.
    const PAGE: &str = "--stage sft --model_name_or_path Qwen/Qwen3-4B --dataset user_123_preferences --template qwen3 \
        --finetuning_type bitdelta --output_dir ./variants/user_123 --quantization_method bitdelta --bits 1 \
        --group_size 128 --safety_threshold 0.6 --per_device_train_batch_size 4 --gradient_accumulation_steps 8 \
        --num_train_epochs 3 --learning_rate 2e-5";

    #[test]
    fn the_pages_command_means_what_it_says() {
        let (config, notes) = settings(&words(PAGE)).expect("settings");
        config.validate().expect("valid");
        assert_eq!(config.method, Method::Full);
        assert_eq!((config.bits, config.per_device_train_batch_size, config.gradient_accumulation_steps), (1, 4, 8));
        assert_eq!((config.learning_rate(), config.num_train_epochs, config.safety_threshold), (2e-5, 3.0, 0.6));
        assert_eq!(config.output_dir, Path::new("./variants/user_123"));
        assert!(notes.is_empty());
    }

    #[test]
    fn every_form_gives_the_same_settings() {
        let (flags, _) = settings(&words(PAGE)).expect("flags");
        let list = words(PAGE);
        let pairs: Vec<(&str, &str)> = list.chunks(2).map(|pair| (&pair[0][2..], pair[1].as_str())).collect();
        let form = |write: &dyn Fn(&str, &str) -> String| -> TrainConfig {
            let list: Vec<String> = pairs.iter().map(|(name, value)| write(name, value)).collect();
            settings(&list).expect("settings").0
        };
        assert_eq!(form(&|name, value| format!("{name}={value}")), flags);
        assert_eq!(form(&|name, value| format!("--{name}={value}")), flags);
        assert_eq!(form(&|name, value| format!("--{}={value}", name.replace('_', "-"))), flags);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("train.yaml");
        let yaml: String = pairs.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        std::fs::write(&path, yaml).expect("written");
        let file = path.to_str().expect("UTF-8").to_owned();
        assert_eq!(settings(std::slice::from_ref(&file)).expect("yaml").0, flags);
        let (later, _) = settings(&[file, "bits=4".to_owned()]).expect("yaml and a pair");
        assert_eq!(later.bits, 4, "what comes later wins");
    }

    #[test]
    fn switches_negative_numbers_and_settings_without_effect() {
        let (config, notes) =
            settings(&words("--overwrite_output_dir --max_steps -1 --bf16 --fp16 --plot_loss true")).expect("settings");
        assert!(config.overwrite_output_dir);
        assert_eq!(config.bf16, Some(true));
        assert_eq!(config.max_steps, -1);
        assert_eq!(notes.len(), 2);
        assert!(notes[0].contains("f32"), "{notes:?}");
    }

    #[test]
    fn a_misspelt_setting_is_refused_with_the_right_name() {
        let error = settings(&words("--learnin_rate 1e-4")).expect_err("unknown");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(cause.contains("did you mean `learning_rate`"), "{cause}");
    }
}
