//! The key file: a JSON list of what each key allows, with the key's BLAKE3 hash in its place.
//!
//! Keys are 256 random bits, so a plain hash is enough: there is nothing to guess, and equal hashes are found by look-up.
//! A key is shown once, when it is made. The file is replaced whole, under a lock, so that `bitdelta keys` and a
//! running server never see half of it; the server looks at it with every request and reads it again when it changed.
//! One that cannot be read leaves the last good one in force and says so in the log: an editor's slip must not
//! shut everybody out.
use super::{Grant, Limits, Right, Users};
use bitdelta_engine::owner;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

/// What a key begins with, so that people and secret scanners know it.
const PREFIX: &str = "bd-";

/// Why a key file cannot be used or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// It cannot be read or written.
    #[error("{doing} the key file {}", path.display())]
    Io {
        /// "reading", "writing".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is not what `bitdelta keys` writes.
    #[error("{} is no key file: {reason}; `bitdelta keys add --key-file FILE` makes one", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// A user id that no request could name.
    #[error(transparent)]
    User(#[from] bitdelta_engine::Error),
}

/// One key, as the file holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// What it is called in lists, in the log and by `revoke`. No secret.
    pub id: String,
    /// BLAKE3 of the key (hex).
    pub hash: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Whom it may ask for.
    pub users: Users,
    /// What it may do.
    pub rights: BTreeSet<Right>,
    /// Keys of one tenant share turns, queue and cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Requests and tokens a minute.
    #[serde(flatten)]
    pub limits: Limits,
    /// Unix seconds.
    pub created: u64,
}

/// What is said of a key that is to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct NewKey {
    /// For people.
    pub note: String,
    /// Whom it may ask for.
    pub users: Users,
    /// What it may do.
    pub rights: BTreeSet<Right>,
    /// See [`Key::tenant`].
    pub tenant: Option<String>,
    /// Requests and tokens a minute.
    pub limits: Limits,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    keys: Vec<Key>,
}

/// Adds a key to the file, which is made if it is not there. Returns the key itself, which is nowhere else.
///
/// # Errors
/// [`KeysError`].
pub fn add(path: &Path, new: NewKey) -> Result<(String, Key), KeysError> {
    if let Users::Only(users) = &new.users {
        users.iter().try_for_each(|user| bitdelta_engine::user::check_user(user))?;
    }
    let secret = format!("{PREFIX}{}", random_hex::<32>()?);
    let NewKey { note, users, rights, tenant, limits } = new;
    let created = crate::service::unix_seconds();
    let key = Key {
        id: format!("key-{}", random_hex::<6>()?),
        hash: hash(&secret),
        note,
        users,
        rights,
        tenant,
        limits,
        created,
    };
    change(path, |contents| contents.keys.push(key.clone()))?;
    Ok((secret, key))
}

/// Takes a key out of the file. False when it has none of this id.
///
/// # Errors
/// [`KeysError`].
pub fn revoke(path: &Path, id: &str) -> Result<bool, KeysError> {
    let mut found = false;
    change(path, |contents| {
        let before = contents.keys.len();
        contents.keys.retain(|key| key.id != id);
        found = contents.keys.len() < before;
    })?;
    Ok(found)
}

/// The keys of the file.
///
/// # Errors
/// [`KeysError`].
pub fn list(path: &Path) -> Result<Vec<Key>, KeysError> {
    Ok(read(path)?.keys)
}

fn read(path: &Path) -> Result<Contents, KeysError> {
    let bytes = fs::read(path).map_err(|source| KeysError::Io { doing: "reading", path: path.to_owned(), source })?;
    let malformed = |reason: String| KeysError::Malformed { path: path.to_owned(), reason };
    let contents: Contents = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    let mut ids = BTreeSet::new();
    match contents.keys.iter().find(|key| key.id.is_empty() || !ids.insert(&key.id)) {
        Some(key) => Err(malformed(format!("the id {:?} is empty or there twice", key.id))),
        None => Ok(contents),
    }
}

