//! The allocator's free memory: given back to the system, or kept for the next allocation.
//!
//! glibc keeps what is freed for the next allocation of the same arena, threads have arenas of their own, and the sizes
//! from which it does otherwise grow with what is freed. Measured: after eight threads had loaded twenty variants of
//! 17 MB each and all were freed, the process still held 400 MB. `malloc_trim` hands back the free pages inside all
//! arenas, in 5 to 30 ms; the end of each arena goes back by itself if the thresholds are kept from growing.
//!
//! Training is the opposite: a step makes and drops matrices of tens of megabytes, each of which the system maps, clears page
//! by page and takes back. Measured on SmolLM2 in bf16: a sixth of a step's time, at the same peak.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many [`FreeMemoryKept`] there are.
static KEPT: Mutex<usize> = Mutex::new(0);

fn kept() -> MutexGuard<'static, usize> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::ffi::c_int;

    /// From here on the end of an arena goes back.
    const M_TRIM_THRESHOLD: c_int = -1;
    /// From here on a block is mapped by itself.
    const M_MMAP_THRESHOLD: c_int = -3;
    /// Up to here small free blocks are listed, and not joined with their neighbours.
    const M_MXFAST: c_int = 1;

    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
        fn malloc_trim(pad: usize) -> c_int;
    }

    fn set(parameter: c_int, bytes: c_int) {
        // SAFETY: mallopt(3) is safe to call from any thread and checks its arguments; refused ones change nothing.
        unsafe { mallopt(parameter, bytes) };
    }

    /// Thresholds that stay: glibc's own go up to 64 MiB, in each arena. A block of 4 MiB is more than what a decoding step
    /// allocates and frees over and over.
    pub fn small() {
        set(M_TRIM_THRESHOLD, 1 << 20);
        set(M_MMAP_THRESHOLD, 4 << 20);
    }

    /// No lists of small free blocks: a trim joins them, and what it thereby makes the end of an arena it leaves there, however
    /// large. (Threads' own lists of small blocks stay.)
    pub fn joined() {
        set(M_MXFAST, 0);
    }

    /// Nothing goes back by itself.
    pub fn large() {
        set(M_TRIM_THRESHOLD, c_int::MAX);
        set(M_MMAP_THRESHOLD, 1 << 30);
    }

    pub fn trim() {
        // SAFETY: malloc_trim(3) takes any number, is safe to call from any thread, and touches free memory only.
        unsafe { malloc_trim(0) };
    }
}

/// Elsewhere allocators do as they do.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod glibc {
    pub fn small() {}
    pub fn joined() {}
    pub fn large() {}
    pub fn trim() {}
}

/// Keeps the allocator (glibc) from holding on to ever more free memory, in the whole process; while anybody wants free
/// memory kept, from then on.
pub fn keep_heap_small() {
    let kept = kept();
    glibc::joined();
    if *kept == 0 {
        glibc::small();
    }
}

/// Hands free memory back to the system, where the allocator can be asked to (glibc). Holds each arena's lock for as long
/// as its free pages take: for a thread that nobody waits for.
pub fn give_back_free_memory() {
    glibc::trim();
}

/// As long as one of these lives, freed memory stays with the allocator (glibc), in the whole process; it goes back with the
/// last.
#[derive(Debug)]
#[must_use]
pub struct FreeMemoryKept(());

impl FreeMemoryKept {
    /// From now on.
    #[allow(clippy::new_without_default)] // it is for what it does
    pub fn new() -> Self {
        let mut kept = kept();
        *kept += 1;
        glibc::large();
        Self(())
    }
}

impl Drop for FreeMemoryKept {
    fn drop(&mut self) {
        let mut kept = kept();
        *kept -= 1;
        if *kept == 0 {
            glibc::small();
            glibc::trim();
        }
    }
}
