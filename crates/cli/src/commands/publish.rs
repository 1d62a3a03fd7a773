//! `bitdelta publish`: a checked variant into a server's folder as its user's newest version, whole or not at all.
use crate::{Context, Error, commands::variants::user_of, output};
use bitdelta_delta::file::{Variant, locate};
use bitdelta_engine::{
    registry::{Published, Store},
    user::check_user,
};
use serde_json::json;
use std::{
    fs::File,
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
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Copies the variant into the folder, checks the copy, and makes it the user's newest version: a server that reads
/// meanwhile finds the old variant or the new one.
///
/// # Errors
/// A variant that does not read, a user id that is no file name, or I/O.
pub fn run(args: &PublishArgs) -> Result<(), Error> {
    let user = match &args.user {
        Some(user) => user.clone(),
        None => user_of(&args.variant)?,
    };
    let published = publish(&args.variant, &args.variants_dir, &user)?;
    if args.json {
        let Published { number, hash, bytes, .. } = published;
        let dir = &args.variants_dir;
        let figures = json!({"user_id": user, "version": number, "content_hash": hash, "bytes": bytes, "dir": dir});
        return output::line(&figures.to_string());
    }
    output::line(&format!("published {user} as version {} in {}", published.number, args.variants_dir.display()))
}

/// Publishes `variant` as `user`'s into `dir`, which is made if it is not there.
///
/// # Errors
/// As [`run`].
pub fn publish(variant: &Path, dir: &Path, user: &str) -> Result<Published, Error> {
    check_user(user).map_err(|error| Error::Usage(error.to_string()))?;
    let source = locate(variant);
    let doing = || format!("publishing {} for {user}", source.display());
    Variant::read(&source).context(format!("checking {}", source.display()))?;
    let store = Store::new(dir.to_owned());
    let mut copy = store.incoming().context(doing())?;
    let mut from = File::open(&source).context(doing())?;
    std::io::copy(&mut from, copy.as_file_mut()).context(doing())?;
    let (_, hash) = Variant::read_hashed(copy.path()).context(doing())?;
    store.publish(user, copy, &hash).context(doing())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_variant_is_not_published() {
        let dir = tempfile::tempdir().expect("a folder");
        let (source, variants) = (dir.path().join("x"), dir.path().join("v"));
        std::fs::write(&source, b"not a variant").expect("written");
        assert!(publish(&source, &variants, "ann").is_err());
        assert!(!variants.exists(), "nothing was begun");
        assert!(matches!(publish(&source, &variants, "../ann"), Err(Error::Usage(_))));
    }
}
