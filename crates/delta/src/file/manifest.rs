//! The manifest: what each linear's delta is made of, in two bytes a linear.
//!
//! ```text
//! manifest := classes linears extras [n coded]  n: LEB128, u64; coded: bytes of the coded stream, if any codes are in it
//! classes  := n { class }                       distinct (shape, parts), in order of first use
//! class    := n rows, n cols, n parts { part }
//! part     := 0 codes                           Dense (rows, cols)
//!           | 1 n rank, codes A, codes Bᵀ       LowRank: A (rank, cols), Bᵀ (rank, rows)
//!           | 2                                 Full: f16 (rows, cols)
//!           | 3 n                               Sparse: in the coded stream (0), or its levels + 1 in the section of halves
//! codes    := byte (bits − 1, +8 with offsets; 16: f16 entries, 17: f32; 31 + bits: in the coded stream), n group (0: the
//!             whole row)
//! linears  := n { n class, byte error }         error: see [`error_code`]
//! extras   := n { n step·2 + new [n elements] } index = the one before + 1 + step; elements as before unless new
//! ```

use super::{
    Variant,
    coded::{A, BT, Encoder, MOST_ELEMENTS_PER_BYTE, WHOLE},
};
use crate::{
    PackedMatrix,
    part::Part,
    tread::{Levels, step_of},
};
use bitdelta_kernels::SparseRows;

/// Most parts that one linear may carry.
const MAX_PARTS: u64 = 8;

/// The byte of entries that are no codes but f16, and f32.
const F16: u8 = 16;
const F32: u8 = 17;
/// The byte of codes of one bit in the coded stream; up to four bits follow.
const CODED: u8 = 32;

/// A manifest in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub classes: Vec<Class>,
    /// (index of the class, error code) of each linear.
    pub linears: Vec<(usize, u8)>,
    /// (tensor index, elements) of each extra.
    pub extras: Vec<(usize, usize)>,
    /// Bytes of the coded stream; 0 exactly where no codes are in it.
    pub coded: usize,
}

/// What several linears have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    pub rows: usize,
    pub cols: usize,
    pub parts: Vec<Kind>,
}

/// A part without its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Dense(Coding),
    LowRank {
        rank: usize,
        a: Coding,
        bt: Coding,
    },
    /// `levels` of them stored one by one; `None`: in the coded stream.
    Sparse {
        levels: Option<usize>,
    },
    Full,
}

/// A packed matrix without its values. `group` 0 is the whole row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coding {
    pub bits: u8,
    pub offsets: bool,
    pub group: usize,
    /// Its values are in the coded stream: [`Levels`], whose offsets are their scales.
    pub coded: bool,
}

impl Coding {
    fn of(matrix: &PackedMatrix, coded: bool) -> Self {
        let group = if matrix.group == matrix.cols { 0 } else { matrix.group };
        Self { bits: matrix.bits, offsets: !matrix.offsets.is_empty(), group, coded }
    }

    /// Whether entries are floats, without scales.
    pub fn is_float(&self) -> bool {
        self.bits > 8
    }

    /// Inputs a scale for rows of `cols`.
    pub fn group_of(&self, cols: usize) -> usize {
        if self.group == 0 { cols } else { self.group }
    }
}

impl Plan {
    /// The plan of a variant that was checked, and its coded stream. Matrices whose codes are [`Levels`] are coded.
    pub fn of(variant: &Variant) -> (Self, Vec<u8>) {
        let (stream, coded) = coded_stream(variant);
        (Self::with(variant, stream.len(), &coded), stream)
    }

