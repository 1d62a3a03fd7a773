//! From f32 differences to packed codes.
//!
//! Two passes over the rows, in parallel: the first fits each group's scale and offset (`fit.rs`), the second
//! packs codes against the values *as stored* (rounded to f16 times the tensor's scale), so that each code is the
//! nearest one that a reader will see. Outliers are clipped first, at mean ± k·σ of the whole tensor (sample σ,
//! n − 1; a tensor of one element has none). Results do not depend on the number of threads.

use crate::{
    BitDeltaConfig, Error, PackedMatrix, Part,
    fit::{Grid, fit},
};
use half::f16;
use rayon::prelude::*;

/// Largest magnitude of a delta: the sum of squares of a group times levels stays finite.
pub const LARGEST_DELTA: f32 = 1e14;

/// What one packed matrix is made of; [`BitDeltaConfig`] gives it for deltas, low-rank factors have their own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Codes {
    /// Bits a weight, 1 to 8.
    pub bits: u8,
    /// Inputs a scale; at least 1.
    pub group: usize,
    /// No offsets.
    pub symmetric: bool,
    /// Clip at this multiple of σ first.
    pub clip: Option<f32>,
}

/// Quantises the delta of one linear as `config` says: `delta` (rows, cols) row-major, `tensor` its name for errors.
/// Dense codes, or f16 values when compression is off.
///
/// # Errors
/// A config out of range, a wrong length, NaN, infinity, or a value beyond [`LARGEST_DELTA`], named by row and column.
pub fn quantize(tensor: &str, delta: &[f32], rows: usize, cols: usize, config: &BitDeltaConfig) -> Result<Part, Error> {
    config.validate()?;
    if config.enable_compression {
        let codes = Codes {
            bits: config.bits,
            group: config.group().elements(cols),
            symmetric: config.symmetric,
            clip: config.clip(),
        };
        return Ok(Part::Dense(pack(tensor, delta, rows, cols, codes)?));
    }
    let bounds = bounds(tensor, delta, rows, cols, config.clip())?;
    let values: Vec<u16> = delta.par_iter().map(|&x| f16::from_f32(bounds.clip(x)).to_bits()).collect();
    match values.iter().position(|&bits| !f16::from_bits(bits).is_finite()) {
        Some(at) => Err(Error::TooLarge {
            tensor: tensor.into(),
            row: at / cols,
            col: at % cols,
            value: delta[at],
            limit: f16::MAX.to_f32(),
        }),
        None => Ok(Part::Full { rows, cols, values }),
    }
}

/// Packs (rows, cols) row-major values with the given codes.
///
/// # Errors
/// As [`quantize`].
pub fn pack(tensor: &str, values: &[f32], rows: usize, cols: usize, codes: Codes) -> Result<PackedMatrix, Error> {
    let Codes { bits, group, symmetric, clip } = codes;
    let bits_range = "1 to 8 bits and a group of at least 1";
    if !(1..=8).contains(&bits) || group == 0 {
        return Err(Error::Config {
            field: "codes",
            value: format!("{bits} bits, group {group}"),
            expected: bits_range,
        });
    }
    let bounds = bounds(tensor, values, rows, cols, clip)?;
    let groups = cols.div_ceil(group);
    let words = cols.div_ceil(64);

    let mut fitted = vec![(0.0f32, 0.0f32); rows * groups];
    fitted.par_chunks_mut(groups).zip(values.par_chunks(cols)).for_each_init(Vec::new, |scratch, (fitted, row)| {
        for (fitted, values) in fitted.iter_mut().zip(bounds.row(row, scratch).chunks(group)) {
            *fitted = fit(values, bits, symmetric);
        }
    });

    let tensor_scale = fitted.iter().fold(0.0f32, |most, (scale, offset)| most.max(*scale).max(offset.abs()));
    let store = |value: f32| stored(value, tensor_scale);
    let mut matrix = PackedMatrix {
        bits,
        rows,
        cols,
        group,
        planes: Vec::new(),
        scales: fitted.iter().map(|(scale, _)| store(*scale)).collect(),
        offsets: if symmetric { Vec::new() } else { fitted.iter().map(|(_, offset)| store(*offset)).collect() },
        tensor_scale,
    };

    let mut planes = vec![0u64; rows * usize::from(bits) * words];
    planes.par_chunks_mut(usize::from(bits) * words).zip(values.par_chunks(cols)).enumerate().for_each_init(
        Vec::new,
        |scratch, (r, (planes, row))| {
            if bits == 1 && symmetric {
                // Clipping moves no value across 0 unless both bounds lie on one side of it.
                let row = if bounds.straddle_zero() { row } else { bounds.row(row, scratch) };
                for (word, values) in planes.iter_mut().zip(row.chunks(64)) {
                    *word = sign_word(values);
                }
            } else {
                let row = bounds.row(row, scratch);
                for (g, values) in row.chunks(group).enumerate() {
                    let grid = Grid::new(bits, matrix.scale(r, g), matrix.offset(r, g));
                    pack_codes(planes, words, g * group, values, &grid);
                }
            }
        },
    );
    matrix.planes = planes;
    Ok(matrix)
}

/// A scale or offset as a matrix stores it: f16 bits, in units of the matrix's own scale.
pub(crate) fn stored(value: f32, tensor_scale: f32) -> u16 {
    if tensor_scale == 0.0 { 0 } else { f16::from_f32(value / tensor_scale).to_bits() }
}

/// Signs of up to 64 values: bit i is 1 where value i is not below 0 (so "+" for both zeros).
fn sign_word(values: &[f32]) -> u64 {
    let mut word = 0;
    for (byte, eight) in values.chunks(8).enumerate() {
        let bits = eight.iter().enumerate().fold(0u64, |bits, (i, &x)| bits | u64::from(x >= 0.0) << i);
        word |= bits << (8 * byte);
    }
    word
}

