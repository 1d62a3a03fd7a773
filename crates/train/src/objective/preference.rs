//! Learning from preferences: DPO and its kin on pairs, KTO on judged answers.
//!
//! With π the model, ref the base, and log p(y) = Σ over the answer's tokens, r(y) = log π(y) − log ref(y). DPO (Rafailov
//! et al. 2023) lowers −ln σ(β·(r(chosen) − r(rejected))); KTO (Ethayarajh et al. 2024) raises σ(β·(r − z)) of good
//! answers and σ(β·(z − r)) of bad ones, z being the model's divergence from the base, estimated by r of answers that
//! belong to other prompts. Definitions and averages are those of TRL, which LLaMA-Factory uses.
//!
//! A loss of Σ log p has one weight for all tokens of an answer as its gradient: the tokens' losses are found first, then the
//! weights follow, and the head is multiplied once more with them.

use super::{Item, Score, pack_with_rows};
use crate::{
    Error, TrainConfig,
    batch::Example,
    config::PreferenceLoss,
    graph::{
        Graph,
        loss::{cross_entropy, weighted_cross_entropy},
    },
};

/// Two answers to one prompt.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The prompt with the better answer; only that answer's tokens count.
    pub chosen: Example,
    /// The prompt with the worse one.
    pub rejected: Example,
    /// log ref of both, once prepared.
    pub reference: [f64; 2],
}

/// An answer that was good or bad.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The prompt with the answer; only the answer's tokens count.
    pub answer: Example,
    /// The prompt with the answer to another one.
    pub mismatched: Example,
    /// Whether the answer was good.
    pub good: bool,
    /// log ref of both, once prepared.
    pub reference: [f64; 2],
}

/// log p of the counted tokens of each example.
fn log_likelihoods<'a>(graph: &Graph, examples: impl Iterator<Item = &'a Example> + Clone) -> Result<Vec<f64>, Error> {
    let (batch, rows) = pack_with_rows(examples);
    let losses = cross_entropy(&graph.hidden(&batch)?, graph.head(), &batch.targets, None)?.of_rows;
    Ok(rows.into_iter().map(|rows| -losses[rows].iter().sum::<f64>()).collect())
}

