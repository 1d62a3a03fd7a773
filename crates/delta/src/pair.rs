//! From a pair of matrices, base and fine-tuned as they are stored, to packed codes.
//!
//! One bit without offsets is what the pair's bytes limit, so it never writes the difference down: see
//! [`bitdelta_kernels::survey`]. All else takes [`quantize`] of the difference. Both give the same part, bit for bit.

use crate::{
    BitDeltaConfig, Error, PackedMatrix, Part,
    quantize::{Bounds, LARGEST_DELTA, quantize, stored},
};
use bitdelta_kernels::{Elements, Pair, Survey, clip_magnitudes, survey};
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

    fn elements(&self) -> Elements<'_> {
        match self {
            Self::F32(values) => Elements::F32(values),
            Self::F16(bits) => Elements::F16(bits),
            Self::Bf16(bits) => Elements::Bf16(bits),
        }
    }

    /// `tuned` − these, `out.len()` elements from `start` on, in f32.
    pub(crate) fn subtract_from(&self, tuned: &Values<'_>, start: usize, out: &mut [f32]) {
        tuned.widen(start, out);
        let at = start..start + out.len();
        match self {
            Self::F32(values) => out.iter_mut().zip(&values[at]).for_each(|(o, v)| *o -= v),
            Self::F16(bits) => out.iter_mut().zip(&bits[at]).for_each(|(o, b)| *o -= f16::from_bits(*b).to_f32()),
            Self::Bf16(bits) => out.iter_mut().zip(&bits[at]).for_each(|(o, b)| *o -= bf16::from_bits(*b).to_f32()),
        }
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
    let elements = rows.saturating_mul(cols);
    for found in [base.len(), tuned.len()] {
        if found != elements || elements == 0 {
            return Err(Error::Shape { tensor: tensor.into(), rows, cols, found });
        }
    }
    config.validate()?;
    if config.enable_compression && config.bits == 1 && config.symmetric {
        let pair = Pair { base: base.elements(), tuned: tuned.elements(), cols };
        if let Some(matrix) = signs(&pair, rows, config.group().elements(cols), config.clip()) {
            return Ok(Part::Dense(matrix));
        }
    }
    quantize(tensor, &difference(base, tuned, cols), rows, cols, config)
}

/// One bit a weight. `None` for what is rare and left to [`quantize`]: a value that it refuses, with an error that says
/// where, or bounds that lie on one side of 0.
fn signs(pair: &Pair<'_>, rows: usize, group: usize, clip: Option<f32>) -> Option<PackedMatrix> {
    let cols = pair.cols;
    let (words, groups) = (cols.div_ceil(64), cols.div_ceil(group));
    let mut planes = vec![0u64; rows * words];
    let mut magnitudes = vec![0.0f32; rows * groups];
    let mut reaches = vec![0.0f32; rows * groups];
    let buffers =
        planes.par_chunks_mut(words).zip(magnitudes.par_chunks_mut(groups)).zip(reaches.par_chunks_mut(groups));
    let rows_in_order = buffers.enumerate().map_init(Vec::new, |scratch, (row, ((signs, magnitudes), reaches))| {
        let mut out = Survey { signs, magnitudes, reaches, sum: 0.0, squares: 0.0 };
        survey(pair, row, group, scratch, &mut out);
        let sound = out.magnitudes.iter().all(|m| m.is_finite()) && out.reaches.iter().all(|r| *r <= LARGEST_DELTA);
        (out.sum, out.squares, sound)
    });
    let surveyed: Vec<(f64, f64, bool)> = rows_in_order.collect();
    if !surveyed.iter().all(|row| row.2) {
        return None;
    }
    let sums: Vec<(f64, f64)> = surveyed.into_iter().map(|(sum, squares, _)| (sum, squares)).collect();
    if let (Some(k), true) = (clip, rows * cols > 1) {
        let bounds = Bounds::around_the_mean(&sums, cols, k);
        if !bounds.straddle_zero() {
            return None;
        }
        let bound = bounds.high.min(-bounds.low);
        magnitudes.par_chunks_mut(groups).zip(reaches.par_chunks(groups)).enumerate().for_each(
            |(row, (magnitudes, reaches))| {
                clip_magnitudes(pair, row, group, (bounds.low, bounds.high, bound), reaches, magnitudes);
            },
        );
    }
    let tensor_scale = magnitudes.par_iter().copied().reduce(|| 0.0, f32::max);
    let scales = magnitudes.par_iter().map(|magnitude| stored(*magnitude, tensor_scale)).collect();
    Some(PackedMatrix { bits: 1, rows, cols, group, planes, scales, offsets: Vec::new(), tensor_scale })
}

/// `tuned` − `base`.
fn difference(base: Values<'_>, tuned: Values<'_>, cols: usize) -> Vec<f32> {
    let mut difference = vec![0.0; tuned.len()];
    let rows = difference.par_chunks_mut(cols).enumerate();
    rows.for_each(|(row, difference)| base.subtract_from(&tuned, row * cols, difference));
    difference
}
