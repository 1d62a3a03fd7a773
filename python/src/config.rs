//! Configurations as JSON: the fields, their ranges and their words are [`BitDeltaConfig`]'s, stated once.

use crate::errors::{of_delta, raise};
use bitdelta_delta::BitDeltaConfig;
use pyo3::{exceptions::PyValueError, prelude::*};

/// Reads and checks a configuration.
pub fn read(py: Python<'_>, json: &str) -> PyResult<BitDeltaConfig> {
    let config: BitDeltaConfig =
        serde_json::from_str(json).map_err(|error| raise(py, "ConfigError", (error.to_string(),)))?;
    config.validate().map_err(|error| of_delta(py, &error))?;
    Ok(config)
}

/// Checks a configuration given as JSON; returns a sentence for each field that nothing enforces yet.
#[pyfunction]
pub fn check_config(py: Python<'_>, json: &str) -> PyResult<Vec<String>> {
    Ok(read(py, json)?.warnings())
}

/// The default configuration as JSON.
#[pyfunction]
pub fn default_config() -> PyResult<String> {
    serde_json::to_string(&BitDeltaConfig::default()).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// The base model that the environment or the configuration file names for whoever names none.
#[pyfunction]
pub fn default_model(py: Python<'_>) -> PyResult<Option<String>> {
    bitdelta_model::alias::default_model().map_err(|error| crate::errors::of_model(py, &error))
}
