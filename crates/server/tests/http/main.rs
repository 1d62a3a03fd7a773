//! The server over real HTTP on a free port, on the tiny random model of `tests/golden`.
mod cache;
mod chat;
mod connections;
mod errors;
mod formats;
mod lifecycle;
mod load;
mod node;
mod openai;
mod page;
mod publishing;
mod tenants;
mod training;
mod variants;
