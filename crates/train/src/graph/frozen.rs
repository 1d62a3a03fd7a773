//! Frozen weights in fewer bytes: bf16, 8 bits or 4 bits a weight, multiplied by the same f32 products.
//!
//! A low-rank run never changes the base, so it need not hold it in f32: at 8 bits a base of 4 billion weights takes 4 GB
//! instead of 15. A product widens some rows of W at a time into a small f32 matrix, which stays in the cache, and
//! multiplies with that; for a few hundred tokens the widening is a percent of the work.
//!
//! Codes are those of QLoRA (Dettmers et al. 2023): groups of 64 along a row share an f32 scale, their largest magnitude;
//! at 8 bits a code is a whole number of 127ths of it, at 4 bits one of the sixteen quantiles of a normal distribution (NF4).

use super::matrix::{LaidOut, Matrix, Precision, View, product};
use bitdelta_kernels::Lies;
use half::bf16;
use rayon::prelude::*;

/// Weights along a row that share a scale.
const GROUP: usize = 64;
/// Weights that are f32 at one time: 2 MB.
const WIDE: usize = 1 << 19;

/// NF4's levels, from the paper's appendix.
#[allow(clippy::excessive_precision, reason = "as published")]
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_800_998_687_7,
    -0.525_073_051_452_636_7,
    -0.394_917_488_098_144_53,
    -0.284_441_381_692_886_35,
    -0.184_773_430_228_233_34,
    -0.091_050_036_251_544_95,
    0.0,
    0.079_580_299_556_255_34,
    0.160_930_201_411_247_25,
    0.246_112_301_945_686_34,
    0.337_915_241_718_292_24,
    0.440_709_829_330_444_34,
    0.562_617_003_917_694_1,
    0.722_956_836_223_602_3,
    1.0,
];

/// How frozen weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// As they are.
    #[default]
    F32,
    /// Rounded to 16 bits.
    Bf16,
    /// A byte a weight, a scale a group.
    Int8,
    /// Half a byte a weight, a scale a group.
    Nf4,
}

/// A frozen (rows, cols) matrix.
#[derive(Debug)]
pub enum Frozen {
    /// In f32.
    Wide(Matrix),
    /// In bf16, laid out both ways for products.
    LaidOut(LaidOut),
    /// In fewer bytes.
    Coded(Coded),
}

/// A matrix in codes.
#[derive(Debug)]
pub struct Coded {
    rows: usize,
    cols: usize,
    storage: Storage,
    precision: Precision,
    /// Row after row, each of a whole number of bytes; two codes a byte have the first in the low half.
    codes: Vec<u8>,
    /// Row after row, one a group; none for bf16.
    scales: Vec<f32>,
}

impl Storage {
    /// Bytes of a matrix.
    pub fn bytes(self, rows: usize, cols: usize) -> usize {
        rows * (self.row_bytes(cols) + self.row_scales(cols) * size_of::<f32>())
    }

    fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::F32 => 4 * cols,
            Self::Bf16 => 2 * cols,
            Self::Int8 => cols,
            Self::Nf4 => cols.div_ceil(2),
        }
    }

    fn row_scales(self, cols: usize) -> usize {
        match self {
            Self::F32 | Self::Bf16 => 0,
            Self::Int8 | Self::Nf4 => cols.div_ceil(GROUP),
        }
    }
}

