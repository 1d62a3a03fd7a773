//! Model configuration: one structure for HF and GGUF models, validated before anything is computed from it.

pub(crate) mod from_gguf;
pub(crate) mod from_hf;
mod rope;

use crate::Error;
use std::path::Path;

/// Which family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// LlamaForCausalLM
    Llama,
    /// Qwen3ForCausalLM
    Qwen3,
}

impl Architecture {
    /// The class name that transformers gives the family.
    pub fn class_name(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// transformers' `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// RoPE scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Plain.
    None,
    /// Positions divided by factor.
    Linear {
        /// factor
        factor: f32,
    },
    /// Llama 3.1's
    Llama3 {
        /// factor
        factor: f32,
        /// low_freq_factor
        low_freq_factor: f32,
        /// high_freq_factor
        high_freq_factor: f32,
        /// original_max_position_embeddings
        original_max_positions: u32,
    },
    /// Yarn (Qwen3 long context)
    Yarn {
        /// factor
        factor: f32,
        /// original_max_position_embeddings
        original_max_positions: u32,
        /// beta_fast
        beta_fast: f32,
        /// beta_slow
        beta_slow: f32,
        /// attention_factor (mscale)
        attention_factor: f32,
    },
}

/// Shapes and constants of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Hidden width.
    pub hidden: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// MLP width.
    pub intermediate: usize,
    /// Vocabulary (rows of the embedding).
    pub vocab: usize,
    /// RMSNorm epsilon.
    pub rms_eps: f32,
    /// RoPE theta.
    pub rope_theta: f32,
    /// RoPE scaling.
    pub rope_scaling: RopeScaling,
    /// lm_head is the embedding.
    pub tied: bool,
    /// RMSNorm on q and k heads (Qwen3).
    pub qk_norm: bool,
    /// q/k/v/o projections have biases.
    pub attention_bias: bool,
    /// MLP projections have biases.
    pub mlp_bias: bool,
    /// Longest context.
    pub max_positions: usize,
    /// Tokens that end generation.
    pub eos: Vec<u32>,
    /// Beginning-of-sequence token, if the tokenizer adds one.
    pub bos: Option<u32>,
}

/// Largest width, depth or vocabulary that is believed; above it a header is damaged (and products would overflow).
const SIZE_MAX: usize = 1 << 22;

impl ModelConfig {
    /// Checks that the numbers can belong together; `path` is the file they come from.
    ///
    /// # Errors
    /// [`Error::Malformed`] naming the first value that cannot be.
    pub(crate) fn validate(self, path: &Path) -> Result<Self, Error> {
        let malformed = |reason: String| Err(Error::malformed(path, reason));
        let sizes = [
            ("hidden size", self.hidden),
            ("number of layers", self.layers),
            ("number of heads", self.heads),
            ("number of key/value heads", self.kv_heads),
            ("head width", self.head_dim),
            ("MLP width", self.intermediate),
            ("vocabulary", self.vocab),
        ];
        for (what, size) in sizes {
            if size == 0 || size > SIZE_MAX {
                return malformed(format!("{what} is {size}, expected 1 to {SIZE_MAX}"));
            }
        }
        if self.layers > 4096 {
            return malformed(format!("{} layers; at most 4096 are believed", self.layers));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return malformed(format!("{} heads do not divide among {} key/value heads", self.heads, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return malformed(format!("head width {} is odd, RoPE needs pairs", self.head_dim));
        }
        if self.max_positions == 0 {
            return malformed("the longest context is 0".to_owned());
        }
        if !(self.rms_eps.is_finite() && self.rms_eps >= 0.0) {
            return malformed(format!("RMSNorm epsilon is {}", self.rms_eps));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 1.0) {
            return malformed(format!("RoPE theta is {}", self.rope_theta));
        }
        let positive: &[f32] = match &self.rope_scaling {
            RopeScaling::None => &[],
            RopeScaling::Linear { factor } => &[*factor],
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                if low_freq_factor >= high_freq_factor {
                    return malformed("RoPE low_freq_factor is not below high_freq_factor".to_owned());
                }
                &[*factor, *low_freq_factor, *high_freq_factor, *original_max_positions as f32]
            }
            RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, attention_factor } => {
                &[*factor, *original_max_positions as f32, *beta_fast, *beta_slow, *attention_factor]
            }
        };
        if let Some(value) = positive.iter().find(|value| !(value.is_finite() && **value > 0.0)) {
            return malformed(format!("RoPE scaling holds {value}, expected positive numbers"));
        }
        Ok(self)
    }
}
