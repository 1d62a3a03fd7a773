//! Continuous batching.
use crate::{Error, Model, Request};
use std::sync::Arc;

/// Limits of an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    /// Most sequences in one step.
    pub max_batch: usize,
    /// Most prompt tokens prefilled in one step.
    pub prefill_chunk: usize,
    /// Bytes for the KV cache.
    pub kv_bytes: u64,
    /// Longest prompt plus answer; clamped to the model's.
    pub max_context: usize,
    /// Requests that may wait.
    pub max_queue: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_batch: 32, prefill_chunk: 256, kv_bytes: 1 << 30, max_context: 8192, max_queue: 1024 }
    }
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Requests running now.
    pub running: usize,
    /// Requests waiting now.
    pub waiting: usize,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Prompt tokens processed.
    pub prompt_tokens: u64,
}

/// A running engine: one thread that steps, any number that submit. Dropping it stops the thread.
pub struct Engine {}

impl Engine {
    /// Starts the engine's thread.
    pub fn start(model: Arc<Model>, options: EngineOptions) -> Result<Self, Error> {
        let _ = (model, options);
        unimplemented!()
    }
    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        unimplemented!()
    }
    /// Longest prompt plus answer.
    pub fn max_context(&self) -> usize {
        unimplemented!()
    }
    /// Checks and queues a request.
    pub fn submit(&self, request: Request) -> Result<(), Error> {
        let _ = request;
        unimplemented!()
    }
    /// Submits and waits for the whole answer.
    pub fn generate(&self, prompt: Vec<u32>, variant: Option<Arc<crate::Resident>>, sampling: crate::Sampling, max_tokens: usize, stop: Vec<String>) -> Result<(String, crate::Finish), Error> {
        let _ = (prompt, variant, sampling, max_tokens, stop);
        unimplemented!()
    }
    /// Counters.
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
    /// Takes no new requests and waits until the running ones end.
    pub fn drain(&self) {
        unimplemented!()
    }
}
