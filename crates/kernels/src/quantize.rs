//! The difference of a pair of matrices, taken row by row without ever being written down.
//!
//! One bit a weight needs, of each difference d = tuned − base: its sign, and for each group the mean of |d| after
//! clipping at bounds that only the whole matrix knows. So a first pass reads both matrices once and leaves signs, and for
//! each group Σ|d| ÷ n and max |d|; a second reads again only the groups whose max lies beyond the bounds (at 3σ and 128
//! inputs a group, under a third of them). Cost: 2 · (2 to 4) bytes an element read in the first pass, 1/8 of a byte written.
//!
//! A difference lives in one register, from which all sums are taken at once, and what comes later is asked for meanwhile,
//! a line at a time, so that the memory does not wait for the arithmetic.
//!
//! The order of additions is that of the plain quantizer: eight lanes for a group in f32, eight for a row in f64.

#[cfg(target_arch = "x86_64")]
use crate::vector::{avx2::Avx2, avx512::Avx512};
use crate::{
    isa::{Isa, dispatch},
    matmul::Elements,
    vector::{LANES, Vector, prefetch, scalar::Scalar},
};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Lanes of the sums.
const SUM_LANES: usize = 8;

/// Two matrices of one shape, row-major.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// What is subtracted.
    pub base: Elements<'a>,
    /// From what.
    pub tuned: Elements<'a>,
    /// Elements of a row.
    pub cols: usize,
}

/// What the first pass leaves of one row's difference. All but `sum` and `squares` are the caller's buffers.
#[derive(Debug)]
pub struct Survey<'a> {
    /// Bit i of word w is 1 where element 64w + i is not below 0; pad bits are 0. `cols.div_ceil(64)` words.
    pub signs: &'a mut [u64],
    /// Mean of |d| of each group.
    pub magnitudes: &'a mut [f32],
    /// Greatest |d| of each group. Where a group holds a NaN this may be anything, and its magnitude is NaN.
    pub reaches: &'a mut [f32],
    /// Σ d
    pub sum: f64,
    /// Σ (d − row mean)²
    pub squares: f64,
}

/// The first pass over row `row`, `group` elements a group (the last may be shorter). `scratch` is reused from call to call.
///
/// # Panics
/// When the row is not in the pair, or a buffer has not the length that its field names.
pub fn survey(pair: &Pair, row: usize, group: usize, scratch: &mut Vec<f32>, out: &mut Survey) {
    survey_on(Isa::selected(), pair, row, group, scratch, out);
}

/// [`survey`] on a given instruction set, which must be one of [`Isa::available`].
///
/// # Panics
/// As [`survey`].
pub fn survey_on(isa: Isa, pair: &Pair, row: usize, group: usize, scratch: &mut Vec<f32>, out: &mut Survey) {
    let cols = pair.cols;
    pair.check(row, 0..cols);
    assert!(group > 0 && cols > 0, "groups of {group} in rows of {cols}");
    assert_eq!(out.signs.len(), cols.div_ceil(64), "words of a row");
    assert_eq!(out.magnitudes.len(), cols.div_ceil(group), "groups of a row");
    assert_eq!(out.reaches.len(), cols.div_ceil(group), "groups of a row");
    scratch.resize(cols, 0.0);
    let start = row * cols;
    run_survey(isa, pair, start, group, scratch, out);
}

fn run_survey(isa: Isa, pair: &Pair, start: usize, group: usize, row: &mut [f32], out: &mut Survey) {
    dispatch!(isa, survey_row(pair: &Pair, start: usize, group: usize, row: &mut [f32], out: &mut Survey));
}

