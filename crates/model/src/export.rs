//! Writing a model as an HF folder that transformers opens.
//!
//! The folder is written beside its place and renamed into it, so a crash leaves no half model. Weights go out tensor by
//! tensor: a safetensors header needs only names and shapes, which the configuration gives before any value is read.

use crate::{
    Architecture, Base, Dtype, Error, ModelConfig, RopeScaling, TensorRef,
    open::{Origin, json},
};
use half::{bf16, f16};
use serde_json::{Map, Value, json as value};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

/// What an export asks for each tensor: (HF name, the base's values) -> the values to write, as many.
pub type Rewrite<'a> = dyn FnMut(&str, Vec<f32>) -> Result<Vec<f32>, Error> + 'a;

/// Bytes of weights in one file; more than that goes into numbered files with an index (transformers 4's default).
const SHARD_BYTES_MAX: u64 = 5_000_000_000;

/// Values converted and written at a time.
pub(crate) const CHUNK_VALUES: usize = 1 << 16;

impl Base {
    /// Writes an HF folder (config.json with old and new keys, tokenizer files, chat template, safetensors shards).
    /// `tensor` is asked for each tensor's f32 values in turn: (name, base values) -> values to write.
    ///
    /// `dtype` is F32, F16 or Bf16. A folder's own JSON files are kept where the base was a folder; for a GGUF base they
    /// are made from its metadata. Memory: a few times the largest tensor.
    ///
    /// # Errors
    /// [`Error::Export`] for another `dtype`, a `dir` that holds something already, or values of the wrong number; what
    /// `tensor` returns; [`Error::Io`].
    pub fn export_hf(&self, dir: &Path, dtype: Dtype, tensor: &mut Rewrite<'_>) -> Result<(), Error> {
        self.export_sharded(dir, dtype, SHARD_BYTES_MAX, tensor)
    }

    fn export_sharded(
        &self,
        dir: &Path,
        dtype: Dtype,
        shard_bytes_max: u64,
        tensor: &mut Rewrite<'_>,
    ) -> Result<(), Error> {
        let refuse = |reason: String| Error::Export { path: dir.to_owned(), reason };
        if !dtype.is_plain() {
            return Err(refuse(format!("{} is not written; take F32, F16 or BF16", dtype.name())));
        }
        in_new_folder(dir, |folder| {
            self.write_json(folder, dtype)?;
            self.write_weights(folder, dtype, shard_bytes_max, tensor)
        })
    }

    fn write_json(&self, folder: &Path, dtype: Dtype) -> Result<(), Error> {
        let source = (self.origin == Origin::HfFolder).then_some(self.path.as_path());
        let original = |name: &str| source.map_or(Ok(None), |source| json(&source.join(name)));
        let object = |value: Option<Value>| match value {
            Some(Value::Object(object)) => object,
            _ => Map::new(),
        };

        let mut config = object(original("config.json")?);
        complete_config(&mut config, &self.config, dtype, self.special_id("eos"), self.special_id("bos"));
        save(folder, "config.json", &Value::Object(config))?;

        let mut generation = object(original("generation_config.json")?);
        generation.entry("bos_token_id").or_insert_with(|| value!(self.special_id("bos")));
        generation.insert("eos_token_id".into(), one_or_many(&self.config.eos));
        save(folder, "generation_config.json", &Value::Object(generation))?;

        let tokenizer_path = folder.join("tokenizer.json");
        // A folder that borrowed its tokenizer has no file of it.
        match source.map(|source| source.join("tokenizer.json")).filter(|own| own.is_file()) {
            Some(from) => {
                fs::copy(&from, &tokenizer_path).map_err(Error::io(from))?;
            }
            None => {
                let tokenizer = self.tokenizer.inner();
                tokenizer
                    .save(&tokenizer_path, false)
                    .map_err(|error| Error::Tokenizer { reason: error.to_string() })?;
            }
        }
        let mut tokenizer = object(original("tokenizer_config.json")?);
        self.complete_tokenizer_config(&mut tokenizer);
        if let Some(template) = self.tokenizer.chat_template() {
            let path = folder.join("chat_template.jinja");
            fs::write(&path, template).map_err(Error::io(path))?;
            // A list of named templates stays; the Jinja file is its default.
            tokenizer.entry("chat_template").or_insert_with(|| value!(template));
        }
        save(folder, "tokenizer_config.json", &Value::Object(tokenizer))
    }

    fn complete_tokenizer_config(&self, config: &mut Map<String, Value>) {
        let names = self.tokenizer.names();
        let tokens = [
            ("bos_token", &names.bos),
            ("eos_token", &names.eos),
            ("pad_token", &names.pad),
            ("unk_token", &names.unk),
        ];
        for (key, token) in tokens {
            if let Some(token) = token {
                config.entry(key).or_insert_with(|| value!(token));
            }
        }
        config.entry("tokenizer_class").or_insert_with(|| value!("PreTrainedTokenizerFast"));
        config.entry("model_max_length").or_insert_with(|| value!(self.config.max_positions));
        config.entry("clean_up_tokenization_spaces").or_insert_with(|| value!(false));
    }

