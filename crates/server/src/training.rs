//! `/v1/variants/{user}/train`: begin a training, see how it goes, follow it as server-sent events, call it back.
use crate::{
    ApiError,
    auth::{Caller, Right},
    extract::{Body, Segment},
    jobs::{Job, Jobs, Work},
    openapi::schema,
    service::{Service, blocking},
};
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{self, KeepAlive, Sse},
    },
};
use futures_util::stream::unfold;
use serde_json::Value;
use std::{convert::Infallible, sync::Arc};

/// `POST /v1/variants/{user}/train {"data": […], "eval_data": […], "settings": {…}}`: conversations in any form that
/// `bitdelta train` reads, and its settings by their LLaMA-Factory names.
///
/// # Errors
/// 400 for data or settings that make no sense, 409 while the user has a training under way.
#[utoipa::path(post, path = "/v1/variants/{user}/train", operation_id = "begin_training", tag = "training", params(schema::OfUser), request_body = schema::Train, responses((status = 202, body = schema::Training), (status = "default", body = schema::Failure)))]
pub async fn begin(
    caller: Caller,
    State(service): State<Arc<Service>>,
    Segment(user): Segment,
    body: Body,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    allowed(&caller, &user)?;
    let work = work(&body)?;
    let folder = blocking(&service, |service| {
        service.variants()?;
        tempfile::Builder::new()
            .prefix("bitdelta-training-")
            .tempdir()
            .map_err(|error| crate::api_error::internal(&format!("no folder for a training: {error}")))
    });
    bitdelta_engine::user::check_user(&user)?;
    let job = Jobs::begin(&service, &user, work, folder.await?)?;
    Ok((StatusCode::ACCEPTED, now(&job)))
}

/// `GET /v1/variants/{user}/train`: the training that runs, or the last one since the server started.
///
/// # Errors
/// 404 when there was none.
#[utoipa::path(get, path = "/v1/variants/{user}/train", operation_id = "get_training", tag = "training", params(schema::OfUser), responses((status = 200, body = schema::Training), (status = "default", body = schema::Failure)))]
pub async fn get(
    caller: Caller,
    State(service): State<Arc<Service>>,
    Segment(user): Segment,
) -> Result<Json<Value>, ApiError> {
    allowed(&caller, &user)?;
    let job = job(&service, &user)?;
    Ok(now(&job))
}

/// `GET /v1/variants/{user}/train/events`: the same at each change until it is over, then `[DONE]`.
///
/// # Errors
/// 404 when there was none.
#[utoipa::path(get, path = "/v1/variants/{user}/train/events", operation_id = "follow_training", tag = "training", params(schema::OfUser), responses((status = 200, content_type = "text/event-stream", body = Value), (status = "default", body = schema::Failure)))]
pub async fn events(
    caller: Caller,
    State(service): State<Arc<Service>>,
    Segment(user): Segment,
) -> Result<Response, ApiError> {
    allowed(&caller, &user)?;
    let job = job(&service, &user)?;
    let mut states = job.watch();
    // The first is sent as it stands.
    states.mark_changed();
    let events = unfold(Some((job, states, false)), |following| async move {
        let (job, mut states, over) = following?;
        let event = |data: String| Ok::<_, Infallible>(sse::Event::default().data(data));
        if over || states.changed().await.is_err() {
            return Some((event("[DONE]".to_owned()), None));
        }
        let state = states.borrow_and_update().clone();
        Some((event(job.json(&state).to_string()), Some((job, states, state.status.is_over()))))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

/// `DELETE /v1/variants/{user}/train`: calls the training back. What was published before stays.
///
/// # Errors
/// 404 when there was none, 409 when it is over.
#[utoipa::path(delete, path = "/v1/variants/{user}/train", operation_id = "cancel_training", tag = "training", params(schema::OfUser), responses((status = 202, body = schema::Training), (status = "default", body = schema::Failure)))]
pub async fn cancel(
    caller: Caller,
    State(service): State<Arc<Service>>,
    Segment(user): Segment,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    allowed(&caller, &user)?;
    let job = job(&service, &user)?;
    if !job.cancel() {
        return Err(ApiError::new(StatusCode::CONFLICT, "training_over", "this training is over"));
    }
    Ok((StatusCode::ACCEPTED, now(&job)))
}

fn allowed(caller: &Caller, user: &str) -> Result<(), ApiError> {
    caller.require(Right::Train)?;
    caller.check_user(user)
}

fn job(service: &Service, user: &str) -> Result<Arc<Job>, ApiError> {
    let message = "there was no training for this user since the server started";
    service.jobs.of(user).ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "training_not_found", message))
}

fn now(job: &Job) -> Json<Value> {
    Json(job.json(&job.watch().borrow()))
}

fn work(body: &Body) -> Result<Work, ApiError> {
    let lines = |name: &str| -> Result<Vec<Value>, ApiError> {
        let lines = body.fields.array(name)?.cloned().unwrap_or_default();
        match lines.iter().position(|line| !line.is_object()) {
            Some(at) => {
                let param = format!("{name}[{at}]");
                Err(ApiError::invalid(&param, format!("{param} must be an object: one conversation")))
            }
            None => Ok(lines),
        }
    };
    let data = lines("data")?;
    if data.is_empty() {
        return Err(ApiError::invalid("data", "data is required: a list of conversations"));
    }
    let mut settings = Vec::new();
    if let Some(given) = body.fields.object("settings")? {
        for (name, value) in given.iter() {
            let text = match value {
                Value::Null => continue,
                Value::String(text) => text.clone(),
                Value::Number(_) | Value::Bool(_) => value.to_string(),
                _ => {
                    let param = format!("settings.{name}");
                    return Err(ApiError::invalid(&param, format!("{param} must be a plain value")));
                }
            };
            settings.push((name.clone(), text));
        }
    }
    Ok(Work { data, eval_data: lines("eval_data")?, settings })
}
