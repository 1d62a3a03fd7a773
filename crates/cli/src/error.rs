//! The command line's one error: what was being done, and the cause below it.
//!
//! Library errors say what is wrong; a command adds once what it was doing ([`Context::context`]). [`crate::exit`]
//! prints the chain and turns it into the exit code.
use std::error::Error as StdError;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A step failed; `source` says why.
    #[error("{doing}")]
    Step {
        /// What was being done, as in "opening the base model".
        doing: String,
        /// The cause.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The arguments cannot be meant: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The work was done and its result is a failure: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Stopped by Ctrl-C or SIGTERM: exit code 130.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// The process's exit code: 1 failure, 2 usage, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Step { .. } | Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Interrupted => 130,
        }
    }
}

/// Adds what was being done to a library's error.
pub trait Context<T> {
    /// `Base::open(path).context("opening the base model")?`
    ///
    /// # Errors
    /// The same failure as an [`Error::Step`].
    fn context(self, doing: impl Into<String>) -> Result<T, Error>;
}

impl<T, E: StdError + Send + Sync + 'static> Context<T> for Result<T, E> {
    fn context(self, doing: impl Into<String>) -> Result<T, Error> {
        self.map_err(|source| Error::Step { doing: doing.into(), source: Box::new(source) })
    }
}
