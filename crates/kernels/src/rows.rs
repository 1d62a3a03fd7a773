//! What happens to each row between the products: normalisation, rotation, the gate, sums.

use crate::{
    isa::{Isa, dispatch, widely},
    parallel::for_each_chunk,
    vector::{LANES, Vector},
};
/// Values below which one thread does all rows.
const WORTH_SPLITTING: usize = 1 << 12;

/// Calls `f` on corresponding rows of `input` and `output`, `width` values each.
fn for_rows(input: &[f32], output: &mut [f32], width: usize, f: impl Fn(&[f32], &mut [f32]) + Sync) {
    assert_eq!(input.len(), output.len(), "as many outputs as inputs");
    let together = WORTH_SPLITTING.div_ceil(width).max(1) * width;
    for_each_chunk(output, together, |i, output| {
        let input = &input[i * together..][..output.len()];
        output.chunks_exact_mut(width).zip(input.chunks_exact(width)).for_each(|(o, i)| f(i, o));
    });
}

/// RMSNorm (Zhang & Sennrich 2019) of each row: `y = x / sqrt(mean(x²) + eps) · weight`; rows as wide as `weight`.
///
/// # Panics
/// When `x` and `y` differ in length.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let isa = Isa::selected();
    for_rows(x, y, weight.len(), |x, y| run_norm(isa, x, weight, eps, y));
}

fn run_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    dispatch!(isa, norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]));
}

/// # Safety
/// The three slices are of one length.
#[inline(always)]
unsafe fn norm<V: Vector>(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    // SAFETY: chunks stay inside the slices.
    unsafe {
        let mut squares = V::splat(0.0);
        for at in (0..x.len()).step_by(LANES) {
            let x = V::load_partial(x.as_ptr().add(at), LANES.min(x.len() - at));
            squares = squares.fma(x, x);
        }
        let inverse = V::splat(1.0 / (squares.sum() / x.len() as f32 + eps).sqrt());
        for at in (0..x.len()).step_by(LANES) {
            let lanes = LANES.min(x.len() - at);
            let scaled = V::load_partial(x.as_ptr().add(at), lanes).mul(inverse);
            scaled.mul(V::load_partial(weight.as_ptr().add(at), lanes)).store_partial(y.as_mut_ptr().add(at), lanes);
        }
    }
}

/// `y += factor · x`, on this thread.
///
/// # Panics
/// When the two differ in length.
pub fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
    run_axpy(Isa::selected(), y, factor, x);
}

fn run_axpy(isa: Isa, y: &mut [f32], factor: f32, x: &[f32]) {
    assert_eq!(x.len(), y.len(), "as many terms as sums");
    dispatch!(isa, axpy(y: &mut [f32], factor: f32, x: &[f32]));
}

/// # Safety
/// Both slices are of one length.
#[inline(always)]
unsafe fn axpy<V: Vector>(y: &mut [f32], factor: f32, x: &[f32]) {
    let (length, whole) = (x.len(), x.len() / LANES * LANES);
    // SAFETY: chunks stay inside the slices.
    unsafe {
        let factor = V::splat(factor);
        for at in (0..whole).step_by(LANES) {
            let y = y.as_mut_ptr().add(at);
            V::load(y).fma(V::load(x.as_ptr().add(at)), factor).store(y);
        }
        if whole < length {
            let (y, lanes) = (y.as_mut_ptr().add(whole), length - whole);
            let sum = V::load_partial(y, lanes).fma(V::load_partial(x.as_ptr().add(whole), lanes), factor);
            sum.store_partial(y, lanes);
        }
    }
}

/// Σ aᵢ·bᵢ, on this thread.
///
/// # Panics
/// When the two differ in length.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    run_dot(Isa::selected(), a, b)
}

fn run_dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "factors of equal length");
    let mut sum = 0.0;
    let to = &mut sum;
    dispatch!(isa, inner(a: &[f32], b: &[f32], to: &mut f32));
    sum
}