/// # Safety
/// The pair holds `row.len()` elements from `start`; the buffers of `out` have the lengths for them.
#[inline(always)]
unsafe fn survey_row<V: Surveyor>(pair: &Pair, start: usize, group: usize, row: &mut [f32], out: &mut Survey) {
    if !row.len().is_multiple_of(LANES) || !group.is_multiple_of(LANES) {
        // SAFETY: the caller's promise.
        return unsafe { survey_any::<V>(pair, start, group, row, out) };
    }
    let cols = row.len();
    // SAFETY: sixteen elements at a time are inside both slices, of which the caller promises `cols` from `start`.
    unsafe {
        match (pair.base, pair.tuned) {
            (Elements::Bf16(base), Elements::Bf16(tuned)) => {
                let load = |from: &[u16], at: usize| {
                    let from = from.as_ptr().add(start + at);
                    if at.is_multiple_of(2 * LANES) {
                        prefetch(from.cast::<u8>().wrapping_add(BYTES_AHEAD));
                    }
                    V::load_bf16(from)
                };
                survey_lanes(cols, group, out, |at| load(tuned, at).sub(load(base, at)));
            }
            (Elements::F32(base), Elements::F32(tuned)) => {
                let load = |from: &[f32], at: usize| {
                    let from = from.as_ptr().add(start + at);
                    prefetch(from.cast::<u8>().wrapping_add(BYTES_AHEAD));
                    V::load(from)
                };
                survey_lanes(cols, group, out, |at| load(tuned, at).sub(load(base, at)));
            }
            (base, tuned) => {
                let load = |from: Elements, at: usize| match from {
                    Elements::F32(values) => V::load(values.as_ptr().add(start + at)),
                    Elements::F16(bits) => V::load_f16(bits.as_ptr().add(start + at)),
                    Elements::Bf16(bits) => V::load_bf16(bits.as_ptr().add(start + at)),
                };
                survey_lanes(cols, group, out, |at| load(tuned, at).sub(load(base, at)));
            }
        }
    }
}

/// How far ahead each matrix is fetched.
const BYTES_AHEAD: usize = 2048;

/// One pass over a row of whole vectors in groups of whole vectors; `difference(at)` is what lies from `at` on.
///
/// # Safety
/// As [`Vector`]'s methods: the instruction set is there.
#[inline(always)]
unsafe fn survey_lanes<V: Surveyor>(cols: usize, group: usize, out: &mut Survey, difference: impl Fn(usize) -> V) {
    let mut moments = V::no_moments();
    let groups = out.magnitudes.iter_mut().zip(out.reaches.iter_mut());
    for ((magnitude, reach), first) in groups.zip((0..cols).step_by(group)) {
        let last = cols.min(first + group);
        // SAFETY: the caller's promise.
        let (sums, most) = unsafe {
            let mut sums = V::no_sums();
            for at in (first..last).step_by(LANES) {
                let plus = V::survey(difference(at), &mut sums, &mut moments);
                let word = &mut out.signs[at / 64];
                *word = if at % 64 == 0 { 0 } else { *word } | u64::from(plus) << (at % 64);
            }
            V::sums(sums)
        };
        (*magnitude, *reach) = (sums.iter().sum::<f32>() / (last - first) as f32, most);
    }
    // SAFETY: as above.
    (out.sum, out.squares) = unsafe { V::moments(moments) }.about_the_mean(cols);
}

/// The same for any row and group.
///
/// # Safety
/// As [`survey_row`].
unsafe fn survey_any<V: Vector>(pair: &Pair, start: usize, group: usize, row: &mut [f32], out: &mut Survey) {
    // SAFETY: the caller's promise.
    unsafe { difference::<V>(pair, start, row) };
    for (word, values) in out.signs.iter_mut().zip(row.chunks(64)) {
        *word = sign_word(values);
    }
    let mut none = Moments::default();
    let groups = out.magnitudes.iter_mut().zip(out.reaches.iter_mut());
    for ((magnitude, reach), values) in groups.zip(row.chunks(group)) {
        (*magnitude, *reach) = magnitude_and_reach(values, &mut none);
    }
    let mut moments = Moments::default();
    magnitude_and_reach(row, &mut moments);
    (out.sum, out.squares) = moments.about_the_mean(row.len());
}

