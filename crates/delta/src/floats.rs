//! Matrices whose entries stay floats: the factors of an imported adapter, exactly as its file has them.
//!
//! They share [`PackedMatrix`] and its place in the file, so that a low-rank part has one form. Where codes have a word
//! for each plane and 64 columns, an f16 matrix (16 bits an entry) has 16 words of four halves, and an f32 matrix 32
//! words of two. There are no groups, scales or offsets; an entry stands for itself times the matrix's one scale:
//!
//! ```text
//! 16 bits: entry i of a row is bits 16·(i mod 4).. of word i / 4      32 bits: bits 32·(i mod 2).. of word i / 2
//! ```

use crate::{Error, PackedMatrix, Part, quantize};
use half::f16;

/// The exponent that a matrix's largest f16 gets, give or take one; the largest that an f16 can have is 15.
const F16_TOP: i32 = 14;

impl PackedMatrix {
    /// A (rows, cols) matrix of `values` times `scale`, without loss: as f16 where all values are f16 times one power of
    /// two (those of an f16 or bf16 adapter are), else as f32.
    ///
    /// # Errors
    /// A wrong length, NaN, infinity, or a value beyond [`quantize::LARGEST_DELTA`], named by row and column.
    pub fn floats(tensor: &str, values: &[f32], rows: usize, cols: usize, scale: f32) -> Result<Self, Error> {
        quantize::check(tensor, values, rows, cols)?;
        quantize::check(&format!("{tensor} (scale)"), &[scale], 1, 1)?;
        let unit = unit(values);
        let half = |x: f32| f16::from_f32(x / unit);
        let exact = values.iter().all(|&x| half(x).is_finite() && half(x).to_f32() * unit == x);
        let (bits, per_word, tensor_scale) = if exact { (16, 4, unit * scale) } else { (32, 2, scale) };
        let words = usize::from(bits) * cols.div_ceil(64);
        let mut planes = vec![0u64; rows * words];
        for (planes, values) in planes.chunks_mut(words).zip(values.chunks(cols)) {
            for (i, &x) in values.iter().enumerate() {
                let entry = if exact { u64::from(half(x).to_bits()) } else { u64::from(x.to_bits()) };
                planes[i / per_word] |= entry << (i % per_word * usize::from(bits));
            }
        }
        Ok(Self { bits, rows, cols, group: cols, planes, scales: Vec::new(), offsets: Vec::new(), tensor_scale })
    }

    /// Whether entries are floats and not codes.
    pub fn is_float(&self) -> bool {
        self.bits > 8
    }

    /// Entry (row, col) of a float matrix, without the matrix's scale.
    pub fn entry(&self, row: usize, col: usize) -> f32 {
        let per_word = 64 / usize::from(self.bits);
        let word = self.planes[row * self.words_of_row() + col / per_word] >> (col % per_word * usize::from(self.bits));
        if self.bits == 16 { f16::from_bits(word as u16).to_f32() } else { f32::from_bits(word as u32) }
    }

    /// Words of a row, all planes together.
    pub(crate) fn words_of_row(&self) -> usize {
        usize::from(self.bits) * self.words_per_row()
    }

    /// Row `row` of a float matrix into `out` (length cols).
    pub(crate) fn float_row(&self, row: usize, out: &mut [f32]) {
        for (col, value) in out.iter_mut().enumerate() {
            *value = self.entry(row, col) * self.tensor_scale;
        }
    }

    /// What must hold of an untrusted float matrix of the right length: finite entries, zeros behind the last.
    pub(crate) fn check_floats(&self) -> Result<(), String> {
        if !self.tensor_scale.is_finite() {
            return Err("a scale is not finite".into());
        }
        let per_word = 64 / usize::from(self.bits);
        for row in 0..self.rows {
            if let Some(col) = (0..self.cols).find(|col| !self.entry(row, *col).is_finite()) {
                return Err(format!("entry ({row}, {col}) is not finite"));
            }
            let words = &self.planes[row * self.words_of_row()..][..self.words_of_row()];
            let (full, rest) = (self.cols / per_word, self.cols % per_word * usize::from(self.bits));
            let behind = |(at, word): (usize, &u64)| match at {
                _ if at < full => 0,
                _ if at == full && rest > 0 => word >> rest,
                _ => *word,
            };
            if words.iter().enumerate().any(|word| behind(word) != 0) {
                return Err(format!("pad bits of row {row} are not zero"));
            }
        }
        Ok(())
    }
}

