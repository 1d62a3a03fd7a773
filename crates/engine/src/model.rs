//! The loaded base and its forward pass.
use crate::{Error, Resident};
use bitdelta_model::Base;
use std::sync::Arc;

/// How a base is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelOptions {
    /// Worker threads; 0 is one per core.
    pub threads: usize,
}

/// A base in memory, ready to run.
pub struct Model {}

impl Model {
    /// Loads the base's weights. Refuses with the figure when memory lacks.
    pub fn load(base: Arc<Base>, options: ModelOptions) -> Result<Self, Error> {
        let _ = (base, options);
        unimplemented!()
    }
    /// The opened base.
    pub fn base(&self) -> &Arc<Base> {
        unimplemented!()
    }
    /// Makes a variant runnable on this base (checks fingerprint and shapes).
    pub fn prepare(&self, user: &str, path: &std::path::Path, variant: &bitdelta_delta::file::Variant) -> Result<Arc<Resident>, Error> {
        let _ = (user, path, variant);
        unimplemented!()
    }
    /// Teacher-forced logits for evaluation: calls `each(position, logits over the vocabulary)` for the positions in
    /// `positions`, in order. Same numbers, bit for bit, as generation gives.
    pub fn logits(
        &self,
        tokens: &[u32],
        positions: std::ops::Range<usize>,
        variant: Option<&Arc<Resident>>,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        let _ = (tokens, positions, variant, each);
        unimplemented!()
    }
}