/// Changes the file under a lock beside it; a reader sees the old file or the new one.
fn change(path: &Path, edit: impl FnOnce(&mut Contents)) -> Result<(), KeysError> {
    let io = |source| KeysError::Io { doing: "writing", path: path.to_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    owner::create_dir_all(folder).map_err(io)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&beside).map_err(io)?;
    owner::hand_over(Path::new(&beside), folder).map_err(io)?;
    lock.lock().map_err(io)?;
    let mut contents = match read(path) {
        Err(KeysError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Contents::default(),
        contents => contents?,
    };
    edit(&mut contents);
    let text = serde_json::to_string_pretty(&contents).map_err(|error| io(error.into()))?;
    // Readable by its owner alone, as temporary files are made: the server's account, where root changes its keys.
    let mut file = tempfile::Builder::new().prefix(".keys-").tempfile_in(folder).map_err(io)?;
    owner::hand_over(file.path(), if path.exists() { path } else { folder }).map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(io)?;
    file.persist(path).map_err(|error| io(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

fn hash(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

fn random_hex<const N: usize>() -> Result<String, KeysError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| KeysError::Random(error.to_string()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The key file of a running server.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    /// Which file was read; `None` when it was not there.
    stamp: Option<Stamp>,
    by_hash: HashMap<String, Grant>,
}

/// A file that was replaced or written is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64, u64);

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let of = |meta: Metadata| Self(meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len());
        fs::metadata(path).ok().map(of)
    }
}

impl KeyFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`KeysError`], also when it is not there: a server that nobody could ask is a mistake.
    pub fn open(path: &Path) -> Result<Self, KeysError> {
        let stamp = Stamp::of(path);
        let by_hash = grants(read(path)?);
        Ok(Self { path: path.to_owned(), state: RwLock::new(State { stamp, by_hash }) })
    }

    /// What the key allows, as the file says now.
    pub(super) fn find(&self, secret: &str) -> Option<Grant> {
        self.refresh();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.by_hash.get(&hash(secret)).cloned()
    }

    /// Reads the file again if it is another one than before.
    fn refresh(&self) {
        // Before the file is read, so that a change in between is seen the next time.
        let stamp = Stamp::of(&self.path);
        if self.state.read().unwrap_or_else(PoisonError::into_inner).stamp == stamp {
            return;
        }
        let contents = read(&self.path);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.stamp = stamp;
        match contents {
            Ok(contents) => {
                state.by_hash = grants(contents);
                tracing::info!(keys = state.by_hash.len(), "the key file was read again");
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "the key file changed and cannot be used: the former keys stay in force");
            }
        }
    }
}

fn grants(contents: Contents) -> HashMap<String, Grant> {
    let grant = |key: Key| {
        let grant = Grant::of_key(&key.id, key.users, key.rights, key.tenant.as_deref(), key.limits);
        (key.hash, grant)
    };
    contents.keys.into_iter().map(grant).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(user: &str) -> NewKey {
        NewKey {
            note: "a note".to_owned(),
            users: Users::Only(BTreeSet::from([user.to_owned()])),
            rights: BTreeSet::from([Right::Chat]),
            tenant: None,
            limits: Limits { requests_per_minute: Some(3), tokens_per_minute: None },
        }
    }

    #[test]
    fn keys_are_added_found_and_revoked_while_a_server_runs() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("deep/keys.json");
        assert!(matches!(KeyFile::open(&path), Err(KeysError::Io { .. })), "no file");
        let (ann, listed) = add(&path, new("ann")).expect("added");
        let server = KeyFile::open(&path).expect("a key file");
        assert!(server.find(&ann).is_some_and(|grant| grant.covers("ann") && !grant.covers("bob")));
        let (bob, _) = add(&path, new("bob")).expect("added");
        assert!(server.find(&bob).is_some_and(|grant| grant.covers("bob")));
        assert!(revoke(&path, &listed.id).expect("changed") && !revoke(&path, &listed.id).expect("changed"));
        assert!(server.find(&ann).is_none() && server.find(&bob).is_some());
    }

    #[test]
    fn the_file_holds_no_key_and_is_its_owners() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("keys.json");
        let (secret, key) = add(&path, new("ann")).expect("added");
        assert!(secret.starts_with(PREFIX) && secret.len() == PREFIX.len() + 64);
        let text = fs::read_to_string(&path).expect("text");
        assert!(!text.contains(&secret[PREFIX.len()..]) && text.contains(&key.hash), "{text}");
        assert_eq!(fs::metadata(&path).expect("a file").mode() & 0o777, 0o600);
        assert_eq!(list(&path).expect("a list"), [key]);
    }

    #[test]
    fn a_damaged_file_leaves_the_former_keys_in_force() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("keys.json");
        let (ann, _) = add(&path, new("ann")).expect("added");
        let server = KeyFile::open(&path).expect("a key file");
        fs::write(&path, b"{\"keys\": [").expect("written");
        assert!(server.find(&ann).is_some());
        assert!(matches!(KeyFile::open(&path), Err(KeysError::Malformed { .. })));
        assert!(matches!(add(&path, new("bob")), Err(KeysError::Malformed { .. })), "what it cannot read it keeps");
        fs::write(&path, b"{\"keys\": []}").expect("written");
        assert!(server.find(&ann).is_none());
    }

    #[test]
    fn a_user_that_no_request_could_name_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(matches!(add(&dir.path().join("keys.json"), new("../ann")), Err(KeysError::User(_))));
    }
}
