//! Kernels: every `unsafe` line and every SIMD instruction of bitdelta, each beside its scalar reference.
//!
//! It knows nothing of models, variants or requests: slices and shapes go in, slices come out. Start at
//! [`vector::Vector`], the sixteen lanes that all kernels are written in, then [`project()`], the product of the base and of
//! every user's delta, and below it `int8` and `planes`.
//!
//! **The invariant of this crate.** What a row of the result is depends on that row of the input alone. The lanes, the
//! order of additions and the fused multiplications of one output element are fixed; tiles, threads, the number of
//! rows in the call and the instruction set only decide when it is computed. A request therefore gets the same
//! logits, bit for bit, alone or in any company, on any machine of the kind.
//!
//! Work is split over the [`Team`] of threads that the caller has installed.

mod again;
mod ahead;
mod arena;
mod attention;
mod bandwidth;
mod gemm;
mod heap;
mod int8;
mod isa;
mod lowrank;
pub mod map;
mod matmul;
mod narrow;
pub mod packed;
mod parallel;
mod planes;
mod project;
mod quantize;
mod rounded;
mod rows;
mod sparse;
pub mod vector;

pub use arena::{Arena, Plain, Slab};
pub use attention::{KvElements, KvPages, PAGE, PageLayout, Queries, attend, attend_on, rows_together};
pub use bandwidth::read_bandwidth;
pub use gemm::{Left, Lies, Right, Source, gemm};
pub use heap::{FreeMemoryKept, give_back_free_memory, keep_heap_small};
pub use int8::{Blocks, Int8Weights, Layout, SHORT_BLOCK};
pub use isa::{Isa, widely};
pub use lowrank::LowRankTiles;
pub use matmul::{Elements, Weights};
pub use packed::Packed;
pub use parallel::{Team, for_each, for_each_chunk};
pub use planes::PlaneTiles;
pub use project::{Matrix, Product, Term, project, project_on, rounded_row_bytes};
pub use quantize::{Pair, Survey, clip_magnitudes, survey, survey_on};
pub use rounded::Activations;
pub use rows::{add, add_bias, add_scaled, argmax, dot, rms_norm, rope, silu_mul};
pub use sparse::SparseRows;
pub use vector::prefetch_value;
