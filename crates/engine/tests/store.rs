//! Versions in the variants folder: numbered, rolled back, erased, and what a crash leaves behind.

#![allow(clippy::unwrap_used)]
use bitdelta_delta::{
    BitDeltaConfig,
    file::{Info, LinearDelta, Variant},
    quantize::quantize,
};
use bitdelta_engine::registry::{KEPT_VERSIONS, Published, Store};
use std::{fs, io::Write, path::Path};

/// Any variant; no base is needed to keep it.
fn variant(seed: u32) -> Variant {
    let config = BitDeltaConfig { clip_outliers: false, ..BitDeltaConfig::default() };
    let delta: Vec<f32> = (0..64 * 4).map(|i| ((i * 7919 + seed * 31) % 13) as f32 / 13.0 - 0.5).collect();
    let part = quantize("w", &delta, 4, 64, &config).unwrap();
    let linear = LinearDelta { rows: 4, cols: 64, parts: vec![part], relative_error: None };
    Variant::new(Info::new("base", "a base", config, ""), vec![linear])
}

fn publish(store: &Store, user: &str, seed: u32) -> Published {
    let variant = variant(seed);
    let mut file = store.incoming().unwrap();
    file.write_all(&variant.to_bytes().unwrap()).unwrap();
    store.publish(user, file, &variant.content_hash().unwrap()).unwrap()
}

fn hash(seed: u32) -> String {
    variant(seed).content_hash().unwrap()
}

fn numbers(store: &Store, user: &str) -> Vec<u64> {
    store.versions(user).unwrap().iter().map(|version| version.number).collect()
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn versions_count_up_and_a_rollback_is_one_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().join("made"));
    assert!(store.versions("ann").unwrap().is_empty());
    assert_eq!(store.roll_back("ann", None).unwrap(), None);
    assert_eq!((publish(&store, "ann", 1).number, publish(&store, "ann", 2).number), (1, 2));
    let back = store.roll_back("ann", None).unwrap().unwrap();
    assert_eq!((back.number, &back.hash, back.rolled_back_to), (3, &hash(1), Some(1)));
    let forth = store.roll_back("ann", Some(2)).unwrap().unwrap();
    assert_eq!((forth.number, &forth.hash), (4, &hash(2)));
    assert_eq!(store.roll_back("ann", Some(9)).unwrap(), None);
    assert_eq!(numbers(&store, "ann"), [1, 2, 3, 4]);
    assert_eq!(files(&dir.path().join("made/ann/blobs")).len(), 2, "equal content is kept once");
    assert!(numbers(&store, "bob").is_empty());
}

#[test]
fn old_versions_and_their_blobs_go_when_new_ones_come() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().to_owned());
    for seed in 0..KEPT_VERSIONS as u32 + 3 {
        publish(&store, "ann", seed);
    }
    assert_eq!(numbers(&store, "ann").len(), KEPT_VERSIONS);
    assert_eq!(numbers(&store, "ann")[0], 4);
    assert!(files(&dir.path().join("ann/blobs")).len() <= KEPT_VERSIONS);
}

#[test]
fn a_file_put_there_by_hand_becomes_the_version_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().to_owned());
    variant(1).write(&dir.path().join("ann.safetensors")).unwrap();
    assert_eq!(publish(&store, "ann", 2).number, 2);
    assert!(!dir.path().join("ann.safetensors").exists());
    assert_eq!(store.roll_back("ann", None).unwrap().unwrap().hash, hash(1));
}

#[test]
fn to_delete_is_to_erase_everything_of_that_user_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().to_owned());
    publish(&store, "ann", 1);
    publish(&store, "bob", 1);
    variant(2).write(&dir.path().join("ann.safetensors")).unwrap();
    assert!(store.delete("ann").unwrap());
    assert!(!store.delete("ann").unwrap());
    assert_eq!(files(dir.path()), [".lock", "bob"]);
    assert_eq!(numbers(&store, "bob"), [1]);
    assert_eq!(publish(&store, "ann", 3).number, 1);
}

#[test]
fn what_a_crash_left_is_no_version() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().to_owned());
    publish(&store, "ann", 1);
    let versions = dir.path().join("ann/versions");
    fs::write(versions.join(".version-x"), b"{").unwrap();
    fs::write(versions.join("notes.txt"), b"").unwrap();
    fs::write(dir.path().join("ann/blobs/stray.safetensors"), b"half").unwrap();
    assert_eq!(numbers(&store, "ann"), [1]);
    assert_eq!(publish(&store, "ann", 2).number, 2);
    assert_eq!(files(&dir.path().join("ann/blobs")).len(), 2, "the stray blob is gone");
}

#[test]
fn a_version_file_cannot_name_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path().to_owned());
    publish(&store, "ann", 1);
    let forged = r#"{"hash": "../../bob/blobs/x", "bytes": 1, "created": 0}"#;
    fs::write(dir.path().join("ann/versions/0000000002.json"), forged).unwrap();
    assert_eq!(numbers(&store, "ann"), [1]);
    for user in ["../ann", "", ".lock", "a/b"] {
        assert!(store.versions(user).is_err() && store.delete(user).is_err() && store.roll_back(user, None).is_err());
    }
}

#[test]
fn publishers_at_the_same_time_each_get_a_number() {
    let dir = tempfile::tempdir().unwrap();
    // Two stores are two processes, as far as locks go.
    let stores = [Store::new(dir.path().to_owned()), Store::new(dir.path().to_owned())];
    std::thread::scope(|scope| {
        for (at, store) in stores.iter().enumerate() {
            scope.spawn(move || (0..5).for_each(|i| drop(publish(store, "ann", 10 * at as u32 + i))));
        }
    });
    assert_eq!(numbers(&stores[0], "ann"), (1..=10).collect::<Vec<u64>>());
}
