//! What a request may want beside its text: how likely each token was, and answers of a certain form.

/// Wishes beyond a [`crate::Request`]; the default is none.
#[derive(Default)]
pub struct Extras {
    /// How likely the tokens were.
    pub scores: Option<Scores>,
    /// What the answer must look like.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// Asks for log-probabilities.
pub struct Scores {
    /// So many likeliest tokens at each place, beside the chosen one.
    pub top: usize,
    /// Receives each token of the answer before its text, on the engine's thread; it must not block.
    pub sink: Box<dyn FnMut(Scored) + Send>,
}

/// One chosen token under the model's own distribution, before temperature and constraint.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// Its natural logarithm of probability.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first; equals in the order of the vocabulary.
    pub top: Vec<(u32, f32)>,
}

/// A form that an answer must have, as a grammar decides token by token.
pub trait Constraint: Send {
    /// Sets the logits of tokens that cannot follow to −∞ and leaves one at least.
    ///
    /// # Errors
    /// The reason, when no token can follow or the form costs more than it may.
    fn allow(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// Takes the chosen token, which is not one that ends the answer.
    ///
    /// # Errors
    /// The reason, when it does not fit.
    fn accept(&mut self, token: u32) -> Result<(), String>;
}

impl Scored {
    pub(crate) fn of(logits: &[f32], token: u32, top: usize) -> Self {
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // In f64: a vocabulary's sum in f32 loses digits that a client would see.
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - greatest).exp()).sum();
        let norm = f64::from(greatest) + sum.ln();
        let logprob = |token: u32| (f64::from(logits[token as usize]) - norm) as f32;
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let top = top.min(order.len());
        if top > 0 {
            order.select_nth_unstable_by(top - 1, likelier);
        }
        order.truncate(top);
        order.sort_unstable_by(likelier);
        Self { token, logprob: logprob(token), top: order.into_iter().map(|token| (token, logprob(token))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_the_log_softmax_and_its_likeliest() {
        let logits = [1.0, 3.0, 2.0, 3.0];
        let total: f32 = logits.iter().map(|l: &f32| l.exp()).sum();
        let scored = Scored::of(&logits, 2, 3);
        assert!((scored.logprob - (2.0 - total.ln())).abs() < 1e-6);
        assert_eq!(scored.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3, 2]);
        assert!((scored.top[0].1 - (3.0 - total.ln())).abs() < 1e-6);
        assert!(Scored::of(&logits, 0, 0).top.is_empty());
        assert_eq!(Scored::of(&logits, 0, 99).top.len(), 4);
    }
}
