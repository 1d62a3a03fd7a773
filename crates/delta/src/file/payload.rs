//! The payload: the values of all parts, gathered by field, each field a section at a multiple of 64 bytes.
//!
//! ```text
//! planes u64 │ scales f16 │ offsets f16 │ tensor scales f32 │ full f16 │ coded     little-endian, zeros between sections
//! ```
//!
//! Inside a section the parts follow each other linear by linear (a LowRank's A before its Bᵀ), extras last. A matrix of
//! floats has its entries among the planes, and no scales. Coded matrices (`coded.rs`) are in no other section. Sparse rows
//! that are not coded lie among the f16 values as halves that are none: for each row the place of its step in the table
//! and the number of its levels, then a column and a level (two's complement) for each.

use super::{
    Extra, LinearDelta, Variant,
    coded::{A, BT, Decoder, WHOLE},
    manifest::{Class, Coding, Kind, Plan, decode_error},
};
use crate::{
    dense::PackedMatrix,
    part::Part,
    tread::{Step, step_of},
};
use bitdelta_kernels::SparseRows;
use std::ops::Range;

/// Sections start at multiples of this: a cache line, and the widest vector load.
const ALIGN: u64 = 64;

/// Elements of each section.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sizes {
    words: u64,
    scales: u64,
    offsets: u64,
    tensor_scales: u64,
    full: u64,
    coded: u64,
}

impl Sizes {
    /// Bytes of each section in order.
    fn bytes(&self) -> Option<[u64; 6]> {
        let times = |count: u64, size: u64| count.checked_mul(size);
        Some([
            times(self.words, 8)?,
            times(self.scales, 2)?,
            times(self.offsets, 2)?,
            times(self.tensor_scales, 4)?,
            times(self.full, 2)?,
            self.coded,
        ])
    }

    fn add(&self, other: &Self) -> Option<Self> {
        Some(Self {
            words: self.words.checked_add(other.words)?,
            scales: self.scales.checked_add(other.scales)?,
            offsets: self.offsets.checked_add(other.offsets)?,
            tensor_scales: self.tensor_scales.checked_add(other.tensor_scales)?,
            full: self.full.checked_add(other.full)?,
            coded: self.coded.checked_add(other.coded)?,
        })
    }

    fn packed(coding: &Coding, rows: usize, cols: usize) -> Option<Self> {
        if coding.coded {
            return Some(Self::default());
        }
        let rows64 = rows as u64;
        let groups = if coding.is_float() { 0 } else { cols.div_ceil(coding.group_of(cols)) };
        let scales = rows64.checked_mul(groups as u64)?;
        Some(Self {
            words: rows64.checked_mul(u64::from(coding.bits))?.checked_mul(cols.div_ceil(64) as u64)?,
            scales,
            offsets: if coding.offsets { scales } else { 0 },
            tensor_scales: 1,
            ..Self::default()
        })
    }

    fn class(class: &Class) -> Option<Self> {
        let (rows, cols) = (class.rows, class.cols);
        class.parts.iter().try_fold(Self::default(), |sum, part| {
            sum.add(&match part {
                Kind::Dense(coding) => Self::packed(coding, rows, cols)?,
                Kind::LowRank { rank, a, bt } => Self::packed(a, *rank, cols)?.add(&Self::packed(bt, *rank, rows)?)?,
                Kind::Sparse { levels } => {
                    Self { full: levels.map_or(Some(0), |n| halves_of(rows, n))?, ..Self::default() }
                }
                Kind::Full => Self { full: (rows as u64).checked_mul(cols as u64)?, ..Self::default() },
            })
        })
    }

    /// The whole plan's; `None` on overflow.
    fn plan(plan: &Plan) -> Option<Self> {
        let classes = plan.classes.iter().map(Self::class).collect::<Option<Vec<_>>>()?;
        let linears = plan.linears.iter().try_fold(Self::default(), |sum, (class, _)| sum.add(&classes[*class]))?;
        let extras = plan.extras.iter().try_fold(0u64, |sum, (_, elements)| sum.checked_add(*elements as u64))?;
        linears.add(&Self { full: extras, coded: plan.coded as u64, ..Self::default() })
    }
}

/// Halves of sparse rows that are not coded.
fn halves_of(rows: usize, levels: usize) -> Option<u64> {
    (rows as u64).checked_add(levels as u64)?.checked_mul(2)
}

