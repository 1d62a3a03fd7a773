//! A variant for other programs: base plus variant as a model of its own (an HF folder, a GGUF file), or the variant alone
//! as a PEFT adapter.

use crate::{Error, progress::Progress};
use bitdelta_delta::{Extra, LinearDelta, Part, Variant, part};
use bitdelta_engine::check_fits;
use bitdelta_model::{Base, Dtype, adapter, adapter::Factors};
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
    let merged = Merged::new(base, variant, path)?;
    progress.begin("exporting", base.tensors().len() as u64, "tensors");
    base.export_hf(dir, dtype, &mut |name, weights| Ok(merged.tensor(name, weights, progress)))?;
    progress.end();
    Ok(())
}

/// Writes base + variant to the GGUF file `file`, tensor by tensor.
///
/// # Errors
/// As [`check_fits()`]; what [`Base::export_gguf`] refuses.
pub fn export_gguf(
    base: &Base,
    variant: &Variant,
    path: &Path,
    file: &Path,
    dtype: Dtype,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let merged = Merged::new(base, variant, path)?;
    progress.begin("exporting", base.tensors().len() as u64, "tensors");
    base.export_gguf(file, dtype, &mut |name, weights| Ok(merged.tensor(name, weights, progress)))?;
    progress.end();
    Ok(())
}

/// Writes the variant to `dir` as a LoRA adapter. Several low-rank parts of a matrix become one of their ranks' sum.
///
/// # Errors
/// As [`check_fits()`]; [`bitdelta_model::Error::Export`] for a variant that is not low-rank throughout, or changes norms
/// or biases; what [`adapter::write`] refuses.
pub fn export_adapter(base: &Base, variant: &Variant, path: &Path, dir: &Path) -> Result<(), Error> {
    check_fits(base, variant, path)?;
    let refuse = |reason: String| Error::from(bitdelta_model::Error::Export { path: dir.to_owned(), reason });
    if let Some(extra) = variant.extras.first() {
        let name = &base.tensors()[extra.tensor].name;
        return Err(refuse(format!("it changes {name}, which no LoRA does: export it merged (hf, gguf)")));
    }
    let mut modules = Vec::new();
    for (matrix, delta) in base.matrices().zip(&variant.linears).filter(|(_, delta)| !delta.parts.is_empty()) {
        let mut all = Factors { rank: 0, a: Vec::new(), b: Vec::new(), scale: 1.0, magnitude: None };
        let mut bt = Vec::new();
        for part in &delta.parts {
            let Part::LowRank { a, bt: part_bt } = part else {
                let what = format!("{} holds a {} part, which has no low rank", matrix.name, part.kind());
                return Err(refuse(format!("{what}: export it merged (hf, gguf)")));
            };
            all.rank += a.rows;
            all.a.extend(a.dequantize());
            bt.extend(part_bt.dequantize());
        }
        all.b = (0..delta.rows * all.rank).map(|at| bt[at % all.rank * delta.rows + at / all.rank]).collect();
        modules.push((matrix.name.clone(), all));
    }
    Ok(adapter::write(base, modules, dir)?)
}

/// What of a variant belongs to which tensor.
struct Merged<'a> {
    matrices: HashMap<&'a str, &'a LinearDelta>,
    extras: HashMap<&'a str, &'a Extra>,
}

impl<'a> Merged<'a> {
    fn new(base: &'a Base, variant: &'a Variant, path: &Path) -> Result<Self, Error> {
        check_fits(base, variant, path)?;
        let names = base.matrices().map(|matrix| matrix.name.as_str());
        let extras = variant.extras.iter().map(|extra| (base.tensors()[extra.tensor].name.as_str(), extra));
        Ok(Self { matrices: names.zip(&variant.linears).collect(), extras: extras.collect() })
    }

    /// `weights` of the tensor `name` and what the variant adds.
    fn tensor(&self, name: &str, mut weights: Vec<f32>, progress: &dyn Progress) -> Vec<f32> {
        if let Some(delta) = self.matrices.get(name) {
            part::add_to(&delta.parts, &mut weights, delta.cols);
        }
        if let Some(extra) = self.extras.get(name) {
            extra.add_to(&mut weights);
        }
        progress.advance(1, "");
        weights
    }
}