/// Fills in the references of `items`.
pub(super) fn prepare(graph: &Graph, items: &mut [Item]) -> Result<(), Error> {
    for item in items {
        match item {
            Item::Pair(Pair { chosen, rejected, reference })
            | Item::Judged(Judged { answer: chosen, mismatched: rejected, reference, .. }) => {
                let found = log_likelihoods(graph, [&*chosen, &*rejected].into_iter())?;
                reference.copy_from_slice(&found);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Pairs: `config.pref_loss` of each, and `config.pref_ftx` times the mean loss of the chosen answer's tokens.
pub(super) fn pairs(graph: &Graph, config: &TrainConfig, pairs: &[&Pair], scale: Option<f32>) -> Result<Score, Error> {
    let (batch, rows) = pack_with_rows(pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]));
    graph.pass_by(&batch, scale.is_some(), |hidden, head| {
        let losses = cross_entropy(hidden, head, &batch.targets, None)?.of_rows;
        let mut score = Score { ranked: pairs.len(), ..Score::default() };
        let mut weights = vec![0.0; losses.len()];
        for (pair, rows) in pairs.iter().zip(rows.chunks(2)) {
            let likelihood = |side: usize| -losses[rows[side].clone()].iter().sum::<f64>();
            let counts = [rows[0].len() as f64, rows[1].len() as f64];
            // IPO is defined on means over the tokens, the others on sums.
            let of = if config.pref_loss == PreferenceLoss::Ipo { counts } else { [1.0; 2] };
            let reward = |side: usize| (likelihood(side) - pair.reference[side]) / of[side];
            let margin = reward(0) - reward(1);
            let (loss, slope) = config.pref_loss.of_margin(margin, config.pref_beta, config.dpo_label_smoothing);
            score.loss += loss - config.pref_ftx * likelihood(0) / counts[0];
            score.right += usize::from(margin > 0.0);
            // The weight is that of −log p: the loss falls where the margin rises.
            let scale = f64::from(scale.unwrap_or_default());
            weights[rows[0].clone()].fill((scale * (config.pref_ftx / counts[0] - slope / of[0])) as f32);
            weights[rows[1].clone()].fill((scale * slope / of[1]) as f32);
        }
        let gradient = match scale {
            Some(_) => weighted_cross_entropy(hidden, head, &batch.targets, &weights)?.gradient,
            None => None,
        };
        Ok((score, gradient))
    })
}

/// Judged answers: KTO.
pub(super) fn judged(
    graph: &Graph,
    config: &TrainConfig,
    judged: &[&Judged],
    scale: Option<f32>,
) -> Result<Score, Error> {
    // No gradient goes through the estimate of the divergence.
    let mismatched = log_likelihoods(graph, judged.iter().map(|one| &one.mismatched))?;
    let rises = mismatched.iter().zip(judged).map(|(now, one)| now - one.reference[1]);
    let divergence = (rises.sum::<f64>() / judged.len() as f64).max(0.0);
    let (batch, rows) = pack_with_rows(judged.iter().map(|one| &one.answer));
    graph.pass_by(&batch, scale.is_some(), |hidden, head| {
        let losses = cross_entropy(hidden, head, &batch.targets, None)?.of_rows;
        let mut score = Score { ranked: judged.len(), ..Score::default() };
        let mut weights = vec![0.0; losses.len()];
        for (one, rows) in judged.iter().zip(rows) {
            let reward = -losses[rows.clone()].iter().sum::<f64>() - one.reference[0];
            let (sign, factor) =
                if one.good { (1.0, config.kto_chosen_weight) } else { (-1.0, config.kto_rejected_weight) };
            let value = sigmoid(sign * config.pref_beta * (reward - divergence));
            score.loss += factor * (1.0 - value);
            score.right += usize::from((reward > divergence) == one.good);
            let slope = factor * sign * config.pref_beta * value * (1.0 - value);
            weights[rows].fill((f64::from(scale.unwrap_or_default()) * slope) as f32);
        }
        let gradient = match scale {
            Some(_) => weighted_cross_entropy(hidden, head, &batch.targets, &weights)?.gradient,
            None => None,
        };
        Ok((score, gradient))
    })
}

impl PreferenceLoss {
    /// The loss of one pair and its derivative by the margin r(chosen) − r(rejected). `smoothing` is the share of pairs
    /// whose order is taken to be wrong.
    fn of_margin(self, margin: f64, beta: f64, smoothing: f64) -> (f64, f64) {
        let x = beta * margin;
        match self {
            Self::Sigmoid => {
                let loss = (1.0 - smoothing) * soft_plus(-x) + smoothing * soft_plus(x);
                let slope = beta * (smoothing * sigmoid(x) - (1.0 - smoothing) * sigmoid(-x));
                (loss, slope)
            }
            Self::Hinge => ((1.0 - x).max(0.0), if x < 1.0 { -beta } else { 0.0 }),
            Self::Ipo => {
                let distance = margin - 0.5 / beta;
                (distance * distance, 2.0 * distance)
            }
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// ln(1 + eˣ), safe for large x.
fn soft_plus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_has_the_slope_it_says() {
        for kind in [PreferenceLoss::Sigmoid, PreferenceLoss::Hinge, PreferenceLoss::Ipo] {
            for margin in [-30.0, -2.0, 0.0, 3.0, 25.0] {
                let at = |margin| kind.of_margin(margin, 0.2, 0.1).0;
                let slope = (at(margin + 1e-5) - at(margin - 1e-5)) / 2e-5;
                let found = kind.of_margin(margin, 0.2, 0.1).1;
                assert!((slope - found).abs() < 1e-5, "{kind:?} at {margin}: {found}, not {slope}");
            }
        }
        let (loss, slope) = PreferenceLoss::Sigmoid.of_margin(0.0, 0.1, 0.0);
        assert!((loss - 2f64.ln()).abs() < 1e-12 && (slope + 0.05).abs() < 1e-12);
        assert!(PreferenceLoss::Sigmoid.of_margin(-1e9, 1.0, 0.0).0.is_finite());
    }
}
