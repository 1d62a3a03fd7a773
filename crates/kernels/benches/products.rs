//! The products alone, on one thread: multiply-adds and bytes a second of CPU time, from cache and from memory.
//!
//! `cargo bench -p bitdelta-kernels [-- WHAT]` prints a line for each product, shape and number of rows. CPU time of the thread is
//! what counts, so that other processes on the machine disturb less.

use bitdelta_kernels::{
    Activations, Arena, Blocks, Elements, Int8Weights, Isa, Layout, LowRankTiles, Matrix, Packed, PlaneTiles, Product,
    Term, Weights, project,
};
use std::{hint::black_box, time::Duration};

/// Far more than a core's caches.
const COLD_BYTES: usize = 256 << 20;
/// Each figure takes this long.
const LONG_ENOUGH: Duration = Duration::from_millis(300);

fn main() {
    println!("{} on one thread; GMAC/s and GB/s of weights", Isa::selected().name());
    println!("{:<28}{:>12}{:>6}{:>10}{:>8}{:>10}{:>8}", "product", "outputs×in", "rows", "cached", "", "memory", "");
    for (n, k) in [(1536, 576), (9728, 2560)] {
        let values: Vec<f32> = (0..n * k).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 504.0).collect();
        let x: Vec<f32> = (0..256 * k).map(|i| ((i * 104_729 % 997) as f32 - 498.0) / 498.0).collect();
        let int8 = Int8Weights::quantize(&values, n, k, &mut Arena::default());
        for m in [1, 8] {
            measure("rounding", &x[..m * k].to_vec(), 4 * (m * k) as u64, (1, k, m), |x| {
                black_box(Activations::rounded(x, k));
            });
        }
        for m in [1, 2, 4, 8, 32, 256] {
            let mut y = vec![0.0; m * n];
            measure("int8", &int8, int8.bytes(), (n, k, m), |w| {
                multiply(Activations::rounded(&x[..m * k], k), Matrix::Int8(w), &mut y);
            });
        }
        let kept = kept(n, k);
        for m in [1, 2, 4, 8, 32, 256] {
            let mut y = vec![0.0; m * n];
            measure("a file's 4 bits", &kept, kept.bytes(), (n, k, m), |w| {
                multiply(Activations::rounded(&x[..m * k], k), Matrix::Int8(w), &mut y);
            });
        }
        for bits in [1, 2, 4] {
            let tiles = planes(n, k, bits);
            for m in [1, 8, 32, 256] {
                let mut y = vec![0.0; m * n];
                measure(&format!("delta {bits} bit"), &tiles, tiles.bytes(), (n, k, m), |d| {
                    multiply(Activations::rounded(&x[..m * k], k), Matrix::Planes(d), &mut y);
                });
            }
        }
        for rank in [4, 16] {
            let tiles = factors(n, k, rank);
            for m in [1, 8] {
                let mut y = vec![0.0; m * n];
                measure(&format!("low rank {rank}, 4 bit"), &tiles, tiles.bytes(), (rank, n + k, m), |d| {
                    add(Activations::rounded(&x[..m * k], k), Matrix::LowRankTiles(d), &mut y);
                });
            }
        }
        let narrow: Vec<u16> = values.iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect();
        for m in [1, 8, 256] {
            let mut y = vec![0.0; m * n];
            measure("bf16", &narrow, 2 * (n * k) as u64, (n, k, m), |w| {
                let w = Weights { elements: Elements::Bf16(w), rows: n, cols: k };
                multiply(Activations::exact(&x[..m * k], k), Matrix::Floats(w), &mut y);
            });
            measure("bf16 by bf16", &narrow, 2 * (n * k) as u64, (n, k, m), |w| {
                let w = Weights { elements: Elements::Bf16(w), rows: n, cols: k };
                multiply(Activations::narrow(&x[..m * k], k), Matrix::Floats(w), &mut y);
            });
            measure("f32", &values, 4 * (n * k) as u64, (n, k, m), |w| {
                let w = Weights { elements: Elements::F32(w), rows: n, cols: k };
                multiply(Activations::exact(&x[..m * k], k), Matrix::Floats(w), &mut y);
            });
        }
    }
}

