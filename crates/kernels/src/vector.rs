//! Sixteen f32 lanes, the unit that every kernel is written in.
//!
//! A kernel is written once over [`Vector`] and compiled for each instruction set. Because the number of lanes, the
//! order in which they are reduced and the use of fused multiply-add are part of this trait's contract, all instruction
//! sets give the same bits, and the scalar version is an exact oracle for the others.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub(crate) mod int8;
pub(crate) mod lookup;
pub mod scalar;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Sixteen f32 lanes.
///
/// # Safety
/// Every method may be called only where the CPU has the implementor's instruction set, and pointers must be valid for
/// the lanes that the method names.
#[allow(clippy::missing_safety_doc)] // one contract for all methods, stated above
pub unsafe trait Vector: Copy {
    /// Rows of X that a tile of the float product holds in registers.
    const TILE_ROWS: usize;

    /// All lanes `value`.
    unsafe fn splat(value: f32) -> Self;
    /// 16 values from `from`, which need not be aligned.
    unsafe fn load(from: *const f32) -> Self;
    /// `lanes` (at most 16) values from `from`, zero in the others.
    unsafe fn load_partial(from: *const f32, lanes: usize) -> Self;
    /// 16 bf16 values, widened.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// 32 bf16 values, two in each lane, as bits.
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> Self {
        // SAFETY: the caller promises 32 readable values, as many bytes as 16 floats.
        unsafe { Self::load(from.cast()) }
    }
    /// The first and the second bf16 value of each lane, widened.
    unsafe fn halves(self) -> (Self, Self);
    /// self + a₁ · b₁ + a₀ · b₀ of the pairs of bf16 values in each lane. Where this is one instruction, it is the CPU's own
    /// rounding, and the CPU must have it ([`crate::Isa::Avx512Bf16`]).
    #[inline(always)]
    unsafe fn add_dots(self, a: Self, b: Self) -> Self {
        // SAFETY: no pointers; the instruction set is the caller's promise.
        unsafe {
            let (a, b) = (a.halves(), b.halves());
            self.fma(a.1, b.1).fma(a.0, b.0)
        }
    }
    /// 16 values to `to`, rounded to bf16, ties to even. The CPU must have that as for [`Self::add_dots`].
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        let mut lanes = [0f32; LANES];
        // SAFETY: `lanes` has room for 16, and so has `to`.
        unsafe {
            self.store(lanes.as_mut_ptr());
            (0..LANES).for_each(|i| to.add(i).write(half::bf16::from_f32(lanes[i]).to_bits()));
        }
    }
    /// One f16 value, widened. (The library's function asks for the CPU's features at each call.)
    unsafe fn widen_f16(bits: u16) -> f32;
    /// 16 f16 values, widened.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// Four f16 values, widened, each four times over: in lanes 4i .. 4i + 4.
    unsafe fn load_f16_by_four(from: *const u16) -> Self;
    /// 16 i8 values, widened.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// The 16 values of `from` at the places that `columns` names.
    unsafe fn gather(from: *const f32, columns: *const u16) -> Self;
    /// 16 values in −128..=127 to `to`, rounded to the nearest, ties to even.
    unsafe fn store_i8(self, to: *mut i8);
    /// 16 times four values in −128..=127 to `to`, those of a lane beside each other as bytes, rounded as [`Self::store_i8`] does.
    unsafe fn store_four_i8(four: [Self; 4], to: *mut i32);
    /// 16 values to `to`.
    unsafe fn store(self, to: *mut f32);
    /// The first `lanes` values to `to`.
    unsafe fn store_partial(self, to: *mut f32, lanes: usize);
    /// self + other.
    unsafe fn add(self, other: Self) -> Self;
    /// self − other.
    unsafe fn sub(self, other: Self) -> Self;
    /// self · other.
    unsafe fn mul(self, other: Self) -> Self;
    /// self ÷ other.
    unsafe fn div(self, other: Self) -> Self;
    /// self + a · b, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// The magnitudes.
    unsafe fn abs(self) -> Self;
    /// The greater of each lane (no NaN).
    unsafe fn max(self, other: Self) -> Self;
    /// The lesser of each lane (no NaN).
    unsafe fn min(self, other: Self) -> Self;
    /// Negates the lanes whose bit in `plus` is 0.
    unsafe fn signed(self, plus: u16) -> Self;
    /// Nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// 2^self for integral lanes in −126..=127.
    unsafe fn exp2_integral(self) -> Self;

    /// The sum of all lanes: halves added to halves, 16 → 8 → 4 → 2 → 1.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = [0f32; LANES];
        // SAFETY: `lanes` has room for 16.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The greatest lane.
    #[inline(always)]
    unsafe fn greatest(self) -> f32 {
        let mut lanes = [0f32; LANES];
        // SAFETY: `lanes` has room for 16.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// e^self, within 2 units in the last place for lanes in −87..=88, clamped outside.
    ///
    /// Cody–Waite reduction to |r| ≤ ln2/2, then the degree-6 polynomial of Cephes' `expf` by Horner's rule.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: no pointers; the instruction set is the caller's promise.
        unsafe {
            let x = self.max(Self::splat(-87.0)).min(Self::splat(88.0));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let r = x.fma(n, Self::splat(-0.693_359_4)).fma(n, Self::splat(2.121_944_4e-4));
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
                p = Self::splat(c).fma(p, r);
            }
            let poly = r.fma(p, r.mul(r)).add(Self::splat(1.0));
            poly.mul(n.exp2_integral())
        }
    }
}

/// Asks for the cache line at an address, which may be any.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch does not fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The same into the core's second cache, for what is read after other things.
#[inline(always)]
pub(crate) fn prefetch_far(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch does not fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Where the first line of some bytes begins, and how many there are from there to their end: less than a line may lie in two.
pub(crate) fn from_first_line(start: *const u8, bytes: usize) -> (*const u8, usize) {
    let before = start.addr() % LINE;
    (start.wrapping_sub(before), before + bytes)
}

/// Asks the memory for a value, or for all of a slice, that is about to be read.
pub fn prefetch_value<T: ?Sized>(value: &T) {
    let (start, bytes) = from_first_line(std::ptr::from_ref(value).cast(), size_of_val(value));
    for line in (0..bytes).step_by(LINE) {
        prefetch(start.wrapping_add(line));
    }
}
