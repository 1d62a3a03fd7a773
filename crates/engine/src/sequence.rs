//! One request's own side: how its tokens are chosen, what was said so far, and who wants to know.

use crate::{
    Cancel, Error, Event, Extras, Finish, FinishReason, Request, Resident, backend::Backend, sampler::Sampler,
    stop::StopTexts,
};
use bitdelta_model::{Base, chat::StreamDecoder};
use std::{sync::Arc, time::Instant};

/// A request that runs or waits; its tokens and pages are the schedule's.
pub(crate) struct Sequence<'a, B: Backend> {
    base: &'a Base,
    pub variant: Option<Arc<Resident<B>>>,
    pub sampler: Sampler,
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache when it began; `None` before it does.
    cached_tokens: Option<usize>,
    /// Most tokens, prompt and answer together.
    limit: usize,
    decoder: StreamDecoder<'a>,
    stop: StopTexts,
    cancel: Cancel,
    start_by: Option<Instant>,
    deadline: Option<Instant>,
    sink: Box<dyn FnMut(Event) -> bool + Send>,
}

/// What a token did to its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    GoesOn,
    Ended,
    /// Its client left.
    Left,
}

impl<'a, B: Backend> Sequence<'a, B> {
    /// The request, and its tokens. It fails when it has not begun by `start_by`.
    pub fn new(
        base: &'a Base,
        request: Request<B>,
        extras: Extras,
        max_context: usize,
        start_by: Option<Instant>,
    ) -> (Self, Vec<u32>) {
        let prompt_tokens = request.prompt.len();
        let sequence = Self {
            base,
            limit: prompt_tokens.saturating_add(request.max_tokens).min(max_context),
            prompt_tokens,
            cached_tokens: None,
            variant: request.variant,
            sampler: Sampler::new(request.sampling, extras),
            decoder: base.tokenizer.stream(),
            stop: StopTexts::new(request.stop),
            cancel: request.cancel,
            start_by,
            deadline: request.deadline,
            sink: request.sink,
        };
        (sequence, request.prompt)
    }

    /// Takes the next token.
    pub fn accept(&mut self, tokens: &mut Vec<u32>, token: u32) -> Fate {
        if let Some(error) = self.sampler.failure() {
            return self.fail(error);
        }
        if self.base.config.eos.contains(&token) {
            return self.end(tokens, FinishReason::Stop);
        }
        tokens.push(token);
        if let Err(error) = self.sampler.accept(token) {
            return self.fail(error);
        }
        let text = self.decoder.push(token);
        let (shown, stopped) = self.stop.push(&text);
        if !shown.is_empty() && !(self.sink)(Event::Text(shown)) {
            return Fate::Left;
        }
        if stopped {
            return self.done(tokens, FinishReason::Stop);
        }
        if tokens.len() >= self.limit { self.end(tokens, FinishReason::Length) } else { Fate::GoesOn }
    }

    /// Notes that it runs, `cached_tokens` of its prompt from the cache. True the first time.
    pub fn begin(&mut self, cached_tokens: usize) -> bool {
        let first = !self.has_begun();
        self.cached_tokens.get_or_insert(cached_tokens);
        first
    }

    /// Whether it has run before.
    pub fn has_begun(&self) -> bool {
        self.cached_tokens.is_some()
    }

    /// Whether its client does not want it any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Whether it must not go on.
    pub fn is_over(&self, now: Instant) -> bool {
        let past = |limit: Option<Instant>| limit.is_some_and(|limit| limit <= now);
        self.is_cancelled() || past(self.deadline) || (!self.has_begun() && past(self.start_by))
    }

    /// Ends a sequence that is over: with what there is of an answer, else with an error.
    pub fn give_up(&mut self, tokens: &mut Vec<u32>) {
        if self.is_cancelled() {
            return;
        }
        if tokens.len() > self.prompt_tokens {
            self.end(tokens, FinishReason::Deadline);
        } else {
            let begun = self.has_begun();
            // A client that left as well needs no answer.
            let _ = (self.sink)(Event::Failed(Error::Deadline { begun }));
        }
    }

    fn fail(&mut self, error: Error) -> Fate {
        (self.sink)(Event::Failed(error));
        Fate::Ended
    }

    /// Ends with whatever text is still held back.
    fn end(&mut self, tokens: &mut Vec<u32>, reason: FinishReason) -> Fate {
        let last = self.decoder.finish();
        let (mut shown, stopped) = self.stop.push(&last);
        if !stopped {
            shown += &self.stop.finish();
        }
        if !shown.is_empty() && !(self.sink)(Event::Text(shown)) {
            return Fate::Left;
        }
        self.done(tokens, if stopped { FinishReason::Stop } else { reason })
    }

    fn done(&mut self, tokens: &mut Vec<u32>, reason: FinishReason) -> Fate {
        let tokens = tokens.split_off(self.prompt_tokens);
        let (prompt_tokens, completion_tokens) = (self.prompt_tokens, tokens.len());
        let cached_tokens = self.cached_tokens.unwrap_or(0);
        (self.sink)(Event::Done(Finish { reason, prompt_tokens, cached_tokens, completion_tokens, tokens }));
        Fate::Ended
    }
}
