//! Chat templates: the model's own, run as transformers runs it, and the built-in ones.

use super::{Message, SpecialNames};
use crate::Error;
use minijinja::{Environment, ErrorKind, Value, syntax::SyntaxConfig, value::Kwargs};
use serde::Serialize;
use std::fmt::Write as _;

/// Qwen3's mark of an answer without thoughts.
const EMPTY_THOUGHTS: &str = "<think>\n\n</think>\n\n";

/// Which template makes prompts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Template {
    /// The model's own.
    #[default]
    Model,
    /// ChatML without a default system turn.
    ChatMl,
    /// ChatML with an empty think block before each answer: Qwen3 that answers at once, as LLaMA-Factory's `qwen3`.
    Qwen3,
}

impl Template {
    /// The template that a flag or a file names; `None` for an unknown name.
    ///
    /// `model`, `default` and `auto` are the model's own, and so are names that belong to one family whose models bring
    /// the template with them (`llama3`, `mistral`, `smollm`).
    pub fn from_name(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "model" | "default" | "auto" | "llama3" | "llama2" | "mistral" | "smollm" | "smollm2" => {
                Some(Self::Model)
            }
            "chatml" | "qwen" => Some(Self::ChatMl),
            "qwen3" | "qwen3_nothink" => Some(Self::Qwen3),
            _ => None,
        }
    }

    /// The name that [`Template::from_name`] takes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::ChatMl => "chatml",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Refuses a built-in template whose marks the tokenizer does not know as tokens.
    pub(super) fn check(&self, knows: impl Fn(&str) -> bool) -> Result<(), Error> {
        let needed: &[&str] = match self {
            Self::Model => &[],
            Self::ChatMl => &["<|im_start|>", "<|im_end|>"],
            Self::Qwen3 => &["<|im_start|>", "<|im_end|>", "<think>", "</think>"],
        };
        match needed.iter().find(|token| !knows(token)) {
            None => Ok(()),
            Some(token) => Err(Error::Template {
                template: self.name().to_owned(),
                reason: format!("the model's tokenizer has no token `{token}`; use the model's own template"),
            }),
        }
    }

    /// The text of a built-in template.
    pub(super) fn render_built_in(&self, messages: &[Message], add_generation_prompt: bool) -> String {
        let thoughts = if *self == Self::Qwen3 { EMPTY_THOUGHTS } else { "" };
        let mut text = String::new();
        for Message { role, content } in messages {
            let thoughts = if role == "assistant" && !content.contains("</think>") { thoughts } else { "" };
            // Writing to a string cannot fail.
            let _ = write!(text, "<|im_start|>{role}\n{thoughts}{content}<|im_end|>\n");
        }
        if add_generation_prompt {
            text.push_str("<|im_start|>assistant\n");
            text.push_str(thoughts);
        }
        text
    }
}

/// The model's own template, compiled once.
pub(super) struct ModelTemplate {
    source: Option<String>,
    /// Holds it under the name `model`; an error in it is reported when it is used.
    compiled: Result<Environment<'static>, String>,
}

impl ModelTemplate {
    pub fn new(source: Option<String>) -> Self {
        let compiled = match &source {
            Some(source) => compile(source),
            None => Err("the model has none; use chatml".to_owned()),
        };
        Self { source, compiled }
    }

    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// `model:` and the start of the source's BLAKE3.
    pub fn id(&self) -> String {
        match &self.source {
            Some(source) => format!("model:{}", &blake3::hash(source.as_bytes()).to_hex()[..12]),
            None => "model:none".to_owned(),
        }
    }

    pub fn render(
        &self,
        messages: &[Message],
        names: &SpecialNames,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let failed = |reason: String| Error::Template { template: "model".to_owned(), reason };
        let environment = self.compiled.as_ref().map_err(|reason| failed(reason.clone()))?;
        let tokens = [
            ("bos_token", &names.bos),
            ("eos_token", &names.eos),
            ("pad_token", &names.pad),
            ("unk_token", &names.unk),
        ];
        let known = tokens.into_iter().filter_map(|(name, token)| Some((name, Value::from(token.as_deref()?))));
        let context = known.chain([
            ("messages", messages.iter().map(as_value).collect()),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ]);
        let template = environment.get_template("model").map_err(|error| failed(error.to_string()))?;
        template.render(Value::from_pairs(context)).map_err(|error| failed(explain(&error)))
    }
}