/// The second pass: the mean of |clip(d)| of each group of row `row` whose reach lies beyond `bound`, over `magnitudes`.
/// `clip` brings d into `low..=high`.
///
/// # Panics
/// When the row is not in the pair, or there are not as many reaches as magnitudes.
pub fn clip_magnitudes(
    pair: &Pair,
    row: usize,
    group: usize,
    (low, high, bound): (f32, f32, f32),
    reaches: &[f32],
    magnitudes: &mut [f32],
) {
    let isa = Isa::selected();
    assert_eq!(reaches.len(), magnitudes.len(), "a reach for each group");
    let mut scratch = vec![0.0; group.min(pair.cols)];
    for (index, (magnitude, reach)) in magnitudes.iter_mut().zip(reaches).enumerate() {
        if *reach > bound {
            let columns = index * group..((index + 1) * group).min(pair.cols);
            pair.check(row, columns.clone());
            let values = &mut scratch[..columns.len()];
            run_clip(isa, pair, row * pair.cols + columns.start, low, high, values, magnitude);
        }
    }
}

fn run_clip(isa: Isa, pair: &Pair, start: usize, low: f32, high: f32, values: &mut [f32], magnitude: &mut f32) {
    dispatch!(isa, clip_group(pair: &Pair, start: usize, low: f32, high: f32, values: &mut [f32], magnitude: &mut f32));
}

/// # Safety
/// The pair holds `values.len()` elements from `start`.
#[inline(always)]
unsafe fn clip_group<V: Vector>(
    pair: &Pair,
    start: usize,
    low: f32,
    high: f32,
    values: &mut [f32],
    magnitude: &mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { difference::<V>(pair, start, values) };
    for value in values.iter_mut() {
        *value = value.max(low).min(high);
    }
    *magnitude = magnitude_and_reach(values, &mut Moments::default()).0;
}

impl Pair<'_> {
    /// Both matrices hold these columns of this row.
    fn check(&self, row: usize, columns: std::ops::Range<usize>) {
        let end = row * self.cols + columns.end;
        for matrix in [self.base, self.tuned] {
            let len = matrix.len();
            assert!(columns.end <= self.cols && end <= len, "row {row} of a pair of {len} elements");
        }
    }
}

/// tuned − base from element `start` on, into `out`.
///
/// # Safety
/// Both hold `out.len()` elements from there.
#[inline(always)]
unsafe fn difference<V: Vector>(pair: &Pair, start: usize, out: &mut [f32]) {
    // SAFETY: chunks stay inside the slices.
    unsafe {
        let load = |from: Elements, at: usize, lanes: usize| match from {
            Elements::F32(values) => V::load_partial(values.as_ptr().add(start + at), lanes),
            Elements::F16(bits) => wide(bits, (start + at, lanes), |p| V::load_f16(p)),
            Elements::Bf16(bits) => wide(bits, (start + at, lanes), |p| V::load_bf16(p)),
        };
        subtract(out, |at, lanes| load(pair.tuned, at, lanes).sub(load(pair.base, at, lanes)));
    }
}

/// `out` from vectors: `value(at, lanes)` for `lanes` elements from `at`.
///
/// # Safety
/// As [`Vector`]'s methods: the instruction set is there.
#[inline(always)]
unsafe fn subtract<V: Vector>(out: &mut [f32], value: impl Fn(usize, usize) -> V) {
    let whole = out.len() / LANES * LANES;
    // SAFETY: chunks stay inside the slice.
    unsafe {
        for at in (0..whole).step_by(LANES) {
            value(at, LANES).store(out.as_mut_ptr().add(at));
        }
        if whole < out.len() {
            let lanes = out.len() - whole;
            value(whole, lanes).store_partial(out.as_mut_ptr().add(whole), lanes);
        }
    }
}

/// `lanes` 16-bit values from `at` on, widened by `load`, which reads sixteen.
///
/// # Safety
/// `from` holds them.
#[inline(always)]
unsafe fn wide<V: Vector>(from: &[u16], (at, lanes): (usize, usize), load: impl Fn(*const u16) -> V) -> V {
    if lanes == LANES {
        // SAFETY: the caller's promise.
        return load(unsafe { from.as_ptr().add(at) });
    }
    let mut padded = [0u16; LANES];
    padded[..lanes].copy_from_slice(&from[at..at + lanes]);
    load(padded.as_ptr())
}

