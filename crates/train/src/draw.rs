//! Conversations drawn from a fine-tuned model itself, for a delta's training where its user has no data.
//!
//! A chat model asked to go on from the opening of a user's turn writes what users write, and what it was fine-tuned on
//! shows in its questions and in all of its answers. So a delta can be trained towards the model on what the model says
//! (LLM-QAT, Liu et al. 2023, 2305.17888, section 3.1, there without turns): from weights alone, and without the leaning of
//! conversations that the fine-tune knows by heart. A base itself says what a fine-tune should leave as it was.

use crate::{
    Error,
    data::Conversation,
    progress::Progress,
    sample::{Answer, Drawing, Sampler},
};
use bitdelta_delta::Variant;
use bitdelta_engine::BaseDtype;
use bitdelta_model::{
    Base,
    chat::{Message, Template},
};
use std::sync::atomic::AtomicBool;

/// Conversations that are drawn where nobody says how many.
pub const COUNT: usize = 192;
/// Conversations that are drawn from a base beside a user's, where few bytes would drift without them.
pub const GENERAL: usize = 24;
/// Most tokens of a question.
const QUESTION: usize = 64;
/// Most tokens of an answer.
const ANSWER: usize = 128;

/// At most `count` conversations of one question and one answer, drawn at temperature 1; the same for the same seed. Those
/// in which either is blank are left out. With a variant, `model` is its base.
///
/// # Errors
/// [`Error::Setting`] where the template writes nothing that a question could follow or the model says nothing; what the
/// template and the engine report.
pub fn conversations(
    model: &Base,
    variant: Option<Variant>,
    template: &Template,
    count: usize,
    seed: u64,
    progress: &dyn Progress,
) -> Result<Vec<Conversation>, Error> {
    let (opening, end) = around_a_question(model, template)?;
    let sampler = Sampler::new(model, BaseDtype::Bf16, 2 * opening.len() + QUESTION + ANSWER)?;
    let variant = variant.map(|variant| sampler.prepare(variant)).transpose()?;
    let draw = |prompts: &[Vec<u32>], max_tokens, seed, what| {
        let drawing = Drawing { temperature: 1.0, top_p: 1.0, max_tokens };
        progress.begin(what, prompts.len() as u64, "turns");
        let answers = sampler.answers(prompts, variant.as_ref(), drawing, seed, progress, &AtomicBool::new(false))?;
        progress.end();
        Ok::<_, Error>(answers.expect("nothing stops it"))
    };
    let turn = |role: &str, content: String| Message { role: role.into(), content };
    let questions = draw(&vec![opening; count], QUESTION, seed, "drawing questions")?;
    let asked: Vec<Message> = questions
        .iter()
        .map(|drawn| turn("user", until(drawn, end, model)))
        .filter(|question| !question.content.trim().is_empty())
        .collect();
    let prompts = asked
        .iter()
        .map(|question| Ok(model.tokenizer.encode_chat(std::slice::from_ref(question), template, true)?))
        .collect::<Result<Vec<_>, Error>>()?;
    let answers = draw(&prompts, ANSWER, seed.wrapping_add(count as u64), "drawing answers")?;
    let drawn: Vec<Conversation> = asked
        .into_iter()
        .zip(answers)
        .filter(|(_, answer)| !answer.text.trim().is_empty())
        .map(|(question, answer)| Conversation { messages: vec![question, turn("assistant", answer.text)] })
        .collect();
    match drawn.is_empty() && count > 0 {
        true => Err(Error::setting("draw", "the model says nothing by itself; give conversations as data")),
        false => Ok(drawn),
    }
}

/// The tokens before a user's first question, and the one that ends it.
fn around_a_question(model: &Base, template: &Template) -> Result<(Vec<u32>, Option<u32>), Error> {
    /// Stands for the question; in no template.
    const MARK: &str = "\u{2}question\u{3}";
    let marked = [Message { role: "user".into(), content: MARK.into() }];
    let text = model.tokenizer.render(&marked, template, true)?;
    let Some((before, after)) = text.split_once(MARK) else {
        return Err(Error::setting("draw", "the model's chat template leaves the user's turn out"));
    };
    let opening = model.tokenizer.encode(before, true)?;
    if opening.is_empty() {
        return Err(Error::setting(
            "draw",
            "the model's chat template begins with the user's text: nothing to go on from",
        ));
    }
    Ok((opening, model.tokenizer.encode(after, true)?.first().copied()))
}

/// The text before the token that ends a question, which is no end of an answer in every template.
fn until(drawn: &Answer, end: Option<u32>, model: &Base) -> String {
    match drawn.tokens.iter().position(|token| Some(*token) == end) {
        Some(length) => model.tokenizer.decode(&drawn.tokens[..length]),
        None => drawn.text.clone(),
    }
}
