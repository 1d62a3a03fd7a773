//! Writes a model's logits over given tokens to a file, for checks against other implementations (`make oracles`).
//!
//! Usage: `logits MODEL IN.safetensors OUT.safetensors [VARIANT]`, where `IN` holds `input_ids` (T) as i64 and `OUT`
//! will hold `logits` (T, vocabulary) as f32.

use bitdelta_delta::Variant;
use bitdelta_engine::{Model, ModelOptions};
use bitdelta_model::Base;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{env, error::Error, fs, path::Path, sync::Arc};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (paths, variant) = match arguments.as_slice() {
        [model, input, output] => ([model, input, output], None),
        [model, input, output, variant] => ([model, input, output], Some(Path::new(variant))),
        _ => return Err("usage: logits MODEL IN.safetensors OUT.safetensors [VARIANT]".into()),
    };
    let [model, input, output] = paths;
    let bytes = fs::read(input)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let ids = file.tensor("input_ids")?.data().chunks_exact(8);
    let tokens = ids
        .map(|id| Ok(u32::try_from(i64::from_le_bytes(id.try_into()?))?))
        .collect::<Result<Vec<_>, Box<dyn Error>>>()?;

    let model = Model::load(Arc::new(Base::open(model)?), ModelOptions { threads: 0, ..ModelOptions::default() })?;
    let resident = match variant {
        Some(path) => Some(model.prepare("oracle", path, Variant::read(path)?)?),
        None => None,
    };
    let mut logits = Vec::new();
    model.logits(&tokens, 0..tokens.len(), resident.as_ref(), &mut |_, row| {
        logits.extend(row.iter().flat_map(|logit| logit.to_le_bytes()));
    })?;
    let shape = vec![tokens.len(), logits.len() / 4 / tokens.len()];
    let view = TensorView::new(Dtype::F32, shape, &logits)?;
    safetensors::serialize_to_file([("logits", view)], None, Path::new(output))?;
    Ok(())
}
