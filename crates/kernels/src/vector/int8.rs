//! Sixteen i32 sums of products of four bytes: what the int8 product is written in.
//!
//! Codes are unsigned bytes, w + zero where w is signed; what is added up is Σ c · x. All implementations give the same
//! integers: nothing saturates, because the base's codes lie in 0..=255, those of low-rank factors in 0..=15, and each digit
//! of the activations in −127..=127.
//!
//! The factors' codes are so small that their products may be added in 16 bits for a while (2 · 15 · 127 a pair at four
//! bits), where that is what the instruction set is good at: *narrow* sums.

// As in `crate::int8`: loops over an index keep the sums in registers.
#![allow(clippy::needless_range_loop)]

use super::Vector;
use crate::rounded::Rounded;

/// Sixteen i32 sums.
///
/// # Safety
/// Every method may be called only where the CPU has the implementor's instruction set, and pointers must be valid for
/// the bytes that the method names.
#[allow(clippy::missing_safety_doc)] // one contract for all methods, stated above
pub unsafe trait Int8Vector: Copy {
    /// Rows of sums, of a tile's two halves, that the registers hold: 8 or 2.
    const HELD: usize;
    /// The floats that go with it.
    type Floats: Vector;
    /// Sixteen times four codes.
    type Codes: Copy;
    /// As many inputs.
    type Inputs: Copy;

    /// Passes over a block's codes, one for each digit of the inputs, the coarse one first: 2, or 1 where products take
    /// both at once.
    const DIGITS: usize;
    /// Sixteen times four of the base's codes, as its products take them.
    type Wide: Copy;
    /// What a pass takes of four inputs of a row.
    type Digit: Copy;
    /// What their products are added in.
    type WideSums: Copy;
    /// 0.
    unsafe fn wide_sums() -> Self::WideSums;
    /// 64 codes of `BITS` bits, 8 or 4: bits `4 · field ..` of each of the 64 bytes at `from` where they are 4.
    unsafe fn load_wide<const BITS: usize>(from: *const u8, field: usize) -> Self::Wide;
    /// Digit `digit` of the four inputs that begin at value `at`.
    unsafe fn load_digit(x: &Rounded, at: usize, digit: usize) -> Self::Digit;
    /// Adds the products of output o's four codes with x to sum o.
    unsafe fn add_wide(sums: Self::WideSums, codes: Self::Wide, x: Self::Digit) -> Self::WideSums;
    /// 128 · sums, after the coarse digit.
    unsafe fn next_digit(sums: Self::WideSums) -> Self::WideSums;
    /// Sum by sum.
    unsafe fn add_sums(a: Self::WideSums, b: Self::WideSums) -> Self::WideSums;
    /// Σ code · (128 · coarse + fine), as floats.
    unsafe fn wide_to_floats(sums: Self::WideSums) -> Self::Floats;
    /// What products of small codes are added in.
    type Narrow: Copy;
    /// 0, to which narrow sums are added.
    unsafe fn begin_narrow() -> Self;
    /// 0.
    unsafe fn narrow() -> Self::Narrow;
    /// Adds the products of output o's four codes with x, which holds four i8, to sum o.
    unsafe fn add_narrow(narrow: Self::Narrow, codes: Self::Codes, x: i32) -> Self::Narrow;
    /// Adds narrow sums.
    unsafe fn widen(self, narrow: Self::Narrow) -> Self;
    /// 64 codes of `BITS` bits, 2 or 4: bits `BITS · field ..` of each of the 64 bytes at `from`.
    unsafe fn load_fields<const BITS: usize>(from: *const u8, field: usize) -> Self::Codes;
    /// 16 inputs, four times over.
    unsafe fn load_inputs_four_times(from: *const i8) -> Self::Inputs;
    /// Adds the products of each four codes with the four inputs in their place.
    unsafe fn add_narrow_neighbours(narrow: Self::Narrow, codes: Self::Codes, x: Self::Inputs) -> Self::Narrow;
    /// The sums as floats.
    unsafe fn to_floats(self) -> Self::Floats;
}

/// The reference.
#[derive(Debug, Clone, Copy)]
pub struct Scalar([i32; 16]);

