//! 32 i16 sums of products of one-bit codes, by looking them up: four codes of an output choose among the sixteen sums
//! that its four inputs can have.
//!
//! Without an instruction for dot products of bytes that is three times as fast as making bytes of the bits; with one it is
//! no faster. (Measured on one core from cache, one row, AVX2: 21 multiply-adds a nanosecond that way, 61 this way. With
//! VNNI: 97 and 92; look-ups of 16 bits, which need tiles of 128 outputs, reach 145, but more than the memory brings helps
//! nobody, and small matrices do not come in 128s.) T-MAC (Wei et al., 2024) multiplies so; its sums are rounded to bytes,
//! these are exact modulo 2¹⁶, the same integers on all instruction sets.

use super::Vector;

/// Inputs at a time: two quads.
pub const PAIR: usize = 8;
/// Bytes of a pair's tables: the sums of every subset of four inputs, twice over each, for both quads.
pub const TABLES: usize = 64;

/// 32 i16 sums.
///
/// # Safety
/// Every method may be called only where the CPU has the implementor's instruction set, and pointers must be valid for
/// the bytes that the method names.
#[allow(clippy::missing_safety_doc)] // one contract for all methods, stated above
pub unsafe trait Lookup: Copy {
    /// The floats that go with it.
    type Floats: Vector;
    /// A pair's tables, ready to be looked up in.
    type Tables: Copy;
    /// Writes a pair's tables, [`TABLES`] bytes: for each quad at i the sum of twice each input whose bit in i is set.
    unsafe fn write_tables(inputs: [i8; PAIR], to: *mut u8);
    /// Reads them.
    unsafe fn tables(from: *const u8) -> Self::Tables;
    /// Tables whose sums are twice as large.
    unsafe fn doubled(tables: Self::Tables) -> Self::Tables;
    /// All sums `offset`.
    unsafe fn begin(offset: i16) -> Self;
    /// Adds to sum o what each quad's table has at nibble o of its 16 bytes, of the 32 at `codes`.
    unsafe fn add(self, tables: Self::Tables, codes: *const u8) -> Self;
    /// The sums as floats, 16 at a time.
    unsafe fn to_floats(self) -> [Self::Floats; 2];
}

/// The reference.
#[derive(Debug, Clone, Copy)]
pub struct Scalar([i16; 32]);

// SAFETY: needs no CPU feature; reads and writes exactly the bytes named.
unsafe impl Lookup for Scalar {
    type Floats = super::scalar::Scalar;
    type Tables = [[i16; 16]; 2];

    unsafe fn write_tables(inputs: [i8; PAIR], to: *mut u8) {
        let sum = |quad: usize, i: usize| {
            (0..4).map(|bit| 2 * i16::from(inputs[4 * quad + bit]) * (i >> bit & 1) as i16).sum::<i16>()
        };
        let tables: [[i16; 16]; 2] = std::array::from_fn(|quad| std::array::from_fn(|i| sum(quad, i)));
        // SAFETY: the caller promises 64 writable bytes.
        unsafe { to.cast::<[[i16; 16]; 2]>().write_unaligned(tables) }
    }
    unsafe fn tables(from: *const u8) -> [[i16; 16]; 2] {
        // SAFETY: the caller promises 64 readable bytes.
        unsafe { from.cast::<[[i16; 16]; 2]>().read_unaligned() }
    }
    unsafe fn doubled(tables: [[i16; 16]; 2]) -> [[i16; 16]; 2] {
        tables.map(|table| table.map(|sum| sum.wrapping_mul(2)))
    }
    unsafe fn begin(offset: i16) -> Self {
        Self([offset; 32])
    }
    unsafe fn add(self, [first, second]: [[i16; 16]; 2], codes: *const u8) -> Self {
        // SAFETY: the caller promises 32 readable bytes.
        let codes = unsafe { codes.cast::<[[u8; 16]; 2]>().read() };
        let nibble = |quad: usize, o: usize| usize::from(codes[quad][o / 2] >> (o % 2 * 4) & 15);
        let sums = |o: usize| first[nibble(0, o)].wrapping_add(second[nibble(1, o)]);
        Self(std::array::from_fn(|o| self.0[o].wrapping_add(sums(o))))
    }
    unsafe fn to_floats(self) -> [Self::Floats; 2] {
        let floats = self.0.map(f32::from);
        // SAFETY: 16 readable floats at each of two places.
        std::array::from_fn(|i| unsafe { Self::Floats::load(floats[16 * i..].as_ptr()) })
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lookup, PAIR};
    use crate::vector::avx2;
    use std::arch::x86_64::*;

