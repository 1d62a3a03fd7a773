//! The variant file: safetensors with three byte arrays.
//!
//! | array | holds |
//! | --- | --- |
//! | `manifest` | kind, bits, rank, group of each matrix in the base's fixed order (`manifest.rs`) |
//! | `payload` | bit planes, scales, offsets, tensor scales, f16 values: a section each, 64-byte aligned (`payload.rs`) |
//! | `info` | [`Info`] as zstd JSON |
//!
//! The header's `__metadata__` is `{"bitdelta": "1:<hash>"}`: the format's version and one BLAKE3 over the three arrays,
//! each led by its length as a little-endian u64 (`container.rs`). Names, offsets and checksums of single tensors are not
//! stored: for 210 linears they would outweigh a small variant.
//!
//! A file is untrusted input: it is read into memory whole (a mapped file could change after its check), its hash is
//! compared, and every length, offset, pad bit and scale is checked before use. Memory asked for is bounded by the
//! file's own size plus [`MAX_INFO_BYTES`].

mod coded;
mod container;
mod manifest;
mod payload;

pub use crate::error::Error;
use crate::{config::BitDeltaConfig, part::Part};
pub use coded::coded_bytes;
use half::f16;
use serde::{Deserialize, Serialize};
use std::{
    ops::Range,
    path::{Path, PathBuf},
};

/// The version of the format that this build writes and reads.
pub const VERSION: u32 = 1;
/// Name of the file inside a variant's folder.
pub const FILE_NAME: &str = "variant.safetensors";
/// Largest `info`, in bytes of JSON.
pub const MAX_INFO_BYTES: usize = 1 << 20;
/// Most experiences of a variant: they are in every prompt it is asked with.
pub const MAX_EXPERIENCES: usize = 32;
/// Largest experience, in bytes of UTF-8.
pub const MAX_EXPERIENCE_BYTES: usize = 1000;

/// What `info` holds (zstd JSON).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// Fingerprint of the base (hex).
    pub base: String,
    /// Human name of the base (display only).
    #[serde(default)]
    pub base_name: String,
    /// The configuration it was made with.
    pub config: BitDeltaConfig,
    /// Chat template the training prompts were made with: "model" or a --template name, and its hash. Empty: unknown.
    #[serde(default)]
    pub template: String,
    /// Lessons in words, a line each, that stand in the system turn of every chat with the variant; at most
    /// [`MAX_EXPERIENCES`] of [`MAX_EXPERIENCE_BYTES`]. Most variants have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub experiences: Vec<String>,
    /// Provenance, fidelity, safety figures: free-form JSON.
    #[serde(default)]
    pub notes: serde_json::Map<String, serde_json::Value>,
}

impl Info {
    /// Info of this format's version with no notes yet.
    pub fn new(base: &str, base_name: &str, config: BitDeltaConfig, template: &str) -> Self {
        Self {
            version: VERSION,
            base: base.into(),
            base_name: base_name.into(),
            config,
            template: template.into(),
            experiences: Vec::new(),
            notes: serde_json::Map::new(),
        }
    }
}

/// A variant in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Figures and provenance.
    pub info: Info,
    /// For each matrix in the base's fixed order its parts: the linears and, in a variant that changes any of them, all
    /// tables (the embedding, then the head where it is not tied).
    pub linears: Vec<LinearDelta>,
    /// Deltas of tensors that are no linears (norms, biases), by rising index; most variants have none.
    pub extras: Vec<Extra>,
}

/// The delta of one linear, or of a table: a row for each token.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearDelta {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Parts that add up; empty is Skip.
    pub parts: Vec<Part>,
    /// ‖Δ̂−Δ‖/‖Δ‖ as recorded when it was made; None when unknown. The file keeps it to within 2.2 %.
    pub relative_error: Option<f32>,
}

/// An f16 delta added to a whole tensor that is no linear: a norm's weight or a bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Extra {
    /// Index in the base's fixed list of tensors (`Base::tensors`).
    pub tensor: usize,
    /// f16 bits, as many as the tensor has elements.
    pub values: Vec<u16>,
}

impl Extra {
    /// `weights` += this delta.
    pub fn add_to(&self, weights: &mut [f32]) {
        for (weight, &bits) in weights.iter_mut().zip(&self.values) {
            *weight += f16::from_bits(bits).to_f32();
        }
    }
}