/// Bit i is 1 where value i is not below 0 (so for both zeros), of up to 64 values.
#[inline(always)]
fn sign_word(values: &[f32]) -> u64 {
    values.iter().enumerate().fold(0, |bits, (i, &x)| bits | u64::from(x >= 0.0) << i)
}

/// What a pass makes of sixteen differences; the order of additions is that of [`magnitude_and_reach`].
///
/// # Safety
/// As [`Vector`].
unsafe trait Surveyor: Vector {
    /// Σ |d| in eight lanes, and the greatest |d|.
    type Sums: Copy;
    /// Σ d and Σ d², in eight lanes of f64 each.
    type Moments: Copy;
    /// None yet.
    fn no_sums() -> Self::Sums;
    /// None yet.
    fn no_moments() -> Self::Moments;
    /// Adds sixteen differences; bit i of the result is 1 where difference i is not below 0.
    unsafe fn survey(d: Self, sums: &mut Self::Sums, moments: &mut Self::Moments) -> u16;
    /// By lane, and the greatest.
    unsafe fn sums(sums: Self::Sums) -> ([f32; SUM_LANES], f32);
    /// By lane.
    unsafe fn moments(moments: Self::Moments) -> Moments;
}

/// [`Surveyor`] in arrays, which the compiler makes registers of.
macro_rules! survey_in_arrays {
    ($vector:ty) => {
        // SAFETY: needs what the vector needs.
        unsafe impl Surveyor for $vector {
            type Sums = ([f32; SUM_LANES], [f32; SUM_LANES]);
            type Moments = Moments;

            #[inline(always)]
            fn no_sums() -> Self::Sums {
                Default::default()
            }
            #[inline(always)]
            fn no_moments() -> Moments {
                Moments::default()
            }
            #[inline(always)]
            unsafe fn survey(d: Self, (sums, most): &mut Self::Sums, moments: &mut Moments) -> u16 {
                let mut lanes = [0f32; LANES];
                // SAFETY: there is room for sixteen lanes.
                unsafe { d.store(lanes.as_mut_ptr()) };
                for eight in lanes.as_chunks::<SUM_LANES>().0 {
                    for lane in 0..SUM_LANES {
                        let x = eight[lane];
                        sums[lane] += x.abs();
                        most[lane] = if x.abs() > most[lane] { x.abs() } else { most[lane] };
                        moments.add(lane, x);
                    }
                }
                sign_word(&lanes) as u16
            }
            #[inline(always)]
            unsafe fn sums((sums, most): Self::Sums) -> ([f32; SUM_LANES], f32) {
                (sums, most.into_iter().fold(0.0, |a, b| if a > b { a } else { b }))
            }
            #[inline(always)]
            unsafe fn moments(moments: Moments) -> Moments {
                moments
            }
        }
    };
}

survey_in_arrays!(Scalar);
#[cfg(target_arch = "x86_64")]
survey_in_arrays!(Avx2);

#[cfg(target_arch = "x86_64")]
// SAFETY: uses AVX-512 F and DQ alone.
unsafe impl Surveyor for Avx512 {
    type Sums = (__m256, __m512);
    type Moments = (__m512d, __m512d);

