//! 32 i16 sums of products of one-bit codes, by looking them up: a few codes of an output choose among the sums that its
//! inputs can have.
//!
//! With 32 lanes of 16 bits one instruction looks up for 32 outputs, and takes the codes as they lie in a word of each: five
//! codes in a table of one register (`vpermw`), six in one of two (`vpermi2w`, as fast), so that three look-ups do for the
//! sixteen codes of a word. With bytes four codes choose, two instructions look up the low and the high byte of each sum, and
//! the codes lie in nibbles. T-MAC (Wei et al., 2024) multiplies so; its sums are rounded to bytes, these are exact modulo
//! 2¹⁶, the same integers on all instruction sets.
//!
//! Measured on one core from cache, 1536 x 576, multiply-adds a nanosecond, one row and eight of one matrix: with AVX2 21 by
//! making bytes of the bits, 87 and 99 by looking up; with VNNI 86 and 157 by bytes and dot products, 127 and 177 by
//! looking up four codes at a time, 187 and 245 by five, five and six.

use super::Vector;

/// Inputs at a time.
pub const UNIT: usize = 16;
/// With [`Layout::Words`], the first input of each table and the inputs that it has.
const WORD_TABLES: [(usize, usize); 3] = [(0, 5), (5, 5), (10, 6)];

/// How the codes of a unit lie for an instruction set: 64 bytes for 32 outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A 16-bit word for each output: bit i is input i.
    Words,
    /// 16 bytes for each quad: nibble o is output o.
    Nibbles,
}

impl Layout {
    /// Bytes of a unit's tables: of words the sums of every subset of five, five and six inputs, of nibbles of each four.
    pub const fn table_bytes(self) -> usize {
        match self {
            Self::Words => 256,
            Self::Nibbles => 128,
        }
    }

    /// The place of output `lane` of 32 among the floats that its sums become: of words the even ones come first, since those in
    /// the upper halves of 32 bits are numbers of 32 bits already.
    pub const fn place(self, lane: usize) -> usize {
        match self {
            Self::Words => lane / 2 + lane % 2 * 16,
            Self::Nibbles => lane,
        }
    }
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
    /// How codes lie.
    const LAYOUT: Layout;
    /// What a sum of one is as a float: a power of two.
    const ONE: f32;
    /// Whether the registers hold the sums of two rows and two tiles.
    const HOLDS_FOUR: bool;
    /// A unit's codes.
    type Codes: Copy;
    /// Writes a unit's tables, [`Layout::table_bytes`]: of each at i the sum of twice each input whose bit in i is set.
    unsafe fn write_tables(inputs: *const i8, to: *mut u8);
    /// All sums `offset`.
    unsafe fn begin(offset: i16) -> Self;
    /// Reads a unit's 64 bytes, which lie as the instruction set has them.
    unsafe fn codes(from: *const u8) -> Self::Codes;
    /// Adds to sum o what each table, of those at `tables`, has for output o.
    unsafe fn add(self, codes: Self::Codes, tables: *const u8) -> Self;
    /// Adds twice the others.
    unsafe fn add_twice(self, other: Self) -> Self;
    /// [`Lookup::ONE`] times the sums as floats, 16 at a time, at the layout's places.
    unsafe fn to_floats(self) -> [Self::Floats; 2];
    /// What lies at the layout's places as outputs follow each other.
    unsafe fn in_order(floats: [Self::Floats; 2]) -> [Self::Floats; 2];
}

/// The reference: [`Layout::Words`].
#[derive(Debug, Clone, Copy)]
pub struct Scalar([i16; 32]);

// SAFETY: needs no CPU feature; reads and writes exactly the bytes named.
unsafe impl Lookup for Scalar {
    type Floats = super::scalar::Scalar;
    const LAYOUT: Layout = Layout::Words;
    const ONE: f32 = 1.0;
    const HOLDS_FOUR: bool = false;
    type Codes = [u16; 32];

