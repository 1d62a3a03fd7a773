//! The outermost layer: a safetensors header, three U8 arrays, one hash; and writing it without ever leaving half a file.

use super::VERSION;
use crate::Error;
use safetensors::{Dtype, SafeTensorError, SafeTensors, View};
use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{self, Write},
    path::Path,
};

/// The one key of `__metadata__`. (One, because the library writes several in random order.)
const KEY: &str = "bitdelta";
/// Bytes hashed at once from which BLAKE3 is worth threads.
const PARALLEL_BYTES: usize = 1 << 17;

/// The three arrays of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrays<'a> {
    pub manifest: &'a [u8],
    pub payload: &'a [u8],
    pub info: &'a [u8],
}

/// BLAKE3 (hex) over manifest, payload and info, each led by its length as a little-endian u64, on all cores.
pub(super) fn hash(arrays: &Arrays<'_>) -> String {
    hash_on(arrays, Cores::All)
}

/// Where a hash is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cores {
    /// On all of them.
    All,
    /// On the caller's, where others have work.
    Own,
}

fn hash_on(arrays: &Arrays<'_>, cores: Cores) -> String {
    let mut hasher = blake3::Hasher::new();
    for array in [arrays.manifest, arrays.payload, arrays.info] {
        hasher.update(&(array.len() as u64).to_le_bytes());
        if array.len() < PARALLEL_BYTES || cores == Cores::Own {
            hasher.update(array);
        } else {
            hasher.update_rayon(array);
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// The whole file's bytes. The same arrays give the same bytes.
pub(super) fn assemble(arrays: &Arrays<'_>) -> Result<Vec<u8>, Error> {
    let mut bytes = header(arrays, &format!("{VERSION}:{}", hash(arrays)))
        .map_err(|error| Error::Unwritable { reason: error.to_string() })?;
    bytes.reserve_exact(arrays.info.len() + arrays.manifest.len() + arrays.payload.len());
    for array in [arrays.info, arrays.manifest, arrays.payload] {
        bytes.extend_from_slice(array);
    }
    Ok(bytes)
}

/// The one header (length word included) that these arrays have; they follow it in the order of their names.
fn header(arrays: &Arrays<'_>, stamp: &str) -> Result<Vec<u8>, SafeTensorError> {
    let tensors = [
        ("info", Declared([arrays.info.len()])),
        ("manifest", Declared([arrays.manifest.len()])),
        ("payload", Declared([arrays.payload.len()])),
    ];
    safetensors::serialize(tensors, Some(HashMap::from([(KEY.to_owned(), stamp.to_owned())])))
}

/// A byte array of a stated length whose bytes are written elsewhere: it makes the library write headers alone.
struct Declared([usize; 1]);

impl View for Declared {
    fn dtype(&self) -> Dtype {
        Dtype::U8
    }
    fn shape(&self) -> &[usize] {
        &self.0
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }
    fn data_len(&self) -> usize {
        self.0[0]
    }
}

/// The arrays of a file, and the hash that it states.
pub(super) fn parse<'a>(bytes: &'a [u8], path: &Path) -> Result<(Arrays<'a>, String), Error> {
    let not_a_variant = |reason: String| Error::NotAVariant { path: path.to_owned(), reason };
    let malformed = |reason: &str| Error::Malformed { path: path.to_owned(), section: "header", reason: reason.into() };
    let unreadable = |error| match error {
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength => Error::Truncated {
            path: path.to_owned(),
            reason: format!("its {} bytes do not hold the header", bytes.len()),
        },
        SafeTensorError::MetadataIncompleteBuffer => Error::Truncated {
            path: path.to_owned(),
            reason: format!("its header describes another length than its {} bytes", bytes.len()),
        },
        error => not_a_variant(format!("no safetensors: {error}")),
    };
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
    let stamp = metadata.metadata().as_ref().and_then(|map| map.get(KEY));
    let stamp = stamp.ok_or_else(|| not_a_variant(format!("safetensors without a {KEY:?} stamp")))?;
    let (version, expected) = stamp.split_once(':').ok_or_else(|| malformed("stamp without a hash"))?;
    if version != VERSION.to_string() {
        return Err(Error::UnsupportedVersion { path: path.to_owned(), found: version.into(), supported: VERSION });
    }
    let file = SafeTensors::deserialize(bytes).map_err(unreadable)?;
    let array = |name| match file.tensor(name) {
        Ok(view) if view.dtype() == Dtype::U8 => Ok(view.data()),
        _ => Err(malformed(&format!("no byte array {name:?}"))),
    };
    let arrays = Arrays { manifest: array("manifest")?, payload: array("payload")?, info: array("info")? };
    // The hash leaves out the header; there is exactly one right header for these arrays, and they follow it in order.
    if header(&arrays, stamp).is_ok_and(|header| bytes.starts_with(&header)) {
        Ok((arrays, expected.to_owned()))
    } else {
        verify(&arrays, expected, path, Cores::All)?;
        Err(malformed("not the one header that these arrays have"))
    }
}

/// Compares the arrays with the hash that their file states.
pub(super) fn verify(arrays: &Arrays, expected: &str, path: &Path, cores: Cores) -> Result<(), Error> {
    let found = hash_on(arrays, cores);
    if found == expected {
        return Ok(());
    }
    Err(Error::HashMismatch { path: path.to_owned(), expected: expected.into(), found })
}

/// Writes a temporary file beside `path`, syncs it, renames it over `path` and syncs the folder: after a crash at any
/// point there is the old file or the new one.
pub(super) fn write_atomically(bytes: &[u8], path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".variant-");
    // Temporary files are private by default; a published variant follows the process's umask like any file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}
