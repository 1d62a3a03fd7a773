//! The memory's speed, to hold the products against: measured in the same run, on the same threads.

use std::{hint::black_box, time::Instant};

/// Bytes read at a time: far more than any cache.
const BYTES: usize = 512 << 20;

/// Bytes a second that `threads` threads read from memory together; the fastest of a few passes.
pub fn read_bandwidth(threads: usize) -> f64 {
    let values = vec![1u64; BYTES / 8];
    let share = values.len().div_ceil(threads.max(1));
    let pass = || {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for part in values.chunks(share) {
                // Independent sums, so that the additions do not wait for each other.
                scope.spawn(move || {
                    let mut sums = [0u64; 32];
                    for chunk in part.chunks_exact(32) {
                        sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
                    }
                    black_box(sums);
                });
            }
        });
        BYTES as f64 / begun.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}