    /// `coded` tells of each matrix of codes in turn whether it is in the stream.
    fn with(variant: &Variant, stream: usize, coded: &[bool]) -> Self {
        let mut coded = coded.iter().copied();
        let mut coding = |matrix: &PackedMatrix| Coding::of(matrix, coded.next().unwrap_or(false));
        let mut classes: Vec<Class> = Vec::new();
        let linears = variant.linears.iter().map(|linear| {
            let parts = linear.parts.iter().map(|part| match part {
                Part::Dense(matrix) => Kind::Dense(coding(matrix)),
                Part::LowRank { a, bt } => Kind::LowRank { rank: a.rows, a: coding(a), bt: coding(bt) },
                Part::Sparse(rows) => Kind::Sparse { levels: (stream == 0).then_some(rows.count()) },
                Part::Full { .. } => Kind::Full,
            });
            let class = Class { rows: linear.rows, cols: linear.cols, parts: parts.collect() };
            let index = classes.iter().position(|known| *known == class).unwrap_or_else(|| {
                classes.push(class);
                classes.len() - 1
            });
            (index, error_code(linear.relative_error))
        });
        let linears = linears.collect();
        let extras = variant.extras.iter().map(|extra| (extra.tensor, extra.values.len())).collect();
        Self { classes, linears, extras, coded: stream }
    }

    /// Elements of all matrices in the coded stream; `None` on overflow.
    pub fn coded_elements(&self) -> Option<u64> {
        self.linears.iter().try_fold(0u64, |sum, (class, _)| {
            let Class { rows, cols, parts } = &self.classes[*class];
            let more = |sum: u64, coded: bool, height: usize, width: usize| match coded {
                true => sum.checked_add((height as u64).checked_mul(width as u64)?),
                false => Some(sum),
            };
            parts.iter().try_fold(sum, |sum, part| match part {
                Kind::Dense(coding) => more(sum, coding.coded, *rows, *cols),
                Kind::LowRank { rank, a, bt } => more(more(sum, a.coded, *rank, *cols)?, bt.coded, *rank, *rows),
                Kind::Sparse { levels } => more(sum, levels.is_none(), *rows, *cols),
                Kind::Full => Some(sum),
            })
        })
    }
}

/// The coded stream of a variant's levels, and which of its matrices of codes are in it: none where there would be so few
/// bytes that a reader refused them.
fn coded_stream(variant: &Variant) -> (Vec<u8>, Vec<bool>) {
    let mut encoder = Encoder::new();
    let (mut elements, mut coded) = (0u64, Vec::new());
    for part in variant.linears.iter().flat_map(|linear| &linear.parts) {
        let kinds = if matches!(part, Part::LowRank { .. }) { [A, BT] } else { [WHOLE; 2] };
        for (matrix, kind) in part.matrices().into_iter().zip(kinds) {
            let levels = Levels::of_matrix(matrix);
            coded.push(levels.is_some());
            if let Some(levels) = levels {
                elements += levels.levels.len() as u64;
                encoder.matrix(kind, &levels);
            }
        }
        if let Part::Sparse(rows) = part {
            elements = elements.saturating_add(rows.shape().0 as u64 * rows.shape().1 as u64);
            put_sparse(&mut encoder, rows);
        }
    }
    let stream = encoder.finish();
    match elements > 0 && elements <= MOST_ELEMENTS_PER_BYTE * stream.len() as u64 {
        true => (stream, coded),
        false => (Vec::new(), Vec::new()),
    }
}

fn put_sparse(encoder: &mut Encoder, rows: &SparseRows) {
    let (count, cols) = rows.shape();
    let mut wide = vec![0i8; cols];
    for (columns, levels, scale) in (0..count).map(|row| rows.row(row)) {
        let Some(Some(step)) = step_of(levels, scale) else {
            encoder.row(WHOLE, None, &mut []);
            continue;
        };
        wide.fill(0);
        columns.iter().zip(levels).for_each(|(column, level)| wide[usize::from(*column)] = *level);
        encoder.row(WHOLE, Some(step), &mut wide);
    }
}

/// A relative error e as a byte: c stands for 2^(−c/16), 0 to 253 (1 down to 1.7e-5); 254 is unknown, 255 exactly 0.
fn error_code(error: Option<f32>) -> u8 {
    match error {
        None => 254,
        Some(0.0) => 255,
        Some(error) => (-16.0 * error.log2()).round().clamp(0.0, 253.0) as u8,
    }
}

/// The inverse of [`error_code`].
pub(super) fn decode_error(code: u8) -> Option<f32> {
    match code {
        254 => None,
        255 => Some(0.0),
        code => Some((-f32::from(code) / 16.0).exp2()),
    }
}