    /// Id of a special token that the tokenizer names.
    fn special_id(&self, role: &str) -> Option<u32> {
        let names = self.tokenizer.names();
        let text = if role == "bos" { &names.bos } else { &names.eos };
        self.tokenizer.token_id(text.as_deref()?)
    }

    fn write_weights(
        &self,
        folder: &Path,
        dtype: Dtype,
        shard_bytes_max: u64,
        tensor: &mut Rewrite<'_>,
    ) -> Result<(), Error> {
        let width = dtype.block().1 as u64;
        let bytes = |tensor: &TensorRef| (tensor.rows * tensor.cols) as u64 * width;
        let mut shards: Vec<Vec<&TensorRef>> = vec![Vec::new()];
        let mut filled = 0;
        for tensor in self.tensors() {
            if filled > 0 && filled + bytes(tensor) > shard_bytes_max {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += bytes(tensor);
            if let Some(shard) = shards.last_mut() {
                shard.push(tensor);
            }
        }
        let count = shards.len();
        let mut weight_map = Map::new();
        for (number, shard) in shards.iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            self.write_shard(&folder.join(&name), shard, dtype, tensor)?;
            weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), value!(name))));
        }
        if count > 1 {
            let total: u64 = self.tensors().iter().map(bytes).sum();
            let index = value!({ "metadata": { "total_size": total }, "weight_map": weight_map });
            save(folder, "model.safetensors.index.json", &index)?;
        }
        Ok(())
    }

    fn write_shard(
        &self,
        path: &Path,
        shard: &[&TensorRef],
        dtype: Dtype,
        tensor: &mut Rewrite<'_>,
    ) -> Result<(), Error> {
        let mut header = Map::new();
        header.insert("__metadata__".into(), value!({ "format": "pt" }));
        let mut at = 0_u64;
        for TensorRef { name, rows, cols, .. } in shard.iter().copied() {
            let end = at + (rows * cols * dtype.block().1) as u64;
            let shape = if self.is_vector(name) { vec![*cols] } else { vec![*rows, *cols] };
            header.insert(name.clone(), value!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [at, end] }));
            at = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');

        let file = File::create(path).map_err(Error::io(path))?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        let length = (header.len() as u64).to_le_bytes();
        writer.write_all(&length).and_then(|()| writer.write_all(&header)).map_err(Error::io(path))?;
        for TensorRef { name, rows, cols, .. } in shard.iter().copied() {
            let values = tensor(name, self.tensor_f32(name)?)?;
            if values.len() != rows * cols {
                let reason = format!("tensor `{name}` got {} values, expected {rows} · {cols}", values.len());
                return Err(Error::Export { path: path.to_owned(), reason });
            }
            for chunk in values.chunks(CHUNK_VALUES) {
                writer.write_all(&encode(chunk, dtype)).map_err(Error::io(path))?;
            }
        }
        let file = writer.into_inner().map_err(|error| Error::io(path)(error.into_error()))?;
        file.sync_all().map_err(Error::io(path))
    }
}

/// Makes `dir`, which must not be there or be empty, with what `write` puts into the folder that it is given: whole or not
/// at all.
pub(crate) fn in_new_folder(dir: &Path, write: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let occupied = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(Error::io(dir)(error)),
    };
    if occupied {
        let reason = "the folder is not empty; name a new one".to_owned();
        return Err(Error::Export { path: dir.to_owned(), reason });
    }
    let parent = parent_of(dir);
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    let staging = tempfile::Builder::new().prefix(".export-").tempdir_in(parent).map_err(Error::io(parent))?;
    write(staging.path())?;
    set_default_permissions(staging.path())?;
    if dir.exists() {
        fs::remove_dir(dir).map_err(Error::io(dir))?;
    }
    fs::rename(staging.path(), dir).map_err(Error::io(dir))?;
    // The temporary folder is gone from its place: nothing is left to remove.
    let _ = staging.keep();
    Ok(())
}

/// The folder that `path` lies in.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

pub(crate) fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

pub(crate) fn save(folder: &Path, name: &str, json: &Value) -> Result<(), Error> {
    let path = folder.join(name);
    fs::write(&path, format!("{json:#}\n")).map_err(Error::io(path))
}

/// A temporary folder is its owner's alone; an exported model is as readable as any new folder.
pub(crate) fn set_default_permissions(folder: &Path) -> Result<(), Error> {
    let probe = folder.join(".probe");
    fs::create_dir(&probe).map_err(Error::io(&probe))?;
    let permissions = fs::metadata(&probe).map_err(Error::io(&probe))?.permissions();
    fs::remove_dir(&probe).map_err(Error::io(&probe))?;
    fs::set_permissions(folder, permissions).map_err(Error::io(folder))
}

