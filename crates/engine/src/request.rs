//! What goes in and what comes out.
use crate::{Error, Resident, backend::Backend, cpu::Cpu};
use std::sync::Arc;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// Same seed, same request, same answer.
    pub seed: u64,
}

/// One generation.
pub struct Request<B: Backend = Cpu> {
    /// Prompt tokens.
    pub prompt: Vec<u32>,
    /// The user's variant; `None` is the base.
    pub variant: Option<Arc<Resident<B>>>,
    /// Sampling.
    pub sampling: Sampling,
    /// Most tokens of answer (clamped to the context).
    pub max_tokens: usize,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Receives events from the engine's thread and must not block; returning false cancels the request.
    pub sink: Box<dyn FnMut(Event) -> bool + Send>,
}

/// What a request's sink receives: any number of `Text`, then one `Done` or `Failed`.
#[derive(Debug)]
pub enum Event {
    /// More of the answer.
    Text(String),
    /// The end.
    Done(Finish),
    /// It failed.
    Failed(Error),
}

/// How a generation ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Tokens of prompt.
    pub prompt_tokens: usize,
    /// Tokens generated (the end token not counted).
    pub completion_tokens: usize,
    /// The generated tokens.
    pub tokens: Vec<u32>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// End token or stop text.
    Stop,
    /// max_tokens or the context's end.
    Length,
}
