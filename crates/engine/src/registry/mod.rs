//! Variants by user: found in the variants folder on first use, loaded once, shared while used, evicted when others need
//! their bytes.
//!
//! A user id is data, never a path: it must be a single plain name, and only `DIR/ID.safetensors`,
//! `DIR/ID/variant.safetensors` and the versions below `DIR/ID` are looked at. Every request looks at its user's file again, so a newer version is served
//! from the next request on, and never inside one: a request keeps what it was given.
//!
//! | file | holds |
//! | --- | --- |
//! | `folder` | where a user's file lies, and which one of them is served |
//! | `store` | the versions that were published: numbered, rolled back, erased |
//! | `flights` | one load a user at a time |
//! | `cache` | what is loaded: handed out, evicted least recently used first, pinned while used |
//! | `budget` | the bytes: promised before they are used, waited for while all are in use |
//! | `sweeper` | gives the system back what was freed |
//!
//! No lock is held while a file is read. Whoever asks for a variant that is loaded never waits for anybody's load.

mod budget;
mod cache;
mod flights;
mod folder;
mod stats;
mod store;
mod sweeper;

pub(crate) use budget::{Lease, Pin};
pub(crate) use cache::Kept;
pub use stats::RegistryStats;
pub use store::{KEPT_VERSIONS, Published, Store};

use crate::{
    Error, Model, Resident,
    backend::Backend,
    cpu::Cpu,
    error::check_memory,
    resident::{Body, WORTH_A_THREAD, side_by_side},
    user::{check_user, user_of},
};
use bitdelta_delta::file::{self, locate};
use bitdelta_kernels::Arena;
use budget::Budget;
use cache::{Cache, Seen};
use flights::Flights;
use folder::{Version, find};
use stats::Counters;
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};
use sweeper::Sweeper;

/// The budget where the system does not tell what memory it has.
const UNKNOWN_MEMORY_BYTES: u64 = 1 << 30;

/// Limits of a registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegistryOptions {
    /// Most bytes that variants may take, those of loads under way included; `None` is a quarter of what the machine has
    /// available.
    pub resident_bytes: Option<u64>,
}

/// The variants that a server can answer with.
pub struct Registry<B: Backend = Cpu> {
    model: Arc<Model<B>>,
    dir: Option<PathBuf>,
    store: Option<Store>,
    explicit: Mutex<HashMap<String, Explicit>>,
    flights: Flights,
    cache: Cache<Body<B>>,
    counters: Counters,
    _sweeper: Sweeper,
}

/// A file that an operator loaded. It is served until something newer is published in the folder.
#[derive(Clone)]
struct Explicit {
    path: PathBuf,
    /// What the folder held for the user then.
    folder_then: Option<Version>,
}

/// One line of [`Registry::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// User id.
    pub user: String,
    /// File.
    pub path: PathBuf,
    /// What is in memory of it; `None` when it is not loaded.
    pub loaded: Option<Residency>,
}

/// A loaded variant, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residency {
    /// Bytes in memory.
    pub bytes: u64,
    /// Content hash.
    pub hash: String,
    /// Whether a request uses it now, so that it is not evicted.
    pub in_use: bool,
    /// When a request last asked for it.
    pub last_used: SystemTime,
}

impl<B: Backend> Registry<B> {
    /// Serves the variants of `dir`, and those that [`Self::load`] brings from elsewhere, within the default budget.
    pub fn new(model: Arc<Model<B>>, dir: Option<PathBuf>) -> Self {
        let available = bitdelta_model::memory::available();
        Self::within(model, dir, available.map_or(UNKNOWN_MEMORY_BYTES, |bytes| bytes / 4))
    }

    /// [`Self::new`] with limits of one's own.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for a budget of 0, [`Error::Memory`] for one that the machine does not have.
    pub fn with_options(model: Arc<Model<B>>, dir: Option<PathBuf>, options: RegistryOptions) -> Result<Self, Error> {
        let Some(needed) = options.resident_bytes else { return Ok(Self::new(model, dir)) };
        if needed == 0 {
            let (name, value, expected) = ("resident_bytes", "0".to_owned(), "1 or more");
            return Err(Error::InvalidParameter { name, value, expected });
        }
        check_memory(|| "the budget for variants".to_owned(), needed)?;
        Ok(Self::within(model, dir, needed))
    }

    fn within(model: Arc<Model<B>>, dir: Option<PathBuf>, budget: u64) -> Self {
        let budget = Budget::new(budget);
        let (explicit, flights, counters) = (Mutex::default(), Flights::default(), Counters::default());
        let (_sweeper, cache) = (Sweeper::start(&budget), Cache::new(budget));
        let store = dir.clone().map(Store::new);
        Self { model, dir, store, explicit, flights, cache, counters, _sweeper }
    }

