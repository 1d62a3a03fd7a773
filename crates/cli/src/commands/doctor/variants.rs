//! The variants: how many there are, whether they read, and whether they are of this base.
use super::{Check, chain};
use crate::{commands::progress::Bar, sizes::format_bytes};
use bitdelta_delta::Variant;
use bitdelta_engine::registry::Store;
use bitdelta_model::Base;
use bitdelta_train::progress::Progress;
use std::path::Path;

/// Bytes that are read without `--all`.
const FIRST_BYTES: u64 = 1_000_000_000;
/// Users that are named in a line.
const NAMED: usize = 5;

/// Reads the folder's variants; nothing where there is no folder.
pub(super) fn check(dir: &Path, base: Option<&Base>, all: bool) -> Option<Check> {
    let name = "variants";
    if !dir.is_dir() {
        return None;
    }
    let users = match Store::new(dir.to_owned()).list() {
        Ok(users) => users,
        Err(error) => {
            return Some(Check::problem(name, chain(&error), "give the server's account the right to read it"));
        }
    };
    let bar = Bar::new();
    bar.begin("reading variants", users.len() as u64, "variants");
    let (mut read, mut bytes, mut damaged, mut foreign) = (0usize, 0u64, Vec::new(), Vec::new());
    for (user, path) in &users {
        if !all && bytes >= FIRST_BYTES {
            break;
        }
        read += 1;
        bytes += std::fs::metadata(path).map_or(0, |meta| meta.len());
        match Variant::read(path) {
            Err(error) => damaged.push(format!("{user} ({})", chain(&error))),
            Ok(variant) => {
                if base.is_some_and(|base| base.fingerprint() != variant.info.base) {
                    foreign.push(format!("{user} (made on {})", variant.info.base_name));
                }
            }
        }
        bar.advance(1, "");
    }
    bar.end();
    let mut found = if users.len() == 1 { "1 user".to_owned() } else { format!("{} users", users.len()) };
    if read < users.len() {
        found += &format!(", {read} of them read");
    }
    found += &format!(", {}", format_bytes(bytes));
    let check = if !damaged.is_empty() {
        let found = format!("{found}; {} cannot be read: {}", damaged.len(), some(&damaged));
        Check::problem(name, found, "roll these users back to an older version, publish them anew, or restore a backup")
    } else if !foreign.is_empty() {
        let found = format!("{found}; {} are of another base: {}", foreign.len(), some(&foreign));
        Check::problem(name, found, "serve their base, or move them with `bitdelta rebase`")
    } else if base.is_none() && !users.is_empty() {
        Check::warning(name, format!("{found}, all readable"), "whether they are of your base shows once --model opens")
    } else if read < users.len() {
        Check::ok(name, format!("{found}, all readable; --all reads the rest"))
    } else {
        Check::ok(name, found)
    };
    Some(
        check
            .with("users", users.len())
            .with("read", read)
            .with("damaged", damaged.len())
            .with("foreign", foreign.len()),
    )
}

fn some(names: &[String]) -> String {
    let more = if names.len() > NAMED { ", …" } else { "" };
    format!("{}{more}", names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", "))
}
