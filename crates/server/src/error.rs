//! What keeps a server from starting or running. Errors of single requests are [`crate::ApiError`].
use std::net::SocketAddr;

/// Why the server did not start or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host name has no address.
    #[error("{host} has no address")]
    NoAddress {
        /// As given.
        host: String,
    },
    /// The address is beyond loopback and nobody said that this is meant.
    #[error(
        "{address} can be reached from other machines and the server has no authentication; pass --allow-remote if that is meant"
    )]
    Remote {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {host}:{port}")]
    Bind {
        /// As given.
        host: String,
        /// As given.
        port: u16,
        /// The cause.
        source: std::io::Error,
    },
    /// The accept loop failed.
    #[error("serving HTTP failed")]
    Serve(#[source] std::io::Error),
}
