//! `zoo.gym._native`: what the Python package asks of the Rust crates, and nothing that Python can say better itself.
//!
//! Arrays come in as NumPy's own memory and go out as memory that NumPy takes over; long work runs without the
//! interpreter's lock. The surface that users see (`zoo.gym`, `hanzo`) is Python, in `packages/`. Start reading at
//! `tensors` for the quantizer, `train` for a run with progress and Ctrl-C, `engine` for answers.

mod base;
mod config;
mod engine;
mod errors;
mod tensors;
mod train;

use pyo3::prelude::*;

/// The compiled part of `zoo.gym`; its functions are not for users.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::base::Base;
    #[pymodule_export]
    use crate::config::{check_config, default_config, default_model, parse_size};
    #[pymodule_export]
    use crate::engine::Engine;
    #[pymodule_export]
    use crate::tensors::{dequantize, quantize};
    #[pymodule_export]
    use crate::train::{annotate, check_user, compress, train, variant_info};
}
