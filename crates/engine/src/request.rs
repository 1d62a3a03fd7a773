//! What goes in and what comes out.
use crate::{Error, Resident, backend::Backend, cpu::Cpu};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// Most texts of [`Request::stop`].
pub const MAX_STOPS: usize = 16;
/// Most bytes of one text of [`Request::stop`].
pub const MAX_STOP_BYTES: usize = 1024;

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
    /// For whom: places, the prompt budget and the queue are shared fairly between tenants, and the cache of prompts is
    /// each tenant's own. "" is whoever asks the base.
    pub tenant: Arc<str>,
    /// Prompt tokens.
    pub prompt: Vec<u32>,
    /// The user's variant; `None` is the base.
    pub variant: Option<Arc<Resident<B>>>,
    /// Sampling.
    pub sampling: Sampling,
    /// Most tokens of answer (clamped to the context).
    pub max_tokens: usize,
    /// Texts that end the answer; they are not part of it. At most [`MAX_STOPS`] of [`MAX_STOP_BYTES`].
    pub stop: Vec<String>,
    /// When it must be over: an answer that has begun ends there with [`FinishReason::Deadline`], one that has not
    /// fails with [`Error::Deadline`].
    pub deadline: Option<Instant>,
    /// Set by whoever does not want the answer any more.
    pub cancel: Cancel,
    /// Receives events from the engine's thread and must not block; returning false cancels the request.
    pub sink: Box<dyn FnMut(Event) -> bool + Send>,
}

/// A way to call a request back, whether it waits or runs. It ends before the next step, without a last event.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// The answer is not wanted any more.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether [`Self::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What a request's sink receives: any number of `Text`, then one `Done` or `Failed`, unless the request is cancelled.
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
    /// Those of them that an earlier request of the same tenant and variant had left in the cache.
    pub cached_tokens: usize,
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
    /// The request's deadline.
    Deadline,
}
