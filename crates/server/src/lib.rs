//! OpenAI-compatible HTTP over the engine: who asks ([`names`]), what they ask for ([`wanted`]), the answer
//! ([`answer`]) whole or as server-sent events ([`stream`]), how their variant is loaded without holding up others
//! ([`loads`]), the operator's endpoints ([`variants`], [`metrics`]), and a page for people ([`page`]).
//!
//! This crate is the only one that knows HTTP and JSON bodies. Who may ask for whom is decided in [`auth`], before a body
//! is read; without keys or tokens, [`bind`] refuses addresses beyond loopback unless told, and the operator's endpoints
//! answer loopback peers only. It never answers for a user
//! from the base: a variant that is unknown, damaged or made on another base is an error with its own code
//! ([`api_error`]). Start reading at [`routes`].
pub mod answer;
pub mod api_error;
pub mod auth;
pub mod card;
pub mod error;
pub mod extract;
pub mod fields;
pub mod grammars;
pub mod http_options;
pub mod jobs;
pub mod loads;
pub mod logprobs;
pub mod me;
pub mod messages;
pub mod metrics;
pub mod models;
pub mod names;
pub mod observed;
pub mod openapi;
pub mod page;
pub mod reply;
pub mod room;
pub mod routes;
pub mod run;
pub mod service;
pub mod stream;
pub mod training;
mod upload;
pub mod variants;
pub mod wanted;
pub use api_error::ApiError;
pub use auth::Auth;
pub use error::Error;
pub use http_options::HttpOptions;
pub use run::{bind, serve};
pub use service::{Defaults, Service};