    #[inline(always)]
    fn no_sums() -> Self::Sums {
        // SAFETY: see the impl.
        unsafe { (_mm256_setzero_ps(), _mm512_setzero_ps()) }
    }
    #[inline(always)]
    fn no_moments() -> Self::Moments {
        // SAFETY: see the impl.
        unsafe { (_mm512_setzero_pd(), _mm512_setzero_pd()) }
    }
    #[inline(always)]
    unsafe fn survey(d: Self, (sums, most): &mut Self::Sums, (first, second): &mut Self::Moments) -> u16 {
        // SAFETY: see the impl.
        unsafe {
            let (d, magnitudes) = (d.lanes(), d.abs().lanes());
            for half in [_mm512_castps512_ps256(magnitudes), _mm512_extractf32x8_ps::<1>(magnitudes)] {
                *sums = _mm256_add_ps(*sums, half);
            }
            *most = _mm512_max_ps(magnitudes, *most);
            for half in [_mm512_castps512_ps256(d), _mm512_extractf32x8_ps::<1>(d)] {
                let wide = _mm512_cvtps_pd(half);
                *first = _mm512_add_pd(*first, wide);
                *second = _mm512_add_pd(*second, _mm512_mul_pd(wide, wide));
            }
            _mm512_cmp_ps_mask::<_CMP_GE_OQ>(d, _mm512_setzero_ps())
        }
    }
    #[inline(always)]
    unsafe fn sums((sums, most): Self::Sums) -> ([f32; SUM_LANES], f32) {
        let mut lanes = [0.0; SUM_LANES];
        // SAFETY: see the impl; there is room for eight lanes.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums) };
        // SAFETY: see the impl.
        (lanes, unsafe { _mm512_reduce_max_ps(most) })
    }
    #[inline(always)]
    unsafe fn moments((first, second): Self::Moments) -> Moments {
        let mut moments = Moments::default();
        // SAFETY: see the impl; there is room for eight lanes of each.
        unsafe {
            _mm512_storeu_pd(moments.sums.as_mut_ptr(), first);
            _mm512_storeu_pd(moments.squares.as_mut_ptr(), second);
        }
        moments
    }
}

/// Sums of a row, by lane.
#[derive(Clone, Copy, Default)]
struct Moments {
    sums: [f64; SUM_LANES],
    squares: [f64; SUM_LANES],
}

impl Moments {
    #[inline(always)]
    fn add(&mut self, lane: usize, x: f32) {
        let x = f64::from(x);
        self.sums[lane] += x;
        self.squares[lane] += x * x;
    }

    /// (Σ x, Σ (x − mean)²) of `len` values.
    fn about_the_mean(&self, len: usize) -> (f64, f64) {
        let sum: f64 = self.sums.iter().sum();
        let square: f64 = self.squares.iter().sum::<f64>() - sum * sum / len as f64;
        (sum, square.max(0.0))
    }
}

