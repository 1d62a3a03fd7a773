//! Who is asked for: from the model's name and the body's user fields to the base or one user's variant.
use crate::{ApiError, fields::Fields};
use axum::http::StatusCode;
use bitdelta_model::alias;

/// The names that this server answers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    base: String,
    aliases: Vec<String>,
    variants: bool,
}

impl Names {
    /// The base's own name, more names for it, and whether variants are served at all.
    pub fn new(base: String, mut aliases: Vec<String>, variants: bool) -> Self {
        aliases.retain(|alias| *alias != base);
        Self { base, aliases, variants }
    }

    /// The base's names, its own first.
    pub fn bases(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.base.as_str()).chain(self.aliases.iter().map(String::as_str))
    }

    /// The model name under which a user's variant is listed: `base:user`.
    pub fn variant(&self, user: &str) -> String {
        format!("{}:{user}", self.base)
    }

    /// The user whose variant is to answer, `None` for the base. `user` is what the body names and wins over the part
    /// after `:` in `model`.
    ///
    /// # Errors
    /// 404 when this server holds no such model; 400 when a user is named and variants are not served.
    pub fn resolve(&self, model: &str, user: Option<&str>) -> Result<Option<String>, ApiError> {
        let is_base = |name: &str| self.bases().any(|base| alias::same(base, name));
        let in_model = if is_base(model) {
            None
        } else {
            let after = |base: &str| model.strip_prefix(base)?.strip_prefix(':');
            let loosely = || model.split_once(':').filter(|(name, _)| is_base(name)).map(|(_, user)| user);
            let user = self.bases().find_map(after).or_else(loosely).filter(|user| !user.is_empty());
            Some(user.ok_or_else(|| self.unknown(model))?)
        };
        match user.or(in_model) {
            Some(_) if !self.variants => Err(disabled()),
            user => Ok(user.map(str::to_owned)),
        }
    }

    /// 404 that lists what is served.
    pub fn unknown(&self, model: &str) -> ApiError {
        let served = self.bases().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let users =
            if self.variants { format!(", and \"{}:USER\" for a user's variant", self.base) } else { String::new() };
        let message = format!("the model {model:?} is not served here; served: {served}{users}");
        ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).about("model")
    }
}

/// The user that a body names: `user_id`, else `user`, else `safety_identifier`.
///
/// # Errors
/// 400 when the field that counts, or one before it, is no string.
pub fn user_in(fields: &Fields) -> Result<Option<&str>, ApiError> {
    for name in ["user_id", "user", "safety_identifier"] {
        if let Some(user) = fields.string(name)? {
            return Ok(Some(user));
        }
    }
    Ok(None)
}

/// 400: a user is named on a server that holds the base only.
pub fn disabled() -> ApiError {
    let message = "this server answers from the base alone; start it with --enable-bitdelta --variants-dir DIR to serve users' variants";
    ApiError::new(StatusCode::BAD_REQUEST, "bitdelta_disabled", message).about("user_id")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new("smol".into(), vec!["qwen3-4b".into()], true)
    }

    fn user(body: &str) -> Option<String> {
        let fields = Fields::parse(body.as_bytes()).expect("an object");
        user_in(&fields).expect("strings").map(str::to_owned)
    }

    #[test]
    fn a_name_counts_in_any_case_and_with_its_owner_or_without() {
        for model in ["smol", "Smol", "Qwen/Qwen3-4B", "qwen3-4b"] {
            assert_eq!(names().resolve(model, None).expect("the base"), None, "{model}");
        }
        assert_eq!(names().resolve("Qwen/Qwen3-4B:Maya", None).expect("a user").as_deref(), Some("Maya"));
        assert!(names().resolve("Qwen/Qwen3-8B", None).is_err() && names().resolve("qwen3-4b:", None).is_err());
    }

    #[test]
    fn the_user_is_user_id_else_user_else_safety_identifier() {
        assert_eq!(user(r#"{"user_id": "a", "user": "b", "safety_identifier": "c"}"#).as_deref(), Some("a"));
        assert_eq!(user(r#"{"user_id": null, "user": "b", "safety_identifier": "c"}"#).as_deref(), Some("b"));
        assert_eq!(user(r#"{"safety_identifier": "c"}"#).as_deref(), Some("c"));
        assert_eq!(user("{}"), None);
    }

    #[test]
    fn a_user_may_be_named_after_the_colon_and_the_body_wins() {
        assert_eq!(names().resolve("smol", None), Ok(None));
        assert_eq!(names().resolve("qwen3-4b:ann", None), Ok(Some("ann".into())));
        assert_eq!(names().resolve("smol:ann", Some("bob")), Ok(Some("bob".into())));
    }

    #[test]
    fn an_unknown_model_is_a_404_that_lists_what_is_served() {
        for model in ["gpt-4o", "smol:", "smolx", "gpt-4o:ann"] {
            let error = names().resolve(model, Some("ann")).unwrap_err();
            assert_eq!((error.status, error.code), (StatusCode::NOT_FOUND, Some("model_not_found")));
            assert!(error.message.contains("\"smol\", \"qwen3-4b\""), "{}", error.message);
        }
    }

    #[test]
    fn without_variants_a_named_user_is_told_how_to_enable_them() {
        let names = Names::new("smol".into(), vec![], false);
        assert_eq!(names.resolve("smol", None), Ok(None));
        let error = names.resolve("smol", Some("ann")).unwrap_err();
        assert!(error.message.contains("--enable-bitdelta"), "{}", error.message);
        assert!(names.resolve("smol:ann", None).is_err());
    }
}
