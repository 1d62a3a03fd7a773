//! Entropy coding of [`Levels`]: an adaptive binary range coder (Martin 1979; the carry handling of LZMA).
//!
//! A matrix is its rows; a row is
//!
//! ```text
//! row   := zero? │ step, as the difference from the last row's of the same kind, 8 bits through a tree of 255 contexts
//! level := zero? (context: how many of the two before are zero) │ sign (even odds) │ magnitude − 1 in unary
//! ```
//!
//! and "?" a bit whose odds are learnt as it goes: fast at first, slower the more it has seen. At the start of a row the
//! odds stay and their pace is renewed, since rows differ. One stream holds all coded matrices of a file, in order.

use crate::tread::{LARGEST, Levels, SMALLEST, Step, push};
use bitdelta_kernels::SparseRows;

/// A stream may hold at most so many elements a byte, so that a small file cannot ask for a large memory.
pub(super) const MOST_ELEMENTS_PER_BYTE: u64 = 1024;
/// Kinds of matrices, whose rows have statistics of their own: the factors of low-rank parts, and rows of a linear.
pub(super) const A: usize = 0;
pub(super) const BT: usize = 1;
pub(super) const WHOLE: usize = 2;
const KINDS: usize = 3;
/// Bits of a probability.
const ODDS_BITS: u32 = 12;
/// Odds never come nearer to certainty than this, in 16 bits.
const EDGE: i32 = 32;
/// What a bit's count is set back to at the start of a row.
const RENEWED: i32 = 6;
/// A bit's odds move by at least one part of so many.
const SLOWEST: i32 = 160;

/// The odds of one bit.
#[derive(Debug, Clone, Copy)]
struct Odds {
    /// Of a 0, in 16 bits.
    zero: i32,
    seen: i32,
}

impl Odds {
    const EVEN: Self = Self { zero: 1 << 15, seen: 0 };

    fn probability(self) -> u32 {
        (self.zero >> (16 - ODDS_BITS)).clamp(1, (1 << ODDS_BITS) - 1) as u32
    }

    fn learn(&mut self, bit: bool) {
        let target = if bit { EDGE } else { (1 << 16) - EDGE };
        self.zero += (target - self.zero) / (self.seen + 2);
        self.seen = (self.seen + 1).min(SLOWEST - 2);
    }

    fn renew(&mut self) {
        self.seen = self.seen.min(RENEWED);
    }
}

/// What is learnt about rows of one kind (A, Bᵀ, or whole rows of a linear).
#[derive(Debug, Clone)]
struct Kind {
    empty: Odds,
    /// A tree over the step's byte.
    step: [Odds; 256],
    last_step: u8,
    /// By how many of the two before are not zero.
    zero: [Odds; 3],
    more: [Odds; LARGEST as usize],
}

impl Kind {
    const NEW: Self = Self {
        empty: Odds::EVEN,
        step: [Odds::EVEN; 256],
        last_step: 0,
        zero: [Odds::EVEN; 3],
        more: [Odds::EVEN; LARGEST as usize],
    };

    fn renew(&mut self) {
        self.zero.iter_mut().chain(&mut self.more).for_each(Odds::renew);
    }
}

/// A coder's direction: writes the bit it is given, or reads one and ignores what it is given.
trait Coder {
    fn bit(&mut self, odds: &mut Odds, bit: bool) -> bool;
    fn even(&mut self, bit: bool) -> bool {
        self.bit(&mut Odds::EVEN.clone(), bit)
    }
}

/// Codes one row, in either direction.
fn row(coder: &mut impl Coder, kind: &mut Kind, step: &mut Option<Step>, levels: &mut [i8]) -> Result<(), String> {
    if coder.bit(&mut kind.empty, step.is_none()) {
        *step = None;
        levels.fill(0);
        return Ok(());
    }
    let difference = step.map_or(0, Step::code).wrapping_sub(kind.last_step);
    let mut node = 1usize;
    for shift in (0..8).rev() {
        let bit = coder.bit(&mut kind.step[node], difference >> shift & 1 == 1);
        node = node << 1 | usize::from(bit);
    }
    kind.last_step = kind.last_step.wrapping_add(node as u8);
    *step =
        Some(Step::from_code(kind.last_step).ok_or_else(|| format!("step {} is beyond the table", kind.last_step))?);
    kind.renew();
    let mut before = [false; 2];
    let mut any = false;
    for level in levels {
        let context = usize::from(before[0]) + usize::from(before[1]);
        let found = coder.bit(&mut kind.zero[context], *level != 0);
        before = [before[1], found];
        if !found {
            *level = 0;
            continue;
        }
        any = true;
        let negative = coder.even(*level < 0);
        let top = if negative { -SMALLEST } else { LARGEST };
        let wanted = i32::from(*level).abs();
        let mut magnitude = 1;
        while magnitude < top && coder.bit(&mut kind.more[magnitude as usize - 1], magnitude < wanted) {
            magnitude += 1;
        }
        *level = (if negative { -magnitude } else { magnitude }) as i8;
    }
    if any { Ok(()) } else { Err("a row of zeros that is not marked as one".into()) }
}

