//! A trained matrix and the gradient that gathers beside it.

use super::matrix::Matrix;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// One trained matrix. The graph reads it, the backward pass adds to its gradient, the optimiser changes it.
#[derive(Debug)]
pub struct Parameter {
    name: String,
    rows: usize,
    cols: usize,
    value: RwLock<Matrix>,
    gradient: Mutex<Option<Matrix>>,
}

impl Parameter {
    /// A parameter named for its place in the model.
    pub fn new(name: impl Into<String>, value: Matrix) -> Self {
        let (rows, cols) = (value.rows(), value.cols());
        Self { name: name.into(), rows, cols, value: RwLock::new(value), gradient: Mutex::new(None) }
    }

    /// Its name, unique in the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it holds no values at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values, to read. A poisoned lock is taken as it is: values are plain numbers.
    pub fn value(&self) -> RwLockReadGuard<'_, Matrix> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The values, to change.
    pub fn value_mut(&self) -> RwLockWriteGuard<'_, Matrix> {
        self.value.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gradient gathered so far; `None` before the first backward pass.
    pub fn gradient(&self) -> MutexGuard<'_, Option<Matrix>> {
        self.gradient.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to the gradient.
    pub fn accumulate(&self, gradient: Matrix) {
        match &mut *self.gradient() {
            Some(sum) => sum.add(&gradient),
            empty => *empty = Some(gradient),
        }
    }
}
