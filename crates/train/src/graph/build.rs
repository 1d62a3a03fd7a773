//! From a base's tensors to a graph.

use super::{
    Graph,
    attention::Attention,
    frozen::{Frozen, Storage},
    layer::Layer,
    linear::{Adapter, LinearPart, Linears, Weight},
    matrix::{Matrix, Precision},
    norm::RmsNorm,
    parameter::Parameter,
    rope::Rope,
};
use crate::Error;
use bitdelta_kernels::FreeMemoryKept;
use bitdelta_model::{Base, ModelConfig};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::sync::Arc;

/// Where a graph takes its tensors from, by their HF names.
pub trait Weights {
    /// Whether there is such a tensor.
    fn has(&self, name: &str) -> bool;
    /// Its values as f32, row-major.
    ///
    /// # Errors
    /// When it is missing or unreadable.
    fn tensor(&self, name: &str) -> Result<Vec<f32>, Error>;
}

impl Weights for Base {
    fn has(&self, name: &str) -> bool {
        Base::has(self, name)
    }

    fn tensor(&self, name: &str) -> Result<Vec<f32>, Error> {
        Ok(self.tensor_f32(name)?)
    }
}

/// What learns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Adaptation {
    /// Nothing: for evaluation.
    Frozen,
    /// The weights of all linears.
    Full,
    /// Low-rank factors beside each linear. A starts as `kaiming_uniform(a = √5)`, uniform in ±1/√inputs, and B as
    /// zero, as in LoRA, so that the model starts as the base.
    LowRank {
        /// Rank of each linear's factors.
        rank: usize,
        /// What B·A is multiplied by (LoRA's alpha / rank).
        scale: f32,
        /// Of A's initial values.
        seed: u64,
    },
}

/// How a graph keeps and multiplies its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keeping {
    /// Linears that stay.
    pub storage: Storage,
    /// Products with all matrices.
    pub precision: Precision,
}

impl Keeping {
    /// As they are, multiplied in bf16 where that is faster. Not for a fine-tuned model that is compared with another: the rounding of
    /// its weights is a fifth of what it learnt (on SmolLM2, a divergence of some 0.02 nats).
    pub const FAST: Self = Self { storage: Storage::F32, precision: Precision::Bf16 };
}

impl Graph {
    /// Reads the model. `longest` is the longest sequence it will see; `checkpointing` trades a second forward pass
    /// for a fraction of the memory.
    ///
    /// # Errors
    /// A tensor that is missing or has the wrong number of values.
    pub fn new(
        config: &ModelConfig,
        weights: &dyn Weights,
        adaptation: Adaptation,
        longest: usize,
        checkpointing: bool,
    ) -> Result<Self, Error> {
        Self::kept(config, weights, adaptation, Keeping::default(), longest, checkpointing)
    }

    /// As [`Graph::new`], with matrices that are kept and multiplied as `keeping` says. Embedding and head stay in f32.
    ///
    /// # Errors
    /// As [`Graph::new`].
    pub fn kept(
        config: &ModelConfig,
        weights: &dyn Weights,
        adaptation: Adaptation,
        keeping: Keeping,
        longest: usize,
        checkpointing: bool,
    ) -> Result<Self, Error> {
        let mut builder = Builder::new(config, weights, adaptation, keeping);
        let mut embedding = builder.matrix("model.embed_tokens.weight", config.vocab, config.hidden)?;
        let head = match config.tied {
            true => None,
            false => Some(builder.matrix("lm_head.weight", config.vocab, config.hidden)?.laid_out()),
        };
        if config.tied {
            embedding = embedding.laid_out();
        }
        let layers = (0..config.layers).map(|layer| builder.layer(layer)).collect::<Result<_, _>>()?;
        let final_norm = builder.norm("model.norm.weight", config.hidden)?;
        // What was read is back with the system; what steps make and drop stays.
        let _freed = FreeMemoryKept::new();
        Ok(Self { embedding, head, layers, final_norm, rope: Rope::new(config, longest), checkpointing, _freed })
    }
}

struct Builder<'a> {
    config: &'a ModelConfig,
    weights: &'a dyn Weights,
    adaptation: Adaptation,
    keeping: Keeping,
    rng: StdRng,
    next_linear: usize,
}

impl<'a> Builder<'a> {
    fn new(config: &'a ModelConfig, weights: &'a dyn Weights, adaptation: Adaptation, keeping: Keeping) -> Self {
        let seed = match adaptation {
            Adaptation::LowRank { seed, .. } => seed,
            Adaptation::Frozen | Adaptation::Full => 0,
        };
        Self { config, weights, adaptation, keeping, rng: StdRng::seed_from_u64(seed), next_linear: 0 }
    }

