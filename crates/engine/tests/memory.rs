//! What is evicted or unloaded is memory that the system has again. A process of its own, since it looks at all of it.
#![cfg(target_os = "linux")]

mod common;

use bitdelta_delta::{BitDeltaConfig, quantize};
use bitdelta_engine::{Registry, RegistryOptions};
use common::{model, variant};
use std::{fs, thread};
use tempfile::tempdir;

/// Pages of 4 KiB that the process holds in memory, in bytes.
fn resident_set() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("/proc");
    4096 * statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number")
}

#[test]
fn a_thousand_loads_leave_no_more_memory_than_the_budget() {
    const USERS: usize = 100;
    let (dir, model) = (tempdir().unwrap(), model());
    let mut large = variant(&model, 1);
    let config = BitDeltaConfig { enable_compression: false, ..Default::default() };
    for (delta, linear) in large.linears.iter_mut().zip(model.base().linears()) {
        let values = vec![0.01; linear.rows * linear.cols];
        delta.parts = vec![quantize(&linear.name, &values, linear.rows, linear.cols, &config).unwrap()];
    }
    let file = dir.path().join("user-0.safetensors");
    large.write(&file).unwrap();
    let bytes = fs::metadata(&file).unwrap().len();
    (1..USERS).for_each(|user| fs::hard_link(&file, dir.path().join(format!("user-{user}.safetensors"))).unwrap());
    let budget = 8 * bytes;
    let options = RegistryOptions { resident_bytes: Some(budget) };
    let registry = Registry::with_options(model, Some(dir.path().to_owned()), options).unwrap();
    let before = resident_set();
    // From new threads each time, as a server's pool has it.
    for round in 0..10 {
        thread::scope(|scope| {
            for number in 0..4 {
                let registry = &registry;
                scope.spawn(move || {
                    for user in (number..USERS).step_by(4) {
                        registry.resolve(&format!("user-{user}")).unwrap();
                    }
                });
            }
        });
        let users: Vec<_> = (0..USERS).filter(|user| registry.unload(&format!("user-{user}")).unwrap()).collect();
        assert!(users.len() > 4, "round {round}: {users:?}");
        assert_eq!(registry.stats().resident_bytes, 0);
    }
    let loaded = registry.stats().loads * bytes;
    let grown = resident_set().saturating_sub(before);
    println!("loaded {loaded} budget {budget} grown {grown}");
    assert!(loaded > 50 * budget, "{loaded}");
    // Beside the budget: the allocator's arenas of four threads.
    assert!(grown < budget + (8 << 20), "{grown} bytes more after {loaded} were loaded within {budget}");
}