    unsafe fn write_tables(inputs: *const i8, to: *mut u8) {
        // SAFETY: the caller promises 16 readable inputs.
        let inputs = unsafe { inputs.cast::<[i8; UNIT]>().read() };
        let mut sums = [0i16; Layout::Words.table_bytes() / 2];
        for (table, (first, count)) in WORD_TABLES.into_iter().enumerate() {
            for (i, sum) in sums[32 * table..][..1 << count].iter_mut().enumerate() {
                *sum = (0..count).map(|bit| 2 * i16::from(inputs[first + bit]) * (i >> bit & 1) as i16).sum();
            }
        }
        // SAFETY: the caller promises that many writable bytes.
        unsafe { to.cast::<[i16; Layout::Words.table_bytes() / 2]>().write_unaligned(sums) }
    }
    unsafe fn begin(offset: i16) -> Self {
        Self([offset; 32])
    }
    unsafe fn codes(from: *const u8) -> [u16; 32] {
        // SAFETY: the caller promises 64 readable bytes.
        unsafe { from.cast::<[u16; 32]>().read_unaligned() }
    }
    unsafe fn add(self, codes: [u16; 32], tables: *const u8) -> Self {
        // SAFETY: the caller promises that many readable bytes.
        let sums = unsafe { tables.cast::<[i16; Layout::Words.table_bytes() / 2]>().read_unaligned() };
        let looked_up = |o: usize, table: usize| {
            let (first, count) = WORD_TABLES[table];
            sums[32 * table + (usize::from(codes[o]) >> first & ((1 << count) - 1))]
        };
        Self(std::array::from_fn(|o| (0..3).fold(self.0[o], |sum, table| sum.wrapping_add(looked_up(o, table)))))
    }
    unsafe fn add_twice(self, other: Self) -> Self {
        Self(std::array::from_fn(|o| self.0[o].wrapping_add(other.0[o].wrapping_mul(2))))
    }
    unsafe fn to_floats(self) -> [Self::Floats; 2] {
        let mut floats = [0.0; 32];
        for (lane, sum) in self.0.into_iter().enumerate() {
            floats[Self::LAYOUT.place(lane)] = f32::from(sum);
        }
        // SAFETY: 16 readable floats at each of two places.
        std::array::from_fn(|i| unsafe { Self::Floats::load(floats[16 * i..].as_ptr()) })
    }
    unsafe fn in_order(floats: [Self::Floats; 2]) -> [Self::Floats; 2] {
        let mut values = [0.0; 32];
        for (values, floats) in values.chunks_mut(16).zip(floats) {
            // SAFETY: 16 writable floats.
            unsafe { floats.store(values.as_mut_ptr()) };
        }
        let values: [f32; 32] = std::array::from_fn(|lane| values[Self::LAYOUT.place(lane)]);
        // SAFETY: 16 readable floats at each of two places.
        std::array::from_fn(|i| unsafe { Self::Floats::load(values[16 * i..].as_ptr()) })
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Layout, Lookup, UNIT};
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
        const LAYOUT: Layout = Layout::Nibbles;
        const ONE: f32 = 1.0;
        const HOLDS_FOUR: bool = false;
        type Codes = [__m256i; 2];

