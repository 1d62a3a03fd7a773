//! Writing a model as one GGUF file that llama.cpp opens.
//!
//! From a GGUF base the metadata is copied pair by pair, tokenizer and all, and so is a tensor that only llama.cpp knows.
//! From an HF folder it is made as llama.cpp's converter makes it ([`super::describe`]). Rows of Llama's queries and keys
//! go back into the file's order, vectors stay f32. The file is written beside its place and renamed.

use super::{
    ALIGNMENT, Gguf, describe,
    names::gguf_name,
    write::{Pairs, Tensor, header, put_padding, put_values},
};
use crate::{
    Architecture, Base, Dtype, Error, Rewrite, RopeScaling, export::parent_of, open::Origin, source::interleaved,
};
use std::{
    collections::HashMap,
    io::{BufWriter, Write},
    path::Path,
};

/// Metadata that speaks of the file's own form, and so is not copied.
const OF_THE_FORM: [&str; 4] =
    ["general.file_type", "general.quantization_version", "general.alignment", "general.quantized_by"];

/// Where a tensor's values come from.
enum Source {
    /// A tensor of the model, by HF name.
    Model(String),
    /// Bytes of the base's file that the model's list of tensors does not have.
    Copied(std::ops::Range<usize>),
    /// Values made here.
    Made(Vec<f32>),
}

impl Base {
    /// Writes the model as the new GGUF file `path`, its matrices in `dtype`: F32, F16, Bf16 or Q8_0 (F16 where rows are no
    /// multiple of 32). `tensor` is asked for each tensor as in [`Base::export_hf`].
    ///
    /// # Errors
    /// [`Error::Export`] for another `dtype`, a `path` that is there already, values of the wrong number, or a tokenizer
    /// that GGUF has no name for; what `tensor` returns; [`Error::Io`].
    pub fn export_gguf(&self, path: &Path, dtype: Dtype, tensor: &mut Rewrite<'_>) -> Result<(), Error> {
        let refuse = |reason: String| Error::Export { path: path.to_owned(), reason };
        if !dtype.is_plain() && dtype != Dtype::Q8_0 {
            return Err(refuse(format!("{} is not written; take F32, F16, BF16 or Q8_0", dtype.name())));
        }
        if path.exists() {
            return Err(refuse("it is there already; name a new file".to_owned()));
        }
        let (pairs, tensors) = match self.origin {
            Origin::Gguf => self.copied(dtype)?,
            Origin::HfFolder => self.described(path, dtype)?,
        };
        let (table, sources): (Vec<Tensor>, Vec<Source>) = tensors.into_iter().unzip();

        let parent = parent_of(path);
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let file = tempfile::Builder::new().prefix(".export-").suffix(".gguf").tempfile_in(parent);
        let file = file.map_err(Error::io(parent))?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        writer.write_all(&header(&pairs, &table)).map_err(Error::io(path))?;
        for (entry, source) in table.iter().zip(sources) {
            match source {
                Source::Copied(range) => {
                    writer.write_all(&self.first_file()[range]).map_err(Error::io(path))?;
                }
                Source::Made(values) => put_values(&mut writer, path, &values, entry.dtype)?,
                Source::Model(name) => {
                    let values = tensor(&name, self.tensor_f32(&name)?)?;
                    let expected: usize = entry.shape.iter().product();
                    if values.len() != expected {
                        return Err(refuse(format!(
                            "tensor `{name}` got {} values, expected {expected}",
                            values.len()
                        )));
                    }
                    put_values(&mut writer, path, &self.in_file_order(&name, values), entry.dtype)?;
                }
            }
            put_padding(&mut writer, path, entry.bytes().unwrap_or(0))?;
        }
        let file = writer.into_inner().map_err(|error| Error::io(path)(error.into_error()))?;
        file.as_file().sync_all().map_err(Error::io(path))?;
        set_default_permissions(file.path())?;
        file.persist_noclobber(path).map_err(|error| Error::io(path)(error.error))?;
        Ok(())
    }

