//! GRPO: answers are drawn from what has been learnt so far, rewarded by the user's program, and compared in groups.
//!
//! To each prompt of a step K answers are drawn; an answer's advantage is its reward less its group's mean, over the
//! group's deviation (Shao et al. 2024). There is no value network, and since every answer is learnt from once, right after it
//! was drawn, the ratio to the drawing model is 1 and nothing needs clipping. A group whose answers are all rewarded
//! alike says nothing and is left out.

use super::{result, reward};
use crate::{
    Error, TrainConfig,
    batch::Example,
    graph::Graph,
    objective::{Asked, Item, Rewarded},
    progress::Silent,
    sample::{Drawing, Sampler},
};
use bitdelta_delta::{Info, Variant};
use bitdelta_engine::BaseDtype;
use bitdelta_model::{
    Base,
    chat::{Message, Template},
};
use std::sync::atomic::AtomicBool;

/// Bits of the factors that answer: fine enough that the answers are those of what is learnt.
const BITS: u8 = 8;
/// Added to a group's deviation, as in TRL.
const LEAST_DEVIATION: f64 = 1e-4;

/// Draws and rewards.
pub(super) struct Explorer<'a> {
    base: &'a Base,
    template: &'a Template,
    config: &'a TrainConfig,
    sampler: Sampler,
    /// What ends an answer, as the template writes it.
    end: Option<u32>,
}

/// What one step's prompts gave.
pub(super) struct Explored {
    /// Answers to learn from.
    pub items: Vec<Item>,
    /// Mean reward of all answers.
    pub reward: f64,
}

impl<'a> Explorer<'a> {
    /// For prompts and answers of at most `longest` tokens together.
    pub fn new(base: &'a Base, template: &'a Template, config: &'a TrainConfig, longest: usize) -> Result<Self, Error> {
        let turn = |role: &str| Message { role: role.into(), content: "a".into() };
        let shown = Example::last_answer(&base.tokenizer, template, &[turn("user"), turn("assistant")])?;
        let end = shown.counted().last().copied().filter(|token| base.config.eos.contains(token));
        Ok(Self { base, template, config, sampler: Sampler::new(base, BaseDtype::Int8, longest)?, end })
    }

    /// Answers to `asked` by what `graph` has learnt, with their advantages. `None` when `stop` was raised.
    pub fn explore(
        &self,
        graph: &Graph,
        asked: &[&Asked],
        step: usize,
        stop: &AtomicBool,
    ) -> Result<Option<Explored>, Error> {
        let config = self.config;
        let group = config.grpo_group_size;
        let linears = result::snapshot(self.base, graph, BITS)?;
        let id = self.base.tokenizer.template_id(self.template);
        let info = Info::new(self.base.fingerprint(), &self.base.name, config.bitdelta()?, &id);
        let variant = self.sampler.prepare(Variant::new(info, linears))?;
        let prompts: Vec<Vec<u32>> =
            asked.iter().flat_map(|asked| std::iter::repeat_n(&asked.prompt.tokens, group)).cloned().collect();
        let drawing = Drawing { temperature: config.grpo_temperature, top_p: 1.0, max_tokens: config.grpo_answer_len };
        // No two steps draw with the same seeds.
        let seed = config.seed.wrapping_add((step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let found = self.sampler.answers(&prompts, Some(&variant), drawing, seed, &Silent, stop)?;
        let Some(answers) = found else { return Ok(None) };

        let rewards = reward::of(&config.reward_command, asked, &answers)?;
        let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
        let mut explored = Explored { items: Vec::new(), reward: mean };
        let groups = answers.chunks(group).zip(rewards.chunks(group));
        for (asked, (answers, rewards)) in asked.iter().zip(groups) {
            let Some(advantages) = advantages(rewards) else { continue };
            for (answer, advantage) in answers.iter().zip(advantages) {
                // The tokens that were drawn, not those that their text would be encoded as.
                let end = self.end.filter(|_| answer.ended);
                let tokens: Vec<u32> = asked.prompt.tokens.iter().chain(&answer.tokens).copied().chain(end).collect();
                let counts = (0..tokens.len()).map(|at| at >= asked.prompt.tokens.len()).collect();
                let example = Example { tokens, counts };
                if example.targets() > 0 {
                    explored.items.push(Item::Rewarded(Rewarded { example, advantage }));
                }
            }
        }
        Ok(Some(explored))
    }
}

/// What each reward is worth beside its group's; `None` when all are alike.
fn advantages(rewards: &[f64]) -> Option<Vec<f64>> {
    let count = rewards.len() as f64;
    let mean = rewards.iter().sum::<f64>() / count;
    let deviation = (rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt();
    (deviation > 1e-9).then(|| rewards.iter().map(|reward| (reward - mean) / (deviation + LEAST_DEVIATION)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantages_are_relative_to_the_group() {
        assert_eq!(advantages(&[0.5, 0.5, 0.5]), None);
        let found = advantages(&[0.0, 1.0, 2.0]).expect("a spread");
        assert!(found.iter().sum::<f64>().abs() < 1e-12);
        assert!((found[2] - 1.0 / (1.0 + LEAST_DEVIATION)).abs() < 1e-12, "the deviation of 0, 1, 2 is 1");
    }
}