fn multiply(x: Activations, matrix: Matrix, y: &mut [f32]) {
    let rows = 0..x.rows();
    project(&x, &mut [Product { terms: vec![Term { matrix, rows }], y, add: false }]);
}

/// Adds to `y`, as a low-rank delta does.
fn add(x: Activations, matrix: Matrix, y: &mut [f32]) {
    let rows = 0..x.rows();
    project(&x, &mut [Product { terms: vec![Term { matrix, rows }], y, add: true }]);
}

/// 4-bit codes in blocks of 32, as a Q4_1 file has them.
fn kept(n: usize, k: usize) -> Int8Weights {
    let codes: Vec<u8> = random(n * k).iter().map(|word| (word >> 60) as u8).collect();
    let scales = vec![half::f16::from_f32(0.01).to_bits(); n * k / 32];
    let blocks = Blocks { codes: &codes, scales: &scales, minima: &scales };
    Int8Weights::keep(&blocks, Layout::Nibbles, n, k, &mut Arena::default())
}

/// Factors of 4 bits for (n, k).
fn factors(n: usize, k: usize, rank: usize) -> LowRankTiles {
    let planes = |cols: usize| random(rank * 4 * cols.div_ceil(64));
    let scales = |cols: usize| vec![half::f16::from_f32(0.01).to_bits(); rank * cols.div_ceil(64)];
    let (planes, scales) = ([k, n].map(planes), [k, n].map(scales));
    let packed = |i: usize| {
        let (planes, scales, cols) = (&planes[i], &scales[i], [k, n][i]);
        Packed { bits: 4, rows: rank, cols, group: 64, planes, scales, offsets: &[], tensor_scale: 1.0 }
    };
    LowRankTiles::new(&packed(0), &packed(1), &mut Arena::default()).expect("64 to a group")
}

fn random(words: usize) -> Vec<u64> {
    (0..words).map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
}

fn planes(n: usize, k: usize, bits: usize) -> PlaneTiles {
    let words = random(n * bits * k.div_ceil(64));
    let scales = vec![half::f16::from_f32(0.01).to_bits(); n * k.div_ceil(64)];
    let packed =
        Packed { bits, rows: n, cols: k, group: 64, planes: &words, scales: &scales, offsets: &[], tensor_scale: 1.0 };
    PlaneTiles::new(&packed, &mut Arena::default()).expect("64 inputs to a group")
}

/// Prints the speed of `run` on one matrix, which stays in cache where it fits, and on copies of it in turn.
fn measure<W: Clone>(what: &str, w: &W, bytes: u64, (n, k, m): (usize, usize, usize), mut run: impl FnMut(&W)) {
    if std::env::args().skip(1).find(|a| !a.starts_with('-')).is_some_and(|wanted| !what.contains(wanted.as_str())) {
        return;
    }
    let copies = vec![w.clone(); (COLD_BYTES / bytes as usize).max(2)];
    print!("{what:<28}{:>12}{m:>6}", format!("{n}×{k}"));
    for set in [std::slice::from_ref(w), &copies] {
        let begun = cpu_time();
        let (mut calls, mut took) = (0, Duration::ZERO);
        while took < LONG_ENOUGH {
            // Many calls between two looks at the clock, which takes microseconds.
            let together = set.len().max(256);
            for w in set.iter().cycle().take(together) {
                run(black_box(w));
            }
            calls += together;
            took = cpu_time() - begun;
        }
        let each = took.as_secs_f64() / calls as f64;
        print!("{:>10.1}{:>8.1}", (n * k * m) as f64 / each / 1e9, bytes as f64 / each / 1e9);
    }
    println!();
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat of this thread");
    let nanoseconds = stat.split(' ').next().and_then(|n| n.parse().ok()).expect("nanoseconds on CPU");
    Duration::from_nanos(nanoseconds)
}
