//! What root makes in another account's folder is that account's: a service that runs as a user of its own has to read and
//! change what an operator puts there.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
};

/// Gives what root has just made at `made` to the owner of `like`, a file that it replaces or the folder it lies in. What
/// another account made stays its own.
///
/// # Errors
/// What the system reports of either path.
pub fn hand_over(made: &Path, like: &Path) -> io::Result<()> {
    let (made_by, wanted) = (fs::metadata(made)?, fs::metadata(like)?);
    if made_by.uid() == 0 && wanted.uid() != 0 {
        chown(made, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    Ok(())
}

/// [`fs::create_dir_all`], each new folder handed over to the owner of the one it lies in.
///
/// # Errors
/// What the system reports.
pub fn create_dir_all(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir_all(parent)?;
    match fs::create_dir(folder) {
        Ok(()) => hand_over(folder, parent),
        // Another was quicker.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: u32 = 61_234;

    /// Only root may give files away; for others there is nothing to do.
    #[test]
    fn what_root_makes_belongs_to_the_owner_of_its_folder() {
        let dir = tempfile::tempdir().expect("a folder");
        let home = dir.path().join("home");
        create_dir_all(&home).expect("made");
        let root = fs::metadata(&home).expect("there").uid() == 0;
        if root {
            chown(&home, Some(SERVICE), Some(SERVICE)).expect("root may");
        }
        let below = home.join("a/b");
        create_dir_all(&below).expect("made");
        create_dir_all(&below).expect("it is there");
        let file = below.join("file");
        fs::write(&file, "x").expect("written");
        hand_over(&file, &below).expect("handed over");
        let owner = fs::metadata(&home).expect("there").uid();
        for made in [&home.join("a"), &below, &file] {
            assert_eq!(fs::metadata(made).expect("there").uid(), owner, "{}", made.display());
        }
    }
}
