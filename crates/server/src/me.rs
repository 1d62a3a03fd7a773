//! `GET /v1/me`: what a key may do, for programs that show no more than that; and the few figures of the server that do not
//! depend on what others do. How many tokens and bytes others use now is the operator's to see (`/metrics`): from it a
//! tenant could tell what another one asks.
use crate::{
    auth::{Caller, Right, Users},
    openapi::schema,
    service::Service,
};
use axum::{Json, extract::State};
use serde_json::{Value, json};
use std::sync::Arc;

/// The caller's users, rights and limits, and the base.
#[utoipa::path(get, path = "/v1/me", operation_id = "get_me", tag = "server", responses((status = 200, body = schema::Me), (status = "default", body = schema::Failure)))]
pub async fn me(caller: Caller, State(service): State<Arc<Service>>) -> Json<Value> {
    let rights = Right::ALL.into_iter().filter(|right| caller.require(*right).is_ok()).map(Right::name);
    let limits = caller.limits();
    let engine = &service.engine;
    Json(json!({
        "object": "caller",
        "key": Some(caller.id()).filter(|id| !id.is_empty()),
        "rights": rights.collect::<Vec<_>>(),
        "all_users": *caller.users() == Users::All,
        "users": match caller.users() {
            Users::All => json!([]),
            Users::Only(users) => json!(users),
        },
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "model": engine.model().base().name,
        "variants": service.registry.is_some(),
        "max_context": engine.max_context(),
        "base_bytes": engine.model().bytes(),
        "kv_cache_bytes": engine.kv_bytes(),
    }))
}
