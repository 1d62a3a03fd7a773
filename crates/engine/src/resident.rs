//! A variant in memory, in the layout that the kernels read.
//!
//! [`Body`] is the memory, which the registry's cache keeps; [`Resident`] is what requests hold of it. While one lives, the
//! variant is in use and is not evicted.

use crate::{
    Error, Model,
    backend::{Backend, HostTensor},
    cpu::Cpu,
    registry::{Kept, Lease, Pin},
    weights::{vector_count, vector_place},
};
use bitdelta_delta::{
    file::{Extra, Info, LinearDelta, Stored, Variant},
    part::Part,
};
use bitdelta_model::{Base, TensorRef};
use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A variant that was checked against its base and can run on it.
pub struct Resident<B: Backend = Cpu> {
    body: Arc<Body<B>>,
    /// Goes after the body, so that whoever it wakes finds the body free. `None` outside a registry.
    _pin: Option<Pin>,
}

/// What a variant holds in memory.
pub(crate) struct Body<B: Backend> {
    user: String,
    path: PathBuf,
    hash: String,
    info: Info,
    /// Linears, then tables where the variant has them.
    deltas: Vec<B::Delta>,
    linears: usize,
    vectors: Vec<Option<B::Weights>>,
    bytes: u64,
    memory_bytes: u64,
    /// Goes last: the budget gets back what is free by then.
    lease: Option<Lease>,
}

/// What is known of a variant before its matrices.
struct About<'a> {
    user: &'a str,
    path: &'a Path,
    hash: String,
    info: Info,
}

/// Files from this size on are read and decoded by two threads.
pub(crate) const WORTH_A_THREAD: usize = 4 << 20;

