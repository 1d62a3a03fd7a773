//! An opened base model, shared by training and answering.

use crate::errors::of_model;
use pyo3::prelude::*;
use std::sync::Arc;

/// An opened base: its weights stay in the mapped file.
#[pyclass(frozen, module = "zoo.gym._native")]
pub struct Base {
    /// The model.
    pub inner: Arc<bitdelta_model::Base>,
}

#[pymethods]
impl Base {
    /// Opens a folder, a GGUF file, an alias, or a hub id.
    #[new]
    fn new(py: Python<'_>, name: &str) -> PyResult<Self> {
        let opened = py.detach(|| bitdelta_model::Base::open(name));
        opened.map(|base| Self { inner: Arc::new(base) }).map_err(|error| of_model(py, &error))
    }

    /// Its display name.
    #[getter]
    fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where it was opened.
    #[getter]
    fn path(&self) -> String {
        self.inner.path.display().to_string()
    }

    /// The hash over its tensors that names it in variant files.
    fn fingerprint(&self, py: Python<'_>) -> String {
        py.detach(|| self.inner.fingerprint().to_owned())
    }
}