    /// The user's variant where its newest version is loaded. Does not load, and waits for nobody.
    ///
    /// # Errors
    /// [`Error::InvalidUser`], [`Error::UnknownUser`].
    pub fn loaded(&self, user: &str) -> Result<Option<Arc<Resident<B>>>, Error> {
        check_user(user)?;
        let found = self.cache.get(user, &self.current(user)?);
        self.counters.hits.add(u64::from(found.is_some()));
        Ok(found)
    }

    /// The user's variant, loaded on first use and again after its file changed. Blocks while it loads, and while
    /// requests use all of the budget: a thread that holds one variant must not ask for a second one.
    ///
    /// # Errors
    /// [`Error::InvalidUser`], [`Error::UnknownUser`], [`Error::WrongBase`], [`Error::Shape`], [`Error::VariantTooLarge`],
    /// or [`Error::Variant`] for a file that cannot be read or is damaged: never another answer in its place.
    pub fn resolve(&self, user: &str) -> Result<Arc<Resident<B>>, Error> {
        if let Some(resident) = self.loaded(user)? {
            return Ok(resident);
        }
        self.counters.misses.add(1);
        self.flights.alone(user, || {
            let version = self.current(user)?;
            // Whoever was here first may have loaded it.
            if let Some(resident) = self.cache.get(user, &version) {
                return Ok(resident);
            }
            // What there is is out of date: it makes room, and must not be served should the new version be bad.
            self.cache.remove(user);
            self.read(user, &version.path)
        })
    }

    /// Loads a variant file, or a folder that holds one, under the user id that its name gives.
    ///
    /// # Errors
    /// As [`Self::resolve`]; what was served for that user before stays.
    pub fn load(&self, path: &Path) -> Result<Arc<Resident<B>>, Error> {
        let user = user_of(path)?;
        let path = locate(path);
        self.flights.alone(&user, || {
            let resident = self.read(&user, &path)?;
            let folder_then = self.dir.as_deref().and_then(|dir| find(dir, &user));
            let mut explicit = lock(&self.explicit);
            match &folder_then {
                // It was published since.
                Some(published) if published.path == path => explicit.remove(&user),
                _ => explicit.insert(user.clone(), Explicit { path, folder_then }),
            };
            Ok(resident)
        })
    }

    /// Forgets a user's variant: its memory is freed at once, or when the last request that uses it ends. Returns whether
    /// it was loaded, or known by an operator's load alone. A variant of the folder is found again when it is asked for.
    ///
    /// # Errors
    /// [`Error::InvalidUser`].
    pub fn unload(&self, user: &str) -> Result<bool, Error> {
        check_user(user)?;
        let known = lock(&self.explicit).remove(user).is_some();
        Ok(self.cache.remove(user) || known)
    }