fn one_or_many(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [one] => value!(one),
        many => value!(many),
    }
}

/// The whole of `config.json` for a configuration alone.
pub(crate) fn config_json(config: &ModelConfig, dtype: Dtype) -> Map<String, Value> {
    let mut object = Map::new();
    complete_config(&mut object, config, dtype, None, config.bos);
    object
}

/// Puts in what a configuration lacks and what this export changes, under the names of transformers 4 and 5 alike.
fn complete_config(
    object: &mut Map<String, Value>,
    config: &ModelConfig,
    dtype: Dtype,
    eos: Option<u32>,
    bos: Option<u32>,
) {
    let class = config.architecture.class_name();
    let mut default = |key: &str, value: Value| {
        // A null is filled as well: old tools take it for absent, new ones for a wrong type.
        if object.get(key).is_none_or(Value::is_null) {
            object.insert(key.to_owned(), value);
        }
    };
    default("architectures", value!([class]));
    default("model_type", value!(config.architecture.model_type()));
    default("hidden_size", value!(config.hidden));
    default("num_hidden_layers", value!(config.layers));
    default("num_attention_heads", value!(config.heads));
    default("num_key_value_heads", value!(config.kv_heads));
    default("head_dim", value!(config.head_dim));
    default("intermediate_size", value!(config.intermediate));
    default("vocab_size", value!(config.vocab));
    default("max_position_embeddings", value!(config.max_positions));
    default("rms_norm_eps", shortest(config.rms_eps));
    default("hidden_act", value!("silu"));
    default("attention_bias", value!(config.attention_bias));
    if config.architecture == Architecture::Llama {
        default("mlp_bias", value!(config.mlp_bias));
    }
    default("attention_dropout", value!(0.0));
    default("initializer_range", value!(0.02));
    default("use_cache", value!(true));
    default("eos_token_id", value!(eos.or(config.eos.first().copied())));
    default("bos_token_id", value!(bos));
    object.insert("tie_word_embeddings".into(), value!(config.tied));
    object.insert("rope_theta".into(), shortest(config.rope_theta));
    let scaling = rope_json(config);
    object.insert("rope_scaling".into(), if scaling.is_empty() { Value::Null } else { Value::Object(scaling.clone()) });
    let mut parameters = scaling;
    parameters.entry("rope_type").or_insert_with(|| value!("default"));
    parameters.insert("rope_theta".into(), shortest(config.rope_theta));
    object.insert("rope_parameters".into(), Value::Object(parameters));
    let name = match dtype {
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        _ => "float32",
    };
    object.insert("torch_dtype".into(), value!(name));
    object.insert("dtype".into(), value!(name));
}

/// The scaling as `rope_scaling` has it; empty for none.
fn rope_json(config: &ModelConfig) -> Map<String, Value> {
    let fields: Vec<(&str, Value)> = match config.rope_scaling {
        RopeScaling::None => vec![],
        RopeScaling::Linear { factor } => vec![("rope_type", value!("linear")), ("factor", shortest(factor))],
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => vec![
            ("rope_type", value!("llama3")),
            ("factor", shortest(factor)),
            ("low_freq_factor", shortest(low_freq_factor)),
            ("high_freq_factor", shortest(high_freq_factor)),
            ("original_max_position_embeddings", value!(original_max_positions)),
        ],
        RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, attention_factor } => vec![
            ("rope_type", value!("yarn")),
            ("factor", shortest(factor)),
            ("beta_fast", shortest(beta_fast)),
            ("beta_slow", shortest(beta_slow)),
            ("attention_factor", shortest(attention_factor)),
            ("original_max_position_embeddings", value!(original_max_positions)),
        ],
    };
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A number with the fewest digits that give the same f32 (1e-5, not 9.999999747378752e-6).
fn shortest(number: f32) -> Value {
    value!(number.to_string().parse::<f64>().unwrap_or_else(|_| f64::from(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_in_several_files_is_the_same_model() {
        let gguf = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/gguf/tiny-llama.gguf");
        let whole = Base::open(gguf).unwrap();
        let keep = tempfile::tempdir().unwrap();
        let folder = keep.path().join("parts");
        whole.export_sharded(&folder, Dtype::F32, 40_000, &mut |_, values| Ok(values)).unwrap();
        let files = fs::read_dir(&folder).unwrap().filter_map(Result::ok);
        let shards = files.filter(|file| file.path().extension().is_some_and(|end| end == "safetensors")).count();
        assert!(shards > 2, "{shards}");
        let parts = Base::open(folder.to_str().unwrap()).unwrap();
        for tensor in whole.tensors() {
            assert_eq!(
                whole.tensor_f32(&tensor.name).unwrap(),
                parts.tensor_f32(&tensor.name).unwrap(),
                "{}",
                tensor.name
            );
        }
    }
}
