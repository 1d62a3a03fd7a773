//! A base that answers for many users at once.
//!
//! All answers of one engine report into one channel, which one Python thread empties: it takes the lock once for all
//! that a step brought, however many users are in the batch. Each event carries the number that the caller gave its
//! request; every request ends with exactly one `done`, `failed` or `ended` (called back).

use crate::{
    base::Base,
    errors::{of_engine, raise},
};
use bitdelta_engine::{
    BaseDtype, Cancel, Engine as Running, EngineOptions, Error, Event, FinishReason, KvDtype, Model, ModelOptions,
    Registry, RegistryOptions, Request, Sampling, prompt,
};
use bitdelta_model::chat::Message;
use pyo3::{prelude::*, types::PyDict};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

/// What the channel carries; `None` is a request that nobody wants any more.
type Report = (u64, Option<Event>);
/// What Python hears of a request: (id, kind, payload).
type Heard = (u64, &'static str, Py<PyAny>);

/// One base in memory with its users' variants.
#[pyclass(frozen, module = "zoo.gym._native")]
pub struct Engine {
    /// `None` once closed.
    running: RwLock<Option<Arc<Inner>>>,
    reports: Mutex<Receiver<Report>>,
}

struct Inner {
    engine: Running,
    registry: Registry,
    sender: Sender<Report>,
    cancels: Mutex<HashMap<u64, Cancel>>,
}

/// What a request asks for beside its prompt.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Wanted {
    max_tokens: usize,
    temperature: f32,
    top_p: f32,
    top_k: usize,
    seed: u64,
    stop: Vec<String>,
}

/// How an engine is to be loaded.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Options {
    threads: usize,
    base_dtype: String,
    kv_dtype: String,
    max_batch: usize,
    max_context: usize,
    kv_cache_bytes: u64,
    variants_dir: Option<String>,
    variant_memory: Option<u64>,
}

/// Tells the channel when a request ends without a last event, which is when it was called back.
struct Sink {
    id: u64,
    sender: Sender<Report>,
    over: bool,
}

impl Sink {
    fn take(&mut self, event: Event) -> bool {
        self.over = self.over || !matches!(event, Event::Text(_));
        self.sender.send((self.id, Some(event))).is_ok()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.over {
            // The engine outlived whoever listened.
            let _ = self.sender.send((self.id, None));
        }
    }
}

#[pymethods]
impl Engine {
    /// Loads the base's weights and starts the engine.
    #[new]
    fn new(py: Python<'_>, base: &Base, options: Options) -> PyResult<Self> {
        let base_dtype = match options.base_dtype.as_str() {
            "auto" => BaseDtype::Stored,
            "f32" => BaseDtype::F32,
            "bf16" => BaseDtype::Bf16,
            "int8" => BaseDtype::Int8,
            other => return Err(unknown_type(py, "base_dtype", other)),
        };
        let kv_dtype = match options.kv_dtype.as_str() {
            "auto" => KvDtype::Auto,
            "f32" => KvDtype::F32,
            "bf16" => KvDtype::Bf16,
            "int8" => KvDtype::Int8,
            other => return Err(unknown_type(py, "kv_dtype", other)),
        };
        let model_options = ModelOptions { threads: options.threads, base_dtype, kv_dtype };
        let engine_options = EngineOptions {
            max_batch: options.max_batch,
            max_context: options.max_context,
            kv_bytes: options.kv_cache_bytes,
            ..EngineOptions::default()
        };
        let (sender, reports) = channel();
        let started = py.detach(|| -> Result<Inner, Error> {
            let model = Arc::new(Model::load(Arc::clone(&base.inner), model_options)?);
            let limits = RegistryOptions { resident_bytes: options.variant_memory };
            let folder = options.variants_dir.map(PathBuf::from);
            let registry = Registry::with_options(Arc::clone(&model), folder, limits)?;
            let engine = Running::start(model, engine_options)?;
            Ok(Inner { engine, registry, sender, cancels: Mutex::default() })
        });
        let inner = started.map_err(|error| of_engine(py, &error))?;
        Ok(Self { running: RwLock::new(Some(Arc::new(inner))), reports: Mutex::new(reports) })
    }

    /// Queues request `id`: messages (role, content) under the chat template that the variant was trained with.
    /// Returns a sentence for the caller to read, or None.
    #[pyo3(signature = (id, user, messages, wanted))]
    fn submit(
        &self,
        py: Python<'_>,
        id: u64,
        user: Option<String>,
        messages: Vec<(String, String)>,
        wanted: Wanted,
    ) -> PyResult<Option<String>> {
        let inner = self.inner(py)?;
        let submitted = py.detach(|| inner.submit(id, user.as_deref(), messages, wanted));
        submitted.map_err(|error| of_engine(py, &error))
    }

    /// Calls a request back.
    fn cancel(&self, py: Python<'_>, id: u64) -> PyResult<()> {
        if let Some(cancel) = self.inner(py)?.cancels().get(&id) {
            cancel.cancel();
        }
        Ok(())
    }

