//! Errors in OpenAI's shape, and the one place that gives an engine's error its status.
//!
//! Two choices that are not obvious: a wrong base is 400 and not 409, because OpenAI's clients retry a 409 by themselves
//! and this one never heals; a damaged variant is 422, which they do not retry. Messages never name files: paths belong
//! in the server's log, not in another user's answer.
use axum::{
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use bitdelta_engine::Error as EngineError;
use serde_json::{Value, json};

/// One failed request.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// For people.
    pub message: String,
    /// The request's field at fault.
    pub param: Option<String>,
    /// For programs, as in `variant_not_found`.
    pub code: Option<&'static str>,
    /// Seconds after which another try makes sense; sent as `Retry-After`.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// An error with a status, a code and a message.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let again = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        Self { status, message: message.into(), param: None, code: Some(code), retry_after: again.then_some(1) }
    }

    /// 400: the field `param` cannot be used as given.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).about(param)
    }

    /// 400: the field `param` is known, but what it asks for does not exist here yet.
    pub fn unsupported(param: &str) -> Self {
        let message = format!("{param} is not supported yet by this server; leave it out");
        Self::new(StatusCode::BAD_REQUEST, "unsupported_parameter", message).about(param)
    }

    /// Names the field at fault.
    #[must_use]
    pub fn about(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// The `{"error": …}` object.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::UnknownUser { user, .. } => {
                Self::new(StatusCode::NOT_FOUND, "variant_not_found", format!("there is no variant for user {user:?}"))
                    .about("user_id")
            }
            EngineError::InvalidUser { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_user", message).about("user_id")
            }
            EngineError::WrongBase { made_on, made_on_name, serving, serving_name, .. } => Self::new(
                StatusCode::BAD_REQUEST,
                "wrong_base",
                format!(
                    "this user's variant was made on base {made_on_name} ({}), this server holds {serving_name} ({}); \
                     serve its base, or make the variant again on this one",
                    short(&made_on),
                    short(&serving)
                ),
            )
            .about("user_id"),
            // Not 5xx, which clients repeat: it never fits this server.
            EngineError::VariantTooLarge { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "variant_too_large", message).about("user_id")
            }
            EngineError::PromptTooLong { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message).about("messages")
            }
            EngineError::EmptyPrompt => Self::invalid("messages", message),
            EngineError::UnknownToken { .. } => Self::invalid("prompt", message),
            EngineError::Constraint { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "constraint_failed", message).about("response_format")
            }
            EngineError::InvalidParameter { name, .. } => Self::invalid(name, message),
            EngineError::Busy { retry_seconds, .. } => {
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message);
                Self { retry_after: Some(retry_seconds), ..error }
            }
            EngineError::Deadline { begun: false } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "queue_timeout", message)
            }
            EngineError::Deadline { begun: true } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline_exceeded", message)
            }
            EngineError::Memory { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "out_of_memory", message),
            EngineError::Stopped => Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message),
            EngineError::Variant(bitdelta_delta::file::Error::Io { .. }) => internal(&message),
            EngineError::Variant(_) | EngineError::Shape { .. } => damaged(&message),
            _ => internal(&message),
        }
    }
}

/// 422: a variant that exists and cannot be used. The log alone has the cause, which names the file.
fn damaged(cause: &str) -> ApiError {
    tracing::error!(cause, "a variant cannot be used");
    let message = "this user's variant file is damaged, not a variant, or does not fit its base; publish it again \
                   (the server's log has the details)";
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "variant_damaged", message).about("user_id")
}

/// 500, with the cause in the log alone.
pub(crate) fn internal(cause: &str) -> ApiError {
    tracing::error!(cause, "internal error");
    let message = "internal error; the server's log has the details";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
}

/// The first 12 digits of a fingerprint, enough to compare by eye.
fn short(hex: &str) -> &str {
    hex.get(..12).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn an_error_has_openais_four_fields() {
        let body = ApiError::invalid("top_p", "too large").body();
        let expected = json!({"error": {"message": "too large", "type": "invalid_request_error", "param": "top_p", "code": "invalid_value"}});
        assert_eq!(body, expected);
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let response = ApiError::from(EngineError::Busy { waiting: 9, retry_seconds: 7 }).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[RETRY_AFTER], "7");
    }

    #[test]
    fn a_deadline_is_a_503_to_try_again_while_waiting_and_a_504_once_begun() {
        let waiting = ApiError::from(EngineError::Deadline { begun: false });
        assert_eq!((waiting.status, waiting.code), (StatusCode::SERVICE_UNAVAILABLE, Some("queue_timeout")));
        assert!(waiting.retry_after.is_some());
        let begun = ApiError::from(EngineError::Deadline { begun: true });
        assert_eq!((begun.status, begun.code), (StatusCode::GATEWAY_TIMEOUT, Some("deadline_exceeded")));
        assert_eq!(begun.retry_after, None);
    }

    #[test]
    fn messages_name_no_files() {
        let dir = PathBuf::from("/srv/secret");
        let error = ApiError::from(EngineError::UnknownUser { user: "eve".into(), dir: Some(dir.clone()) });
        assert_eq!((error.status, error.code), (StatusCode::NOT_FOUND, Some("variant_not_found")));
        assert!(!error.message.contains("secret"), "{}", error.message);
        let wrong = EngineError::WrongBase {
            path: dir,
            made_on: "aaaa".into(),
            made_on_name: "other".into(),
            serving: "bbbb".into(),
            serving_name: "this".into(),
        };
        let error = ApiError::from(wrong);
        assert_eq!((error.status, error.code), (StatusCode::BAD_REQUEST, Some("wrong_base")));
        assert!(error.message.contains("other") && !error.message.contains("secret"), "{}", error.message);
    }
}
