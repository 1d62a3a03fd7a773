//! Gives the system back what freed variants held, on a thread of its own.
//!
//! An allocator keeps what is freed, and to make it let go takes milliseconds: too long for the engine's thread, on which
//! the last request of an unloaded variant may end, and for a load that waits for room.

use super::budget::Budget;
use bitdelta_kernels::{give_back_free_memory, keep_heap_small};
use std::{sync::Arc, thread, time::Instant};

/// The thread rests this many times as long as it worked: a twentieth of one core at most.
const REST: u32 = 20;

/// Ends its thread when dropped.
pub(super) struct Sweeper(Arc<Budget>);

impl Sweeper {
    /// Sweeps after bytes of this budget were freed. Without a thread to be had, freed memory stays with the allocator.
    pub fn start(budget: &Arc<Budget>) -> Self {
        keep_heap_small();
        let freed = Arc::clone(budget);
        let sweep = move || {
            while freed.wait_for_freed() {
                let started = Instant::now();
                give_back_free_memory();
                thread::sleep(REST * started.elapsed());
            }
        };
        if let Err(error) = thread::Builder::new().name("bitdelta-sweep".to_owned()).spawn(sweep) {
            tracing::warn!(%error, "no thread to give freed memory back");
        }
        Self(Arc::clone(budget))
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.0.close();
    }
}
