//! A GGUF file as a base model.

use super::{Opened, Origin, assemble};
use crate::{
    Architecture, Error,
    chat::Tokenizer,
    config::from_gguf,
    gguf::{Gguf, names::gguf_name, tokenizer},
    source::Stored,
};
use bitdelta_kernels::map::MappedFile;
use std::{collections::HashMap, path::Path, sync::Arc};

pub(super) fn open(path: &Path) -> Result<Opened, Error> {
    let file = MappedFile::open(path).map_err(Error::io(path))?;
    let gguf = Gguf::parse(path, &file)?;
    let mut config = from_gguf::read(&gguf, &file)?;
    let entries: HashMap<&str, _> = gguf.tensors.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let tensors = assemble(path, &config, |name| {
        let entry = entries.get(gguf_name(name).as_str())?;
        // Only the Llama converter reorders, and only what RoPE turns.
        let rotary = [".q_proj.", ".k_proj."].iter().any(|part| name.contains(part));
        let interleaved = rotary && config.architecture == Architecture::Llama;
        Some(Stored {
            file: 0,
            range: entry.range.clone(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            interleaved_head_dim: interleaved.then_some(config.head_dim),
        })
    })?;
    let parts = tokenizer::build(&gguf)?;
    config.eos = from_gguf::eos(&gguf)?;
    config.bos = parts.bos;
    Ok(Opened {
        tokenizer: Arc::new(Tokenizer::new(parts.tokenizer, parts.names, parts.chat_template)),
        config,
        path: path.to_owned(),
        files: vec![file],
        tensors,
        origin: Origin::Gguf,
    })
}
