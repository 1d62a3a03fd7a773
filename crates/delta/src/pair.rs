//! From a pair of matrices, base and fine-tuned as they are stored, to packed codes.
//!
//! One bit without offsets is what the pair's bytes limit, so it never writes the difference down: see
//! [`bitdelta_kernels::survey`]. All else takes [`quantize`] of the difference. Both give the same part, bit for bit.

use crate::{BitDeltaConfig, Error, Part, quantize};
use half::{bf16, f16};
use rayon::prelude::*;

/// A matrix's elements as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision, as bits.
    F16(&'a [u16]),
    /// bfloat16, as bits.
    Bf16(&'a [u16]),
}

impl Values<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(bits) | Self::Bf16(bits) => bits.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements from `start` on, widened into `out`.
    fn widen(&self, start: usize, out: &mut [f32]) {
        let at = start..start + out.len();
        match self {
            Self::F32(values) => out.copy_from_slice(&values[at]),
            Self::F16(bits) => out.iter_mut().zip(&bits[at]).for_each(|(o, b)| *o = f16::from_bits(*b).to_f32()),
            Self::Bf16(bits) => out.iter_mut().zip(&bits[at]).for_each(|(o, b)| *o = bf16::from_bits(*b).to_f32()),
        }
    }
}

/// [`quantize`] of `tuned` − `base`, both (rows, cols) row-major, subtracted in f32.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_pair(
    tensor: &str,
    base: Values<'_>,
    tuned: Values<'_>,
    rows: usize,
    cols: usize,
    config: &BitDeltaConfig,
) -> Result<Part, Error> {
    let elements = rows.checked_mul(cols).unwrap_or(usize::MAX);
    for found in [base.len(), tuned.len()] {
        if found != elements || elements == 0 {
            return Err(Error::Shape { tensor: tensor.into(), rows, cols, found });
        }
    }
    quantize(tensor, &difference(base, tuned, cols), rows, cols, config)
}

/// `tuned` − `base`.
fn difference(base: Values<'_>, tuned: Values<'_>, cols: usize) -> Vec<f32> {
    let mut difference = vec![0.0; tuned.len()];
    difference.par_chunks_mut(cols).enumerate().for_each_init(
        || vec![0.0; cols],
        |row_of_base, (row, difference)| {
            tuned.widen(row * cols, difference);
            base.widen(row * cols, row_of_base);
            difference.iter_mut().zip(&*row_of_base).for_each(|(value, base)| *value -= base);
        },
    );
    difference
}