/// ORs the codes of `values`, which start at input `start` of the row, into the row's planes of `words` words each.
pub(crate) fn pack_codes(planes: &mut [u64], words: usize, start: usize, values: &[f32], grid: &Grid) {
    let mut codes = [0u8; 64];
    let mut done = 0;
    while done < values.len() {
        let (word, bit) = ((start + done) / 64, (start + done) % 64);
        let piece = &values[done..values.len().min(done + 64 - bit)];
        for (code, &value) in codes.iter_mut().zip(piece) {
            *code = grid.encode(value) as u8;
        }
        for (p, plane) in planes.chunks_mut(words).enumerate() {
            let fold = |bits, (i, code): (usize, &u8)| bits | u64::from(code >> p & 1) << i;
            plane[word] |= codes[..piece.len()].iter().enumerate().fold(0u64, fold) << bit;
        }
        done += piece.len();
    }
}

/// The interval that values are clipped to; everything when clipping is off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) low: f32,
    pub(crate) high: f32,
}

impl Bounds {
    /// Everything.
    pub(crate) const NONE: Self = Self { low: f32::NEG_INFINITY, high: f32::INFINITY };

    /// Mean ± k·σ of a matrix of more than one element, from each row's (Σ x, Σ (x − row mean)²), rows of `cols`.
    pub(crate) fn around_the_mean(rows: &[(f64, f64)], cols: usize, k: f32) -> Self {
        let n = (rows.len() * cols) as f64;
        let mean = rows.iter().map(|row| row.0).sum::<f64>() / n;
        // Each row's squares are about its own mean; what the row means add is exact in the second term.
        let squares: f64 =
            rows.iter().map(|row| row.1 + cols as f64 * (row.0 / cols as f64 - mean).powi(2)).sum::<f64>();
        let reach = f64::from(k) * (squares / (n - 1.0)).sqrt();
        Self { low: (mean - reach) as f32, high: (mean + reach) as f32 }
    }

    fn clip(&self, value: f32) -> f32 {
        value.max(self.low).min(self.high)
    }

    /// Clipping moves no value across 0.
    pub(crate) fn straddle_zero(&self) -> bool {
        self.low < 0.0 && self.high > 0.0
    }

    /// The row clipped, in `scratch` only where there is something to clip.
    fn row<'a>(&self, row: &'a [f32], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        if self.low == f32::NEG_INFINITY {
            return row;
        }
        scratch.clear();
        scratch.extend(row.iter().map(|&x| self.clip(x)));
        scratch
    }
}

/// Checks the shape and every value.
///
/// # Errors
/// As [`quantize`].
pub fn check(tensor: &str, values: &[f32], rows: usize, cols: usize) -> Result<(), Error> {
    bounds(tensor, values, rows, cols, None).map(|_| ())
}

/// Checks the shape and every value, and works out where to clip.
fn bounds(tensor: &str, values: &[f32], rows: usize, cols: usize, clip: Option<f32>) -> Result<Bounds, Error> {
    if rows == 0 || cols == 0 || rows.checked_mul(cols) != Some(values.len()) {
        return Err(Error::Shape { tensor: tensor.into(), rows, cols, found: values.len() });
    }
    // Sums for each row, then in row order: the same bits for any number of threads.
    let sums: Vec<(f64, f64, f32)> = values.par_chunks(cols).map(row_sums).collect();
    if sums.iter().any(|row| row.2.is_nan() || row.2 > LARGEST_DELTA) {
        return Err(worst(tensor, values, cols));
    }
    let (Some(k), true) = (clip, values.len() > 1) else { return Ok(Bounds::NONE) };
    Ok(Bounds::around_the_mean(&sums.iter().map(|row| (row.0, row.1)).collect::<Vec<_>>(), cols, k))
}

/// (Σ x, Σ (x − row mean)², max |x|), the last NaN when any value is NaN.
fn row_sums(row: &[f32]) -> (f64, f64, f32) {
    const LANES: usize = 8;
    let (eights, rest) = row.as_chunks::<LANES>();
    let (mut sums, mut squares, mut most, mut poison) =
        ([0.0f64; LANES], [0.0f64; LANES], [0.0f32; LANES], [0.0f32; LANES]);
    let mut add = |lane: usize, x: f32| {
        let wide = f64::from(x);
        sums[lane] += wide;
        squares[lane] += wide * wide;
        most[lane] = most[lane].max(x.abs());
        poison[lane] += x * 0.0;
    };
    for eight in eights {
        for (lane, &x) in eight.iter().enumerate() {
            add(lane, x);
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        add(lane, x);
    }
    let sum: f64 = sums.iter().sum();
    let square: f64 = squares.iter().sum::<f64>() - sum * sum / row.len() as f64;
    let most = most.iter().fold(0.0f32, |a, &b| a.max(b));
    (sum, square.max(0.0), most + poison.iter().sum::<f32>())
}

/// The error for the first value that is not finite, or else the first too large.
fn worst(tensor: &str, values: &[f32], cols: usize) -> Error {
    let at = |index: usize| (tensor.to_owned(), index / cols, index % cols, values[index]);
    if let Some(index) = values.iter().position(|x| !x.is_finite()) {
        let (tensor, row, col, value) = at(index);
        return Error::NonFinite { tensor, row, col, value };
    }
    let (tensor, row, col, value) = at(values.iter().position(|x| x.abs() > LARGEST_DELTA).unwrap_or(0));
    Error::TooLarge { tensor, row, col, value, limit: LARGEST_DELTA }
}
