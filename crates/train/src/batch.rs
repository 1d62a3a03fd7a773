//! From conversations to packed batches: tokens, what counts, and the order.

use crate::{Error, TrainConfig, graph::PackedBatch};
use bitdelta_model::chat::{Message, Template, Tokenizer};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

/// One conversation as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Tokens, at most `cutoff_len`.
    pub tokens: Vec<u32>,
    /// Whether the token is to be predicted.
    pub counts: Vec<bool>,
}

impl Example {
    /// Targets: tokens that count and have one before them.
    pub fn targets(&self) -> usize {
        self.counts.iter().skip(1).filter(|counts| **counts).count()
    }

    /// Tokenises turns with the model's template; answers count, or what `config` says. Whole: see [`Example::cut`].
    ///
    /// # Errors
    /// When the template cannot render the turns; the error names which.
    pub fn new(
        tokenizer: &Tokenizer,
        template: &Template,
        messages: &[Message],
        config: &TrainConfig,
    ) -> Result<Self, Error> {
        let chat = tokenizer.encode_chat_masked(messages, template)?;
        let mut counts = chat.is_answer;
        if config.mask_history {
            keep_last_answer(&mut counts);
        }
        if config.train_on_prompt {
            counts.fill(true);
        }
        Ok(Self { tokens: chat.ids, counts })
    }

    /// The same of turns of which only the last, an answer, counts.
    ///
    /// # Errors
    /// As [`Example::new`].
    pub fn last_answer(tokenizer: &Tokenizer, template: &Template, messages: &[Message]) -> Result<Self, Error> {
        let chat = tokenizer.encode_chat_masked(messages, template)?;
        let mut counts = chat.is_answer;
        keep_last_answer(&mut counts);
        Ok(Self { tokens: chat.ids, counts })
    }

    /// The targets themselves.
    pub fn counted(&self) -> Vec<u32> {
        let counted = self.tokens.iter().zip(&self.counts).skip(1).filter(|(_, counts)| **counts);
        counted.map(|(token, _)| *token).collect()
    }

    /// Leaves the first `longest` tokens; true when there were more.
    pub fn cut(&mut self, longest: usize) -> bool {
        let longer = self.tokens.len() > longest;
        self.tokens.truncate(longest);
        self.counts.truncate(longest);
        longer
    }
}

/// Clears all but the last run of `true`.
fn keep_last_answer(counts: &mut [bool]) {
    let last = counts.iter().rposition(|counts| *counts).unwrap_or(0);
    let start = counts[..last].iter().rposition(|counts| !*counts).map_or(0, |before| before + 1);
    counts[..start].fill(false);
}

/// The order of `count` examples in `epoch`: the data's own, or shuffled by the seed. The same on every machine.
pub fn order(count: usize, epoch: usize, seed: u64, shuffle: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if shuffle {
        let mut rng = StdRng::seed_from_u64(seed.wrapping_add((epoch as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        order.shuffle(&mut rng);
    }
    order
}

/// Tokens of the longest of `examples`, 0 without any.
pub fn longest(examples: &[Example]) -> usize {
    examples.iter().map(|example| example.tokens.len()).max().unwrap_or(0)
}

/// Lays `examples` one after another.
pub fn pack<'a>(examples: impl IntoIterator<Item = &'a Example>) -> PackedBatch {
    let mut batch = PackedBatch { starts: vec![0], ..Default::default() };
    for example in examples {
        let start = batch.tokens.len();
        batch.tokens.extend(&example.tokens);
        for (i, _) in example.counts.iter().enumerate().skip(1).filter(|(_, counts)| **counts) {
            batch.rows.push(start + i - 1);
            batch.targets.push(example.tokens[i]);
        }
        batch.starts.push(batch.tokens.len());
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_the_token_after_its_row() {
        let first = Example { tokens: vec![5, 6, 7], counts: vec![true, false, true] };
        let second = Example { tokens: vec![8, 9], counts: vec![false, true] };
        let batch = pack([&first, &second]);
        assert_eq!(batch.tokens, [5, 6, 7, 8, 9]);
        assert_eq!(batch.starts, [0, 3, 5]);
        assert_eq!(batch.rows, [1, 3], "nothing predicts a sequence's first token");
        assert_eq!(batch.targets, [7, 9]);
    }

    #[test]
    fn masking_history_leaves_the_last_answer() {
        let mut counts = [false, true, true, false, true, true];
        keep_last_answer(&mut counts);
        assert_eq!(counts, [false, false, false, false, true, true]);
        let mut single = [false, true, true];
        keep_last_answer(&mut single);
        assert_eq!(single, [false, true, true]);
    }

    #[test]
    fn every_epoch_has_its_own_order_and_a_seed_repeats_it() {
        assert_eq!(order(50, 1, 42, true), order(50, 1, 42, true));
        assert_ne!(order(50, 1, 42, true), order(50, 2, 42, true));
        assert_eq!(order(4, 3, 42, false), [0, 1, 2, 3]);
        let mut sorted = order(50, 1, 7, true);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
}
