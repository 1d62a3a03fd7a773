//! A user's versions in the variants folder, without a database.
//!
//! ```text
//! DIR/USER/blobs/HASH.safetensors     a variant file under its content hash, never written again
//! DIR/USER/versions/0000000007.json   which blob version 7 is; the highest number is served
//! ```
//!
//! A version appears by one operation that fails where the number is taken (a hard link), after its blob is on disk: a crash
//! leaves the former version or the new one. To roll back is to make a new version of an old blob. Blobs lie below
//! their user, so that a user can be erased whole, and nobody learns who has the same file.
//!
//! Files that were put in the folder by hand (`USER.safetensors`, `USER/variant.safetensors`) are served as they were,
//! while they are newer than the newest version; the first version that is published beside one takes it up as the
//! version before.
use super::{folder, lock};
use crate::{
    Error, owner,
    user::{check_user, user_of},
};
use bitdelta_delta::file::{self, Variant};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};
use tempfile::NamedTempFile;

/// Versions of a user that are kept; older ones go when a new one comes.
pub const KEPT_VERSIONS: usize = 16;

/// One version of a user's variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Counts from 1; the highest is served.
    #[serde(skip)]
    pub number: u64,
    /// Content hash, which names the blob.
    pub hash: String,
    /// The file's size.
    pub bytes: u64,
    /// Unix seconds.
    pub created: u64,
    /// The older version whose blob this is, where it was rolled back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back_to: Option<u64>,
}

/// The variants folder as a store.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    /// One change at a time in this process; the lock file keeps other processes out.
    changes: Mutex<()>,
}

impl Store {
    /// The store in `dir`, which is made when something is published.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, changes: Mutex::default() }
    }

    /// An empty file in the folder's file system, for a variant that is to be published.
    ///
    /// # Errors
    /// [`Error::Variant`] with the folder.
    pub fn incoming(&self) -> Result<NamedTempFile, Error> {
        let make = || {
            owner::create_dir_all(&self.dir)?;
            temporary(&self.dir, ".incoming-")
        };
        make().map_err(|source| io_error(&self.dir, source))
    }

    /// Makes a file the user's newest version. It was checked, and `hash` is its content hash.
    ///
    /// # Errors
    /// [`Error::InvalidUser`], [`Error::Variant`] for I/O; the former version is then still served.
    pub fn publish(&self, user: &str, incoming: NamedTempFile, hash: &str) -> Result<Published, Error> {
        check_user(user)?;
        let _alone = self.alone()?;
        let publish = || {
            self.adopt(user)?;
            let bytes = incoming.as_file().metadata()?.len();
            incoming.as_file().sync_all()?;
            self.keep_blob(user, incoming, hash)?;
            let published = self.add_version(user, hash, bytes, None)?;
            // It is a version now, or was no variant at all.
            remove_if_there(&folder::flat(&self.dir, user))?;
            self.prune(user);
            Ok(published)
        };
        publish().map_err(|source| io_error(&self.dir.join(user), source))
    }

    /// The user's versions, oldest first; none for a user who never had one published.
    ///
    /// # Errors
    /// [`Error::InvalidUser`].
    pub fn versions(&self, user: &str) -> Result<Vec<Published>, Error> {
        check_user(user)?;
        Ok(versions(&self.dir, user))
    }

    /// Every user who has a variant in the folder, with the file that is served. Reads the whole folder.
    ///
    /// # Errors
    /// [`Error::Variant`] for a folder that cannot be read.
    pub fn list(&self) -> Result<BTreeMap<String, PathBuf>, Error> {
        let entries = fs::read_dir(&self.dir).map_err(|source| io_error(&self.dir, source))?;
        let users = entries.flatten().filter_map(|entry| user_of(&entry.path()).ok());
        Ok(users.filter_map(|user| folder::find(&self.dir, &user).map(|found| (user, found.path))).collect())
    }

    /// Makes an older version the newest: `to`, or the one before the newest. `None` when there is no such version.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub fn roll_back(&self, user: &str, to: Option<u64>) -> Result<Option<Published>, Error> {
        check_user(user)?;
        let _alone = self.alone()?;
        let roll_back = || {
            let all = versions(&self.dir, user);
            let Some(newest) = all.last() else { return Ok(None) };
            let older = match to {
                Some(number) => all.iter().find(|version| version.number == number),
                None => all.iter().rev().find(|version| version.hash != newest.hash),
            };
            let Some(older) = older.filter(|older| blob(&self.dir, user, &older.hash).is_file()) else {
                return Ok(None);
            };
            let version = self.add_version(user, &older.hash, older.bytes, Some(older.number))?;
            // What lies beside the versions is older than this decision.
            remove_if_there(&folder::flat(&self.dir, user))?;
            self.prune(user);
            Ok(Some(version))
        };
        roll_back().map_err(|source| io_error(&self.dir.join(user), source))
    }

    /// Erases everything of the user in the folder. False when there was nothing.
    ///
    /// # Errors
    /// As [`Self::publish`]; a part may then be left, and another try goes on.
    pub fn delete(&self, user: &str) -> Result<bool, Error> {
        check_user(user)?;
        let _alone = self.alone()?;
        let delete = || {
            let flat = remove_if_there(&folder::flat(&self.dir, user))?;
            // Out of sight at once and whole; erasing may take a while, and be broken off.
            let own = self.dir.join(user);
            let away = tempfile::Builder::new().prefix(".deleted-").tempdir_in(&self.dir)?;
            let moved = match fs::rename(&own, away.path().join("user")) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            sync(&self.dir)?;
            away.close()?;
            Ok(flat || moved)
        };
        delete().map_err(|source| io_error(&self.dir.join(user), source))
    }

    /// A file that lies beside the versions and is newer than them becomes a version, so that one can roll back to it.
    fn adopt(&self, user: &str) -> io::Result<()> {
        let Some(found) = folder::find(&self.dir, user) else { return Ok(()) };
        if found.path.starts_with(blobs(&self.dir, user)) {
            return Ok(());
        }
        let Ok((_, hash)) = Variant::read_hashed(&found.path) else { return Ok(()) };
        let mut copy = self.incoming().map_err(io::Error::other)?;
        let bytes = io::copy(&mut File::open(&found.path)?, copy.as_file_mut())?;
        copy.as_file().sync_all()?;
        self.keep_blob(user, copy, &hash)?;
        self.add_version(user, &hash, bytes, None).map(drop)
    }

    /// Gives a file its place; one that is there already has the same content.
    fn keep_blob(&self, user: &str, file: NamedTempFile, hash: &str) -> io::Result<()> {
        let place = blob(&self.dir, user, hash);
        owner::create_dir_all(&blobs(&self.dir, user))?;
        match file.persist_noclobber(&place) {
            Ok(_) => sync(&blobs(&self.dir, user)),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error.error),
        }
    }

    fn add_version(&self, user: &str, hash: &str, bytes: u64, rolled_back_to: Option<u64>) -> io::Result<Published> {
        let place = self.dir.join(user).join(VERSIONS);
        owner::create_dir_all(&place)?;
        sync(&self.dir.join(user))?;
        sync(&self.dir)?;
        let mut number = versions(&self.dir, user).last().map_or(1, |newest| newest.number + 1);
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let version = Published { number, hash: hash.to_owned(), bytes, created, rolled_back_to };
        loop {
            let mut file = temporary(&place, ".version-")?;
            file.write_all(&serde_json::to_vec(&version)?)?;
            file.as_file().sync_all()?;
            match file.persist_noclobber(place.join(format!("{number:010}.json"))) {
                Ok(_) => break,
                // Another machine on the same folder was quicker.
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error.error),
            }
        }
        sync(&place)?;
        Ok(Published { number, ..version })
    }

    /// Lets go of versions beyond [`KEPT_VERSIONS`] and of blobs that no version names. What fails stays for the next time.
    fn prune(&self, user: &str) {
        let all = versions(&self.dir, user);
        let (old, kept) = all.split_at(all.len().saturating_sub(KEPT_VERSIONS));
        for version in old {
            let _stays =
                fs::remove_file(self.dir.join(user).join(VERSIONS).join(format!("{:010}.json", version.number)));
        }
        for entry in fs::read_dir(blobs(&self.dir, user)).into_iter().flatten().flatten() {
            let path = entry.path();
            if !kept.iter().any(|version| blob(&self.dir, user, &version.hash) == path) {
                let _stays = fs::remove_file(path);
            }
        }
    }

    /// Keeps other changes out until what is returned is dropped.
    fn alone(&self) -> Result<(std::sync::MutexGuard<'_, ()>, File), Error> {
        let guard = lock(&self.changes);
        let path = self.dir.join(".lock");
        let open = || {
            owner::create_dir_all(&self.dir)?;
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            owner::hand_over(&path, &self.dir)?;
            file.lock()?;
            Ok(file)
        };
        open().map(|file| (guard, file)).map_err(|source| io_error(&path, source))
    }
}

