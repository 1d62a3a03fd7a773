//! The factors of an adapter that was imported exactly: floats, multiplied as they are.
//!
//! B lies by outputs here, not by components as in the file: an output is then one dot product of length rank.

use bitdelta_delta::{PackedMatrix, part::Part};
use bitdelta_kernels::{Elements, Matrix, Weights};
use half::f16;

/// `scale` · B · A.
pub(super) struct CpuFactors {
    /// (rank, cols)
    a: Floats,
    /// (rows, rank)
    b: Floats,
    rank: usize,
    scale: f32,
}

/// Entries in the width of their file.
enum Floats {
    F16(Vec<u16>),
    F32(Vec<f32>),
}

impl Floats {
    /// `count` entries, `entry(i)` being exact in `bits` bits.
    fn new(bits: u8, count: usize, entry: impl Fn(usize) -> f32) -> Self {
        match bits {
            16 => Self::F16((0..count).map(|i| f16::from_f32(entry(i)).to_bits()).collect()),
            _ => Self::F32((0..count).map(entry).collect()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F16(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    fn bytes(&self) -> u64 {
        self.len() as u64 * if matches!(self, Self::F16(_)) { 2 } else { 4 }
    }

    fn get(&self, at: usize) -> f32 {
        match self {
            Self::F16(values) => f16::from_bits(values[at]).to_f32(),
            Self::F32(values) => values[at],
        }
    }

    /// As a matrix of rows of `cols`.
    fn weights(&self, cols: usize) -> Weights<'_> {
        let elements = match self {
            Self::F16(values) => Elements::F16(values),
            Self::F32(values) => Elements::F32(values),
        };
        Weights { elements, rows: self.len() / cols, cols }
    }
}

impl CpuFactors {
    /// The factors of a low-rank part of floats; `None` of any other part.
    pub(super) fn of(part: &Part) -> Option<Self> {
        let Part::LowRank { a, bt } = part else { return None };
        if !a.is_float() {
            return None;
        }
        let PackedMatrix { rows: rank, cols, .. } = *a;
        Some(Self {
            a: Floats::new(a.bits, rank * cols, |at| a.entry(at / cols, at % cols)),
            b: Floats::new(bt.bits, rank * bt.cols, |at| bt.entry(at % rank, at / rank)),
            rank,
            scale: a.tensor_scale * bt.tensor_scale,
        })
    }

    pub(super) fn matrix(&self) -> Matrix<'_> {
        Matrix::Factors(self.a.weights(self.a.len() / self.rank), self.b.weights(self.rank), self.scale)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.a.bytes() + self.b.bytes()
    }

    /// `out` (cols) += row `row` of the product.
    pub(super) fn add_row(&self, row: usize, out: &mut [f32]) {
        for r in 0..self.rank {
            let factor = self.scale * self.b.get(row * self.rank + r);
            let begin = r * out.len();
            for (col, out) in out.iter_mut().enumerate() {
                *out += factor * self.a.get(begin + col);
            }
        }
    }
}