/// Writes matrices.
#[derive(Debug)]
pub(super) struct Encoder {
    out: Writer,
    kinds: [Kind; KINDS],
}

#[derive(Debug)]
struct Writer {
    low: u64,
    range: u32,
    /// A byte that a carry may still change, and how many 0xff follow it.
    held: u8,
    pending: u64,
    bytes: Vec<u8>,
}

impl Encoder {
    pub fn new() -> Self {
        let out = Writer { low: 0, range: u32::MAX, held: 0, pending: 1, bytes: Vec::new() };
        Self { out, kinds: [Kind::NEW; KINDS] }
    }

    /// `kind` is one of [`A`], [`BT`] and [`WHOLE`]: the matrices of one kind share what was learnt.
    pub fn matrix(&mut self, kind: usize, levels: &Levels) {
        let mut copy = levels.levels.clone();
        for (step, levels) in levels.steps.iter().zip(copy.chunks_mut(levels.cols)) {
            self.row(kind, *step, levels);
        }
    }

    /// `levels` stay what they are.
    pub fn row(&mut self, kind: usize, mut step: Option<Step>, levels: &mut [i8]) {
        let coded = row(&mut self.out, &mut self.kinds[kind], &mut step, levels);
        debug_assert!(coded.is_ok(), "levels without a step are zeros and no others are");
    }

    pub fn finish(mut self) -> Vec<u8> {
        for _ in 0..5 {
            self.out.shift();
        }
        // The first byte is always 0, and a reader takes zeros for what is missing at the end.
        let mut bytes = self.out.bytes.split_off(1);
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        bytes
    }
}

impl Writer {
    fn shift(&mut self) {
        let carry = (self.low >> 32) as u8;
        if self.low < 0xff00_0000 || carry != 0 {
            let mut byte = self.held;
            while self.pending > 0 {
                self.bytes.push(byte.wrapping_add(carry));
                byte = 0xff;
                self.pending -= 1;
            }
            self.held = (self.low >> 24) as u8;
        }
        self.pending += 1;
        self.low = (self.low & 0x00ff_ffff) << 8;
    }
}

impl Coder for Writer {
    fn bit(&mut self, odds: &mut Odds, bit: bool) -> bool {
        let bound = (self.range >> ODDS_BITS) * odds.probability();
        if bit {
            self.low += u64::from(bound);
            self.range -= bound;
        } else {
            self.range = bound;
        }
        odds.learn(bit);
        while self.range < 1 << 24 {
            self.range <<= 8;
            self.shift();
        }
        bit
    }
}

/// Reads matrices.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    from: Reader<'a>,
    kinds: [Kind; KINDS],
}

#[derive(Debug)]
struct Reader<'a> {
    code: u32,
    range: u32,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut from = Reader { code: 0, range: u32::MAX, bytes, at: 0 };
        (0..4).for_each(|_| from.next());
        Self { from, kinds: [Kind::NEW; KINDS] }
    }

    /// The next matrix; its size was checked.
    pub fn matrix(&mut self, kind: usize, rows: usize, cols: usize) -> Result<Levels, String> {
        let mut levels = Levels { cols, steps: vec![None; rows], levels: vec![0; rows * cols] };
        for (step, levels) in levels.steps.iter_mut().zip(levels.levels.chunks_mut(cols)) {
            row(&mut self.from, &mut self.kinds[kind], step, levels)?;
        }
        Ok(levels)
    }

    /// The next matrix, of which only what is not zero is kept; its size was checked.
    pub fn sparse(&mut self, kind: usize, rows: usize, cols: usize) -> Result<SparseRows, String> {
        let mut found = SparseRows::new(cols).ok_or("rows that are too wide to be sparse")?;
        let mut levels = vec![0; cols];
        for _ in 0..rows {
            let mut step = None;
            row(&mut self.from, &mut self.kinds[kind], &mut step, &mut levels)?;
            if !push(&mut found, &levels, step) {
                return Err("more sparse levels than can be counted".into());
            }
        }
        Ok(found)
    }

    /// That the stream ends where the last matrix does.
    pub fn finish(self) -> Result<(), String> {
        // The coder reads four bytes ahead, and trailing zeros are not written.
        match self.from.at >= self.from.bytes.len() && self.from.bytes.last() != Some(&0) {
            true => Ok(()),
            false => Err("the coded stream goes on after the last matrix".into()),
        }
    }
}

