//! A base model's tensors on the device.

use crate::{
    Error,
    backend::{Backend, BaseDtype, Halves, HostTensor},
    error::check_memory,
};
use bitdelta_kernels::{Int8Weights, Layout, SHORT_BLOCK};
use bitdelta_model::{Base, Dtype, LinearKind, TensorRef};

/// Vectors a layer may have, in the order of their slots.
const SLOTS: [&str; 11] = [
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    "self_attn.q_proj.bias",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.bias",
    "self_attn.o_proj.bias",
    "mlp.gate_proj.bias",
    "mlp.up_proj.bias",
    "mlp.down_proj.bias",
];

/// Names a vector of the model: a norm's weight or a bias, of which a variant may have its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VectorId(usize);

impl VectorId {
    /// Before attention.
    pub const INPUT_NORM: Self = Self(0);
    /// Before the MLP.
    pub const MLP_NORM: Self = Self(1);
    /// On each query head.
    pub const Q_NORM: Self = Self(2);
    /// On each key head.
    pub const K_NORM: Self = Self(3);

    /// The bias of a linear.
    pub fn bias(kind: LinearKind) -> Self {
        Self(4 + kind as usize)
    }

    /// Its place among all vectors of the model.
    pub fn at(self, layer: usize) -> usize {
        layer * SLOTS.len() + self.0
    }

    /// The place of the norm before the head.
    pub fn final_norm(layers: usize) -> usize {
        layers * SLOTS.len()
    }
}

/// The HF name of every vector that a model of this many layers may have, by place.
fn vector_names(layers: usize) -> impl Iterator<Item = String> {
    let in_layers = (0..layers).flat_map(|l| SLOTS.map(|slot| format!("model.layers.{l}.{slot}")));
    in_layers.chain(std::iter::once("model.norm.weight".to_owned()))
}

/// How many places there are.
pub(crate) fn vector_count(layers: usize) -> usize {
    VectorId::final_norm(layers) + 1
}

/// The place of the vector of this HF name.
pub(crate) fn vector_place(layers: usize, name: &str) -> Option<usize> {
    vector_names(layers).position(|n| n == name)
}

/// A base's tensors.
pub(crate) struct BaseWeights<B: Backend> {
    /// (vocab, hidden).
    pub embedding: B::Weights,
    /// The head, where it is not the embedding.
    pub head: Option<B::Weights>,
    /// In the base's fixed order.
    pub linears: Vec<B::Weights>,
    /// By place; `None` where the model has none.
    pub vectors: Vec<Option<B::Weights>>,
}

impl<B: Backend> BaseWeights<B> {
    /// Reads all tensors of `base`, one after another.
    pub fn load(base: &Base, backend: &B, dtype: BaseDtype) -> Result<Self, Error> {
        let needed = bytes(base, dtype);
        check_memory(|| format!("the base model {}", base.name), needed)?;
        let mut arena = backend.arena(needed);
        let mut load = |name: &str| -> Result<B::Weights, Error> {
            let (tensor, rows, cols) = read(base, name, dtype)?;
            Ok(backend.weights(tensor, rows, cols, &mut arena))
        };
        let vectors = vector_names(base.config.layers)
            .map(|name| if base.has(&name) { load(&name).map(Some) } else { Ok(None) })
            .collect::<Result<_, _>>()?;
        let weights = Self {
            embedding: load("model.embed_tokens.weight")?,
            head: if base.config.tied { None } else { Some(load("lm_head.weight")?) },
            linears: base.linears().iter().map(|linear| load(&linear.name)).collect::<Result<_, _>>()?,
            vectors,
        };
        // What was copied would lie in memory twice.
        base.forget();
        Ok(weights)
    }
}

/// Bytes that the base takes once loaded.
pub fn bytes(base: &Base, dtype: BaseDtype) -> u64 {
    let bytes = |tensor: &TensorRef| {
        let count = (tensor.rows * tensor.cols) as u64;
        match dtype {
            _ if tensor.rows == 1 => 4 * count,
            BaseDtype::Stored if matches!(tensor.dtype, Dtype::F16 | Dtype::Bf16) => 2 * count,
            BaseDtype::Stored | BaseDtype::F32 => 4 * count,
            BaseDtype::Bf16 => 2 * count,
            BaseDtype::Int8 => Int8Weights::bytes_of(layout(tensor), tensor.rows, tensor.cols),
        }
    };
    base.tensors().iter().map(bytes).sum()
}

/// How int8 keeps a matrix of the base.
fn layout(tensor: &TensorRef) -> Layout {
    match tensor.dtype.code_bits() {
        Some(bits) if tensor.cols.is_multiple_of(SHORT_BLOCK) => {
            if bits <= 4 {
                Layout::Nibbles
            } else {
                Layout::Bytes
            }
        }
        _ => Layout::Rounded,
    }
}

fn read(base: &Base, name: &str, dtype: BaseDtype) -> Result<(HostTensor, usize, usize), Error> {
    let tensor = base.tensor(name)?;
    let kept = layout(tensor);
    if dtype == BaseDtype::Int8
        && tensor.rows > 1
        && kept != Layout::Rounded
        && let Some(blocks) = base.code_blocks(name)?
    {
        let bits = if kept == Layout::Nibbles { 4 } else { 8 };
        return Ok((HostTensor::Codes { blocks, bits }, tensor.rows, tensor.cols));
    }
    if let Some(raw) = base.raw(name)? {
        let halves = || -> Result<Halves, Error> {
            let copied = || raw.bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect::<Vec<_>>();
            Ok(base.mapped(name)?.and_then(Halves::mapped).unwrap_or_else(|| Halves::Owned(copied().into())))
        };
        match raw.dtype {
            Dtype::F16 => return Ok((HostTensor::F16(halves()?), raw.rows, raw.cols)),
            Dtype::Bf16 => return Ok((HostTensor::Bf16(halves()?), raw.rows, raw.cols)),
            _ => {}
        }
    }
    Ok((HostTensor::F32(base.tensor_f32(name)?), tensor.rows, tensor.cols))
}
