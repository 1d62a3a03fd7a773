//! A chat's messages: roles, and content as a string or an array of text parts.
use crate::{
    ApiError,
    fields::{Fields, wrong_type},
};
use bitdelta_model::chat::Message;
use serde_json::Value;

/// Reads the `messages` of a chat request.
///
/// # Errors
/// 400 that names the message at fault; tool calls, images and audio are "not supported yet".
pub fn read(fields: &Fields) -> Result<Vec<Message>, ApiError> {
    let Some(messages) = fields.array("messages")? else {
        return Err(ApiError::invalid("messages", "messages is required"));
    };
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages must hold at least one message"));
    }
    messages.iter().enumerate().map(|(at, message)| read_one(at, message)).collect()
}

fn read_one(at: usize, message: &Value) -> Result<Message, ApiError> {
    let whole = format!("messages[{at}]");
    let Value::Object(map) = message else { return Err(wrong_type(&whole, "an object", message)) };
    let fields = Fields::of(map);
    let within = |error: ApiError| {
        let field = format!("{whole}.{}", error.param.as_deref().unwrap_or_default());
        error.about(&field)
    };
    let role = match fields.string("role").map_err(within)? {
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant")) => role,
        Some("tool" | "function") => return Err(ApiError::unsupported(&format!("{whole}.role"))),
        other => {
            let got = other.map_or("it is absent".to_owned(), |role| format!("not {role:?}"));
            let param = format!("{whole}.role");
            return Err(ApiError::invalid(
                &param,
                format!("{param} must be system, developer, user or assistant; {got}"),
            ));
        }
    };
    for name in ["tool_calls", "function_call"] {
        match fields.get(name) {
            Some(Value::Array(calls)) if calls.is_empty() => {}
            Some(_) => return Err(ApiError::unsupported(&format!("{whole}.{name}"))),
            None => {}
        }
    }
    let param = format!("{whole}.content");
    let content = match fields.get("content") {
        Some(content) => text(&param, content)?,
        None if role == "assistant" => String::new(),
        None => return Err(ApiError::invalid(&param, format!("{param} is required"))),
    };
    Ok(Message { role: role.to_owned(), content })
}

/// A string as it is; the texts of an array of parts, a line each.
fn text(param: &str, content: &Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(param, "a string or an array of text parts", other)),
    };
    let part = |(at, part): (usize, &Value)| {
        let name = format!("{param}[{at}]");
        match (part.get("type").and_then(Value::as_str), part.get("text")) {
            (Some("text"), Some(Value::String(text))) => Ok(text.clone()),
            (Some("text"), _) => Err(ApiError::invalid(&name, format!("{name}.text must be a string"))),
            (Some(_), _) => Err(ApiError::unsupported(&name)),
            (None, _) => Err(ApiError::invalid(&name, format!("{name} must be {{\"type\": \"text\", \"text\": …}}"))),
        }
    };
    Ok(parts.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(body: &str) -> Result<Vec<Message>, ApiError> {
        read(&Fields::parse(body.as_bytes()).expect("an object"))
    }

    #[test]
    fn content_is_a_string_or_text_parts() {
        let body = r#"{"messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "assistant", "content": null, "tool_calls": []},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}"#;
        let read = messages(body).expect("messages");
        let pairs: Vec<_> = read.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(pairs, [("system", "Be brief."), ("assistant", ""), ("user", "a\nb")]);
    }

    #[test]
    fn what_is_at_fault_is_named() {
        let param = |body: &str| messages(body).unwrap_err().param;
        assert_eq!(param("{}").as_deref(), Some("messages"));
        assert_eq!(param(r#"{"messages": []}"#).as_deref(), Some("messages"));
        assert_eq!(param(r#"{"messages": ["hi"]}"#).as_deref(), Some("messages[0]"));
        assert_eq!(param(r#"{"messages": [{"role": 3}]}"#).as_deref(), Some("messages[0].role"));
        assert_eq!(param(r#"{"messages": [{"role": "user"}]}"#).as_deref(), Some("messages[0].content"));
        let image = r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}"#;
        let error = messages(image).unwrap_err();
        assert_eq!(
            (error.param.as_deref(), error.code),
            (Some("messages[0].content[0]"), Some("unsupported_parameter"))
        );
    }
}
