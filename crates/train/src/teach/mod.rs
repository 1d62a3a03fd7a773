//! Preferences as text or a dictionary, learnt by context distillation.
//!
//! The base with the preferences in its system turn is the teacher; the base without them learns to answer as the teacher
//! does (Askell et al. 2021, Snell et al. 2022). The teacher answers prompts; the student then learns, at each token of those
//! answers, the teacher's whole distribution rather than the token that was drawn ([`crate::objective`]). Prompts are
//! general ones ([`prompts`]), questions about each entry of a dictionary, or the user's own. The data set's prompts are
//! not used unless they are named: its answers are learnt as they are, and the teacher does not know them.
//!
//! A variant's experiences are preferences too: the teacher is told them as a server would tell the base, and what was
//! carried in every prompt becomes a delta, on the base they were learnt on or on a newer one.

pub mod prompts;

use crate::{
    Error, TrainConfig,
    batch::Example,
    data::{self, Prompt},
    objective::Taught,
    progress::Progress,
    sample::{Drawing, Sampler},
};
use bitdelta_delta::Variant;
use bitdelta_engine::{BaseDtype, prompt};
use bitdelta_model::{
    Base,
    chat::{Message, Template},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fs, io::Write, path::Path, sync::atomic::AtomicBool};

/// Where the teacher's answers are kept while a run is not finished.
const ANSWERS: &str = "answers.jsonl";
/// Tokens left for an answer at least.
const LEAST_ANSWER: usize = 8;

/// What a user prefers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preferences {
    /// As it stands in the teacher's prompt.
    pub text: String,
    /// The names of a dictionary's entries, in plain words.
    pub topics: Vec<String>,
    /// Content hash of the variant whose experiences these are.
    pub variant: Option<String>,
}

/// One line of the file of answers.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// Of everything that decides the answers.
    key: String,
    answer: String,
}

impl Preferences {
    /// From a file, or from the text itself: plain text, or a JSON dictionary or list; or from the experiences of a
    /// variant, its file or folder.
    ///
    /// # Errors
    /// [`Error::Setting`] when there is nothing in it, [`Error::Io`] or [`Error::Delta`] when the file cannot be read.
    pub fn read(file_or_text: &str) -> Result<Self, Error> {
        let path = Path::new(file_or_text);
        // A text of many lines is no path; asking for one that long is an error of the system's.
        let may_be_a_path = file_or_text.len() < 4096 && !file_or_text.contains('\n');
        let named_as_a_variant = path.extension().is_some_and(|extension| extension == "safetensors");
        if may_be_a_path && ((path.is_file() && named_as_a_variant) || path.is_dir()) {
            return Self::of_variant(path);
        }
        if may_be_a_path && path.is_file() {
            let text = fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
            return Self::parse(&text);
        }
        Self::parse(file_or_text)
    }

    /// The experiences of a variant, on whatever base it was made.
    fn of_variant(path: &Path) -> Result<Self, Error> {
        let (variant, hash) = Variant::read_hashed(path)?;
        if variant.info.experiences.is_empty() {
            let problem = format!("the variant {} has no experiences to be taught", path.display());
            return Err(Error::setting("preferences", problem));
        }
        Ok(Self { text: prompt::list(&variant.info.experiences), topics: Vec::new(), variant: Some(hash) })
    }

