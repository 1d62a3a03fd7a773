//! Variants by user: found in the variants folder on first use, loaded once, shared while used.
//!
//! A user id is data, never a path: it must be a single plain name, and only `DIR/ID.safetensors` and
//! `DIR/ID/variant.safetensors` are looked at.

use crate::{
    Error, Model, Resident,
    backend::Backend,
    cpu::Cpu,
    user::{EXTENSION, check_user, user_of},
};
use bitdelta_delta::file::{FILE_NAME, Variant, locate};
use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// The variants that a server can answer with.
pub struct Registry<B: Backend = Cpu> {
    model: Arc<Model<B>>,
    dir: Option<PathBuf>,
    slots: Mutex<HashMap<String, Arc<Mutex<Slot<B>>>>>,
}

/// One user's place. Its lock is held while the variant loads, so that a variant is loaded once however many ask, and
/// nobody else's request waits.
struct Slot<B: Backend> {
    /// Where an operator loaded it from; `None` means the folder.
    explicit: Option<Explicit>,
    loaded: Option<Loaded<B>>,
}

/// A file that an operator loaded. It is served until something newer is published in the folder.
struct Explicit {
    path: PathBuf,
    /// What the folder held for the user then.
    folder_then: Option<(PathBuf, Stamp)>,
}

struct Loaded<B: Backend> {
    resident: Arc<Resident<B>>,
    stamp: Stamp,
}

/// What tells a new file from the one that was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
}

/// One line of [`Registry::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl<B: Backend> Registry<B> {
    /// Serves the variants of `dir`, and those that [`Self::load`] brings from elsewhere.
    pub fn new(model: Arc<Model<B>>, dir: Option<PathBuf>) -> Self {
        Self { model, dir, slots: Mutex::default() }
    }

    /// The user's variant, loaded on first use and again after its file changed. Blocks while it loads.
    ///
    /// # Errors
    /// [`Error::InvalidUser`], [`Error::UnknownUser`], [`Error::WrongBase`], [`Error::Shape`], or [`Error::Variant`] for a
    /// file that cannot be read or is damaged: never another answer in its place.
    pub fn resolve(&self, user: &str) -> Result<Arc<Resident<B>>, Error> {
        check_user(user)?;
        let known = lock(&self.slots).get(user).cloned();
        let found = || self.dir.as_deref().and_then(|dir| find(dir, user));
        let slot = match known {
            Some(slot) => slot,
            // Only users who exist get a slot: guessing names must not fill the memory.
            None if found().is_some() => self.slot(user),
            None => return Err(self.unknown(user)),
        };
        let mut slot = lock(&slot);
        let in_folder = found();
        // A publication after an operator's load is the newer word.
        slot.explicit.take_if(|explicit| explicit.folder_then != in_folder);
        let place = match &slot.explicit {
            Some(Explicit { path, .. }) => stamp(path).map(|stamp| (path.clone(), stamp)),
            None => in_folder,
        };
        let Some((path, stamp)) = place else {
            slot.loaded = None;
            return Err(self.unknown(user));
        };
        if let Some(loaded) =
            slot.loaded.as_ref().filter(|loaded| loaded.stamp == stamp && loaded.resident.path() == path)
        {
            return Ok(loaded.resident.clone());
        }
        slot.loaded = None;
        let resident = self.read(user, &path)?;
        slot.loaded = Some(Loaded { resident: resident.clone(), stamp });
        Ok(resident)
    }

    /// Loads a variant file, or a folder that holds one, under the user id that its name gives.
    ///
    /// # Errors
    /// As [`Self::resolve`]; what was served for that user before stays.
    pub fn load(&self, path: &Path) -> Result<Arc<Resident<B>>, Error> {
        let user = user_of(path)?;
        let file = locate(path);
        let before = stamp(&file);
        let resident = self.read(&user, &file)?;
        let slot = self.slot(&user);
        let mut slot = lock(&slot);
        let folder_then = self.dir.as_deref().and_then(|dir| find(dir, &user));
        let published = folder_then.as_ref().is_some_and(|(path, _)| *path == file);
        slot.explicit = (!published).then_some(Explicit { path: file, folder_then });
        slot.loaded = before.map(|stamp| Loaded { resident: resident.clone(), stamp });
        Ok(resident)
    }

    /// Forgets a user's variant: its memory is freed when the last request that uses it ends. Returns whether it was
    /// loaded. A variant of the folder is found again when it is asked for.
    ///
    /// # Errors
    /// [`Error::InvalidUser`].
    pub fn unload(&self, user: &str) -> Result<bool, Error> {
        check_user(user)?;
        let slot = lock(&self.slots).remove(user);
        Ok(slot.is_some_and(|slot| lock(&slot).loaded.take().is_some()))
    }

    /// All variants, loaded or waiting in the folder, by user id.
    pub fn list(&self) -> Vec<Listed> {
        let on_disk = self.dir.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
        let mut listed: BTreeMap<String, Listed> = on_disk
            .filter_map(|entry| {
                let user = user_of(&entry.path()).ok()?;
                let (path, _) = find(self.dir.as_deref()?, &user)?;
                Some((user.clone(), Listed { user, path, resident_bytes: 0, loaded: false }))
            })
            .collect();
        let slots: Vec<_> = lock(&self.slots).iter().map(|(user, slot)| (user.clone(), slot.clone())).collect();
        for (user, slot) in slots {
            // A slot that is loading now is listed as it stands on disk.
            let Ok(slot) = slot.try_lock() else { continue };
            if let Some(Loaded { resident, .. }) = &slot.loaded {
                let (path, resident_bytes) = (resident.path().to_owned(), resident.bytes());
                listed.insert(user.clone(), Listed { user, path, resident_bytes, loaded: true });
            }
        }
        listed.into_values().collect()
    }

    fn slot(&self, user: &str) -> Arc<Mutex<Slot<B>>> {
        let new = || Arc::new(Mutex::new(Slot { explicit: None, loaded: None }));
        lock(&self.slots).entry(user.to_owned()).or_insert_with(new).clone()
    }

    fn read(&self, user: &str, path: &Path) -> Result<Arc<Resident<B>>, Error> {
        let started = std::time::Instant::now();
        let (variant, hash) = Variant::read_hashed(path)?;
        let resident = Arc::new(Resident::new(&self.model, user, path, variant, hash)?);
        let milliseconds = started.elapsed().as_millis() as u64;
        tracing::info!(user, bytes = resident.bytes(), milliseconds, "variant loaded");
        Ok(resident)
    }

    fn unknown(&self, user: &str) -> Error {
        Error::UnknownUser { user: user.to_owned(), dir: self.dir.clone() }
    }
}

/// The user's file in the folder, where there is one: `ID.safetensors` or `ID/variant.safetensors`, the one that was
/// written last where both are there.
fn find(dir: &Path, user: &str) -> Option<(PathBuf, Stamp)> {
    places(dir, user).into_iter().filter_map(|path| stamp(&path).map(|s| (path, s))).max_by_key(|(_, s)| s.modified)
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
    Ok(find(dir, user).map_or(flat, |(path, _)| path))
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    Some(Stamp { modified: meta.modified().ok(), bytes: meta.len() })
}

/// A lock whose data stays valid when a holder panicked: every change is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
