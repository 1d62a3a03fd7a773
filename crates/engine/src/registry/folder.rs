//! Where a user's variant lies in the variants folder. A look-up is two questions to the file system, however many users
//! there are; only a listing reads the folder.

use crate::{
    Error,
    user::{EXTENSION, check_user},
};
use bitdelta_delta::file::FILE_NAME;
use std::{
    fs::Metadata,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// A variant's file, as it was when it was looked at. Another file, or the same one written again, is another version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub path: PathBuf,
    modified: Option<SystemTime>,
    bytes: u64,
}

impl Version {
    /// The regular file at `path`, where there is one.
    pub fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok().filter(Metadata::is_file)?;
        Some(Self::with(path, &meta))
    }

    /// The file at `path` of this metadata.
    pub fn with(path: &Path, meta: &Metadata) -> Self {
        Self { path: path.to_owned(), modified: meta.modified().ok(), bytes: meta.len() }
    }
}

/// The user's file in the folder, where there is one: `ID.safetensors` or `ID/variant.safetensors`, the one that was
/// written last where both are there.
pub(super) fn find(dir: &Path, user: &str) -> Option<Version> {
    places(dir, user).iter().filter_map(|path| Version::of(path)).max_by_key(|version| version.modified)
}

/// Where a user's variant may lie in a variants folder.
fn places(dir: &Path, user: &str) -> [PathBuf; 2] {
    [dir.join(user).join(FILE_NAME), dir.join(format!("{user}{EXTENSION}"))]
}

/// Where a user's variant is to be published: over the file that is served now, else `DIR/ID.safetensors`.
///
/// # Errors
/// [`Error::InvalidUser`].
pub fn place(dir: &Path, user: &str) -> Result<PathBuf, Error> {
    check_user(user)?;
    let [_, flat] = places(dir, user);
    Ok(find(dir, user).map_or(flat, |version| version.path))
}
