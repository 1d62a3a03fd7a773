//! The URL space, and the log line of each request.
use crate::{
    ApiError,
    answer::answer,
    auth::{self, Caller},
    card::card,
    extract::{Body, QueryModel, is_loopback_host},
    http_options::HttpOptions,
    me::me,
    metrics, models,
    openapi::{openapi, schema},
    page,
    service::Service,
    training, variants,
    wanted::Endpoint,
};
use axum::{
    Json, Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Instant};

/// Every endpoint. All but the page's files, `/health`, `/ready` and `/openapi.json` are behind [`auth::authenticate`].
pub fn router(service: Arc<Service>, options: &HttpOptions) -> Router {
    let guard = middleware::from_fn_with_state(Arc::clone(&service), auth::authenticate);
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/me", get(me))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::get))
        .route("/v1/variants", get(variants::list).post(variants::load))
        .route("/v1/variants/{user}", get(variants::get).put(variants::publish).delete(variants::delete))
        .route("/v1/variants/{user}/card", get(card))
        .route("/v1/variants/{user}/rollback", post(variants::roll_back))
        .route("/v1/variants/{user}/unload", post(variants::unload))
        .route("/v1/variants/{user}/train", post(training::begin).get(training::get).delete(training::cancel))
        .route("/v1/variants/{user}/train/events", get(training::events))
        .route("/metrics", get(metrics::metrics))
        .route_layer(guard);
    let open = guarded
        .route("/", get(page::index))
        .route("/page/page.js", get(page::script))
        .route("/page/page.css", get(page::style))
        .route("/page/icon.svg", get(page::icon))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/openapi.json", get(openapi));
    let app = open.fallback(unknown_path).method_not_allowed_fallback(wrong_method);
    let app = match &options.cors {
        Some(cors) => app.layer(cors.clone()),
        None => app,
    };
    let app = match options.loopback_names_only && !service.auth.is_required() {
        true => app.layer(middleware::from_fn(known_host)),
        false => app,
    };
    app.layer(middleware::from_fn_with_state(Arc::clone(&service), log)).with_state(service)
}

/// Refuses what came under a name that is not this machine's own. A web page anywhere can have its own name resolve to
/// loopback (DNS rebinding) and would otherwise read a keyless server as if it ran here.
async fn known_host(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    // Every browser names a host; what names none is no web page.
    if host.is_none_or(is_loopback_host) {
        return next.run(request).await;
    }
    let message = "this server has no keys and answers under localhost and 127.0.0.1 only; give it keys (--key-file) or \
                   tokens (--jwt-key), or pass --allow-remote if that is meant";
    ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message).into_response()
}

#[utoipa::path(post, path = "/v1/chat/completions", tag = "answers", params(schema::QueryModel), request_body = schema::ChatRequest, responses((status = 200, content((schema::ChatCompletion = "application/json"), (Value = "text/event-stream"))), (status = "default", body = schema::Failure)))]
pub(crate) async fn chat(
    State(service): State<Arc<Service>>,
    caller: Caller,
    QueryModel(model): QueryModel,
    body: Body,
) -> Result<Response, ApiError> {
    answer(service, caller, Endpoint::Chat, body, model.as_deref()).await
}

#[utoipa::path(post, path = "/v1/completions", tag = "answers", params(schema::QueryModel), request_body = schema::CompletionRequest, responses((status = 200, content((schema::ChatCompletion = "application/json"), (Value = "text/event-stream"))), (status = "default", body = schema::Failure)))]
pub(crate) async fn completions(
    State(service): State<Arc<Service>>,
    caller: Caller,
    QueryModel(model): QueryModel,
    body: Body,
) -> Result<Response, ApiError> {
    answer(service, caller, Endpoint::Completions, body, model.as_deref()).await
}

/// That it lives, and on a server for one's own machine what it does: from the cache's figures a tenant could tell what
/// another one asked.
#[utoipa::path(get, path = "/health", tag = "server", responses((status = 200, body = serde_json::Value)))]
pub(crate) async fn health(State(service): State<Arc<Service>>) -> Json<Value> {
    if service.auth.is_required() {
        return Json(json!({"status": "ok"}));
    }
    let stats = service.engine.stats();
    Json(json!({
        "status": "ok",
        "model": service.engine.model().base().name,
        "variants": service.registry.is_some(),
        "max_context": service.engine.max_context(),
        "running": stats.running,
        "waiting": stats.waiting,
        "prompt_tokens": stats.prompt_tokens,
        "reused_tokens": stats.reused_tokens,
        "generated_tokens": stats.generated_tokens,
        "preemptions": stats.preemptions,
        "cancelled": stats.cancelled,
        "expired": stats.expired,
    }))
}

/// Whether it takes requests now: 503 while it stops, or if its engine died.
#[utoipa::path(get, path = "/ready", tag = "server", responses((status = 200, body = serde_json::Value), (status = 503, body = schema::Failure)))]
pub(crate) async fn ready(State(service): State<Arc<Service>>) -> Result<Json<Value>, ApiError> {
    match service.engine.is_running() {
        true => Ok(Json(json!({"status": "ready"}))),
        false => Err(bitdelta_engine::Error::Stopped.into()),
    }
}

async fn unknown_path(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "unknown_url", format!("there is no {method} {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{method} is not allowed on {}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

/// One line a request, and one count: the route's pattern, not the path, which may hold a user's id.
async fn log(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("-".to_owned(), |path| path.as_str().to_owned());
    let started = Instant::now();
    let mut response = next.run(request).await;
    guard_from_browsers(response.headers_mut());
    let (status, milliseconds) = (response.status().as_u16(), started.elapsed().as_millis());
    let key = response.extensions().get::<Caller>().map_or("", Caller::id);
    service.observed.request(&route, status);
    tracing::info!(%method, route, status, key, milliseconds, "request");
    response
}

/// Answers are somebody's own: no cache keeps one unless its handler says otherwise, and no browser takes one for anything
/// but what it is said to be.
fn guard_from_browsers(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
