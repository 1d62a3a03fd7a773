//! Variants by user: found, loaded once, replaced, refused.

mod common;

use bitdelta_delta::Variant;
use bitdelta_engine::{Error, Registry};
use common::{model, variant};
use std::{fs, path::Path, sync::Arc, thread};
use tempfile::tempdir;

fn publish(variant: &Variant, dir: &Path, user: &str) -> std::path::PathBuf {
    let path = dir.join(format!("{user}.safetensors"));
    variant.write(&path).expect("a written variant");
    path
}

#[test]
fn a_file_or_a_folder_is_found_on_first_use_and_loaded_once() {
    let (dir, model) = (tempdir().unwrap(), model());
    publish(&variant(&model, 1), dir.path(), "ada");
    fs::create_dir(dir.path().join("bob")).unwrap();
    variant(&model, 2).write(&dir.path().join("bob/variant.safetensors")).unwrap();
    let registry = Registry::new(model, Some(dir.path().to_owned()));
    let listed =
        |registry: &Registry| registry.list().iter().map(|v| (v.user.clone(), v.loaded.is_some())).collect::<Vec<_>>();
    assert_eq!(listed(&registry), [("ada".into(), false), ("bob".into(), false)]);

    let loaded: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| registry.resolve("ada").unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(loaded.iter().all(|resident| Arc::ptr_eq(resident, &loaded[0])), "loaded more than once");
    assert_ne!(loaded[0].hash(), registry.resolve("bob").unwrap().hash());
    assert_eq!(listed(&registry), [("ada".into(), true), ("bob".into(), true)]);
    let ada = registry.list()[0].loaded.clone().unwrap();
    assert!(ada.bytes > 0 && ada.in_use && ada.hash == loaded[0].hash());
    let stats = registry.stats();
    assert_eq!((stats.hits + stats.misses, stats.loads, stats.resident), (9, 2, 2));
    drop(loaded);
    assert_eq!(registry.stats().pinned, 0);
}

#[test]
fn a_new_version_is_served_from_the_next_request_on() {
    let (dir, model) = (tempdir().unwrap(), model());
    publish(&variant(&model, 1), dir.path(), "ada");
    let registry = Registry::new(model.clone(), Some(dir.path().to_owned()));
    let before = registry.resolve("ada").unwrap();
    // Another size, since two writes may fall into one tick of the file system's clock.
    let mut replacement = variant(&model, 2);
    replacement.info.base_name.push_str(", another version, of another length");
    publish(&replacement, dir.path(), "ada");
    let after = registry.resolve("ada").unwrap();
    assert_ne!(before.hash(), after.hash());
    let both = before.memory_bytes() + after.memory_bytes();
    assert_eq!(registry.stats().resident_bytes, both, "the old version counts until its last request has ended");
    drop(before);
    assert_eq!(registry.stats().resident_bytes, after.memory_bytes());
}

#[test]
fn unloading_frees_the_memory_when_the_last_request_ends() {
    let (dir, model) = (tempdir().unwrap(), model());
    publish(&variant(&model, 1), dir.path(), "ada");
    let registry = Registry::new(model, Some(dir.path().to_owned()));
    let used = registry.resolve("ada").unwrap();
    assert!(registry.unload("ada").unwrap());
    assert_eq!(registry.stats().resident_bytes, used.memory_bytes());
    assert!(!registry.unload("ada").unwrap(), "it was not loaded any more");
    assert!(registry.list()[0].loaded.is_none());
    drop(used);
    assert_eq!(registry.stats().resident_bytes, 0);
}

#[test]
fn a_variant_loaded_from_elsewhere_is_named_after_its_path_and_forgotten_on_unload() {
    let (dir, model) = (tempdir().unwrap(), model());
    let folder = dir.path().join("user_123");
    fs::create_dir(&folder).unwrap();
    variant(&model, 1).write(&folder.join("variant.safetensors")).unwrap();
    let registry = Registry::new(model, None);
    assert_eq!(registry.load(&folder).unwrap().user(), "user_123");
    assert_eq!(registry.load(&folder.join("variant.safetensors")).unwrap().user(), "user_123");
    registry.resolve("user_123").unwrap();
    assert!(registry.unload("user_123").unwrap());
    assert!(matches!(registry.resolve("user_123"), Err(Error::UnknownUser { .. })));
}