/// The payload of a checked variant whose plan and coded stream these are.
pub(super) fn encode(plan: &Plan, stream: &[u8], variant: &Variant) -> Result<Vec<u8>, String> {
    let sizes = Sizes::plan(plan).and_then(|sizes| sizes.bytes()).ok_or("too large for any machine")?;
    let kinds = plan.linears.iter().flat_map(|(class, _)| &plan.classes[*class].parts);
    let parts = || variant.linears.iter().flat_map(|linear| &linear.parts);
    let matrices = parts().zip(kinds).flat_map(|(part, kind)| {
        let coded = match kind {
            Kind::Dense(coding) => [coding.coded, false],
            Kind::LowRank { a, bt, .. } => [a.coded, bt.coded],
            Kind::Sparse { .. } | Kind::Full => [false; 2],
        };
        part.matrices().into_iter().zip(coded)
    });
    let matrices: Vec<&PackedMatrix> = matrices.filter(|(_, coded)| !coded).map(|(matrix, _)| matrix).collect();
    let mut out = Vec::with_capacity(sizes.iter().map(|size| size.next_multiple_of(ALIGN)).sum::<u64>() as usize);
    let align = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(ALIGN as usize), 0);
    for matrix in &matrices {
        out.extend(matrix.planes.iter().flat_map(|word| word.to_le_bytes()));
    }
    align(&mut out);
    for matrix in &matrices {
        put_halves(&mut out, &matrix.scales);
    }
    align(&mut out);
    for matrix in &matrices {
        put_halves(&mut out, &matrix.offsets);
    }
    align(&mut out);
    for matrix in &matrices {
        out.extend(matrix.tensor_scale.to_le_bytes());
    }
    align(&mut out);
    for part in parts() {
        match part {
            Part::Full { values, .. } => put_halves(&mut out, values),
            Part::Sparse(rows) if plan.coded == 0 => put_halves(&mut out, &sparse_halves(rows)),
            _ => {}
        }
    }
    for extra in &variant.extras {
        put_halves(&mut out, &extra.values);
    }
    if !stream.is_empty() {
        align(&mut out);
        out.extend(stream);
    }
    Ok(out)
}

fn put_halves(out: &mut Vec<u8>, halves: &[u16]) {
    out.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
}

/// Sparse rows as the head of this file says.
fn sparse_halves(rows: &SparseRows) -> Vec<u16> {
    let mut halves = Vec::new();
    for (columns, levels, scale) in (0..rows.shape().0).map(|row| rows.row(row)) {
        let step = step_of(levels, scale).flatten().map_or(0, Step::code);
        halves.extend([u16::from(step), levels.len() as u16]);
        halves.extend(columns.iter().zip(levels).flat_map(|(column, level)| [*column, *level as u16]));
    }
    halves
}

/// Cuts a payload into the plan's parts, of which those of `linears` go to `each` matrix by matrix, checked. Linears before
/// the range can be passed over where nothing is coded. The extras are those after the last linear, if the range reaches it.
/// Nothing is allocated before the plan's sizes are known to equal the payload's.
pub(super) fn decode(
    plan: &Plan,
    payload: &[u8],
    linears: Range<usize>,
    each: &mut dyn FnMut(LinearDelta),
) -> Result<Vec<Extra>, String> {
    if linears.start > 0 && plan.coded > 0 {
        return Err("a coded stream is read from its beginning".into());
    }
    let mut sections = Sections::split(plan, payload)?;
    for (class, _) in plan.linears.iter().take(linears.start) {
        sections.skip(&plan.classes[*class])?;
    }
    for (index, &(class, error)) in plan.linears.iter().enumerate().take(linears.end).skip(linears.start) {
        let Class { rows, cols, ref parts } = plan.classes[class];
        let in_linear = |reason: String| format!("linear {index}: {reason}");
        let parts = parts.iter().map(|part| match part {
            Kind::Dense(coding) => Ok(Part::Dense(sections.codes(WHOLE, coding, rows, cols)?)),
            Kind::LowRank { rank, a, bt } => {
                Ok(Part::LowRank { a: sections.codes(A, a, *rank, cols)?, bt: sections.codes(BT, bt, *rank, rows)? })
            }
            Kind::Sparse { levels } => Ok(Part::Sparse(sections.sparse(*levels, rows, cols)?)),
            Kind::Full => Ok(Part::Full { rows, cols, values: halves(&mut sections.full, rows * cols) }),
        });
        let parts = parts.collect::<Result<_, String>>().map_err(in_linear)?;
        let linear = LinearDelta { rows, cols, parts, relative_error: decode_error(error) };
        linear.check().map_err(in_linear)?;
        each(linear);
    }
    if linears.end < plan.linears.len() {
        return Ok(Vec::new());
    }
    let extras = plan.extras.iter();
    let extras = extras.map(|&(tensor, elements)| Extra { tensor, values: halves(&mut sections.full, elements) });
    let extras = extras.collect();
    if plan.coded > 0 {
        sections.coded.finish()?;
    }
    Ok(extras)
}

