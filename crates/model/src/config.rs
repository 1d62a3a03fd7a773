//! Model configuration.

/// Which family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// LlamaForCausalLM
    Llama,
    /// Qwen3ForCausalLM
    Qwen3,
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

impl ModelConfig {
    /// RoPE inverse frequencies (head_dim/2) with scaling applied, and the factor on cos/sin (1.0 unless yarn).
    pub fn rope_frequencies(&self) -> (Vec<f32>, f32) {
        unimplemented!()
    }
}
