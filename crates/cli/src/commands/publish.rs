//! `bitdelta publish`: a checked variant into a server's folder, whole or not at all.
use crate::{Context, Error, commands::variants::user_of, output};
use bitdelta_delta::file::{Variant, locate};
use bitdelta_engine::registry;
use std::{
    fs::File,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Arguments of `publish`.
#[derive(Debug, Clone, clap::Args)]
pub struct PublishArgs {
    /// Variant file, or a folder that holds a variant.safetensors
    #[arg(value_name = "VARIANT")]
    variant: PathBuf,
    /// Folder that servers read variants from
    #[arg(long, value_name = "DIR")]
    variants_dir: PathBuf,
    /// User id; by default what the variant's name gives
    #[arg(long, value_name = "USER")]
    user: Option<String>,
}

/// Copies the variant beside its place, checks the copy, and renames it into place: a server that reads meanwhile
/// finds the old variant or the new one.
///
/// # Errors
/// A variant that does not read, a user id that is no file name, or I/O.
pub fn run(args: &PublishArgs) -> Result<(), Error> {
    let user = match &args.user {
        Some(user) => user.clone(),
        None => user_of(&args.variant)?,
    };
    let target = publish(&args.variant, &args.variants_dir, &user)?;
    output::line(&format!("published {user} as {}", target.display()))
}

/// Publishes `variant` as `user`'s into `dir`, which is made if it is not there. Returns the file's place.
///
/// # Errors
/// As [`run`].
pub fn publish(variant: &Path, dir: &Path, user: &str) -> Result<PathBuf, Error> {
    let target = place(dir, user)?;
    copy_checked(&locate(variant), &target)?;
    Ok(target)
}

/// Where the user's variant goes in the folder.
fn place(dir: &Path, user: &str) -> Result<PathBuf, Error> {
    registry::place(dir, user).map_err(|error| Error::Usage(error.to_string()))
}

fn copy_checked(source: &Path, target: &Path) -> Result<(), Error> {
    let doing = || format!("publishing {} as {}", source.display(), target.display());
    let folder = target.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).context(doing())?;
    Variant::read(source).context(format!("checking {}", source.display()))?;
    // Readable by a server of another account, as far as the umask lets it.
    let mode = std::fs::Permissions::from_mode(0o644);
    let mut copy =
        tempfile::Builder::new().prefix(".publish-").permissions(mode).tempfile_in(folder).context(doing())?;
    let mut from = File::open(source).context(doing())?;
    std::io::copy(&mut from, copy.as_file_mut()).context(doing())?;
    Variant::read(copy.path()).context(doing())?;
    copy.as_file().sync_all().context(doing())?;
    copy.persist(target).context(doing())?;
    File::open(folder).and_then(|folder| folder.sync_all()).context(doing())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_is_a_file_name_and_nothing_else() {
        for user in ["", "..", ".hidden", "a/b", "a\\b", "a\0"] {
            assert!(place(Path::new("v"), user).is_err(), "{user:?}");
        }
        assert_eq!(place(Path::new("v"), "ann").ok(), Some(PathBuf::from("v/ann.safetensors")));
    }

    #[test]
    fn what_is_no_variant_is_not_published() {
        let dir = tempfile::tempdir().expect("a folder");
        let source = dir.path().join("x");
        std::fs::write(&source, b"not a variant").expect("written");
        let target = dir.path().join("v/ann.safetensors");
        assert!(copy_checked(&source, &target).is_err());
        assert!(!target.exists());
        let left = std::fs::read_dir(dir.path().join("v")).expect("a folder").count();
        assert_eq!(left, 0, "no temporary file stays behind");
    }
}
