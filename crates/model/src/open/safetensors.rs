//! An HF folder as a base model: JSON files, and weights in one or many safetensors files.

use super::{Opened, Origin, assemble};
use crate::{
    Base, Error,
    chat::{SpecialNames, Tokenizer},
    config::{ModelConfig, from_hf},
    source::{Dtype, Stored},
};
use bitdelta_kernels::map::MappedFile;
use safetensors::{SafeTensors, tensor::Dtype as FileDtype};
use serde_json::Value;
use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

/// Files of which any one says that a folder means to bring a tokenizer of its own.
const TOKENIZER_FILES: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "special_tokens_map.json"];

pub(super) fn open(folder: &Path, lender: Option<&Base>) -> Result<Opened, Error> {
    let config_path = folder.join("config.json");
    let config_json = json(&config_path)?.ok_or_else(|| Error::MissingFile {
        path: config_path.clone(),
        remedy: "pass a Hugging Face model folder or a .gguf file".to_owned(),
    })?;
    let generation = json(&folder.join("generation_config.json"))?;
    let mut config = from_hf::read(&config_path, &config_json, generation.as_ref())?;

    let (files, stored) = weights(folder)?;
    let tensors = assemble(folder, &config, |name| stored.get(name).cloned())?;
    let bare = TOKENIZER_FILES.iter().all(|name| !folder.join(name).exists());
    let tokenizer = match lender.filter(|_| bare) {
        Some(base) => {
            let more: Vec<u32> = base.config.eos.iter().copied().filter(|id| !config.eos.contains(id)).collect();
            config.eos.extend(more);
            config.bos = base.config.bos;
            base.tokenizer.clone()
        }
        None => Arc::new(read_tokenizer(folder, &mut config)?),
    };
    Ok(Opened { tokenizer, config, path: folder.to_owned(), files, tensors, origin: Origin::HfFolder })
}

/// The folder's tokenizer and chat template. Completes `config` with what the tokenizer knows of ends and beginnings.
fn read_tokenizer(folder: &Path, config: &mut ModelConfig) -> Result<Tokenizer, Error> {
    let tokenizer_path = folder.join("tokenizer.json");
    if !tokenizer_path.is_file() {
        return Err(Error::MissingFile {
            path: tokenizer_path,
            remedy: "save the model's fast tokenizer beside the weights (tokenizer.save_pretrained)".to_owned(),
        });
    }
    let tokenizer = tokenizers::Tokenizer::from_file(&tokenizer_path)
        .map_err(|error| Error::malformed(&tokenizer_path, error.to_string()))?;
    let tokenizer_config = json(&folder.join("tokenizer_config.json"))?.unwrap_or(Value::Null);
    let names = special_names(&tokenizer_config);
    if let Some(id) = names.eos.as_deref().and_then(|text| tokenizer.token_to_id(text))
        && !config.eos.contains(&id)
    {
        config.eos.push(id);
    }
    config.bos = added_bos(&tokenizer, &tokenizer_config, &names);
    let template = chat_template(folder, &tokenizer_config)?;
    Ok(Tokenizer::new(tokenizer, names, template))
}

/// A JSON file, `None` where there is none.
pub(crate) fn json(path: &Path) -> Result<Option<Value>, Error> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::malformed(path, error.to_string()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// Maps the weights and lists where each tensor lies.
fn weights(folder: &Path) -> Result<(Vec<MappedFile>, HashMap<String, Stored>), Error> {
    let index_path = folder.join("model.safetensors.index.json");
    let names: Vec<String> = match json(&index_path)? {
        None => vec!["model.safetensors".to_owned()],
        Some(index) => {
            let map = index.get("weight_map").and_then(Value::as_object);
            let map = map.ok_or_else(|| Error::malformed(&index_path, "no object `weight_map`"))?;
            let files: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
            // An index is data: it names files beside itself and nothing else.
            if let Some(name) = files.iter().find(|name| name.contains(['/', '\\']) || name.is_empty()) {
                return Err(Error::malformed(
                    &index_path,
                    format!("`{name}` is not the name of a file in this folder"),
                ));
            }
            files.into_iter().map(str::to_owned).collect()
        }
    };
    let (mut files, mut stored) = (Vec::new(), HashMap::new());
    for name in names {
        let path = folder.join(name);
        if !path.is_file() {
            let remedy = "fetch the whole model; only safetensors weights are read (not pytorch_model.bin)".to_owned();
            return Err(Error::MissingFile { path, remedy });
        }
        let file = MappedFile::open(&path).map_err(Error::io(&path))?;
        let index = files.len();
        let (header, metadata) = SafeTensors::read_metadata(&file)
            .map_err(|error| Error::malformed(&path, format!("damaged or cut short: {error}")))?;
        for (name, info) in metadata.tensors() {
            let dtype = match info.dtype {
                FileDtype::F32 => Dtype::F32,
                FileDtype::F16 => Dtype::F16,
                FileDtype::BF16 => Dtype::Bf16,
                // A tensor that the model does not use may be of any type; one that it uses is then found missing.
                other => {
                    tracing::debug!(file = %path.display(), tensor = name, dtype = ?other, "skipped");
                    continue;
                }
            };
            let start = 8 + header;
            let range = start + info.data_offsets.0..start + info.data_offsets.1;
            let tensor = Stored { file: index, range, dtype, shape: info.shape.clone(), interleaved_head_dim: None };
            if stored.insert(name.clone(), tensor).is_some() {
                return Err(Error::malformed(&path, format!("tensor `{name}` is in two files")));
            }
        }
        files.push(file);
    }
    Ok((files, stored))
}

fn special_names(config: &Value) -> SpecialNames {
    let name = |key: &str| {
        let token = config.get(key)?;
        token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
    };
    SpecialNames { bos: name("bos_token"), eos: name("eos_token"), pad: name("pad_token"), unk: name("unk_token") }
}

/// The token that the tokenizer puts before a text, by what it does or by what its configuration says.
fn added_bos(tokenizer: &tokenizers::Tokenizer, config: &Value, names: &SpecialNames) -> Option<u32> {
    let bos = tokenizer.token_to_id(names.bos.as_deref()?)?;
    let says = config.get("add_bos_token").and_then(Value::as_bool) == Some(true);
    let does = tokenizer.encode("", true).is_ok_and(|encoding| encoding.get_ids().first() == Some(&bos));
    (says || does).then_some(bos)
}

/// `chat_template.jinja`, else the template in the tokenizer's configuration: one, or the one named `default` of a list.
fn chat_template(folder: &Path, config: &Value) -> Result<Option<String>, Error> {
    let path = folder.join("chat_template.jinja");
    match fs::read_to_string(&path) {
        Ok(text) => return Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(path)(error)),
    }
    Ok(match config.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            default.and_then(|entry| entry.get("template")?.as_str()).map(str::to_owned)
        }
        _ => None,
    })
}
