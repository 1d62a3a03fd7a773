//! Variants by user: found lazily in the variants folder, loaded once, shared while used.
use crate::{Error, Model};
use std::{path::{Path, PathBuf}, sync::Arc};

/// A variant in memory, in the layout that the kernels read.
pub struct Resident {}

impl Resident {
    /// The user's id.
    pub fn user(&self) -> &str {
        unimplemented!()
    }
    /// The file it came from.
    pub fn path(&self) -> &Path {
        unimplemented!()
    }
    /// Content hash of the variant (hex).
    pub fn hash(&self) -> &str {
        unimplemented!()
    }
    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }
    /// What the file's info section says.
    pub fn info(&self) -> &bitdelta_delta::file::Info {
        unimplemented!()
    }
}

/// The variants that a server can answer with.
pub struct Registry {}

/// One line of [`Registry::list`].
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// User id.
    pub user: String,
    /// File.
    pub path: PathBuf,
    /// Bytes in memory; 0 when not loaded.
    pub resident_bytes: u64,
    /// Whether it is loaded now.
    pub loaded: bool,
}

impl Registry {
    /// Serves the variants of `dir` (which may be None: only explicit loads). `dir/USER.safetensors` or `dir/USER/variant.safetensors`.
    pub fn new(model: Arc<Model>, dir: Option<PathBuf>) -> Self {
        let _ = (model, dir);
        unimplemented!()
    }
    /// The user's variant, loading it on first use (blocking: call from a blocking thread).
    pub fn resolve(&self, user: &str) -> Result<Arc<Resident>, Error> {
        let _ = user;
        unimplemented!()
    }
    /// Loads a file or folder anywhere on disk under the user id that its name gives.
    pub fn load(&self, path: &Path) -> Result<Arc<Resident>, Error> {
        let _ = path;
        unimplemented!()
    }
    /// Forgets a user's variant; its memory is freed when the last request that uses it ends. False: was not loaded.
    pub fn unload(&self, user: &str) -> Result<bool, Error> {
        let _ = user;
        unimplemented!()
    }
    /// All known variants (loaded or on disk in the folder), by user id.
    pub fn list(&self) -> Vec<Listed> {
        unimplemented!()
    }
}
