//! A model of the Hugging Face hub, from the local cache or fetched into it.

use crate::Error;
use hf_hub::{Cache, api::sync::ApiBuilder};
use std::path::{Path, PathBuf};

/// Files that a model folder is made of, beside the weights.
const FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// The folder of a hub model's current snapshot.
///
/// # Errors
/// [`Error::NotFound`] for what is no hub id, and for a model that is neither in the cache nor to be had.
pub(super) fn fetch(id: &str) -> Result<PathBuf, Error> {
    let not_found = |reason: String| Error::NotFound { name: id.to_owned(), reason };
    if !is_hub_id(id) {
        return Err(not_found("there is no such folder or file, and it is not a hub id (owner/name)".to_owned()));
    }
    let cached = Cache::from_env().model(id.to_owned());
    let from_cache = cached.get("config.json").and_then(|config| config.parent().map(Path::to_owned));
    match download(id) {
        Ok(folder) => Ok(folder),
        // Offline, what is there must do; a missing part of it is then reported by name.
        Err(reason) => from_cache.ok_or_else(|| {
            not_found(format!(
                "there is no such folder or file, the local cache does not hold it, and the hub did not give it ({reason})"
            ))
        }),
    }
}

/// Fetches what is not yet in the cache.
fn download(id: &str) -> Result<PathBuf, String> {
    if std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| !matches!(value.as_str(), "" | "0")) {
        return Err("HF_HUB_OFFLINE is set".to_owned());
    }
    let api = ApiBuilder::from_env().with_progress(false).build().map_err(|error| error.to_string())?;
    let model = api.model(id.to_owned());
    let info = model.info().map_err(|error| error.to_string())?;
    let names: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
    // One file of weights where there is one; its parts else.
    let whole = names.contains(&"model.safetensors");
    let is_part = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    let mut folder = None;
    for name in names {
        let weights = if whole { name == "model.safetensors" } else { is_part(name) };
        let described = FILES.contains(&name) && !(whole && name == "model.safetensors.index.json");
        if weights || described {
            tracing::info!(model = id, file = name, "fetching from the hub");
            let path = model.get(name).map_err(|error| format!("{name}: {error}"))?;
            if name == "config.json" {
                folder = path.parent().map(Path::to_owned);
            }
        }
    }
    folder.ok_or_else(|| "the model has no config.json".to_owned())
}

/// `name` or `owner/name` of the characters that the hub allows.
fn is_hub_id(id: &str) -> bool {
    let part = |part: &str| {
        let first = part.chars().next();
        first.is_some_and(|first| first.is_ascii_alphanumeric())
            && part.chars().all(|character| character.is_ascii_alphanumeric() || "-_.".contains(character))
    };
    let parts: Vec<&str> = id.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(part) && !id.ends_with(".gguf")
}

#[cfg(test)]
mod tests {
    use super::is_hub_id;

    #[test]
    fn paths_are_no_hub_ids() {
        assert!(is_hub_id("Qwen/Qwen3-4B"));
        assert!(is_hub_id("gpt2"));
        for path in ["", "./model", "/models/x", "a/b/c", "model.gguf", "../x", "owner/", "a b/c"] {
            assert!(!is_hub_id(path), "{path}");
        }
    }
}
