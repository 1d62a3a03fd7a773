//! Training, and compressing a pair, for Python: on a thread of its own, so that the caller's thread can show progress and
//! hear Ctrl-C.
//!
//! The run's reports come over a channel. The caller's thread takes them a few at a time, without the interpreter's lock
//! while it waits, hands them to the Python callback, and looks for signals. Ctrl-C, or an exception of the callback,
//! raises the run's stop flag; the run then saves a checkpoint and ends, and only then the exception goes on.

use crate::{
    base::Base,
    errors::{of_delta, of_engine, of_model, of_train, raise},
};
use bitdelta_delta::{BitDeltaConfig, Variant, file::locate, metrics::bits_per_weight};
use bitdelta_engine::user;
use bitdelta_train::{
    Error, TrainConfig, data,
    pair::{self, General, Size, Wish},
    progress::Progress,
    run::{self, Outcome},
};
use pyo3::{
    exceptions::{PyKeyboardInterrupt, PyRuntimeError},
    prelude::*,
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

/// How often a waiting caller looks for Ctrl-C.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a run reports: (kind, text, number, unit).
type Report = (&'static str, String, u64, String);

/// Sends a run's reports.
struct Reporter(Sender<Report>);

impl Reporter {
    fn send(&self, kind: &'static str, text: &str, number: u64, unit: &str) {
        // Nobody listening is no reason to stop: the stop flag is.
        let _ = self.0.send((kind, text.to_owned(), number, unit.to_owned()));
    }
}

impl Progress for Reporter {
    fn begin(&self, phase: &str, total: u64, unit: &str) {
        self.send("begin", phase, total, unit);
    }

    fn advance(&self, n: u64, note: &str) {
        self.send("advance", note, n, "");
    }

    fn end(&self) {
        self.send("end", "", 0, "");
    }

    fn say(&self, line: &str) {
        self.send("say", line, 0, "");
    }
}

/// Trains on `base` with these settings (names and values as text) and returns the outcome as JSON.
/// `report(kind, text, number, unit)` is called with each report on the caller's thread.
#[pyfunction]
pub fn train(
    py: Python<'_>,
    base: &Base,
    settings: Vec<(String, String)>,
    report: &Bound<'_, PyAny>,
) -> PyResult<String> {
    let pairs = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let (config, notes) = TrainConfig::from_pairs(pairs).map_err(|error| of_train(py, &error))?;
    for note in notes {
        report.call1(("say", note, 0, ""))?;
    }
    let base = Arc::clone(&base.inner);
    let outcome: Outcome = run_apart(py, report, move |progress, stop| run::run_on(&base, &config, progress, stop))?;
    serde_json::to_string(&outcome).map_err(|error| PyRuntimeError::new_err(error.to_string()))
}

/// Compresses the pair of `base` and the fine-tuned model at `finetuned` into the file `output`, by options (JSON) of
/// [`Options`]. Returns its bytes, and bits a weight of the linears.
#[pyfunction]
pub fn compress(
    py: Python<'_>,
    base: &Base,
    finetuned: String,
    output: PathBuf,
    options: &str,
    report: &Bound<'_, PyAny>,
) -> PyResult<(u64, f64)> {
    let options: Options = serde_json::from_str(options).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    let base = Arc::clone(&base.inner);
    let opened = py.detach(|| bitdelta_model::Base::open_beside(&finetuned, &base));
    let finetuned = opened.map_err(|error| of_model(py, &error))?;
    run_apart(py, report, move |progress, stop| options.compress(&base, &finetuned, &output, (progress, stop)))
}

/// Options of [`compress`].
#[derive(Deserialize)]
struct Options {
    /// At most so many bytes.
    budget: Option<u64>,
    /// The same as bits a weight.
    bits_per_weight: Option<f64>,
    /// Codes, in place of a size.
    config: Option<BitDeltaConfig>,
    rank: Option<usize>,
    /// Files of conversations.
    data: Option<String>,
    eval_data: Option<String>,
    draw: Option<usize>,
    /// A file of general conversations, or how many to draw.
    general: Option<String>,
    draw_general: Option<usize>,
    epochs: Option<f64>,
    patience: usize,
}

impl Options {
    fn compress(
        &self,
        base: &bitdelta_model::Base,
        finetuned: &bitdelta_model::Base,
        output: &Path,
        watch: (&dyn Progress, &AtomicBool),
    ) -> Result<(u64, f64), Error> {
        let load = |file: &Option<String>| file.as_ref().map(|file| data::load(file, Path::new("."))).transpose();
        let (data, watched, general) = (load(&self.data)?, load(&self.eval_data)?, load(&self.general)?);
        let checkpoint = pair::checkpoint_of(output);
        let (variant, _) = pair::compress(
            base,
            finetuned,
            &Wish {
                size: Size::of(self.budget, self.bits_per_weight, self.config.is_some()),
                config: self.config.as_ref().unwrap_or(&BitDeltaConfig::default()),
                rank: self.rank,
                data: data.as_deref(),
                draw: self.draw,
                general: General::of(general.as_deref(), self.draw_general),
                epochs: self.epochs,
                watched: watched.as_deref().unwrap_or_default(),
                patience: self.patience,
                checkpoint: Some(&checkpoint),
            },
            watch,
        )?;
        let bytes = pair::write(&variant, output)?;
        Ok((bytes, bits_per_weight(bytes, variant.weights(base.linears().len()))))
    }
}

/// Does `work` on a thread of its own, and passes its reports on meanwhile.
fn run_apart<T: Send + 'static>(
    py: Python<'_>,
    report: &Bound<'_, PyAny>,
    work: impl FnOnce(&dyn Progress, &AtomicBool) -> Result<T, Error> + Send + 'static,
) -> PyResult<T> {
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, reports) = channel();
    // Only so that the wait for it may leave the interpreter's lock.
    let reports = Mutex::new(reports);
    let run = {
        let stop = Arc::clone(&stop);
        move || work(&Reporter(sender), &stop)
    };
    let thread = std::thread::Builder::new().name("bitdelta-train".to_owned()).spawn(run);
    let thread = thread.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    let listened = listen(py, &reports, report, &stop);
    let ended = match py.detach(|| thread.join()) {
        Ok(ended) => ended,
        Err(_) => return Err(raise(py, "TrainingError", ("the training thread panicked",))),
    };
    match (ended, listened) {
        // Ctrl-C becomes the interruption, which tells where the run can go on; another exception stays what it is.
        (Err(error), Some(cause)) if cause.is_instance_of::<PyKeyboardInterrupt>(py) => Err(of_train(py, &error)),
        (_, Some(cause)) => Err(cause),
        (Err(error), None) => Err(of_train(py, &error)),
        (Ok(outcome), None) => Ok(outcome),
    }
}