/// # Safety
/// Both slices are of one length.
#[inline(always)]
unsafe fn inner<V: Vector>(a: &[f32], b: &[f32], to: &mut f32) {
    // SAFETY: chunks stay inside the slices.
    unsafe {
        let mut sums = V::splat(0.0);
        for at in (0..a.len()).step_by(LANES) {
            let lanes = LANES.min(a.len() - at);
            let a = V::load_partial(a.as_ptr().add(at), lanes);
            sums = sums.fma(a, V::load_partial(b.as_ptr().add(at), lanes));
        }
        *to = sums.sum();
    }
}

/// Rotary positions (Su et al. 2021), halves rotated against each other as in the published Llama and Qwen weights.
///
/// `x` is (rows, heads, head_dim); `cos` and `sin` are (rows, head_dim / 2).
///
/// # Panics
/// When the shapes disagree.
pub fn rope(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = head_dim / 2;
    assert!(half > 0 && cos.len() == sin.len() && cos.len().is_multiple_of(half), "angles of heads of {head_dim}");
    let rows = cos.len() / half;
    if rows == 0 {
        return;
    }
    assert!(x.len().is_multiple_of(rows * head_dim), "whole heads in each of {rows} rows");
    let width = x.len() / rows;
    let together = WORTH_SPLITTING.div_ceil(width);
    for_each_chunk(x, together * width, |i, x| {
        for (row, x) in (i * together..).zip(x.chunks_exact_mut(width)) {
            let angles = row * half..(row + 1) * half;
            for head in x.chunks_exact_mut(head_dim) {
                let (first, second) = head.split_at_mut(half);
                let angles = cos[angles.clone()].iter().zip(&sin[angles.clone()]);
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    });
}

/// The place of the first of the greatest values (no NaN).
///
/// # Panics
/// When there are none.
pub fn argmax(values: &[f32]) -> usize {
    /// Values that are looked through again for the greatest one.
    const TOGETHER: usize = 1024;
    assert!(!values.is_empty(), "the greatest of no values");
    let (mut best, mut at) = (f32::NEG_INFINITY, 0);
    for (i, values) in values.chunks(TOGETHER).enumerate() {
        let greatest = widely(|| greatest(values));
        if greatest > best {
            (best, at) = (greatest, i * TOGETHER);
        }
    }
    at + values[at..].iter().position(|value| *value == best).unwrap_or(0)
}

/// The greatest value, found in each of some lanes first.
#[inline(always)]
fn greatest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 2 * LANES];
    let (chunks, rest) = values.as_chunks::<{ 2 * LANES }>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max)
}

/// SwiGLU's gate: `up = silu(gate) · up`, silu(g) = g / (1 + e^−g).
///
/// # Panics
/// When the slices differ in length.
pub fn silu_mul(gate: &[f32], up: &mut [f32]) {
    let isa = Isa::selected();
    assert_eq!(gate.len(), up.len(), "as many gates as values");
    for_each_chunk(up, WORTH_SPLITTING, |i, up| run_silu(isa, &gate[i * WORTH_SPLITTING..][..up.len()], up));
}

fn run_silu(isa: Isa, gate: &[f32], up: &mut [f32]) {
    dispatch!(isa, silu(gate: &[f32], up: &mut [f32]));
}

/// # Safety
/// The slices are of one length.
#[inline(always)]
unsafe fn silu<V: Vector>(gate: &[f32], up: &mut [f32]) {
    for at in (0..gate.len()).step_by(LANES) {
        let lanes = LANES.min(gate.len() - at);
        // SAFETY: the chunk stays inside the slices.
        unsafe {
            let g = V::load_partial(gate.as_ptr().add(at), lanes);
            let u = up.as_mut_ptr().add(at);
            let denominator = V::splat(1.0).add(V::splat(0.0).sub(g).exp());
            g.div(denominator).mul(V::load_partial(u, lanes)).store_partial(u, lanes);
        }
    }
}

