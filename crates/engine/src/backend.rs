//! The kernel boundary: every operation the forward pass asks of a device.
//!
//! Nothing above this trait may assume that a buffer is memory the CPU can read. Shapes are written as (rows, width);
//! a buffer may be longer than what an operation uses, and always holds its rows from the start.
//!
//! **Contract.** What an operation writes into a row depends on that row (and on the pages it names) alone, never on
//! the other rows of the call: a request's logits are the same bits in any company.

use crate::Error;
use bitdelta_delta::file::LinearDelta;
use bitdelta_kernels::Slab;
use bitdelta_model::{CodeBlocks, base::MappedTensor};
use std::ops::Range;

/// Positions in a page of the KV cache. A page lies at a fixed place of its sequence: page i holds positions
/// `i * PAGE .. (i + 1) * PAGE`.
pub const PAGE: usize = bitdelta_kernels::PAGE;

/// How the base's matrices are kept, and so how all products are computed. A delta always adds to what the base was
/// before it was rounded: it is relative to the true base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BaseDtype {
    /// As the file stores them, quantised ones in f32: exact products in f32.
    #[default]
    Stored,
    /// f32.
    F32,
    /// bf16; products in f32.
    Bf16,
    /// int8: a file's own codes where it has them (GGUF's Q4_0 to Q8_0), else 8 bits in blocks of 64 inputs. Activations
    /// are rounded, for the base's products and for deltas.
    Int8,
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDtype {
    /// As exact as the base: bf16 beside a base in bf16 or int8, else f32.
    #[default]
    Auto,
    /// f32: exact.
    F32,
    /// bf16: half the memory.
    Bf16,
    /// int8, a scale for each position and head: a quarter.
    Int8,
}

impl KvDtype {
    /// What `Auto` means beside such a base.
    pub fn beside(self, base: BaseDtype) -> Self {
        match (self, base) {
            (Self::Auto, BaseDtype::Bf16 | BaseDtype::Int8) => Self::Bf16,
            (Self::Auto, _) => Self::F32,
            _ => self,
        }
    }
}

/// A matrix on its way to the device, as its file stores it.
#[derive(Debug)]
pub enum HostTensor {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// IEEE half precision, as bits.
    F16(Halves),
    /// bfloat16, as bits.
    Bf16(Halves),
    /// Codes of at most 4 bits, or of 8, for a base in int8 alone.
    Codes {
        /// The codes and their scales.
        blocks: CodeBlocks,
        /// 4 or 8.
        bits: u32,
    },
}

/// 16-bit floats, as bits.
#[derive(Debug)]
pub enum Halves {
    /// In memory, beside the base's other matrices or by itself.
    Owned(Slab<u16>),
    /// In the base's file, which is shared with whoever else has it mapped. See [`Halves::mapped`].
    Mapped(MappedTensor),
}

impl Halves {
    /// The file's own bytes where the machine can read them as they lie: in its byte order, at even addresses.
    pub fn mapped(tensor: MappedTensor) -> Option<Self> {
        let fits = cfg!(target_endian = "little") && bytemuck::try_cast_slice::<u8, u16>(&tensor).is_ok();
        fits.then_some(Self::Mapped(tensor))
    }
}

impl std::ops::Deref for Halves {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        match self {
            Self::Owned(bits) => bits,
            Self::Mapped(tensor) => bytemuck::cast_slice(tensor),
        }
    }
}

/// Shapes of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes of one page: keys and values of all layers and heads.
    pub fn page_bytes(&self, dtype: KvDtype) -> u64 {
        let position = match dtype {
            KvDtype::Auto | KvDtype::F32 => 4 * self.head_dim,
            KvDtype::Bf16 => 2 * self.head_dim,
            KvDtype::Int8 => self.head_dim + size_of::<f32>(),
        };
        (self.layers * self.kv_heads * 2 * PAGE * position) as u64
    }
}

/// Where one row's keys and values lie.
#[derive(Debug, Clone, Copy)]
pub struct RowPlace<'a> {
    /// The sequence's pages, in order.
    pub pages: &'a [u32],
    /// The row's position in its sequence; it attends to positions `0..=position`.
    pub position: usize,
}

impl RowPlace<'_> {
    /// Whether `next` is the position after this one, of the same sequence.
    pub fn goes_on(&self, next: &Self) -> bool {
        std::ptr::eq(self.pages, next.pages) && self.position + 1 == next.position
    }
}

/// `y (rows, outputs) = x · Wᵀ`, plus each user's delta for that user's rows.
pub struct Projection<'a, B: Backend> {
    /// W.
    pub weights: &'a B::Weights,
    /// `y[rows] += x[rows] · Δᵀ` from the packed form.
    pub deltas: Vec<(&'a B::Delta, Range<usize>)>,
    /// Where it goes.
    pub y: &'a mut B::Buffer,
    /// Whether it is added to what y holds.
    pub add: bool,
}