    /// Metadata and tensors of a GGUF base, in its own order.
    fn copied(&self, dtype: Dtype) -> Result<(Pairs, Vec<(Tensor, Source)>), Error> {
        let bytes = self.first_file();
        let gguf = Gguf::parse(&self.path, bytes)?;
        let mut pairs = Pairs::default();
        let kept = |key: &str| !OF_THE_FORM.contains(&key) && !key.starts_with("split.");
        gguf.pairs.iter().filter(|(key, _)| kept(key)).for_each(|(_, range)| pairs.raw(&bytes[range.clone()]));
        put_form(&mut pairs, dtype);
        let names: HashMap<String, &str> =
            self.tensors().iter().map(|tensor| (gguf_name(&tensor.name), tensor.name.as_str())).collect();
        let tensors = gguf.tensors.into_iter().map(|entry| match names.get(&entry.name) {
            Some(name) => self.entry(name, dtype),
            None => {
                let tensor = Tensor { name: entry.name, shape: entry.shape, dtype: entry.dtype };
                (tensor, Source::Copied(entry.range))
            }
        });
        Ok((pairs, tensors.collect()))
    }

    /// Metadata and tensors of a folder.
    fn described(&self, path: &Path, dtype: Dtype) -> Result<(Pairs, Vec<(Tensor, Source)>), Error> {
        let mut pairs = Pairs::default();
        describe::model(&mut pairs, &self.config, &self.name);
        describe::tokenizer(&mut pairs, self, path)?;
        put_form(&mut pairs, dtype);
        let mut tensors: Vec<(Tensor, Source)> =
            self.tensors().iter().map(|tensor| self.entry(&tensor.name, dtype)).collect();
        if matches!(self.config.rope_scaling, RopeScaling::Llama3 { .. }) {
            let divisors = describe::rope_divisors(&self.config);
            let shape = vec![divisors.len()];
            let tensor = Tensor { name: "rope_freqs.weight".to_owned(), shape, dtype: Dtype::F32 };
            tensors.push((tensor, Source::Made(divisors)));
        }
        Ok((pairs, tensors))
    }

    /// A tensor of the model in the table.
    fn entry(&self, name: &str, dtype: Dtype) -> (Tensor, Source) {
        let vector = self.is_vector(name);
        let shape = self.tensor(name).map_or_else(
            |_| Vec::new(),
            |tensor| match vector {
                true => vec![tensor.cols],
                false => vec![tensor.rows, tensor.cols],
            },
        );
        let whole = |dtype: Dtype| shape.last().is_some_and(|cols| dtype.row_bytes(*cols).is_some());
        let dtype = match dtype {
            _ if vector => Dtype::F32,
            dtype if whole(dtype) => dtype,
            _ => Dtype::F16,
        };
        (Tensor { name: gguf_name(name), shape, dtype }, Source::Model(name.to_owned()))
    }

    /// Values of a tensor, rows in the order of a GGUF file.
    fn in_file_order(&self, name: &str, values: Vec<f32>) -> Vec<f32> {
        let rotary = [".q_proj.", ".k_proj."].iter().any(|part| name.contains(part));
        if !rotary || self.config.architecture != Architecture::Llama {
            return values;
        }
        let width = if self.is_vector(name) { 1 } else { self.config.hidden };
        let mut out = vec![0.0; values.len()];
        for (row, values) in values.chunks(width).enumerate() {
            let place = interleaved(row, self.config.head_dim);
            out[place * width..(place + 1) * width].copy_from_slice(values);
        }
        out
    }
}

/// What the file says of its own form.
fn put_form(pairs: &mut Pairs, dtype: Dtype) {
    let file_type = match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 32,
        _ => 7,
    };
    pairs.u32("general.file_type", file_type);
    pairs.u32("general.quantization_version", 2);
    pairs.u32("general.alignment", ALIGNMENT as u32);
}

/// A temporary file is its owner's alone; an exported model is as readable as any new file.
fn set_default_permissions(file: &Path) -> Result<(), Error> {
    let probe = file.with_extension("probe");
    std::fs::File::create(&probe).map_err(Error::io(&probe))?;
    let permissions = std::fs::metadata(&probe).map_err(Error::io(&probe))?.permissions();
    std::fs::remove_file(&probe).map_err(Error::io(&probe))?;
    std::fs::set_permissions(file, permissions).map_err(Error::io(file))
}