/// `y += x`, element by element.
///
/// # Panics
/// When the slices differ in length.
pub fn add(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "as many values as sums");
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
}

/// `y (m, bias.len()) += bias` on every row.
pub fn add_bias(bias: &[f32], y: &mut [f32]) {
    y.chunks_exact_mut(bias.len()).for_each(|row| add(bias, row));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few units in the last place of f32.
    const TOLERANCE: f64 = 1e-6;

    fn ramp(n: usize, from: f32, to: f32) -> Vec<f32> {
        (0..n).map(|i| from + (to - from) * i as f32 / n as f32).collect()
    }

    #[test]
    fn the_greatest_is_the_first_of_them() {
        for n in [1, 31, 32, 33, 1024, 1025, 5000] {
            let mut values = ramp(n, -9.0, -1.0);
            assert_eq!(argmax(&values), n - 1);
            values[n / 2] = 3.0;
            values[n - 1] = 3.0;
            assert_eq!(argmax(&values), n / 2);
            assert_eq!(argmax(&vec![f32::NEG_INFINITY; n]), 0);
        }
    }

    #[test]
    fn the_gate_is_silu_on_every_instruction_set() {
        let gate = ramp(1003, -95.0, 95.0);
        let run = |isa| {
            let mut up = vec![1.0; gate.len()];
            run_silu(isa, &gate, &mut up);
            up
        };
        let reference = run(Isa::Scalar);
        for (&g, &got) in gate.iter().zip(&reference) {
            let g = f64::from(g);
            let want = g / (1.0 + (-g).exp());
            assert!((f64::from(got) - want).abs() <= TOLERANCE * (want.abs() + 1e-3), "silu({g}) = {got}, not {want}");
        }
        for isa in Isa::available() {
            assert_eq!(run(isa), reference, "{isa:?}");
        }
    }

    #[test]
    fn a_normalised_row_has_unit_mean_square_on_every_instruction_set() {
        for width in [1, 16, 37, 576] {
            let x = ramp(width, -2.0, 3.0);
            let run = |isa| {
                let mut y = vec![0.0; width];
                run_norm(isa, &x, &vec![2.0; width], 1e-6, &mut y);
                y
            };
            let reference = run(Isa::Scalar);
            let mean = reference.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>() / width as f64;
            assert!((mean - 4.0).abs() < 1e-4, "mean square {mean} at width {width}");
            for isa in Isa::available() {
                assert_eq!(run(isa), reference, "{isa:?}");
            }
        }
    }

    #[test]
    fn scaled_sums_and_inner_products_are_the_definitions_on_every_instruction_set() {
        for length in [0, 1, 16, 37, 576] {
            let (a, b) = (ramp(length, -2.0, 3.0), ramp(length, 1.0, -1.0));
            let run = |isa| {
                let mut y = b.clone();
                run_axpy(isa, &mut y, 0.5, &a);
                (y, run_dot(isa, &a, &b))
            };
            let (y, dot) = run(Isa::Scalar);
            assert!(y.iter().zip(&a).zip(&b).all(|((y, a), b)| (y - (b + 0.5 * a)).abs() < 1e-6), "{length}");
            let want: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(dot) - want).abs() < 1e-6 * (length as f64 + 1.0) * 3.0, "{length}: {dot} {want}");
            for isa in Isa::available() {
                assert_eq!(run(isa), (y.clone(), dot), "{isa:?}");
            }
        }
    }

    #[test]
    fn a_quarter_turn_swaps_the_halves_of_a_head() {
        let mut x = vec![1.0, 2.0, 3.0, 4.0];
        rope(&mut x, 4, &[0.0, 0.0], &[1.0, 1.0]);
        assert_eq!(x, [-3.0, -4.0, 1.0, 2.0]);
    }
}
