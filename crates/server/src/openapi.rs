//! `GET /openapi.json`: the HTTP interface as OpenAPI 3.1, made from the handlers.
//!
//! Requests are read field by field (`fields.rs`), for errors that name the field, so [`schema`] describes them beside the
//! code; a test sends each field with a wrong type and wants to hear its name.
pub mod schema;

use crate::{card, me, metrics, models, routes, training, variants};
use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        self,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

/// The document.
#[derive(OpenApi)]
#[openapi(
    info(title = "bitdelta", description = "One base model, one small file per user; OpenAI-compatible."),
    paths(
        routes::chat,
        routes::completions,
        routes::health,
        routes::ready,
        metrics::metrics,
        me::me,
        models::list,
        models::get,
        variants::list,
        variants::load,
        variants::get,
        card::card,
        variants::publish,
        variants::delete,
        variants::roll_back,
        variants::unload,
        training::begin,
        training::get,
        training::events,
        training::cancel
    ),
    modifiers(&Keys)
)]
struct Document;

struct Keys;

impl Modify for Keys {
    /// A bearer, or nothing on a server without authentication.
    fn modify(&self, document: &mut openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        document.components.get_or_insert_default().add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let none: [String; 0] = [];
        document.security = Some(vec![SecurityRequirement::new("bearer", none), SecurityRequirement::default()]);
    }
}

/// The document, open to all: it is the same on every server.
pub async fn openapi() -> Json<openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ApiError,
        fields::Fields,
        wanted::{Endpoint, Wanted},
    };
    use serde_json::{Value, json};

    /// Properties of a request's schema that are not refused with their own name when they hold `wrong`.
    fn unchecked(schema: &str, endpoint: Endpoint, good: &Value) -> Vec<String> {
        let document = serde_json::to_value(Document::openapi()).expect("JSON");
        let properties = document["components"]["schemas"][schema]["properties"].as_object().expect("a schema");
        let refused = |name: &str| {
            let mut body = good.clone();
            body[name] = json!({"wrong": {"type": 5}});
            let fields = Fields::parse(body.to_string().as_bytes()).expect("an object");
            let error: Option<ApiError> = Wanted::read(endpoint, &fields, None).err();
            error.is_some_and(|error| error.param.is_some_and(|param| param.starts_with(name)))
        };
        properties.keys().filter(|name| !refused(name)).cloned().collect()
    }

    #[test]
    fn every_described_field_is_read() {
        let chat = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": true});
        // An object is what this one takes; none of its own fields was wrong.
        assert_eq!(unchecked("ChatRequest", Endpoint::Chat, &chat), ["stream_options"]);
        let completion = json!({"model": "m", "prompt": "x"});
        assert_eq!(unchecked("CompletionRequest", Endpoint::Completions, &completion), ["stream_options"]);
    }

    #[test]
    fn the_document_names_every_route() {
        let document = serde_json::to_value(Document::openapi()).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")));
        for (path, method) in [
            ("/v1/chat/completions", "post"),
            ("/v1/variants/{user}", "put"),
            ("/v1/variants/{user}/train/events", "get"),
            ("/ready", "get"),
        ] {
            assert!(paths.get(path).is_some_and(|path| path.get(method).is_some()), "{method} {path}");
        }
    }
}
