//! How a chat with a variant becomes a prompt: with the template it was trained with, and with its experiences.
//!
//! [`chat`] is what every chat goes through, in the server, the terminal and Python; training and evaluation, which bring
//! a template of their own, take [`experienced`]. Nobody else may put experiences into a prompt: a variant is worth what
//! it was measured to be only where it is asked in the same words.

use crate::{Error, Resident, backend::Backend};
use bitdelta_model::chat::{Message, Template, Tokenizer};
use std::borrow::Cow;

/// What stands before a variant's experiences.
const HEADING: &str = "Rules learnt from earlier answers, to be followed in every answer:";

/// A chat's tokens up to where the answer begins, as `variant` is to be asked, or the base without one. With them comes a
/// sentence for whoever asked, as from [`template`].
///
/// # Errors
/// [`Error::Model`] for turns that the template refuses.
pub fn chat<B: Backend>(
    tokenizer: &Tokenizer,
    variant: Option<&Resident<B>>,
    messages: &[Message],
) -> Result<(Vec<u32>, Option<String>), Error> {
    let (template, mismatch) = template(tokenizer, variant);
    let experiences = variant.map_or(&[][..], |variant| &variant.info().experiences);
    Ok((tokenizer.encode_chat(&experienced(messages, experiences), &template, true)?, mismatch))
}

/// The turns with a variant's experiences; without any, as they are.
pub fn experienced<'a>(messages: &'a [Message], experiences: &[String]) -> Cow<'a, [Message]> {
    match experiences {
        [] => messages.into(),
        _ => told(messages, &list(experiences)).into(),
    }
}

/// Experiences as they stand in a system turn.
pub fn list(experiences: &[String]) -> String {
    experiences.iter().fold(HEADING.to_owned(), |text, experience| text + "\n- " + experience)
}

/// The turns with `text` in the system turn, after what the conversation itself has there.
pub fn told(messages: &[Message], text: &str) -> Vec<Message> {
    let (content, rest) = match messages {
        [first, rest @ ..] if first.role == "system" => (format!("{}\n\n{text}", first.content), rest),
        all => (text.to_owned(), all),
    };
    let system = Message { role: "system".into(), content };
    std::iter::once(system).chain(rest.iter().cloned()).collect()
}

/// The template that a variant was trained with, the model's own for the base: asked with another one, a fine-tune loses
/// part of what it learnt. With it comes a sentence for whoever asked, if the variant's template is not to be had.
pub fn template<B: Backend>(tokenizer: &Tokenizer, variant: Option<&Resident<B>>) -> (Template, Option<String>) {
    let Some(variant) = variant else { return (Template::Model, None) };
    let trained_with = variant.info().template.as_str();
    let own = tokenizer.template_id(&Template::Model);
    match Template::from_name(trained_with) {
        Some(template) => (template, None),
        None if trained_with == own => (Template::Model, None),
        None => {
            let user = variant.user();
            let sentence = format!(
                "the variant of {user} was trained with the chat template {trained_with}, which this model does not \
                 have; its own ({own}) is used, and part of what was learnt may be lost"
            );
            (Template::Model, Some(sentence))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    #[test]
    fn experiences_follow_the_system_turn_that_is_there_and_change_nothing_where_there_are_none() {
        let messages = [turn("system", "You are Bo."), turn("user", "hi")];
        assert_eq!(*experienced(&messages, &[]), messages);
        let lessons = ["Be brief.".to_owned(), "Give the unit.".to_owned()];
        let told = experienced(&messages, &lessons);
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].content, format!("You are Bo.\n\n{HEADING}\n- Be brief.\n- Give the unit."));
        assert_eq!(told[1], messages[1]);
        let told = experienced(&messages[1..], &lessons[..1]);
        assert_eq!(*told, [turn("system", &format!("{HEADING}\n- Be brief.")), turn("user", "hi")]);
    }
}
