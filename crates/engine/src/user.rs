//! User ids: names that a variant's file can carry, and nothing more.

use crate::Error;
use bitdelta_delta::file::FILE_NAME;
use std::path::Path;

/// Longest user id, in bytes: a file name's limit less its extension.
const MAX_BYTES: usize = 200;

/// The extension of a variant file named after its user.
pub(crate) const EXTENSION: &str = ".safetensors";

/// The user that a variant's file or folder is named after: the last part of the path without the extension; a
/// `variant.safetensors` is its folder's.
///
/// # Errors
/// [`Error::InvalidUser`] when that is no user id.
pub fn user_of(path: &Path) -> Result<String, Error> {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let user = match (name(path), path.parent().and_then(name)) {
        (Some(file), Some(folder)) if file == FILE_NAME => folder,
        (Some(name), _) => name.strip_suffix(EXTENSION).unwrap_or(&name).to_owned(),
        (None, _) => {
            let reason = "the path's last part names the user, and this path has none";
            return Err(Error::InvalidUser { user: path.display().to_string(), reason });
        }
    };
    check_user(&user).map(|()| user)
}

/// Refuses ids that are not a single plain name.
///
/// # Errors
/// [`Error::InvalidUser`] with the reason.
pub fn check_user(user: &str) -> Result<(), Error> {
    let reason = if user.is_empty() {
        "it is empty"
    } else if user.len() > MAX_BYTES {
        "it is longer than 200 bytes"
    } else if user.starts_with('.') {
        "it starts with a dot"
    } else if user.chars().any(|c| matches!(c, '/' | '\\' | ':') || c.is_control()) {
        "it holds a slash, a backslash, a colon or a control character"
    } else {
        return Ok(());
    };
    Err(Error::InvalidUser { user: user.chars().take(MAX_BYTES).collect(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_a_path_names_the_user() {
        for path in ["ann", "v/ann", "v/ann/", "v/ann.safetensors", "v/ann/variant.safetensors"] {
            assert_eq!(user_of(Path::new(path)).unwrap(), "ann", "{path}");
        }
        // A lone variant.safetensors is in no folder that could name a user.
        assert_eq!(user_of(Path::new("variant.safetensors")).unwrap(), "variant");
    }

    #[test]
    fn what_is_no_single_plain_name_is_refused() {
        for user in ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0", "a\n", "a:b", &"x".repeat(201)] {
            assert!(check_user(user).is_err(), "{user:?}");
        }
        for path in ["..", "/", "v/.hidden"] {
            assert!(user_of(Path::new(path)).is_err(), "{path}");
        }
        assert!(check_user("Zoë +1 (2)").is_ok());
    }
}
