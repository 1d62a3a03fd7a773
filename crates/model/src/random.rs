//! A model of a true shape with random weights, written as an HF folder: what a pass over it costs does not depend on
//! its values, so a bench needs no download.
//!
//! The weights are bf16, ±[2⁻⁷, 2⁻⁵) from a generator with a fixed seed; vectors are 1. That keeps activations finite in
//! models as wide as a few thousand. The tokenizer knows one word: a bench passes tokens.

use crate::{Dtype, Error, ModelConfig, export, layout};
use half::bf16;
use serde_json::{Map, Value, json as value};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

/// Bytes written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// bf16 bits that stay random: the sign, the exponent's lowest bit, the fraction.
const RANDOM_BITS: u64 = 0x80FF_80FF_80FF_80FF;
/// The exponent of 2⁻⁷ in each of four bf16.
const EXPONENTS: u64 = 0x3C00_3C00_3C00_3C00;

/// Bytes of weights that [`write_random`] writes for this configuration.
pub fn random_bytes(config: &ModelConfig) -> u64 {
    layout::tensors(config).iter().map(|(_, shape)| 2 * shape.iter().product::<usize>() as u64).sum()
}

/// Writes a model of this configuration to `folder`, which must not be there yet; it appears whole or not at all.
///
/// # Errors
/// [`Error::Export`] when the disk lacks the space, before anything is written; [`Error::Io`].
pub fn write_random(config: &ModelConfig, folder: &Path) -> Result<(), Error> {
    let parent = folder.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    check_space(config, parent, folder)?;
    let staging = tempfile::Builder::new().prefix(".random-").tempdir_in(parent).map_err(Error::io(parent))?;
    let path = staging.path();
    export::save(path, "config.json", &Value::Object(export::config_json(config, Dtype::Bf16)))?;
    export::save(path, "tokenizer.json", &one_word())?;
    write_weights(config, &path.join("model.safetensors"))?;
    export::set_default_permissions(path)?;
    fs::rename(path, folder).map_err(Error::io(folder))?;
    // The temporary folder is gone from its place: nothing is left to remove.
    let _ = staging.keep();
    Ok(())
}

fn check_space(config: &ModelConfig, parent: &Path, folder: &Path) -> Result<(), Error> {
    let needed = random_bytes(config);
    let disk = rustix::fs::statvfs(parent).map_err(|error| Error::io(parent)(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < needed {
        let reason = format!("{needed} bytes of random weights are needed, the disk has {free} free");
        return Err(Error::Export { path: folder.to_owned(), reason });
    }
    Ok(())
}

/// A tokenizer of one word.
fn one_word() -> Value {
    value!({ "version": "1.0", "model": { "type": "WordLevel", "vocab": { "<unk>": 0 }, "unk_token": "<unk>" } })
}

fn write_weights(config: &ModelConfig, path: &Path) -> Result<(), Error> {
    let tensors = layout::tensors(config);
    let io = Error::io(path);
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::with_capacity(CHUNK_BYTES, File::create(path)?);
        let header = header(&tensors);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        for (_, shape) in &tensors {
            let mut left = 2 * shape.iter().product::<usize>();
            while left > 0 {
                let bytes = left.min(CHUNK_BYTES);
                fill(&mut chunk, bytes, shape.len() == 1, &mut state);
                file.write_all(&chunk)?;
                left -= bytes;
            }
        }
        file.into_inner()?.sync_all()
    };
    write().map_err(io)
}

/// The safetensors header, padded so that the tensors begin at a multiple of 64 bytes.
fn header(tensors: &[(String, Vec<usize>)]) -> String {
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), value!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let text = Value::Object(header).to_string();
    let length = (8 + text.len()).next_multiple_of(64) - 8;
    format!("{text:length$}")
}

/// `bytes` bytes of bf16 into `chunk`: ones, or the generator's next values.
fn fill(chunk: &mut Vec<u8>, bytes: usize, ones: bool, state: &mut u64) {
    chunk.clear();
    if ones {
        chunk.extend(std::iter::repeat_n(bf16::ONE.to_le_bytes(), bytes / 2).flatten());
        return;
    }
    // Xorshift (Marsaglia 2003): four values a round.
    while chunk.len() < bytes {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        chunk.extend(((*state & RANDOM_BITS) | EXPONENTS).to_le_bytes());
    }
    chunk.truncate(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Architecture, Base, RopeScaling};

    fn config(architecture: Architecture) -> ModelConfig {
        ModelConfig {
            architecture,
            hidden: 24,
            layers: 2,
            heads: 3,
            kv_heads: 1,
            head_dim: 10,
            intermediate: 36,
            vocab: 70,
            rms_eps: 1e-6,
            rope_theta: 1e6,
            rope_scaling: RopeScaling::None,
            tied: architecture == Architecture::Qwen3,
            qk_norm: architecture == Architecture::Qwen3,
            attention_bias: false,
            mlp_bias: false,
            max_positions: 128,
            eos: Vec::new(),
            bos: None,
        }
    }

    #[test]
    fn a_random_model_opens_with_the_shape_that_was_asked_for_and_small_finite_weights() {
        for architecture in [Architecture::Llama, Architecture::Qwen3] {
            let keep = tempfile::tempdir().unwrap();
            let folder = keep.path().join("made/here");
            let config = config(architecture);
            write_random(&config, &folder).unwrap();
            let base = Base::open(folder.to_str().unwrap()).unwrap();
            assert_eq!(base.config, config);
            assert_eq!(base.stored_bytes(), random_bytes(&config));
            for tensor in base.tensors() {
                let values = base.tensor_f32(&tensor.name).unwrap();
                match tensor.rows {
                    1 => assert!(values.iter().all(|v| *v == 1.0), "{}", tensor.name),
                    _ => assert!(values.iter().all(|v| (0.0078..0.0313).contains(&v.abs())), "{}", tensor.name),
                }
            }
            let left = fs::read_dir(keep.path().join("made")).unwrap().count();
            assert_eq!(left, 1, "no temporary folder stays behind");
        }
    }

    #[test]
    fn a_model_that_no_disk_holds_is_refused_before_anything_is_written() {
        let keep = tempfile::tempdir().unwrap();
        let vast = ModelConfig { vocab: 1 << 40, hidden: 1 << 20, ..config(Architecture::Llama) };
        let error = write_random(&vast, &keep.path().join("vast")).unwrap_err().to_string();
        assert!(error.contains("free"), "{error}");
        assert_eq!(fs::read_dir(keep.path()).unwrap().count(), 0);
    }
}
