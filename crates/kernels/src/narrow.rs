//! The product of a bf16 base with activations rounded to bf16, where the CPU has dot products of them (`vdpbf16ps`):
//! twice the multiplications of f32, and weights that are multiplied as they lie.
//!
//! Sixteen sums each take the products of two neighbouring inputs; a tile is 4 × 4 outputs, whose sums are added up
//! together: halves to halves as in [`crate::vector::Vector::sum`], four outputs of a row side by side. How an output is
//! added up does not depend on its tile. Unlike all other products, this one is not bit for bit that of other instruction
//! sets: how the instruction rounds a pair's sum is the CPU's affair.
//!
//! A bf16 value is within 1 in 512 of what it stands for: `bitdelta bench precision --base-dtype bf16` says what that
//! changes (SmolLM2: the loss by 0.1 %, the likeliest token at 1 position in 1000). Multiply-adds a nanosecond on one core:
//! 92 where f32 comes to 50, and 56 for 8 rows from memory, 21 before.

// As in `int8`: loops over an index keep the sums in registers.
#![allow(clippy::needless_range_loop)]

use crate::{isa::Isa, project::Job};

/// Whether an instruction set has this product.
pub(crate) fn narrows(isa: Isa) -> bool {
    isa >= Isa::Avx512Bf16
}

/// Rounds to bf16 (bits), to the nearest, ties to even, on a given instruction set, which must be one of [`Isa::available`].
pub(crate) fn round(isa: Isa, x: &[f32], to: &mut [u16]) {
    assert_eq!(x.len(), to.len(), "as many bits as values");
    #[cfg(target_arch = "x86_64")]
    if narrows(isa) {
        isa.check();
        // SAFETY: the CPU has the instruction set; the slices are of one length.
        return unsafe { x86::round(x, to) };
    }
    to.iter_mut().zip(x).for_each(|(to, x)| *to = half::bf16::from_f32(*x).to_bits());
}

/// The product of a checked job, whose activations are narrow, with a checked bf16 matrix.
pub(crate) fn run_narrow(isa: Isa, job: Job, x: &[u16], w: &[u16]) {
    assert!(narrows(isa) && x.len() == job.x.rows * job.width(), "narrow activations on {isa:?}");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above; the job's rows lie in x and its outputs in w, which were checked.
    unsafe {
        x86::range(&job, x.as_ptr(), w.as_ptr());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (job, w);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use crate::{project::Job, vector::prefetch_far};
    use std::arch::x86_64::*;

    /// Inputs of a register.
    const WIDE: usize = 32;
    /// Rows and outputs of a tile.
    const TILE: usize = 4;

    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn round(x: &[f32], to: &mut [u16]) {
        let (mut at, count) = (0, x.len());
        while at < count {
            let lanes = 16.min(count - at);
            let mask = ((1u32 << lanes) - 1) as __mmask16;
            // SAFETY: the mask keeps to the slices, which are of one length.
            unsafe {
                let narrow = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x.as_ptr().add(at)));
                let bits = std::mem::transmute::<__m256bh, __m256i>(narrow);
                _mm256_mask_storeu_epi16(to.as_mut_ptr().add(at).cast(), mask, bits);
            }
            at += lanes;
        }
    }

    /// # Safety
    /// The job's rows lie in x and its outputs in w, both as wide as the job; y has room for them.
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn range(job: &Job, x: *const u16, w: *const u16) {
        for rows in job.row_blocks(size_of::<u16>()) {
            let mut output = job.first;
            while output < job.last {
                let width = TILE.min(job.last - output);
                let mut row = rows.start;
                while row < rows.end {
                    let left = rows.end - row;
                    // SAFETY: rows and outputs are the job's.
                    unsafe {
                        row += match (left, width) {
                            (4.., TILE) => tile::<4, TILE>(job, x, w, row, output),
                            (2.., TILE) => tile::<2, TILE>(job, x, w, row, output),
                            (_, TILE) => tile::<1, TILE>(job, x, w, row, output),
                            (_, 3) => tile::<1, 3>(job, x, w, row, output),
                            (_, 2) => tile::<1, 2>(job, x, w, row, output),
                            _ => tile::<1, 1>(job, x, w, row, output),
                        };
                    }
                }
                output += width;
            }
        }
    }

    /// R rows against N outputs; returns R.
    ///
    /// # Safety
    /// Rows `row..row + R` of x and outputs `output..output + N` are the job's.
    #[inline]
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn tile<const R: usize, const N: usize>(
        job: &Job,
        x: *const u16,
        w: *const u16,
        row: usize,
        output: usize,
    ) -> usize {
        let k = job.width();
        // SAFETY: every row has k values, of which the last load takes those that are left. (A prefetch may name any
        // address.)
        unsafe {
            let (x, w) = (x.add(row * k), w.add(output * k));
            // In their first pass the weights come from the memory: what comes a tile later is asked for. (Two tiles later is 3 %
            // slower, four 10 %, and into the first cache the same.)
            let first = row == job.rows.start;
            let mut sums = [[_mm512_setzero_ps(); TILE]; R];
            let mut at = 0;
            while at < k {
                let lanes = WIDE.min(k - at);
                let mask = if lanes == WIDE { __mmask32::MAX } else { (1 << lanes) - 1 };
                let load = |from: *const u16| {
                    let halves = if lanes == WIDE {
                        _mm512_loadu_si512(from.cast())
                    } else {
                        _mm512_maskz_loadu_epi16(mask, from.cast())
                    };
                    std::mem::transmute::<__m512i, __m512bh>(halves)
                };
                let mut weights = [load(w.add(at)); N];
                for n in 0..N {
                    weights[n] = load(w.add(n * k + at));
                    if first {
                        prefetch_far(w.wrapping_add((n + TILE) * k + at).cast());
                    }
                }
                for r in 0..R {
                    let x = load(x.add(r * k + at));
                    for n in 0..N {
                        sums[r][n] = _mm512_dpbf16_ps(sums[r][n], x, weights[n]);
                    }
                }
                at += lanes;
            }
            for r in 0..R {
                let y = job.y.add((row + r - job.y_row) * job.outputs + output);
                let mut four = add_up(sums[r]);
                let mask = ((1u32 << N) - 1) as __mmask8;
                if job.add {
                    four = _mm_add_ps(_mm_maskz_loadu_ps(mask, y), four);
                }
                _mm_mask_storeu_ps(y, mask, four);
            }
        }
        R
    }

    /// The sums of four registers side by side: halves added to halves, 16 → 8 → 4 → 2 → 1.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx512vl")]
    fn add_up([a, b, c, d]: [__m512; 4]) -> __m128 {
        let eight = |v| _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
        let four = |v| {
            let v: __m256 = eight(v);
            _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v))
        };
        // Of two sums each: lanes 0 and 2, 1 and 3.
        let two = |a, b| {
            let (a, b): (__m128, __m128) = (four(a), four(b));
            _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a))
        };
        let (ab, cd) = (two(a, b), two(c, d));
        _mm_add_ps(_mm_shuffle_ps::<0b10_00_10_00>(ab, cd), _mm_shuffle_ps::<0b11_01_11_01>(ab, cd))
    }
}
