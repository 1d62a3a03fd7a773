//! Kernels: everything `unsafe` and everything SIMD, each beside its scalar reference.
#![warn(missing_docs)]
pub mod map;
