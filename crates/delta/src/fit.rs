//! The least-squares fit of one group: which scale and offset make `offset + scale · level` nearest to the values.
//!
//! Levels are the odd numbers `2u − (2^b − 1)` of codes u in 0..2^b. For signs alone (b = 1, no offset) the answer is
//! closed: the mean magnitude. Otherwise codes depend on the scale and the scale on the codes, so both are improved in
//! turn (Lloyd's method on a uniform grid) from several starts:
//!
//! ```text
//! offset₀ = 0 when symmetric, else mean(x);  reach = max |x − offset₀|;  reach = 0: (0, offset₀)
//! for ratio in STARTS (at b = 1 only the first):
//!     scale, offset = ratio · reach / (2^b − 1), offset₀
//!     ROUNDS times:
//!         u = clamp(floor((x − offset) / (2 · scale) + 2^(b−1)), 0, 2^b − 1);  L = 2u − (2^b − 1)
//!         symmetric: scale = Σ xL / Σ L²;                            explained = (Σ xL)² / Σ L²
//!         else:      scale = cov(x, L) / var(L), offset = mean(x) − scale · mean(L);  explained = cov² / var
//!     keep the (scale, offset) whose last `explained` is largest, the earlier start on a tie
//! ```
//!
//! No randomness and a fixed order of sums (eight lanes, then the lanes): the same input gives the same bits anywhere.

/// Fractions of a group's reach that the grid's outermost level starts at.
pub(crate) const STARTS: [f32; 12] = [1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3];
/// Rounds of assigning codes and refitting from each start.
pub(crate) const ROUNDS: usize = 2;
/// Scales up to this count as 0: their reciprocal would overflow.
const TINY: f32 = 1e-37;
const LANES: usize = 8;

/// How values of a group become codes: `u = clamp(⌊(x − offset) · inverse + half⌋)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    offset: f32,
    /// 1 / (2 · scale), or 0 where the scale is zero.
    inverse: f32,
    half: f32,
    top: f32,
    /// 1 where the scale is zero: values below the offset step down by it, for their sign.
    step: f32,
}

impl Grid {
    /// The grid of a group stored with this scale and offset.
    pub(crate) fn new(bits: u8, scale: f32, offset: f32) -> Self {
        let half = (1u32 << (bits - 1)) as f32;
        // A zero scale makes all codes equal in value: the sign picks one of the two in the middle.
        let inverse = if scale > TINY { 0.5 / scale } else { 0.0 };
        let step = if inverse == 0.0 { 1.0 } else { 0.0 };
        Self { offset, inverse, half, top: 2.0 * half - 1.0, step }
    }

    /// The code of one value, as a float.
    #[inline(always)]
    fn code(&self, value: f32) -> f32 {
        let centred = value - self.offset;
        let below = if centred < 0.0 { self.step } else { 0.0 };
        let position = centred * self.inverse + self.half - below;
        // A cast truncates like `trunc`, which is a function call on a CPU without SSE 4.1.
        position.max(0.0).min(self.top) as i32 as f32
    }

    /// The code of one value: 0..2^bits.
    #[inline(always)]
    pub(crate) fn encode(&self, value: f32) -> u32 {
        self.code(value) as u32
    }

    /// The level of one value: an odd number.
    #[inline(always)]
    pub(crate) fn level(&self, value: f32) -> f32 {
        2.0 * self.code(value) - self.top
    }
}

/// (scale, offset) of a group of finite values. See the module for the method.
pub(crate) fn fit(values: &[f32], bits: u8, symmetric: bool) -> (f32, f32) {
    let n = values.len() as f32;
    if bits == 1 && symmetric {
        return (lane_sum(values, f32::abs) / n, 0.0);
    }
    let offset = if symmetric { 0.0 } else { lane_sum(values, |x| x) / n };
    let reach = values.iter().fold(0.0f32, |reach, x| reach.max((x - offset).abs()));
    if reach <= TINY {
        return (0.0, offset);
    }
    let top = ((1u32 << bits) - 1) as f32;
    let starts = if bits == 1 { &STARTS[..1] } else { &STARTS[..] };
    let mut best = (0.0, offset, -1.0);
    for ratio in starts {
        let mut now = (ratio * reach / top, offset, 0.0);
        for _ in 0..ROUNDS {
            now = refit(values, &Grid::new(bits, now.0, now.1), offset, symmetric);
        }
        if now.2 > best.2 {
            best = now;
        }
    }
    (best.0, best.1)
}

/// One round: codes from the grid, then (scale, offset, explained sum of squares) by least squares.
fn refit(values: &[f32], grid: &Grid, mean: f32, symmetric: bool) -> (f32, f32, f32) {
    let [products, level_squares, levels] = level_sums(values, grid);
    if symmetric {
        return (products / level_squares, 0.0, products * (products / level_squares));
    }
    let n = values.len() as f32;
    let mean_level = levels / n;
    let variance = level_squares - n * mean_level * mean_level;
    // Levels are odd whole numbers: two different ones make a variance of at least 2, rounding far less.
    if variance < 0.5 {
        return (0.0, mean, 0.0);
    }
    let covariance = products - n * mean * mean_level;
    let scale = (covariance / variance).max(0.0);
    (scale, mean - scale * mean_level, covariance * scale)
}

/// [Σ xL, Σ L², Σ L] over eight lanes.
fn level_sums(values: &[f32], grid: &Grid) -> [f32; 3] {
    let mut lanes = [[0.0f32; LANES]; 3];
    let (eights, rest) = values.as_chunks::<LANES>();
    for eight in eights {
        for (lane, &x) in eight.iter().enumerate() {
            let level = grid.level(x);
            lanes[0][lane] += x * level;
            lanes[1][lane] += level * level;
            lanes[2][lane] += level;
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        let level = grid.level(x);
        lanes[0][lane] += x * level;
        lanes[1][lane] += level * level;
        lanes[2][lane] += level;
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// Σ f(x) over eight lanes, so that it vectorises and its order is fixed.
#[inline(always)]
fn lane_sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (eights, rest) = values.as_chunks::<LANES>();
    for eight in eights {
        for (lane, &x) in lanes.iter_mut().zip(eight) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_take_the_mean_magnitude() {
        assert_eq!(fit(&[0.2, -0.1, 0.1, -0.4], 1, true), (0.2, 0.0));
    }

    #[test]
    fn an_evenly_spaced_group_is_fitted_exactly() {
        let values: Vec<f32> = (0..16).map(|u| 0.25 * (2.0 * u as f32 - 15.0)).collect();
        let (scale, offset) = fit(&values, 4, true);
        assert!((scale - 0.25).abs() < 1e-6 && offset == 0.0, "{scale} {offset}");
        let shifted: Vec<f32> = values.iter().map(|x| x + 3.0).collect();
        let (scale, offset) = fit(&shifted, 4, false);
        assert!((scale - 0.25).abs() < 1e-5 && (offset - 3.0).abs() < 1e-5, "{scale} {offset}");
    }

    #[test]
    fn a_constant_group_needs_an_offset_alone() {
        assert_eq!(fit(&[0.5; 7], 2, false), (0.0, 0.5));
        assert_eq!(fit(&[0.5; 7], 1, false), (0.0, 0.5));
    }

    #[test]
    fn a_zero_scale_keeps_the_sign_in_the_code() {
        let grid = Grid::new(2, 0.0, 0.0);
        assert_eq!([0.0, -0.0, 1e-30, -1e-30].map(|x| grid.encode(x)), [2, 2, 2, 1]);
    }
}
