//! Row-major f32 matrices and their products.
//!
//! The backward pass needs gradients added in place and products of column ranges, which candle's immutable tensors
//! do not offer; its CPU storage and matrix product do, so a [`Matrix`] is candle's storage with a shape.

use super::buffer::Buffer;
use bitdelta_kernels::{Isa, Left, Lies, Right, Source, gemm};
use candle_core::{Layout, Shape, backend::BackendStorage};
use rayon::prelude::*;
use std::{borrow::Cow, ops::Range, sync::Arc};

/// Elements that one task handles in element-wise loops: large enough to hide the cost of a task.
const ELEMENTS_PER_TASK: usize = 1 << 14;

/// Rows of a product in bf16 are computed by so many.
const TILE: usize = 8;

/// How a product with a matrix is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Precision {
    /// In f32.
    #[default]
    F32,
    /// Of factors rounded to bf16, added up in f32: twice as fast where the CPU has dot products of bf16.
    Bf16,
}

impl Precision {
    /// Whether factors are rounded to bf16: where this CPU has what makes that faster.
    pub fn rounds(self) -> bool {
        self == Self::Bf16 && Isa::selected() >= Isa::Avx512Bf16
    }
}

/// A (rows, cols) matrix of f32, row-major.
#[derive(Debug, Clone)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    buffer: Buffer,
    precision: Precision,
    /// What stays is laid out once.
    laid_out: Option<Arc<LaidOut>>,
}

/// A matrix as a right factor, and its transpose.
#[derive(Debug)]
pub struct LaidOut {
    straight: Right,
    transposed: Right,
}

/// A matrix, its transpose, or a range of its columns, as an operand of [`product`].
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    matrix: &'a Matrix,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    offset: usize,
    precision: Precision,
}

impl Matrix {
    /// Wraps `values`, whose length must be `rows * cols`.
    pub fn new(rows: usize, cols: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * cols, "a ({rows}, {cols}) matrix");
        Self::of(rows, cols, Buffer::of(values))
    }

    fn of(rows: usize, cols: usize, buffer: Buffer) -> Self {
        Self { rows, cols, buffer, precision: Precision::F32, laid_out: None }
    }

    /// So many values, whatever they are, for a while: its memory is used again.
    pub fn any(rows: usize, cols: usize) -> Self {
        Self::of(rows, cols, Buffer::any(rows * cols))
    }

    /// The same, laid out for products in bf16 where those are faster, for a matrix that many are multiplied by.
    pub fn laid_out(mut self) -> Self {
        if self.precision.rounds() {
            self.laid_out = Some(Arc::new(LaidOut::new(&self)));
        }
        self
    }

    /// The same, whose products are computed so.
    pub fn at(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// How products with it are computed.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// All zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self::new(rows, cols, vec![0.0; rows * cols])
    }

    /// All zeros, for a while: its memory is used again.
    pub fn cleared(rows: usize, cols: usize) -> Self {
        let mut zeros = Self::any(rows, cols);
        zeros.values_mut().par_chunks_mut(ELEMENTS_PER_TASK).for_each(|values| values.fill(0.0));
        zeros
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        let laid_out = if self.laid_out.is_some() { 2 * size_of::<u16>() } else { 0 };
        self.values().len() * (size_of::<f32>() + laid_out)
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        self.buffer.values()
    }

    /// All values, row after row.
    pub fn values_mut(&mut self) -> &mut [f32] {
        self.laid_out = None;
        self.buffer.values_mut()
    }

    /// Row `row`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.cols..(row + 1) * self.cols]
    }

    /// The matrix itself as an operand.
    pub fn view(&self) -> View<'_> {
        let Self { rows, cols, precision, .. } = *self;
        View { matrix: self, rows, cols, row_stride: cols, col_stride: 1, offset: 0, precision }
    }

    /// The transpose as an operand.
    pub fn t(&self) -> View<'_> {
        self.view().t()
    }

    /// `self += other`, of the same shape, in parallel.
    pub fn add(&mut self, other: &Self) {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "shapes of a sum");
        self.values_mut().par_chunks_mut(ELEMENTS_PER_TASK).zip(other.values().par_chunks(ELEMENTS_PER_TASK)).for_each(
            |(to, from)| {
                for (to, from) in to.iter_mut().zip(from) {
                    *to += from;
                }
            },
        );
    }

    /// `self[:, columns] += factor · other`, in parallel over rows.
    pub fn add_to_columns(&mut self, columns: Range<usize>, other: &Self, factor: f32) {
        assert_eq!((self.rows, columns.len()), (other.rows, other.cols), "shapes of a sum over columns");
        let cols = self.cols;
        self.values_mut().par_chunks_mut(cols).zip(other.values().par_chunks(other.cols)).for_each(|(to, from)| {
            for (to, from) in to[columns.clone()].iter_mut().zip(from) {
                *to += factor * from;
            }
        });
    }

    /// `self *= factor`, in parallel.
    pub fn scale(&mut self, factor: f32) {
        self.values_mut().par_chunks_mut(ELEMENTS_PER_TASK).for_each(|chunk| {
            for value in chunk {
                *value *= factor;
            }
        });
    }

    /// Rows `rows` of this matrix, in that order.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let mut out = Self::any(rows.len(), self.cols);
        out.values_mut().chunks_mut(self.cols).zip(rows).for_each(|(to, &row)| to.copy_from_slice(self.row(row)));
        out
    }

    /// The inverse of [`Matrix::select_rows`] for gradients: row i of `self` goes to row `rows[i]` of `total` rows,
    /// the others are zero. `rows` must not repeat.
    pub fn scatter_rows(&self, rows: &[usize], total: usize) -> Self {
        let mut out = Self::cleared(total, self.cols);
        let cols = self.cols;
        for (from, &to) in rows.iter().enumerate() {
            out.values_mut()[to * cols..(to + 1) * cols].copy_from_slice(self.row(from));
        }
        out
    }
}

