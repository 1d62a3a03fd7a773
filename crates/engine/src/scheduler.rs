//! Continuous batching: one thread that steps, any number that submit.
//!
//! Each step runs the next token of every running sequence beside a chunk of the prompts that are not through yet, in
//! one pass of the base. Sequences join and leave between steps: who is next, who gives way and how the prompts share a
//! step is decided in `schedule.rs`, which knows no model; who may wait in `gate.rs`; `worker.rs` is the thread. A
//! sequence that gave its pages back is run again later, with the same answer, since a row's result does not depend on
//! how its prompt was cut. For the same reason it may take up the pages that an earlier request left (`pages.rs`).

use crate::{
    Cancel, Error, Event, Extras, Finish, Model, Request, Resident, Sampling,
    backend::{Backend, PAGE},
    cpu::Cpu,
    error::check_memory,
    forward::{Phases, Workspace},
    gate::{Gate, Pace},
    pages::Pages,
    request::{MAX_STOP_BYTES, MAX_STOPS},
    schedule::Schedule,
    worker::Worker,
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Most sequences and most prompt tokens of a step that can be asked for.
const MAX_ROWS: usize = 1 << 16;

/// Limits of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most sequences in one step.
    pub max_batch: usize,
    /// Most prompt tokens in one step, shared by the tenants with prompts to run.
    pub prefill_chunk: usize,
    /// Bytes for the KV cache.
    pub kv_bytes: u64,
    /// Longest prompt plus answer, in tokens; clamped to the model's and to what the KV cache holds.
    pub max_context: usize,
    /// Requests that may wait; of one tenant, as many as places are left.
    pub max_queue: usize,
    /// Longest wait in the queue; a request that has not begun by then fails with [`Error::Deadline`].
    pub max_wait: Option<Duration>,
    /// Whether equal beginnings of one tenant's prompts on one variant are computed once and kept while there is room.
    pub share_prefixes: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_batch: 32,
            prefill_chunk: 256,
            kv_bytes: 1 << 30,
            max_context: 8192,
            max_queue: 1024,
            max_wait: None,
            share_prefixes: true,
        }
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
    /// Prompt tokens that were not run, since an earlier request had left them in the cache.
    pub reused_tokens: u64,
    /// Times a sequence gave its place or its pages to others.
    pub preemptions: u64,
    /// Requests whose client left before the end.
    pub cancelled: u64,
    /// Requests that a deadline ended.
    pub expired: u64,
    /// Where the time of all steps went.
    pub phases: Phases,
}

/// A running engine. Dropping it ends its thread and with it every request.
pub struct Engine<B: Backend = Cpu> {
    model: Arc<Model<B>>,
    options: EngineOptions,
    kv_bytes: u64,
    commands: Sender<Command<B>>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the engine's thread is told.
pub(crate) enum Command<B: Backend> {
    /// A request, what else it wants, and when it must have begun.
    Submit(Request<B>, Extras, Option<Instant>),
    /// Answer when nothing runs or waits.
    Drain(Sender<()>),
    Stop,
}

/// What both sides see.
pub(crate) struct Shared {
    closed: AtomicBool,
    pub gate: Gate,
    pub running: AtomicUsize,
    /// Requests that gave way and wait again.
    pub waiting_again: AtomicUsize,
    pub generated_tokens: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub reused_tokens: AtomicU64,
    pub preemptions: AtomicU64,
    pub cancelled: AtomicU64,
    pub expired: AtomicU64,
    phases: Mutex<Phases>,
}

impl Shared {
    /// Publishes where the time of all steps so far went.
    pub fn note_phases(&self, phases: Phases) {
        *self.phases.lock().unwrap_or_else(PoisonError::into_inner) = phases;
    }