/// Does `own` on this thread and `other` on another, and returns when both are done.
pub(crate) fn side_by_side<A, B: Send>(own: impl FnOnce() -> A, other: impl FnOnce() -> B + Send) -> (A, B) {
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        (own(), other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Some of a variant's matrices on the device.
struct Made<'a, B: Backend> {
    backend: &'a B,
    arena: B::Arena,
    deltas: Vec<B::Delta>,
    /// See [`frame_bytes`].
    frames: u64,
}

impl<'a, B: Backend> Made<'a, B> {
    /// For matrices that take about `bytes`.
    fn new(backend: &'a B, bytes: u64) -> Self {
        Self { backend, arena: backend.arena(bytes), deltas: Vec::new(), frames: 0 }
    }

    fn push(&mut self, delta: LinearDelta) {
        self.frames += frame_bytes::<B>(&delta);
        self.deltas.push(self.backend.delta(delta, &mut self.arena));
    }
}

impl<B: Backend> Body<B> {
    /// Checks `variant` against the model and moves it to the device, matrix by matrix.
    pub fn new(model: &Model<B>, user: &str, path: &Path, variant: Variant, hash: String) -> Result<Self, Error> {
        check_fits(model.base(), &variant, path)?;
        let bytes = variant.payload_bytes();
        let Variant { info, linears, extras } = variant;
        let about = About { user, path, hash, info };
        let mut made = Made::new(model.backend(), bytes);
        linears.into_iter().for_each(|linear| made.push(linear));
        Self::of(model, about, vec![made], &extras)
    }

    /// Checks a file against the model and moves it to the device, matrix by matrix: decoded, only one of them is in
    /// memory at a time, or one for each of two threads where that is worth it.
    pub fn read(model: &Model<B>, user: &str, path: &Path, file: &[u8]) -> Result<Self, Error> {
        let stored = Stored::unverified(file, path)?;
        if let Err(error) = check_base_and_shapes(model.base(), &stored.info, stored.shapes(), path) {
            stored.verify()?;
            return Err(error);
        }
        let (hash, info) = (stored.hash.clone(), stored.info.clone());
        let about = About { user, path, hash, info };
        let backend = model.backend();
        let make = |linears: Range<usize>, bytes: usize| -> Result<_, Error> {
            let mut made = Made::new(backend, bytes as u64);
            let extras = stored.decode_some(linears, &mut |linear| made.push(linear))?;
            Ok((extras, made))
        };
        match stored.halves().filter(|_| file.len() >= WORTH_A_THREAD) {
            None => {
                stored.verify()?;
                let (extras, made) = make(0..stored.shapes().len(), file.len())?;
                Self::of(model, about, vec![made], &extras)
            }
            Some([first, second]) => {
                // A little more than each takes, as slabs are aligned. Whatever a changed file makes of itself is dropped.
                let [less, more] = [file.len() / 3, file.len() * 4 / 5];
                let (first, second) = side_by_side(
                    || stored.verify().map_err(Error::from).and_then(|()| make(first, less)),
                    || make(second, more),
                );
                let ((_, first), (extras, second)) = (first?, second?);
                Self::of(model, about, vec![first, second], &extras)
            }
        }
    }

    /// What was made of the matrices, whose shapes were checked, and the extras.
    fn of(model: &Model<B>, about: About, made: Vec<Made<B>>, extras: &[Extra]) -> Result<Self, Error> {
        let (base, backend) = (model.base(), model.backend());
        let About { user, path, hash, info } = about;
        let (mut frames, mut deltas) = (0, Vec::with_capacity(base.linears().len()));
        let mut arena = backend.arena(0);
        for made in made {
            frames += made.frames;
            deltas.extend(made.deltas);
        }
        let mut bytes: u64 = deltas.iter().map(|delta| backend.delta_bytes(delta)).sum();
        let layers = base.config.layers;
        let mut vectors: Vec<Option<B::Weights>> = Vec::new();
        for extra in extras {
            let (place, tensor) = changed_vector(base, extra, path)?;
            let mut values = base.tensor_f32(&tensor.name)?;
            extra.add_to(&mut values);
            bytes += 4 * values.len() as u64;
            vectors.resize_with(vector_count(layers), || None);
            let cols = values.len();
            vectors[place] = Some(backend.weights(HostTensor::F32(values), 1, cols, &mut arena));
        }
        let (user, path, linears) = (user.to_owned(), path.to_owned(), base.linears().len());
        let memory_bytes = bytes + frames;
        Ok(Self { user, path, hash, info, deltas, linears, vectors, bytes, memory_bytes, lease: None })
    }

    /// Holds `lease` for as long as it lives.
    pub fn keep(&mut self, lease: Lease) {
        self.lease = Some(lease);
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn hash(&self) -> &str {
        &self.hash
    }

    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}

impl<B: Backend> Kept for Body<B> {
    type Handle = Resident<B>;

    fn handle(self: Arc<Self>, pin: Pin) -> Resident<B> {
        Resident { body: self, _pin: Some(pin) }
    }
}

impl<B: Backend> Resident<B> {
    /// Checks `variant` against the model and moves it to the device, outside any registry.
    pub(crate) fn new(
        model: &Model<B>,
        user: &str,
        path: &Path,
        variant: Variant,
        hash: String,
    ) -> Result<Self, Error> {
        Ok(Self { body: Arc::new(Body::new(model, user, path, variant, hash)?), _pin: None })
    }

    /// The user's id.
    pub fn user(&self) -> &str {
        &self.body.user
    }

    /// The file it came from.
    pub fn path(&self) -> &Path {
        &self.body.path
    }

    /// Content hash of the variant (hex): the same bytes have the same hash.
    pub fn hash(&self) -> &str {
        &self.body.hash
    }

    /// Bytes of packed deltas, norms and biases: what a step reads of it.
    pub fn bytes(&self) -> u64 {
        self.body.bytes
    }

    /// Bytes in memory: [`Self::bytes`] and what describes them, which is as much again in a variant of a tenth of a
    /// megabyte.
    pub fn memory_bytes(&self) -> u64 {
        self.body.memory_bytes
    }

    /// What the file says about itself.
    pub fn info(&self) -> &Info {
        &self.body.info
    }

    /// The delta of the linear at `index` in the base's order.
    pub(crate) fn delta(&self, index: usize) -> &B::Delta {
        &self.body.deltas[index]
    }

    /// The delta of the embedding, in a variant that has tables.
    pub(crate) fn embedding(&self) -> Option<&B::Delta> {
        self.body.deltas[self.body.linears..].first()
    }

    /// The delta of the head, in a variant that has tables; where the head is tied, that of the embedding.
    pub(crate) fn head(&self) -> Option<&B::Delta> {
        self.body.deltas[self.body.linears..].last()
    }

    /// The variant's own norm weight or bias at `place`, where it has one.
    pub(crate) fn vector(&self, place: usize) -> Option<&B::Weights> {
        self.body.vectors.get(place)?.as_ref()
    }
}

/// What a matrix's delta takes beside its own bytes: its description, those of its parts, and what the allocator adds to
/// each block (planes, scales and offsets of two factors, the list of parts).
fn frame_bytes<B: Backend>(delta: &LinearDelta) -> u64 {
    const BLOCK_BYTES: usize = 16;
    const BLOCKS: usize = 7;
    (size_of::<B::Delta>() + delta.parts.len() * (size_of::<Part>() + BLOCKS * BLOCK_BYTES)) as u64
}

/// Refuses a variant of another base, or one whose shapes are not the base's. `path` is the variant's file.
///
/// # Errors
/// [`Error::WrongBase`] or [`Error::Shape`].
pub fn check_fits(base: &Base, variant: &Variant, path: &Path) -> Result<(), Error> {
    let shapes = variant.linears.iter().map(|delta| (delta.rows, delta.cols));
    check_base_and_shapes(base, &variant.info, shapes, path)?;
    variant.extras.iter().try_for_each(|extra| changed_vector(base, extra, path).map(|_| ()))
}

fn check_base_and_shapes(
    base: &Base,
    info: &Info,
    shapes: impl ExactSizeIterator<Item = (usize, usize)>,
    path: &Path,
) -> Result<(), Error> {
    if info.base != base.fingerprint() {
        return Err(Error::WrongBase {
            path: path.to_owned(),
            made_on: info.base.clone(),
            made_on_name: info.base_name.clone(),
            serving: base.fingerprint().to_owned(),
            serving_name: base.name.clone(),
        });
    }
    let shape_error = |what: String| Error::Shape { path: path.to_owned(), what };
    let (found, linears, tables) = (shapes.len(), base.linears().len(), base.tables().count());
    if found != linears && found != linears + tables {
        let expected = format!("the base has {linears} linears ({} with its embedding and head)", linears + tables);
        return Err(shape_error(format!("it covers {found} matrices, {expected}")));
    }
    for (has, matrix) in shapes.zip(base.matrices()) {
        let needs = (matrix.rows, matrix.cols);
        if has != needs {
            return Err(shape_error(format!("{} has shape {has:?}, the base's {needs:?}", matrix.name)));
        }
    }
    Ok(())
}

/// The place and the tensor of the norm or bias that `extra` changes.
fn changed_vector<'a>(base: &'a Base, extra: &Extra, path: &Path) -> Result<(usize, &'a TensorRef), Error> {
    let shape_error = |what: String| Error::Shape { path: path.to_owned(), what };
    let tensor = base.tensors().get(extra.tensor);
    let place = tensor.and_then(|tensor| vector_place(base.config.layers, &tensor.name));
    let (Some(tensor), Some(place)) = (tensor, place) else {
        return Err(shape_error(format!("it changes tensor {}, which is no norm or bias", extra.tensor)));
    };
    let (has, needs) = (extra.values.len(), tensor.rows * tensor.cols);
    if has != needs {
        return Err(shape_error(format!("{} has {has} values, the base's {needs}", tensor.name)));
    }
    Ok((place, tensor))
}
