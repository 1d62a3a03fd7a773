//! 32 i16 sums of products of one-bit codes, by looking them up: four codes of an output choose among the sixteen sums
//! that its four inputs can have.
//!
//! With 32 lanes of 16 bits one instruction (`vpermw`) looks up for 32 outputs, and takes the codes as they lie in a word of
//! each; with bytes two look up the low and the high byte of each sum, and the codes lie in nibbles. T-MAC (Wei et al., 2024)
//! multiplies so; its sums are rounded to bytes, these are exact modulo 2¹⁶, the same integers on all instruction sets.
//!
//! Measured on one core from cache, 1536 x 576, multiply-adds a nanosecond, one row and eight of one matrix: with AVX2 21 by
//! making bytes of the bits, 87 and 99 by looking up; with VNNI 86 and 157 by bytes and dot products, 118 to 142 and 170 by
//! looking up. Tables of five and six inputs would need a quarter fewer operations, and twice the memory.

use super::Vector;

/// Inputs at a time: four quads.
pub const UNIT: usize = 16;
/// Bytes of a unit's tables: the sums of every subset of four inputs, for each quad.
pub const TABLES: usize = 128;

/// How the codes of a unit lie for an instruction set: 64 bytes for 32 outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A 16-bit word for each output: bit i is input i.
    Words,
    /// 16 bytes for each quad: nibble o is output o.
    Nibbles,
}

/// 32 i16 sums.
///
/// # Safety
/// Every method may be called only where the CPU has the implementor's instruction set, and pointers must be valid for
/// the bytes that the method names.
#[allow(clippy::missing_safety_doc)] // one contract for all methods, stated above
pub unsafe trait Lookup: Copy {
    /// The floats that go with it.
    type Floats: Vector;
    /// Whether the registers hold the sums of two rows and two tiles.
    const HOLDS_FOUR: bool;
    /// A unit's codes.
    type Codes: Copy;
    /// Writes a unit's tables, [`TABLES`] bytes: for each quad at i the sum of twice each input whose bit in i is set.
    unsafe fn write_tables(inputs: *const i8, to: *mut u8);
    /// All sums `offset`.
    unsafe fn begin(offset: i16) -> Self;
    /// Reads a unit's 64 bytes, which lie as the instruction set has them.
    unsafe fn codes(from: *const u8) -> Self::Codes;
    /// Adds to sum o what each quad's table, of those at `tables`, has for output o.
    unsafe fn add(self, codes: Self::Codes, tables: *const u8) -> Self;
    /// Adds twice the others.
    unsafe fn add_twice(self, other: Self) -> Self;
    /// The sums as floats, 16 at a time.
    unsafe fn to_floats(self) -> [Self::Floats; 2];
}

/// The reference: [`Layout::Words`].
#[derive(Debug, Clone, Copy)]
pub struct Scalar([i16; 32]);

// SAFETY: needs no CPU feature; reads and writes exactly the bytes named.
unsafe impl Lookup for Scalar {
    type Floats = super::scalar::Scalar;
    const HOLDS_FOUR: bool = false;
    type Codes = [u16; 32];

