//! The allocator's free memory, given back to the system.
//!
//! glibc keeps what is freed for the next allocation of the same arena, threads have arenas of their own, and the sizes
//! from which it does otherwise grow with what is freed. Measured: after eight threads had loaded twenty variants of
//! 17 MB each and all were freed, the process still held 400 MB. `malloc_trim` hands back the free pages inside all
//! arenas, in 5 to 30 ms; the end of each arena goes back by itself if the thresholds are kept from growing.

/// Keeps the allocator (glibc) from holding on to ever more free memory, in the whole process.
pub fn keep_heap_small() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// From here on the end of an arena goes back. glibc's own goes up to 64 MiB, in each arena.
        const M_TRIM_THRESHOLD: (std::ffi::c_int, std::ffi::c_int) = (-1, 1 << 20);
        /// From here on a block is mapped by itself. More than what a step allocates and frees over and over.
        const M_MMAP_THRESHOLD: (std::ffi::c_int, std::ffi::c_int) = (-3, 4 << 20);
        /// No list of small free blocks that are not joined with their neighbours: a trim joins them, and what it thereby
        /// makes the end of an arena it leaves there, however large. (Threads' own lists of small blocks stay.)
        const M_MXFAST: (std::ffi::c_int, std::ffi::c_int) = (1, 0);
        unsafe extern "C" {
            fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
        }
        for (parameter, bytes) in [M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MXFAST] {
            // SAFETY: mallopt(3) is safe to call from any thread and checks its arguments; refused ones change nothing.
            unsafe { mallopt(parameter, bytes) };
        }
    }
}

/// Hands free memory back to the system, where the allocator can be asked to (glibc). Holds each arena's lock for as long
/// as its free pages take: for a thread that nobody waits for.
pub fn give_back_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: malloc_trim(3) takes any number, is safe to call from any thread, and touches free memory only.
        unsafe { malloc_trim(0) };
    }
}