pub(super) fn encode(plan: &Plan) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, plan.classes.len());
    for class in &plan.classes {
        put(&mut out, class.rows);
        put(&mut out, class.cols);
        put(&mut out, class.parts.len());
        for part in &class.parts {
            match part {
                Kind::Dense(coding) => {
                    out.push(0);
                    put_coding(&mut out, coding);
                }
                Kind::LowRank { rank, a, bt } => {
                    out.push(1);
                    put(&mut out, *rank);
                    put_coding(&mut out, a);
                    put_coding(&mut out, bt);
                }
                Kind::Full => out.push(2),
                Kind::Sparse { levels } => {
                    out.push(3);
                    put(&mut out, levels.map_or(0, |levels| levels + 1));
                }
            }
        }
    }
    put(&mut out, plan.linears.len());
    for (class, error) in &plan.linears {
        put(&mut out, *class);
        out.push(*error);
    }
    put(&mut out, plan.extras.len());
    let (mut next, mut elements) = (0, 0);
    for &(tensor, count) in &plan.extras {
        put(&mut out, (tensor - next) * 2 + usize::from(count != elements));
        if count != elements {
            put(&mut out, count);
        }
        (next, elements) = (tensor + 1, count);
    }
    if plan.coded > 0 {
        put(&mut out, plan.coded);
    }
    out
}