    fn layer(&mut self, layer: usize) -> Result<Layer, Error> {
        let c = self.config;
        let prefix = format!("model.layers.{layer}.");
        let head_norm = |builder: &Self, name: &str| match c.qk_norm {
            true => builder.norm(&format!("{prefix}self_attn.{name}.weight"), c.head_dim).map(Some),
            false => Ok(None),
        };
        let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let attention = |name: &str| format!("{prefix}self_attn.{name}_proj");
        let mlp = |name: &str| format!("{prefix}mlp.{name}_proj");
        Ok(Layer {
            input_norm: self.norm(&format!("{prefix}input_layernorm.weight"), c.hidden)?,
            qkv: self
                .linears(c.hidden, &[(attention("q"), queries), (attention("k"), keys), (attention("v"), keys)])?,
            attention: Attention {
                heads: c.heads,
                kv_heads: c.kv_heads,
                head_dim: c.head_dim,
                q_norm: head_norm(self, "q_norm")?,
                k_norm: head_norm(self, "k_norm")?,
            },
            o: self.linears(queries, &[(attention("o"), c.hidden)])?,
            post_norm: self.norm(&format!("{prefix}post_attention_layernorm.weight"), c.hidden)?,
            gate_up: self.linears(c.hidden, &[(mlp("gate"), c.intermediate), (mlp("up"), c.intermediate)])?,
            down: self.linears(c.intermediate, &[(mlp("down"), c.hidden)])?,
        })
    }

    /// Stacks the named linears (name, outputs) that read the same `inputs`.
    fn linears(&mut self, inputs: usize, named: &[(String, usize)]) -> Result<Linears, Error> {
        let outputs = named.iter().map(|(_, rows)| rows).sum();
        let mut values = Vec::with_capacity(outputs * inputs);
        let mut bias = Vec::new();
        let mut parts = Vec::with_capacity(named.len());
        let mut from = 0;
        for (name, rows) in named {
            values.extend(self.values(&format!("{name}.weight"), rows * inputs)?);
            let bias_name = format!("{name}.bias");
            if self.weights.has(&bias_name) {
                bias.resize(from, 0.0);
                bias.extend(self.values(&bias_name, *rows)?);
            }
            parts.push(LinearPart { index: self.next_linear, rows: from..from + rows });
            self.next_linear += 1;
            from += rows;
        }
        let bias = (!bias.is_empty()).then(|| {
            bias.resize(outputs, 0.0);
            bias
        });
        let weight = Matrix::new(outputs, inputs, values).at(self.keeping.precision);
        let first = named.first().map_or("", |(name, _)| name.as_str());
        Ok(Linears {
            weight: match self.adaptation {
                Adaptation::Full => Weight::Trained(Arc::new(Parameter::new(format!("{first}.stack"), weight))),
                Adaptation::Frozen | Adaptation::LowRank { .. } => {
                    Weight::Frozen(Frozen::new(weight, self.keeping.storage))
                }
            },
            bias,
            adapter: match self.adaptation {
                Adaptation::LowRank { rank, scale, .. } => Some(self.adapter(inputs, named, rank, scale)),
                Adaptation::Frozen | Adaptation::Full => None,
            },
            parts,
        })
    }

    fn adapter(&mut self, inputs: usize, named: &[(String, usize)], rank: usize, scale: f32) -> Adapter {
        let bound = 1.0 / (inputs as f32).sqrt();
        let values = (0..named.len() * rank * inputs).map(|_| self.rng.random_range(-bound..bound)).collect();
        let first = named.first().map_or("", |(name, _)| name.as_str());
        Adapter {
            rank,
            scale,
            precision: self.keeping.precision,
            a: Arc::new(Parameter::new(format!("{first}.a"), Matrix::new(named.len() * rank, inputs, values))),
            b: named
                .iter()
                .map(|(name, rows)| Arc::new(Parameter::new(format!("{name}.b"), Matrix::zeros(*rows, rank))))
                .collect(),
        }
    }

    fn norm(&self, name: &str, width: usize) -> Result<RmsNorm, Error> {
        Ok(RmsNorm { weight: self.values(name, width)?, eps: self.config.rms_eps })
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        Ok(Matrix::new(rows, cols, self.values(name, rows * cols)?).at(self.keeping.precision))
    }

    fn values(&self, name: &str, expected: usize) -> Result<Vec<f32>, Error> {
        let values = self.weights.tensor(name)?;
        if values.len() != expected {
            let problem = format!("{name} has {} values where the configuration asks for {expected}", values.len());
            return Err(Error::setting("model_name_or_path", problem));
        }
        Ok(values)
    }
}
