//! Tokens per second of one training step's forward and backward pass, on random weights of SmolLM2's shapes.
//!
//! `cargo run -p bitdelta-train --example graph_speed -- [sequences] [length]`

use bitdelta_model::{Architecture, ModelConfig, RopeScaling};
use bitdelta_train::{
    Error,
    graph::{Adaptation, Graph, PackedBatch, Weights},
};
use std::time::Instant;

/// Weights whose values do not matter, as long as they are ordinary numbers.
struct Ramp<'a>(&'a ModelConfig);

impl Weights for Ramp<'_> {
    fn has(&self, name: &str) -> bool {
        !name.ends_with("bias")
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, Error> {
        let c = self.0;
        let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let count = match name {
            _ if name.contains("norm") => return Ok(vec![1.0; c.hidden]),
            _ if name.contains("embed") => c.vocab * c.hidden,
            _ if name.contains("q_proj") || name.contains("o_proj") => queries * c.hidden,
            _ if name.contains("k_proj") || name.contains("v_proj") => keys * c.hidden,
            _ => c.intermediate * c.hidden,
        };
        Ok((0..count).map(|i| ((i * 7919) % 1009) as f32 / 10_000.0 - 0.05).collect())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<usize>().unwrap_or(8));
    let (sequences, length) = (arguments.next().unwrap_or(8), arguments.next().unwrap_or(64));
    let config = ModelConfig {
        architecture: Architecture::Llama,
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        intermediate: 1536,
        vocab: 49_152,
        rms_eps: 1e-5,
        rope_theta: 100_000.0,
        rope_scaling: RopeScaling::None,
        tied: true,
        qk_norm: false,
        attention_bias: false,
        mlp_bias: false,
        max_positions: 8192,
        eos: vec![2],
        bos: None,
    };
    let tokens: Vec<u32> = (0..sequences * length).map(|i| (i * 31 % 49_152) as u32).collect();
    let rows: Vec<usize> = (0..tokens.len()).filter(|i| i % length != length - 1).collect();
    let targets = rows.iter().map(|&row| tokens[row + 1]).collect();
    let batch = PackedBatch { starts: (0..=sequences).map(|s| s * length).collect(), rows, targets, tokens };
    for (name, adaptation) in [
        ("full", Adaptation::Full),
        ("low rank 16", Adaptation::LowRank { rank: 16, scale: 1.0, seed: 0 }),
        ("low rank 4", Adaptation::LowRank { rank: 4, scale: 1.0, seed: 0 }),
    ] {
        let graph = Graph::new(&config, &Ramp(&config), adaptation, length, false)?;
        graph.accumulate(&batch, 1e-3)?;
        let rounds = 3;
        let start = Instant::now();
        for _ in 0..rounds {
            graph.accumulate(&batch, 1e-3)?;
        }
        let seconds = start.elapsed().as_secs_f64() / f64::from(rounds);
        let tokens_per_second = batch.tokens.len() as f64 / seconds;
        #[allow(clippy::print_stdout)]
        {
            println!("{name}: {tokens_per_second:.0} tok/s ({seconds:.2} s a batch of {sequences}×{length})");
        }
    }
    Ok(())
}