/// A (rows, cols) matrix of `values` rounded to f16 times one power of two.
///
/// # Errors
/// As [`PackedMatrix::floats`].
pub(crate) fn halves(tensor: &str, values: &[f32], rows: usize, cols: usize) -> Result<PackedMatrix, Error> {
    let unit = unit(values);
    let rounded: Vec<f32> = values.iter().map(|&x| f16::from_f32(x / unit).to_f32() * unit).collect();
    PackedMatrix::floats(tensor, &rounded, rows, cols, 1.0)
}

/// A power of two, so that dividing by it changes no value, which puts the largest near the top of an f16's range.
fn unit(values: &[f32]) -> f32 {
    let largest = values.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    if largest > 0.0 { 2f32.powi((largest.log2() as i32 - F16_TOP).max(-100)) } else { 1.0 }
}

/// The part for Δ = `scale` · B·A with its factors as they are: `a` (rank, cols), `b` (rows, rank), both row-major.
///
/// # Errors
/// As [`PackedMatrix::floats`].
pub fn exact_factors(
    tensor: &str,
    a: &[f32],
    b: &[f32],
    (rows, rank, cols): (usize, usize, usize),
    scale: f32,
) -> Result<Part, Error> {
    quantize::check(&format!("{tensor} (B)"), b, rows, rank)?;
    let bt: Vec<f32> = (0..rank * rows).map(|at| b[at % rows * rank + at / rows]).collect();
    Ok(Part::LowRank {
        a: PackedMatrix::floats(&format!("{tensor} (A)"), a, rank, cols, 1.0)?,
        bt: PackedMatrix::floats(&format!("{tensor} (B)"), &bt, rank, rows, scale)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::part::dequantize;
    use half::bf16;

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 613) as f32 - 300.0) / 3e5).collect()
    }

    #[test]
    fn halves_and_bfloats_take_16_bits_and_floats_32_all_without_loss() {
        let wide = values(3 * 70);
        let halves: Vec<f32> = wide.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
        let bfloats: Vec<f32> = wide.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        let all_zero = vec![0.0; 3 * 70];
        for (given, bits) in [(wide, 32), (halves, 16), (bfloats, 16), (all_zero, 16)] {
            let matrix = PackedMatrix::floats("w", &given, 3, 70, 1.0).unwrap();
            assert_eq!((matrix.bits, &matrix.dequantize()), (bits, &given));
            let one_by_one: Vec<f32> = (0..210).map(|at| matrix.value(at / 70, at % 70)).collect();
            assert_eq!(one_by_one, given);
            assert_eq!(matrix.check_floats(), Ok(()));
        }
    }

    #[test]
    fn the_scale_multiplies_the_product() {
        let part = exact_factors("w", &[1.0, 0.1], &[2.0, -3.0, 0.5], (3, 1, 2), 0.5).unwrap();
        assert_eq!(dequantize(&[part], 3, 2), [1.0, 0.1, -1.5, -0.15, 0.25, 0.025]);
    }

    #[test]
    fn what_is_not_finite_is_refused_from_a_file_and_from_an_adapter() {
        let message = exact_factors("q", &[1.0, f32::INFINITY], &[1.0], (1, 1, 2), 1.0).unwrap_err().to_string();
        assert!(message.starts_with("q (A)[0, 1] is inf"), "{message}");
        assert!(exact_factors("q", &[1.0], &[1.0], (1, 1, 1), f32::NAN).is_err());
        for bits in [16, 32] {
            let mut matrix = PackedMatrix::floats("w", &values(70), 1, 70, 1.0).unwrap();
            if bits == 16 {
                matrix = PackedMatrix::floats("w", &[0.5; 70], 1, 70, 1.0).unwrap();
            }
            assert_eq!(matrix.bits, bits);
            let mut infinite = matrix.clone();
            infinite.planes[0] |= if bits == 16 { 0x7c00 } else { 0x7f80_0000 };
            assert!(infinite.check_floats().unwrap_err().contains("entry (0, 0)"));
            *matrix.planes.last_mut().unwrap() = 1 << 63;
            assert!(matrix.check_floats().unwrap_err().contains("pad bits"));
        }
    }
}
