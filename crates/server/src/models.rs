//! `GET /v1/models`: the base under each of its names first, then a line a variant as `base:user`.
use crate::{
    ApiError,
    auth::{Caller, Right},
    extract::Segment,
    openapi::schema,
    service::{Service, blocking},
};
use axum::{Json, extract::State};
use serde_json::{Value, json};
use std::sync::Arc;

/// All models that the caller may ask for.
///
/// # Errors
/// 500 when the variants cannot be listed.
#[utoipa::path(get, path = "/v1/models", operation_id = "list_models", tag = "models", responses((status = 200, body = schema::ModelList), (status = "default", body = schema::Failure)))]
pub async fn list(State(service): State<Arc<Service>>, caller: Caller) -> Result<Json<Value>, ApiError> {
    caller.require(Right::Chat)?;
    let data = blocking(&service, move |service| {
        let bases = service.names.bases().map(|name| model(service, name));
        let variants = service.registry.iter().flat_map(|registry| caller.variants(registry));
        let variants = variants.map(|variant| model(service, &service.names.variant(&variant.user)));
        Ok(bases.chain(variants).collect::<Vec<_>>())
    });
    Ok(Json(json!({"object": "list", "data": data.await?})))
}

/// One model by its name, which may hold slashes. A variant is there when its file is; it is not opened.
///
/// # Errors
/// 404 for a name that [`list`] would not show, 403 for a user that is not the caller's to ask for.
#[utoipa::path(get, path = "/v1/models/{id}", operation_id = "get_model", tag = "models", params(("id" = String, Path)), responses((status = 200, body = schema::Model), (status = "default", body = schema::Failure)))]
pub async fn get(
    State(service): State<Arc<Service>>,
    caller: Caller,
    Segment(id): Segment,
) -> Result<Json<Value>, ApiError> {
    caller.require(Right::Chat)?;
    let user = service.names.resolve(&id, None)?;
    user.iter().try_for_each(|user| caller.check_user(user))?;
    let found = blocking(&service, move |service| match user {
        Some(user) if !service.variants()?.has(&user) => Err(service.names.unknown(&id)),
        _ => Ok(model(service, &id)),
    });
    Ok(Json(found.await?))
}

fn model(service: &Service, id: &str) -> Value {
    json!({"id": id, "object": "model", "created": service.created, "owned_by": "bitdelta"})
}