    /// Waits up to `seconds` for events and returns all that are there, as (id, kind, payload); None once closed.
    fn poll<'py>(&self, py: Python<'py>, seconds: f64) -> PyResult<Option<Vec<Heard>>> {
        let waited = py.detach(|| {
            let reports = lock(&self.reports);
            match reports.recv_timeout(Duration::from_secs_f64(seconds.clamp(0.0, 60.0))) {
                Ok(first) => Some(std::iter::once(first).chain(reports.try_iter()).collect::<Vec<_>>()),
                Err(RecvTimeoutError::Timeout) => Some(Vec::new()),
                Err(RecvTimeoutError::Disconnected) => None,
            }
        });
        let Some(reports) = waited else { return Ok(None) };
        let inner = self.inner(py).ok();
        let mut events = Vec::with_capacity(reports.len());
        for (id, event) in reports {
            if !matches!(event, Some(Event::Text(_)))
                && let Some(inner) = &inner
            {
                inner.cancels().remove(&id);
            }
            let (kind, payload) = match event {
                Some(Event::Text(text)) => ("text", text.into_pyobject(py)?.into_any().unbind()),
                Some(Event::Done(finish)) => {
                    let payload = PyDict::new(py);
                    payload.set_item("reason", if finish.reason == FinishReason::Stop { "stop" } else { "length" })?;
                    payload.set_item("prompt_tokens", finish.prompt_tokens)?;
                    payload.set_item("cached_tokens", finish.cached_tokens)?;
                    payload.set_item("completion_tokens", finish.completion_tokens)?;
                    ("done", payload.into_any().unbind())
                }
                Some(Event::Failed(error)) => ("failed", of_engine(py, &error).into_value(py).into_any()),
                None => ("ended", py.None()),
            };
            events.push((id, kind, payload));
        }
        Ok(Some(events))
    }

    /// Loads a variant file or folder; returns its user and what is known of it.
    fn load<'py>(&self, py: Python<'py>, path: &str) -> PyResult<Bound<'py, PyDict>> {
        let inner = self.inner(py)?;
        let loaded = py.detach(|| inner.registry.load(Path::new(path))).map_err(|error| of_engine(py, &error))?;
        let line = PyDict::new(py);
        line.set_item("user_id", loaded.user())?;
        line.set_item("path", loaded.path().display().to_string())?;
        line.set_item("hash", loaded.hash())?;
        line.set_item("resident_bytes", loaded.memory_bytes())?;
        Ok(line)
    }

    /// Forgets a user's variant; whether it was known.
    fn unload(&self, py: Python<'_>, user: &str) -> PyResult<bool> {
        self.inner(py)?.registry.unload(user).map_err(|error| of_engine(py, &error))
    }

    /// Users with a variant, loaded or in the folder, by id: (user, path, bytes in memory).
    fn variants(&self, py: Python<'_>) -> PyResult<Vec<(String, String, u64)>> {
        let inner = self.inner(py)?;
        let listed = py.detach(|| inner.registry.list());
        let line = |variant: bitdelta_engine::registry::Listed| {
            let bytes = variant.loaded.map_or(0, |loaded| loaded.bytes);
            (variant.user, variant.path.display().to_string(), bytes)
        };
        Ok(listed.into_iter().map(line).collect())
    }

    /// Counters.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let inner = self.inner(py)?;
        let (stats, variants) = (inner.engine.stats(), inner.registry.stats());
        let line = PyDict::new(py);
        line.set_item("running", stats.running)?;
        line.set_item("waiting", stats.waiting)?;
        line.set_item("generated_tokens", stats.generated_tokens)?;
        line.set_item("prompt_tokens", stats.prompt_tokens)?;
        line.set_item("reused_tokens", stats.reused_tokens)?;
        line.set_item("variant_bytes", variants.resident_bytes)?;
        line.set_item("variant_budget_bytes", variants.budget_bytes)?;
        line.set_item("base_bytes", inner.engine.model().bytes())?;
        Ok(line)
    }

    /// Stops the engine, ends all requests and frees the base.
    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            let inner = self.running.write().unwrap_or_else(PoisonError::into_inner).take();
            drop(inner);
        });
    }
}

impl Engine {
    fn inner(&self, py: Python<'_>) -> PyResult<Arc<Inner>> {
        let inner = self.running.read().unwrap_or_else(PoisonError::into_inner).clone();
        inner.ok_or_else(|| of_engine(py, &Error::Stopped))
    }
}

impl Inner {
    fn cancels(&self) -> MutexGuard<'_, HashMap<u64, Cancel>> {
        lock(&self.cancels)
    }

    fn submit(
        &self,
        id: u64,
        user: Option<&str>,
        messages: Vec<(String, String)>,
        wanted: Wanted,
    ) -> Result<Option<String>, Error> {
        let variant = user.map(|user| self.registry.resolve(user)).transpose()?;
        let tokenizer = &self.engine.model().base().tokenizer;
        let message = |(role, content)| Message { role, content };
        let messages: Vec<Message> = messages.into_iter().map(message).collect();
        let (tokens, mismatch) = prompt::chat(tokenizer, variant.as_deref(), &messages)?;
        let Wanted { max_tokens, temperature, top_p, top_k, seed, stop } = wanted;
        let cancel = Cancel::default();
        let mut sink = Sink { id, sender: self.sender.clone(), over: false };
        let request = Request {
            tenant: user.unwrap_or_default().into(),
            prompt: tokens,
            variant,
            sampling: Sampling { temperature, top_p, top_k, seed },
            max_tokens,
            stop,
            deadline: None,
            cancel: cancel.clone(),
            sink: Box::new(move |event| sink.take(event)),
        };
        self.cancels().insert(id, cancel);
        match self.engine.submit(request) {
            Ok(()) => Ok(mismatch),
            Err(error) => {
                self.cancels().remove(&id);
                Err(error)
            }
        }
    }
}

fn unknown_type(py: Python<'_>, field: &str, value: &str) -> PyErr {
    raise(py, "ConfigError", (format!("{field} = {value:?} is not allowed: expected auto, f32, bf16 or int8"),))
}

/// A lock whose data stays valid when a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
