//! The operator's endpoints: which variants are there, load one from a path, unload one. This machine only
//! ([`Operator`]), because loading opens any path that the caller names.
use crate::{
    ApiError,
    auth::{Caller, Right},
    extract::{Body, Segment},
    service::{Service, blocking, unix_seconds_of},
};
use axum::{Json, extract::State, http::StatusCode};
use bitdelta_engine::{Error as EngineError, registry::Listed};
use serde_json::{Value, json};
use std::{error::Error as _, path::PathBuf, sync::Arc};

/// `GET /v1/variants`: every variant loaded or in the folder, by user id; of those in memory also their bytes, their hash,
/// whether a request uses them now and when one last asked for them (Unix seconds).
///
/// # Errors
/// 400 when variants are not served, 403 for others than the operator.
pub async fn list(caller: Caller, State(service): State<Arc<Service>>) -> Result<Json<Value>, ApiError> {
    caller.require(Right::Admin)?;
    let data = blocking(&service, |service| {
        let line = |variant: Listed| {
            let loaded = variant.loaded.as_ref();
            json!({
                "object": "variant",
                "user_id": variant.user,
                "path": variant.path,
                "loaded": loaded.is_some(),
                "resident_bytes": loaded.map_or(0, |loaded| loaded.bytes),
                "in_use": loaded.is_some_and(|loaded| loaded.in_use),
                "last_used": loaded.map(|loaded| unix_seconds_of(loaded.last_used)),
                "hash": loaded.map(|loaded| &loaded.hash),
            })
        };
        Ok(service.variants()?.list().into_iter().map(line).collect::<Vec<_>>())
    });
    Ok(Json(json!({"object": "list", "data": data.await?})))
}

/// `POST /v1/variants {"path": …}`: a variant file or a folder that holds one, under the user id that its name
/// gives.
///
/// # Errors
/// 400, 404 or 422 with the whole cause: the operator named the path, so it is no secret.
pub async fn load(caller: Caller, State(service): State<Arc<Service>>, body: Body) -> Result<Json<Value>, ApiError> {
    caller.require(Right::Admin)?;
    let Some(path) = body.fields.string("path")?.map(PathBuf::from) else {
        return Err(ApiError::invalid("path", "path is required: a variant file or a folder that holds one"));
    };
    let _place = service.loads.place().await?;
    let loaded = blocking(&service, move |service| {
        let variant = service.variants()?.load(&path).map_err(in_full)?;
        tracing::info!(user = variant.user(), bytes = variant.memory_bytes(), "loaded a variant");
        Ok(json!({
            "object": "variant",
            "user_id": variant.user(),
            "path": variant.path(),
            "hash": variant.hash(),
            "loaded": true,
            "resident_bytes": variant.memory_bytes(),
        }))
    });
    Ok(Json(loaded.await?))
}

/// `POST /v1/variants/{user}/unload`: frees its memory when its last request ends. Its file stays where it is.
///
/// # Errors
/// 404 when it is not loaded.
pub async fn unload(
    caller: Caller,
    State(service): State<Arc<Service>>,
    Segment(user): Segment,
) -> Result<Json<Value>, ApiError> {
    caller.require(Right::Admin)?;
    let done = blocking(&service, move |service| match service.variants()?.unload(&user)? {
        true => Ok(json!({"object": "variant", "user_id": user, "loaded": false})),
        false => {
            let message = format!("no variant is loaded for user {user:?}");
            Err(ApiError::new(StatusCode::NOT_FOUND, "variant_not_loaded", message).about("user_id"))
        }
    });
    Ok(Json(done.await?))
}

/// The status that any caller gets, with every cause in the message.
fn in_full(error: EngineError) -> ApiError {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.ends_with(&text) {
            message += &format!(": {text}");
        }
        cause = inner.source();
    }
    let mut answer = ApiError::from(error);
    if answer.status == StatusCode::INTERNAL_SERVER_ERROR {
        // Not the server's fault but a path that cannot be read.
        answer = ApiError::new(StatusCode::NOT_FOUND, "variant_not_found", String::new()).about("path");
    }
    ApiError { message, ..answer }
}
