//! A request's JSON object, field by field: `null` is absent, an unknown field is never looked at, and a known field of
//! the wrong type is a 400 that names it.
use crate::ApiError;
use axum::http::StatusCode;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The object that a body holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// 400 when it is not JSON or not an object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let bad = |message: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message);
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => Err(bad(format!("the body must be a JSON object, not {}", kind(&other)))),
            Err(error) => Err(bad(format!("the body is not valid JSON: {error}"))),
        }
    }

    /// The fields of an object that was parsed before.
    pub fn of(map: &Map<String, Value>) -> Self {
        Self(map.clone())
    }

    /// The field, unless it is absent or `null`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// All fields by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.iter()
    }

    /// A string.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn string(&self, name: &str) -> Result<Option<&str>, ApiError> {
        self.typed(name, "a string", Value::as_str)
    }

    /// A boolean.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.typed(name, "a boolean", Value::as_bool)
    }

    /// An object.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn object(&self, name: &str) -> Result<Option<Self>, ApiError> {
        Ok(self.typed(name, "an object", Value::as_object)?.map(Self::of))
    }

    /// An array.
    ///
    /// # Errors
    /// 400 for another type.
    pub fn array(&self, name: &str) -> Result<Option<&Vec<Value>>, ApiError> {
        self.typed(name, "an array", Value::as_array)
    }

    /// A number within `range`.
    ///
    /// # Errors
    /// 400 for another type or a value outside.
    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let value = self.typed(name, "a number", Value::as_f64)?;
        within(name, value, range)
    }

    /// An integer within `range`; `3.0` is one.
    ///
    /// # Errors
    /// 400 for another type or a value outside.
    pub fn integer(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let whole = |value: &Value| {
            let from_float = || value.as_f64().filter(|v| v.fract() == 0.0 && v.abs() < 9e15).map(|v| v as i64);
            value.as_i64().or_else(from_float)
        };
        let value = self.typed(name, "an integer", whole)?;
        within(name, value, range)
    }

    fn typed<'a, T>(
        &'a self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(wrong_type(name, expected, value)),
        }
    }
}

/// 400: a known field of the wrong type.
pub fn wrong_type(name: &str, expected: &str, got: &Value) -> ApiError {
    let message = format!("{name} must be {expected}, not {}", kind(got));
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_type", message).about(name)
}

fn within<T: PartialOrd + std::fmt::Debug>(
    name: &str,
    value: Option<T>,
    range: RangeInclusive<T>,
) -> Result<Option<T>, ApiError> {
    match value {
        Some(value) if !range.contains(&value) => {
            // Written with an exponent where it has one: 1e300 has 300 digits.
            let message =
                format!("{name} = {value:?} is out of range: it must be from {:?} to {:?}", range.start(), range.end());
            Err(ApiError::invalid(name, message))
        }
        value => Ok(value),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).expect("an object")
    }

    #[test]
    fn null_is_the_same_as_absent() {
        let fields = fields(r#"{"stop": null, "n": 2}"#);
        assert_eq!(fields.string("stop"), Ok(None));
        assert_eq!(fields.string("user"), Ok(None));
        assert_eq!(fields.integer("n", 1..=8), Ok(Some(2)));
    }

    #[test]
    fn a_wrong_type_is_a_400_that_names_the_field() {
        let error = fields(r#"{"temperature": "hot"}"#).number("temperature", 0.0..=2.0).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (StatusCode::BAD_REQUEST, Some("temperature")));
        assert!(error.message.contains("a number, not a string"), "{}", error.message);
        assert!(fields(r#"{"n": 1.5}"#).integer("n", 1..=8).is_err());
        assert!(fields(r#"{"n": 9}"#).integer("n", 1..=8).is_err());
        assert_eq!(fields(r#"{"n": 3.0}"#).integer("n", 1..=8), Ok(Some(3)));
    }

    #[test]
    fn a_body_must_be_an_object() {
        assert_eq!(Fields::parse(b"[1]").unwrap_err().code, Some("invalid_json"));
        assert_eq!(Fields::parse(b"{").unwrap_err().status, StatusCode::BAD_REQUEST);
        let deep = "[".repeat(100_000);
        assert!(Fields::parse(deep.as_bytes()).is_err());
    }
}
