//! Products of two large matrices rounded to bf16, for training: y (m, n) = A (m, k) · B (k, n), with `vdpbf16ps`.
//!
//! Where the engine multiplies weights as they lie, because a step uses each a few times, training uses each some hundreds
//! of times, forwards, backwards and transposed; so both sides are laid out first. Of B, three registers of sixteen
//! columns make a panel, each lane with two neighbouring inner values; of A, a pair of inner values is spread over a
//! register by the multiplication's own load. A tile of 8 × 48 sums then takes 24 multiplications for 3 loads, and nothing
//! is added up across lanes. Laying out costs about as much as two rows of the product.
//!
//! Left and right each come from a matrix as it lies or from its transpose: a pair of inner values is either side by side in
//! memory or in two rows, and what the layout wants across is transposed by sixteens.

// As in `int8`: loops over an index keep the sums in registers.
#![allow(clippy::needless_range_loop)]

use crate::{Isa, narrow::narrows};

/// Columns of a register.
const LANES: usize = 16;
/// Registers of a panel.
const WIDE: usize = 3;
/// Rows of a tile.
const TILE: usize = 8;
/// Pairs that are multiplied before the next rows: their panel stays in the second cache.
const PAIRS_PER_BLOCK: usize = 1024;

/// A matrix in memory: `rows` of `cols` values, `stride` from one to the next.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// From the first value on.
    pub values: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Values from a row to the next.
    pub stride: usize,
}

/// How the matrix that is meant lies in its [`Source`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lies {
    /// As it is.
    Straight,
    /// As its transpose.
    Transposed,
}

/// Two inner values of each of sixteen columns, as bf16 bits.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Lanes([[u16; 2]; LANES]);

/// The left side (m, k): two inner values at a time, row after row.
#[derive(Debug, Clone)]
pub struct Left {
    pairs: Vec<[u16; 2]>,
    rows: usize,
    inner: usize,
}

/// The right side (k, n) in panels.
#[derive(Debug, Clone)]
pub struct Right {
    lanes: Vec<Lanes>,
    inner: usize,
    cols: usize,
}

impl Source<'_> {
    fn check(&self) {
        let needed = if self.rows == 0 { 0 } else { (self.rows - 1) * self.stride + self.cols };
        let Self { rows, cols, stride, .. } = *self;
        assert!(needed <= self.values.len() && cols <= stride, "{rows} rows of {cols} in steps of {stride}");
    }

    /// Bits of the value, rounded to the nearest, ties to even; zero beyond the end.
    fn bits(&self, row: usize, col: usize) -> u16 {
        if row >= self.rows || col >= self.cols {
            return 0;
        }
        half::bf16::from_f32(self.values[row * self.stride + col]).to_bits()
    }
}

impl Lies {
    /// (rows, cols) of the matrix that is meant.
    fn shape(self, source: &Source) -> (usize, usize) {
        match self {
            Self::Straight => (source.rows, source.cols),
            Self::Transposed => (source.cols, source.rows),
        }
    }

    /// Bits of a value of the matrix that is meant.
    fn bits(self, source: &Source, row: usize, col: usize) -> u16 {
        match self {
            Self::Straight => source.bits(row, col),
            Self::Transposed => source.bits(col, row),
        }
    }
}

impl Left {
    /// Lays out A; `each(chunks, work)` is to call `work(i, chunk)` for every chunk, on whichever threads it likes.
    ///
    /// # Panics
    /// When the source is shorter than its shape says.
    pub fn new(
        source: Source,
        lies: Lies,
        each: impl Fn(&mut [[u16; 2]], usize, &(dyn Fn(usize, &mut [[u16; 2]]) + Sync)),
    ) -> Self {
        source.check();
        let (rows, inner) = lies.shape(&source);
        let mut pairs = vec![[0; 2]; rows * inner.div_ceil(2)];
        let isa = Isa::selected();
        // Whole registers of rows, for the transposition's sake.
        let chunk = (LANES * inner.div_ceil(2)).max(1);
        each(&mut pairs, chunk, &|i, to| lay_left(isa, &source, lies, i * LANES, to));
        Self { pairs, rows, inner }
    }
}