impl Reader<'_> {
    fn next(&mut self) {
        self.code = self.code << 8 | u32::from(self.bytes.get(self.at).copied().unwrap_or(0));
        self.at += 1;
    }
}

impl Coder for Reader<'_> {
    fn bit(&mut self, odds: &mut Odds, _: bool) -> bool {
        let bound = (self.range >> ODDS_BITS) * odds.probability();
        let bit = self.code >= bound;
        if bit {
            self.code -= bound;
            self.range -= bound;
        } else {
            self.range = bound;
        }
        odds.learn(bit);
        while self.range < 1 << 24 {
            self.range <<= 8;
            self.next();
        }
        bit
    }
}

/// Bytes that these matrices, A and Bᵀ in turn, take in a stream of their own.
pub fn coded_bytes<'a>(matrices: impl Iterator<Item = &'a Levels>) -> usize {
    let mut encoder = Encoder::new();
    matrices.enumerate().for_each(|(at, levels)| encoder.matrix(at % 2, levels));
    encoder.finish().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Levels of a Gaussian with this standard deviation in steps.
    fn gaussian(rows: usize, cols: usize, deviation: f32, seed: u32) -> Levels {
        let mut state = seed;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let values: Vec<f32> = (0..rows * cols)
            .map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0)
            .map(|normal| normal * deviation)
            .collect();
        Levels::of(&values, cols, &vec![Step::nearest(1.0); rows], 0.0)
    }

    fn decode(bytes: &[u8], shapes: &[(usize, usize)]) -> Result<Vec<Levels>, String> {
        let mut decoder = Decoder::new(bytes);
        let levels = shapes.iter().enumerate().map(|(at, (rows, cols))| decoder.matrix(at % 2, *rows, *cols)).collect();
        decoder.finish().and(levels)
    }

    #[test]
    fn a_stream_takes_little_more_than_the_entropy() {
        for (deviation, most) in [(0.3, 1.02), (0.6, 1.02), (1.5, 1.02)] {
            let levels = gaussian(64, 1024, deviation, 7);
            let mut counts = [0f64; 16];
            levels.levels.iter().for_each(|level| counts[(level + 7) as usize] += 1.0);
            let total: f64 = counts.iter().sum();
            let bits: f64 = counts.iter().filter(|c| **c > 0.0).map(|c| -c * (c / total).log2()).sum();
            let bytes = coded_bytes([&levels].into_iter());
            assert!((bytes as f64) < most * bits / 8.0 + 100.0, "{bytes} bytes, entropy {}", bits / 8.0);
        }
    }

    #[test]
    fn rows_of_zeros_cost_next_to_nothing() {
        let zeros = Levels { cols: 500, steps: vec![None; 400], levels: vec![0; 400 * 500] };
        assert!(coded_bytes([&zeros].into_iter()) < 12);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            shapes in proptest::collection::vec((1usize..6, 1usize..90), 1..5), deviation in 0.0f32..4.0, seed: u32,
        ) {
            let levels: Vec<Levels> =
                shapes.iter().zip(0..).map(|((rows, cols), i)| gaussian(*rows, *cols, deviation, seed ^ i)).collect();
            let mut encoder = Encoder::new();
            levels.iter().enumerate().for_each(|(at, levels)| encoder.matrix(at % 2, levels));
            let bytes = encoder.finish();
            prop_assert_eq!(decode(&bytes, &shapes), Ok(levels));
            let longer: Vec<u8> = bytes.iter().copied().chain([1, 2, 3, 4, 5, 6]).collect();
            prop_assert!(decode(&longer, &shapes).is_err());
        }

        #[test]
        fn any_bytes_are_levels_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(levels) = decode(&bytes, &[(3, 50), (2, 70)]) {
                let mut encoder = Encoder::new();
                levels.iter().enumerate().for_each(|(at, levels)| encoder.matrix(at % 2, levels));
                prop_assert_eq!(decode(&encoder.finish(), &[(3, 50), (2, 70)]), Ok(levels));
            }
        }
    }
}