fn put(out: &mut Vec<u8>, value: usize) {
    let mut value = value as u64;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_coding(out: &mut Vec<u8>, coding: &Coding) {
    out.push(match coding.bits {
        16 => F16,
        32 => F32,
        bits if coding.coded => CODED + bits - 1,
        bits => (bits - 1) | (u8::from(coding.offsets) << 3),
    });
    put(out, coding.group);
}

/// Parses a manifest; the reason of a failure says what and where.
pub(super) fn decode(bytes: &[u8]) -> Result<Plan, String> {
    let mut reader = Reader { bytes, at: 0 };
    let count = reader.count("classes")?;
    let mut classes = Vec::new();
    for _ in 0..count {
        classes.push(reader.class()?);
    }
    let count = reader.count("linears")?;
    let mut linears = Vec::new();
    for _ in 0..count {
        let class = reader.number()?;
        let class = usize::try_from(class).ok().filter(|&class| class < classes.len());
        let class = class.ok_or_else(|| reader.wrong("a linear's class does not exist"))?;
        linears.push((class, reader.byte()?));
    }
    let count = reader.count("extras")?;
    let (mut extras, mut next, mut elements) = (Vec::new(), 0, 0);
    for _ in 0..count {
        let step = reader.number()?;
        if step & 1 == 1 {
            elements = reader.dimension("an extra's length")?;
        }
        let tensor = u64::checked_add(next, step >> 1).filter(|&tensor| elements > 0 && tensor < u64::from(u32::MAX));
        let tensor = tensor.ok_or_else(|| reader.wrong("an extra's index or length is out of range"))?;
        extras.push((tensor as usize, elements));
        next = tensor + 1;
    }
    let mut plan = Plan { classes, linears, extras, coded: 0 };
    match plan.coded_elements() {
        Some(0) => {}
        Some(elements) => {
            plan.coded = reader.dimension("the coded stream's length")?;
            if elements > MOST_ELEMENTS_PER_BYTE * plan.coded as u64 {
                return Err(reader.wrong(&format!("{elements} coded elements in {} bytes", plan.coded)));
            }
        }
        None => return Err(reader.wrong("sizes overflow")),
    }
    if reader.at != bytes.len() {
        return Err(reader.wrong("bytes after the end"));
    }
    Ok(plan)
}

/// A position in untrusted bytes.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn wrong(&self, what: &str) -> String {
        format!("{what} (byte {} of {})", self.at, self.bytes.len())
    }

    fn byte(&mut self) -> Result<u8, String> {
        let byte = self.bytes.get(self.at).copied().ok_or_else(|| self.wrong("ends early"))?;
        self.at += 1;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let low = u64::from(byte & 0x7f);
            if low << shift >> shift != low {
                break;
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.wrong("a number is too large"))
    }

    /// How many items follow: each takes at least a byte, so no count exceeds the bytes that are left.
    fn count(&mut self, what: &str) -> Result<u64, String> {
        let count = self.number()?;
        if count > (self.bytes.len() - self.at) as u64 {
            return Err(self.wrong(&format!("{count} {what} cannot fit")));
        }
        Ok(count)
    }

    /// A length from 1 to u32::MAX: the product of two fits in u64.
    fn dimension(&mut self, what: &str) -> Result<usize, String> {
        match u32::try_from(self.number()?) {
            Ok(value) if value > 0 => Ok(value as usize),
            _ => Err(self.wrong(&format!("{what} is out of range"))),
        }
    }

    fn class(&mut self) -> Result<Class, String> {
        let (rows, cols) = (self.dimension("rows")?, self.dimension("cols")?);
        let count = self.number()?;
        if count > MAX_PARTS {
            return Err(self.wrong(&format!("{count} parts, at most {MAX_PARTS} are allowed")));
        }
        let mut parts = Vec::new();
        for _ in 0..count {
            parts.push(match self.byte()? {
                0 => Kind::Dense(self.coding()?),
                1 => Kind::LowRank { rank: self.dimension("rank")?, a: self.coding()?, bt: self.coding()? },
                2 => Kind::Full,
                3 if cols > SparseRows::MOST_COLS => return Err(self.wrong("sparse rows are too wide")),
                3 => match self.number()? {
                    0 => Kind::Sparse { levels: None },
                    // More than one for each element there cannot be.
                    more if more - 1 > rows as u64 * cols as u64 => {
                        return Err(self.wrong("more sparse levels than elements"));
                    }
                    more => Kind::Sparse { levels: Some((more - 1) as usize) },
                },
                kind => return Err(self.wrong(&format!("unknown kind {kind}"))),
            });
        }
        Ok(Class { rows, cols, parts })
    }

    fn coding(&mut self) -> Result<Coding, String> {
        let byte = self.byte()?;
        let group = self.number()?;
        if byte >= CODED + 4 || group > u64::from(u32::MAX) || (byte >= F16 && group > 0) {
            return Err(self.wrong("codes are out of range"));
        }
        let coded = byte >= CODED;
        let bits = match byte {
            F16 => 16,
            F32 => 32,
            18..CODED => return Err(self.wrong("codes are out of range")),
            byte => (byte & 7) + 1,
        };
        Ok(Coding { bits, offsets: coded || byte & 8 != 0, group: group as usize, coded })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let coding = Coding { bits: 1, offsets: false, group: 64, coded: false };
        let row = Coding { bits: 4, offsets: true, group: 0, coded: false };
        let float = |bits| Coding { bits, offsets: false, group: 0, coded: false };
        Plan {
            classes: vec![
                Class { rows: 576, cols: 1536, parts: vec![Kind::Dense(coding)] },
                Class { rows: 3, cols: 1, parts: vec![Kind::LowRank { rank: 300, a: row, bt: coding }, Kind::Full] },
                Class { rows: 4, cols: 5, parts: vec![Kind::LowRank { rank: 2, a: float(16), bt: float(32) }] },
                Class { rows: 3, cols: 1, parts: vec![] },
                Class { rows: 7, cols: 90, parts: vec![Kind::Sparse { levels: Some(200) }] },
            ],
            linears: vec![(0, 17), (1, 254), (0, 255), (2, 0), (3, 9), (4, 1)],
            extras: vec![(0, 576), (1, 576), (200, 12), (4000, 576)],
            coded: 0,
        }
    }

    #[test]
    fn a_plan_survives_its_bytes() {
        assert_eq!(decode(&encode(&plan())), Ok(plan()));
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_an_error_or_another_plan() {
        let bytes = encode(&plan());
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            for flip in 1..=255u8 {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                assert_ne!(decode(&changed), Ok(plan()), "byte {at} ^ {flip}");
            }
        }
    }

    #[test]
    fn error_codes_keep_two_percent() {
        for error in [1.0, 0.61, 0.6, 0.1, 1e-3, 2e-5] {
            let read = decode_error(error_code(Some(error))).unwrap();
            assert!((read / error - 1.0).abs() < 0.022, "{error} {read}");
        }
        assert_eq!(decode_error(error_code(None)), None);
        assert_eq!(decode_error(error_code(Some(0.0))), Some(0.0));
        assert_eq!(decode_error(error_code(Some(f32::INFINITY))), Some(1.0));
    }
}