/// The device.
pub trait Backend: Sized + Send + Sync + 'static {
    /// f32 activations.
    type Buffer: Send;
    /// A base matrix or vector.
    type Weights: Send + Sync;
    /// One matrix's delta, in the layout the device likes.
    type Delta: Send + Sync;
    /// The pages of the KV cache.
    type Kv: Send;
    /// Memory that a base or a variant is moved into.
    type Arena: Send;

    /// Threads, or whatever the device has of them.
    fn threads(&self) -> usize;
    /// Room on the device for a base or a variant of about `bytes` bytes.
    fn arena(&self, bytes: u64) -> Self::Arena;
    /// Moves a (rows, cols) base tensor to the device.
    fn weights(&self, tensor: HostTensor, rows: usize, cols: usize, arena: &mut Self::Arena) -> Self::Weights;
    /// Moves a matrix's delta to the device, still packed.
    fn delta(&self, delta: LinearDelta, arena: &mut Self::Arena) -> Self::Delta;
    /// A delta's product comes next but one: what has to be looked up for it may be asked of the memory meanwhile.
    fn expect(&self, delta: &Self::Delta);
    /// Bytes that a delta holds on the device.
    fn delta_bytes(&self, delta: &Self::Delta) -> u64;
    /// A buffer of `len` values.
    fn buffer(&self, len: usize) -> Self::Buffer;
    /// Copies `values` to the start of a buffer.
    fn write(&self, values: &[f32], to: &mut Self::Buffer);
    /// Lends the values of a range to `f`.
    fn read(&self, from: &Self::Buffer, range: Range<usize>, f: &mut dyn FnMut(&[f32]));

    /// Runs a step's operations where the device's threads or stream are at hand.
    fn scope<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R;

    /// `out[i] = table[tokens[i]]`.
    fn embed(&self, table: &Self::Weights, tokens: &[u32], out: &mut Self::Buffer);
    /// `out[i] += Δ[tokens[i]]` for i in `rows`, each row from the packed form of an embedding's delta.
    fn add_embedding_delta(&self, delta: &Self::Delta, tokens: &[u32], rows: Range<usize>, out: &mut Self::Buffer);
    /// All projections of the same `rows` rows of x.
    fn project(&self, x: &Self::Buffer, rows: usize, projections: Vec<Projection<Self>>);
    /// `y[rows] += bias`.
    fn add_bias(&self, bias: &Self::Weights, rows: Range<usize>, y: &mut Self::Buffer);
    /// RMSNorm of rows as wide as `weight`.
    fn rms_norm(&self, x: &Self::Buffer, weight: &Self::Weights, eps: f32, rows: Range<usize>, y: &mut Self::Buffer);
    /// RMSNorm in place of rows as wide as `weight`.
    fn rms_norm_in_place(&self, weight: &Self::Weights, eps: f32, rows: Range<usize>, x: &mut Self::Buffer);
    /// Rotates x (rows, heads, head_dim) by `cos` and `sin` (rows, head_dim / 2).
    fn rope(&self, cos: &[f32], sin: &[f32], rows: usize, heads: usize, head_dim: usize, x: &mut Self::Buffer);
    /// `up (rows, width) = silu(gate) · up`.
    fn silu_mul(&self, gate: &Self::Buffer, values: usize, up: &mut Self::Buffer);
    /// `to[i] = from[rows[i]]`, rows of `width` values.
    fn gather(&self, from: &Self::Buffer, rows: &[usize], width: usize, to: &mut Self::Buffer);

    /// Bytes that projections of one row of `width` values take beside their operands, at most.
    fn projected_row_bytes(&self, width: usize) -> usize;

    /// How keys and values are kept.
    fn kv_dtype(&self) -> KvDtype;
    /// A KV cache of at most `pages` pages. Memory is taken when a page is first written.
    ///
    /// # Errors
    /// [`Error::Memory`] when the device lacks it.
    fn kv(&self, shape: KvShape, pages: usize) -> Result<Self::Kv, Error>;
    /// Stores keys and values (rows, kv_heads, head_dim) of one layer at their rows' places.
    fn store_kv(&self, kv: &mut Self::Kv, layer: usize, k: &Self::Buffer, v: &Self::Buffer, rows: &[RowPlace]);
    /// `out (rows, heads, head_dim)`: each row attends to its own sequence up to its own position.
    fn attend(
        &self,
        kv: &Self::Kv,
        layer: usize,
        q: &Self::Buffer,
        heads: usize,
        rows: &[RowPlace],
        out: &mut Self::Buffer,
    );
}
