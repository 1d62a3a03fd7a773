//! Answers sampled from the base or from a variant on it, many at a time, by the engine that serves.
//!
//! What is sampled here is learnt from afterwards, with likelihoods that the training graph finds exactly, so a base may be
//! kept in int8: three times faster, and an answer that is a little less likely teaches as well. An answer depends on its
//! prompt and its seed alone, so a run that starts again samples the same.

use crate::{Error, progress::Progress};
use bitdelta_delta::Variant;
use bitdelta_engine::{
    BaseDtype, Cancel, Engine, EngineOptions, Event, FinishReason, KvDtype, Model, ModelOptions, Request, Resident,
    Sampling,
};
use bitdelta_model::Base;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

/// Answers at a time.
const BATCH: usize = 16;
/// How often the stop flag is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How answers are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawing {
    /// 1 draws from the model's own distribution.
    pub temperature: f32,
    /// 1 keeps all tokens.
    pub top_p: f32,
    /// Most tokens of an answer.
    pub max_tokens: usize,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Whether it ended by itself, and not at the most tokens.
    pub ended: bool,
}

/// A loaded base that answers.
pub struct Sampler {
    engine: Engine,
}

impl Sampler {
    /// Loads the base, its weights kept as `base_dtype`, for prompts and answers of at most `max_context` tokens together.
    ///
    /// # Errors
    /// What the engine reports, such as too little memory.
    pub fn new(base: &Base, base_dtype: BaseDtype, max_context: usize) -> Result<Self, Error> {
        // The engine keeps its base; opening one reads nothing but headers.
        let own = Arc::new(Base::open(&base.path.to_string_lossy())?);
        let options = ModelOptions { base_dtype, kv_dtype: KvDtype::Bf16, threads: 0 };
        let model = Arc::new(Model::load(own, options)?);
        /// Tokens of a page of keys and values, at most.
        const PAGE: usize = 256;
        let tokens = max_context.min(base.config.max_positions) + PAGE;
        let token = 4 * base.config.layers * base.config.kv_heads * base.config.head_dim;
        let options = EngineOptions {
            max_batch: BATCH,
            kv_bytes: (BATCH * tokens * token) as u64,
            max_context,
            ..EngineOptions::default()
        };
        Ok(Self { engine: Engine::start(model, options)? })
    }

    /// Makes a variant answer.
    ///
    /// # Errors
    /// When it does not fit the base.
    pub fn prepare(&self, variant: Variant) -> Result<Arc<Resident>, Error> {
        Ok(self.engine.model().prepare("training", Path::new("training"), variant)?)
    }

    /// One answer to each prompt, in order; the seed of prompt i is `seed + i`. `None` when `stop` was raised.
    ///
    /// # Errors
    /// What the engine reports, such as a prompt that is too long.
    pub fn answers(
        &self,
        prompts: &[Vec<u32>],
        variant: Option<&Arc<Resident>>,
        drawing: Drawing,
        seed: u64,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<Option<Vec<Answer>>, Error> {
        let mut answers: Vec<Answer> =
            vec![Answer { text: String::new(), tokens: Vec::new(), ended: false }; prompts.len()];
        let (sender, events) = channel();
        let cancel = Cancel::default();
        let submit = |at: usize, sender: &Sender<(usize, Event)>| {
            let sender = sender.clone();
            let sampling = Sampling {
                temperature: drawing.temperature,
                top_p: drawing.top_p,
                top_k: 0,
                seed: seed.wrapping_add(at as u64),
            };
            self.engine.submit(Request {
                tenant: "".into(),
                prompt: prompts[at].clone(),
                variant: variant.cloned(),
                sampling,
                max_tokens: drawing.max_tokens,
                stop: Vec::new(),
                deadline: None,
                cancel: cancel.clone(),
                sink: Box::new(move |event| sender.send((at, event)).is_ok()),
            })
        };
        let (mut next, mut done) = (0, 0);
        while done < prompts.len() {
            while next < prompts.len() && next - done < BATCH {
                submit(next, &sender)?;
                next += 1;
            }
            if stop.load(Ordering::Relaxed) {
                cancel.cancel();
                return Ok(None);
            }
            match events.recv_timeout(LOOK) {
                Ok((at, Event::Text(text))) => answers[at].text += &text,
                Ok((at, Event::Done(finish))) => {
                    answers[at].ended = finish.reason == FinishReason::Stop;
                    answers[at].tokens = finish.tokens;
                    done += 1;
                    progress.advance(1, "");
                }
                Ok((_, Event::Failed(error))) => {
                    cancel.cancel();
                    return Err(error.into());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this function keeps a sender"),
            }
        }
        Ok(Some(answers))
    }
}