/// What is left of each section.
struct Sections<'a> {
    words: &'a [u8],
    scales: &'a [u8],
    offsets: &'a [u8],
    tensor_scales: &'a [u8],
    full: &'a [u8],
    coded: Decoder<'a>,
}

impl<'a> Sections<'a> {
    fn split(plan: &Plan, payload: &'a [u8]) -> Result<Self, String> {
        let sizes = Sizes::plan(plan).and_then(|sizes| sizes.bytes()).ok_or("sizes overflow")?;
        let (mut cut, mut at) = ([&payload[..0]; 6], 0u64);
        // Without coded matrices nothing follows the full values, not even padding.
        let sections = if plan.coded > 0 { 6 } else { 5 };
        for (section, size) in cut.iter_mut().zip(sizes).take(sections) {
            let start = at.next_multiple_of(ALIGN);
            let end = start.checked_add(size).filter(|end| *end <= payload.len() as u64);
            let end = end.ok_or_else(|| format!("{} bytes are fewer than the manifest asks for", payload.len()))?;
            if payload[at as usize..start as usize].iter().any(|&byte| byte != 0) {
                return Err(format!("padding before byte {start} is not zero"));
            }
            *section = &payload[start as usize..end as usize];
            at = end;
        }
        if at != payload.len() as u64 {
            return Err(format!("{} bytes, the manifest asks for {at}", payload.len()));
        }
        let [words, scales, offsets, tensor_scales, full, coded] = cut;
        Ok(Self { words, scales, offsets, tensor_scales, full, coded: Decoder::new(coded) })
    }

    /// Passes over a linear of which nothing is coded.
    fn skip(&mut self, class: &Class) -> Result<(), String> {
        let sizes = Sizes::class(class).and_then(|sizes| sizes.bytes()).ok_or("sizes overflow")?;
        let sections = [&mut self.words, &mut self.scales, &mut self.offsets, &mut self.tensor_scales, &mut self.full];
        for (section, bytes) in sections.into_iter().zip(sizes) {
            take(section, bytes as usize);
        }
        Ok(())
    }

    /// Codes, plain or in the coded stream as a matrix of this kind.
    fn codes(&mut self, kind: usize, coding: &Coding, rows: usize, cols: usize) -> Result<PackedMatrix, String> {
        if !coding.coded {
            return Ok(self.matrix(coding, rows, cols));
        }
        let matrix = self.coded.matrix(kind, rows, cols)?.pack("codes").map_err(|error| error.to_string())?;
        match matrix.bits == coding.bits {
            true => Ok(matrix),
            false => Err(format!("coded levels of {} bits, the manifest states {}", matrix.bits, coding.bits)),
        }
    }

    /// Sparse rows, `levels` of them one by one or in the coded stream.
    fn sparse(&mut self, levels: Option<usize>, rows: usize, cols: usize) -> Result<SparseRows, String> {
        let Some(levels) = levels else { return self.coded.sparse(WHOLE, rows, cols) };
        let halves = halves(&mut self.full, 2 * (rows + levels));
        let mut found = SparseRows::new(cols).ok_or("rows that are too wide to be sparse")?;
        let mut rest = &halves[..];
        for index in 0..rows {
            let wrong = |what: &str| format!("sparse row {index}: {what}");
            let [step, count, more @ ..] = rest else { return Err(wrong("it is not there")) };
            let (row, more) = more.split_at_checked(2 * usize::from(*count)).ok_or_else(|| wrong("it ends early"))?;
            rest = more;
            let step = u8::try_from(*step).ok().and_then(Step::from_code).ok_or_else(|| wrong("no step"))?;
            let level = |half: u16| i8::try_from(half as i16).unwrap_or(0);
            let scale = if row.is_empty() { 0.0 } else { step.value() };
            if !found.push(row.as_chunks().0.iter().map(|&[column, half]| (column, level(half))), scale) {
                return Err(wrong("columns that do not rise, or a level out of range"));
            }
        }
        if rest.is_empty() { Ok(found) } else { Err("sparse rows hold fewer levels than are stated".into()) }
    }