#[test]
fn a_damaged_or_foreign_variant_is_an_error_and_never_the_base() {
    let (dir, model) = (tempdir().unwrap(), model());
    let path = publish(&variant(&model, 1), dir.path(), "damaged");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut foreign = variant(&model, 1);
    foreign.info.base = "0".repeat(64);
    publish(&foreign, dir.path(), "foreign");
    let mut misfit = variant(&model, 1);
    misfit.linears.swap(0, 1);
    publish(&misfit, dir.path(), "misfit");
    let registry = Registry::new(model, Some(dir.path().to_owned()));
    assert!(matches!(registry.resolve("damaged"), Err(Error::Variant(_))));
    assert!(matches!(registry.resolve("foreign"), Err(Error::WrongBase { .. })));
    assert!(matches!(registry.resolve("misfit"), Err(Error::Shape { .. })));
    assert!(matches!(registry.resolve("nobody"), Err(Error::UnknownUser { .. })));
}

#[test]
fn a_variant_that_turns_bad_is_not_served_from_memory() {
    let (dir, model) = (tempdir().unwrap(), model());
    let path = publish(&variant(&model, 1), dir.path(), "ada");
    let registry = Registry::new(model, Some(dir.path().to_owned()));
    registry.resolve("ada").unwrap();
    fs::write(&path, b"not a variant").unwrap();
    assert!(matches!(registry.resolve("ada"), Err(Error::Variant(_))));
    fs::remove_file(&path).unwrap();
    assert!(matches!(registry.resolve("ada"), Err(Error::UnknownUser { .. })));
}

#[test]
fn a_user_id_is_a_name_and_never_a_path() {
    let (dir, model) = (tempdir().unwrap(), model());
    let inside = dir.path().join("inside");
    fs::create_dir(&inside).unwrap();
    publish(&variant(&model, 1), dir.path(), "secret");
    let registry = Registry::new(model, Some(inside));
    let long = "x".repeat(201);
    for user in ["../secret", "..", ".", "", "a/b", "a\\b", "/etc/passwd", "a\0b", "a:b", ".hidden", &long] {
        assert!(matches!(registry.resolve(user), Err(Error::InvalidUser { .. })), "{user:?}");
        assert!(matches!(registry.unload(user), Err(Error::InvalidUser { .. })), "{user:?}");
    }
}

#[test]
fn of_a_file_and_a_folder_the_one_written_last_is_served_until_something_is_published() {
    let (dir, model) = (tempdir().unwrap(), model());
    let flat = publish(&variant(&model, 1), dir.path(), "ada");
    let registry = Registry::new(model.clone(), Some(dir.path().to_owned()));
    let first = registry.resolve("ada").unwrap();
    fs::create_dir(dir.path().join("ada")).unwrap();
    let folder = dir.path().join("ada/variant.safetensors");
    variant(&model, 2).write(&folder).unwrap();
    let later = fs::metadata(&flat).unwrap().modified().unwrap() + std::time::Duration::from_secs(1);
    fs::File::options().append(true).open(&folder).unwrap().set_modified(later).unwrap();
    let second = registry.resolve("ada").unwrap();
    assert_ne!(first.hash(), second.hash());
    let store = registry.store().unwrap();
    let mut incoming = store.incoming().unwrap();
    let third = variant(&model, 3);
    std::io::Write::write_all(incoming.as_file_mut(), &third.to_bytes().unwrap()).unwrap();
    // Older than what lies in the folder would be no newest version.
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::options().append(true).open(&folder).unwrap().set_modified(past).unwrap();
    store.publish("ada", incoming, &third.content_hash().unwrap()).unwrap();
    assert_eq!(registry.resolve("ada").unwrap().hash(), third.content_hash().unwrap());
}

#[test]
fn what_is_published_after_an_operators_load_takes_its_place() {
    let (dir, elsewhere, model) = (tempdir().unwrap(), tempdir().unwrap(), model());
    publish(&variant(&model, 1), dir.path(), "ada");
    let loaded = publish(&variant(&model, 2), elsewhere.path(), "ada");
    let registry = Registry::new(model.clone(), Some(dir.path().to_owned()));
    let hash = registry.load(&loaded).unwrap().hash().to_owned();
    assert_eq!(registry.resolve("ada").unwrap().hash(), hash, "loaded after it was published");
    let mut newer = variant(&model, 3);
    newer.info.base_name.push_str(", of another length");
    publish(&newer, dir.path(), "ada");
    assert_eq!(registry.resolve("ada").unwrap().hash(), newer.content_hash().unwrap());
}
