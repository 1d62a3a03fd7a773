//! KL(teacher ‖ student) of the next token's distribution, over a large vocabulary, without ever holding all logits.
//!
//! A teacher's logits are too large to keep: 49,152 floats a position on SmolLM2, 196 KB. Its last hidden state, 576
//! floats, with its frozen head makes the same logits again, so that is what a cache holds: 85 times fewer bytes for one
//! more product. Rows are taken a block at a time, as in `loss.rs`: both sides' logits are formed, turned into the loss
//! and, in place, into the gradient of the student's logits, p_student − p_teacher, and multiplied back at once.

use super::{
    loss::ROWS_PER_BLOCK,
    matrix::{Matrix, exp, product},
};
use bitdelta_kernels::widely;
use rayon::prelude::*;

/// Values of a row that are summed in f32 before they go into an f64 sum.
const VALUES_PER_SUM: usize = 1024;

/// Σ of the divergences of all rows, and the gradient of the student's hidden states, if asked for.
#[derive(Debug)]
pub struct Divergence {
    /// Σ KL(teacher ‖ student) in nats, not scaled.
    pub loss: f64,
    /// `scale` times the gradient of that sum, (rows, student's width).
    pub gradient: Option<Matrix>,
}

/// student_hidden (rows, width), teacher_hidden (rows, teacher's width), both after the final norm; heads (vocabulary, width)
/// of each. Both vocabularies are the same. `scale` asks for the gradient times it.
///
/// # Errors
/// What candle's product reports.
pub fn kl(
    student_hidden: &Matrix,
    teacher_hidden: &Matrix,
    head_student: &Matrix,
    head_teacher: &Matrix,
    scale: Option<f32>,
) -> candle_core::Result<Divergence> {
    let rows = student_hidden.rows();
    assert_eq!(rows, teacher_hidden.rows(), "a teacher's row for each of the student's");
    assert_eq!(head_student.rows(), head_teacher.rows(), "one vocabulary");
    let mut loss = 0.0;
    let mut gradient = scale.map(|_| Vec::with_capacity(rows * student_hidden.cols()));
    for from in (0..rows).step_by(ROWS_PER_BLOCK) {
        let to = (from + ROWS_PER_BLOCK).min(rows);
        let mut student = product(student_hidden.view().rows(from..to), head_student.t())?;
        let teacher = product(teacher_hidden.view().rows(from..to), head_teacher.t())?;
        let cols = student.cols();
        let losses: Vec<f64> = student
            .values_mut()
            .par_chunks_mut(cols)
            .zip(teacher.values().par_chunks(cols))
            .map(|(student, teacher)| {
                widely(
                    #[inline(always)]
                    || row(student, teacher, scale),
                )
            })
            .collect();
        // One after another, so that the sum is the same on any number of threads.
        loss += losses.iter().sum::<f64>();
        if let Some(gradient) = &mut gradient {
            gradient.extend_from_slice(product(student.view(), head_student.view())?.values());
        }
    }
    let gradient = gradient.map(|values| Matrix::new(rows, student_hidden.cols(), values));
    Ok(Divergence { loss, gradient })
}

/// One row's divergence; with a scale, the student's logits become scale · (p_student − p_teacher).
#[inline(always)]
fn row(student: &mut [f32], teacher: &[f32], scale: Option<f32>) -> f64 {
    let (log_student, log_teacher) = (log_sum(student), log_sum(teacher));
    let (log_student, log_teacher) = (log_student as f32, log_teacher as f32);
    let mut sum = 0.0f64;
    for (student, teacher) in student.chunks_mut(VALUES_PER_SUM).zip(teacher.chunks(VALUES_PER_SUM)) {
        let mut lanes = [0.0f32; 16];
        for (student, teacher) in student.chunks_mut(16).zip(teacher.chunks(16)) {
            for ((student, teacher), lane) in student.iter_mut().zip(teacher).zip(&mut lanes) {
                let (log_q, log_p) = (*student - log_student, teacher - log_teacher);
                let p = exp(log_p);
                *lane += p * (log_p - log_q);
                if let Some(scale) = scale {
                    *student = scale * (exp(log_q) - p);
                }
            }
        }
        sum += f64::from(lanes.iter().sum::<f32>());
    }
    sum
}