impl LaidOut {
    /// Of a matrix as it is now.
    pub fn new(matrix: &Matrix) -> Self {
        Self { straight: matrix.view().lay_out(), transposed: matrix.t().lay_out() }
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.transposed.cols()
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.straight.cols()
    }

    /// x · M, or x · Mᵀ.
    pub fn multiply(&self, x: View<'_>, lies: Lies) -> Matrix {
        product_of_bf16(x, self.right(lies))
    }

    fn right(&self, lies: Lies) -> &Right {
        match lies {
            Lies::Straight => &self.straight,
            Lies::Transposed => &self.transposed,
        }
    }
}

impl<'a> View<'a> {
    /// Transposed.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Only these columns.
    pub fn columns(self, columns: Range<usize>) -> Self {
        assert!(columns.end <= self.cols, "columns {columns:?} of {}", self.cols);
        Self { offset: self.offset + columns.start * self.col_stride, cols: columns.len(), ..self }
    }

    /// Only these rows.
    pub fn rows(self, rows: Range<usize>) -> Self {
        self.t().columns(rows).t()
    }

    /// The same in a product that is computed so.
    pub fn at(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Where its values lie, and how.
    fn source(&self) -> (Source<'a>, Lies) {
        let values = &self.matrix.values()[self.offset..];
        match (self.col_stride, self.row_stride) {
            (1, stride) => {
                // A single row has none after it, whatever its stride.
                let stride = if self.rows > 1 { stride } else { self.cols };
                (Source { values, rows: self.rows, cols: self.cols, stride }, Lies::Straight)
            }
            (stride, _) => (Source { values, rows: self.cols, cols: self.rows, stride }, Lies::Transposed),
        }
    }

    /// As the right side of a product in bf16, which the matrix may have already.
    fn right(&self) -> Cow<'a, Right> {
        match &self.matrix.laid_out {
            Some(laid_out) if self.rows * self.cols == self.matrix.values().len() => {
                Cow::Borrowed(laid_out.right(self.source().1))
            }
            _ => Cow::Owned(self.lay_out()),
        }
    }

    fn lay_out(&self) -> Right {
        let (source, lies) = self.source();
        Right::new(source, lies, each)
    }

    fn layout(&self) -> Layout {
        Layout::new(Shape::from((self.rows, self.cols)), vec![self.row_stride, self.col_stride], self.offset)
    }
}

/// `a (m, k) · b (k, n) -> (m, n)`, on all threads, as the more thrifty [`Precision`] of the two says.
///
/// # Errors
/// What candle reports; with equal inner sizes there is nothing to report.
pub fn product(a: View<'_>, b: View<'_>) -> candle_core::Result<Matrix> {
    assert_eq!(a.cols, b.rows, "inner sizes of a product");
    if a.precision.max(b.precision).rounds() {
        return Ok(product_of_bf16(a, &b.right()));
    }
    let sizes = (1, a.rows, b.cols, a.cols);
    let (left, right) = (a.matrix.buffer.storage(), b.matrix.buffer.storage());
    let storage = left.matmul(right, sizes, &a.layout(), &b.layout())?;
    Ok(Matrix::of(a.rows, b.cols, Buffer::of_storage(storage)))
}

/// [`product`] of rounded factors.
fn product_of_bf16(a: View<'_>, right: &Right) -> Matrix {
    let (source, lies) = a.source();
    let (left, cols) = (Left::new(source, lies, each), right.cols());
    let mut y = Matrix::any(a.rows, cols);
    // Every thread has two tasks.
    let rows = a.rows.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(TILE);
    each(y.values_mut(), (rows * cols).max(1), &|i, y| gemm(&left, i * rows, right, y));
    y
}

