//! Row-major f32 matrices and their products.
//!
//! The backward pass needs gradients added in place and products of column ranges, which candle's immutable tensors
//! do not offer; its CPU storage and matrix product do, so a [`Matrix`] is candle's storage with a shape.

use bitdelta_kernels::{
    Activations, Elements, Isa, Matrix as Factor, Product, Term, Weights, project, round_to_bf16,
    round_transposed_to_bf16,
};
use candle_core::{CpuStorage, Layout, Shape, backend::BackendStorage};
use rayon::prelude::*;
use std::ops::Range;

/// Elements that one task handles in element-wise loops: large enough to hide the cost of a task.
const ELEMENTS_PER_TASK: usize = 1 << 14;

/// Rows of a product in bf16 that one task computes.
const ROWS_PER_TASK: usize = 64;
/// Sizes below which a product in bf16 is not worth the rounding.
const WORTH_ROUNDING: usize = 32;

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
    /// Whether this CPU has what makes [`Self::Bf16`] faster.
    pub fn bf16_pays() -> bool {
        Isa::selected() >= Isa::Avx512Bf16
    }
}

/// A (rows, cols) matrix of f32, row-major.
#[derive(Debug, Clone)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    storage: CpuStorage,
    precision: Precision,
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
        Self { rows, cols, storage: CpuStorage::F32(values), precision: Precision::F32 }
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
        match &self.storage {
            CpuStorage::F32(values) => values,
            _ => unreachable!("a Matrix is only made from f32 values and f32 products"),
        }
    }

    /// All values, row after row.
    pub fn values_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            CpuStorage::F32(values) => values,
            _ => unreachable!("a Matrix is only made from f32 values and f32 products"),
        }
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
        let mut values = Vec::with_capacity(rows.len() * self.cols);
        for &row in rows {
            values.extend_from_slice(self.row(row));
        }
        Self::new(rows.len(), self.cols, values)
    }

    /// The inverse of [`Matrix::select_rows`] for gradients: row i of `self` goes to row `rows[i]` of `total` rows,
    /// the others are zero. `rows` must not repeat.
    pub fn scatter_rows(&self, rows: &[usize], total: usize) -> Self {
        let mut out = Self::zeros(total, self.cols);
        let cols = self.cols;
        for (from, &to) in rows.iter().enumerate() {
            out.values_mut()[to * cols..(to + 1) * cols].copy_from_slice(self.row(from));
        }
        out
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

    /// All values rounded to bf16, row after row.
    fn narrow(&self) -> Vec<u16> {
        let values = &self.matrix.values()[self.offset..];
        let mut out = vec![0; self.rows * self.cols];
        out.par_chunks_mut(ROWS_PER_TASK * self.cols).enumerate().for_each(|(i, out)| {
            let values = &values[i * ROWS_PER_TASK * self.row_stride..];
            if self.row_stride == 1 {
                round_transposed_to_bf16(values, self.col_stride, (self.cols, out.len() / self.cols), out);
            } else {
                for (row, out) in out.chunks_exact_mut(self.cols).enumerate() {
                    round_to_bf16(&values[row * self.row_stride..][..self.cols], out);
                }
            }
        });
        out
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
    let least = a.rows.min(a.cols).min(b.cols);
    if a.precision.max(b.precision) == Precision::Bf16 && least >= WORTH_ROUNDING && Precision::bf16_pays() {
        return Ok(product_of_bf16(a, b));
    }
    let sizes = (1, a.rows, b.cols, a.cols);
    let storage = a.matrix.storage.matmul(&b.matrix.storage, sizes, &a.layout(), &b.layout())?;
    Ok(Matrix { rows: a.rows, cols: b.cols, storage, precision: Precision::F32 })
}

/// [`product`] of rounded factors.
fn product_of_bf16(a: View<'_>, b: View<'_>) -> Matrix {
    let (rows, inner, cols) = (a.rows, a.cols, b.cols);
    let (a, b) = (a.narrow(), b.t().narrow());
    let weights = Weights { elements: Elements::Bf16(&b), rows: cols, cols: inner };
    let mut y = vec![0.0; rows * cols];
    y.par_chunks_mut(ROWS_PER_TASK * cols).zip(a.par_chunks(ROWS_PER_TASK * inner)).for_each(|(y, a)| {
        let x = Activations::of_bf16(a, inner);
        let terms = vec![Term { matrix: Factor::Floats(weights), rows: 0..x.rows() }];
        project(&x, &mut [Product { terms, y, add: false }]);
    });
    Matrix::new(rows, cols, y)
}

/// Σ aᵢ·bᵢ with sixteen running sums, so that the compiler can use vector registers. Equal lengths.
#[inline]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a_blocks, a_tail) = a.as_chunks::<16>();
    let (b_blocks, b_tail) = b.as_chunks::<16>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..16 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + tail
}

/// `to += factor · from`. Equal lengths.
#[inline]
pub fn axpy(factor: f32, from: &[f32], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
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
        let views = [
            (x.view(), w.t()),
            (dy.view(), w.view()),
            (dy.t(), x.view()),
            (dy.view().columns(33..97), w.view().rows(33..97)),
            (x.view().rows(3..50), w.view().rows(1..60).t()),
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