/// ln Σ exp(logit), from the largest down.
#[inline(always)]
fn log_sum(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for block in logits.chunks(VALUES_PER_SUM) {
        let mut lanes = [0.0f32; 16];
        for values in block.chunks(16) {
            for (value, lane) in values.iter().zip(&mut lanes) {
                *lane += exp(*value - largest);
            }
        }
        sum += f64::from(lanes.iter().sum::<f32>());
    }
    f64::from(largest) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    /// Both sides are f32 sums; their terms are below 1 and some thousands of them make a sum.
    const TOLERANCE: f64 = 2e-5;

    fn random(rng: &mut StdRng, rows: usize, cols: usize, spread: f32) -> Matrix {
        Matrix::new(rows, cols, (0..rows * cols).map(|_| rng.random_range(-spread..spread)).collect())
    }

    /// The definition in f64: KL and its gradient from logits made one by one.
    fn naive(student: &Matrix, teacher: &Matrix, head_s: &Matrix, head_t: &Matrix) -> (f64, Vec<f64>) {
        let log_p = |hidden: &[f32], head: &Matrix| -> Vec<f64> {
            let dot = |o: usize| hidden.iter().zip(head.row(o)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let logits: Vec<f64> = (0..head.rows()).map(dot).collect();
            let sum = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
            logits.iter().map(|x| x - sum).collect()
        };
        let (mut loss, mut gradient) = (0.0, Vec::new());
        for row in 0..student.rows() {
            let (q, p) = (log_p(student.row(row), head_s), log_p(teacher.row(row), head_t));
            loss += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            gradient.extend((0..student.cols()).map(|c| {
                let terms = p.iter().zip(&q).enumerate();
                terms.map(|(o, (p, q))| (q.exp() - p.exp()) * f64::from(head_s.row(o)[c])).sum::<f64>()
            }));
        }
        (loss, gradient)
    }

    #[test]
    fn loss_and_gradient_are_the_definitions_over_more_than_one_block() {
        let mut rng = StdRng::seed_from_u64(11);
        let (rows, vocabulary) = (ROWS_PER_BLOCK + 7, 37);
        let (student, teacher) = (random(&mut rng, rows, 12, 1.0), random(&mut rng, rows, 9, 1.0));
        let (head_s, head_t) = (random(&mut rng, vocabulary, 12, 1.5), random(&mut rng, vocabulary, 9, 1.5));
        let (want, want_gradient) = naive(&student, &teacher, &head_s, &head_t);
        let scale = 0.3;
        let found = kl(&student, &teacher, &head_s, &head_t, Some(scale)).expect("a divergence");
        assert!((found.loss - want).abs() < TOLERANCE * want, "{} {want}", found.loss);
        let gradient = found.gradient.expect("asked for");
        for (found, want) in gradient.values().iter().zip(&want_gradient) {
            let want = want * f64::from(scale);
            assert!((f64::from(*found) - want).abs() < TOLERANCE, "{found} {want}");
        }
        let without = kl(&student, &teacher, &head_s, &head_t, None).expect("a divergence");
        assert_eq!(without.loss, found.loss, "asking for the gradient does not change the loss");
        assert!(without.gradient.is_none());
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let mut rng = StdRng::seed_from_u64(12);
        let (student, teacher, head) =
            (random(&mut rng, 3, 8, 1.0), random(&mut rng, 3, 8, 1.0), random(&mut rng, 29, 8, 1.0));
        let gradient = kl(&student, &teacher, &head, &head, Some(1.0)).expect("ok").gradient.expect("asked for");
        let direction = random(&mut rng, 3, 8, 1.0);
        let at = |step: f32| {
            let mut moved = student.clone();
            moved.add_to_columns(0..8, &direction, step);
            kl(&moved, &teacher, &head, &head, None).expect("ok").loss
        };
        let slope = (at(0.01) - at(-0.01)) / 0.02;
        let want: f64 =
            gradient.values().iter().zip(direction.values()).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!((slope - want).abs() < 2e-3 * want.abs(), "{slope} {want}");
    }

    #[test]
    fn equal_sides_have_no_divergence_and_no_gradient_however_large_the_logits() {
        let mut rng = StdRng::seed_from_u64(13);
        let (hidden, head) = (random(&mut rng, 2, 16, 8.0), random(&mut rng, 301, 16, 8.0));
        let found = kl(&hidden, &hidden, &head, &head, Some(1.0)).expect("ok");
        assert_eq!(found.loss, 0.0);
        assert!(found.gradient.expect("asked for").values().iter().all(|value| *value == 0.0));
    }
}
