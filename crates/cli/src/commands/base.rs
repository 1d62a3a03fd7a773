//! Opening a base for a command: which model, on which device, with a progress bar while it loads.
use crate::{Context, Error, commands::progress::Bar};
use bitdelta_engine::{Model, ModelOptions};
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
    /// Threads that compute; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

impl BaseArgs {
    /// The model's name or path, after checking the device. Opens nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] for another device than `cpu`, or when no model is named.
    pub fn check(&self) -> Result<&str, Error> {
        if self.device != "cpu" {
            let message = format!("device {:?} is not supported yet; supported: cpu", self.device);
            return Err(Error::Usage(message));
        }
        self.model.as_deref().ok_or_else(|| {
            let message = "no base model: pass --model PATH (a Hugging Face folder, a .gguf file, or a hub id), \
                           or set BITDELTA_MODEL once for all commands";
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
            let base = Base::open(name).context(doing())?;
            let options = ModelOptions { threads: self.threads };
            Model::load(Arc::new(base), options).map(Arc::new).context(doing())
        })
    }
}
