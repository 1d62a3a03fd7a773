//! A variant in memory, in the layout that the kernels read.

use crate::{
    Error, Model,
    backend::{Backend, HostTensor},
    cpu::Cpu,
    weights::{vector_count, vector_place},
};
use bitdelta_delta::file::{Info, Variant};
use std::path::{Path, PathBuf};

/// A variant that was checked against its base and can run on it.
pub struct Resident<B: Backend = Cpu> {
    user: String,
    path: PathBuf,
    hash: String,
    info: Info,
    deltas: Vec<B::Delta>,
    vectors: Vec<Option<B::Weights>>,
    bytes: u64,
}

impl<B: Backend> Resident<B> {
    /// Checks `variant` against the model and moves it to the device.
    pub(crate) fn new(
        model: &Model<B>,
        user: &str,
        path: &Path,
        variant: Variant,
        hash: String,
    ) -> Result<Self, Error> {
        let base = model.base();
        if variant.info.base != base.fingerprint() {
            return Err(Error::WrongBase {
                path: path.to_owned(),
                made_on: variant.info.base.clone(),
                made_on_name: variant.info.base_name.clone(),
                serving: base.fingerprint().to_owned(),
                serving_name: base.name.clone(),
            });
        }
        let shape_error = |what: String| Error::Shape { path: path.to_owned(), what };
        if variant.linears.len() != base.linears().len() {
            let (has, needs) = (variant.linears.len(), base.linears().len());
            return Err(shape_error(format!("it covers {has} linears, the base has {needs}")));
        }
        for (delta, linear) in variant.linears.iter().zip(base.linears()) {
            if (delta.rows, delta.cols) != (linear.rows, linear.cols) {
                let (has, needs) = ((delta.rows, delta.cols), (linear.rows, linear.cols));
                return Err(shape_error(format!("{} has shape {has:?}, the base's {needs:?}", linear.name)));
            }
        }
        let deltas: Vec<B::Delta> = variant.linears.iter().map(|delta| model.backend().delta(delta)).collect();
        let mut bytes: u64 = deltas.iter().map(|delta| model.backend().delta_bytes(delta)).sum();
        let layers = base.config.layers;
        let mut vectors: Vec<Option<B::Weights>> = Vec::new();
        for extra in &variant.extras {
            let tensor = base.tensors().get(extra.tensor);
            let place = tensor.and_then(|tensor| vector_place(layers, &tensor.name));
            let (Some(tensor), Some(place)) = (tensor, place) else {
                return Err(shape_error(format!("it changes tensor {}, which is no norm or bias", extra.tensor)));
            };
            let mut values = base.tensor_f32(&tensor.name)?;
            if values.len() != extra.values.len() {
                let (has, needs) = (extra.values.len(), values.len());
                return Err(shape_error(format!("{} has {has} values, the base's {needs}", tensor.name)));
            }
            extra.add_to(&mut values);
            bytes += 4 * values.len() as u64;
            vectors.resize_with(vector_count(layers), || None);
            let cols = values.len();
            vectors[place] = Some(model.backend().weights(HostTensor::F32(values), 1, cols));
        }
        Ok(Self { user: user.to_owned(), path: path.to_owned(), hash, info: variant.info, deltas, vectors, bytes })
    }

    /// The user's id.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The file it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Content hash of the variant (hex): the same bytes have the same hash.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the file says about itself.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The delta of the linear at `index` in the base's order.
    pub(crate) fn delta(&self, index: usize) -> &B::Delta {
        &self.deltas[index]
    }

    /// The variant's own norm weight or bias at `place`, where it has one.
    pub(crate) fn vector(&self, place: usize) -> Option<&B::Weights> {
        self.vectors.get(place)?.as_ref()
    }
}
