//! What the registry did and holds, in figures. No user is named in them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The variant cache's figures: of now, and since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegistryStats {
    /// Most bytes that variants may take.
    pub budget_bytes: u64,
    /// Bytes of loaded variants. One that was unloaded or replaced counts until its last request has ended.
    pub resident_bytes: u64,
    /// Bytes promised to loads under way: what they take at most while they read.
    pub loading_bytes: u64,
    /// Variants loaded.
    pub resident: usize,
    /// Of these, variants that a request uses: they are not evicted.
    pub pinned: usize,
    /// Loads that wait for others' bytes.
    pub waiting: u64,
    /// Requests that found their variant loaded, some after a wait for another request's load.
    pub hits: u64,
    /// Requests that did not.
    pub misses: u64,
    /// Variants loaded so far.
    pub loads: u64,
    /// Loads that failed.
    pub failed_loads: u64,
    /// Variants that gave way to others.
    pub evictions: u64,
    /// Time spent in loads, the wait for bytes not included.
    pub load_time: Duration,
}

/// What only grows.
#[derive(Default)]
pub(super) struct Counters {
    pub hits: Counter,
    pub misses: Counter,
    pub loads: Counter,
    pub failed_loads: Counter,
    pub load_nanoseconds: Counter,
}

/// A count that threads share.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
