//! `GET /v1/variants/{user}/card`: what a variant is and what it keeps, as its file tells: for whoever may ask it.
//!
//! The variant is loaded as for an answer, within the budget and checked: a card never describes a file that would not be
//! served, and costs no more than a question does.
use crate::{
    ApiError,
    api_error::internal,
    auth::{Caller, Right},
    extract::Segment,
    loads,
    openapi::schema,
    service::{Service, blocking},
};
use axum::{Json, extract::State};
use bitdelta_delta::metrics::bits_per_weight;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The card of the version that is served.
///
/// # Errors
/// Those of an answer: 403 for a user that is not the caller's, 404 when there is none, 422 for a damaged one.
#[utoipa::path(get, path = "/v1/variants/{user}/card", operation_id = "get_card", tag = "variants", params(schema::OfUser), responses((status = 200, body = schema::Card), (status = "default", body = schema::Failure)))]
pub async fn card(
    caller: Caller,
    State(service): State<Arc<Service>>,
    Segment(user): Segment,
) -> Result<Json<Value>, ApiError> {
    caller.require_any(&[Right::Chat, Right::Publish, Right::Admin])?;
    caller.check_user(&user)?;
    let variant = loads::variant(&service, &user).await?;
    let card = blocking(&service, move |service| {
        let bytes = std::fs::metadata(variant.path()).map_err(|error| internal(&error.to_string()))?.len();
        let weights = service.engine.model().base().linear_weights();
        let info = variant.info();
        Ok(json!({
            "object": "variant.card",
            "user_id": user,
            "hash": variant.hash(),
            "bytes": bytes,
            "resident_bytes": variant.memory_bytes(),
            "weights": weights,
            "bits_per_weight": bits_per_weight(bytes, weights),
            "base": info.base_name,
            "template": info.template,
            "config": info.config,
            "retention": retention(&info.notes),
            "notes": info.notes,
        }))
    });
    Ok(Json(card.await?))
}

/// (L_base − L_variant) / (L_base − L_trained) of the losses that a training recorded; `None` where there are none, or
/// where the training gained nothing that could be kept.
fn retention(notes: &Map<String, Value>) -> Option<f64> {
    let loss = |name: &str| notes.get("fidelity")?.get(name)?.as_f64();
    let (base, trained, variant) = (loss("loss_base")?, loss("loss_trained")?, loss("loss_variant")?);
    (base > trained).then(|| (base - variant) / (base - trained))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(fidelity: Value) -> Map<String, Value> {
        Map::from_iter([("fidelity".to_owned(), fidelity)])
    }

    #[test]
    fn retention_is_the_share_of_the_gain_that_is_kept() {
        let fidelity = json!({"loss_base": 3.0, "loss_trained": 1.0, "loss_variant": 1.5});
        assert_eq!(retention(&notes(fidelity)), Some(0.75));
        assert_eq!(retention(&notes(json!({"loss_base": 1.0, "loss_trained": 1.0, "loss_variant": 1.0}))), None);
        assert_eq!(retention(&notes(json!({"loss_base": 3.0, "loss_trained": "low"}))), None);
        assert_eq!(retention(&Map::new()), None);
    }
}
