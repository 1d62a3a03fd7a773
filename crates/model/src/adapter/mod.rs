//! PEFT adapters: `adapter_config.json` and `adapter_model.safetensors`, LoRA with its kin rsLoRA and DoRA.
//!
//! An adapter is untrusted: the tensor file's header is checked by `safetensors`, every module must be one of the base's
//! matrices, and every shape must fit it, before a value is used. Nothing that the files name is opened.
//!
//! A linear has `lora_A` (rank, inputs) and `lora_B` (outputs, rank); an embedding, whose weight has a row for each token,
//! has them transposed, and [`Factors`] turns them round. DoRA adds a magnitude for each output.

mod config;
mod write;

use crate::{Base, Error, layout::TABLES, source::Dtype};
use config::Config;
use safetensors::{SafeTensors, tensor::Dtype as FileDtype};
use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};
pub use write::write;

/// Name of an adapter's configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of an adapter's tensors.
pub const TENSOR_FILE: &str = "adapter_model.safetensors";

/// Largest configuration that is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What PEFT puts before a model's own names.
const PREFIX: &str = "base_model.model.";

/// An adapter whose every tensor was found to fit its base.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    config: Config,
    bytes: Vec<u8>,
    /// By HF tensor name.
    modules: BTreeMap<String, Module>,
    warnings: Vec<String>,
}

/// The tensors of one of the base's tensors.
#[derive(Debug, Default)]
struct Module {
    a: Option<Place>,
    b: Option<Place>,
    magnitude: Option<Place>,
    whole: Option<Place>,
    /// Factors of a table lie the other way round.
    embedding: bool,
}

/// A tensor in the file.
#[derive(Debug, Clone)]
struct Place {
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// Δ = `scale` · B·A of one matrix (rows, cols), or under DoRA `magnitude` ⊙ (W + Δ) ÷ ‖W + Δ‖ by rows in place of W.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Columns of B, rows of A.
    pub rank: usize,
    /// (rank, cols)
    pub a: Vec<f32>,
    /// (rows, rank)
    pub b: Vec<f32>,
    /// lora_alpha over the rank, or over its root under rsLoRA.
    pub scale: f32,
    /// A norm for each row of the adapted weight.
    pub magnitude: Option<Vec<f32>>,
}

/// Which of a module's tensors a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    A,
    B,
    Magnitude,
    Whole,
    /// A copy of the base's own values.
    Copy,
}

impl Adapter {
    /// Reads the adapter in `folder` and checks it against `base`.
    ///
    /// # Errors
    /// A file that is missing or damaged, a setting that changes what the tensors mean, a module that `base` does not
    /// have or that a variant cannot hold, a tensor of the wrong shape. See [`Error`].
    pub fn open(folder: &Path, base: &Base) -> Result<Self, Error> {
        let config_path = folder.join(CONFIG_FILE);
        let missing =
            |path: &Path, remedy: &str| Error::MissingFile { path: path.to_owned(), remedy: remedy.to_owned() };
        if !config_path.is_file() {
            return Err(missing(&config_path, "name the folder that peft's save_pretrained wrote"));
        }
        let length = fs::metadata(&config_path).map_err(Error::io(&config_path))?.len();
        if length > CONFIG_BYTES_MAX {
            return Err(Error::malformed(&config_path, format!("{length} bytes are no adapter's configuration")));
        }
        let json = fs::read(&config_path).map_err(Error::io(&config_path))?;
        let config = Config::read(&config_path, &json)?;
        let path = folder.join(TENSOR_FILE);
        if !path.is_file() {
            return Err(missing(&path, "only safetensors are read: save it with safe_serialization=True"));
        }
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        Self { path, config, bytes, modules: BTreeMap::new(), warnings: Vec::new() }.checked(base)
    }