impl Frozen {
    /// Keeps `matrix` so.
    pub fn new(matrix: Matrix, storage: Storage) -> Self {
        match storage {
            Storage::F32 if matrix.precision().rounds() => Self::LaidOut(LaidOut::new(&matrix)),
            Storage::F32 => Self::Wide(matrix),
            _ => Self::Coded(Coded::new(&matrix, storage)),
        }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Wide(matrix) => matrix.rows(),
            Self::LaidOut(laid_out) => laid_out.rows(),
            Self::Coded(coded) => coded.rows,
        }
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        match self {
            Self::Wide(matrix) => matrix.cols(),
            Self::LaidOut(laid_out) => laid_out.cols(),
            Self::Coded(coded) => coded.cols,
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Wide(matrix) => Storage::F32.bytes(matrix.rows(), matrix.cols()),
            Self::LaidOut(laid_out) => 2 * Storage::Bf16.bytes(laid_out.rows(), laid_out.cols()),
            Self::Coded(coded) => coded.storage.bytes(coded.rows, coded.cols),
        }
    }

    /// x (tokens, cols) · Wᵀ -> (tokens, rows)
    ///
    /// # Errors
    /// What candle's product reports.
    pub fn forward(&self, x: View<'_>) -> candle_core::Result<Matrix> {
        match self {
            Self::Wide(matrix) => product(x, matrix.t()),
            Self::LaidOut(laid_out) => Ok(laid_out.multiply(x, Lies::Transposed)),
            Self::Coded(coded) => {
                let mut y: Option<Matrix> = None;
                coded.in_blocks(|from, block| {
                    let part = product(x, block.t())?;
                    let y = y.get_or_insert_with(|| Matrix::zeros(part.rows(), coded.rows));
                    y.add_to_columns(from..from + block.rows(), &part, 1.0);
                    Ok(())
                })?;
                Ok(y.unwrap_or_else(|| Matrix::zeros(0, coded.rows)))
            }
        }
    }

    /// dy (tokens, rows) · W -> (tokens, cols)
    ///
    /// # Errors
    /// What candle's product reports.
    pub fn backward(&self, dy: View<'_>) -> candle_core::Result<Matrix> {
        match self {
            Self::Wide(matrix) => product(dy, matrix.view()),
            Self::LaidOut(laid_out) => Ok(laid_out.multiply(dy, Lies::Straight)),
            Self::Coded(coded) => {
                let mut dx: Option<Matrix> = None;
                coded.in_blocks(|from, block| {
                    let part = product(dy.columns(from..from + block.rows()), block.view())?;
                    match &mut dx {
                        Some(dx) => dx.add(&part),
                        empty => *empty = Some(part),
                    }
                    Ok(())
                })?;
                Ok(dx.unwrap_or_else(|| Matrix::zeros(0, coded.cols)))
            }
        }
    }
}

impl Coded {
    fn new(matrix: &Matrix, storage: Storage) -> Self {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let (row_bytes, row_scales) = (storage.row_bytes(cols), storage.row_scales(cols));
        let mut codes = vec![0u8; rows * row_bytes];
        let mut scales = vec![0.0f32; rows * row_scales];
        let row_codes = codes.par_chunks_mut(row_bytes.max(1));
        let of_rows = matrix.values().par_chunks(cols.max(1)).zip(row_codes);
        if row_scales == 0 {
            of_rows.for_each(|(values, codes)| encode(values, codes, &mut [], storage));
        } else {
            of_rows
                .zip(scales.par_chunks_mut(row_scales))
                .for_each(|((values, codes), scales)| encode(values, codes, scales, storage));
        }
        Self { rows, cols, storage, precision: matrix.precision(), codes, scales }
    }

    /// Calls `each` with the first row of every block of rows, and the block in f32.
    fn in_blocks(&self, mut each: impl FnMut(usize, &Matrix) -> candle_core::Result<()>) -> candle_core::Result<()> {
        let rows_per_block = (WIDE / self.cols.max(1)).max(1);
        for from in (0..self.rows).step_by(rows_per_block) {
            each(from, &self.widen(from, (from + rows_per_block).min(self.rows)))?;
        }
        Ok(())
    }

    /// Rows `from..to` in f32.
    fn widen(&self, from: usize, to: usize) -> Matrix {
        let (row_bytes, row_scales) = (self.storage.row_bytes(self.cols), self.storage.row_scales(self.cols));
        let mut out = Matrix::zeros(to - from, self.cols).at(self.precision);
        out.values_mut().par_chunks_mut(self.cols).enumerate().for_each(|(at, out)| {
            let row = from + at;
            let codes = &self.codes[row * row_bytes..(row + 1) * row_bytes];
            decode(codes, &self.scales[row * row_scales..(row + 1) * row_scales], out, self.storage);
        });
        out
    }
}

/// One row into codes.
fn encode(values: &[f32], codes: &mut [u8], scales: &mut [f32], storage: Storage) {
    if storage == Storage::Bf16 {
        for (code, value) in codes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *code = bf16::from_f32(*value).to_le_bytes();
        }
        return;
    }
    for (group, (values, scale)) in values.chunks(GROUP).zip(scales).enumerate() {
        *scale = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
        for (at, value) in values.iter().enumerate() {
            let share = value * inverse;
            let at = group * GROUP + at;
            match storage {
                Storage::Int8 => codes[at] = (share * 127.0).round() as i8 as u8,
                _ => codes[at / 2] |= nearest(share) << (4 * (at % 2)),
            }
        }
    }
}

