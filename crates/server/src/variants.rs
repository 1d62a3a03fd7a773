//! Users' variants: the list, publishing, versions, deletion; and for the operator, loading from a path and unloading.
//!
//! Publishing, rolling back and deleting want the right to publish and a user whom the key covers. Loading opens any path
//! that the caller names, so it wants the operator's right.
use crate::{
    ApiError,
    auth::{Caller, Right},
    extract::{Body, Segment},
    openapi::schema,
    service::{Service, blocking, unix_seconds_of},
    upload,
};
use axum::{Json, extract::State, http::StatusCode};
use bitdelta_engine::{
    Error as EngineError,
    registry::{Listed, Published, Store},
};
use serde_json::{Value, json};
use std::{error::Error as _, path::PathBuf, sync::Arc};

/// `GET /v1/variants`: the caller's variants, loaded or in the folder, by user id; of those in memory also their bytes,
/// their hash, whether a request uses them now and when one last asked for them (Unix seconds). The operator also sees
/// their paths.
///
/// # Errors
/// 400 when variants are not served, 403 for a key that may neither publish nor operate.
#[utoipa::path(get, path = "/v1/variants", operation_id = "list_variants", tag = "variants", responses((status = 200, body = schema::VariantList), (status = "default", body = schema::Failure)))]
pub async fn list(caller: Caller, State(service): State<Arc<Service>>) -> Result<Json<Value>, ApiError> {
    caller.require_any(&[Right::Publish, Right::Admin])?;
    let data = blocking(&service, move |service| {
        Ok(caller.variants(service.variants()?).into_iter().map(|variant| line(variant, &caller)).collect::<Vec<_>>())
    });
    Ok(Json(json!({"object": "list", "data": data.await?})))
}

fn line(variant: Listed, caller: &Caller) -> Value {
    let loaded = variant.loaded.as_ref();
    let mut line = json!({
        "object": "variant",
        "user_id": variant.user,
        "loaded": loaded.is_some(),
        "resident_bytes": loaded.map_or(0, |loaded| loaded.bytes),
        "in_use": loaded.is_some_and(|loaded| loaded.in_use),
        "last_used": loaded.map(|loaded| unix_seconds_of(loaded.last_used)),
        "hash": loaded.map(|loaded| &loaded.hash),
    });
    if caller.require(Right::Admin).is_ok() {
        line["path"] = json!(variant.path);
    }
    line
}

/// `GET /v1/variants/{user}`: one variant with its versions, oldest first.
///
/// # Errors
/// 403 for a user that is not the caller's, 404 when there is none.
#[utoipa::path(get, path = "/v1/variants/{user}", operation_id = "get_variant", tag = "variants", params(schema::OfUser), responses((status = 200, body = schema::Variant), (status = "default", body = schema::Failure)))]
pub async fn get(
    caller: Caller,
    State(service): State<Arc<Service>>,
    Segment(user): Segment,
) -> Result<Json<Value>, ApiError> {
    caller.require_any(&[Right::Publish, Right::Admin])?;
    caller.check_user(&user)?;
    let found = blocking(&service, move |service| {
        let registry = service.variants()?;
        let variant = registry.listed(&user)?;
        let versions = registry.store().map_or_else(|| Ok(Vec::new()), |store| store.versions(&user))?;
        let mut found = line(variant, &caller);
        found["versions"] = versions.iter().map(version).collect();
        Ok(found)
    });
    Ok(Json(found.await?))
}

/// `PUT /v1/variants/{user}`: the body, a variant file, becomes the user's newest version once it is checked as if it
/// were served. Requests that are being answered keep the version they began with.
///
/// # Errors
/// 400 for a variant of another base, 413 for one that this server could not hold, 422 for a damaged one.
#[utoipa::path(put, path = "/v1/variants/{user}", operation_id = "publish_variant", tag = "variants", params(schema::OfUser), request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 201, body = schema::Version), (status = "default", body = schema::Failure)))]
pub async fn publish(
    caller: Caller,
    State(service): State<Arc<Service>>,
    Segment(user): Segment,
    body: axum::body::Body,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    caller.require(Right::Publish)?;
    caller.check_user(&user)?;
    let checked = user.clone();
    let incoming = blocking(&service, move |service| {
        bitdelta_engine::user::check_user(&checked)?;
        Ok(store(service)?.incoming()?)
    });
    let limit = service.variants()?.stats().budget_bytes;
    let incoming = upload::receive(body, incoming.await?, limit).await?;
    // A check reads the whole file into the budget, as a load does.
    let _place = service.loads.place().await?;
    let published = blocking(&service, move |service| {
        let hash = service.variants()?.check(&user, incoming.path())?;
        let published = store(service)?.publish(&user, incoming, &hash)?;
        tracing::info!(user, version = published.number, bytes = published.bytes, "published a variant");
        Ok(published)
    });
    Ok((StatusCode::CREATED, Json(version(&published.await?))))
}

