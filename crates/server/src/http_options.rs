//! What the operator says of connections: TLS, who may call from a browser, and the limits that keep slow or rude clients
//! from costing others anything.
use crate::Error;
use axum::http::{HeaderName, HeaderValue, Method, header};
use std::{path::Path, sync::Arc, time::Duration};
use tokio_rustls::rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How connections are served.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// How long running answers get to end when the server is asked to stop.
    pub shutdown: Duration,
    /// Certificate and key; `None` is plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
    /// Origins whose pages may call from a browser; none by default.
    pub cors: Option<CorsLayer>,
    /// Whether a server without authentication answers under the names of loopback only.
    pub loopback_names_only: bool,
    /// Most connections at a time; more wait to be accepted.
    pub max_connections: usize,
    /// Longest time for a TLS handshake, for a request's head to arrive, and between two requests of a connection.
    pub head_timeout: Duration,
    /// Longest time that a client may leave what it is sent unread.
    pub write_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            shutdown: Duration::from_secs(30),
            tls: None,
            cors: None,
            loopback_names_only: true,
            max_connections: 4096,
            head_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
        }
    }
}

/// A certificate chain and its key, both in PEM.
///
/// # Errors
/// [`Error::Tls`].
pub fn tls(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, Error> {
    let failed = |reason: String| Error::Tls { cert: cert.to_owned(), key: key.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| failed(format!("the certificate: {error}")))?;
    if chain.is_empty() {
        return Err(failed("there is no certificate in it".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(format!("the key: {error}")))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|error| failed(error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What lets pages of these origins call; `*` is all. `None` for no origins.
///
/// # Errors
/// [`Error::Origin`].
pub fn cors(origins: &[String]) -> Result<Option<CorsLayer>, Error> {
    if origins.is_empty() {
        return Ok(None);
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let parsed: Result<Vec<HeaderValue>, Error> = origins.iter().map(|origin| parse(origin)).collect();
        AllowOrigin::list(parsed?)
    };
    let headers = [header::AUTHORIZATION, header::CONTENT_TYPE, HeaderName::from_static("x-api-key")];
    let methods = [Method::GET, Method::POST, Method::PUT, Method::DELETE];
    let layer = CorsLayer::new().allow_origin(allowed).allow_headers(headers).allow_methods(methods);
    Ok(Some(layer.expose_headers([header::RETRY_AFTER])))
}

/// Browsers send scheme, host and port, nothing behind.
fn parse(origin: &str) -> Result<HeaderValue, Error> {
    let host = ["https://", "http://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
    let value = host.filter(|host| !host.is_empty() && !host.contains('/')).map(|_| HeaderValue::from_str(origin));
    match value {
        Some(Ok(value)) => Ok(value),
        _ => Err(Error::Origin { origin: origin.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        assert!(cors(&["https://a.example".to_owned(), "http://localhost:3000".to_owned()]).is_ok());
        assert!(cors(&[]).is_ok_and(|layer| layer.is_none()));
        for bad in ["a.example", "https://", "https://a.example/", "https://a\n"] {
            assert!(matches!(cors(&[bad.to_owned()]), Err(Error::Origin { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_certificate_that_is_none_says_which_file() {
        let dir = tempfile::tempdir().expect("a folder");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let reason = |error: Error| error.to_string();
        assert!(tls(&cert, &key).map_err(reason).is_err_and(|reason| reason.contains("cert.pem")));
        std::fs::write(&cert, "no PEM").expect("written");
        assert!(tls(&cert, &key).map_err(reason).is_err_and(|reason| reason.contains("no certificate")));
    }
}