/// A file whose header was read, and whose matrices are not decoded yet.
#[derive(Debug)]
pub struct Stored<'a> {
    /// Figures and provenance.
    pub info: Info,
    /// BLAKE3 content hash (hex).
    pub hash: String,
    plan: manifest::Plan,
    arrays: container::Arrays<'a>,
    path: &'a Path,
}

impl<'a> Stored<'a> {
    /// Verifies a file's bytes; `path` is for error messages.
    ///
    /// # Errors
    /// As [`Variant::read`], but for what is wrong with the payload.
    pub fn open(bytes: &'a [u8], path: &'a Path) -> Result<Self, Error> {
        let stored = Self::unverified(bytes, path)?;
        container::verify(&stored.arrays, &stored.hash, path, container::Cores::All)?;
        Ok(stored)
    }

    /// Reads a file's header: nothing that comes of it may be used before [`Self::verify`], which takes as long as decoding
    /// and can be done beside it.
    ///
    /// # Errors
    /// As [`Self::open`]; of a file whose bytes changed, that they did.
    pub fn unverified(bytes: &'a [u8], path: &'a Path) -> Result<Self, Error> {
        let (arrays, hash) = container::parse(bytes, path)?;
        let malformed = |section| move |reason| Error::Malformed { path: path.to_owned(), section, reason };
        let parsed = || -> Result<_, Error> {
            let info = decode_info(arrays.info).map_err(malformed("info"))?;
            check_info(&info).map_err(malformed("info"))?;
            Ok((info, manifest::decode(arrays.manifest).map_err(malformed("manifest"))?))
        };
        match parsed() {
            Ok((info, plan)) => Ok(Self { info, hash, plan, arrays, path }),
            Err(error) => {
                container::verify(&arrays, &hash, path, container::Cores::All)?;
                Err(error)
            }
        }
    }

    /// Compares the file's bytes with the hash that it states, on this thread alone.
    ///
    /// # Errors
    /// [`Error::HashMismatch`].
    pub fn verify(&self) -> Result<(), Error> {
        container::verify(&self.arrays, &self.hash, self.path, container::Cores::Own)
    }

    /// (rows, cols) of each matrix.
    pub fn shapes(&self) -> impl ExactSizeIterator<Item = (usize, usize)> + '_ {
        self.plan.linears.iter().map(|(class, _)| (self.plan.classes[*class].rows, self.plan.classes[*class].cols))
    }

    /// Decodes and checks one matrix after another, so that only one lies in memory beside what `each` makes of it, and
    /// then returns the extras.
    ///
    /// # Errors
    /// [`Error::Malformed`], by when `each` may have had some matrices.
    pub fn decode(&self, each: &mut dyn FnMut(LinearDelta)) -> Result<Vec<Extra>, Error> {
        self.decode_some(0..self.plan.linears.len(), each)
    }

    /// Two ranges of matrices, of about one and three quarters of the weights, that [`Self::decode_some`] can decode side by side:
    /// the second takes about as long as [`Self::verify`] and the first together. `None` where a coded stream has to be read from its beginning.
    pub fn halves(&self) -> Option<[Range<usize>; 2]> {
        let weights: Vec<u64> = self.shapes().map(|(rows, cols)| rows as u64 * cols as u64).collect();
        let (total, mut before) = (weights.iter().sum::<u64>(), 0);
        let middle = weights.iter().position(|weights| {
            before += weights;
            4 * before >= total
        });
        let middle = middle? + 1;
        (self.plan.coded == 0).then_some([0..middle, middle..weights.len()])
    }

    /// [`Self::decode`] of a range of [`Self::halves`]; the extras come with the last one.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_some(&self, linears: Range<usize>, each: &mut dyn FnMut(LinearDelta)) -> Result<Vec<Extra>, Error> {
        let malformed = |reason| Error::Malformed { path: self.path.to_owned(), section: "payload", reason };
        let extras = payload::decode(&self.plan, self.arrays.payload, linears, each).map_err(malformed)?;
        check_extras(&extras).map_err(malformed)?;
        Ok(extras)
    }
}

/// The file behind a path that names a variant: the path itself, or `variant.safetensors` in it when it is a folder.
pub fn locate(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(FILE_NAME) } else { path.to_owned() }
}

