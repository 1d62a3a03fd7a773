//! What a run will take, worked out before it starts.

use crate::{Error, TrainConfig, config::Method, graph::loss::ROWS_PER_BLOCK};
use bitdelta_model::ModelConfig;

/// What a run's data asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Tokens of the largest forward pass.
    pub tokens: usize,
    /// f32 values kept beside the model for the whole run.
    pub cached_values: usize,
    /// Whether the engine holds the base too, to draw answers.
    pub samples: bool,
}

/// Bytes of one run, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The base's weights as they are kept.
    pub base: u64,
    /// What learns: values, gradients, two moments, and the best so far if it is kept.
    pub learning: u64,
    /// Kept between the forward and the backward pass.
    pub activations: u64,
    /// Short-lived matrices and logits.
    pub working: u64,
    /// What a teacher said, or the engine that draws answers, kept for the whole run.
    pub cached: u64,
}

impl Need {
    /// For this load; `checkpointing` forms activations again.
    pub fn new(model: &ModelConfig, config: &TrainConfig, load: Load, checkpointing: bool) -> Self {
        let tokens = load.tokens;
        let c = model;
        let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let qkv = queries + 2 * keys;
        let linears = c.layers * (c.hidden * (qkv + queries) + 3 * c.hidden * c.intermediate);
        let heads = c.vocab * c.hidden * if c.tied { 1 } else { 2 };
        let copies = if config.load_best_model_at_end { 5 } else { 4 };
        let sizes = [c.hidden + queries, c.hidden + keys, c.hidden + keys, queries + c.hidden];
        let factors = config.lora_rank * c.layers * (sizes.iter().sum::<usize>() + 3 * (c.hidden + c.intermediate));
        // A code's share of its group's scale, as for a long row; rows are thousands of weights.
        const ROW: usize = 1 << 12;
        let frozen = linears as u64 * config.keeping().storage.bytes(1, ROW) as u64 / ROW as u64;
        let (frozen, learning) = match config.method {
            Method::Full => (0, linears * copies),
            Method::LowRank => (frozen, factors * copies),
            // Only the engine holds a base.
            Method::Experience => (0, 0),
        };
        let saved = 2 * c.hidden + qkv + queries + 2 * c.intermediate;
        let kept = if checkpointing { c.layers * c.hidden + saved } else { c.layers * saved };
        // The widest moment is the MLP's backward pass: gate·up's gradient, two activations, and a few hidden states.
        let working = tokens * (6 * c.intermediate + 2 * qkv + 6 * c.hidden) + 2 * ROWS_PER_BLOCK * c.vocab;
        let bytes = |values: usize| values as u64 * 4;
        // Of a product in bf16, the head is laid out both ways beside its f32.
        let laid_out = if config.keeping().precision.rounds() { c.vocab * c.hidden } else { 0 };
        // The engine's base in int8, a scale for each 64 weights.
        let drawing = if load.samples { (linears + heads) as u64 * 17 / 16 } else { 0 };
        Self {
            base: bytes(heads + laid_out) + frozen,
            learning: bytes(learning),
            activations: bytes(kept * tokens),
            working: bytes(working),
            cached: bytes(load.cached_values) + drawing,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.base + self.learning + self.activations + self.working + self.cached
    }
}

/// Whether to form activations again, so that the run fits in `available` bytes.
///
/// # Errors
/// [`Error::Memory`] when it fits neither way.
pub fn plan(model: &ModelConfig, config: &TrainConfig, load: Load, available: Option<u64>) -> Result<bool, Error> {
    let Some(available) = available else { return Ok(config.gradient_checkpointing.unwrap_or(false)) };
    let need = |checkpointing| Need::new(model, config, load, checkpointing);
    let tried: &[bool] = match config.gradient_checkpointing {
        None => &[false, true],
        Some(true) => &[true],
        Some(false) => &[false],
    };
    if let Some(&checkpointing) = tried.iter().find(|&&checkpointing| need(checkpointing).total() <= available) {
        return Ok(checkpointing);
    }
    let least = need(tried[tried.len() - 1]);
    let mut help = Vec::new();
    if least.activations + least.working > least.total() / 10 {
        help.push(format!(
            "a smaller per_device_train_batch_size (now {}) with more gradient_accumulation_steps, or a smaller cutoff_len (now {})",
            config.per_device_train_batch_size, config.cutoff_len
        ));
        if config.gradient_checkpointing == Some(false) {
            help.push("gradient_checkpointing".into());
        }
    }
    if config.method == Method::Full {
        help.push("finetuning_type lowrank, which trains few weights beside the base".into());
    }
    if config.method == Method::LowRank && least.base > least.total() / 10 {
        match config.quantization_bit {
            None | Some(16) => help.push("quantization_bit 8 (or 4), which keeps the base in fewer bytes".into()),
            Some(8) => help.push("quantization_bit 4".into()),
            Some(_) => {}
        }
    }
    if help.is_empty() {
        help.push("the base's weights alone are too large for this machine".into());
    }
    Err(Error::Memory { needed: words(least.total()), available: words(available), help: help.join("; ") })
}

/// "3.2 GB"
fn words(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.1} GB", bytes as f64 / 1e9),
        _ => format!("{:.0} MB", bytes as f64 / 1e6),
    }
}
