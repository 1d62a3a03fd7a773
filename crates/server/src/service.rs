//! What all requests share: the engine, the variants, the names, and the defaults of fields that a request leaves out.
use crate::{
    ApiError, api_error::internal, auth::Auth, grammars::Grammars, jobs::Jobs, loads::Loads, names::Names,
    observed::Observed, room::Room,
};
use bitdelta_engine::{Engine, Error, Registry, Resident, prompt};
use bitdelta_model::chat::{Message, Tokenizer};
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// What holds for a request that does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    /// Sampling temperature; 0 answers with the likeliest token.
    pub temperature: f32,
    /// Most tokens of answer.
    pub max_tokens: usize,
    /// Longest time for an answer, from the request's arrival.
    pub timeout: Option<Duration>,
}

impl Default for Defaults {
    /// Greedy, so that what a variant learnt is what it says; 1024 tokens; as long as it takes.
    fn default() -> Self {
        Self { temperature: 0.0, max_tokens: 1024, timeout: None }
    }
}

/// One base with its variants, ready to answer.
pub struct Service {
    /// The engine.
    pub engine: Engine,
    /// Users' variants; `None` serves the base alone.
    pub registry: Option<Registry>,
    /// Model names.
    pub names: Names,
    /// Defaults.
    pub defaults: Defaults,
    /// Memory of requests on their way in.
    pub room: Room,
    /// Unix seconds when the service was made.
    pub created: u64,
    /// Loads of variants under way.
    pub loads: Loads,
    /// Who may ask.
    pub auth: Auth,
    /// Forms that answers may be given in.
    pub grammars: Grammars,
    /// What requests went through.
    pub observed: Observed,
    /// Variants that are being trained.
    pub jobs: Jobs,
}

impl Service {
    /// `aliases` are more names for the base.
    pub fn new(engine: Engine, registry: Option<Registry>, aliases: Vec<String>, defaults: Defaults) -> Self {
        let names = Names::new(engine.model().base().name.clone(), aliases, registry.is_some());
        let room = Room::new(&engine.model().base().tokenizer);
        Self {
            engine,
            registry,
            names,
            defaults,
            room,
            created: unix_seconds(),
            loads: Loads::default(),
            auth: Auth::default(),
            grammars: Grammars::default(),
            observed: Observed::default(),
            jobs: Jobs::default(),
        }
    }

    /// Asks callers for keys or tokens.
    #[must_use]
    pub fn with_auth(self, auth: Auth) -> Self {
        Self { auth, ..self }
    }

    /// The variants.
    ///
    /// # Errors
    /// 400 when the server was started without them.
    pub fn variants(&self) -> Result<&Registry, ApiError> {
        self.registry.as_ref().ok_or_else(crate::names::disabled)
    }

    /// The base's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.engine.model().base().tokenizer
    }

    /// A chat's tokens, with the template and the experiences of the variant that is to answer.
    ///
    /// # Errors
    /// What a template refuses.
    pub fn chat_prompt(&self, variant: Option<&Resident>, messages: &[Message]) -> Result<Vec<u32>, Error> {
        let (tokens, mismatch) = prompt::chat(self.tokenizer(), variant, messages)?;
        if let Some(sentence) = mismatch {
            tracing::warn!("{sentence}");
        }
        Ok(tokens)
    }
}

/// Runs blocking work (files, tokenising, waiting for a load) off the threads that serve connections.
///
/// # Errors
/// What `work` returns; 500 when it panicked.
pub async fn blocking<T: Send + 'static>(
    service: &Arc<Service>,
    work: impl FnOnce(&Service) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let service = Arc::clone(service);
    match tokio::task::spawn_blocking(move || work(&service)).await {
        Ok(result) => result,
        Err(error) => Err(internal(&error.to_string())),
    }
}

/// Seconds from 1970 to now.
pub fn unix_seconds() -> u64 {
    unix_seconds_of(SystemTime::now())
}

/// Seconds from 1970 to `time`.
pub fn unix_seconds_of(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A number nobody has seen before, for ids and for seeds that a request leaves open. Not for secrets.
pub fn fresh_number() -> u64 {
    RandomState::new().build_hasher().finish()
}
