//! Who asks, and what they may: none, a key file, signed tokens, or both of these.
//!
//! | file | holds |
//! | --- | --- |
//! | `grant` | what a key or a token allows: users, rights, tenant |
//! | `credential` | where clients put a key in a request |
//! | `keys` | the key file: hashes only, changed by `bitdelta keys`, read again when it changes |
//! | `jwt` | signed tokens whose subject is the user |
//! | `limits` | requests and tokens a minute |
//!
//! Checked before a body is read. The key decides which users may be asked for; what a body names never does, and the
//! refusal is the same whether the named user exists or not, because nothing was looked up when it is sent.
mod credential;
pub mod grant;
pub mod jwt;
pub mod keys;
pub mod limits;

pub use grant::{Grant, Right, Users};
pub use jwt::Jwt;
pub use keys::KeyFile;
pub use limits::Limits;

use crate::{ApiError, Service, extract::from_this_machine};
use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderValue, StatusCode, header::WWW_AUTHENTICATE, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bitdelta_engine::{Registry, registry::Listed};
use limits::{Meter, Meters};
use std::{sync::Arc, time::Instant};

/// How callers prove who they are. Without keys and tokens everybody may ask for every user, and what changes things is
/// for programs on the server's own machine.
#[derive(Debug, Default)]
pub struct Auth {
    keys: Option<KeyFile>,
    jwt: Option<Jwt>,
    meters: Meters,
}

impl Auth {
    /// Keys, tokens or both; `limits` hold for each key without limits of its own and for each subject of a token.
    pub fn new(keys: Option<KeyFile>, jwt: Option<Jwt>, limits: Limits) -> Self {
        Self { keys, jwt, meters: Meters::new(limits) }
    }

    /// Whether callers must prove who they are.
    pub fn is_required(&self) -> bool {
        self.keys.is_some() || self.jwt.is_some()
    }

    /// What the request's key or token grants.
    fn grant(&self, secret: &str) -> Option<Grant> {
        let key = || self.keys.as_ref()?.find(secret);
        let token = || self.jwt.as_ref()?.verify(secret);
        key().or_else(token)
    }

    fn caller(&self, parts: &Parts) -> Result<Caller, ApiError> {
        if !self.is_required() {
            return Ok(Caller { grant: Grant::everybody(from_this_machine(parts)), meter: None });
        }
        let Some(secret) = credential::of(&parts.headers) else {
            return Err(unauthorized("this server wants an API key, as in Authorization: Bearer KEY"));
        };
        let grant = self.grant(secret);
        let grant = grant.ok_or_else(|| unauthorized("this API key or token is not valid here (any more)"))?;
        let meter = self.meters.of(&grant);
        if let Some(meter) = &meter {
            meter.request(Instant::now())?;
        }
        Ok(Caller { grant, meter })
    }
}

/// Who asks: proof that a request was let in, and what it may do.
#[derive(Debug, Clone)]
pub struct Caller {
    grant: Grant,
    meter: Option<Arc<Meter>>,
}

impl Caller {
    /// # Errors
    /// 403 when the caller has no such right.
    pub fn require(&self, right: Right) -> Result<(), ApiError> {
        if self.grant.allows(right) {
            return Ok(());
        }
        let (code, message) = if self.grant.is_anonymous() {
            ("operator_only", "this endpoint answers programs on the server's own machine only".to_owned())
        } else {
            ("right_missing", format!("this key does not have the right to {}", right.name()))
        };
        Err(ApiError::new(StatusCode::FORBIDDEN, code, message))
    }

    /// # Errors
    /// 403 when the caller has none of these rights; it names the first.
    pub fn require_any(&self, rights: &[Right]) -> Result<(), ApiError> {
        match rights {
            [first, ..] if !rights.iter().any(|right| self.grant.allows(*right)) => self.require(*first),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// 403 when the caller may not ask for this user, whether there is one or not.
    pub fn check_user(&self, user: &str) -> Result<(), ApiError> {
        if self.grant.covers(user) {
            return Ok(());
        }
        let message = "this key may not ask for this user";
        Err(ApiError::new(StatusCode::FORBIDDEN, "user_not_allowed", message).about("user_id"))
    }

    /// The variants that the caller may ask for. A caller with certain users does not cost a look at everybody's.
    pub fn variants(&self, registry: &Registry) -> Vec<Listed> {
        match self.grant.users() {
            Users::All => registry.list(),
            Users::Only(users) => users.iter().filter_map(|user| registry.listed(user).ok()).collect(),
        }
    }

    /// Whom the caller may ask for, beside the base.
    pub fn users(&self) -> &Users {
        self.grant.users()
    }

    /// What the caller may take in a minute.
    pub fn limits(&self) -> Limits {
        self.meter.as_ref().map_or_else(Limits::default, |meter| meter.limits())
    }

    /// For whom the engine works: places, the queue and the cache of prompts belong to a tenant.
    pub fn tenant(&self, user: Option<&str>) -> Arc<str> {
        self.grant.tenant(user)
    }

    /// A name for the log and for metrics that is no secret.
    pub fn id(&self) -> &str {
        self.grant.id()
    }

    /// Sets aside what an answer may take of the caller's tokens a minute.
    ///
    /// # Errors
    /// 429 with the time in which there will be enough.
    pub fn reserve_tokens(&self, tokens: usize) -> Result<Option<limits::Reserved>, ApiError> {
        match &self.meter {
            Some(meter) => Ok(Some(Meter::reserve(meter, tokens, Instant::now())?)),
            None => Ok(None),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        // It is there behind `authenticate`; a route without that must not be open by mistake.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| unauthorized("this endpoint wants an API key"))
    }
}

/// Lets a request in, or answers it.
pub async fn authenticate(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match service.auth.caller(&parts) {
        Ok(caller) => {
            parts.extensions.insert(caller.clone());
            let mut response = next.run(Request::from_parts(parts, body)).await;
            // For the access log, outside.
            response.extensions_mut().insert(caller);
            response
        }
        Err(error) => {
            let mut response = error.into_response();
            if response.status() == StatusCode::UNAUTHORIZED {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            response
        }
    }
}

fn unauthorized(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
}
