//! One example becomes a preference, a judged answer, or a prompt alone.

use super::{
    Conversation, Judged, Preference, Prompt,
    example::{Format, Shape, Wrong, kind, name_in, wrong},
};
use bitdelta_model::chat::Message;
use serde_json::{Map, Value};

impl Format {
    /// Reads one example with a chosen and a rejected answer: as texts, as turns, or as two whole conversations.
    pub(super) fn preference(&self, example: &Value) -> Result<Preference, Wrong> {
        let example = object(example)?;
        self.refuse_unsupported(example)?;
        let (chosen_name, chosen) = self.side(example, self.columns.chosen.as_deref(), "chosen")?;
        let (rejected_name, rejected) = self.side(example, self.columns.rejected.as_deref(), "rejected")?;
        let shared = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
        let shared = shared.min(chosen.len() - 1).min(rejected.len() - 1);
        let prompt = match shared {
            0 => self.prompt_messages(example)?,
            // Two whole conversations: what they share is the prompt, whatever another field repeats of it.
            _ => chosen[..shared].to_vec(),
        };
        if prompt.last().is_none_or(|message| message.role == "assistant") {
            return wrong(chosen_name, "the turns before the two answers must end with what they answer");
        }
        let answer = |name: String, turns: &[Message]| match &turns[shared..] {
            [only] if only.role == "assistant" && only.content.is_empty() => wrong(name, "is empty"),
            [only] if only.role == "assistant" => Ok(only.content.clone()),
            [only] => wrong(name, format!("must be an answer, not a turn of the {}", only.role)),
            _ => wrong(name, "must differ from the other side in its last turn alone"),
        };
        let (chosen, rejected) = (answer(chosen_name, &chosen)?, answer(rejected_name, &rejected)?);
        Ok(Preference { prompt, chosen, rejected })
    }

    /// Reads one conversation whose last answer was judged good or bad.
    pub(super) fn judged(&self, example: &Value) -> Result<Judged, Wrong> {
        let fields = object(example)?;
        let name = name_in(fields, self.columns.kto_tag.as_deref(), &["kto_tag", "label"]);
        let good = match fields.get(&name) {
            Some(Value::Bool(good)) => *good,
            // CSV has no booleans.
            Some(Value::String(word)) if word.eq_ignore_ascii_case("true") => true,
            Some(Value::String(word)) if word.eq_ignore_ascii_case("false") => false,
            Some(other) => return wrong(name, format!("must be true or false, not {}", kind(other))),
            None => return wrong(name, "is missing: was the answer good (true) or bad (false)?"),
        };
        let messages = self.messages(fields)?;
        match messages.last() {
            Some(last) if last.role == "assistant" => Ok(Judged { conversation: Conversation { messages }, good }),
            _ => wrong("example", "must end with the answer that is judged"),
        }
    }

    /// Reads what is asked, in whatever form the example has; what answers it, if anything does, becomes the reference.
    pub(super) fn prompt(&self, example: &Value) -> Result<Prompt, Wrong> {
        let example = object(example)?;
        let chosen = name_in(example, self.columns.chosen.as_deref(), &["chosen"]);
        if example.get(&chosen).is_some_and(|value| !value.is_null()) {
            let Preference { prompt, chosen, .. } = self.preference(&Value::Object(example.clone()))?;
            return Ok(Prompt { messages: prompt, reference: Some(chosen) });
        }
        let mut messages = self.prompt_messages(example)?;
        let answers = messages.iter().rev().take_while(|message| message.role == "assistant").count();
        let last = messages.split_off(messages.len() - answers).into_iter().next().map(|message| message.content);
        if messages.last().is_none_or(|message| message.role == "system") {
            return wrong("example", "there is no user turn to answer");
        }
        let reference = match last {
            None if self.shape_of(example) == Shape::Alpaca => self.alpaca_response(example)?,
            last => last,
        };
        Ok(Prompt { messages, reference })
    }

    /// The turns up to the answer: those of the list, or the instruction after its history.
    fn prompt_messages(&self, example: &Map<String, Value>) -> Result<Vec<Message>, Wrong> {
        match self.shape_of(example) {
            Shape::Sharegpt => self.turns(example),
            Shape::Alpaca => self.alpaca_prompt(example),
        }
    }

    /// One side of a preference as turns, at least one.
    fn side(
        &self,
        example: &Map<String, Value>,
        given: Option<&str>,
        usual: &str,
    ) -> Result<(String, Vec<Message>), Wrong> {
        let name = given.unwrap_or(usual).to_owned();
        let turns = match example.get(&name) {
            Some(Value::String(text)) => vec![Message { role: "assistant".into(), content: text.clone() }],
            Some(turn @ Value::Object(_)) => self.turns_of(&name, std::slice::from_ref(turn))?,
            Some(Value::Array(turns)) if !turns.is_empty() => self.turns_of(&name, turns)?,
            Some(other) => return wrong(name, format!("must be an answer (text or turns), not {}", kind(other))),
            None => return wrong(name, "is missing: a preference has `chosen` and `rejected`"),
        };
        Ok((name, turns))
    }
}

fn object(example: &Value) -> Result<&Map<String, Value>, Wrong> {
    match example.as_object() {
        Some(example) => Ok(example),
        None => wrong("example", format!("must be an object, not {}", kind(example))),
    }
}
