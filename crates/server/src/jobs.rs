//! Training as a job: one at a time for the whole server, a few waiting, one a user.
//!
//! A job's data come in the request's body and lie in a folder of its own, which is gone when it ends; a setting that names
//! a path is refused. What it makes is checked and published as the user's newest version, as an upload is. Training runs
//! beside serving on the same cores: answers are slower meanwhile, which is the operator's choice to allow.
use crate::{
    ApiError,
    service::{Service, unix_seconds},
};
use axum::http::StatusCode;
use bitdelta_train::{Error as TrainError, TrainConfig, config::WITHOUT_EFFECT, progress::Progress, run};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io::Write,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, watch};

/// Most jobs that wait for their turn.
const MAX_WAITING: usize = 16;
/// Jobs that are remembered after their end.
const MAX_REMEMBERED: usize = 1000;
/// Longest time that one job may train.
const MAX_TIME: Duration = Duration::from_secs(4 * 3600);
/// Lines of a job's report that are kept.
const MAX_LINES: usize = 50;
/// Settings that a request may decide. What is not here names files or programs of the server's, or is the job's own.
const CALLERS: [&str; 50] = [
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "seed",
    "shuffle",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "finetuning_type",
    "method",
    "lora_rank",
    "rank",
    "lora_alpha",
    "factor_bits",
    "quantization_bit",
    "budget",
    "bits_per_weight",
    "budget_epochs",
    "quantization_method",
    "bits",
    "group_size",
    "symmetric",
    "enable_compression",
    "clip_outliers",
    "outlier_threshold",
    "safety_threshold",
    "enable_deltasoup",
    "aggregation_weight",
    "byzantine_robust",
    "template",
    "cutoff_len",
    "mask_history",
    "train_on_prompt",
    "val_size",
    "max_samples",
    "logging_steps",
    "eval_strategy",
    "evaluation_strategy",
    "eval_steps",
    "load_best_model_at_end",
    "early_stopping_steps",
];

/// Whether a request may decide a setting: one of [`CALLERS`], or one that does nothing here.
fn is_the_callers(name: &str) -> bool {
    CALLERS.contains(&name) || WITHOUT_EFFECT.contains(&name)
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It waits for others.
    Queued,
    /// It trains.
    Running,
    /// Its variant is published.
    Succeeded,
    /// It came to nothing; `error` says why.
    Failed,
    /// It was called back.
    Cancelled,
}

impl Status {
    /// Whether nothing more will come.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What is to be seen of a job.
#[derive(Debug, Clone)]
pub struct State {
    /// Where it stands.
    pub status: Status,
    /// Steps of the phase that are done, of how many, and its name and unit.
    done: u64,
    total: u64,
    phase: String,
    unit: String,
    note: String,
    lines: Vec<String>,
    error: Option<String>,
    version: Option<u64>,
    figures: Value,
    created: u64,
    ended: Option<u64>,
}

/// One job.
pub struct Job {
    user: String,
    stop: AtomicBool,
    /// Held while what it made becomes a version.
    publishing: Mutex<()>,
    state: watch::Sender<State>,
}

/// What is to be trained on, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// Conversations, one JSON object each.
    pub data: Vec<Value>,
    /// Held-out ones.
    pub eval_data: Vec<Value>,
    /// `TrainConfig`'s names and values.
    pub settings: Vec<(String, String)>,
}

/// The server's jobs, by user.
pub struct Jobs {
    by_user: Mutex<HashMap<String, Arc<Job>>>,
    turn: Arc<Semaphore>,
    closed: AtomicBool,
}

impl Default for Jobs {
    fn default() -> Self {
        Self { by_user: Mutex::default(), turn: Arc::new(Semaphore::new(1)), closed: AtomicBool::new(false) }
    }
}

impl Work {
    /// The settings of a run whose files lie in `folder`.
    ///
    /// # Errors
    /// 400 that names the setting at fault.
    pub fn config(&self, folder: &Path) -> Result<TrainConfig, ApiError> {
        let pairs = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let wrong = |error: TrainError| ApiError::invalid("settings", error.to_string());
        let (config, _) = TrainConfig::from_pairs(pairs).map_err(wrong)?;
        let refused = |name: &str, message: String| ApiError::invalid(&format!("settings.{name}"), message);
        if let Some((name, _)) = self.settings.iter().find(|(name, _)| !is_the_callers(&name.replace('-', "_"))) {
            return Err(refused(name, format!("settings.{name} is the server's to decide; leave it out")));
        }
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let config = TrainConfig {
            // Only its presence is asked about: the base is open already.
            model_name_or_path: "the server's base".to_owned(),
            dataset: path("data.jsonl"),
            eval_dataset: (!self.eval_data.is_empty()).then(|| path("eval.jsonl")),
            output_dir: folder.join("run"),
            ..config
        };
        config.validate().map_err(wrong)?;
        Ok(config)
    }