    unsafe fn write_tables(inputs: *const i8, to: *mut u8) {
        // SAFETY: the caller promises 16 readable inputs.
        let inputs = unsafe { inputs.cast::<[i8; UNIT]>().read() };
        let sum = |quad: usize, i: usize| {
            (0..4).map(|bit| 2 * i16::from(inputs[4 * quad + bit]) * (i >> bit & 1) as i16).sum::<i16>()
        };
        let tables: [[i16; 16]; 4] = std::array::from_fn(|quad| std::array::from_fn(|i| sum(quad, i)));
        // SAFETY: the caller promises 128 writable bytes.
        unsafe { to.cast::<[[i16; 16]; 4]>().write_unaligned(tables) }
    }
    unsafe fn begin(offset: i16) -> Self {
        Self([offset; 32])
    }
    unsafe fn codes(from: *const u8) -> [u16; 32] {
        // SAFETY: the caller promises 64 readable bytes.
        unsafe { from.cast::<[u16; 32]>().read_unaligned() }
    }
    unsafe fn add(self, codes: [u16; 32], tables: *const u8) -> Self {
        // SAFETY: the caller promises 128 readable bytes.
        let tables = unsafe { tables.cast::<[[i16; 16]; 4]>().read_unaligned() };
        let looked_up = |o: usize, quad: usize| tables[quad][usize::from(codes[o] >> (4 * quad) & 15)];
        Self(std::array::from_fn(|o| (0..4).fold(self.0[o], |sum, quad| sum.wrapping_add(looked_up(o, quad)))))
    }
    unsafe fn add_twice(self, other: Self) -> Self {
        Self(std::array::from_fn(|o| self.0[o].wrapping_add(other.0[o].wrapping_mul(2))))
    }
    unsafe fn to_floats(self) -> [Self::Floats; 2] {
        let floats = self.0.map(f32::from);
        // SAFETY: 16 readable floats at each of two places.
        std::array::from_fn(|i| unsafe { Self::Floats::load(floats[16 * i..].as_ptr()) })
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lookup, TABLES, UNIT};
    use crate::vector::{avx2, avx512};
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
    unsafe fn sums(inputs: *const i8) -> __m256i {
        // SAFETY: AVX2 and four readable inputs, the caller's promise.
        unsafe {
            let input = |i: usize| _mm256_and_si256(_mm256_set1_epi16(2 * i16::from(*inputs.add(i))), subsets(i));
            _mm256_add_epi16(_mm256_add_epi16(input(0), input(1)), _mm256_add_epi16(input(2), input(3)))
        }
    }

    /// Four registers; each half of one belongs to a quad. A table is looked up byte by byte, its low bytes and its high
    /// ones, which lie apart for two quads together. Register 2n + u: nibble n of the lower or upper eight bytes of a quad's
    /// codes.
    #[derive(Debug, Clone, Copy)]
    pub struct Avx2([__m256i; 4]);

    // SAFETY: only AVX2, which `Isa::Avx2` asks the CPU for; reads and writes exactly the bytes named.
    unsafe impl Lookup for Avx2 {
        type Floats = avx2::Avx2;
        const HOLDS_FOUR: bool = false;
        type Codes = [__m256i; 2];