/// A file to be renamed into its place: its folder's owner's, and readable by a server of another account, as far as the
/// umask lets it.
fn temporary(folder: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    let mode = fs::Permissions::from_mode(0o644);
    let file = tempfile::Builder::new().prefix(prefix).permissions(mode).tempfile_in(folder)?;
    owner::hand_over(file.path(), folder)?;
    Ok(file)
}

const VERSIONS: &str = "versions";

fn blobs(dir: &Path, user: &str) -> PathBuf {
    dir.join(user).join("blobs")
}

fn blob(dir: &Path, user: &str, hash: &str) -> PathBuf {
    blobs(dir, user).join(format!("{hash}.safetensors"))
}

/// The served version's blob, and when that version was made.
pub(super) fn newest(dir: &Path, user: &str) -> Option<(PathBuf, Option<SystemTime>)> {
    let (number, place) = numbered(dir, user).max()?;
    let modified = fs::metadata(&place).and_then(|meta| meta.modified()).ok();
    Some((blob(dir, user, &read(number, &place)?.hash), modified))
}

fn versions(dir: &Path, user: &str) -> Vec<Published> {
    let mut all: Vec<Published> = numbered(dir, user).filter_map(|(number, place)| read(number, &place)).collect();
    all.sort_unstable_by_key(|version| version.number);
    all
}

/// Version files by their numbers, in no order.
fn numbered(dir: &Path, user: &str) -> impl Iterator<Item = (u64, PathBuf)> {
    let entries = fs::read_dir(dir.join(user).join(VERSIONS)).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok()?;
        Some((number, entry.path()))
    })
}

fn read(number: u64, place: &Path) -> Option<Published> {
    let version: Published = serde_json::from_slice(&fs::read(place).ok()?).ok()?;
    // The hash becomes a file's name.
    version.hash.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(Published { number, ..version })
}

/// Whether there was something to remove.
fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Variant(file::Error::Io { path: path.to_owned(), source })
}
