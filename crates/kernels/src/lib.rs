//! Kernels: every `unsafe` line and every SIMD instruction of bitdelta, each beside its scalar reference.
//!
//! It knows nothing of models, variants or requests: slices and shapes go in, slices come out. Start at
//! [`vector::Vector`], the sixteen lanes that all kernels are written in, then [`matmul()`], the base's product, and
//! [`packed`], the product of packed deltas.
//!
//! **The invariant of this crate.** What a row of the result is depends on that row of the input alone. The lanes, the
//! order of additions and the fused multiplications of one output element are fixed; tiles, threads, the number of
//! rows in the call and the instruction set only decide when it is computed. A request therefore gets the same
//! logits, bit for bit, alone or in any company, on any machine of the kind.
//!
//! Work is split over the rayon pool that the caller is in.

mod attention;
mod bandwidth;
mod heap;
mod int8;
mod isa;
pub mod map;
mod matmul;
pub mod packed;
mod parallel;
mod planes;
mod rows;
pub mod vector;

pub use attention::{KvPages, attend, attend_on};
pub use bandwidth::read_bandwidth;
pub use heap::{give_back_free_memory, keep_heap_small};
pub use int8::{Int8Weights, matmul_int8, matmul_int8_on};
pub use isa::Isa;
pub use matmul::{Elements, Weights, matmul, matmul_on};
pub use packed::Packed;
pub use planes::{PlaneTiles, add_planes, add_planes_on};
pub use rows::{add, add_bias, rms_norm, rope, silu_mul};
