//! The quantizer on NumPy arrays.
//!
//! A matrix comes in as (rows, cols), contiguous, either f32 or the bits of f16 or bf16 as u16, and is read where it
//! lies. What comes out is memory that NumPy takes over. While Rust computes, the interpreter runs other threads; a
//! caller that writes into an array meanwhile gets a mixture, as with NumPy itself.

use crate::{
    config,
    errors::{of_delta, raise},
};
use bitdelta_delta::{Error, PackedMatrix, Part, Values, quantize_pair};
use half::f16;
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use rayon::prelude::*;

/// A matrix as it is stored: floats, or bits of a 16-bit type.
#[derive(FromPyObject)]
pub enum Matrix<'py> {
    /// 32-bit floats.
    Floats(PyReadonlyArray2<'py, f32>),
    /// Bits.
    Bits(PyReadonlyArray2<'py, u16>),
}

impl Matrix<'_> {
    fn shape(&self) -> (usize, usize) {
        let shape = match self {
            Self::Floats(array) => array.shape(),
            Self::Bits(array) => array.shape(),
        };
        (shape[0], shape[1])
    }

    fn values(&self, bfloat: bool) -> PyResult<Values<'_>> {
        Ok(match self {
            Self::Floats(array) => Values::F32(array.as_slice()?),
            Self::Bits(array) if bfloat => Values::Bf16(array.as_slice()?),
            Self::Bits(array) => Values::F16(array.as_slice()?),
        })
    }
}

/// `quantize`'s answer: (bits, group, words, scales, offsets); 16 bits are f16 values with no scales.
type Quantized<'py> =
    (u8, usize, Bound<'py, PyAny>, Option<Bound<'py, PyArray2<f32>>>, Option<Bound<'py, PyArray2<f32>>>);

/// Quantises `weight` − `base` as `config` (JSON) says; `bfloat` tells for each whether its bits are bf16's.
#[pyfunction]
pub fn quantize<'py>(
    py: Python<'py>,
    weight: Matrix<'py>,
    base: Matrix<'py>,
    bfloat: (bool, bool),
    name: &str,
    config: &str,
) -> PyResult<Quantized<'py>> {
    let config = config::read(py, config)?;
    let (rows, cols) = weight.shape();
    if base.shape() != (rows, cols) {
        let found = base.shape();
        let message =
            format!("{name}: a weight of {rows} x {cols} and a base weight of {} x {} are no pair", found.0, found.1);
        return Err(raise(py, "TensorError", (message,)));
    }
    let (tuned, before) = (weight.values(bfloat.0)?, base.values(bfloat.1)?);
    let part = py.detach(|| quantize_pair(name, before, tuned, rows, cols, &config));
    match part.map_err(|error| of_delta(py, &error))? {
        Part::Dense(matrix) => {
            let groups = matrix.groups_per_row();
            let expand = |value: fn(&PackedMatrix, usize, usize) -> f32| {
                let values: Vec<f32> = (0..rows * groups).map(|at| value(&matrix, at / groups, at % groups)).collect();
                values.into_pyarray(py).reshape([rows, groups])
            };
            let scales = expand(PackedMatrix::scale)?;
            let offsets = if config.symmetric { None } else { Some(expand(PackedMatrix::offset)?) };
            let (bits, group) = (matrix.bits, matrix.group);
            Ok((bits, group, matrix.planes.into_pyarray(py).into_any(), Some(scales), offsets))
        }
        Part::Full { values, .. } => Ok((16, cols, values.into_pyarray(py).into_any(), None, None)),
        other => Err(raise(py, "TensorError", (format!("{name}: a {} part on bare tensors", other.kind()),))),
    }
}

/// The odd whole numbers that packed codes stand for (±1 at one bit), times their group's scale and plus its offset where
/// those are given: (rows, cols) f32.
#[pyfunction]
#[pyo3(signature = (words, bits, shape, group, scales=None, offsets=None))]
pub fn dequantize<'py>(
    py: Python<'py>,
    words: PyReadonlyArray1<'py, u64>,
    bits: u8,
    shape: (usize, usize),
    group: usize,
    scales: Option<PyReadonlyArray2<'py, f32>>,
    offsets: Option<PyReadonlyArray2<'py, f32>>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let (rows, cols) = shape;
    let wrong = |found: usize| of_delta(py, &Error::Shape { tensor: "signs".into(), rows, cols, found });
    let words = words.as_slice()?;
    if !(1..=8).contains(&bits) || group == 0 || words.len() != rows * usize::from(bits) * cols.div_ceil(64) {
        return Err(wrong(words.len() * 64 / usize::from(bits.max(1))));
    }
    let groups = cols.div_ceil(group);
    for (what, array) in [("scales", &scales), ("offsets", &offsets)] {
        if let Some(array) = array
            && array.shape() != [rows, groups]
        {
            let message = format!("{what} of shape {:?}: these signs need ({rows}, {groups})", array.shape());
            return Err(raise(py, "TensorError", (message,)));
        }
    }
    let scales = scales.as_ref().map(|array| array.as_slice()).transpose()?;
    let offsets = offsets.as_ref().map(|array| array.as_slice()).transpose()?;
    let values = py.detach(|| {
        // With a scale of 1 and no offset a packed matrix's values are its codes.
        let one = vec![f16::ONE.to_bits(); rows * groups];
        let codes = PackedMatrix {
            bits,
            rows,
            cols,
            group,
            planes: words.to_vec(),
            scales: one,
            offsets: Vec::new(),
            tensor_scale: 1.0,
        };
        let mut values = vec![0.0f32; rows * cols];
        values.par_chunks_mut(cols).enumerate().for_each(|(row, values)| {
            codes.dequantize_row(row, values);
            for (at, values) in values.chunks_mut(group).enumerate() {
                let scale = scales.map_or(1.0, |scales| scales[row * groups + at]);
                let offset = offsets.map_or(0.0, |offsets| offsets[row * groups + at]);
                values.iter_mut().for_each(|value| *value = offset + scale * *value);
            }
        });
        values
    });
    PyArray1::from_vec(py, values).reshape([rows, cols])
}
