//! One request on its way: its tokens, its pages, what was said so far.

use crate::{Event, Finish, FinishReason, Request, Resident, backend::Backend, sampler::Sampler, stop::StopTexts};
use bitdelta_model::{Base, chat::StreamDecoder};
use std::sync::Arc;

/// A request that runs or waits. `tokens[..computed]` are in the KV cache; the rest is to be run, be it the prompt, the
/// last token or, after a preemption, everything again.
pub(crate) struct Sequence<'a, B: Backend> {
    base: &'a Base,
    pub tokens: Vec<u32>,
    pub computed: usize,
    pub pages: Vec<u32>,
    pub variant: Option<Arc<Resident<B>>>,
    pub sampler: Sampler,
    prompt_tokens: usize,
    /// Most tokens, prompt and answer together.
    limit: usize,
    decoder: StreamDecoder<'a>,
    stop: StopTexts,
    sink: Box<dyn FnMut(Event) -> bool + Send>,
}

impl<'a, B: Backend> Sequence<'a, B> {
    pub fn new(base: &'a Base, request: Request<B>, max_context: usize) -> Self {
        let prompt_tokens = request.prompt.len();
        Self {
            base,
            limit: prompt_tokens.saturating_add(request.max_tokens).min(max_context),
            prompt_tokens,
            tokens: request.prompt,
            computed: 0,
            pages: Vec::new(),
            variant: request.variant,
            sampler: Sampler::new(request.sampling),
            decoder: base.tokenizer.stream(),
            stop: StopTexts::new(request.stop),
            sink: request.sink,
        }
    }

    /// Takes the next token. True when the sequence has ended, by itself or because its client left.
    pub fn accept(&mut self, token: u32) -> bool {
        if self.base.config.eos.contains(&token) {
            return self.end(FinishReason::Stop);
        }
        self.tokens.push(token);
        let text = self.decoder.push(token);
        let (shown, stopped) = self.stop.push(&text);
        if !shown.is_empty() && !(self.sink)(Event::Text(shown)) {
            return true;
        }
        if stopped {
            return self.done(FinishReason::Stop);
        }
        if self.tokens.len() >= self.limit { self.end(FinishReason::Length) } else { false }
    }

    /// Ends with whatever text is still held back.
    fn end(&mut self, reason: FinishReason) -> bool {
        let last = self.decoder.finish();
        let (mut shown, stopped) = self.stop.push(&last);
        if !stopped {
            shown += &self.stop.finish();
        }
        if !shown.is_empty() && !(self.sink)(Event::Text(shown)) {
            return true;
        }
        self.done(if stopped { FinishReason::Stop } else { reason })
    }

    fn done(&mut self, reason: FinishReason) -> bool {
        let tokens = self.tokens.split_off(self.prompt_tokens);
        let (prompt_tokens, completion_tokens) = (self.prompt_tokens, tokens.len());
        (self.sink)(Event::Done(Finish { reason, prompt_tokens, completion_tokens, tokens }));
        true
    }
}