/// Chunks on all threads.
fn each<T: Send>(all: &mut [T], chunk: usize, work: &(dyn Fn(usize, &mut [T]) + Sync)) {
    all.par_chunks_mut(chunk).enumerate().for_each(|(i, chunk)| work(i, chunk));
}

/// Σ aᵢ·bᵢ with sixteen running sums, so that the compiler can use vector registers. Equal lengths.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a_blocks, a_tail) = a.as_chunks::<16>();
    let (b_blocks, b_tail) = b.as_chunks::<16>();
    for i in 0..a_blocks.len().min(b_blocks.len()) {
        for lane in 0..16 {
            sums[lane] += a_blocks[i][lane] * b_blocks[i][lane];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + tail
}

/// `to += factor · from`. Equal lengths.
#[inline(always)]
pub fn axpy(factor: f32, from: &[f32], to: &mut [f32]) {
    let (to_blocks, to_tail) = to.as_chunks_mut::<16>();
    let (from_blocks, from_tail) = from.as_chunks::<16>();
    for i in 0..to_blocks.len().min(from_blocks.len()) {
        // Values, and not places that might be the same.
        let (mut sum, from) = (to_blocks[i], from_blocks[i]);
        for lane in 0..16 {
            sum[lane] += factor * from[lane];
        }
        to_blocks[i] = sum;
    }
    for i in 0..to_tail.len().min(from_tail.len()) {
        to_tail[i] += factor * from_tail[i];
    }
}

/// eˣ with a relative error under 3·10⁻⁷, in straight-line arithmetic that the compiler vectorises (a call of the
/// library's `exp` does not). Below −87 the result is about 10⁻³⁸ instead of less; above 88 it stays at e⁸⁸.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// 1.5·2²³: adding it rounds to an integer, which then sits in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts keeps r exact to the last bit.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    (p * r * r + r + 1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_library() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let want = (x as f64).exp();
            let relative = ((exp(x) as f64 - want) / want).abs();
            assert!(relative < 3e-7, "exp({x}): relative error {relative}");
        }
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn products_of_views_are_what_the_indices_say() {
        let a = Matrix::new(2, 3, vec![1., 2., 3., 4., 5., 6.]);
        let b = Matrix::new(2, 3, vec![1., 0., 2., 0., 1., 1.]);
        let abt = product(a.view(), b.t()).expect("product");
        assert_eq!(abt.values(), [7., 5., 16., 11.]);
        let columns = product(a.view().columns(1..3), b.view().columns(1..3).t()).expect("product");
        assert_eq!(columns.values(), [6., 5., 12., 11.]);
        let rows = product(a.view().rows(1..2), b.t()).expect("product");
        assert_eq!(rows.values(), [16., 11.]);
    }

    #[test]
    fn products_in_bf16_are_near_those_in_f32_for_every_view() {
        let ramp = |rows: usize, cols: usize, by: usize| {
            let values = (0..rows * cols).map(|i| (i * by % 1009) as f32 / 504.5 - 1.0).collect();
            Matrix::new(rows, cols, values)
        };
        let (x, w, dy) = (ramp(70, 65, 7919), ramp(99, 65, 104_729), ramp(70, 99, 15_485));
        let column = ramp(70, 1, 331);
        let views = [
            (x.view(), w.t()),
            (dy.view(), w.view()),
            (dy.t(), x.view()),
            (dy.view().columns(33..97), w.view().rows(33..97)),
            (x.view().rows(3..50), w.view().rows(1..60).t()),
            (column.view(), column.t()),
            (column.t(), column.view()),
            (dy.view().columns(5..6), dy.view().columns(5..6).t()),
        ];
        for (a, b) in views {
            let exact = product(a, b).expect("a product");
            for (a, b) in [(a.at(Precision::Bf16), b), (a, b.at(Precision::Bf16))] {
                let found = product(a, b).expect("a product");
                assert_eq!((found.rows(), found.cols()), (exact.rows(), exact.cols()));
                // Each factor is off by 1 in 512 at most, and the signs of errors differ.
                let bound = 2.0 / 512.0 * (a.cols as f32).sqrt();
                for (found, exact) in found.values().iter().zip(exact.values()) {
                    assert!((found - exact).abs() < bound, "{found} for {exact}");
                }
            }
        }
    }

    #[test]
    fn dot_takes_the_tail() {
        let a: Vec<f32> = (0..19).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (0..19).map(|i| (i * i) as f32).sum::<f32>());
    }
}
