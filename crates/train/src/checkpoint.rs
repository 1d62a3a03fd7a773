//! Checkpoints: everything a run needs to go on as if it had never stopped.
//!
//! `output_dir/checkpoint-N` holds `tensors.safetensors` (parameters and moments, f32) and `state.json`. It is written
//! under another name, synced and renamed, so a folder of that name is whole; older ones go only after that.

use crate::{
    Error,
    graph::{matrix::Matrix, parameter::Parameter},
    optimiser::AdamW,
};
use safetensors::{Dtype, SafeTensors, tensor::View};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    borrow::Cow,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

const TENSORS: &str = "tensors.safetensors";
const STATE: &str = "state.json";
const PREFIX: &str = "checkpoint-";
/// What a folder is called while it is written.
const PARTIAL: &str = ".checkpoint-";

/// A matrix as safetensors writes it.
struct Stored<'a> {
    shape: [usize; 2],
    values: &'a [f32],
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.values.len() * 4
    }
}

/// Writes `output_dir/checkpoint-{step}` and removes the oldest beyond `keep`. `best` are the best weights so far.
pub(crate) fn save(
    output_dir: &Path,
    (step, state): (usize, &impl Serialize),
    parameters: &[Arc<Parameter>],
    optimiser: &AdamW,
    best: Option<&[Matrix]>,
    keep: Option<usize>,
) -> Result<PathBuf, Error> {
    let values: Vec<_> = parameters.iter().map(|parameter| parameter.value()).collect();
    let mut tensors: Vec<(String, Stored)> = Vec::with_capacity(parameters.len() * 4);
    let stored = |matrix: &'_ Matrix| [matrix.rows(), matrix.cols()];
    for (i, parameter) in parameters.iter().enumerate() {
        let (first, second) = &optimiser.moments[i];
        let best = best.map(|best| ("best", &best[i]));
        for (what, matrix) in [("value", &*values[i]), ("first", first), ("second", second)].into_iter().chain(best) {
            let shown = Stored { shape: stored(matrix), values: matrix.values() };
            tensors.push((format!("{what}.{}", parameter.name()), shown));
        }
    }
    let tensors = |folder: &Path| {
        let path = folder.join(TENSORS);
        safetensors::serialize_to_file(tensors, None, &path).map_err(|error| Error::Checkpoint {
            path: output_dir.join(format!("{PREFIX}{step}")),
            problem: format!("it could not be written: {error}"),
        })?;
        sync(&path)
    };
    publish(output_dir, (step, state), tensors, keep)
}

/// As [`save`], a state with no tensors beside it.
pub(crate) fn save_state(output_dir: &Path, step: usize, state: &impl Serialize) -> Result<PathBuf, Error> {
    publish(output_dir, (step, state), |_| Ok(()), Some(1))
}

/// Writes the checkpoint of a step whole: `tensors` fills its folder, the state is added.
fn publish(
    output_dir: &Path,
    (step, state): (usize, &impl Serialize),
    tensors: impl FnOnce(&Path) -> Result<(), Error>,
    keep: Option<usize>,
) -> Result<PathBuf, Error> {
    let target = output_dir.join(format!("{PREFIX}{step}"));
    let folder = tempfile::Builder::new()
        .prefix(PARTIAL)
        .tempdir_in(output_dir)
        .map_err(|source| Error::io(output_dir, source))?;
    tensors(folder.path())?;
    let path = folder.path().join(STATE);
    let json = serde_json::to_vec_pretty(state).map_err(|error| Error::io(&path, error.into()))?;
    fs::write(&path, json).map_err(|source| Error::io(&path, source))?;
    sync(&path)?;
    if target.exists() {
        fs::remove_dir_all(&target).map_err(|source| Error::io(&target, source))?;
    }
    fs::rename(folder.keep(), &target).map_err(|source| Error::io(&target, source))?;
    sync(output_dir)?;
    if let Some(keep) = keep {
        let found = list(output_dir);
        for (_, old) in found.iter().take(found.len().saturating_sub(keep)) {
            fs::remove_dir_all(old).map_err(|source| Error::io(old, source))?;
        }
    }
    Ok(target)
}

/// Reads a checkpoint into `parameters` and the optimiser's moments; returns its state, whose identity `of` knows, and the best
/// weights, if any are kept.
pub(crate) fn load<T: DeserializeOwned>(
    folder: &Path,
    identity: &str,
    of: impl Fn(&T) -> &str,
    parameters: &[Arc<Parameter>],
    optimiser: &mut AdamW,
) -> Result<(T, Option<Vec<Matrix>>), Error> {
    let wrong = |problem: String| Error::Checkpoint { path: folder.into(), problem };
    let state = load_state(folder, identity, of)?;
    let bytes = fs::read(folder.join(TENSORS)).map_err(|error| wrong(format!("{TENSORS}: {error}")))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| wrong(format!("{TENSORS}: {error}")))?;
    let matrix = |what: &str, parameter: &Parameter| -> Result<Matrix, Error> {
        let name = format!("{what}.{}", parameter.name());
        let tensor = file.tensor(&name).map_err(|error| wrong(format!("{name}: {error}")))?;
        let shape = [parameter.rows(), parameter.cols()];
        if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
            return Err(wrong(format!("{name} is {:?} {:?}, expected F32 {shape:?}", tensor.dtype(), tensor.shape())));
        }
        let values = tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Ok(Matrix::new(shape[0], shape[1], values))
    };
    let has_best = file.names().iter().any(|name| name.starts_with("best."));
    // All of it is read before anything is changed.
    let (mut values, mut moments, mut best) = (Vec::new(), Vec::new(), Vec::new());
    for parameter in parameters {
        values.push(matrix("value", parameter)?);
        moments.push((matrix("first", parameter)?, matrix("second", parameter)?));
        if has_best {
            best.push(matrix("best", parameter)?);
        }
    }
    parameters.iter().zip(values).for_each(|(parameter, value)| *parameter.value_mut() = value);
    optimiser.moments = moments;
    Ok((state, has_best.then_some(best)))
}

/// The state in a checkpoint, if its identity is the run's.
pub(crate) fn load_state<T: DeserializeOwned>(
    folder: &Path,
    identity: &str,
    of: impl Fn(&T) -> &str,
) -> Result<T, Error> {
    let wrong = |problem: String| Error::Checkpoint { path: folder.into(), problem };
    let bytes = fs::read(folder.join(STATE)).map_err(|error| wrong(format!("{STATE}: {error}")))?;
    let state = serde_json::from_slice(&bytes).map_err(|error| wrong(format!("{STATE}: {error}")))?;
    match of(&state) == identity {
        true => Ok(state),
        false => Err(wrong(
            "it belongs to a run with other settings, data or base; use --overwrite_output_dir to start anew".into(),
        )),
    }
}

/// The checkpoints of a folder by rising step.
pub(crate) fn list(output_dir: &Path) -> Vec<(usize, PathBuf)> {
    let entries = fs::read_dir(output_dir).into_iter().flatten().flatten();
    let mut found: Vec<(usize, PathBuf)> = entries
        .filter_map(|entry| {
            let step = entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
            entry.path().join(STATE).is_file().then(|| (step, entry.path()))
        })
        .collect();
    found.sort();
    found
}

/// Removes what a run that was killed while saving left behind.
pub(crate) fn clean(output_dir: &Path) {
    for entry in fs::read_dir(output_dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            // Not being able to remove it harms nothing but disk space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn sync(path: &Path) -> Result<(), Error> {
    let done: io::Result<()> = File::open(path).and_then(|file| file.sync_all());
    done.map_err(|source| Error::io(path, source))
}