        #[inline(always)]
        unsafe fn write_tables(inputs: *const i8, to: *mut u8) {
            // SAFETY: see the impl. Packing works in halves of a register: quarters 0 and 2 belong together.
            unsafe {
                for pair in 0..2 {
                    let (inputs, to) = (inputs.add(pair * UNIT / 2), to.add(pair * TABLES / 2));
                    let (first, second) = (sums(inputs), sums(inputs.add(4)));
                    let low = |sums| _mm256_and_si256(sums, _mm256_set1_epi16(0xff));
                    let high = |sums| _mm256_srli_epi16::<8>(sums);
                    let both = |a, b| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(a, b));
                    _mm256_storeu_si256(to.cast(), both(low(first), low(second)));
                    _mm256_storeu_si256(to.add(32).cast(), both(high(first), high(second)));
                }
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
        unsafe fn codes(from: *const u8) -> [__m256i; 2] {
            // SAFETY: see the impl.
            unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
        }
        #[inline(always)]
        unsafe fn add(mut self, codes: [__m256i; 2], tables: *const u8) -> Self {
            // SAFETY: see the impl.
            unsafe {
                for (pair, bytes) in codes.into_iter().enumerate() {
                    let tables = tables.add(pair * TABLES / 2);
                    let low = _mm256_loadu_si256(tables.cast());
                    let high = _mm256_loadu_si256(tables.add(32).cast());
                    for nibble in 0..2 {
                        let shifted = if nibble == 0 { bytes } else { _mm256_srli_epi16::<4>(bytes) };
                        let places = _mm256_and_si256(shifted, _mm256_set1_epi8(15));
                        let (low, high) = (_mm256_shuffle_epi8(low, places), _mm256_shuffle_epi8(high, places));
                        let (lower, upper) = (2 * nibble, 2 * nibble + 1);
                        self.0[lower] = _mm256_add_epi16(self.0[lower], _mm256_unpacklo_epi8(low, high));
                        self.0[upper] = _mm256_add_epi16(self.0[upper], _mm256_unpackhi_epi8(low, high));
                    }
                }
                self
            }
        }
        #[inline(always)]
        unsafe fn add_twice(mut self, other: Self) -> Self {
            // SAFETY: see the impl.
            unsafe {
                for (sums, other) in self.0.iter_mut().zip(other.0) {
                    *sums = _mm256_add_epi16(*sums, _mm256_add_epi16(other, other));
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

    /// A quad's table, twice over.
    #[inline(always)]
    unsafe fn table(from: *const u8) -> __m512i {
        // SAFETY: AVX-512 and 32 readable bytes, the caller's promise.
        unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(from.cast())) }
    }

    /// One register. A look-up takes the low five bits of each word: a table stands in it twice, so that the fifth does not
    /// matter.
    #[derive(Debug, Clone, Copy)]
    pub struct Avx512(__m512i);

    // SAFETY: only AVX-512 F and BW, which `Isa::Avx512` and those after it ask the CPU for; reads and writes exactly the
    // bytes named.
    unsafe impl Lookup for Avx512 {
        type Floats = avx512::Avx512;
        const HOLDS_FOUR: bool = true;
        type Codes = __m512i;

        #[inline(always)]
        unsafe fn write_tables(inputs: *const i8, to: *mut u8) {
            // SAFETY: see the impl.
            unsafe {
                // Of each subset, one after another, twice each of its members: bytes of 32-bit lanes.
                let members = _mm512_setr_epi32(
                    0x0000_0000,
                    0x0000_0002,
                    0x0000_0200,
                    0x0000_0202,
                    0x0002_0000,
                    0x0002_0002,
                    0x0002_0200,
                    0x0002_0202,
                    0x0200_0000,
                    0x0200_0002,
                    0x0200_0200,
                    0x0200_0202,
                    0x0202_0000,
                    0x0202_0002,
                    0x0202_0200,
                    0x0202_0202,
                );
                for quad in 0..UNIT / 4 {
                    let x = _mm512_set1_epi32(inputs.add(4 * quad).cast::<i32>().read_unaligned());
                    let sums = _mm512_madd_epi16(_mm512_maddubs_epi16(members, x), _mm512_set1_epi16(1));
                    _mm256_storeu_si256(to.add(32 * quad).cast(), _mm512_cvtepi32_epi16(sums));
                }
            }
        }
        #[inline(always)]
        unsafe fn begin(offset: i16) -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm512_set1_epi16(offset) })
        }
        #[inline(always)]
        unsafe fn codes(from: *const u8) -> __m512i {
            // SAFETY: see the impl.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn add(self, codes: __m512i, tables: *const u8) -> Self {
            // SAFETY: see the impl.
            unsafe {
                let first = _mm512_permutexvar_epi16(codes, table(tables));
                let second = _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(codes), table(tables.add(32)));
                let third = _mm512_permutexvar_epi16(_mm512_srli_epi16::<8>(codes), table(tables.add(64)));
                let fourth = _mm512_permutexvar_epi16(_mm512_srli_epi16::<12>(codes), table(tables.add(96)));
                let sums = _mm512_add_epi16(_mm512_add_epi16(first, second), _mm512_add_epi16(third, fourth));
                Self(_mm512_add_epi16(self.0, sums))
            }
        }
        #[inline(always)]
        unsafe fn add_twice(self, other: Self) -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm512_add_epi16(self.0, _mm512_add_epi16(other.0, other.0)) })
        }
        #[inline(always)]
        unsafe fn to_floats(self) -> [avx512::Avx512; 2] {
            // SAFETY: see the impl.
            unsafe {
                // No closure: it would be a call.
                let low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(self.0));
                let high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64::<1>(self.0));
                [avx512::Avx512::of(_mm512_cvtepi32_ps(low)), avx512::Avx512::of(_mm512_cvtepi32_ps(high))]
            }
        }
    }
}
