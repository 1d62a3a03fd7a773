//! Tiny random models for the tests of this crate.

use bitdelta_model::{Architecture, ModelConfig, RopeScaling};
use bitdelta_train::{Error, graph::Weights};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;

/// Tensors by name.
pub struct Tensors(pub BTreeMap<String, Vec<f32>>);

impl Weights for Tensors {
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, Error> {
        Ok(self.0[name].clone())
    }
}

/// Two layers, two query heads for each key head; Qwen3 has head norms and its own head, Llama is tied with biases.
pub fn config(architecture: Architecture) -> ModelConfig {
    let qwen = architecture == Architecture::Qwen3;
    ModelConfig {
        architecture,
        hidden: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        intermediate: 40,
        vocab: 50,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tied: !qwen,
        qk_norm: qwen,
        attention_bias: !qwen,
        mlp_bias: false,
        max_positions: 128,
        eos: vec![1],
        bos: None,
    }
}

/// Random tensors for `config`, the same for the same seed.
pub fn tensors(config: &ModelConfig, seed: u64) -> Tensors {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut random = |count: usize, centre: f32, spread: f32| -> Vec<f32> {
        (0..count).map(|_| centre + rng.random_range(-spread..spread)).collect()
    };
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut map = BTreeMap::new();
    map.insert("model.embed_tokens.weight".into(), random(config.vocab * config.hidden, 0.0, 1.0));
    map.insert("model.norm.weight".into(), random(config.hidden, 1.0, 0.2));
    if !config.tied {
        map.insert("lm_head.weight".into(), random(config.vocab * config.hidden, 0.0, 0.3));
    }
    for layer in 0..config.layers {
        let prefix = format!("model.layers.{layer}.");
        for name in ["input_layernorm", "post_attention_layernorm"] {
            map.insert(format!("{prefix}{name}.weight"), random(config.hidden, 1.0, 0.2));
        }
        let linears = [
            ("self_attn.q_proj", queries, config.hidden, config.attention_bias),
            ("self_attn.k_proj", keys, config.hidden, config.attention_bias),
            ("self_attn.v_proj", keys, config.hidden, config.attention_bias),
            ("self_attn.o_proj", config.hidden, queries, config.attention_bias),
            ("mlp.gate_proj", config.intermediate, config.hidden, config.mlp_bias),
            ("mlp.up_proj", config.intermediate, config.hidden, config.mlp_bias),
            ("mlp.down_proj", config.hidden, config.intermediate, config.mlp_bias),
        ];
        for (name, rows, cols, bias) in linears {
            let spread = 1.5 / (cols as f32).sqrt();
            map.insert(format!("{prefix}{name}.weight"), random(rows * cols, 0.0, spread));
            if bias {
                map.insert(format!("{prefix}{name}.bias"), random(rows, 0.0, 0.1));
            }
        }
        if config.qk_norm {
            for name in ["q_norm", "k_norm"] {
                map.insert(format!("{prefix}self_attn.{name}.weight"), random(config.head_dim, 1.0, 0.2));
            }
        }
    }
    Tensors(map)
}