    /// From text, or a JSON dictionary or list.
    ///
    /// # Errors
    /// [`Error::Setting`] when there is nothing in it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let value = serde_json::from_str::<Value>(text).ok();
        let (text, topics) = match &value {
            Some(Value::Object(entries)) => {
                let entries: Vec<(String, String)> =
                    entries.iter().map(|(name, value)| (words(name), line(value))).collect();
                let entries = entries.iter().filter(|(_, value)| !value.is_empty());
                (
                    entries.clone().map(|(name, value)| format!("- {name}: {value}")).collect::<Vec<_>>().join("\n"),
                    entries.map(|(name, _)| name.clone()).collect(),
                )
            }
            Some(Value::Array(items)) => {
                let items = items.iter().map(line).filter(|item| !item.is_empty());
                (items.map(|item| format!("- {item}")).collect::<Vec<_>>().join("\n"), Vec::new())
            }
            Some(Value::String(text)) => (text.trim().to_owned(), Vec::new()),
            _ => (text.to_owned(), Vec::new()),
        };
        if text.is_empty() {
            return Err(Error::setting("preferences", "there is nothing in it"));
        }
        Ok(Self { text, topics, variant: None })
    }

    /// The teacher's turns: `messages` with the preferences in the system turn.
    pub fn told(&self, messages: &[Message]) -> Vec<Message> {
        match self.variant {
            Some(_) => prompt::told(messages, &self.text),
            None => {
                let heading = "What you know of the user, to be followed in every answer:";
                prompt::told(messages, &format!("{heading}\n{}", self.text))
            }
        }
    }
}

/// `favourite_food` -> "favourite food"
fn words(name: &str) -> String {
    name.split(['_', ' ']).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A value on one line.
fn line(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.into(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.split_whitespace().collect::<Vec<_>>().join(" "),
        Value::Array(items) => items.iter().map(line).collect::<Vec<_>>().join(", "),
        Value::Object(entries) => entries
            .iter()
            .map(|(name, value)| format!("{}: {}", words(name), line(value)))
            .collect::<Vec<_>>()
            .join("; "),
    }
}

/// The answers that `preferences` teach: prompts are chosen, the teacher answers them, and both sides are tokenised. `None`
/// when `stop` was raised. All answers are kept in `output_dir` for a run that goes on.
///
/// # Errors
/// What reading prompts, the template and the engine report.
pub fn lessons(
    base: &Base,
    template: &Template,
    config: &TrainConfig,
    preferences: &Preferences,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<Option<Vec<Taught>>, Error> {
    let prompts = match &config.preference_prompts {
        Some(name) => data::load_prompts(name, &config.dataset_dir)?,
        None => prompts::built_in(preferences),
    };
    let prompts: Vec<&Prompt> = prompts.iter().cycle().take(config.preference_samples).collect();
    let asked: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| Ok(base.tokenizer.encode_chat(&preferences.told(&prompt.messages), template, true)?))
        .collect::<Result<_, Error>>()?;
    let longest = asked.iter().map(Vec::len).max().unwrap_or(0);
    if longest + LEAST_ANSWER > config.cutoff_len {
        let problem = format!("a prompt with the preferences has {longest} tokens, which leaves no room for an answer");
        return Err(Error::setting("cutoff_len", problem));
    }
    let max_tokens = config.preference_answer_len.min(config.cutoff_len - longest);
    let Some(answers) = answers(base, config, &asked, max_tokens, progress, stop)? else { return Ok(None) };
    let mut lessons = Vec::with_capacity(prompts.len());
    for (prompt, answer) in prompts.into_iter().zip(answers) {
        if answer.trim().is_empty() {
            continue;
        }
        let whole = |messages: Vec<Message>| {
            let answer = Message { role: "assistant".into(), content: answer.clone() };
            let messages: Vec<Message> = messages.into_iter().chain([answer]).collect();
            Example::last_answer(&base.tokenizer, template, &messages)
        };
        let (student, teacher) = (whole(prompt.messages.clone())?, whole(preferences.told(&prompt.messages))?);
        // Both sides must predict the same tokens; a template that writes an answer otherwise after a system turn does not.
        if student.targets() > 0 && student.counted() == teacher.counted() {
            lessons.push(Taught::new(student, teacher));
        }
    }
    if lessons.is_empty() {
        let problem =
            "the model answers none of the prompts, or its template writes answers otherwise with a system turn";
        return Err(Error::setting("preferences", problem));
    }
    Ok(Some(lessons))
}

/// The teacher's answers: those of an earlier run with the same prompts and settings, or new ones.
fn answers(
    base: &Base,
    config: &TrainConfig,
    asked: &[Vec<u32>],
    max_tokens: usize,
    progress: &dyn Progress,
    stop: &AtomicBool,
) -> Result<Option<Vec<String>>, Error> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(base.fingerprint().as_bytes());
    hasher.update(format!("{} {max_tokens} {}", config.seed, config.preference_temperature).as_bytes());
    for prompt in asked {
        hasher.update(&(prompt.len() as u64).to_le_bytes());
        prompt.iter().for_each(|token| {
            hasher.update(&token.to_le_bytes());
        });
    }
    let key = hasher.finalize().to_hex().to_string();
    let path = config.output_dir.join(ANSWERS);
    if let Some(kept) = kept(&path, &key, asked.len()) {
        return Ok(Some(kept));
    }
    progress.begin("the teacher answers", asked.len() as u64, "prompts");
    let drawing = Drawing { temperature: config.preference_temperature, top_p: 0.95, max_tokens };
    let longest = asked.iter().map(Vec::len).max().unwrap_or(0);
    let sampler = Sampler::new(base, BaseDtype::Int8, longest + max_tokens)?;
    let found = sampler.answers(asked, None, drawing, config.seed, progress, stop)?;
    progress.end();
    let Some(found) = found else { return Ok(None) };
    let answers: Vec<String> = found.into_iter().map(|answer| answer.text).collect();
    let failed = |source: std::io::Error| Error::io(&path, source);
    let mut file = tempfile::NamedTempFile::new_in(&config.output_dir).map_err(failed)?;
    for answer in &answers {
        let line = serde_json::to_string(&Line { key: key.clone(), answer: answer.clone() });
        writeln!(file, "{}", line.map_err(|error| failed(error.into()))?).map_err(failed)?;
    }
    file.persist(&path).map_err(|error| failed(error.error))?;
    Ok(Some(answers))
}

