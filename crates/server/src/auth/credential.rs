//! Where clients put a key: `Authorization: Bearer` (nearly all), `Ocp-Apim-Subscription-Key` (`hanzoai` 2),
//! `x-litellm-api-key` (`hanzoai/go-sdk`), `x-api-key`.
use axum::http::{HeaderMap, header::AUTHORIZATION};

/// Headers that hold a bare key, in the order in which they count.
const BARE: [&str; 3] = ["ocp-apim-subscription-key", "x-litellm-api-key", "x-api-key"];

/// The request's key or token. A bearer counts before the others, since some clients send a dummy beside it.
pub fn of(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty());
    let bearer = text(AUTHORIZATION.as_str()).and_then(bearer);
    bearer.or_else(|| BARE.iter().find_map(|name| text(name)).map(bearer_or_bare))
}

fn bearer(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim()).filter(|rest| !rest.is_empty())
}

fn bearer_or_bare(text: &str) -> &str {
    bearer(text).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(headers: &[(&'static str, &str)]) -> Option<String> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect();
        of(&headers).map(str::to_owned)
    }

    #[test]
    fn a_key_is_found_where_real_clients_put_it() {
        for (name, value) in [
            ("authorization", "Bearer k"),
            ("authorization", "bearer  k "),
            ("ocp-apim-subscription-key", "k"),
            ("x-litellm-api-key", "k"),
            ("x-litellm-api-key", "Bearer k"),
            ("x-api-key", "k"),
        ] {
            assert_eq!(found(&[(name, value)]).as_deref(), Some("k"), "{name}: {value}");
        }
    }

    #[test]
    fn a_bearer_counts_first_and_other_schemes_do_not() {
        assert_eq!(found(&[("x-api-key", "b"), ("authorization", "Bearer a")]).as_deref(), Some("a"));
        for value in ["Basic k", "Bearer", "Bearer ", "k"] {
            assert_eq!(found(&[("authorization", value)]), None, "{value:?}");
        }
        assert_eq!(found(&[]), None);
    }
}
