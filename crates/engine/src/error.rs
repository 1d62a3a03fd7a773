//! Errors of the engine.
use std::path::PathBuf;

/// What can go wrong between a request and its tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No variant of that user in the variants folder.
    #[error("no variant for user {user:?}: none is loaded under that name, and the variants folder holds none")]
    UnknownUser {
        /// Who.
        user: String,
        /// The folder that was looked in, where there is one.
        dir: Option<PathBuf>,
    },
    /// A user id that cannot name a variant.
    #[error("invalid user id {user:?}: {reason}")]
    InvalidUser {
        /// Who.
        user: String,
        /// Why.
        reason: &'static str,
    },
    /// The variant was made on another base.
    #[error(
        "variant {path} was made on base {made_on} ({made_on_name}), and this base is {serving} ({serving_name}); use its own base, or make it again on this one"
    )]
    WrongBase {
        /// The variant's file.
        path: PathBuf,
        /// Its base's fingerprint.
        made_on: String,
        /// Its base's name.
        made_on_name: String,
        /// The served base's fingerprint.
        serving: String,
        /// The served base's name.
        serving_name: String,
    },
    /// A delta that does not fit the base it names.
    #[error("variant {path} does not fit its base: {what}; make it again with `bitdelta compress`")]
    Shape {
        /// The variant's file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// A variant that is larger than the budget for all of them.
    #[error(
        "the variant of user {user:?} needs {needed} bytes of memory and the budget for variants is {budget}; raise the budget (`--variant-memory`)"
    )]
    VariantTooLarge {
        /// Whose.
        user: String,
        /// Bytes needed.
        needed: u64,
        /// The budget.
        budget: u64,
    },
    /// A damaged or foreign variant file.
    #[error(transparent)]
    Variant(#[from] bitdelta_delta::file::Error),
    /// A base that cannot be read.
    #[error(transparent)]
    Model(#[from] bitdelta_model::base::Error),
    /// The prompt does not fit.
    #[error("the prompt has {tokens} tokens; with at least one token of answer the most is {limit}")]
    PromptTooLong {
        /// Tokens asked for.
        tokens: usize,
        /// Most that fit.
        limit: usize,
    },
    /// An empty prompt.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token that the model does not have.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// A sampling parameter outside its range.
    #[error("{name} = {value} is out of range: {expected}")]
    InvalidParameter {
        /// Field.
        name: &'static str,
        /// Value given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// The queue is full, or the tenant's part of it: try again later.
    #[error("the queue is full ({waiting} requests waiting); try again in {retry_seconds} s")]
    Busy {
        /// Requests waiting, of all tenants.
        waiting: usize,
        /// When it may be worth another try.
        retry_seconds: u64,
    },
    /// The request's time was over before the first token of its answer.
    #[error("{}", if *begun { "the time allowed ended before the first token of the answer; allow more or ask with a shorter prompt" }
        else { "the request waited in the queue for as long as it may; try again later" })]
    Deadline {
        /// Whether it had begun to run.
        begun: bool,
    },
    /// Memory needed exceeds what the machine or the budget has.
    #[error("{what} needs {needed} bytes of memory; {available} are available")]
    Memory {
        /// What.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
    },
    /// The system gave no thread.
    #[error("cannot start the engine's threads: {reason}")]
    Threads {
        /// The system's words.
        reason: String,
    },
    /// The form that the answer must have cannot be kept.
    #[error("the answer cannot be given in the form that was asked for: {reason}")]
    Constraint {
        /// What the grammar says.
        reason: String,
    },
    /// The engine is shutting down or its thread died.
    #[error("the engine has stopped")]
    Stopped,
}

/// Refuses what the machine has no memory for, where it tells what it has.
///
/// # Errors
/// [`Error::Memory`] with the figures.
pub(crate) fn check_memory(what: impl FnOnce() -> String, needed: u64) -> Result<(), Error> {
    match bitdelta_model::memory::available() {
        Some(available) if available < needed => Err(Error::Memory { what: what(), needed, available }),
        _ => Ok(()),
    }
}