    fn new(max_queue: usize) -> Self {
        Self {
            closed: AtomicBool::new(false),
            gate: Gate::new(max_queue),
            running: AtomicUsize::new(0),
            waiting_again: AtomicUsize::new(0),
            generated_tokens: AtomicU64::new(0),
            prompt_tokens: AtomicU64::new(0),
            reused_tokens: AtomicU64::new(0),
            preemptions: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            phases: Mutex::default(),
        }
    }
}

impl<B: Backend> Engine<B> {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a limit of 0, or one that no step could have; [`Error::Memory`] when the KV cache and the activations do not fit
    /// beside what is loaded, or the cache cannot hold one page of a sequence; [`Error::Threads`].
    pub fn start(model: Arc<Model<B>>, mut options: EngineOptions) -> Result<Self, Error> {
        for (name, value, most) in [
            ("max_batch", options.max_batch, MAX_ROWS),
            ("prefill_chunk", options.prefill_chunk, MAX_ROWS),
            ("max_context", options.max_context, usize::MAX),
        ] {
            if !(1..=most).contains(&value) {
                let expected = if most == MAX_ROWS { "1 to 65536" } else { "1 or more" };
                return Err(Error::InvalidParameter { name, value: value.to_string(), expected });
            }
        }
        let page_bytes = model.kv_page_bytes();
        let pages = usize::try_from(options.kv_bytes / page_bytes).unwrap_or(usize::MAX).min(u32::MAX as usize);
        if pages == 0 {
            let what = "one page of the KV cache".to_owned();
            return Err(Error::Memory { what, needed: page_bytes, available: options.kv_bytes });
        }
        options.max_context = options.max_context.min(model.base().config.max_positions).min(pages * PAGE);
        // No more pages than the whole batch can use, and as much three times again to keep what it computed.
        let batches = if options.share_prefixes { 4 } else { 1 };
        let pages = pages.min((batches * options.max_batch).saturating_mul(options.max_context.div_ceil(PAGE)));
        let rows = options.max_batch + options.prefill_chunk;
        let needed = pages as u64 * page_bytes + Workspace::bytes(&model, rows);
        check_memory(|| "the KV cache".to_owned(), needed)?;
        let kv = model.backend().kv(model.kv_shape(), pages)?;
        let (commands, receiver) = channel();
        let shared = Arc::new(Shared::new(options.max_queue));
        let thread = {
            let (model, options, shared) = (model.clone(), options.clone(), shared.clone());
            let run = move || {
                let worker = Worker {
                    model: &model,
                    options: &options,
                    shared: &shared,
                    kv,
                    space: Workspace::new(&model, rows),
                    schedule: Schedule::new(
                        options.max_batch,
                        options.prefill_chunk,
                        Pages::new(pages, options.share_prefixes),
                    ),
                    taken: 0,
                    pace: Pace::default(),
                };
                worker.run(&receiver);
            };
            std::thread::Builder::new().name("bitdelta-engine".into()).spawn(run)
        };
        let thread = thread.map_err(|e| Error::Threads { reason: e.to_string() })?;
        let kv_bytes = pages as u64 * page_bytes;
        Ok(Self { model, options, kv_bytes, commands, shared, thread: Mutex::new(Some(thread)) })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model<B>> {
        &self.model
    }

    /// Longest prompt plus answer, in tokens.
    pub fn max_context(&self) -> usize {
        self.options.max_context
    }

    /// Bytes that the KV cache holds.
    pub fn kv_bytes(&self) -> u64 {
        self.kv_bytes
    }

    /// Whether it takes requests: not after [`Self::drain`], and not if its thread ended.
    pub fn is_running(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        !self.shared.closed.load(Ordering::Acquire) && thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Checks and queues a request; its sink hears of the rest.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::PromptTooLong`], [`Error::UnknownToken`], [`Error::InvalidParameter`] for what the
    /// request asks; [`Error::Busy`] when the queue or the tenant's part of it is full; [`Error::Stopped`] after [`Self::drain`] or a crash.
    pub fn submit(&self, request: Request<B>) -> Result<(), Error> {
        self.submit_with(request, Extras::default())
    }

    /// [`Self::submit`] with log-probabilities or a form that the answer must have.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_with(&self, request: Request<B>, extras: Extras) -> Result<(), Error> {
        self.model.check_prompt(&request.prompt, self.options.max_context - 1)?;
        request.sampling.validate()?;
        if request.max_tokens == 0 {
            let expected = "1 or more";
            return Err(Error::InvalidParameter { name: "max_tokens", value: "0".into(), expected });
        }
        check_stops(&request.stop)?;
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Error::Stopped);
        }
        let start_by = self.options.max_wait.and_then(|wait| Instant::now().checked_add(wait));
        let (tenant, tokens) = (request.tenant.clone(), request.prompt.len());
        self.shared.gate.enter(&tenant, tokens)?;
        self.commands.send(Command::Submit(request, extras, start_by)).map_err(|_| {
            self.shared.gate.leave(&tenant, tokens);
            Error::Stopped
        })
    }

    /// Submits for the variant's user and waits for the whole answer.
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
        let tenant = variant.as_ref().map_or("", |variant| variant.user()).into();
        let (deadline, cancel) = (None, Cancel::default());
        self.submit(Request { tenant, prompt, variant, sampling, max_tokens, stop, deadline, cancel, sink })?;
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
            waiting: shared.gate.waiting() + shared.waiting_again.load(Ordering::Relaxed),
            generated_tokens: shared.generated_tokens.load(Ordering::Relaxed),
            prompt_tokens: shared.prompt_tokens.load(Ordering::Relaxed),
            reused_tokens: shared.reused_tokens.load(Ordering::Relaxed),
            preemptions: shared.preemptions.load(Ordering::Relaxed),
            cancelled: shared.cancelled.load(Ordering::Relaxed),
            expired: shared.expired.load(Ordering::Relaxed),
            phases: *shared.phases.lock().unwrap_or_else(PoisonError::into_inner),
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
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Stop texts are kept and searched for with every token: their number and length are bounded.
fn check_stops(stops: &[String]) -> Result<(), Error> {
    let error =
        |value: usize, expected| Err(Error::InvalidParameter { name: "stop", value: value.to_string(), expected });
    if stops.len() > MAX_STOPS {
        return error(stops.len(), "at most 16 texts");
    }
    match stops.iter().map(String::len).find(|bytes| *bytes > MAX_STOP_BYTES) {
        Some(bytes) => error(bytes, "at most 1024 bytes in a text"),
        None => Ok(()),
    }
}
