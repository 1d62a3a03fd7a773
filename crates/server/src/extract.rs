//! What handlers take from a request, with every refusal in OpenAI's shape.
use crate::{
    ApiError,
    fields::Fields,
    room::{Room, check_values},
    service::Service,
};
use axum::{
    extract::{ConnectInfo, FromRequest, FromRequestParts, Path, Query, Request},
    http::{
        HeaderMap, StatusCode,
        header::{HOST, ORIGIN},
        request::Parts,
    },
};
use futures_util::StreamExt;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::sync::OwnedSemaphorePermit;

/// Largest request body in bytes: far above any prompt that fits a context.
pub const MAX_BODY_BYTES: usize = 8 << 20;

/// Longest time for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A request's JSON object. While it is there its bytes count against the budget for bodies.
pub struct Body {
    /// The object's fields.
    pub fields: Fields,
    _held: Option<OwnedSemaphorePermit>,
}

impl FromRequest<Arc<Service>> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, service: &Arc<Service>) -> Result<Self, ApiError> {
        let read = tokio::time::timeout(BODY_TIMEOUT, read(request, &service.room));
        let (bytes, held) = read.await.map_err(|_| {
            let message = format!("the body did not arrive within {} seconds", BODY_TIMEOUT.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
        })??;
        check_values(&bytes)?;
        Ok(Self { fields: Fields::parse(&bytes)?, _held: held })
    }
}

/// Reads a body, each piece counted before the next is asked for. One that finds no room is read to its end and thrown
/// away: a client hears an answer only after it has sent all.
async fn read(request: Request, room: &Room) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), ApiError> {
    let mut pieces = request.into_body().into_data_stream();
    let (mut bytes, mut held): (Vec<u8>, Option<OwnedSemaphorePermit>) = (Vec::new(), None);
    let (mut length, mut refused) = (0, None);
    while let Some(piece) = pieces.next().await {
        let piece =
            piece.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "unreadable_body", error.to_string()))?;
        length += piece.len();
        if length > MAX_BODY_BYTES {
            let message = format!("the body is larger than {MAX_BODY_BYTES} bytes");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
        }
        if refused.is_some() {
            continue;
        }
        match (room.hold(piece.len()), &mut held) {
            (Ok(more), Some(held)) => held.merge(more),
            (Ok(more), None) => held = Some(more),
            (Err(error), _) => {
                (bytes, held, refused) = (Vec::new(), None, Some(error));
                continue;
            }
        }
        bytes.extend_from_slice(&piece);
    }
    match refused {
        Some(error) => Err(error),
        None => Ok((bytes, held)),
    }
}

/// The path's one parameter, percent-decoded. It is data, not a path on disk.
pub struct Segment(
    /// The text.
    pub String,
);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => Ok(Self(text)),
            Err(rejection) => Err(ApiError::new(rejection.status(), "invalid_path", rejection.body_text())),
        }
    }
}

/// The query string's `model`, which some clients send instead of the body's.
pub struct QueryModel(
    /// The name, if there is one.
    pub Option<String>,
);

impl<S: Send + Sync> FromRequestParts<S> for QueryModel {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<HashMap<String, String>>::from_request_parts(parts, state).await {
            Ok(Query(mut query)) => Ok(Self(query.remove("model"))),
            Err(rejection) => Err(ApiError::new(rejection.status(), "invalid_query", rejection.body_text())),
        }
    }
}

/// Whether the request comes from this machine and was meant for it: without authentication, such a one is the operator's.
///
/// A loopback peer is not enough. A web page that the operator visits can reach loopback through a name of its own
/// (DNS rebinding; its `Host` tells), by a request from another origin (its `Origin` or `Sec-Fetch-Site` tells; the
/// server's own page has the origin that it asks), and a reverse proxy on this machine passes on others' requests (its
/// `Forwarded` headers tell).
pub(crate) fn from_this_machine(parts: &Parts) -> bool {
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    peer.is_some_and(|ip| ip.to_canonical().is_loopback()) && meant_for_loopback(&parts.headers)
}

fn meant_for_loopback(headers: &HeaderMap) -> bool {
    let relayed = ["forwarded", "x-forwarded-for", "x-real-ip"].iter().any(|name| headers.contains_key(*name));
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    !relayed && is_loopback_host(host) && !is_cross_origin(headers, host)
}

/// Whether a browser says that a page of another origin asks; port for port, since other programs of this machine may
/// have pages too.
fn is_cross_origin(headers: &HeaderMap, host: &str) -> bool {
    let own = |origin: &[u8]| {
        let rest = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        rest.is_some_and(|rest| rest.eq_ignore_ascii_case(host.as_bytes()))
    };
    let asked_by_itself = |site: &[u8]| matches!(site, b"same-origin" | b"none");
    headers.get_all(ORIGIN).iter().any(|origin| !own(origin.as_bytes()))
        || headers.get_all("sec-fetch-site").iter().any(|site| !asked_by_itself(site.as_bytes()))
}

/// `localhost`, `127.0.0.1:8080`, `[::1]:8080`.
pub(crate) fn is_loopback_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_count_as_this_machine() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "LOCALHOST"] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:8080", "10.0.0.1:8080", "127.0.0.1.nip.io"] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }

    #[test]
    fn a_relayed_request_is_not_the_operators() {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, "localhost:8080".parse().expect("a value"));
        assert!(meant_for_loopback(&headers));
        headers.insert("x-forwarded-for", "10.0.0.1".parse().expect("a value"));
        assert!(!meant_for_loopback(&headers));
    }

    #[test]
    fn a_browser_is_the_operators_only_on_the_servers_own_page() {
        let meant = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, "localhost:8080".parse().expect("a value"));
            headers.insert(name, value.parse().expect("a value"));
            meant_for_loopback(&headers)
        };
        assert!(meant("origin", "http://localhost:8080") && meant("origin", "https://LOCALHOST:8080"));
        for other in [
            "https://evil.example",
            "null",
            "http://localhost:3000",
            "http://localhost",
            "http://127.0.0.1:8080",
            "http://localhost:8080.evil.example",
            "localhost:8080",
        ] {
            assert!(!meant("origin", other), "{other}");
        }
        assert!(meant("sec-fetch-site", "same-origin") && meant("sec-fetch-site", "none"));
        assert!(!meant("sec-fetch-site", "cross-site") && !meant("sec-fetch-site", "same-site"));
    }
}
