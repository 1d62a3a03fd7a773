//! The server over real HTTP on a free port, on the tiny random model of `tests/golden`.
mod cache;
mod chat;
mod connections;
mod errors;
mod lifecycle;
mod load;
mod node;
mod tenants;
mod variants;
