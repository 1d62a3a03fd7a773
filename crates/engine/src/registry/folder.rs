//! Where a user's variant lies in the variants folder. A look-up asks the file system about one user's places, however many
//! users there are; only a listing reads the folder.

use super::store;
use crate::user::EXTENSION;
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

/// The user's file in the folder, where there is one: the newest version's (`store.rs`), `ID.safetensors` or
/// `ID/variant.safetensors`, whichever was put there last.
pub(super) fn find(dir: &Path, user: &str) -> Option<Version> {
    let by_hand = [dir.join(user).join(FILE_NAME), flat(dir, user)];
    let by_hand = by_hand.iter().filter_map(|path| Version::of(path)).map(|version| (version.modified, version));
    let newest = store::newest(dir, user).and_then(|(path, made)| Some((made, Version::of(&path)?)));
    // Of equals the last: a version counts more than what lies beside it.
    by_hand.chain(newest).max_by_key(|(made, _)| *made).map(|(_, version)| version)
}

/// Where a variant that was put there by hand lies under its user's name.
pub(super) fn flat(dir: &Path, user: &str) -> PathBuf {
    dir.join(format!("{user}{EXTENSION}"))
}
