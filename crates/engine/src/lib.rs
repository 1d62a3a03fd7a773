//! The engine: one pass of the base for all rows of a step, plus each row's own delta from its packed form.
pub mod error;
pub mod model;
pub mod registry;
pub mod request;
pub mod scheduler;
pub use error::Error;
pub use model::{Model, ModelOptions};
pub use registry::{Registry, Resident};
pub use request::{Event, Finish, FinishReason, Request, Sampling};
pub use scheduler::{Engine, EngineOptions, Stats};