    /// HF names of the tensors that it changes.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(String::as_str)
    }

    /// The largest rank.
    pub fn rank(&self) -> usize {
        self.modules.values().filter_map(Module::rank).max().unwrap_or(0)
    }

    /// Numbers that it holds.
    pub fn parameters(&self) -> u64 {
        let places = self.modules.values().flat_map(|module| [&module.a, &module.b, &module.magnitude, &module.whole]);
        places.flatten().map(|place| place.shape.iter().product::<usize>() as u64).sum()
    }

    /// "lora", "rslora" or "dora", as its configuration says.
    pub fn method(&self) -> &'static str {
        match &self.config {
            config if config.use_dora => "dora",
            config if config.use_rslora => "rslora",
            _ => "lora",
        }
    }

    /// The model that it says it was trained on, for display.
    pub fn trained_on(&self) -> Option<&str> {
        self.config.base_model_name_or_path.as_deref()
    }

    /// Sentences that the user should read.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The factors of the matrix `tensor`, where it has some.
    ///
    /// # Errors
    /// [`Error::Malformed`] for an alpha that makes no number.
    pub fn factors(&self, tensor: &str) -> Result<Option<Factors>, Error> {
        let Some(module) = self.modules.get(tensor) else { return Ok(None) };
        let (Some(a), Some(b), Some(rank)) = (&module.a, &module.b, module.rank()) else { return Ok(None) };
        let scale = self.config.scale(&self.path.with_file_name(CONFIG_FILE), module_name(tensor), rank)?;
        let (a, b) = (self.values(a), self.values(b));
        // Of an embedding W = (B·A)ᵀ, so Aᵀ is what is called B elsewhere.
        let (a, b) = match module.embedding {
            false => (a, b),
            true => (transposed(&b, rank), transposed(&a, a.len() / rank)),
        };
        let magnitude = module.magnitude.as_ref().map(|place| self.values(place));
        Ok(Some(Factors { rank, a, b, scale, magnitude }))
    }

    /// All values of `tensor`, where the adapter replaces it whole (`modules_to_save`, biases).
    pub fn whole(&self, tensor: &str) -> Option<Vec<f32>> {
        let place = self.modules.get(tensor)?.whole.as_ref()?;
        Some(self.values(place))
    }

    fn values(&self, place: &Place) -> Vec<f32> {
        let mut values = vec![0.0; place.shape.iter().product()];
        crate::source::dequantize(place.dtype, &self.bytes[place.range.clone()], &mut values);
        values
    }

    /// Sorts the file's tensors into modules, each checked against the base.
    fn checked(mut self, base: &Base) -> Result<Self, Error> {
        let malformed = |reason: String| Error::malformed(&self.path, reason);
        let (header, metadata) = SafeTensors::read_metadata(&self.bytes)
            .map_err(|error| malformed(format!("damaged or cut short: {error}")))?;
        let mut modules: BTreeMap<String, Module> = BTreeMap::new();
        let mut copies = Vec::new();
        for (name, info) in metadata.tensors() {
            let dtype = match info.dtype {
                FileDtype::F32 => Dtype::F32,
                FileDtype::F16 => Dtype::F16,
                FileDtype::BF16 => Dtype::Bf16,
                other => return Err(malformed(format!("tensor `{name}` is {other:?}; F32, F16 and BF16 are read"))),
            };
            let range = 8 + header + info.data_offsets.0..8 + header + info.data_offsets.1;
            let place = Place { dtype, shape: info.shape.clone(), range };
            let (tensor, role, embedding) = self.meaning(base, &name, &place)?;
            if role == Role::Copy {
                copies.push((tensor, place));
                continue;
            }
            let module = modules.entry(tensor).or_default();
            module.embedding |= embedding;
            let slot = match role {
                Role::A => &mut module.a,
                Role::B => &mut module.b,
                Role::Magnitude => &mut module.magnitude,
                Role::Whole | Role::Copy => &mut module.whole,
            };
            if slot.replace(place).is_some() {
                return Err(malformed(format!("`{name}` is given twice")));
            }
        }
        if modules.is_empty() {
            return Err(malformed("no tensors: the adapter changes nothing".to_owned()));
        }
        self.modules = modules;
        for (tensor, module) in &self.modules {
            self.check_module(base, tensor, module)?;
        }
        self.check_tied(base)?;
        for (tensor, place) in copies {
            if self.values(&place) != base.tensor_f32(&tensor)? {
                self.warnings.push(format!(
                    "the adapter brings its base's {tensor}, which differs from this base's: is it this base's adapter?"
                ));
            }
        }
        Ok(self)
    }

    /// (HF tensor, role, whether the factors are an embedding's) of a tensor of the file.
    fn meaning(&self, base: &Base, name: &str, place: &Place) -> Result<(String, Role, bool), Error> {
        let inside = name.strip_prefix(PREFIX).unwrap_or(name);
        let ends = [
            (".lora_A.weight", Role::A, false),
            (".lora_B.weight", Role::B, false),
            (".lora_embedding_A", Role::A, true),
            (".lora_embedding_B", Role::B, true),
            (".lora_magnitude_vector", Role::Magnitude, false),
            (".lora_magnitude_vector.weight", Role::Magnitude, false),
        ];
        for (end, role, embedding) in ends {
            let Some(module) = inside.strip_suffix(end) else { continue };
            let tensor = format!("{module}.weight");
            if !base.matrices().any(|matrix| matrix.name == tensor) {
                let feature = format!("an adapter of `{module}`, which is no linear, embedding or head of this base,");
                return Err(Error::unsupported(&self.path, feature, "is it an adapter of another model?"));
            }
            if embedding != (tensor == TABLES[0]) && role != Role::Magnitude {
                return Err(Error::malformed(&self.path, format!("`{name}`: factors of the wrong kind of module")));
            }
            return Ok((tensor, role, embedding));
        }
        let (tensor, copied) = match inside.split_once(".base_layer.") {
            Some((module, field)) => (format!("{module}.{field}"), field == "weight"),
            None => (inside.to_owned(), false),
        };
        let Ok(found) = base.tensor(&tensor) else {
            let feature = format!("the tensor `{name}`, which changes nothing that this base has,");
            return Err(Error::unsupported(&self.path, feature, "is it an adapter of another model?"));
        };
        let expected = if base.is_vector(&tensor) { vec![found.cols] } else { vec![found.rows, found.cols] };
        if place.shape != expected {
            let remedy_path = self.path.clone();
            return Err(Error::Shape { path: remedy_path, name: name.to_owned(), expected, got: place.shape.clone() });
        }
        Ok((tensor, if copied { Role::Copy } else { Role::Whole }, false))
    }

    fn check_module(&self, base: &Base, tensor: &str, module: &Module) -> Result<(), Error> {
        let malformed = |reason: String| Err(Error::malformed(&self.path, format!("`{tensor}`: {reason}")));
        let (a, b) = match (&module.a, &module.b) {
            (None, None) if module.magnitude.is_some() => return malformed("a magnitude without factors".into()),
            (None, None) => return Ok(()),
            (Some(a), Some(b)) => (a, b),
            (Some(_), None) => return malformed("lora_A without its lora_B".into()),
            (None, Some(_)) => return malformed("lora_B without its lora_A".into()),
        };
        if module.whole.is_some() {
            return malformed("factors and a whole tensor at once".into());
        }
        let matrix = base.tensor(tensor)?;
        let (outputs, inputs) = if module.embedding { (matrix.cols, matrix.rows) } else { (matrix.rows, matrix.cols) };
        let [rank, _] = a.shape[..] else {
            return malformed(format!("lora_A has shape {:?}", a.shape));
        };
        let shapes = [(&a.shape, vec![rank, inputs], "lora_A"), (&b.shape, vec![outputs, rank], "lora_B")];
        for (got, expected, name) in shapes {
            if *got != expected {
                return malformed(format!("{name} has shape {got:?}, {expected:?} fits the base"));
            }
        }
        if rank == 0 || rank > outputs.min(inputs) {
            return malformed(format!("rank {rank} of a matrix of {outputs} x {inputs}"));
        }
        let config_path = self.path.with_file_name(CONFIG_FILE);
        match self.config.rank(&config_path, module_name(tensor))? {
            Some(stated) if stated != rank => {
                return malformed(format!("rank {rank}, the configuration says {stated}"));
            }
            _ => {}
        }
        match (&module.magnitude, self.config.use_dora) {
            (None, true) => malformed("use_dora is set, but there is no lora_magnitude_vector".into()),
            (Some(_), false) => malformed("a lora_magnitude_vector, but use_dora is not set".into()),
            (Some(_), true) if module.embedding => Err(Error::unsupported(
                &self.path,
                "DoRA of the embedding",
                "merge the adapter into its base (peft's merge_and_unload) and compress the pair instead",
            )),
            (Some(magnitude), true) if magnitude.shape.iter().product::<usize>() != outputs => {
                malformed(format!("lora_magnitude_vector has shape {:?}, expected {outputs} values", magnitude.shape))
            }
            _ => Ok(()),
        }
    }

    /// PEFT unties what it adapts on one side, which a base with one table for both cannot follow.
    fn check_tied(&self, base: &Base) -> Result<(), Error> {
        let changed = self.modules.get(TABLES[0]);
        if !base.config.tied || self.config.ensure_weight_tying || changed.is_none() {
            return Ok(());
        }
        Err(Error::unsupported(
            &self.path,
            "an adapted embedding whose head, tied to it in this base, stays as it was (PEFT unties them),",
            "train it with ensure_weight_tying=True, or without the embedding",
        ))
    }
}

impl Module {
    fn rank(&self) -> Option<usize> {
        self.a.as_ref().map(|a| a.shape[0])
    }
}

/// A module's name without `.weight`.
fn module_name(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

/// (rows, cols) -> (cols, rows).
fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    (0..values.len()).map(|at| values[at % rows * cols + at / rows]).collect()
}
