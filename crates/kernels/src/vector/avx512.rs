//! Sixteen lanes in one 512-bit register.

use super::{LANES, Vector};
use std::arch::x86_64::*;

/// Sixteen lanes in one register.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(__m512);

impl Avx512 {
    /// The register.
    #[inline(always)]
    pub(crate) fn lanes(self) -> __m512 {
        self.0
    }

    /// The register's lanes.
    #[inline(always)]
    pub(super) fn of(lanes: __m512) -> Self {
        Self(lanes)
    }

    /// Its register.
    #[inline(always)]
    pub(super) fn register(self) -> __m512 {
        self.0
    }
}

#[inline(always)]
fn first(lanes: usize) -> __mmask16 {
    debug_assert!(lanes <= LANES);
    ((1u32 << lanes) - 1) as __mmask16
}

// SAFETY: every method only uses AVX-512 F and DQ and F16C, which `Isa::Avx512` asks the CPU for, and touches exactly the lanes
// it names (the masked forms do not fault on the lanes they leave out).
unsafe impl Vector for Avx512 {
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn load_partial(from: *const f32, lanes: usize) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_maskz_loadu_ps(first(lanes), from) })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: see the impl.
        Self(unsafe {
            let narrow = _mm256_loadu_si256(from.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow)))
        })
    }
    #[inline(always)]
    unsafe fn halves(self) -> (Self, Self) {
        // SAFETY: see the impl.
        unsafe {
            let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(self.0)));
            let second = _mm512_and_ps(self.0, _mm512_castsi512_ps(_mm512_set1_epi32(0xffff_0000_u32 as i32)));
            (Self(first), Self(second))
        }
    }
    #[inline(always)]
    unsafe fn add_dots(self, a: Self, b: Self) -> Self {
        // SAFETY: see the impl; AVX-512 BF16 is the caller's promise. Registers of floats and of pairs are the same bits.
        unsafe {
            let a = std::mem::transmute::<__m512, __m512bh>(a.0);
            let b = std::mem::transmute::<__m512, __m512bh>(b.0);
            Self(_mm512_dpbf16_ps(self.0, a, b))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: see the impl; AVX-512 BF16 is the caller's promise.
        unsafe {
            let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(self.0));
            _mm256_storeu_si256(to.cast(), narrow);
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
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }
    #[inline(always)]
    unsafe fn load_f16_by_four(from: *const u16) -> Self {
        // SAFETY: see the impl.
        Self(unsafe {
            let four = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_loadl_epi64(from.cast())));
            let each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            _mm512_permutexvar_ps(each, four)
        })
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
    }
    #[inline(always)]
    unsafe fn gather(from: *const f32, columns: *const u16) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_i32gather_ps::<4>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(columns.cast())), from) })
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        // SAFETY: see the impl.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(self.0))) }
    }
    #[inline(always)]
    unsafe fn store_four_i8(four: [Self; 4], to: *mut i32) {
        // SAFETY: see the impl.
        unsafe {
            let keep = _mm512_set1_epi32(0xff);
            // Not by `map`: the compiler calls these one by one there.
            let (a, b) = (_mm512_cvtps_epi32(four[0].0), _mm512_cvtps_epi32(four[1].0));
            let (c, d) = (_mm512_cvtps_epi32(four[2].0), _mm512_cvtps_epi32(four[3].0));
            let low = _mm512_or_si512(_mm512_and_si512(a, keep), _mm512_slli_epi32::<8>(_mm512_and_si512(b, keep)));
            let high = _mm512_or_si512(_mm512_slli_epi32::<16>(_mm512_and_si512(c, keep)), _mm512_slli_epi32::<24>(d));
            _mm512_storeu_si512(to.cast(), _mm512_or_si512(low, high));
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, lanes: usize) {
        // SAFETY: see the impl.
        unsafe { _mm512_mask_storeu_ps(to, first(lanes), self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_abs_ps(self.0) })
    }
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        // SAFETY: see the impl.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn signed(self, plus: u16) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_mask_xor_ps(self.0, !plus, self.0, _mm512_set1_ps(-0.0)) })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    unsafe fn exp2_integral(self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see the impl. The order is the trait's: 16 → 8 → 4 → 2 → 1.
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
            super::avx2::sum_eight(eight)
        }
    }
}