    fn write(&self, folder: &Path) -> std::io::Result<()> {
        for (name, lines) in [("data.jsonl", &self.data), ("eval.jsonl", &self.eval_data)] {
            let mut file = std::io::BufWriter::new(std::fs::File::create(folder.join(name))?);
            for line in lines {
                writeln!(file, "{line}")?;
            }
            file.flush()?;
        }
        Ok(())
    }
}

impl Job {
    /// What is to be seen of it now, and its changes.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Calls it back. False when it is over already.
    pub fn cancel(&self) -> bool {
        self.stop.store(true, Ordering::SeqCst);
        let mut was_over = false;
        self.state.send_if_modified(|state| {
            was_over = state.status.is_over();
            // One that runs ends by itself, at its next step.
            let waits = state.status == Status::Queued;
            if waits {
                state.end(Status::Cancelled);
            }
            waits
        });
        !was_over
    }

    /// [`Self::cancel`]; when it returns, the job has published or never will. Blocks for as long as a file takes.
    pub fn cancel_for_good(&self) -> bool {
        let was_under_way = self.cancel();
        drop(self.publishing.lock().unwrap_or_else(PoisonError::into_inner));
        was_under_way
    }

    /// As it is sent.
    pub fn json(&self, state: &State) -> Value {
        json!({
            "object": "training",
            "user_id": self.user,
            "status": state.status.name(),
            "phase": state.phase,
            "done": state.done,
            "total": state.total,
            "unit": state.unit,
            "note": state.note,
            "messages": state.lines,
            "error": state.error,
            "version": state.version,
            "result": state.figures,
            "created": state.created,
            "ended": state.ended,
        })
    }
}

impl State {
    fn new() -> Self {
        Self {
            status: Status::Queued,
            done: 0,
            total: 0,
            phase: String::new(),
            unit: String::new(),
            note: String::new(),
            lines: Vec::new(),
            error: None,
            version: None,
            figures: Value::Null,
            created: unix_seconds(),
            ended: None,
        }
    }

    fn end(&mut self, status: Status) {
        self.status = status;
        self.ended = Some(unix_seconds());
    }
}

impl Jobs {
    /// The user's job, running or the last one.
    pub fn of(&self, user: &str) -> Option<Arc<Job>> {
        self.lock().get(user).cloned()
    }

    /// Queues a job.
    ///
    /// # Errors
    /// 409 while the user has one, 429 when too many wait.
    pub fn begin(
        service: &Arc<Service>,
        user: &str,
        work: Work,
        folder: tempfile::TempDir,
    ) -> Result<Arc<Job>, ApiError> {
        let config = work.config(folder.path())?;
        let jobs = &service.jobs;
        let job = {
            let mut all = jobs.lock();
            let over = |job: &Arc<Job>| job.state.borrow().status.is_over();
            if all.get(user).is_some_and(|job| !over(job)) {
                let message = "this user has a training under way; wait for it or cancel it";
                return Err(ApiError::new(StatusCode::CONFLICT, "training_under_way", message));
            }
            if jobs.closed.load(Ordering::SeqCst) || all.values().filter(|job| !over(job)).count() > MAX_WAITING {
                let message = "too many trainings wait; try again later";
                let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message);
                return Err(ApiError { retry_after: Some(60), ..error });
            }
            if all.len() >= MAX_REMEMBERED {
                all.retain(|_, job| !over(job));
            }
            let (state, _) = watch::channel(State::new());
            let job = Arc::new(Job {
                user: user.to_owned(),
                stop: AtomicBool::new(false),
                publishing: Mutex::default(),
                state,
            });
            all.insert(user.to_owned(), Arc::clone(&job));
            job
        };
        let (service, running) = (Arc::clone(service), Arc::clone(&job));
        let turn = Arc::clone(&jobs.turn);
        tokio::spawn(async move {
            // Closed when the server stops.
            let Ok(turn) = turn.acquire_owned().await else { return };
            let run = move || {
                let _turn = turn;
                train(&service, &running, &work, &config, folder);
            };
            // A panic was reported where it happened, and the job's sender is gone with it.
            let _reported = tokio::task::spawn_blocking(run).await;
        });
        Ok(job)
    }

    /// Calls all jobs back and takes no more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.turn.close();
        for job in self.lock().values() {
            job.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Job>>> {
        self.by_user.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn train(service: &Service, job: &Job, work: &Work, config: &TrainConfig, folder: tempfile::TempDir) {
    let begun = job.state.send_if_modified(|state| {
        let waits = state.status == Status::Queued;
        if waits {
            state.status = Status::Running;
        }
        waits
    });
    if !begun {
        return;
    }
    let result =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| publish(service, job, work, config, &folder)));
    let user = job.user.as_str();
    job.state.send_modify(|state| match result {
        Ok(Ok((version, figures))) => {
            tracing::info!(user, version, "trained and published a variant");
            (state.version, state.figures) = (Some(version), figures);
            state.end(Status::Succeeded);
        }
        Ok(Err(reason)) if reason.is_empty() => state.end(Status::Cancelled),
        Ok(Err(reason)) => {
            tracing::warn!(user, reason, "a training failed");
            state.error = Some(reason);
            state.end(Status::Failed);
        }
        Err(_) => {
            state.error = Some("internal error; the server's log has the details".to_owned());
            state.end(Status::Failed);
        }
    });
}