impl Variant {
    /// A variant of these linears, with nothing beside them.
    pub fn new(info: Info, linears: Vec<LinearDelta>) -> Self {
        Self { info, linears, extras: Vec::new() }
    }

    /// Reads and verifies a file, or a folder that holds `variant.safetensors`.
    ///
    /// # Errors
    /// Every [`Error`] that names a path.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Ok(Self::read_hashed(path)?.0)
    }

    /// [`Variant::read`], and the content hash that was verified.
    ///
    /// # Errors
    /// As [`Variant::read`].
    pub fn read_hashed(path: &Path) -> Result<(Self, String), Error> {
        let path = locate(path);
        let io = |source| Error::Io { path: path.clone(), source };
        if !std::fs::metadata(&path).map_err(io)?.is_file() {
            return Err(Error::NotAVariant { path, reason: "no regular file".into() });
        }
        let bytes = std::fs::read(&path).map_err(io)?;
        Self::from_bytes(&bytes, &path)
    }

    /// Verifies and parses a file's bytes; `path` is for error messages. Returns the content hash too.
    ///
    /// # Errors
    /// As [`Variant::read`].
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<(Self, String), Error> {
        let stored = Stored::open(bytes, path)?;
        let mut linears = Vec::with_capacity(stored.plan.linears.len());
        let extras = stored.decode(&mut |linear| linears.push(linear))?;
        let variant = Self { info: stored.info, linears, extras };
        Ok((variant, stored.hash))
    }

    /// Writes atomically: a temporary file in the same folder, synced, then renamed over `path`. Returns the file's bytes.
    ///
    /// # Errors
    /// [`Error::Unwritable`] when the variant contradicts itself, [`Error::Io`] with the path.
    pub fn write(&self, path: &Path) -> Result<u64, Error> {
        let bytes = self.to_bytes()?;
        container::write_atomically(&bytes, path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Ok(bytes.len() as u64)
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// [`Error::Unwritable`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        container::assemble(&self.encode()?.arrays())
    }

    /// BLAKE3 content hash (hex), as stored in the file: names this exact variant. Encodes it anew; where a file was
    /// read, [`Variant::read_hashed`] has the hash already.
    ///
    /// # Errors
    /// [`Error::Unwritable`].
    pub fn content_hash(&self) -> Result<String, Error> {
        Ok(container::hash(&self.encode()?.arrays()))
    }

    /// Bytes of packed deltas in memory: what a loaded variant weighs.
    pub fn payload_bytes(&self) -> u64 {
        let parts: u64 = self.linears.iter().flat_map(|linear| &linear.parts).map(Part::bytes).sum();
        parts + self.extras.iter().map(|extra| extra.values.len() as u64 * 2).sum::<u64>()
    }

    /// Weights in the first `linears` matrices. Of as many as the base has linears, that is what bits a weight are
    /// counted by; tables do not count.
    pub fn weights(&self, linears: usize) -> u64 {
        self.linears.iter().take(linears).map(|linear| linear.rows as u64 * linear.cols as u64).sum()
    }

    /// The three arrays of a variant that passes [`Variant::check`].
    fn encode(&self) -> Result<Encoded, Error> {
        let unwritable = |reason| Error::Unwritable { reason };
        self.check().map_err(unwritable)?;
        let (plan, stream) = manifest::Plan::of(self);
        Ok(Encoded {
            manifest: manifest::encode(&plan),
            payload: payload::encode(&plan, &stream, self).map_err(unwritable)?,
            info: encode_info(&self.info).map_err(unwritable)?,
        })
    }

    /// What must hold of every variant, read or about to be written. The reason names the linear by index.
    fn check(&self) -> Result<(), String> {
        check_info(&self.info)?;
        for (index, linear) in self.linears.iter().enumerate() {
            linear.check().map_err(|reason| format!("linear {index}: {reason}"))?;
        }
        check_extras(&self.extras)
    }
}

impl LinearDelta {
    /// What must hold of every matrix's delta, read or about to be written.
    fn check(&self) -> Result<(), String> {
        self.parts.iter().try_for_each(|part| payload::check(part, (self.rows, self.cols)))
    }
}

