//! The training graph of the Llama family (Llama, Qwen3): forward and a written-out backward in f32.
//!
//! Why no autograd: what the base freezes needs no gradient, q, k and v want one product, activations can be formed
//! again, and candle's element-wise operations run on one thread. Written out, a layer keeps 23 KB a token on
//! SmolLM2 and spends most of its time in matrix products, which are candle's in f32 and our kernels' in bf16. The tests hold every gradient
//! against candle's autograd over the same model composed of candle's own operations.
//!
//! Start at [`Graph`], then `layer.rs`; each operation has its own file with both directions.

pub mod attention;
mod buffer;
mod build;
pub mod distil_loss;
pub mod frozen;
pub mod layer;
pub mod linear;
pub mod loss;
pub mod matrix;
mod model;
pub mod norm;
pub mod parameter;
pub mod rope;
pub mod swiglu;

pub use build::{Adaptation, Keeping, Weights};
pub use frozen::Storage;
pub use matrix::Precision;
pub use model::{Graph, PackedBatch};
