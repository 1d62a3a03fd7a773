//! The prompts that preferences are taught on when the user names none.
//!
//! A third of them ask about the user, and each entry of a dictionary is asked about by name, since what is told once in a
//! prompt shows only where the prompt is about it; the others are what people ask assistants, so that manner and format
//! are learnt where they will be used.

use super::Preferences;
use crate::data::Prompt;
use bitdelta_model::chat::Message;

/// One prompt a line: first those about the user, then an empty line, then the others.
const BUILT_IN: &str = include_str!("prompts.txt");

/// How an entry of a dictionary is asked about.
const ABOUT: [&str; 3] = ["What is my {}?", "What do you know about my {}?", "Please remind me of my {}."];

/// Questions about each entry, then about the user and general ones in turns; general ones alone for experiences.
pub fn built_in(preferences: &Preferences) -> Vec<Prompt> {
    let (about, general) = BUILT_IN.split_once("\n\n").unwrap_or(("", BUILT_IN));
    let topics = preferences.topics.iter().flat_map(|topic| ABOUT.map(|text| text.replace("{}", topic)));
    // Experiences tell how to answer, not who asks.
    let about = if preferences.variant.is_some() { "" } else { about };
    let mut general = general.lines().filter(|line| !line.is_empty());
    let mut texts: Vec<String> = topics.collect();
    for line in about.lines() {
        texts.extend(std::iter::once(line).chain(general.by_ref().take(2)).map(str::to_owned));
    }
    texts.extend(general.map(str::to_owned));
    let prompt = |content| Prompt { messages: vec![Message { role: "user".into(), content }], reference: None };
    texts.into_iter().map(prompt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn topics_come_first_and_no_prompt_comes_twice() {
        let preferences = Preferences::parse(r#"{"dog": "Rex"}"#).expect("a dictionary");
        let prompts = built_in(&preferences);
        assert_eq!(prompts[0].messages[0].content, "What is my dog?");
        let texts: HashSet<&str> = prompts.iter().map(|prompt| prompt.messages[0].content.as_str()).collect();
        assert_eq!(texts.len(), prompts.len());
        assert!(prompts.len() > 90 && texts.iter().all(|text| text.len() > 1));
    }
}
