//! Writing low-rank factors as an adapter that PEFT opens.

use super::{CONFIG_FILE, Factors, PREFIX, TENSOR_FILE, module_name, transposed};
use crate::{Base, Error, export, layout::TABLES};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Map, json};
use std::{collections::BTreeMap, path::Path};

/// Writes `modules`, (HF tensor name, factors) each, as a LoRA adapter of `base` in the new folder `dir`, in f32.
///
/// Scales go into B, so that every module's lora_alpha is its rank.
///
/// # Errors
/// [`Error::Export`] for no modules at all, a `dir` that holds something already, or an embedding with a tied head, which
/// PEFT would untie; [`Error::Io`].
pub fn write(base: &Base, modules: Vec<(String, Factors)>, dir: &Path) -> Result<(), Error> {
    let refuse = |reason: &str| Err(Error::Export { path: dir.to_owned(), reason: reason.to_owned() });
    if modules.is_empty() {
        return refuse("the variant changes nothing, and an adapter of no module is none");
    }
    if base.config.tied && modules.iter().any(|(tensor, _)| tensor == TABLES[0]) {
        return refuse(
            "it changes the embedding, which is this base's head too; PEFT would untie them: export it merged",
        );
    }
    let most = modules.iter().map(|(_, factors)| factors.rank).max().unwrap_or(1);
    let mut ranks = Map::new();
    for (tensor, factors) in modules.iter().filter(|(_, factors)| factors.rank != most) {
        ranks.insert(pattern(tensor), json!(factors.rank));
    }
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": targets(base, &modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "inference_mode": true,
        "use_rslora": false,
        "use_dora": false,
        "modules_to_save": null,
    });
    let tensors: BTreeMap<String, Stored> =
        modules.into_iter().flat_map(|(tensor, factors)| named(&tensor, factors)).collect();
    export::in_new_folder(dir, |folder| {
        export::save(folder, CONFIG_FILE, &config)?;
        let path = folder.join(TENSOR_FILE);
        let failed =
            |error: safetensors::SafeTensorError| Error::Export { path: path.clone(), reason: error.to_string() };
        let views = tensors.iter().map(|(name, (shape, bytes))| {
            TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name.clone(), view))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        serialize_to_file(views, Some([("format".to_owned(), "pt".to_owned())].into()), &path).map_err(failed)
    })
}

/// Shape and bytes of a tensor.
type Stored = (Vec<usize>, Vec<u8>);

/// The two tensors of a module under PEFT's names.
fn named(tensor: &str, factors: Factors) -> [(String, Stored); 2] {
    let Factors { rank, a, mut b, scale, .. } = factors;
    b.iter_mut().for_each(|b| *b *= scale);
    let module = format!("{PREFIX}{}", module_name(tensor));
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (cols, rows) = (a.len() / rank, b.len() / rank);
    match tensor == TABLES[0] {
        false => [
            (format!("{module}.lora_A.weight"), (vec![rank, cols], bytes(&a))),
            (format!("{module}.lora_B.weight"), (vec![rows, rank], bytes(&b))),
        ],
        true => [
            (format!("{module}.lora_embedding_A"), (vec![rank, rows], bytes(&transposed(&b, rank)))),
            (format!("{module}.lora_embedding_B"), (vec![cols, rank], bytes(&transposed(&a, cols)))),
        ],
    }
}

/// The names to put beside: a kind of module where all of the base's are there, else each by itself.
fn targets(base: &Base, modules: &[(String, Factors)]) -> Vec<String> {
    let kind = |tensor: &str| module_name(tensor).rsplit('.').next().unwrap_or(tensor).to_owned();
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for matrix in base.matrices() {
        counts.entry(kind(&matrix.name)).or_default().0 += 1;
    }
    for (tensor, _) in modules {
        counts.entry(kind(tensor)).or_default().1 += 1;
    }
    let whole = |tensor: &str| counts.get(&kind(tensor)).is_some_and(|(all, here)| all == here);
    let mut names: Vec<String> = modules
        .iter()
        .map(|(tensor, _)| if whole(tensor) { kind(tensor) } else { module_name(tensor).to_owned() })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// A key of `rank_pattern` for one module; PEFT matches it against the end of a module's name, before which old releases
/// want a dot.
fn pattern(tensor: &str) -> String {
    let name = module_name(tensor);
    name.strip_prefix("model.").unwrap_or(name).replace('.', r"\.")
}