/// `POST /v1/variants/{user}/rollback {"version": N}`: version N, or the one before the newest, becomes the newest.
///
/// # Errors
/// 404 when there is no such version.
#[utoipa::path(post, path = "/v1/variants/{user}/rollback", operation_id = "roll_back_variant", tag = "variants", params(schema::OfUser), request_body = schema::Rollback, responses((status = 200, body = schema::Version), (status = "default", body = schema::Failure)))]
pub async fn roll_back(
    caller: Caller,
    State(service): State<Arc<Service>>,
    Segment(user): Segment,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    caller.require(Right::Publish)?;
    caller.check_user(&user)?;
    let to = body.fields.integer("version", 1..=i64::MAX)?.map(i64::cast_unsigned);
    let made = blocking(&service, move |service| {
        let made = store(service)?.roll_back(&user, to)?.ok_or_else(|| {
            let message = "there is no such version of this user's variant to go back to";
            ApiError::new(StatusCode::NOT_FOUND, "version_not_found", message).about("version")
        })?;
        tracing::info!(user, version = made.number, "rolled a variant back");
        Ok(made)
    });
    Ok(Json(version(&made.await?)))
}

/// `DELETE /v1/variants/{user}`: erases every version of the user's variant from memory and disk. A training of theirs is
/// called back: what was erased must not come again.
///
/// # Errors
/// 404 when there is nothing.
#[utoipa::path(delete, path = "/v1/variants/{user}", operation_id = "delete_variant", tag = "variants", params(schema::OfUser), responses((status = 200, body = schema::Deleted), (status = "default", body = schema::Failure)))]
pub async fn delete(
    caller: Caller,
    State(service): State<Arc<Service>>,
    Segment(user): Segment,
) -> Result<Json<Value>, ApiError> {
    caller.require(Right::Publish)?;
    caller.check_user(&user)?;
    let done = blocking(&service, move |service| {
        let store = store(service)?;
        let called_back = service.jobs.of(&user).is_some_and(|job| job.cancel_for_good());
        let erased = store.delete(&user)?;
        let unloaded = service.variants()?.unload(&user)?;
        if !erased && !unloaded && !called_back {
            return Err(unknown(user));
        }
        tracing::info!(user, "deleted a variant");
        Ok(json!({"object": "variant.deleted", "user_id": user, "deleted": true}))
    });
    Ok(Json(done.await?))
}

fn store(service: &Service) -> Result<&Store, ApiError> {
    service.variants()?.store().ok_or_else(crate::names::disabled)
}

fn version(published: &Published) -> Value {
    json!({
        "object": "variant.version",
        "version": published.number,
        "hash": published.hash,
        "bytes": published.bytes,
        "created": published.created,
        "rolled_back_to": published.rolled_back_to,
    })
}

fn unknown(user: String) -> ApiError {
    EngineError::UnknownUser { user, dir: None }.into()
}

/// `POST /v1/variants {"path": …}`: a variant file or a folder that holds one, under the user id that its name
/// gives.
///
/// # Errors
/// 400, 404 or 422 with the whole cause: the operator named the path, so it is no secret.
#[utoipa::path(post, path = "/v1/variants", operation_id = "load_variant", tag = "operator", request_body = schema::LoadVariant, responses((status = 200, body = schema::Variant), (status = "default", body = schema::Failure)))]
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
#[utoipa::path(post, path = "/v1/variants/{user}/unload", operation_id = "unload_variant", tag = "operator", params(schema::OfUser), responses((status = 200, body = schema::Variant), (status = "default", body = schema::Failure)))]
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