impl Right {
    /// Lays out B; `each` as in [`Left::new`].
    ///
    /// # Panics
    /// When the source is shorter than its shape says.
    pub fn new(
        source: Source,
        lies: Lies,
        each: impl Fn(&mut [Lanes], usize, &(dyn Fn(usize, &mut [Lanes]) + Sync)),
    ) -> Self {
        source.check();
        let (inner, cols) = lies.shape(&source);
        let mut lanes = vec![Lanes([[0; 2]; LANES]); cols.div_ceil(LANES) * inner.div_ceil(2)];
        let isa = Isa::selected();
        let chunk = (WIDE * inner.div_ceil(2)).max(1);
        each(&mut lanes, chunk, &|i, to| lay_right(isa, &source, lies, i * WIDE * LANES, to));
        Self { lanes, inner, cols }
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// Rows `first..` of A: as many as `to` has room for.
fn lay_left(isa: Isa, source: &Source, lies: Lies, first: usize, to: &mut [[u16; 2]]) {
    let (_, inner) = lies.shape(source);
    let width = inner.div_ceil(2);
    #[cfg(target_arch = "x86_64")]
    if narrows(isa) {
        isa.check();
        // SAFETY: the CPU has the instructions; the source was checked.
        return unsafe { x86::lay_left(source, lies, first, to, width) };
    }
    let _ = isa;
    for (row, to) in to.chunks_mut(width).enumerate() {
        for (pair, to) in to.iter_mut().enumerate() {
            *to = [2 * pair, 2 * pair + 1].map(|at| lies.bits(source, first + row, at));
        }
    }
}

/// The panel of B from column `first` on.
fn lay_right(isa: Isa, source: &Source, lies: Lies, first: usize, to: &mut [Lanes]) {
    let (inner, _) = lies.shape(source);
    let wide = to.len() / inner.div_ceil(2);
    #[cfg(target_arch = "x86_64")]
    if narrows(isa) {
        isa.check();
        // SAFETY: the CPU has the instructions; the source was checked.
        return unsafe { x86::lay_right(source, lies, first, to, wide) };
    }
    let _ = isa;
    for (pair, to) in to.chunks_mut(wide).enumerate() {
        for (lane, to) in to.iter_mut().flat_map(|lanes| &mut lanes.0).enumerate() {
            *to = [2 * pair, 2 * pair + 1].map(|at| lies.bits(source, at, first + lane));
        }
    }
}

/// Rows `first..` of A times B into `y`, which is as many of them as it has room for.
///
/// # Panics
/// When shapes differ.
pub fn gemm(left: &Left, first: usize, right: &Right, y: &mut [f32]) {
    run(Isa::selected(), left, first, right, y);
}

/// [`gemm`] on a given instruction set, which must be one of [`Isa::available`].
fn run(isa: Isa, left: &Left, first: usize, right: &Right, y: &mut [f32]) {
    isa.check();
    assert_eq!(left.inner, right.inner, "inner sizes of a product");
    let (cols, pairs) = (right.cols, left.inner.div_ceil(2));
    let rows = y.len() / cols.max(1);
    assert!(first + rows <= left.rows && rows * cols == y.len(), "rows {first}..{} of {}", first + rows, left.rows);
    if rows == 0 || pairs == 0 {
        return y.fill(0.0);
    }
    #[cfg(target_arch = "x86_64")]
    if narrows(isa) {
        // SAFETY: the CPU has the instructions; the shapes were checked above.
        return unsafe { x86::gemm(left, first, right, y) };
    }
    let value = |bits: u16| half::bf16::from_bits(bits).to_f32();
    for (row, y) in y.chunks_mut(cols).enumerate() {
        let a = &left.pairs[(first + row) * pairs..][..pairs];
        for (col, y) in y.iter_mut().enumerate() {
            let (panel, lane) = (col / (WIDE * LANES), col % (WIDE * LANES));
            let lanes = &right.lanes[panel * WIDE * pairs..];
            let wide = (lanes.len() / pairs).min(WIDE);
            *y = 0.0;
            for (pair, a) in a.iter().enumerate() {
                let b = lanes[pair * wide + lane / LANES].0[lane % LANES];
                *y += value(a[0]) * value(b[0]) + value(a[1]) * value(b[1]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Lanes, Left, Lies, PAIRS_PER_BLOCK, Right, Source, TILE, WIDE};
    use std::arch::x86_64::*;

    /// The first `count` of sixteen.
    fn first(count: usize) -> __mmask16 {
        if count >= LANES { __mmask16::MAX } else { (1 << count) - 1 }
    }

    /// Two pieces of up to sixteen values, one after the other, as bf16; what is not there is zero.
    ///
    /// # Safety
    /// There are `counts[i]` values from `at[i]` on.
    #[inline]
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn two(values: &[f32], at: [usize; 2], counts: [usize; 2]) -> __m512i {
        // SAFETY: the masks keep to what is there. (A pointer that nothing is read through may point anywhere.)
        unsafe {
            let from = |i: usize| _mm512_maskz_loadu_ps(first(counts[i]), values.as_ptr().wrapping_add(at[i]));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(from(1), from(0)))
        }
    }

    /// Sixteen pairs that lie side by side: values `col..col + 32` of a row.
    ///
    /// # Safety
    /// The source was checked.
    #[inline]
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn along(source: &Source, row: usize, col: usize) -> __m512i {
        let left = if row < source.rows { source.cols.saturating_sub(col) } else { 0 };
        let at = row * source.stride + col;
        // SAFETY: counted by what the row has left.
        unsafe { two(source.values, [at, at + LANES], [left, left.saturating_sub(LANES)]) }
    }

    /// Sixteen pairs whose values lie in two rows: values `col..col + 16` of rows `row` and `row + 1`.
    ///
    /// # Safety
    /// The source was checked.
    #[inline]
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn across(source: &Source, row: usize, col: usize) -> __m512i {
        let width = source.cols.saturating_sub(col);
        let left = |row: usize| if row < source.rows { width } else { 0 };
        let at = row * source.stride + col;
        // SAFETY: counted by what the rows have left.
        let both = unsafe { two(source.values, [at, at + source.stride], [left(row), left(row + 1)]) };
        let (low, high) = (_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64::<1>(both));
        // Words of the first row in the lower halves of double words, of the second in the upper.
        let wide = _mm512_cvtepu16_epi32(high);
        _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32::<16>(wide))
    }

    /// Sixteen by sixteen double words, transposed.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose(rows: [__m512i; LANES]) -> [__m512i; LANES] {
        let mut pairs = rows;
        for i in 0..LANES / 2 {
            pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        // Quarter q of `fours[4 · i + j]` is column 4 · q + j of rows 4 · i to 4 · i + 3.
        let mut fours = pairs;
        for i in 0..LANES / 4 {
            for half in 0..2 {
                let (a, b) = (pairs[4 * i + half], pairs[4 * i + half + 2]);
                fours[4 * i + 2 * half] = _mm512_unpacklo_epi64(a, b);
                fours[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
            }
        }
        let mut out = fours;
        for j in 0..4 {
            let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
            let (low, high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
            out[j] = _mm512_shuffle_i32x4::<0x88>(low, high);
            out[4 + j] = _mm512_shuffle_i32x4::<0xDD>(low, high);
            let (low, high) = (_mm512_shuffle_i32x4::<0xEE>(a, b), _mm512_shuffle_i32x4::<0xEE>(c, d));
            out[8 + j] = _mm512_shuffle_i32x4::<0x88>(low, high);
            out[12 + j] = _mm512_shuffle_i32x4::<0xDD>(low, high);
        }
        out
    }

    /// # Safety
    /// The source was checked, `to` is whole rows of `width` pairs, and the CPU has the instructions.
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn lay_left(source: &Source, lies: Lies, first_row: usize, to: &mut [[u16; 2]], width: usize) {
        let store = |to: &mut [[u16; 2]], pairs: __m512i| {
            let mask = first(to.len());
            // SAFETY: the mask keeps to the slice.
            unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask, pairs) };
        };
        match lies {
            Lies::Straight => {
                for (row, to) in to.chunks_mut(width).enumerate() {
                    for (i, to) in to.chunks_mut(LANES).enumerate() {
                        // SAFETY: the caller's.
                        store(to, unsafe { along(source, first_row + row, 2 * LANES * i) });
                    }
                }
            }
            Lies::Transposed => {
                for pair in (0..width).step_by(LANES) {
                    let mut sixteen = [_mm512_setzero_si512(); LANES];
                    for i in 0..LANES {
                        // SAFETY: the caller's.
                        sixteen[i] = unsafe { across(source, 2 * (pair + i), first_row) };
                    }
                    let sixteen = transpose(sixteen);
                    for (row, to) in to.chunks_mut(width).enumerate() {
                        let end = (pair + LANES).min(width);
                        store(&mut to[pair..end], sixteen[row % LANES]);
                    }
                }
            }
        }
    }

    /// # Safety
    /// The source was checked, `to` is a panel of `wide` registers a pair, and the CPU has the instructions.
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn lay_right(source: &Source, lies: Lies, first_col: usize, to: &mut [Lanes], wide: usize) {
        let store = |to: &mut Lanes, pairs: __m512i| {
            // SAFETY: a register's bytes.
            unsafe { _mm512_store_si512(std::ptr::from_mut(to).cast(), pairs) };
        };
        match lies {
            Lies::Straight => {
                for (pair, to) in to.chunks_mut(wide).enumerate() {
                    for (i, to) in to.iter_mut().enumerate() {
                        // SAFETY: the caller's.
                        store(to, unsafe { across(source, 2 * pair, first_col + LANES * i) });
                    }
                }
            }
            Lies::Transposed => {
                let pairs = to.len() / wide;
                for i in 0..wide {
                    for pair in (0..pairs).step_by(LANES) {
                        let mut sixteen = [_mm512_setzero_si512(); LANES];
                        for col in 0..LANES {
                            // SAFETY: the caller's.
                            sixteen[col] = unsafe { along(source, first_col + LANES * i + col, 2 * pair) };
                        }
                        let sixteen = transpose(sixteen);
                        for at in pair..(pair + LANES).min(pairs) {
                            store(&mut to[at * wide + i], sixteen[at - pair]);
                        }
                    }
                }
            }
        }
    }

    /// # Safety
    /// Shapes were checked, and the CPU has the instructions.
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn gemm(left: &Left, first_row: usize, right: &Right, y: &mut [f32]) {
        let (pairs, stride) = (left.inner.div_ceil(2), right.cols);
        let rows = y.len() / stride;
        for begin in (0..pairs).step_by(PAIRS_PER_BLOCK) {
            let count = PAIRS_PER_BLOCK.min(pairs - begin);
            for (panel, lanes) in right.lanes.chunks(WIDE * pairs).enumerate() {
                let col = panel * WIDE * LANES;
                let wide = lanes.len() / pairs;
                let last = first(right.cols - col - (wide - 1) * LANES);
                let lanes = &lanes[begin * wide..];
                let mut row = 0;
                while row < rows {
                    // SAFETY: the rows, the panel and the columns are there.
                    unsafe {
                        let tile = Tile {
                            a: left.pairs.as_ptr().add((first_row + row) * pairs + begin).cast(),
                            a_stride: pairs,
                            b: lanes.as_ptr().cast(),
                            pairs: count,
                            y: y.as_mut_ptr().add(row * stride + col),
                            stride,
                            last,
                            add: begin > 0,
                        };
                        row += match (rows - row, wide) {
                            (TILE.., 3) => tile.run::<TILE, 3>(),
                            (4.., 3) => tile.run::<4, 3>(),
                            (2.., 3) => tile.run::<2, 3>(),
                            (_, 3) => tile.run::<1, 3>(),
                            (TILE.., 2) => tile.run::<TILE, 2>(),
                            (4.., 2) => tile.run::<4, 2>(),
                            (_, 2) => tile.run::<1, 2>(),
                            (TILE.., _) => tile.run::<TILE, 1>(),
                            (4.., _) => tile.run::<4, 1>(),
                            _ => tile.run::<1, 1>(),
                        };
                    }
                }
            }
        }
    }

    /// Rows of A against a panel of B.
    struct Tile {
        a: *const i32,
        a_stride: usize,
        b: *const __m512i,
        pairs: usize,
        y: *mut f32,
        stride: usize,
        /// Which columns of the last register there are.
        last: __mmask16,
        add: bool,
    }

    impl Tile {
        /// R rows against W registers; returns R.
        ///
        /// # Safety
        /// The rows, `pairs` pairs of each, the panel's registers, and the outputs are there.
        #[inline]
        #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")]
        unsafe fn run<const R: usize, const W: usize>(&self) -> usize {
            let mut sums = [[_mm512_setzero_ps(); W]; R];
            // SAFETY: the caller's.
            unsafe {
                for pair in 0..self.pairs {
                    let mut b = [_mm512_setzero_si512(); W];
                    for w in 0..W {
                        b[w] = _mm512_load_si512(self.b.add(pair * W + w));
                    }
                    for r in 0..R {
                        let a = _mm512_set1_epi32(self.a.add(r * self.a_stride + pair).read_unaligned());
                        for w in 0..W {
                            let bits = |x| std::mem::transmute::<__m512i, __m512bh>(x);
                            sums[r][w] = _mm512_dpbf16_ps(sums[r][w], bits(b[w]), bits(a));
                        }
                    }
                }
                for r in 0..R {
                    for w in 0..W {
                        let y = self.y.add(r * self.stride + w * LANES);
                        let mask = if w + 1 == W { self.last } else { __mmask16::MAX };
                        let mut sum = sums[r][w];
                        if self.add {
                            sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, y));
                        }
                        _mm512_mask_storeu_ps(y, mask, sum);
                    }
                }
            }
            R
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here<T>(all: &mut [T], width: usize, work: &(dyn Fn(usize, &mut [T]) + Sync)) {
        all.chunks_mut(width).enumerate().for_each(|(i, chunk)| work(i, chunk));
    }

    /// Some numbers in −1..1.
    fn values(count: usize, by: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * by) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    #[test]
    fn every_layout_gives_the_definition_on_every_instruction_set() {
        let round = |x: f32| half::bf16::from_f32(x).to_f32();
        for (m, k, n) in [(1, 1, 1), (2, 3, 17), (9, 31, 48), (8, 64, 49), (23, 65, 130), (40, 33, 16), (5, 2100, 3)] {
            let (a, b) = (values(m * k, 7919), values(k * n, 104_729));
            let across = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
                (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
            };
            let (at, bt) = (across(&a, m, k), across(&b, k, n));
            let want: Vec<f64> = (0..m * n)
                .map(|i| (0..k).map(|j| f64::from(round(a[i / n * k + j])) * f64::from(round(b[j * n + i % n]))).sum())
                .collect();
            let source = |values, rows, cols| Source { values, rows, cols, stride: cols };
            let lefts = [
                Left::new(source(&a, m, k), Lies::Straight, here),
                Left::new(source(&at, k, m), Lies::Transposed, here),
            ];
            let rights = [
                Right::new(source(&b, k, n), Lies::Straight, here),
                Right::new(source(&bt, n, k), Lies::Transposed, here),
            ];
            for isa in Isa::available() {
                for (left, right) in lefts.iter().flat_map(|left| rights.iter().map(move |right| (left, right))) {
                    let mut y = vec![f32::NAN; m * n];
                    run(isa, left, 0, right, &mut y);
                    // Once more, by rows from the second on.
                    let second = 1.min(m - 1);
                    let mut later = vec![f32::NAN; (m - second) * n];
                    run(isa, left, second, right, &mut later);
                    assert_eq!(later, y[second * n..]);
                    for (y, want) in y.iter().zip(&want) {
                        let bound = 1e-5 * (k as f64).max(8.0);
                        assert!((f64::from(*y) - want).abs() < bound, "{isa:?} {m} {k} {n}: {y} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn layouts_are_those_of_the_scalar_reference() {
        let (rows, cols, stride) = (37, 71, 80);
        let x = values(rows * stride, 15_485);
        let source = Source { values: &x, rows, cols, stride };
        for isa in Isa::available() {
            for lies in [Lies::Straight, Lies::Transposed] {
                let (outer, inner) = lies.shape(&source);
                for first in [0, 16] {
                    let mut found = vec![[7; 2]; 16 * inner.div_ceil(2)];
                    let mut want = found.clone();
                    lay_left(isa, &source, lies, first, &mut found);
                    lay_left(Isa::Scalar, &source, lies, first, &mut want);
                    assert_eq!(found, want, "{isa:?} {lies:?} left");
                    let mut found = vec![Lanes([[7; 2]; LANES]); WIDE * outer.div_ceil(2)];
                    let mut want = found.clone();
                    lay_right(isa, &source, lies, first, &mut found);
                    lay_right(Isa::Scalar, &source, lies, first, &mut want);
                    let plain = |all: &[Lanes]| all.iter().flat_map(|lanes| lanes.0).collect::<Vec<_>>();
                    assert_eq!(plain(&found), plain(&want), "{isa:?} {lies:?} right");
                }
            }
        }
    }
}
