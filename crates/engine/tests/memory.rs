//! What is evicted or unloaded is memory that the system has again. A process of its own, since it looks at all of it.
#![cfg(target_os = "linux")]

mod common;

use bitdelta_delta::{BitDeltaConfig, quantize};
use bitdelta_engine::{Registry, RegistryOptions};
use common::{model, variant};
use std::{fs, thread, time::Duration};
use tempfile::tempdir;

/// Pages of 4 KiB that the process holds in memory, in bytes.
fn resident_set() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("/proc");
    4096 * statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number")
}

#[test]
fn what_was_unloaded_is_the_systems_again() {
    const USERS: usize = 400;
    const THREADS: usize = 4;
    let (dir, model) = (tempdir().unwrap(), model());
    let mut large = variant(&model, 1);
    let config = BitDeltaConfig { enable_compression: false, ..Default::default() };
    for (delta, linear) in large.linears.iter_mut().zip(model.base().linears()) {
        let values = vec![0.01; linear.rows * linear.cols];
        delta.parts = vec![quantize(&linear.name, &values, linear.rows, linear.cols, &config).unwrap()];
    }
    let file = dir.path().join("user-0.safetensors");
    large.write(&file).unwrap();
    (1..USERS).for_each(|user| fs::hard_link(&file, dir.path().join(format!("user-{user}.safetensors"))).unwrap());
    let budget = (USERS + 2 * THREADS) as u64 * fs::metadata(&file).unwrap().len() * 5 / 4;
    let options = RegistryOptions { resident_bytes: Some(budget) };
    let registry = Registry::with_options(model, Some(dir.path().to_owned()), options).unwrap();
    let before = resident_set();
    for _ in 0..3 {
        // From new threads each time, as a server's pool has it: each brings an arena of the allocator with it.
        thread::scope(|scope| {
            for number in 0..THREADS {
                let registry = &registry;
                scope.spawn(move || {
                    for user in (number..USERS).step_by(THREADS) {
                        registry.resolve(&format!("user-{user}")).unwrap();
                    }
                });
            }
        });
        let held = registry.stats().resident_bytes;
        let grown = resident_set().saturating_sub(before);
        assert_eq!(registry.stats().resident, USERS);
        assert!(grown < held * 5 / 4 + (8 << 20), "{grown} bytes for {held}");
        assert!((0..USERS).all(|user| registry.unload(&format!("user-{user}")).unwrap()));
        assert_eq!(registry.stats().resident_bytes, 0);
        // Given back on a thread of its own, a moment later.
        let given_back = || {
            thread::sleep(Duration::from_millis(10));
            resident_set() < before + held / 4
        };
        assert!((0..1000).any(|_| given_back()), "{} bytes, {before} before", resident_set());
    }
}
