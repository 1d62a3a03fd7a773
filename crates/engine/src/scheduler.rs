//! Continuous batching: one thread that steps, any number that submit.
//!
//! Each step runs the next token of every running sequence beside a chunk of the prompts that are not through yet, in
//! one pass of the base. Sequences join and leave between steps. Pages of the KV cache are taken as a sequence grows;
//! when none is left the youngest sequence gives its pages back and is run again later, with the same answer, since a
//! row's result does not depend on how its prompt was cut.

use crate::{
    Error, Event, Finish, Model, Request, Resident, Sampling,
    backend::{Backend, PAGE},
    cpu::Cpu,
    forward::{Chunk, Workspace, forward},
    sequence::Sequence,
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

/// Limits of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most sequences in one step.
    pub max_batch: usize,
    /// Most prompt tokens in one step.
    pub prefill_chunk: usize,
    /// Bytes for the KV cache.
    pub kv_bytes: u64,
    /// Longest prompt plus answer, in tokens; clamped to the model's and to what the KV cache holds.
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests running now.
    pub running: usize,
    /// Requests waiting now.
    pub waiting: usize,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Prompt tokens run, those run again after a preemption included.
    pub prompt_tokens: u64,
    /// Sequences that gave their pages back to others.
    pub preemptions: u64,
}

/// A running engine. Dropping it ends its thread and with it every request.
pub struct Engine<B: Backend = Cpu> {
    model: Arc<Model<B>>,
    options: EngineOptions,
    commands: Sender<Command<B>>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Command<B: Backend> {
    Submit(Request<B>),
    /// Answer when nothing runs or waits.
    Drain(Sender<()>),
    Stop,
}

#[derive(Default)]
struct Shared {
    closed: AtomicBool,
    running: AtomicUsize,
    waiting: AtomicUsize,
    generated_tokens: AtomicU64,
    prompt_tokens: AtomicU64,
    preemptions: AtomicU64,
}

impl<B: Backend> Engine<B> {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a limit of 0; [`Error::Memory`] when the KV cache and the activations do not fit
    /// beside what is loaded, or the cache cannot hold one page of a sequence; [`Error::Threads`].
    pub fn start(model: Arc<Model<B>>, mut options: EngineOptions) -> Result<Self, Error> {
        for (name, value) in [
            ("max_batch", options.max_batch),
            ("prefill_chunk", options.prefill_chunk),
            ("max_context", options.max_context),
        ] {
            if value == 0 {
                return Err(Error::InvalidParameter { name, value: "0".into(), expected: "1 or more" });
            }
        }
        let page_bytes = model.page_bytes();
        let pages = usize::try_from(options.kv_bytes / page_bytes).unwrap_or(usize::MAX).min(u32::MAX as usize);
        if pages == 0 {
            let what = "one page of the KV cache".to_owned();
            return Err(Error::Memory { what, needed: page_bytes, available: options.kv_bytes });
        }
        options.max_context = options.max_context.min(model.base().config.max_positions).min(pages * PAGE);
        // No more pages than the whole batch can use.
        let pages = pages.min(options.max_batch * options.max_context.div_ceil(PAGE));
        let rows = options.max_batch + options.prefill_chunk;
        let needed = pages as u64 * page_bytes + Workspace::bytes(&model, rows);
        if let Some(available) = bitdelta_model::memory::available().filter(|available| *available < needed) {
            return Err(Error::Memory { what: "the KV cache".to_owned(), needed, available });
        }
        let kv = model.backend().kv(model.kv_shape(), pages)?;
        let (commands, receiver) = channel();
        let shared = Arc::new(Shared::default());
        let thread = {
            let (model, options, shared) = (model.clone(), options.clone(), shared.clone());
            let run = move || {
                let worker = Worker {
                    model: &model,
                    options: &options,
                    shared: &shared,
                    kv,
                    free: (0..pages as u32).rev().collect(),
                    space: Workspace::new(&model, rows),
                    waiting: VecDeque::new(),
                    running: Vec::new(),
                };
                worker.run(&receiver);
            };
            std::thread::Builder::new().name("bitdelta-engine".into()).spawn(run)
        };
        let thread = thread.map_err(|e| Error::Threads { reason: e.to_string() })?;
        Ok(Self { model, options, commands, shared, thread: Mutex::new(Some(thread)) })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model<B>> {
        &self.model
    }

    /// Longest prompt plus answer, in tokens.
    pub fn max_context(&self) -> usize {
        self.options.max_context
    }

    /// Checks and queues a request; its sink hears of the rest.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::PromptTooLong`], [`Error::UnknownToken`], [`Error::InvalidParameter`] for what the
    /// request asks; [`Error::Busy`] when the queue is full; [`Error::Stopped`] after [`Self::drain`] or a crash.
    pub fn submit(&self, request: Request<B>) -> Result<(), Error> {
        self.model.check_prompt(&request.prompt, self.options.max_context - 1)?;
        request.sampling.validate()?;
        if request.max_tokens == 0 {
            let expected = "1 or more";
            return Err(Error::InvalidParameter { name: "max_tokens", value: "0".into(), expected });
        }
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Error::Stopped);
        }
        let waiting = self.shared.waiting.fetch_add(1, Ordering::AcqRel);
        let result = if waiting >= self.options.max_queue {
            Err(Error::Busy { waiting })
        } else {
            self.commands.send(Command::Submit(request)).map_err(|_| Error::Stopped)
        };
        result.inspect_err(|_| {
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        })
    }