/// The version that was made, and what it measured. An empty reason means that it was called back.
fn publish(
    service: &Service,
    job: &Job,
    work: &Work,
    config: &TrainConfig,
    folder: &tempfile::TempDir,
) -> Result<(u64, Value), String> {
    // The folder's name is no business of the caller's.
    let own = format!("{}/", folder.path().display());
    let say = |error: &dyn std::error::Error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{error}{cause}").replace(&own, "")
    };
    work.write(folder.path()).map_err(|error| say(&error))?;
    let began = Instant::now();
    let report = Report { job, began, own: &own };
    let trained = run::run_on(service.engine.model().base(), config, &report, &job.stop);
    let outcome = match trained {
        Ok(outcome) => outcome,
        Err(TrainError::Interrupted { .. }) if began.elapsed() >= MAX_TIME => {
            return Err(format!("it took longer than {} hours", MAX_TIME.as_secs() / 3600));
        }
        Err(TrainError::Interrupted { .. }) => return Err(String::new()),
        Err(error) => return Err(say(&error)),
    };
    if job.stop.load(Ordering::SeqCst) {
        return Err(String::new());
    }
    let registry = service.registry.as_ref().ok_or("variants are not served here")?;
    let store = registry.store().ok_or("there is no variants folder")?;
    let mut incoming = store.incoming().map_err(|error| say(&error))?;
    std::fs::File::open(&outcome.path)
        .and_then(|mut file| std::io::copy(&mut file, incoming.as_file_mut()))
        .map_err(|error| say(&error))?;
    let hash = registry.check(&job.user, incoming.path()).map_err(|error| say(&error))?;
    let _alone = job.publishing.lock().unwrap_or_else(PoisonError::into_inner);
    if job.stop.load(Ordering::SeqCst) {
        return Err(String::new());
    }
    let published = store.publish(&job.user, incoming, &hash).map_err(|error| say(&error))?;
    let figures = json!({
        "bytes": outcome.bytes,
        "steps": outcome.steps,
        "loss_base": outcome.loss_base,
        "loss_trained": outcome.loss_trained,
        "loss_variant": outcome.loss_variant,
        "tokens_per_second": outcome.tokens_per_second,
        "warnings": outcome.warnings,
    });
    Ok((published.number, figures))
}

struct Report<'a> {
    job: &'a Job,
    began: Instant,
    own: &'a str,
}

impl Progress for Report<'_> {
    fn begin(&self, phase: &str, total: u64, unit: &str) {
        self.job.state.send_modify(|state| {
            (state.phase, state.unit) = (phase.to_owned(), unit.to_owned());
            (state.done, state.total) = (0, total);
        });
    }

    fn advance(&self, n: u64, note: &str) {
        if self.began.elapsed() >= MAX_TIME {
            self.job.stop.store(true, Ordering::SeqCst);
        }
        self.job.state.send_modify(|state| {
            state.done += n;
            note.clone_into(&mut state.note);
        });
    }

    fn end(&self) {}

    fn say(&self, line: &str) {
        self.job.state.send_modify(|state| {
            if state.lines.len() < MAX_LINES {
                state.lines.push(line.replace(self.own, ""));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, value: &str) -> Result<TrainConfig, ApiError> {
        let settings = vec![(name.to_owned(), value.to_owned())];
        Work { data: Vec::new(), eval_data: Vec::new(), settings }.config(Path::new("/job"))
    }

    #[test]
    fn no_setting_reaches_a_file_or_a_program_of_the_server() {
        let names = [
            "model_name_or_path",
            "dataset",
            "dataset_dir",
            "eval_dataset",
            "output_dir",
            "output-dir",
            "resume_from_checkpoint",
            "preferences",
            "preference_prompts",
            "reward_command",
            "reward-command",
        ];
        for name in names {
            let error = config(name, "/etc/passwd").unwrap_err();
            assert_eq!(error.param, Some(format!("settings.{name}")));
        }
        let good = config("num_train_epochs", "2").expect("good");
        assert_eq!((good.dataset.as_str(), good.num_train_epochs), ("/job/data.jsonl", 2.0));
    }

    #[test]
    fn a_setting_that_makes_no_sense_is_named() {
        for (name, value) in [("lora_rank", "0"), ("stage", "dpo"), ("lora_rnak", "4")] {
            let message = config(name, value).unwrap_err().message;
            assert!(message.contains(name), "{message}");
        }
    }
}
