//! Opening a base for a command: which model, on which device, with a progress bar while it loads.
use crate::{Context, Error, commands::progress::Bar};
use bitdelta_engine::{BaseDtype, KvDtype, Model, ModelOptions};
use bitdelta_model::Base;
use std::sync::Arc;

/// Which base a command runs, and on what.
#[derive(Debug, Clone, clap::Args)]
pub struct BaseArgs {
    /// Base model: a Hugging Face folder, a .gguf file, or a hub id
    #[arg(long, visible_alias = "base", value_name = "PATH", env = "BITDELTA_MODEL", hide_env_values = true)]
    pub model: Option<String>,
    /// Where to compute; `cpu` is all there is so far
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,
    /// How the base's matrices are kept: auto (as stored, quantised ones in f32), f32, bf16, or int8 (a quarter of f32's
    /// bytes, and faster; activations are rounded too)
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub base_dtype: Dtype,
    /// How keys and values of running requests are kept
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub kv_dtype: KvType,

    /// Threads that compute; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

/// The values of `--base-dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    /// As stored.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// Blocks of int8.
    Int8,
}

impl From<Dtype> for BaseDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Auto => Self::Stored,
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
            Dtype::Int8 => Self::Int8,
        }
    }
}

/// The values of `--kv-dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum KvType {
    /// bf16 beside a base in bf16 or int8, else f32.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16: half the memory.
    Bf16,
    /// Blocks of int8: a quarter.
    Int8,
}

impl From<KvType> for KvDtype {
    fn from(dtype: KvType) -> Self {
        match dtype {
            KvType::Auto => Self::Auto,
            KvType::F32 => Self::F32,
            KvType::Bf16 => Self::Bf16,
            KvType::Int8 => Self::Int8,
        }
    }
}

impl BaseArgs {
    /// How the base is to be loaded.
    pub fn options(&self) -> ModelOptions {
        ModelOptions { threads: self.threads, base_dtype: self.base_dtype.into(), kv_dtype: self.kv_dtype.into() }
    }

    /// The model's name or path, after checking the device. Opens nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] for another device than `cpu`, or when no model is named.
    pub fn check(&self) -> Result<String, Error> {
        if self.device != "cpu" {
            let message = format!("device {:?} is not supported yet; supported: cpu", self.device);
            return Err(Error::Usage(message));
        }
        self.model.clone().ok_or_else(|| {
            let message = "no base model: pass --model PATH (a Hugging Face folder, a .gguf file, an alias, or a hub id), \
                           or set BITDELTA_MODEL, or `model:` in the configuration file, once for all commands";
            Error::Usage(message.to_owned())
        })
    }

    /// Opens and loads the base.
    ///
    /// # Errors
    /// As [`Self::check`], and whatever keeps the model from loading.
    pub fn load(&self) -> Result<Arc<Model>, Error> {
        let name = self.check()?;
        let doing = || format!("loading the base model {name}");
        Bar::new().during(&doing(), || {
            let base = Base::open(&name).context(doing())?;
            Model::load(Arc::new(base), self.options()).map(Arc::new).context(doing())
        })
    }
}
