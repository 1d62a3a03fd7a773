//! Base plus variant as a model of its own: an HF folder that any other tool opens.

use crate::{Error, progress::Progress};
use bitdelta_delta::{Variant, part};
use bitdelta_model::{Base, Dtype};
use std::{collections::HashMap, path::Path};

/// Refuses a variant of another base, or one whose shapes are not the base's. `path` is the variant's file.
///
/// # Errors
/// [`bitdelta_engine::Error::WrongBase`] or [`Error::Unfit`].
pub fn check_fits(base: &Base, variant: &Variant, path: &Path) -> Result<(), Error> {
    if variant.info.base != base.fingerprint() {
        return Err(Error::Engine(bitdelta_engine::Error::WrongBase {
            path: path.to_owned(),
            made_on: variant.info.base.clone(),
            made_on_name: variant.info.base_name.clone(),
            serving: base.fingerprint().to_owned(),
            serving_name: base.name.clone(),
        }));
    }
    let unfit = |problem: String| Error::Unfit { path: path.to_owned(), problem };
    let (found, expected) = (variant.linears.len(), base.linears().len());
    if found != expected {
        return Err(unfit(format!("it covers {found} linears, the base has {expected}")));
    }
    for (delta, linear) in variant.linears.iter().zip(base.linears()) {
        if (delta.rows, delta.cols) != (linear.rows, linear.cols) {
            let shapes = format!("{} x {}, the base's is {} x {}", delta.rows, delta.cols, linear.rows, linear.cols);
            return Err(unfit(format!("its delta of {} is {shapes}", linear.name)));
        }
    }
    for extra in &variant.extras {
        let elements = base.tensors().get(extra.tensor).map(|tensor| tensor.rows * tensor.cols);
        if elements != Some(extra.values.len()) {
            return Err(unfit(format!("its extra tensor {} has {} values", extra.tensor, extra.values.len())));
        }
    }
    Ok(())
}

/// Writes base + variant to `dir`, tensor by tensor.
///
/// # Errors
/// As [`check_fits`]; what [`Base::export_hf`] refuses.
pub fn export_hf(
    base: &Base,
    variant: &Variant,
    path: &Path,
    dir: &Path,
    dtype: Dtype,
    progress: &dyn Progress,
) -> Result<(), Error> {
    check_fits(base, variant, path)?;
    let names = base.linears().iter().map(|linear| linear.name.as_str());
    let linears: HashMap<&str, _> = names.zip(&variant.linears).collect();
    let extras = variant.extras.iter().map(|extra| (base.tensors()[extra.tensor].name.as_str(), extra));
    let extras: HashMap<&str, _> = extras.collect();
    progress.begin("exporting", base.tensors().len() as u64, "tensors");
    base.export_hf(dir, dtype, &mut |name, mut weights| {
        if let Some(delta) = linears.get(name) {
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
