//! Choosing the next token.

use crate::{Constraint, Error, Extras, Sampling, Scored, Scores};
use bitdelta_kernels::argmax;
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// One request's way of choosing, with its own generator: a request's choices never depend on its company.
pub(crate) struct Sampler {
    sampling: Sampling,
    rng: StdRng,
    constraint: Option<Box<dyn Constraint>>,
    scores: Option<Scores>,
    /// Of the token that was chosen last, until it is accepted.
    scored: Option<Scored>,
    /// Why the constraint cannot go on.
    failure: Option<String>,
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };

    /// # Errors
    /// [`Error::InvalidParameter`] naming the field that is out of range.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let check = |name, value: f32, inside: bool, expected| {
            let error = Error::InvalidParameter { name, value: value.to_string(), expected };
            if inside { Ok(()) } else { Err(error) }
        };
        check("temperature", self.temperature, (0.0..=100.0).contains(&self.temperature), "0 to 100")?;
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0, at most 1")
    }
}

impl Sampler {
    pub fn new(sampling: Sampling, extras: Extras) -> Self {
        let rng = StdRng::seed_from_u64(sampling.seed);
        let Extras { scores, constraint } = extras;
        Self { sampling, rng, constraint, scores, scored: None, failure: None }
    }

    /// The next token, of those that the constraint allows.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        let token = match &mut self.constraint {
            None => self.draw(logits),
            Some(constraint) => {
                let mut allowed = logits.to_vec();
                self.failure = constraint.allow(&mut allowed).err();
                self.draw(&allowed)
            }
        };
        self.scored = self.scores.as_ref().map(|scores| Scored::of(logits, token, scores.top));
        token
    }

    /// Notes that the chosen token is part of the answer.
    ///
    /// # Errors
    /// [`Error::Constraint`].
    pub fn accept(&mut self, token: u32) -> Result<(), Error> {
        if let (Some(scores), Some(scored)) = (&mut self.scores, self.scored.take()) {
            (scores.sink)(scored);
        }
        let fits = self.constraint.as_mut().map_or(Ok(()), |constraint| constraint.accept(token));
        fits.map_err(|reason| Error::Constraint { reason })
    }

    /// Why the token that was chosen last means nothing.
    pub fn failure(&mut self) -> Option<Error> {
        self.failure.take().map(|reason| Error::Constraint { reason })
    }

    /// A token drawn from softmax(logits / temperature), cut to the `top_k` likeliest and then to the smallest set whose
    /// probability reaches `top_p` (Holtzman et al. 2020); the likeliest at temperature 0.
    fn draw(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_p, top_k, .. } = self.sampling;
        let likeliest = argmax(logits) as u32;
        if temperature == 0.0 || top_k == 1 {
            return likeliest;
        }
        let greatest = logits[likeliest as usize];
        let weight = |logit: f32| ((logit - greatest) / temperature).exp();
        let mut candidates: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|logit| weight(*logit))).collect();
        if (top_k > 0 && top_k < candidates.len()) || top_p < 1.0 {
            // Likeliest first; equals in the order of the vocabulary, so that a seed means one answer.
            candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            candidates.truncate(if top_k > 0 { top_k } else { usize::MAX });
            let enough = top_p * candidates.iter().map(|(_, w)| w).sum::<f32>();
            let mut sum = 0.0;
            let kept = candidates.iter().position(|(_, w)| {
                sum += w;
                sum >= enough
            });
            candidates.truncate(kept.map_or(usize::MAX, |last| last + 1));
        }
        let mut left = self.rng.random::<f32>() * candidates.iter().map(|(_, w)| w).sum::<f32>();
        for (token, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        likeliest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 3.0];

    fn draws(sampling: Sampling) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, Extras::default());
        (0..2000).map(|_| sampler.choose(&LOGITS)).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_greatest() {
        assert!(draws(Sampling::GREEDY).iter().all(|token| *token == 1));
    }

    #[test]
    fn a_seed_means_one_sequence_of_choices() {
        let seeded = |seed| draws(Sampling { temperature: 1.0, seed, ..Sampling::GREEDY });
        assert_eq!(seeded(3), seeded(3));
        assert_ne!(seeded(3), seeded(4));
    }

    #[test]
    fn draws_follow_the_softmax() {
        let drawn = draws(Sampling { temperature: 1.0, seed: 1, ..Sampling::GREEDY });
        let total: f32 = LOGITS.iter().map(|l| l.exp()).sum();
        for (token, logit) in (0u32..).zip(LOGITS) {
            let share = drawn.iter().filter(|t| **t == token).count() as f32 / drawn.len() as f32;
            // Four standard deviations of a share of 2,000 draws.
            assert!((share - logit.exp() / total).abs() < 0.045, "token {token}: {share}");
        }
    }

    #[test]
    fn top_k_and_top_p_leave_out_the_unlikely() {
        let top_k = draws(Sampling { temperature: 1.0, top_k: 2, ..Sampling::GREEDY });
        assert!(top_k.iter().all(|token| [1, 3].contains(token)));
        let top_p = draws(Sampling { temperature: 1.0, top_p: 0.5, ..Sampling::GREEDY });
        assert!(top_p.iter().all(|token| [1, 3].contains(token)));
        assert!(top_p.contains(&3), "0.5 is not reached by one of two equals that hold 0.42 each");
    }

    /// Allows the tokens that were not chosen yet.
    struct EachOnce(Vec<u32>);

    impl Constraint for EachOnce {
        fn allow(&mut self, logits: &mut [f32]) -> Result<(), String> {
            self.0.iter().for_each(|token| logits[*token as usize] = f32::NEG_INFINITY);
            if self.0.len() < logits.len() { Ok(()) } else { Err("none is left".to_owned()) }
        }

        fn accept(&mut self, token: u32) -> Result<(), String> {
            self.0.push(token);
            Ok(())
        }
    }

    #[test]
    fn a_constraint_leaves_the_likeliest_of_what_it_allows_and_scores_stay_the_models() {
        let (sender, scored) = std::sync::mpsc::channel();
        let sink = Box::new(move |scored: Scored| sender.send((scored.token, scored.logprob)).expect("a receiver"));
        let extras = Extras { scores: Some(Scores { top: 0, sink }), constraint: Some(Box::new(EachOnce(Vec::new()))) };
        let mut sampler = Sampler::new(Sampling::GREEDY, extras);
        for expected in [1, 3, 2, 0] {
            let token = sampler.choose(&LOGITS);
            assert_eq!((token, sampler.failure().is_none()), (expected, true));
            sampler.accept(token).expect("allowed");
        }
        sampler.choose(&LOGITS);
        assert!(sampler.failure().is_some_and(|error| error.to_string().contains("none is left")));
        let scored: Vec<(u32, f32)> = scored.try_iter().collect();
        assert_eq!(scored.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3, 2, 0]);
        let total: f32 = scored.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        for (sampling, name) in [
            (Sampling { temperature: -1.0, ..Sampling::GREEDY }, "temperature"),
            (Sampling { temperature: f32::NAN, ..Sampling::GREEDY }, "temperature"),
            (Sampling { top_p: 0.0, ..Sampling::GREEDY }, "top_p"),
        ] {
            let error = sampling.validate().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
