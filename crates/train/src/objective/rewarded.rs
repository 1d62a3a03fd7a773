//! Learning from rewards: answers become likelier or less likely by what they are worth beside others.

use super::pack_with_rows;
use crate::{
    Error,
    batch::Example,
    data::Prompt,
    graph::{
        Graph,
        loss::{cross_entropy, weighted_cross_entropy},
    },
};
use bitdelta_model::chat::Message;

/// A prompt that is to be answered.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its tokens up to where the answer begins; none counts.
    pub prompt: Example,
    /// Its turns.
    pub messages: Vec<Message>,
    /// The answer in the data, for the program that rewards.
    pub reference: Option<String>,
    /// Most tokens of an answer.
    pub answer_len: usize,
}

/// An answer and what it is worth.
#[derive(Debug, Clone)]
pub struct Rewarded {
    /// The prompt with the answer; only the answer's tokens count.
    pub example: Example,
    /// Positive makes the answer likelier.
    pub advantage: f64,
}

impl Asked {
    /// A prompt with its tokens.
    pub fn new(prompt: Prompt, tokens: Vec<u32>, answer_len: usize) -> Self {
        let counts = vec![false; tokens.len()];
        Self { prompt: Example { tokens, counts }, messages: prompt.messages, reference: prompt.reference, answer_len }
    }

    /// The last turn.
    pub fn question(&self) -> &str {
        self.messages.last().map_or("", |message| &message.content)
    }
}

/// Σ of −advantage · mean log p of the answer's tokens.
pub(super) fn pass(graph: &Graph, rewarded: &[&Rewarded], scale: Option<f32>) -> Result<f64, Error> {
    let (batch, rows) = pack_with_rows(rewarded.iter().map(|one| &one.example));
    let mut weights = vec![0.0; batch.rows.len()];
    for (one, rows) in rewarded.iter().zip(&rows) {
        weights[rows.clone()].fill((one.advantage / rows.len() as f64) as f32);
    }
    graph.pass_by(&batch, scale.is_some(), |hidden, head| {
        let found = match scale {
            None => cross_entropy(hidden, head, &batch.targets, None)?,
            Some(scale) => {
                let scaled: Vec<f32> = weights.iter().map(|weight| weight * scale).collect();
                weighted_cross_entropy(hidden, head, &batch.targets, &scaled)?
            }
        };
        let loss = found.of_rows.iter().zip(&weights).map(|(loss, weight)| loss * f64::from(*weight)).sum();
        Ok((loss, found.gradient))
    })
}
