//! The engine: one pass of the base for all rows of a step, plus each row's own delta straight from its packed form.
//!
//! It is not a server: it knows tokens, variants and answers, nothing of HTTP, keys or files of prompts. Start at
//! [`Engine::submit`] and follow a request: [`scheduler`] takes it, `schedule` decides what runs in a step, `forward` runs it, [`backend`] is
//! the list of operations a device offers, [`registry`] finds a user's variant.
//!
//! **The invariant of this crate.** An answer does not depend on its company: a request alone, in a full batch, cut
//! into other chunks or run again after a preemption has the same logits, bit for bit.

pub mod backend;
pub mod cpu;
mod error;
mod extras;
mod fair;
mod forward;
mod gate;
mod model;
pub mod owner;
mod pages;
pub mod prompt;
pub mod registry;
mod request;
mod resident;
mod sampler;
mod schedule;
pub mod scheduler;
mod sequence;
mod stop;
pub mod user;
pub mod weights;
mod worker;

pub use backend::{BaseDtype, KvDtype};
pub use error::Error;
pub use extras::{Constraint, Extras, Scored, Scores};
pub use forward::Phases;
pub use model::{Model, ModelOptions};
pub use registry::{Registry, RegistryOptions, RegistryStats};
pub use request::{Cancel, Event, Finish, FinishReason, MAX_STOP_BYTES, MAX_STOPS, Request, Sampling};
pub use resident::{Resident, check_fits};
pub use scheduler::{Engine, EngineOptions, Stats};