/// One row from codes.
fn decode(codes: &[u8], scales: &[f32], out: &mut [f32], storage: Storage) {
    match storage {
        Storage::F32 => unreachable!("f32 is not coded"),
        Storage::Bf16 => {
            for (code, out) in codes.as_chunks::<2>().0.iter().zip(out) {
                *out = bf16::from_le_bytes(*code).to_f32();
            }
        }
        Storage::Int8 => {
            for ((codes, scale), out) in codes.chunks(GROUP).zip(scales).zip(out.chunks_mut(GROUP)) {
                let step = scale / 127.0;
                for (code, out) in codes.iter().zip(out) {
                    *out = f32::from(*code as i8) * step;
                }
            }
        }
        Storage::Nf4 => {
            for ((codes, scale), out) in codes.chunks(GROUP / 2).zip(scales).zip(out.chunks_mut(GROUP)) {
                let levels = NF4.map(|level| level * scale);
                for (code, out) in codes.iter().zip(out.chunks_mut(2)) {
                    out[0] = levels[usize::from(code & 15)];
                    if let Some(second) = out.get_mut(1) {
                        *second = levels[usize::from(code >> 4)];
                    }
                }
            }
        }
    }
}

/// The code of the level nearest to `share`, by halving.
fn nearest(share: f32) -> u8 {
    let above = NF4.partition_point(|level| *level < share).clamp(1, 15);
    let nearer_below = share - NF4[above - 1] < NF4[above] - share;
    (above - usize::from(nearer_below)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    fn random(rng: &mut StdRng, rows: usize, cols: usize) -> Matrix {
        Matrix::new(rows, cols, (0..rows * cols).map(|_| rng.random_range(-1.0f32..1.0)).collect())
    }

    fn wide(frozen: &Frozen) -> Matrix {
        match frozen {
            Frozen::Wide(matrix) => matrix.clone(),
            Frozen::LaidOut(_) => unreachable!("of matrices in bf16 alone"),
            Frozen::Coded(coded) => coded.widen(0, coded.rows),
        }
    }

    #[test]
    fn codes_stay_within_half_a_step_of_the_weights() {
        let mut rng = StdRng::seed_from_u64(1);
        // An odd width leaves a tail group and half a byte.
        let matrix = random(&mut rng, 5, 131);
        // bf16 has 8 bits of mantissa; 8-bit steps are 1/127 of the largest; NF4's widest gap is 0.304.
        for (storage, most) in [(Storage::Bf16, 1.0 / 256.0), (Storage::Int8, 0.5 / 127.0), (Storage::Nf4, 0.153)] {
            let frozen = Frozen::new(matrix.clone(), storage);
            assert_eq!((frozen.rows(), frozen.cols()), (5, 131));
            for (found, want) in wide(&frozen).values().iter().zip(matrix.values()) {
                assert!((found - want).abs() <= most * 1.0001, "{storage:?}: {found} {want}");
            }
        }
        let bytes = [Storage::F32, Storage::Bf16, Storage::Int8, Storage::Nf4].map(|storage| storage.bytes(1, 128));
        assert_eq!(bytes, [512, 256, 128 + 8, 64 + 8]);
    }

    #[test]
    fn levels_code_themselves_and_zeros_stay_zeros() {
        for (code, level) in NF4.iter().enumerate() {
            assert_eq!(usize::from(nearest(*level)), code);
        }
        let frozen = Frozen::new(Matrix::zeros(2, 70), Storage::Nf4);
        assert!(wide(&frozen).values().iter().all(|value| *value == 0.0));
    }

    #[test]
    fn products_are_those_of_the_widened_matrix_over_several_blocks() {
        let mut rng = StdRng::seed_from_u64(2);
        let (rows, cols) = (WIDE / 1024 + 3, 1024);
        let (matrix, x) = (random(&mut rng, rows, cols), random(&mut rng, 3, cols));
        let dy = random(&mut rng, 3, rows);
        for storage in [Storage::F32, Storage::Bf16, Storage::Int8, Storage::Nf4] {
            let frozen = Frozen::new(matrix.clone(), storage);
            let wide = wide(&frozen);
            for (found, want) in [
                (frozen.forward(x.view()), product(x.view(), wide.t())),
                (frozen.backward(dy.view()), product(dy.view(), wide.view())),
            ] {
                let (found, want) = (found.expect("a product"), want.expect("a product"));
                assert_eq!((found.rows(), found.cols()), (want.rows(), want.cols()));
                for (found, want) in found.values().iter().zip(want.values()) {
                    assert!((found - want).abs() < 1e-3, "{storage:?}: {found} {want}");
                }
            }
        }
    }
}
