//! The loaded base.

use crate::{
    Error, Resident,
    backend::{Backend, BaseDtype, KvDtype, KvShape, PAGE},
    cpu::Cpu,
    forward::{Angles, Chunk, Workspace, forward},
    weights::{self, BaseWeights},
};
use bitdelta_delta::file::Variant;
use bitdelta_model::Base;
use std::{ops::Range, path::Path, sync::Arc};

/// How a base is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelOptions {
    /// Worker threads; 0 is one for each core.
    pub threads: usize,
    /// How the base's matrices are kept.
    pub base_dtype: BaseDtype,
    /// How keys and values are kept.
    pub kv_dtype: KvDtype,
}

/// A base in memory, ready to run with any of its variants.
pub struct Model<B: Backend = Cpu> {
    base: Arc<Base>,
    backend: B,
    base_dtype: BaseDtype,
    pub(crate) weights: BaseWeights<B>,
    inverse_frequencies: Vec<f32>,
    attention_factor: f32,
}

/// Tokens run at a time by [`Model::logits`].
const EVALUATION_CHUNK: usize = 256;

impl Model<Cpu> {
    /// Loads the base's weights on the CPU.
    ///
    /// # Errors
    /// [`Error::Memory`] with the figures when the machine lacks the memory, before anything is read;
    /// [`Error::Model`] when a tensor cannot be read; [`Error::Threads`].
    pub fn load(base: Arc<Base>, options: ModelOptions) -> Result<Self, Error> {
        let backend = Cpu::new(options.threads, options.base_dtype, options.kv_dtype)?;
        let weights = backend.scope(|| BaseWeights::load(&base, &backend, options.base_dtype))?;
        let (inverse_frequencies, attention_factor) = base.config.rope_frequencies();
        Ok(Self { base, backend, base_dtype: options.base_dtype, weights, inverse_frequencies, attention_factor })
    }
}

impl<B: Backend> Model<B> {
    /// The opened base.
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.backend.threads()
    }

    /// Bytes that the base's weights hold.
    pub fn bytes(&self) -> u64 {
        weights::bytes(&self.base, self.base_dtype)
    }

    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    pub(crate) fn kv_shape(&self) -> KvShape {
        let config = &self.base.config;
        KvShape { layers: config.layers, kv_heads: config.kv_heads, head_dim: config.head_dim }
    }

    /// Bytes of one page of the KV cache: keys and values of [`PAGE`] positions.
    pub fn kv_page_bytes(&self) -> u64 {
        self.kv_shape().page_bytes(self.backend.kv_dtype())
    }

    /// Makes a variant runnable on this base.
    ///
    /// # Errors
    /// [`Error::WrongBase`] when it was made on another base; [`Error::Shape`] when a delta does not fit its tensor;
    /// [`Error::Variant`] when its parts contradict each other.
    pub fn prepare(&self, user: &str, path: &Path, variant: Variant) -> Result<Arc<Resident<B>>, Error> {
        let hash = variant.content_hash()?;
        Resident::new(self, user, path, variant, hash).map(Arc::new)
    }

    /// Teacher-forced logits: calls `each(position, logits over the vocabulary)` for `positions`, in order. The logits at
    /// a position are those for the token after it, and have the bits that generation gives.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`]; [`Error::PromptTooLong`] beyond the model's context; [`Error::UnknownToken`].
    pub fn logits(
        &self,
        tokens: &[u32],
        positions: Range<usize>,
        variant: Option<&Arc<Resident<B>>>,
        each: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<(), Error> {
        self.check_prompt(tokens, self.base.config.max_positions)?;
        let pages: Vec<u32> = (0..tokens.len().div_ceil(PAGE) as u32).collect();
        let mut kv = self.backend.kv(self.kv_shape(), pages.len())?;
        let mut space = Workspace::new(self, EVALUATION_CHUNK.min(tokens.len()));
        self.backend.scope(|| {
            for (i, tokens) in tokens.chunks(EVALUATION_CHUNK).enumerate() {
                let start = i * EVALUATION_CHUNK;
                let within = |position: usize| position.clamp(start, start + tokens.len()) - start;
                let logits = within(positions.start)..within(positions.end);
                let chunk = Chunk { tokens, start, pages: &pages, variant: variant.map(Arc::as_ref), logits };
                forward(self, &[chunk], &mut kv, &mut space, &mut |_, row, logits| each(start + row, logits));
            }
        });
        Ok(())
    }

    /// Refuses an empty prompt, one of more than `limit` tokens, and tokens that the embedding lacks.
    pub(crate) fn check_prompt(&self, tokens: &[u32], limit: usize) -> Result<(), Error> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if tokens.len() > limit {
            return Err(Error::PromptTooLong { tokens: tokens.len(), limit });
        }
        let vocab = self.base.config.vocab;
        match tokens.iter().find(|token| **token as usize >= vocab) {
            Some(token) => Err(Error::UnknownToken { token: *token, vocab }),
            None => Ok(()),
        }
    }

    /// The rotary angles of rows at these positions.
    pub(crate) fn angles(&self, positions: impl Iterator<Item = usize>) -> Angles {
        let angles = positions.flat_map(|p| self.inverse_frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin) = angles.map(|a| (a.cos() * self.attention_factor, a.sin() * self.attention_factor)).unzip();
        Angles { cos, sin }
    }
}