/// Mean and greatest of |x|; adds the values to `moments`.
#[inline(always)]
fn magnitude_and_reach(values: &[f32], moments: &mut Moments) -> (f32, f32) {
    let greater = |a: f32, b: f32| if a > b { a } else { b };
    let (mut sums, mut most) = ([0.0f32; SUM_LANES], [0.0f32; SUM_LANES]);
    // A copy that the compiler can keep in registers.
    let mut row = Moments { ..*moments };
    let (eights, rest) = values.as_chunks::<SUM_LANES>();
    for eight in eights {
        for lane in 0..SUM_LANES {
            let x = eight[lane];
            sums[lane] += x.abs();
            most[lane] = greater(x.abs(), most[lane]);
            row.add(lane, x);
        }
    }
    for (lane, x) in rest.iter().enumerate() {
        sums[lane] += x.abs();
        most[lane] = greater(x.abs(), most[lane]);
        row.add(lane, *x);
    }
    *moments = row;
    (sums.iter().sum::<f32>() / values.len() as f32, most.into_iter().fold(0.0, greater))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Found {
        signs: Vec<u64>,
        magnitudes: Vec<f32>,
        reaches: Vec<f32>,
        sums: (f64, f64),
    }

    fn run(isa: Isa, pair: &Pair, row: usize, group: usize) -> Found {
        let groups = pair.cols.div_ceil(group);
        let (mut signs, mut magnitudes) = (vec![7; pair.cols.div_ceil(64)], vec![7.0; groups]);
        let (mut reaches, mut scratch) = (vec![7.0; groups], Vec::new());
        let mut out =
            Survey { signs: &mut signs, magnitudes: &mut magnitudes, reaches: &mut reaches, sum: 0.0, squares: 0.0 };
        survey_on(isa, pair, row, group, &mut scratch, &mut out);
        let sums = (out.sum, out.squares);
        Found { signs, magnitudes, reaches, sums }
    }

    fn values(count: usize, seed: u32) -> Vec<f32> {
        let mix = |i: u32| (i ^ seed).wrapping_mul(0x9E37_79B9).rotate_left(11).wrapping_mul(0x85EB_CA6B);
        // Every fifth is 0, so that equal elements meet.
        (0..count as u32)
            .map(|i| if i % 5 == 0 { 0.0 } else { (mix(i) >> 8) as f32 / (1 << 23) as f32 - 1.0 })
            .collect()
    }

    #[test]
    fn a_survey_is_plain_arithmetic_and_the_same_on_every_instruction_set() {
        let bits = |values: &[f32]| values.iter().map(|v| (v.to_bits() >> 16) as u16).collect::<Vec<u16>>();
        for (cols, group) in [(1, 1), (8, 3), (15, 32), (64, 64), (77, 32), (300, 37), (640, 128)] {
            let (base, tuned) = (values(3 * cols, 1), values(3 * cols, 2));
            let (base_bits, tuned_bits) = (bits(&base), bits(&tuned));
            let wide = |bits: &[u16]| bits.iter().map(|b| f32::from_bits(u32::from(*b) << 16)).collect::<Vec<f32>>();
            let pairs = [
                (Elements::F32(&base), Elements::F32(&tuned), base.clone(), tuned.clone()),
                (Elements::Bf16(&base_bits), Elements::Bf16(&tuned_bits), wide(&base_bits), wide(&tuned_bits)),
                (Elements::Bf16(&base_bits), Elements::F32(&tuned), wide(&base_bits), tuned.clone()),
            ];
            for (b, t, wide_b, wide_t) in pairs {
                let pair = Pair { base: b, tuned: t, cols };
                for row in 0..3 {
                    let at = row * cols..(row + 1) * cols;
                    let d: Vec<f32> = wide_t[at.clone()].iter().zip(&wide_b[at]).map(|(t, b)| t - b).collect();
                    let reference = run(Isa::Scalar, &pair, row, group);
                    for (i, d) in d.iter().enumerate() {
                        assert_eq!(reference.signs[i / 64] >> (i % 64) & 1, u64::from(*d >= 0.0), "sign {i}");
                    }
                    assert_eq!(reference.signs.iter().map(|w| w.count_ones()).sum::<u32>(), {
                        d.iter().filter(|d| **d >= 0.0).count() as u32
                    });
                    for (g, d) in d.chunks(group).enumerate() {
                        let mean = d.iter().map(|d| f64::from(d.abs())).sum::<f64>() / d.len() as f64;
                        // A few additions in f32.
                        assert!((f64::from(reference.magnitudes[g]) - mean).abs() <= 1e-6 * mean);
                        assert_eq!(reference.reaches[g], d.iter().fold(0.0f32, |most, d| most.max(d.abs())));
                    }
                    let sum: f64 = d.iter().map(|d| f64::from(*d)).sum();
                    assert!((reference.sums.0 - sum).abs() <= 1e-9 * cols as f64);
                    for isa in Isa::available() {
                        let found = run(isa, &pair, row, group);
                        assert_eq!(found.signs, reference.signs, "{isa:?}");
                        assert_eq!(found.magnitudes, reference.magnitudes, "{isa:?}");
                        assert_eq!(found.reaches, reference.reaches, "{isa:?}");
                        assert_eq!(found.sums, reference.sums, "{isa:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn only_groups_that_reach_beyond_the_bound_are_clipped() {
        let (base, tuned) = ([0.0f32; 8], [1.0, -1.0, 3.0, 1.0, 1.0, -1.0, 1.0, 1.0]);
        let pair = Pair { base: Elements::F32(&base), tuned: Elements::F32(&tuned), cols: 8 };
        let mut magnitudes = [9.0, 9.0];
        clip_magnitudes(&pair, 0, 4, (-2.0, 2.0, 2.0), &[3.0, 1.0], &mut magnitudes);
        assert_eq!(magnitudes, [1.25, 9.0]);
    }

    #[test]
    #[should_panic(expected = "row 1 of a pair of 8 elements")]
    fn a_row_outside_the_pair_is_refused() {
        let base = [0.0f32; 8];
        let pair = Pair { base: Elements::F32(&base), tuned: Elements::F32(&base), cols: 8 };
        run(Isa::Scalar, &pair, 1, 4);
    }
}
