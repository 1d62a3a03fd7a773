//! Base plus variant as a model of its own: an HF folder that any other tool opens.

use crate::{Error, progress::Progress};
use bitdelta_delta::{Variant, part};
use bitdelta_engine::check_fits;
use bitdelta_model::{Base, Dtype};
use std::{collections::HashMap, path::Path};

/// Writes base + variant to `dir`, tensor by tensor.
///
/// # Errors
/// As [`check_fits()`]; what [`Base::export_hf`] refuses.
pub fn export_hf(
    base: &Base,
    variant: &Variant,
    path: &Path,
    dir: &Path,
    dtype: Dtype,
    progress: &dyn Progress,
) -> Result<(), Error> {
    check_fits(base, variant, path)?;
    let names = base.matrices().map(|matrix| matrix.name.as_str());
    let matrices: HashMap<&str, _> = names.zip(&variant.linears).collect();
    let extras = variant.extras.iter().map(|extra| (base.tensors()[extra.tensor].name.as_str(), extra));
    let extras: HashMap<&str, _> = extras.collect();
    progress.begin("exporting", base.tensors().len() as u64, "tensors");
    base.export_hf(dir, dtype, &mut |name, mut weights| {
        if let Some(delta) = matrices.get(name) {
            part::add_to(&delta.parts, &mut weights, delta.cols);
        }
        if let Some(extra) = extras.get(name) {
            extra.add_to(&mut weights);
        }
        progress.advance(1, "");
        Ok(weights)
    })?;
    progress.end();
    Ok(())
}
