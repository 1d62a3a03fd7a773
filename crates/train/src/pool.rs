//! The threads that operations of training and compression are spread over.

use std::thread::available_parallelism;

/// Makes the calling thread one of them, for the rest of the process. A training step is thousands of short parallel operations
/// one after another, and a thread outside the pool hands each over, sleeps and is woken again. To be called once, at the
/// beginning, by a program's thread that trains; where the pool is there already, nothing changes.
///
/// A pool of one thread stays apart: others, such as an engine's that draws, would wait for the caller for ever.
pub fn join() {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|threads| threads.parse().ok()).filter(|n| *n > 0);
    let threads = asked.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
    if threads > 1 {
        // An error says that the pool is there.
        drop(rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global());
    }
}
