//! Tokens and prompts against those of `transformers` (golden files of tiny models, see `tests/golden/make_tiny.py`).

use bitdelta_model::{
    Base,
    chat::{Message, Template},
};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What one model's `golden.json` holds.
#[derive(Deserialize)]
struct Golden {
    texts: Vec<Text>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: String,
    ids: Vec<u32>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// The tokenizer of `model` gives the tokens of the golden file in `folder`.
#[track_caller]
fn assert_tokens(model: &str, folder: &str) {
    let base = Base::open(golden(model).to_str().expect("a plain path")).expect("the base opens");
    let tokenizer = &base.tokenizer;
    let json = std::fs::read(golden(folder).join("golden.json")).expect("a golden file");
    let expected: Golden = serde_json::from_slice(&json).expect("golden texts");
    assert!(!expected.texts.is_empty() && !expected.chats.is_empty());
    for Text { text, ids } in expected.texts {
        assert_eq!(tokenizer.encode(&text, true).expect("tokens"), ids, "{model}: {text:?}");
        // Qwen normalises: what comes back is composed.
        if folder != "tiny-qwen3" {
            assert_eq!(tokenizer.decode(&ids), text, "{model}: there and back");
        }
    }
    for chat in expected.chats {
        let (messages, prompt) = (&chat.messages, chat.add_generation_prompt);
        let text = tokenizer.render(messages, &Template::Model, prompt).expect("a prompt");
        assert_eq!(text, chat.text, "{model}");
        let ids = tokenizer.encode_chat(messages, &Template::Model, prompt).expect("a prompt's tokens");
        assert_eq!(ids, chat.ids, "{model}: {text:?}");
    }
}

#[test]
fn a_tokenizer_json_with_its_template_in_the_configuration() {
    assert_tokens("tiny-llama", "tiny-llama");
}

#[test]
fn llama3s_splitting_and_header_template() {
    assert_tokens("tiny-llama3", "tiny-llama3");
}

#[test]
fn qwens_normalising_splitting_and_template_file() {
    assert_tokens("tiny-qwen3", "tiny-qwen3");
}

#[test]
fn a_tokenizer_inside_a_gguf_file() {
    assert_tokens("tiny-llama-gguf/q8_0.gguf", "tiny-llama");
}
