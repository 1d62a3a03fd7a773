//! Memory of requests on their way into the engine, bounded before it is used.
//!
//! What a client sends is counted while it comes in: all bodies together have a budget, and one that finds it spent is
//! turned away to try again. What a body may become is bounded as well: the number of its JSON values (a zero in a list
//! takes two bytes on the wire and seventy in memory), and the length of a prompt, before the tokenizer spends a hundred
//! bytes on each of its characters. From the queue on, the engine's own limits hold.
use crate::ApiError;
use axum::http::StatusCode;
use bitdelta_model::chat::{Message, Tokenizer};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of all bodies that are read or made into prompts at a time.
pub const MAX_BODIES_BYTES: usize = 64 << 20;
/// Most JSON values in a body: more than any prompt that fits a context has messages.
pub const MAX_VALUES: usize = 1 << 16;

/// What is left for requests on their way in.
#[derive(Debug)]
pub struct Room {
    bodies: Arc<Semaphore>,
    /// Prompts are made by as many threads as the machine has cores.
    prompts: Arc<Semaphore>,
    /// Characters of the vocabulary's longest token.
    longest_token: usize,
}

impl Room {
    /// All of it.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let longest = |vocabulary: std::collections::HashMap<String, u32>| {
            vocabulary.into_keys().map(|token| token.chars().count()).max().unwrap_or(1)
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            bodies: Arc::new(Semaphore::new(MAX_BODIES_BYTES)),
            prompts: Arc::new(Semaphore::new(cores)),
            longest_token: longest(tokenizer.inner().get_vocab(true)),
        }
    }

    /// Takes `bytes` of the budget for bodies until the permit is dropped.
    ///
    /// # Errors
    /// 503 when they are not there.
    pub fn hold(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.bodies).try_acquire_many_owned(count).map_err(|_| {
            let message = "the server is reading as many requests as its memory allows; try again";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_busy", message)
        })
    }

    /// A turn to make a prompt.
    ///
    /// # Errors
    /// 503 when the server ends.
    pub async fn turn(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.prompts).acquire_owned().await.map_err(|_| bitdelta_engine::Error::Stopped.into())
    }

    /// Refuses a text that has more characters than `max_tokens` of the longest tokens.
    ///
    /// # Errors
    /// 400 as for a prompt whose tokens were counted.
    pub fn check_text(&self, text: &str, max_tokens: usize) -> Result<(), ApiError> {
        // Bytes first: they are free to count and at least as many.
        let limit = max_tokens.saturating_mul(self.longest_token);
        if text.len() <= limit || text.chars().count() <= limit {
            return Ok(());
        }
        let message = format!("the prompt has more than {limit} characters; it cannot fit {max_tokens} tokens");
        Err(too_long("prompt", message))
    }

    /// The same for a chat, of which each message takes a token at least.
    ///
    /// # Errors
    /// 400 as for a prompt whose tokens were counted.
    pub fn check_messages(&self, messages: &[Message], max_tokens: usize) -> Result<(), ApiError> {
        if messages.len() > max_tokens {
            let message = format!("{} messages cannot fit {max_tokens} tokens", messages.len());
            return Err(too_long("messages", message));
        }
        let limit = max_tokens.saturating_mul(self.longest_token);
        let contents = || messages.iter().map(|message| &message.content);
        if contents().map(String::len).sum::<usize>() > limit
            && contents().map(|text| text.chars().count()).sum::<usize>() > limit
        {
            let message =
                format!("the messages have more than {limit} characters; they cannot fit {max_tokens} tokens");
            return Err(too_long("messages", message));
        }
        Ok(())
    }
}

fn too_long(param: &str, message: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message).about(param)
}

/// Refuses a body with more than [`MAX_VALUES`] JSON values, counted without building any.
///
/// # Errors
/// 400.
pub fn check_values(body: &[u8]) -> Result<(), ApiError> {
    let (mut values, mut in_text, mut escaped) = (0, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b',' | b':' | b'[' | b'{' if !in_text => values += 1,
            _ => {}
        }
    }
    if values <= MAX_VALUES {
        return Ok(());
    }
    let message = format!("the body has more than {MAX_VALUES} JSON values");
    Err(ApiError::new(StatusCode::BAD_REQUEST, "body_too_complex", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> Room {
        Room { bodies: Arc::new(Semaphore::new(100)), prompts: Arc::new(Semaphore::new(1)), longest_token: 4 }
    }

    fn message(content: &str) -> Message {
        Message { role: "user".to_owned(), content: content.to_owned() }
    }

    #[test]
    fn the_budget_of_bodies_comes_back_when_they_are_done() {
        let room = room();
        let first = room.hold(60).expect("room");
        let refused = room.hold(60).expect_err("spent");
        assert_eq!((refused.status, refused.retry_after), (StatusCode::SERVICE_UNAVAILABLE, Some(1)));
        drop(first);
        assert!(room.hold(60).is_ok());
    }

    #[test]
    fn values_are_counted_outside_of_texts() {
        let list = |count: usize| format!("[{}]", vec!["0"; count].join(","));
        assert!(check_values(list(MAX_VALUES).as_bytes()).is_ok());
        assert_eq!(check_values(list(MAX_VALUES + 1).as_bytes()).map_err(|e| e.code), Err(Some("body_too_complex")));
        let text = format!(r#"{{"prompt": "\"{}"}}"#, "[,:{".repeat(MAX_VALUES));
        assert!(check_values(text.as_bytes()).is_ok());
    }

    #[test]
    fn what_cannot_fit_is_refused_by_its_characters() {
        let room = room();
        assert!(room.check_text(&"é".repeat(40), 10).is_ok());
        let error = room.check_text(&"e".repeat(41), 10).expect_err("41 characters in 10 tokens");
        assert_eq!((error.code, error.param.as_deref()), (Some("context_length_exceeded"), Some("prompt")));
        assert!(room.check_messages(&[message(&"e".repeat(20)), message(&"é".repeat(20))], 10).is_ok());
        for messages in [vec![message("e"); 11], vec![message(&"e".repeat(21)); 2]] {
            let error = room.check_messages(&messages, 10).expect_err("too long");
            assert_eq!((error.code, error.param.as_deref()), (Some("context_length_exceeded"), Some("messages")));
        }
    }
}