// SAFETY: needs no CPU feature; reads exactly 64 codes.
unsafe impl Int8Vector for Scalar {
    const HELD: usize = 8;
    type Floats = super::scalar::Scalar;
    type Codes = [u8; 64];
    type Inputs = [i8; 64];
    type Narrow = Self;
    const DIGITS: usize = 1;
    type Wide = [u8; 64];
    type Digit = [i32; 4];
    type WideSums = Self;

    unsafe fn wide_sums() -> Self {
        Self([0; 16])
    }
    unsafe fn load_wide<const BITS: usize>(from: *const u8, field: usize) -> [u8; 64] {
        // SAFETY: the caller promises 64 readable bytes.
        let bytes = unsafe { from.cast::<[u8; 64]>().read() };
        if BITS == 4 { bytes.map(|byte| byte >> (4 * field) & 15) } else { bytes }
    }
    unsafe fn load_digit(x: &Rounded, at: usize, _: usize) -> [i32; 4] {
        std::array::from_fn(|i| (i32::from(x.codes[at + i]) << 7) + i32::from(x.fine[at + i]))
    }
    unsafe fn add_wide(sums: Self, codes: [u8; 64], x: [i32; 4]) -> Self {
        Self(std::array::from_fn(|o| sums.0[o] + (0..4).map(|i| i32::from(codes[4 * o + i]) * x[i]).sum::<i32>()))
    }
    unsafe fn next_digit(sums: Self) -> Self {
        sums
    }
    unsafe fn add_sums(a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|o| a.0[o] + b.0[o]))
    }
    unsafe fn wide_to_floats(sums: Self) -> Self::Floats {
        // SAFETY: needs no CPU feature.
        unsafe { sums.to_floats() }
    }
    unsafe fn begin_narrow() -> Self {
        Self([0; 16])
    }
    unsafe fn narrow() -> Self {
        Self([0; 16])
    }
    unsafe fn add_narrow(narrow: Self, codes: [u8; 64], x: i32) -> Self {
        let x = x.to_le_bytes().map(|byte| i32::from(byte as i8));
        Self(std::array::from_fn(|o| narrow.0[o] + (0..4).map(|i| i32::from(codes[4 * o + i]) * x[i]).sum::<i32>()))
    }
    unsafe fn widen(self, narrow: Self) -> Self {
        Self(std::array::from_fn(|o| self.0[o] + narrow.0[o]))
    }
    unsafe fn load_fields<const BITS: usize>(from: *const u8, field: usize) -> [u8; 64] {
        // SAFETY: the caller promises 64 readable bytes.
        let bytes = unsafe { from.cast::<[u8; 64]>().read() };
        bytes.map(|byte| byte >> (BITS * field) & ((1 << BITS) - 1))
    }
    unsafe fn load_inputs_four_times(from: *const i8) -> [i8; 64] {
        // SAFETY: the caller promises 16 readable inputs.
        let inputs = unsafe { from.cast::<[i8; 16]>().read() };
        std::array::from_fn(|i| inputs[i % 16])
    }
    unsafe fn add_narrow_neighbours(narrow: Self, codes: [u8; 64], x: [i8; 64]) -> Self {
        let dot = |j: usize| (4 * j..4 * j + 4).map(|i| i32::from(codes[i]) * i32::from(x[i])).sum::<i32>();
        Self(std::array::from_fn(|j| narrow.0[j] + dot(j)))
    }
    unsafe fn to_floats(self) -> Self::Floats {
        let floats = self.0.map(|sum| sum as f32);
        // SAFETY: 16 readable floats.
        unsafe { Self::Floats::load(floats.as_ptr()) }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, Avx512Vnni};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Int8Vector;
    use crate::{
        rounded::Rounded,
        vector::{avx2, avx512},
    };
    use std::arch::x86_64::*;

    /// Two registers, from 0: a product of bytes is |w| times ±x in 16 bits (a pair is at most 2 · 127 · 127 = 32,258
    /// and never saturates), then pairs of pairs in 32.
    #[derive(Debug, Clone, Copy)]
    pub struct Avx2(__m256i, __m256i);

    /// The sum of each two 16-bit values.
    #[inline(always)]
    unsafe fn pairs(sums: __m256i) -> __m256i {
        // SAFETY: AVX2, the caller's promise.
        unsafe { _mm256_madd_epi16(sums, _mm256_set1_epi16(1)) }
    }

    // SAFETY: only AVX2, which `Isa::Avx2` asks the CPU for; reads exactly 64 codes.
    unsafe impl Int8Vector for Avx2 {
        const HELD: usize = 2;
        type Floats = avx2::Avx2;
        type Codes = (__m256i, __m256i);
        type Inputs = (__m256i, __m256i);
        type Narrow = (__m256i, __m256i);
        const DIGITS: usize = 1;
        /// Four outputs each, widened to 16 bits.
        type Wide = [__m256i; 4];
        /// 128 · coarse + fine, in 16 bits.
        type Digit = i64;
        /// Four outputs each, the sums of two pairs of inputs side by side.
        type WideSums = [__m256i; 4];

        #[inline(always)]
        unsafe fn wide_sums() -> [__m256i; 4] {
            // SAFETY: see the impl.
            unsafe { [_mm256_setzero_si256(); 4] }
        }
        #[inline(always)]
        unsafe fn load_wide<const BITS: usize>(from: *const u8, field: usize) -> [__m256i; 4] {
            // SAFETY: see the impl. What is shifted in from the neighbouring byte is masked out.
            unsafe {
                let mut codes = [_mm256_setzero_si256(); 4];
                for part in 0..4 {
                    let mut bytes = _mm_loadu_si128(from.add(16 * part).cast());
                    if BITS == 4 {
                        bytes = _mm_srl_epi16(bytes, _mm_cvtsi32_si128(4 * field as i32));
                        bytes = _mm_and_si128(bytes, _mm_set1_epi8(15));
                    }
                    codes[part] = _mm256_cvtepu8_epi16(bytes);
                }
                codes
            }
        }
        #[inline(always)]
        unsafe fn load_digit(x: &Rounded, at: usize, _: usize) -> i64 {
            // SAFETY: the caller stays inside the rows, and there are joined digits for this instruction set.
            unsafe { x.joined.as_ptr().add(at).cast::<i64>().read_unaligned() }
        }
        #[inline(always)]
        unsafe fn add_wide(mut sums: [__m256i; 4], codes: [__m256i; 4], x: i64) -> [__m256i; 4] {
            // SAFETY: see the impl. A product is at most 255 · 16,320, and a block has 32 of them in each sum.
            unsafe {
                let x = _mm256_set1_epi64x(x);
                for part in 0..4 {
                    sums[part] = _mm256_add_epi32(sums[part], _mm256_madd_epi16(codes[part], x));
                }
                sums
            }
        }
        #[inline(always)]
        unsafe fn next_digit(sums: [__m256i; 4]) -> [__m256i; 4] {
            sums
        }
        #[inline(always)]
        unsafe fn add_sums(mut a: [__m256i; 4], b: [__m256i; 4]) -> [__m256i; 4] {
            // SAFETY: see the impl.
            unsafe {
                for part in 0..4 {
                    a[part] = _mm256_add_epi32(a[part], b[part]);
                }
                a
            }
        }
        #[inline(always)]
        unsafe fn wide_to_floats(sums: [__m256i; 4]) -> avx2::Avx2 {
            // SAFETY: see the impl. Adding neighbours works in halves of a register: quarters 0 and 2 come first.
            unsafe {
                let low = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(sums[0], sums[1]));
                let high = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(sums[2], sums[3]));
                Self(low, high).to_floats()
            }
        }

        #[inline(always)]
        unsafe fn begin_narrow() -> Self {
            // SAFETY: see the impl.
            unsafe { Self(_mm256_setzero_si256(), _mm256_setzero_si256()) }
        }
        #[inline(always)]
        unsafe fn narrow() -> (__m256i, __m256i) {
            // SAFETY: see the impl.
            unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
        }
        #[inline(always)]
        unsafe fn add_narrow(narrow: (__m256i, __m256i), codes: (__m256i, __m256i), x: i32) -> (__m256i, __m256i) {
            // SAFETY: see the impl.
            unsafe {
                let x = _mm256_set1_epi32(x);
                (
                    _mm256_add_epi16(narrow.0, _mm256_maddubs_epi16(codes.0, x)),
                    _mm256_add_epi16(narrow.1, _mm256_maddubs_epi16(codes.1, x)),
                )
            }
        }
        #[inline(always)]
        unsafe fn widen(self, narrow: (__m256i, __m256i)) -> Self {
            // SAFETY: see the impl.
            unsafe { Self(_mm256_add_epi32(self.0, pairs(narrow.0)), _mm256_add_epi32(self.1, pairs(narrow.1))) }
        }

        #[inline(always)]
        unsafe fn load_fields<const BITS: usize>(from: *const u8, field: usize) -> (__m256i, __m256i) {
            // SAFETY: see the impl. What is shifted in from the neighbouring byte is masked out.
            unsafe {
                let (shift, keep) = (_mm_cvtsi32_si128((BITS * field) as i32), _mm256_set1_epi8((1 << BITS) - 1));
                let field = |bytes| _mm256_and_si256(_mm256_srl_epi16(bytes, shift), keep);
                (field(_mm256_loadu_si256(from.cast())), field(_mm256_loadu_si256(from.add(32).cast())))
            }
        }
        #[inline(always)]
        unsafe fn load_inputs_four_times(from: *const i8) -> (__m256i, __m256i) {
            // SAFETY: see the impl.
            let inputs = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast())) };
            (inputs, inputs)
        }
        #[inline(always)]
        unsafe fn add_narrow_neighbours(
            narrow: (__m256i, __m256i),
            codes: (__m256i, __m256i),
            x: (__m256i, __m256i),
        ) -> (__m256i, __m256i) {
            // SAFETY: see the impl.
            unsafe {
                (
                    _mm256_add_epi16(narrow.0, _mm256_maddubs_epi16(codes.0, x.0)),
                    _mm256_add_epi16(narrow.1, _mm256_maddubs_epi16(codes.1, x.1)),
                )
            }
        }
        #[inline(always)]
        unsafe fn to_floats(self) -> avx2::Avx2 {
            // SAFETY: see the impl.
            unsafe { avx2::Avx2::of(_mm256_cvtepi32_ps(self.0), _mm256_cvtepi32_ps(self.1)) }
        }
    }

    /// Σ w · x of four bytes in each i32, without the instruction for it: even and odd bytes of both sides are widened
    /// to 16 bits; a product of two and the sum of a pair fit in 32.
    #[inline(always)]
    unsafe fn dots_512(codes: __m512i, x: __m512i) -> __m512i {
        // SAFETY: AVX-512 BW, the caller's promise.
        unsafe {
            let even = _mm512_and_si512(codes, _mm512_set1_epi16(0xff));
            let odd = _mm512_srli_epi16::<8>(codes);
            let x_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x));
            let x_odd = _mm512_srai_epi16::<8>(x);
            _mm512_add_epi32(_mm512_madd_epi16(even, x_even), _mm512_madd_epi16(odd, x_odd))
        }
    }

    /// One register; with `VNNI` one instruction for 64 products, else AVX2's way, twice as wide.
    #[derive(Debug, Clone, Copy)]
    pub struct Wide<const VNNI: bool>(__m512i);

    /// Without the instruction.
    pub type Avx512 = Wide<false>;
    /// With it.
    pub type Avx512Vnni = Wide<true>;

    impl<const VNNI: bool> Wide<VNNI> {
        /// `sums` + Σ c · x of four bytes in each i32.
        #[inline(always)]
        unsafe fn add_products(sums: __m512i, codes: __m512i, x: __m512i) -> __m512i {
            // SAFETY: see the impl below.
            unsafe {
                if VNNI { _mm512_dpbusd_epi32(sums, codes, x) } else { _mm512_add_epi32(sums, dots_512(codes, x)) }
            }
        }
    }

    // SAFETY: only AVX-512 F and BW, which `Isa::Avx512` asks the CPU for, and with `VNNI` that, which `Isa::Avx512Vnni`
    // asks for; reads exactly 64 codes.
    unsafe impl<const VNNI: bool> Int8Vector for Wide<VNNI> {
        const HELD: usize = 8;
        type Floats = avx512::Avx512;
        type Codes = __m512i;
        type Inputs = __m512i;
        type Narrow = __m512i;
        const DIGITS: usize = 2;
        type Wide = __m512i;
        type Digit = i32;
        type WideSums = __m512i;

        #[inline(always)]
        unsafe fn wide_sums() -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        unsafe fn load_wide<const BITS: usize>(from: *const u8, field: usize) -> __m512i {
            // SAFETY: see the impl.
            unsafe { if BITS == 4 { Self::load_fields::<4>(from, field) } else { _mm512_loadu_si512(from.cast()) } }
        }
        #[inline(always)]
        unsafe fn load_digit(x: &Rounded, at: usize, digit: usize) -> i32 {
            let digits = if digit == 0 { &x.codes } else { &x.fine };
            // SAFETY: the caller stays inside the rows.
            unsafe { digits.as_ptr().add(at).cast::<i32>().read_unaligned() }
        }
        #[inline(always)]
        unsafe fn add_wide(sums: __m512i, codes: __m512i, x: i32) -> __m512i {
            // SAFETY: see the impl.
            unsafe { Self::add_products(sums, codes, _mm512_set1_epi32(x)) }
        }
        #[inline(always)]
        unsafe fn next_digit(sums: __m512i) -> __m512i {
            // SAFETY: see the impl. A block's sum is at most 64 · 255 · 127.
            unsafe { _mm512_slli_epi32::<7>(sums) }
        }
        #[inline(always)]
        unsafe fn add_sums(a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_add_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn wide_to_floats(sums: __m512i) -> avx512::Avx512 {
            // SAFETY: see the impl.
            unsafe { Self(sums).to_floats() }
        }

        #[inline(always)]
        unsafe fn begin_narrow() -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm512_setzero_si512() })
        }
        #[inline(always)]
        unsafe fn narrow() -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        unsafe fn add_narrow(narrow: __m512i, codes: __m512i, x: i32) -> __m512i {
            // SAFETY: see the impl.
            unsafe {
                let x = _mm512_set1_epi32(x);
                if VNNI {
                    _mm512_dpbusd_epi32(narrow, codes, x)
                } else {
                    _mm512_add_epi16(narrow, _mm512_maddubs_epi16(codes, x))
                }
            }
        }
        #[inline(always)]
        unsafe fn widen(self, narrow: __m512i) -> Self {
            // SAFETY: see the impl.
            unsafe {
                let sums = if VNNI { narrow } else { _mm512_madd_epi16(narrow, _mm512_set1_epi16(1)) };
                Self(_mm512_add_epi32(self.0, sums))
            }
        }

        #[inline(always)]
        unsafe fn load_fields<const BITS: usize>(from: *const u8, field: usize) -> __m512i {
            // SAFETY: see the impl. What is shifted in from the neighbouring byte is masked out.
            unsafe {
                let shift = _mm_cvtsi32_si128((BITS * field) as i32);
                let bytes = _mm512_srl_epi16(_mm512_loadu_si512(from.cast()), shift);
                _mm512_and_si512(bytes, _mm512_set1_epi8((1 << BITS) - 1))
            }
        }
        #[inline(always)]
        unsafe fn load_inputs_four_times(from: *const i8) -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(from.cast())) }
        }
        #[inline(always)]
        unsafe fn add_narrow_neighbours(narrow: __m512i, codes: __m512i, x: __m512i) -> __m512i {
            // SAFETY: see the impl.
            unsafe {
                if VNNI {
                    _mm512_dpbusd_epi32(narrow, codes, x)
                } else {
                    _mm512_add_epi16(narrow, _mm512_maddubs_epi16(codes, x))
                }
            }
        }
        #[inline(always)]
        unsafe fn to_floats(self) -> avx512::Avx512 {
            // SAFETY: see the impl.
            avx512::Avx512::of(unsafe { _mm512_cvtepi32_ps(self.0) })
        }
    }
}