fn check_info(info: &Info) -> Result<(), String> {
    if info.version != VERSION {
        return Err(format!("info states version {}, expected {VERSION}", info.version));
    }
    let count = info.experiences.len();
    if count > MAX_EXPERIENCES {
        return Err(format!("{count} experiences, at most {MAX_EXPERIENCES} are allowed"));
    }
    let check = |(index, text): (usize, &String)| match text.len() {
        _ if text.trim().is_empty() => Err(format!("experience {index} is empty")),
        _ if text.contains(char::is_control) => Err(format!("experience {index} is not one line of text")),
        bytes if bytes > MAX_EXPERIENCE_BYTES => {
            Err(format!("experience {index} has {bytes} bytes, at most {MAX_EXPERIENCE_BYTES} are allowed"))
        }
        _ => Ok(()),
    };
    info.experiences.iter().enumerate().try_for_each(check)
}

fn check_extras(extras: &[Extra]) -> Result<(), String> {
    if let Some(pair) = extras.windows(2).find(|pair| pair[0].tensor >= pair[1].tensor) {
        return Err(format!("extra tensor {} after {}", pair[1].tensor, pair[0].tensor));
    }
    match extras.iter().find(|extra| extra.values.is_empty() || !payload::finite(&extra.values)) {
        Some(extra) => Err(format!("extra tensor {} is empty or not finite", extra.tensor)),
        None => Ok(()),
    }
}

/// A file's arrays, encoded.
struct Encoded {
    manifest: Vec<u8>,
    payload: Vec<u8>,
    info: Vec<u8>,
}

impl Encoded {
    fn arrays(&self) -> container::Arrays<'_> {
        container::Arrays { manifest: &self.manifest, payload: &self.payload, info: &self.info }
    }
}

/// zstd JSON of at most [`MAX_INFO_BYTES`].
fn encode_info(info: &Info) -> Result<Vec<u8>, String> {
    /// The best ratio that costs under a millisecond for a kilobyte.
    const LEVEL: i32 = 19;
    let json = serde_json::to_vec(info).map_err(|error| format!("info: {error}"))?;
    if json.len() > MAX_INFO_BYTES {
        return Err(format!("info has {} bytes of JSON, at most {MAX_INFO_BYTES} fit", json.len()));
    }
    zstd::bulk::compress(&json, LEVEL).map_err(|error| format!("info: {error}"))
}

fn decode_info(bytes: &[u8]) -> Result<Info, String> {
    let json = zstd::bulk::decompress(bytes, MAX_INFO_BYTES).map_err(|error| error.to_string())?;
    serde_json::from_slice(&json).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(experiences: Vec<String>) -> Variant {
        let mut info = Info::new(&"ab".repeat(32), "tiny", BitDeltaConfig::default(), "model");
        info.experiences = experiences;
        Variant::new(info, vec![LinearDelta { rows: 3, cols: 5, parts: Vec::new(), relative_error: None }])
    }

    #[test]
    fn words_alone_make_a_variant_and_those_without_take_no_place() {
        let variant = with(vec!["Be brief.".into(), "Réponds en français.".into()]);
        let (read, _) = Variant::from_bytes(&variant.to_bytes().expect("bytes"), Path::new("v")).expect("a variant");
        assert_eq!(read, variant);
        assert!(!serde_json::to_string(&with(Vec::new()).info).expect("JSON").contains("experiences"));
    }

    #[test]
    fn experiences_beyond_their_bounds_are_neither_written_nor_read() {
        for (experiences, word) in [
            (vec!["x".to_owned(); MAX_EXPERIENCES + 1], "33 experiences"),
            (vec!["ok".to_owned(), "é".repeat(MAX_EXPERIENCE_BYTES / 2 + 1)], "experience 1 has 1002 bytes"),
            (vec!["two\nlines".to_owned()], "not one line"),
            (vec![" ".to_owned()], "empty"),
        ] {
            let refused = with(experiences.clone()).to_bytes().expect_err(word).to_string();
            assert!(refused.contains(word), "{refused}");
            // As somebody else's program would write it.
            let mut encoded = with(Vec::new()).encode().expect("encodes");
            encoded.info = encode_info(&with(experiences).info).expect("encodes");
            let bytes = container::assemble(&encoded.arrays()).expect("bytes");
            let error = Variant::from_bytes(&bytes, Path::new("v")).expect_err(word).to_string();
            assert!(error.contains(word) && error.contains("info"), "{error}");
        }
    }
}