/// A message as a template sees it.
fn as_value(message: &Message) -> Value {
    Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
}

/// Jinja2 as transformers sets it up: blocks trimmed, loop controls, Python's methods, and three functions of its own.
fn compile(source: &str) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    let syntax =
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|error| explain(&error))?;
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| -> Result<String, minijinja::Error> {
        let mut text = String::new();
        write!(text, "{}", chrono::Local::now().format(&format)).map_err(|_| {
            minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: bad format `{format}`"))
        })?;
        Ok(text)
    });
    environment.add_filter("tojson", to_json);
    environment.add_template_owned("model", without_generation_tags(source)).map_err(|error| explain(&error))?;
    Ok(environment)
}

/// The message that a template raised, or the engine's own with its place.
fn explain(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail(), error.line()) {
        (ErrorKind::InvalidOperation, Some(detail), _) => detail.to_owned(),
        (_, _, Some(line)) => format!("{error} (line {line})"),
        _ => error.to_string(),
    }
}

/// transformers' `{% generation %}` blocks mark answers for its own masks and print nothing: blocks that always run.
fn without_generation_tags(source: &str) -> String {
    let mut parts = source.split("{%");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let inside = part.trim_start_matches(['-', '+']).trim_start();
        let keyword = inside.split(|character: char| !character.is_alphanumeric()).next().unwrap_or_default();
        let rest = &inside[keyword.len()..];
        let lead = &part[..part.len() - inside.len()];
        match keyword {
            "generation" => text.extend(["{%", lead, "if true", rest]),
            "endgeneration" => text.extend(["{%", lead, "endif", rest]),
            _ => text.extend(["{%", part]),
        }
    }
    text
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, PythonJson)),
    };
    let bad = |error: String| minijinja::Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| bad(error.to_string()))?;
    String::from_utf8(bytes).map(Value::from_safe_string).map_err(|error| bad(error.to_string()))
}

/// Python's separators: `, ` and `: `.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message]) -> Result<String, Error> {
        let names = SpecialNames { bos: Some("<s>".into()), ..SpecialNames::default() };
        ModelTemplate::new(Some(source.to_owned())).render(messages, &names, true)
    }

    fn user(content: &str) -> Message {
        Message { role: "user".into(), content: content.into() }
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_does() {
        let source = "{% for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m.content }}]\n    {% endif %}\n{% endfor %}\nend\n";
        assert_eq!(render(source, &[user("a"), user("b")]).unwrap(), "[a]\n[b]\nend");
    }

    #[test]
    fn python_methods_and_loop_controls_work() {
        let source = "{{ bos_token }}{% for m in messages %}{% if m['content'].startswith('x') %}{% continue %}{% endif %}\
                      {{ m['content'].strip().split('|')[-1] }}{% break %}{% endfor %}{% if tools is none %}!{% endif %}";
        assert_eq!(render(source, &[user("xx"), user(" a|b "), user("c")]).unwrap(), "<s>b!");
    }

    #[test]
    fn a_template_s_own_refusal_is_the_error() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert_eq!(error.to_string(), "chat template `model`: roles must alternate");
        let error = render("{% for %}", &[]).unwrap_err().to_string();
        assert!(error.contains("syntax error"), "{error}");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        assert_eq!(
            render("{{ messages | tojson }}", &[user("<é> & \"q\"")]).unwrap(),
            r#"[{"role": "user", "content": "<é> & \"q\""}]"#
        );
        assert_eq!(render("{{ {'a': [1]} | tojson(indent=2) }}", &[]).unwrap(), "{\n  \"a\": [\n    1\n  ]\n}");
    }

    #[test]
    fn generation_blocks_print_what_is_in_them() {
        let source = "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration %}{% endfor %}";
        assert_eq!(render(source, &[user("a")]).unwrap(), "a");
    }

    #[test]
    fn a_date_takes_python_s_format_and_a_bad_one_is_an_error() {
        assert_eq!(render("{{ strftime_now('%Y') | length }}", &[]).unwrap(), "4");
        assert!(render("{{ strftime_now('%Q') }}", &[]).is_err());
    }

    #[test]
    fn names_lead_back_to_their_templates() {
        for template in [Template::Model, Template::ChatMl, Template::Qwen3] {
            assert_eq!(Template::from_name(template.name()), Some(template));
        }
        assert_eq!(Template::from_name("no-such"), None);
    }
}