    /// Where bit `bit` of 0..16 is set.
    #[inline(always)]
    unsafe fn subsets(bit: usize) -> __m256i {
        // SAFETY: AVX2, the caller's promise.
        unsafe {
            let each = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let bit = _mm256_set1_epi16(1 << bit);
            _mm256_cmpeq_epi16(_mm256_and_si256(each, bit), bit)
        }
    }

    /// The sums of every subset of four inputs, twice over.
    #[inline(always)]
    unsafe fn sums(inputs: &[i8]) -> __m256i {
        // SAFETY: AVX2, the caller's promise.
        unsafe {
            let input = |i: usize| _mm256_and_si256(_mm256_set1_epi16(2 * i16::from(inputs[i])), subsets(i));
            _mm256_add_epi16(_mm256_add_epi16(input(0), input(1)), _mm256_add_epi16(input(2), input(3)))
        }
    }

    /// Four registers; each half of one belongs to a quad. A table is looked up byte by byte, its low bytes and its high
    /// ones. Register 2n + u: nibble n of the lower or upper eight bytes of a quad's codes.
    #[derive(Debug, Clone, Copy)]
    pub struct Avx2([__m256i; 4]);

    // SAFETY: only AVX2, which `Isa::Avx2` and those after it ask the CPU for; reads and writes exactly the bytes named.
    unsafe impl Lookup for Avx2 {
        type Floats = avx2::Avx2;
        /// The low bytes of both, and the high bytes.
        type Tables = (__m256i, __m256i);

        #[inline(always)]
        unsafe fn write_tables(inputs: [i8; PAIR], to: *mut u8) {
            // SAFETY: see the impl. Packing works in halves of a register: quarters 0 and 2 belong together.
            unsafe {
                let (first, second) = (sums(&inputs[..4]), sums(&inputs[4..]));
                let low = |sums| _mm256_and_si256(sums, _mm256_set1_epi16(0xff));
                let high = |sums| _mm256_srli_epi16::<8>(sums);
                let both = |a, b| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(a, b));
                _mm256_storeu_si256(to.cast(), both(low(first), low(second)));
                _mm256_storeu_si256(to.add(32).cast(), both(high(first), high(second)));
            }
        }
        #[inline(always)]
        unsafe fn tables(from: *const u8) -> (__m256i, __m256i) {
            // SAFETY: see the impl.
            unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())) }
        }
        #[inline(always)]
        unsafe fn doubled((low, high): (__m256i, __m256i)) -> (__m256i, __m256i) {
            // SAFETY: see the impl. The low byte's highest bit goes over.
            unsafe {
                let over = _mm256_and_si256(_mm256_srli_epi16::<7>(low), _mm256_set1_epi8(1));
                (_mm256_add_epi8(low, low), _mm256_or_si256(_mm256_add_epi8(high, high), over))
            }
        }
        #[inline(always)]
        unsafe fn begin(offset: i16) -> Self {
            // SAFETY: see the impl. The halves are added up in the end.
            unsafe {
                let first = _mm256_zextsi128_si256(_mm_set1_epi16(offset));
                Self([first; 4])
            }
        }
        #[inline(always)]
        unsafe fn add(mut self, (low, high): (__m256i, __m256i), codes: *const u8) -> Self {
            // SAFETY: see the impl.
            unsafe {
                let bytes = _mm256_loadu_si256(codes.cast());
                for nibble in 0..2 {
                    let shifted = if nibble == 0 { bytes } else { _mm256_srli_epi16::<4>(bytes) };
                    let places = _mm256_and_si256(shifted, _mm256_set1_epi8(15));
                    let (low, high) = (_mm256_shuffle_epi8(low, places), _mm256_shuffle_epi8(high, places));
                    let (lower, upper) = (2 * nibble, 2 * nibble + 1);
                    self.0[lower] = _mm256_add_epi16(self.0[lower], _mm256_unpacklo_epi8(low, high));
                    self.0[upper] = _mm256_add_epi16(self.0[upper], _mm256_unpackhi_epi8(low, high));
                }
                self
            }
        }
        #[inline(always)]
        unsafe fn to_floats(self) -> [avx2::Avx2; 2] {
            // SAFETY: see the impl.
            unsafe {
                let joined =
                    self.0.map(|sums| _mm_add_epi16(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums)));
                let eight = |sums| _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(sums));
                let sixteen = |even, odd| {
                    avx2::Avx2::of(eight(_mm_unpacklo_epi16(even, odd)), eight(_mm_unpackhi_epi16(even, odd)))
                };
                [sixteen(joined[0], joined[2]), sixteen(joined[1], joined[3])]
            }
        }
    }
}