    /// The versions in the folder; `None` without one.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Checks a file as if it were served for the user, within the budget, and returns its content hash.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn check(&self, user: &str, path: &Path) -> Result<String, Error> {
        check_user(user)?;
        let (_, body) = self.read_within_budget(user, path)?;
        Ok(body.hash().to_owned())
    }

    /// Whether the user has a variant. It is not opened.
    pub fn has(&self, user: &str) -> bool {
        check_user(user).is_ok() && self.current(user).is_ok()
    }

    /// All variants, loaded or waiting in the folder, by user id. Reads the whole folder.
    pub fn list(&self) -> Vec<Listed> {
        let on_disk = self.store.iter().filter_map(|store| store.list().ok()).flatten();
        let mut listed: BTreeMap<String, Listed> =
            on_disk.map(|(user, path)| (user.clone(), Listed { user, path, loaded: None })).collect();
        for (user, Explicit { path, .. }) in lock(&self.explicit).iter() {
            let line = Listed { user: user.clone(), path: path.clone(), loaded: None };
            listed.insert(user.clone(), line);
        }
        for seen in self.cache.list() {
            let (user, path) = (seen.user.to_string(), seen.kept.path().to_owned());
            let loaded = Some(residency(seen));
            listed.insert(user.clone(), Listed { user, path, loaded });
        }
        listed.into_values().collect()
    }

    /// One user's line of [`Self::list`]. Looks at that user alone.
    ///
    /// # Errors
    /// [`Error::InvalidUser`], [`Error::UnknownUser`].
    pub fn listed(&self, user: &str) -> Result<Listed, Error> {
        check_user(user)?;
        let path = self.current(user)?.path;
        let loaded = self.cache.see(user).filter(|seen| seen.kept.path() == path).map(residency);
        Ok(Listed { user: user.to_owned(), path, loaded })
    }

    /// Figures.
    pub fn stats(&self) -> RegistryStats {
        let (taken, (resident, pinned)) = (self.cache.budget().taken(), self.cache.count());
        RegistryStats {
            budget_bytes: self.cache.budget().limit(),
            resident_bytes: taken.resident,
            loading_bytes: taken.loading,
            resident,
            pinned,
            waiting: taken.waiting,
            hits: self.counters.hits.get(),
            misses: self.counters.misses.get(),
            loads: self.counters.loads.get(),
            failed_loads: self.counters.failed_loads.get(),
            evictions: self.cache.evictions(),
            load_time: std::time::Duration::from_nanos(self.counters.load_nanoseconds.get()),
        }
    }

    /// The version that is to be served now.
    fn current(&self, user: &str) -> Result<Version, Error> {
        let in_folder = || self.dir.as_deref().and_then(|dir| find(dir, user));
        let explicit = lock(&self.explicit).get(user).cloned();
        let version = match explicit {
            None => in_folder(),
            Some(explicit) if explicit.folder_then == in_folder() => Version::of(&explicit.path),
            // A publication after an operator's load is the newer word, unless the load was made just now.
            Some(explicit) => {
                let mut all = lock(&self.explicit);
                if all.get(user).is_some_and(|now| now.folder_then == explicit.folder_then) {
                    all.remove(user);
                }
                in_folder()
            }
        };
        version.ok_or_else(|| {
            // What was withdrawn takes no memory.
            self.cache.remove(user);
            Error::UnknownUser { user: user.to_owned(), dir: self.dir.clone() }
        })
    }

    /// Reads a file into the cache as the user's variant.
    fn read(&self, user: &str, path: &Path) -> Result<Arc<Resident<B>>, Error> {
        let read = self.read_within_budget(user, path);
        match &read {
            Ok(_) => self.counters.loads.add(1),
            Err(_) => self.counters.failed_loads.add(1),
        }
        let (version, body) = read?;
        Ok(self.cache.insert(user, version, body))
    }

    /// A load needs the file's bytes and as many again for what they are decoded to; that is freed as it is moved to the
    /// device. A device's layout that takes more than both shows when it is made: the load then gives everything back and
    /// asks for that much, so that loads never wait for each other with their hands full.
    fn read_within_budget(&self, user: &str, path: &Path) -> Result<(Version, Body<B>), Error> {
        let io = |source| Error::Variant(file::Error::Io { path: path.to_owned(), source });
        // Asked before it is opened: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            let reason = "no regular file".to_owned();
            return Err(Error::Variant(file::Error::NotAVariant { path: path.to_owned(), reason }));
        }
        // From here on it is this file that counts, whatever takes its place while the load waits.
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        let file_bytes = meta.len();
        let budget = self.cache.budget().limit();
        let too_large = |needed| Error::VariantTooLarge { user: user.to_owned(), needed, budget };
        if file_bytes > budget {
            return Err(too_large(file_bytes));
        }
        let mut planned = file_bytes.saturating_mul(2);
        loop {
            let lease = self.cache.promise(planned);
            let started = Instant::now();
            let mut bytes = Arena::new(file_bytes as usize).take::<u8>(file_bytes as usize);
            read_whole(&file, &mut bytes).map_err(io)?;
            let mut body = Body::read(&self.model, user, path, &bytes)?;
            drop(bytes);
            let elapsed = started.elapsed();
            self.counters.load_nanoseconds.add(elapsed.as_nanos() as u64);
            let bytes = body.memory_bytes();
            if bytes > budget {
                return Err(too_large(bytes));
            }
            if let Some(lease) = self.cache.settle(lease, bytes) {
                body.keep(lease);
                tracing::info!(user, bytes, milliseconds = elapsed.as_millis() as u64, "variant loaded");
                return Ok((Version::with(path, &meta), body));
            }
            planned = file_bytes.saturating_add(bytes);
        }
    }
}

/// Reads an open file from its beginning, a large one by two threads: most of the time goes into fresh memory.
#[cfg(unix)]
fn read_whole(file: &File, to: &mut [u8]) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    if to.len() < WORTH_A_THREAD {
        return file.read_exact_at(to, 0);
    }
    let (first, second) = to.split_at_mut(to.len() / 2);
    let at = first.len() as u64;
    let (first, second) = side_by_side(|| file.read_exact_at(first, 0), || file.read_exact_at(second, at));
    first.and(second)
}

/// Reads an open file from its beginning.
#[cfg(not(unix))]
fn read_whole(mut file: &File, to: &mut [u8]) -> io::Result<()> {
    use std::io::{Read, Seek};
    file.rewind()?;
    file.read_exact(to)
}

fn residency<B: Backend>(seen: Seen<Body<B>>) -> Residency {
    let (bytes, hash) = (seen.kept.memory_bytes(), seen.kept.hash().to_owned());
    Residency { bytes, hash, in_use: seen.in_use, last_used: seen.last_used }
}

/// A lock whose data stays valid when a holder panicked: nothing that can panic runs between two changes that belong
/// together.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
