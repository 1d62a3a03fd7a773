//! Deltas: what a variant is, how a weight difference is quantised, and the file it lives in.
//!
//! A variant holds, for each linear of a base model in the base's fixed order, [`Part`]s that add up to the
//! difference from the base. [`quantize()`] makes [`PackedMatrix`]es from f32 differences, [`factor`] makes low-rank
//! parts, [`Variant`] writes and reads the file. Not here: which tensors a model has (`bitdelta-model`), and
//! multiplying by packed deltas (`bitdelta-kernels`).
//!
//! Start reading at [`dense`] for the layout, then [`mod@quantize`], then [`mod@file`].

pub mod config;
pub mod dense;
pub mod error;
pub mod file;
mod fit;
pub mod floats;
pub mod lowrank;
pub mod metrics;
mod pair;
pub mod part;
pub mod quantize;
mod refine;
pub mod sizes;
pub mod tread;

pub use config::{BitDeltaConfig, GroupSize};
pub use dense::PackedMatrix;
pub use error::Error;
pub use file::{Extra, Info, LinearDelta, Variant};
pub use floats::exact_factors;
pub use lowrank::factor;
pub use pair::{Values, quantize_pair};
pub use part::Part;
pub use quantize::{Codes, quantize};
