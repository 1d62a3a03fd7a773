//! Sixteen lanes in two 256-bit registers.

use super::{LANES, Vector};
use std::arch::x86_64::*;

/// Lanes 0..8 and 8..16.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(__m256, __m256);

impl Avx2 {
    /// Lanes 0..8 and 8..16.
    #[inline(always)]
    pub(super) fn of(low: __m256, high: __m256) -> Self {
        Self(low, high)
    }
}

/// Eight lanes added up, 8 → 4 → 2 → 1.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(super) unsafe fn sum_eight(v: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// A mask with the sign bit set in the lanes (of eight) whose bit in the low byte of `bits` is set.
#[inline(always)]
unsafe fn lane_mask(bits: u32) -> __m256i {
    // SAFETY: AVX2, the caller's promise.
    unsafe {
        let each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let set = _mm256_and_si256(_mm256_set1_epi32(bits as i32), each);
        _mm256_cmpeq_epi32(set, each)
    }
}

#[inline(always)]
unsafe fn first(lanes: usize) -> (__m256i, __m256i) {
    debug_assert!(lanes <= LANES);
    let bits = (1u32 << lanes) - 1;
    // SAFETY: AVX2, the caller's promise.
    unsafe { (lane_mask(bits & 0xff), lane_mask(bits >> 8)) }
}

#[inline(always)]
unsafe fn flip_unset(v: __m256, plus: u32) -> __m256 {
    // SAFETY: AVX2, the caller's promise.
    unsafe { _mm256_xor_ps(v, _mm256_andnot_ps(_mm256_castsi256_ps(lane_mask(plus)), _mm256_set1_ps(-0.0))) }
}

#[inline(always)]
unsafe fn widen_bf16(from: *const u16) -> __m256 {
    // SAFETY: AVX2 and 8 readable values, the caller's promise.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) }
}

/// The first and the second bf16 value of each lane, widened.
#[inline(always)]
unsafe fn split_bf16(pairs: __m256) -> (__m256, __m256) {
    // SAFETY: AVX2, the caller's promise.
    unsafe {
        let second = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32));
        let first = _mm256_slli_epi32::<16>(_mm256_castps_si256(pairs));
        (_mm256_castsi256_ps(first), _mm256_and_ps(pairs, second))
    }
}

#[inline(always)]
unsafe fn power_of_two(n: __m256) -> __m256 {
    // SAFETY: AVX2, the caller's promise.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

/// Eight times four values as bytes beside each other.
#[inline(always)]
unsafe fn four_i8(four: [__m256; 4], to: *mut i32) {
    // SAFETY: AVX2 and room for 8, the caller's promise.
    unsafe {
        let keep = _mm256_set1_epi32(0xff);
        // Not by `map`: the compiler calls these one by one there.
        let (a, b) = (_mm256_cvtps_epi32(four[0]), _mm256_cvtps_epi32(four[1]));
        let (c, d) = (_mm256_cvtps_epi32(four[2]), _mm256_cvtps_epi32(four[3]));
        let low = _mm256_or_si256(_mm256_and_si256(a, keep), _mm256_slli_epi32::<8>(_mm256_and_si256(b, keep)));
        let high = _mm256_or_si256(_mm256_slli_epi32::<16>(_mm256_and_si256(c, keep)), _mm256_slli_epi32::<24>(d));
        _mm256_storeu_si256(to.cast(), _mm256_or_si256(low, high));
    }
}

// SAFETY: every method only uses AVX2, FMA and F16C, which `Isa::Avx2` asks the CPU for, and touches exactly the lanes
// it names (the masked forms do not fault on the lanes they leave out).
unsafe impl Vector for Avx2 {
    const TILE_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_partial(from: *const f32, lanes: usize) -> Self {
        // SAFETY: see the impl; `wrapping_add` because the upper half may lie past the values when it is masked out.
        unsafe {
            let (low, high) = first(lanes);
            Self(_mm256_maskload_ps(from, low), _mm256_maskload_ps(from.wrapping_add(8), high))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(widen_bf16(from), widen_bf16(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn halves(self) -> (Self, Self) {
        // SAFETY: see the impl.
        unsafe {
            let ((a, b), (c, d)) = (split_bf16(self.0), split_bf16(self.1));
            (Self(a, c), Self(b, d))
        }
    }
    #[inline(always)]
    unsafe fn widen_f16(bits: u16) -> f32 {
        // SAFETY: see the impl.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(8).cast()));
            Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_by_four(from: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let four = _mm256_castps128_ps256(_mm_cvtph_ps(_mm_loadl_epi64(from.cast())));
            let each = |first: i32| {
                let second = first + 1;
                _mm256_setr_epi32(first, first, first, first, second, second, second, second)
            };
            Self(_mm256_permutevar8x32_ps(four, each(0)), _mm256_permutevar8x32_ps(four, each(2)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let high = _mm_srli_si128::<8>(bytes);
            Self(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)))
        }
    }
    #[inline(always)]
    unsafe fn gather(from: *const f32, columns: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let eight = |columns: *const u16| {
                _mm256_i32gather_ps::<4>(from, _mm256_cvtepu16_epi32(_mm_loadu_si128(columns.cast())))
            };
            Self(eight(columns), eight(columns.add(8)))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        // SAFETY: see the impl. Packing works in halves of a register: 0 and 2 are the first and second eight.
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), _mm_packs_epi16(low, high));
        }
    }
    #[inline(always)]
    unsafe fn store_four_i8(four: [Self; 4], to: *mut i32) {
        // SAFETY: see the impl.
        unsafe {
            four_i8([four[0].0, four[1].0, four[2].0, four[3].0], to);
            four_i8([four[0].1, four[1].1, four[2].1, four[3].1], to.add(8));
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see the impl.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, lanes: usize) {
        // SAFETY: see the impl and `load_partial`.
        unsafe {
            let (low, high) = first(lanes);
            _mm256_maskstore_ps(to, low, self.0);
            _mm256_maskstore_ps(to.wrapping_add(8), high, self.1);
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            Self(_mm256_andnot_ps(sign, self.0), _mm256_andnot_ps(sign, self.1))
        }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn signed(self, plus: u16) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(flip_unset(self.0, u32::from(plus)), flip_unset(self.1, u32::from(plus >> 8))) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see the impl.
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let eight = _mm256_max_ps(self.0, self.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn exp2_integral(self) -> Self {
        // SAFETY: see the impl.
        unsafe { Self(power_of_two(self.0), power_of_two(self.1)) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see the impl. The order is the trait's: 16 → 8 → 4 → 2 → 1.
        unsafe { sum_eight(_mm256_add_ps(self.0, self.1)) }
    }
}