/// Passes reports on until the run ends. Returns the first exception, at which the run was asked to stop.
fn listen(
    py: Python<'_>,
    reports: &Mutex<Receiver<Report>>,
    report: &Bound<'_, PyAny>,
    stop: &AtomicBool,
) -> Option<PyErr> {
    let mut cause = None;
    loop {
        let waited = py.detach(|| {
            let reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
            let first = reports.recv_timeout(PATIENCE)?;
            Ok(std::iter::once(first).chain(reports.try_iter()).collect::<Vec<_>>())
        });
        let heard = match waited {
            Ok(heard) => heard,
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => return cause,
        };
        let mut passed = py.check_signals();
        for line in heard {
            // After an exception the rest is not wanted.
            if passed.is_ok() && cause.is_none() {
                passed = report.call1(line).map(drop);
            }
        }
        if let Err(error) = passed {
            stop.store(true, Ordering::Relaxed);
            cause.get_or_insert(error);
        }
    }
}

/// Refuses user ids that cannot name a variant.
#[pyfunction]
pub fn check_user(py: Python<'_>, user: &str) -> PyResult<()> {
    user::check_user(user).map_err(|error| of_engine(py, &error))
}

/// What a variant file records of itself, as JSON, with its content hash under `hash` and its size under `bytes`.
#[pyfunction]
pub fn variant_info(py: Python<'_>, path: &str) -> PyResult<String> {
    let path = locate(Path::new(path));
    let read = py.detach(|| Variant::read_hashed(&path));
    let (variant, hash) = read.map_err(|error| of_delta(py, &error))?;
    let mut info = serde_json::to_value(&variant.info).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    info["hash"] = Value::from(hash);
    info["bytes"] = Value::from(std::fs::metadata(&path)?.len());
    Ok(info.to_string())
}

/// Puts `note` (JSON) under `name` into the notes of the variant file at `path`, which is replaced whole.
#[pyfunction]
pub fn annotate(py: Python<'_>, path: &str, name: &str, note: &str) -> PyResult<()> {
    let note: Value = serde_json::from_str(note).map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    let written = py.detach(|| {
        let mut variant = Variant::read(Path::new(path))?;
        variant.info.notes.insert(name.to_owned(), note);
        variant.write(Path::new(path))
    });
    written.map(drop).map_err(|error| of_delta(py, &error))
}