        #[inline(always)]
        unsafe fn write_tables(inputs: *const i8, to: *mut u8) {
            // SAFETY: see the impl. Packing works in halves of a register: quarters 0 and 2 belong together.
            unsafe {
                for pair in 0..2 {
                    let (inputs, to) = (inputs.add(pair * UNIT / 2), to.add(pair * 64));
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
                    let tables = tables.add(pair * 64);
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
        #[inline(always)]
        unsafe fn in_order(floats: [avx2::Avx2; 2]) -> [avx2::Avx2; 2] {
            floats
        }
    }

    /// For each subset, in words, twice what it has of inputs `first` and `first + 1`: factors of these two as bytes.
    const fn members(first: usize) -> [u8; 64] {
        let mut bytes = [0; 64];
        let mut i = 0;
        while i < 64 {
            bytes[i] = 2 * (((i / 2) >> (first + i % 2)) & 1) as u8;
            i += 1;
        }
        bytes
    }

    static MEMBERS: [[u8; 64]; 3] = [members(0), members(2), members(4)];

    /// Twice the sums of every subset of the first five of six inputs.
    #[inline(always)]
    unsafe fn sums_of_words(inputs: *const i8) -> __m512i {
        // SAFETY: AVX-512 and six readable inputs, the caller's promise. No closure: it would be a call.
        unsafe {
            let pairs = inputs.cast::<i16>();
            let first = _mm512_set1_epi16(pairs.read_unaligned());
            let second = _mm512_set1_epi16(pairs.add(1).read_unaligned());
            let third = _mm512_set1_epi16(pairs.add(2).read_unaligned());
            let first = _mm512_maddubs_epi16(_mm512_loadu_si512(MEMBERS[0].as_ptr().cast()), first);
            let second = _mm512_maddubs_epi16(_mm512_loadu_si512(MEMBERS[1].as_ptr().cast()), second);
            let third = _mm512_maddubs_epi16(_mm512_loadu_si512(MEMBERS[2].as_ptr().cast()), third);
            _mm512_add_epi16(_mm512_add_epi16(first, second), third)
        }
    }

    /// One register.
    #[derive(Debug, Clone, Copy)]
    pub struct Avx512(__m512i);

    // SAFETY: only AVX-512 F and BW, which `Isa::Avx512` and those after it ask the CPU for; reads and writes exactly the
    // bytes named.
    unsafe impl Lookup for Avx512 {
        type Floats = avx512::Avx512;
        const LAYOUT: Layout = Layout::Words;
        const ONE: f32 = 65536.0;
        const HOLDS_FOUR: bool = true;
        type Codes = __m512i;

        #[inline(always)]
        unsafe fn write_tables(inputs: *const i8, to: *mut u8) {
            // SAFETY: see the impl; the last six end with the unit.
            unsafe {
                let [first, second, third] =
                    [sums_of_words(inputs), sums_of_words(inputs.add(5)), sums_of_words(inputs.add(10))];
                _mm512_storeu_si512(to.cast(), first);
                _mm512_storeu_si512(to.add(64).cast(), second);
                _mm512_storeu_si512(to.add(128).cast(), third);
                let sixth = _mm512_set1_epi16(2 * i16::from(*inputs.add(15)));
                _mm512_storeu_si512(to.add(192).cast(), _mm512_add_epi16(third, sixth));
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
                let (second, third) = (_mm512_srli_epi16::<5>(codes), _mm512_srli_epi16::<10>(codes));
                let first = _mm512_permutexvar_epi16(codes, _mm512_loadu_si512(tables.cast()));
                let second = _mm512_permutexvar_epi16(second, _mm512_loadu_si512(tables.add(64).cast()));
                let (lower, upper) =
                    (_mm512_loadu_si512(tables.add(128).cast()), _mm512_loadu_si512(tables.add(192).cast()));
                let third = _mm512_permutex2var_epi16(lower, third, upper);
                let sums = _mm512_add_epi16(_mm512_add_epi16(first, second), third);
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
                let even = _mm512_slli_epi32::<16>(self.0);
                let odd = _mm512_and_si512(self.0, _mm512_set1_epi32(!0xffff));
                [avx512::Avx512::of(_mm512_cvtepi32_ps(even)), avx512::Avx512::of(_mm512_cvtepi32_ps(odd))]
            }
        }
        #[inline(always)]
        unsafe fn in_order([even, odd]: [avx512::Avx512; 2]) -> [avx512::Avx512; 2] {
            // SAFETY: see the impl.
            unsafe {
                let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
                let (even, odd) = (even.register(), odd.register());
                let halves = [_mm512_permutex2var_ps(even, low, odd), _mm512_permutex2var_ps(even, high, odd)];
                [avx512::Avx512::of(halves[0]), avx512::Avx512::of(halves[1])]
            }
        }
    }
}
