//! How fast the product with packed codes runs by itself: what the arithmetic alone allows.

use super::variants;
use bitdelta_kernels::{Activations, Arena, Matrix, PlaneTiles, Product, Term, project};
use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// A matrix like the largest of SmolLM2-135M, whose codes at 4 bits still fit a core's cache.
const ROWS: usize = 1536;
const COLS: usize = 576;
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// Multiply-adds a second of one row of activations by codes of `bits` bits from cache, on `threads` threads in all.
pub fn dense(bits: u8, threads: usize) -> f64 {
    let codes = variants::random_matrix(&mut 1, bits, ROWS, COLS);
    let tiles = PlaneTiles::new(&codes.packed(), &mut Arena::default()).expect("64 inputs to a group");
    let x: Vec<f32> = (0..COLS).map(|i| (i % 7) as f32 - 3.0).collect();
    let (stop, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let (x, mut y) = (Activations::rounded(&x, COLS), vec![0.0; ROWS]);
                while !stop.load(Ordering::Relaxed) {
                    let terms = vec![Term { matrix: Matrix::Planes(black_box(&tiles)), rows: 0..1 }];
                    project(&x, &mut [Product { terms, y: &mut y, add: false }]);
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        std::thread::sleep(LONG_ENOUGH);
        stop.store(true, Ordering::Relaxed);
    });
    (ROWS * COLS) as f64 * calls.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}
