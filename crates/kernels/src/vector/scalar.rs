//! The reference: sixteen lanes in plain Rust.

use super::{LANES, Vector};

/// Sixteen lanes in an array.
#[derive(Debug, Clone, Copy)]
pub struct Scalar([f32; LANES]);

impl Scalar {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

// SAFETY: needs no CPU feature; pointers are read and written for exactly the lanes each method names.
unsafe impl Vector for Scalar {
    const TILE_ROWS: usize = 1;

    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises 16 readable values.
        Self(std::array::from_fn(|i| unsafe { from.add(i).read_unaligned() }))
    }
    unsafe fn load_partial(from: *const f32, lanes: usize) -> Self {
        // SAFETY: the caller promises `lanes` readable values.
        Self(std::array::from_fn(|i| if i < lanes { unsafe { from.add(i).read() } } else { 0.0 }))
    }
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller promises 16 readable values.
        Self(std::array::from_fn(|i| f32::from_bits(u32::from(unsafe { from.add(i).read() }) << 16)))
    }
    unsafe fn halves(self) -> (Self, Self) {
        let bits = |x: f32| x.to_bits();
        (
            Self(self.0.map(|x| f32::from_bits(bits(x) << 16))),
            Self(self.0.map(|x| f32::from_bits(bits(x) & 0xffff_0000))),
        )
    }
    unsafe fn widen_f16(bits: u16) -> f32 {
        half::f16::from_bits(bits).to_f32_const()
    }
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller promises 16 readable values.
        Self(std::array::from_fn(|i| half::f16::from_bits(unsafe { from.add(i).read() }).to_f32_const()))
    }
    unsafe fn load_f16_by_four(from: *const u16) -> Self {
        // SAFETY: the caller promises 4 readable values.
        Self(std::array::from_fn(|i| half::f16::from_bits(unsafe { from.add(i / 4).read() }).to_f32_const()))
    }
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller promises 16 readable values.
        Self(std::array::from_fn(|i| f32::from(unsafe { from.add(i).read() })))
    }
    unsafe fn gather(from: *const f32, columns: *const u16) -> Self {
        // SAFETY: the caller promises 16 readable columns, each of a readable value.
        Self(std::array::from_fn(|i| unsafe { from.add(usize::from(columns.add(i).read())).read() }))
    }
    unsafe fn store_i8(self, to: *mut i8) {
        // SAFETY: the caller promises room for 16 values.
        (0..LANES).for_each(|i| unsafe { to.add(i).write(self.0[i].round_ties_even() as i8) });
    }
    unsafe fn store_four_i8(four: [Self; 4], to: *mut i32) {
        for i in 0..LANES {
            let codes = std::array::from_fn(|of| four[of].0[i].round_ties_even() as i8 as u8);
            // SAFETY: the caller promises room for 16.
            unsafe { to.add(i).write(i32::from_le_bytes(codes)) };
        }
    }
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises room for 16 values.
        (0..LANES).for_each(|i| unsafe { to.add(i).write(self.0[i]) });
    }
    unsafe fn store_partial(self, to: *mut f32, lanes: usize) {
        // SAFETY: the caller promises room for `lanes` values.
        (0..lanes).for_each(|i| unsafe { to.add(i).write(self.0[i]) });
    }
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
    }
    unsafe fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    unsafe fn signed(self, plus: u16) -> Self {
        Self(std::array::from_fn(|i| if plus >> i & 1 == 1 { self.0[i] } else { -self.0[i] }))
    }
    unsafe fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }
    unsafe fn exp2_integral(self) -> Self {
        Self(self.0.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23)))
    }
}
