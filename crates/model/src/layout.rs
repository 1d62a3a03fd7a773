//! The one list of a model's tensors and linears: names, shapes and order follow from the configuration alone.
//!
//! The order is part of the product: a variant file stores its entries by position among the [`linears`] and, after
//! them, the [`TABLES`]; a fingerprint hashes tensors by position in `tensors`.

use crate::config::ModelConfig;

/// HF names of the matrices with a row for each token, in the order in which a variant holds them after the linears; a
/// model with a tied head has the first alone.
pub const TABLES: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];

/// Role of a linear in its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinearKind {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Attention's output projection.
    O,
    /// Gate of the MLP.
    Gate,
    /// Up projection of the MLP.
    Up,
    /// Down projection of the MLP.
    Down,
}

impl LinearKind {
    /// All roles in the order of a layer.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// HF module below the layer, e.g. `self_attn.q_proj`.
    pub fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// (outputs, inputs) in a model.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let (hidden, queries, keys) =
            (config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self {
            Self::Q => (queries, hidden),
            Self::K | Self::V => (keys, hidden),
            Self::O => (hidden, queries),
            Self::Gate | Self::Up => (config.intermediate, hidden),
            Self::Down => (hidden, config.intermediate),
        }
    }
}

/// One linear that a delta may cover, in the base's fixed order (layer by layer: q k v o gate up down).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// HF tensor name.
    pub name: String,
    /// Layer.
    pub layer: usize,
    /// Role.
    pub kind: LinearKind,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

/// Every linear of a model, layer by layer.
pub fn linears(config: &ModelConfig) -> Vec<Linear> {
    (0..config.layers)
        .flat_map(|layer| LinearKind::ALL.map(|kind| (layer, kind)))
        .map(|(layer, kind)| {
            let (rows, cols) = kind.shape(config);
            Linear { name: format!("model.layers.{layer}.{}.weight", kind.module()), layer, kind, rows, cols }
        })
        .collect()
}

/// Every tensor of a model with its HF name and shape (vectors have one dimension), in the fixed order:
/// embedding, then each layer (norms, linears, biases), final norm, and `lm_head.weight` unless it is tied.
pub(crate) fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![(TABLES[0].to_owned(), vec![config.vocab, config.hidden])];
    for layer in 0..config.layers {
        let mut push = |name: &str, shape| all.push((format!("model.layers.{layer}.{name}"), shape));
        push("input_layernorm.weight", vec![config.hidden]);
        for kind in LinearKind::ALL {
            let (rows, cols) = kind.shape(config);
            push(&format!("{}.weight", kind.module()), vec![rows, cols]);
            let in_mlp = matches!(kind, LinearKind::Gate | LinearKind::Up | LinearKind::Down);
            if if in_mlp { config.mlp_bias } else { config.attention_bias } {
                push(&format!("{}.bias", kind.module()), vec![rows]);
            }
        }
        if config.qk_norm {
            push("self_attn.q_norm.weight", vec![config.head_dim]);
            push("self_attn.k_norm.weight", vec![config.head_dim]);
        }
        push("post_attention_layernorm.weight", vec![config.hidden]);
    }
    all.push(("model.norm.weight".to_owned(), vec![config.hidden]));
    if !config.tied {
        all.push((TABLES[1].to_owned(), vec![config.vocab, config.hidden]));
    }
    all
}
