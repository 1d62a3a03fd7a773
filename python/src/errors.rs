//! From the crates' errors to the exception classes of `zoo.gym.errors`.
//!
//! The classes are Python's, because most are also a built-in kind (`ValueError`, `LookupError`, …), which an exception
//! made in Rust cannot be. Here stands only which class an error belongs to; its text is the crates' own.

use bitdelta_delta::Error as DeltaError;
use bitdelta_engine::Error as EngineError;
use bitdelta_model::Error as ModelError;
use bitdelta_train::Error as TrainError;
use pyo3::{call::PyCallArgs, prelude::*};

/// An exception of class `name` in `zoo.gym.errors` made of `arguments`.
pub fn raise<'py>(py: Python<'py>, name: &str, arguments: impl PyCallArgs<'py>) -> PyErr {
    let made = || -> PyResult<Bound<'py, PyAny>> {
        let class = py.import("zoo.gym.errors")?.getattr(name)?;
        class.call1(arguments)
    };
    made().map_or_else(|error| error, PyErr::from_value)
}

/// An exception of class `name` that says `error`.
fn says(py: Python<'_>, name: &str, error: &dyn std::error::Error) -> PyErr {
    raise(py, name, (error.to_string(),))
}

/// The exception for a quantizer's or a variant file's error.
pub fn of_delta(py: Python<'_>, error: &DeltaError) -> PyErr {
    let name = match error {
        DeltaError::Config { .. } => "ConfigError",
        DeltaError::Shape { .. } | DeltaError::NonFinite { .. } | DeltaError::TooLarge { .. } => "TensorError",
        _ => "VariantError",
    };
    says(py, name, error)
}

/// The exception for a base model's error.
pub fn of_model(py: Python<'_>, error: &ModelError) -> PyErr {
    let name = match error {
        ModelError::Template { .. } | ModelError::Tokenizer { .. } => "PromptError",
        _ => "ModelError",
    };
    says(py, name, error)
}

/// The exception for an engine's error.
pub fn of_engine(py: Python<'_>, error: &EngineError) -> PyErr {
    let name = match error {
        EngineError::UnknownUser { .. } => "UnknownUserError",
        EngineError::InvalidUser { .. } => "InvalidUserError",
        EngineError::WrongBase { .. } => "WrongBaseError",
        EngineError::Shape { .. } | EngineError::Variant(_) => "VariantError",
        EngineError::VariantTooLarge { .. } | EngineError::Memory { .. } => "MemoryLimitError",
        EngineError::Model(error) => return of_model(py, error),
        EngineError::PromptTooLong { .. } | EngineError::EmptyPrompt | EngineError::UnknownToken { .. } => {
            "PromptError"
        }
        EngineError::InvalidParameter { .. } => "ConfigError",
        EngineError::Busy { .. } => "BusyError",
        _ => "EngineError",
    };
    says(py, name, error)
}

/// The exception for a training run's error.
pub fn of_train(py: Python<'_>, error: &TrainError) -> PyErr {
    let name = match error {
        TrainError::Data { .. } | TrainError::Dataset { .. } => "DatasetError",
        TrainError::Setting { .. } | TrainError::UnknownSetting { .. } => "ConfigError",
        TrainError::Memory { .. } => "MemoryLimitError",
        TrainError::Interrupted { step, checkpoint } => {
            return raise(py, "TrainingInterrupted", (error.to_string(), *step, checkpoint.display().to_string()));
        }
        TrainError::Model(error) => return of_model(py, error),
        TrainError::Delta(error) => return of_delta(py, error),
        TrainError::Engine(error) => return of_engine(py, error),
        _ => "TrainingError",
    };
    says(py, name, error)
}