/// The answers in the file, if all of them belong to `key`.
fn kept(path: &Path, key: &str, count: usize) -> Option<Vec<String>> {
    let text = fs::read_to_string(path).ok()?;
    let lines: Vec<Line> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().ok()?;
    let whole = lines.len() == count && lines.iter().all(|line| line.key == key);
    whole.then(|| lines.into_iter().map(|line| line.answer).collect())
}

/// Removes what only a run that goes on needs.
pub fn clean(output_dir: &Path) -> Result<(), Error> {
    let path = output_dir.join(ANSWERS);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_dictionaries_become_lines() {
        let text = Preferences::parse("  Be brief.\nNo lists. ").expect("text");
        assert_eq!((text.text.as_str(), text.topics.len()), ("Be brief.\nNo lists.", 0));
        let json = r#"{"favourite_food": "ramen", "topics": ["dogs", "hiking"], "emoji": false, "none": null,
                       "format": {"max_words": 50}}"#;
        let found = Preferences::parse(json).expect("a dictionary");
        let want = "- favourite food: ramen\n- topics: dogs, hiking\n- emoji: no\n- format: max words: 50";
        assert_eq!(found.text, want);
        assert_eq!(found.topics, ["favourite food", "topics", "emoji", "format"]);
        assert_eq!(Preferences::parse(r#"["short", "kind"]"#).expect("a list").text, "- short\n- kind");
        for empty in ["", "  ", "{}", "[]", "\"\""] {
            assert!(Preferences::parse(empty).is_err(), "{empty:?}");
        }
    }

    #[test]
    fn the_teacher_keeps_the_system_turn_that_is_there() {
        let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let preferences = Preferences::parse("be kind").expect("text");
        let told = preferences.told(&[turn("system", "You are Bo."), turn("user", "hi")]);
        assert_eq!(told.len(), 2);
        assert!(told[0].content.starts_with("You are Bo.\n\n") && told[0].content.ends_with("be kind"));
        let told = preferences.told(&[turn("user", "hi")]);
        assert_eq!((told[0].role.as_str(), told[1].content.as_str()), ("system", "hi"));
    }
}
