//! Asking the model for a lesson: what the better of two answers did that the worse did not, as one rule in words.
//!
//! The model is shown four such comparisons first, about units, language, order and length, so that a small one knows the
//! form; fewer where its context is short. A small model does not count words, so their number stands with each answer.
//! What it says is untrusted text: [`clean`] takes a rule out of it, or nothing.

use bitdelta_delta::file::MAX_EXPERIENCE_BYTES;
use bitdelta_model::chat::Message;

/// Tokens that the request itself takes at most, with its examples and the rule, in tokenizers of this size's models.
pub(super) const ROOM: usize = 640;
/// Comparisons that can be shown.
pub(super) const EXAMPLES: usize = 4;

/// A question, its better answer, its worse one, and the rule.
const SHOWN: [(&str, &str, &str, &str); EXAMPLES] = [
    ("How far is it from Rome to Milan?", "About 480 kilometres.", "About 480.", "Give the unit with every number."),
    ("Comment dit-on thank you ?", "On dit merci.", "You say merci.", "Answer in the language of the question."),
    (
        "Can I eat raw chicken?",
        "No. Cook it until it is no longer pink.",
        "Many people wonder about chicken. It is a kind of meat.",
        "Begin with yes or no when the question allows it.",
    ),
    (
        "What do sheep eat?",
        "Mostly grass.",
        "Sheep are interesting animals. They have been kept for thousands of years, and mostly they eat grass.",
        "Answer in a few words.",
    ),
];

/// The turns that ask for a rule of at most `words` words, after so many `examples`.
pub(super) fn ask(question: &str, better: &str, worse: &str, words: usize, examples: usize) -> Vec<Message> {
    let turn = |role: &str, content: String| Message { role: role.into(), content };
    let told = format!(
        "You compare a better and a worse answer to one question. Say as an order what to do in every answer to be like \
         the better one: one short sentence of at most {words} words, useful for other questions too, and nothing else."
    );
    let compared = |question: &str, better: &str, worse: &str| {
        let words = |answer: &str| answer.split_whitespace().count();
        format!(
            "Question: {}\n\nBetter answer ({} words): {}\n\nWorse answer ({} words): {}\n\nRule:",
            question.trim(),
            words(better),
            better.trim(),
            words(worse),
            worse.trim()
        )
    };
    let mut turns = vec![turn("system", told)];
    for (question, better, worse, rule) in SHOWN.into_iter().take(examples) {
        turns.push(turn("user", compared(question, better, worse)));
        turns.push(turn("assistant", rule.into()));
    }
    turns.push(turn("user", compared(question, better, worse)));
    turns
}

/// The rule in what the model said: its first line, without marks around it, as many whole sentences as `words` allows, each
/// once.
pub(super) fn clean(said: &str, words: usize) -> Option<String> {
    let said = said.rsplit("</think>").next().unwrap_or(said);
    let line = said.lines().map(str::trim).find(|line| line.chars().any(char::is_alphanumeric))?;
    let line = ["Rule:", "Lesson:"].iter().fold(line, |line, label| {
        let led = line.get(..label.len()).is_some_and(|start| start.eq_ignore_ascii_case(label));
        if led { &line[label.len()..] } else { line }
    });
    let marks = |c: char| c.is_whitespace() || matches!(c, '-' | '*' | '•' | '"' | '“' | '”' | '`' | '#');
    let numbered = line.trim_start_matches(marks).trim_start_matches(|c: char| c.is_ascii_digit());
    // "2. Be kind" is an item of a list, "2 answers" is not.
    let line = match numbered.strip_prefix(['.', ')']) {
        Some(rest) if rest.starts_with(' ') => rest,
        _ => line,
    };
    let line = line.trim_matches(marks);
    let mut rule = String::new();
    for sentence in line.split_inclusive(['.', '!', '?', '。']) {
        if rule.contains(sentence.trim()) {
            continue;
        }
        let longer = format!("{rule}{sentence}");
        if longer.split_whitespace().count() > words {
            break;
        }
        rule = longer;
    }
    let plain = rule.split_whitespace().collect::<Vec<_>>().join(" ");
    let rule: String = plain.chars().filter(|c| !c.is_control()).collect();
    // Tokens that make no text leave this mark.
    let whole = !rule.contains(char::REPLACEMENT_CHARACTER) && rule.len() <= MAX_EXPERIENCE_BYTES;
    (whole && rule.chars().filter(|c| c.is_alphabetic()).count() >= 4).then_some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_found_in_what_a_model_says() {
        for (said, rule) in [
            ("Give the unit.", Some("Give the unit.")),
            ("\n\n- \"Be  brief and\tkind.\"\nBecause …", Some("Be brief and kind.")),
            ("Rule: 1. Answer with one word", Some("Answer with one word")),
            ("<think>\nhm\n</think>\n\nBe kind.", Some("Be kind.")),
            ("Answer in one line. Then say a good deal more than fits in here.", Some("Answer in one line.")),
            ("One sentence that never ends and goes on and on and on", None),
            ("…", None),
            ("42", None),
            ("be \u{fffd} kind", None),
            ("Be kind. Be kind. Be kind.", Some("Be kind.")),
            ("", None),
        ] {
            assert_eq!(clean(said, 8).as_deref(), rule, "{said:?}");
        }
        assert_eq!(clean(&"x".repeat(MAX_EXPERIENCE_BYTES + 1), 8), None);
    }

    #[test]
    fn both_answers_are_asked_about() {
        let turns = ask(" Who? ", "Ann.", "It was Ann, I think.", 20, 2);
        assert_eq!(turns.len(), 6);
        let last = &turns[turns.len() - 1];
        assert_eq!(last.role, "user");
        let want =
            "Question: Who?\n\nBetter answer (1 words): Ann.\n\nWorse answer (5 words): It was Ann, I think.\n\nRule:";
        assert_eq!(last.content, want);
        assert!(turns[0].content.contains("20 words"));
    }
}
