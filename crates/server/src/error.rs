//! What keeps a server from starting or running. Errors of single requests are [`crate::ApiError`].
use std::{net::SocketAddr, path::PathBuf};

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
        "{address} can be reached from other machines and the server has no authentication; give it keys (--key-file) or tokens \
         (--jwt-key), or pass --allow-remote if that is meant"
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
    /// The certificate or its key cannot be used.
    #[error("the certificate {} with the key {} cannot be used: {reason}", cert.display(), key.display())]
    Tls {
        /// As given.
        cert: PathBuf,
        /// As given.
        key: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An origin that no browser would send.
    #[error("{origin:?} is no origin; write it as in https://app.example.org, or * for all")]
    Origin {
        /// As given.
        origin: String,
    },
}