    /// Submits and waits for the whole answer.
    ///
    /// # Errors
    /// As [`Self::submit`], and what [`Event::Failed`] brings.
    pub fn generate(
        &self,
        prompt: Vec<u32>,
        variant: Option<Arc<Resident<B>>>,
        sampling: Sampling,
        max_tokens: usize,
        stop: Vec<String>,
    ) -> Result<(String, Finish), Error> {
        let (sender, events) = channel();
        let sink = Box::new(move |event| sender.send(event).is_ok());
        self.submit(Request { prompt, variant, sampling, max_tokens, stop, sink })?;
        let mut answer = String::new();
        for event in events {
            match event {
                Event::Text(text) => answer += &text,
                Event::Done(finish) => return Ok((answer, finish)),
                Event::Failed(error) => return Err(error),
            }
        }
        Err(Error::Stopped)
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        Stats {
            running: shared.running.load(Ordering::Relaxed),
            waiting: shared.waiting.load(Ordering::Relaxed),
            generated_tokens: shared.generated_tokens.load(Ordering::Relaxed),
            prompt_tokens: shared.prompt_tokens.load(Ordering::Relaxed),
            preemptions: shared.preemptions.load(Ordering::Relaxed),
        }
    }

    /// Takes no new requests and waits until those taken have ended.
    pub fn drain(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let (sender, idle) = channel();
        if self.commands.send(Command::Drain(sender)).is_ok() {
            // An error means that the thread ended, and with it all requests.
            let _ = idle.recv();
        }
    }
}

impl<B: Backend> Drop for Engine<B> {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        let thread = self.thread.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// The engine's thread.
struct Worker<'a, B: Backend> {
    model: &'a Model<B>,
    options: &'a EngineOptions,
    shared: &'a Shared,
    kv: B::Kv,
    free: Vec<u32>,
    space: Workspace<B>,
    waiting: VecDeque<Sequence<'a, B>>,
    running: Vec<Sequence<'a, B>>,
}