    fn matrix(&mut self, coding: &Coding, rows: usize, cols: usize) -> PackedMatrix {
        let group = coding.group_of(cols);
        let scales = if coding.is_float() { 0 } else { rows * cols.div_ceil(group) };
        let words = take(&mut self.words, rows * usize::from(coding.bits) * cols.div_ceil(64) * 8);
        let tensor_scale = take(&mut self.tensor_scales, 4).as_chunks().0.first();
        PackedMatrix {
            bits: coding.bits,
            rows,
            cols,
            group,
            planes: words.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect(),
            scales: halves(&mut self.scales, scales),
            offsets: halves(&mut self.offsets, if coding.offsets { scales } else { 0 }),
            tensor_scale: tensor_scale.map_or(0.0, |bytes| f32::from_le_bytes(*bytes)),
        }
    }
}

/// The next `bytes` of a section, whose whole length was checked against the plan.
fn take<'a>(section: &mut &'a [u8], bytes: usize) -> &'a [u8] {
    let (taken, rest) = section.split_at(bytes);
    *section = rest;
    taken
}

fn halves(section: &mut &[u8], count: usize) -> Vec<u16> {
    take(section, count * 2).as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect()
}

/// Whether all are finite as f16: an exponent of all ones is infinity or NaN.
pub(super) fn finite(halves: &[u16]) -> bool {
    // Some at a time without a way out: in vectors.
    halves.chunks(64).all(|some| !some.iter().fold(false, |found, half| found | (half & 0x7c00 == 0x7c00)))
}

/// What must hold of a part of a linear of this (rows, cols).
pub(super) fn check(part: &Part, (rows, cols): (usize, usize)) -> Result<(), String> {
    if part.shape() != (rows, cols) {
        return Err(format!("a {} part of shape {:?} in a linear of {rows} x {cols}", part.kind(), part.shape()));
    }
    if let Part::LowRank { a, bt } = part {
        if a.rows != bt.rows {
            return Err(format!("factors of rank {} and {}", a.rows, bt.rows));
        }
        if a.is_float() != bt.is_float() {
            return Err("one factor of floats and one of codes".into());
        }
    }
    if let Part::Dense(matrix) = part
        && matrix.is_float()
    {
        return Err("a dense part of floats".into());
    }
    if let Part::Sparse(sparse) = part
        && let Some(row) = (0..rows).find(|row| {
            let (_, levels, scale) = sparse.row(*row);
            step_of(levels, scale).is_none()
        })
    {
        return Err(format!("sparse row {row} has levels or a scale that are none of a code"));
    }
    if let Part::Full { values, .. } = part
        && (rows.checked_mul(cols) != Some(values.len()) || !finite(values))
    {
        return Err(format!("{} full values for {rows} x {cols}, or not all finite", values.len()));
    }
    part.matrices().into_iter().try_for_each(check_matrix)
}

fn check_matrix(matrix: &PackedMatrix) -> Result<(), String> {
    let PackedMatrix { bits, rows, cols, group, .. } = *matrix;
    let fits = |value: usize| (1..=u32::MAX as usize).contains(&value);
    if !matches!(bits, 1..=8 | 16 | 32) || !fits(rows) || !fits(cols) || !fits(group) {
        return Err(format!("{bits} bits, {rows} x {cols}, group {group}"));
    }
    let coding = Coding { bits, offsets: !matrix.offsets.is_empty(), group, coded: false };
    let sizes = Sizes::packed(&coding, rows, cols).ok_or("sizes overflow")?;
    let found = [matrix.planes.len(), matrix.scales.len(), matrix.offsets.len()].map(|length| length as u64);
    if found != [sizes.words, sizes.scales, sizes.offsets] {
        return Err(format!("planes, scales, offsets of lengths {found:?} do not fit {rows} x {cols}"));
    }
    if matrix.is_float() {
        return if group == cols { matrix.check_floats() } else { Err(format!("floats in groups of {group}")) };
    }
    if !matrix.tensor_scale.is_finite() || !finite(&matrix.scales) || !finite(&matrix.offsets) {
        return Err("a scale or offset is not finite".into());
    }
    let used = cols % 64;
    if used == 0 {
        return Ok(());
    }
    let pad = u64::MAX << used;
    match matrix.planes.chunks(matrix.words_per_row()).position(|words| words.last().is_some_and(|w| w & pad != 0)) {
        Some(row) => Err(format!("pad bits of plane row {row} are not zero")),
        None => Ok(()),
    }
}
