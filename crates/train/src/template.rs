//! From `--template NAME`, in LLaMA-Factory's names, to the template that makes the prompts.
//!
//! Models bring their template with them, and a variant is asked with it, so it is what training uses too: a fine-tune that
//! is trained with one template and asked with another loses a share of its gain. The names of other trainers are
//! therefore checked rather than followed: each stands for a mark that its family's prompts have, and where the model's
//! own template lacks the mark, the user is told. `chatml` and `qwen3` are built in.

use crate::Error;
use bitdelta_model::chat::{Message, Template, Tokenizer};

/// Marks of a family's prompts and the names that stand for it.
const FAMILIES: [(&str, &[&str]); 11] = [
    (
        "<|im_start|>",
        &["smollm", "smollm2", "chatml_de", "qwen2", "qwen2.5", "qwen2_5", "yi", "marco", "internlm2", "hermes"],
    ),
    ("<|start_header_id|>", &["llama3", "llama3.1", "llama3.2", "llama3_1", "mllama"]),
    ("<|header_start|>", &["llama4"]),
    ("[INST]", &["llama2", "llama2_zh", "mistral", "mistral_small", "ministral"]),
    ("<start_of_turn>", &["gemma", "gemma2", "gemma3"]),
    ("<|user|>", &["zephyr", "phi", "phi_small", "glm4", "granite3"]),
    ("<|im_sep|>", &["phi4"]),
    ("<｜User｜>", &["deepseek", "deepseek2", "deepseek3", "deepseekr1"]),
    ("USER:", &["vicuna", "openchat"]),
    ("### Instruction:", &["alpaca", "deepseekcoder"]),
    ("<|START_OF_TURN_TOKEN|>", &["cohere"]),
];

/// The template that `name` asks for on a model with this tokenizer, and what the user should know about it.
///
/// # Errors
/// [`Error::Setting`] for a name that stands for nothing.
pub fn choose(name: Option<&str>, tokenizer: &Tokenizer) -> Result<(Template, Option<String>), Error> {
    let template = named(name)?;
    let name = name.unwrap_or("model");
    if template != Template::Model {
        let turn = Message { role: "user".into(), content: "a".into() };
        return match tokenizer.render(&[turn], &template, true) {
            Ok(_) => Ok((template, None)),
            Err(wrong) if tokenizer.chat_template().is_some() => Ok((
                Template::Model,
                Some(format!("template {name} does not fit this model, whose own is used: {wrong}")),
            )),
            Err(wrong) => Err(wrong.into()),
        };
    }
    let Some(mark) = mark_of(name) else { return Ok((template, None)) };
    let fits = tokenizer.chat_template().is_some_and(|own| own.contains(mark));
    let problem = || format!("template {name}: the model's own is used, and it has no {mark}, as that of {name} has");
    Ok((template, (!fits).then(problem)))
}

/// The template of that name, whatever the model.
///
/// # Errors
/// [`Error::Setting`] for a name that stands for nothing.
pub fn named(name: Option<&str>) -> Result<Template, Error> {
    let name = name.unwrap_or("model");
    let own = mark_of(name).is_some() || name == "empty";
    Template::from_name(name).or(own.then_some(Template::Model)).ok_or_else(|| {
        let problem = format!("{name:?} is unknown; leave it out for the model's own, or use chatml or qwen3");
        Error::setting("template", problem)
    })
}

fn mark_of(name: &str) -> Option<&'static str> {
    let name = name.trim().to_ascii_lowercase();
    FAMILIES.iter().find(|(_, names)| names.contains(&name.as_str())).map(|(mark, _)| *mark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitdelta_model::Base;

    fn tokenizer(model: &str) -> Base {
        let path = format!("{}/../../tests/golden/{model}", env!("CARGO_MANIFEST_DIR"));
        Base::open(&path).expect("the tiny model")
    }

    #[test]
    fn names_of_other_families_fall_back_to_the_models_own_and_say_so() {
        let base = tokenizer("tiny-llama");
        let own = base.tokenizer.chat_template().expect("a template").to_owned();
        for (name, mark) in
            [("llama3", "<|start_header_id|>"), ("smollm2", "<|im_start|>"), ("gemma", "<start_of_turn>")]
        {
            let (template, warning) = choose(Some(name), &base.tokenizer).expect(name);
            assert_eq!(template, Template::Model);
            assert_eq!(warning.is_none(), own.contains(mark), "{name}: {warning:?}");
        }
        assert_eq!(choose(None, &base.tokenizer).expect("none"), (Template::Model, None));
        let error = choose(Some("no-such"), &base.tokenizer).expect_err("unknown").to_string();
        assert!(error.contains("template") && error.contains("no-such"), "{error}");
    }

    #[test]
    fn a_built_in_template_that_the_tokenizer_cannot_spell_gives_way_with_a_warning() {
        let llama = tokenizer("tiny-llama");
        let knows = |token: &str| llama.tokenizer.token_id(token).is_some();
        let (template, warning) = choose(Some("qwen3"), &llama.tokenizer).expect("falls back");
        let fits = knows("<think>") && knows("<|im_start|>");
        assert_eq!((template == Template::Qwen3, warning.is_none()), (fits, fits), "{warning:?}");
    }
}