impl<B: Backend> Worker<'_, B> {
    fn run(mut self, commands: &Receiver<Command<B>>) {
        let mut drained: Vec<Sender<()>> = Vec::new();
        loop {
            self.shared.running.store(self.running.len(), Ordering::Relaxed);
            let idle = self.running.is_empty() && self.waiting.is_empty();
            if idle {
                for sender in drained.drain(..) {
                    // Whoever waited may have given up.
                    let _ = sender.send(());
                }
            }
            let first = if idle { commands.recv().ok() } else { None };
            if idle && first.is_none() {
                return;
            }
            for command in first.into_iter().chain(commands.try_iter()) {
                match command {
                    Command::Submit(request) => {
                        let sequence = Sequence::new(self.model.base(), request, self.options.max_context);
                        self.waiting.push_back(sequence);
                    }
                    Command::Drain(sender) => drained.push(sender),
                    Command::Stop => return,
                }
            }
            self.admit();
            self.step();
        }
    }

    /// Lets waiting sequences in, first come first served, while there is a place and pages for all they hold so far.
    fn admit(&mut self) {
        let mut promised: usize = self.running.iter().map(|s| s.tokens.len().div_ceil(PAGE) - s.pages.len()).sum();
        while self.running.len() < self.options.max_batch {
            let Some(next) = self.waiting.front() else { return };
            let needed = next.tokens.len().div_ceil(PAGE);
            if promised + needed > self.free.len() && !self.running.is_empty() {
                return;
            }
            promised += needed;
            self.running.extend(self.waiting.pop_front());
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// How many tokens each running sequence runs now, with the pages for them taken.
    fn plan(&mut self) -> Vec<usize> {
        let mut budget = self.options.prefill_chunk;
        let mut take = Vec::new();
        // By index: preemption shortens the list from its end while it is walked.
        while take.len() < self.running.len() {
            let index = take.len();
            let pending = self.running[index].tokens.len() - self.running[index].computed;
            let tokens = if pending == 1 { 1 } else { pending.min(budget) };
            if !self.reserve(index, tokens) {
                // It was itself the youngest and gave way.
                break;
            }
            if pending > 1 {
                budget -= tokens;
            }
            take.push(tokens);
        }
        take
    }

    /// Takes the pages that `tokens` more tokens of sequence `index` need, from the youngest where none is free. False
    /// when the sequence itself had to give way.
    fn reserve(&mut self, index: usize, tokens: usize) -> bool {
        loop {
            let sequence = &mut self.running[index];
            let missing = (sequence.computed + tokens).div_ceil(PAGE).saturating_sub(sequence.pages.len());
            if missing <= self.free.len() {
                sequence.pages.extend(self.free.drain(self.free.len() - missing..));
                return true;
            }
            let Some(mut youngest) = self.running.pop() else { return false };
            self.free.append(&mut youngest.pages);
            youngest.computed = 0;
            self.waiting.push_front(youngest);
            self.shared.waiting.fetch_add(1, Ordering::AcqRel);
            self.shared.preemptions.fetch_add(1, Ordering::Relaxed);
            if self.running.len() == index {
                return false;
            }
        }
    }

    fn step(&mut self) {
        let take = self.plan();
        let mut order: Vec<usize> = (0..take.len()).filter(|i| take[*i] > 0).collect();
        order.sort_by_key(|i| self.running[*i].variant.as_ref().map(Arc::as_ptr));
        let mut chunks = Vec::with_capacity(order.len());
        let mut samplers = Vec::with_capacity(order.len());
        let mut parts: Vec<_> = self
            .running
            .iter_mut()
            .map(|s| Some((&s.tokens, s.computed, &s.pages, &s.variant, &mut s.sampler)))
            .collect();
        for &i in &order {
            let Some((tokens, computed, pages, variant, sampler)) = parts[i].take() else { continue };
            let end = computed + take[i];
            let logits = if end == tokens.len() { take[i] - 1..take[i] } else { 0..0 };
            let tokens = &tokens[computed..end];
            chunks.push(Chunk { tokens, start: computed, pages, variant: variant.as_deref(), logits });
            samplers.push(sampler);
        }
        if chunks.is_empty() {
            return;
        }
        let mut next: Vec<Option<u32>> = vec![None; order.len()];
        let (model, kv, space) = (self.model, &mut self.kv, &mut self.space);
        model.backend().scope(|| {
            forward(model, &chunks, kv, space, &mut |chunk, _, logits| {
                next[chunk] = Some(samplers[chunk].choose(logits));
            });
        });
        let rows: usize = chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        let generated = next.iter().flatten().count();
        self.shared.generated_tokens.fetch_add(generated as u64, Ordering::Relaxed);
        self.shared.prompt_tokens.fetch_add((rows - generated) as u64, Ordering::Relaxed);
        self.accept(&order, &take, &next);
    }

    /// Hands each sequence its token and lets go of those that ended.
    fn accept(&mut self, order: &[usize], take: &[usize], next: &[Option<u32>]) {
        let mut ended = vec![false; self.running.len()];
        for (&i, token) in order.iter().zip(next) {
            self.running[i].computed += take[i];
            ended[i] = token.is_some_and(|token| self.running[i].accept(token));
        }
        let mut ended = ended.into_iter();
        let free = &mut self.free;
        self.running.retain_mut(|sequence| {
            let ended = ended.next().unwrap_or(false);
            if ended {
                free.append(&mut sequence.pages);
            }
            !ended
        });
    }
}
