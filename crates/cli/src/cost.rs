//! What a command took: its time, and the most memory that it held.
use bitdelta_model::memory;
use serde_json::{Value, json};
use std::time::Instant;

/// A command that runs.
#[derive(Debug, Clone, Copy)]
pub struct Cost(Instant);

impl Cost {
    /// From now on.
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Adds `seconds` so far and `peak_memory` in bytes (null where the system does not tell) to a JSON object.
    pub fn add_to(self, figures: &mut Value) {
        figures["seconds"] = json!(self.0.elapsed().as_secs_f64());
        figures["peak_memory"] = json!(memory::peak());
    }
}
