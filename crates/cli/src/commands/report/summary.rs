//! Medians over seeds, with the least and the greatest.

use super::{
    plan::Family,
    study::{Figures, Row},
};
use serde::Serialize;

/// One figure over the seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the two.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

/// One entry's figures; those that a run did not give are `None`.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The task.
    pub task: String,
    /// The entry's id.
    pub id: String,
    /// The entry's name.
    pub label: String,
    /// Its line in the plots.
    pub family: Family,
    /// Seeds.
    pub seeds: usize,
    /// Peak learning rate.
    pub rate: Option<f64>,
    /// Bytes of the file.
    pub bytes: Option<Spread>,
    /// 8 · bytes ÷ weights of the linears.
    pub bits_per_weight: Option<Spread>,
    /// (L_base − L_variant) / (L_base − L_finetuned)
    pub retention: Option<Spread>,
    /// KL(fine-tuned ‖ variant) of a token, in nats.
    pub kl: Option<Spread>,
    /// Mean −ln p of a held-out answer's token.
    pub loss: Option<Spread>,
    /// Share of held-out answers whose every token is the likeliest.
    pub exact: Option<Spread>,
    /// Relative rise of the loss on general conversations.
    pub drift: Option<Spread>,
    /// Seconds that making it took.
    pub seconds: Option<Spread>,
    /// Most memory that making it held, in bytes.
    pub peak_memory: Option<Spread>,
    /// Training tokens a second.
    pub training_tokens_per_second: Option<Spread>,
    /// Seconds to read, check and make it ready.
    pub load_seconds: Option<Spread>,
    /// Generated tokens a second of a full batch, a variant each.
    pub tokens_per_second: Option<Spread>,
}

impl Spread {
    /// `None` of no figures.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { 0.5 * (values[middle - 1] + values[middle]) };
        Some(Self { median, least, greatest })
    }
}

impl Summary {
    /// Of all runs of one entry.
    pub fn of(row: &Row) -> Self {
        let spread = |of: &dyn Fn(&Figures) -> Option<f64>| Spread::of(row.runs.iter().filter_map(of));
        let eval = |name: &'static str| spread(&move |run| run.eval[name].as_f64());
        Self {
            task: row.task.clone(),
            id: row.id.clone(),
            label: row.label.clone(),
            family: row.family,
            seeds: row.runs.len(),
            rate: row.runs.first().map(|run| run.rate),
            bytes: eval("bytes"),
            bits_per_weight: eval("bits_per_weight"),
            retention: eval("retention"),
            kl: eval("kl"),
            loss: eval("loss_variant"),
            exact: eval("exact"),
            drift: eval("drift"),
            seconds: spread(&|run| run.seconds),
            peak_memory: spread(&|run| run.peak_memory),
            training_tokens_per_second: spread(&|run| run.training_tokens_per_second),
            load_seconds: eval("load_seconds"),
            tokens_per_second: spread(&|run| run.tokens_per_second),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_and_both_ends() {
        let of_three = Spread::of([3.0, 1.0, 2.0]).expect("three");
        assert_eq!(of_three, Spread { median: 2.0, least: 1.0, greatest: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0]).expect("two").median, 2.5);
        assert_eq!(Spread::of([f64::NAN]), None);
    }
}
