//! Read-only files in memory: the one place that maps a file.
//!
//! A mapped file that another process truncates raises SIGBUS on access. Base models are mapped (they are large
//! and the operator owns them); a variant file, which is untrusted, is read into memory instead.

use std::{fs::File, io, ops::Deref, path::Path};

/// A whole file mapped read-only.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// What opening or mapping the file returns; an empty file is an error of kind `InvalidInput`.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: `Mmap::map` requires that the file is not changed while it is mapped. The caller opens base
        // models, which the operator promises to leave in place while a process uses them (see the module docs).
        unsafe { memmap2::Mmap::map(&file) }.map(Self)
    }

    /// Gives back the memory of what was read; it is read again where it is asked for again.
    pub fn forget(&self) {
        #[cfg(unix)]
        // SAFETY: the mapping is read-only and of a file: dropped pages come back from it with the same bytes.
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
