//! GGUF files: header, metadata and tensor table of versions 2 and 3, read here and written in `export`.
//!
//! A GGUF file is untrusted. The reader walks the bytes with checked lengths and offsets, never reserves memory by a
//! length that it has not compared with what is left of the file, and hands out only tensors that lie inside it.
//!
//! ```text
//! "GGUF" version:u32 tensors:u64 pairs:u64
//! pairs   × (key:str type:u32 value)           str = length:u64 bytes
//! tensors × (name:str dims:u32 dim:u64… type:u32 offset:u64)
//! padding to `general.alignment`, then data; offsets count from there
//! ```

pub(crate) mod blocks;
mod describe;
mod export;
pub(crate) mod names;
pub(crate) mod quants;
pub(crate) mod tokenizer;
mod write;

use crate::{Error, source::Dtype};
use std::{collections::HashMap, ops::Range, path::Path};

/// Most pairs and tensors that a header may announce; real files have some hundreds.
const ENTRIES_MAX: u64 = 1 << 17;

/// Data starts, and each tensor in it, at a multiple of this unless a file says otherwise.
const ALIGNMENT: u64 = 32;

/// A metadata value. Integers of all widths are one, and so are both floats: readers ask for what they mean.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

/// A tensor's entry in the table.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    /// Outermost first, the reverse of the file's order; one or two dimensions.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub range: Range<usize>,
}

/// A parsed header.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub metadata: Metadata,
    pub tensors: Vec<Entry>,
    /// Each pair's key, and its bytes in the file: key, type and value.
    pub pairs: Vec<(String, Range<usize>)>,
}

impl Gguf {
    /// Parses the header of the file at `path`, whose content is `bytes`.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the bytes are no GGUF or not all there, [`Error::Unsupported`] for a byte order,
    /// version or element type that this reader does not know.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader { path, bytes, at: 0 };
        if reader.take(4, "magic")? != b"GGUF" {
            return Err(Error::malformed(path, "not a GGUF file (it does not start with `GGUF`)"));
        }
        let version = reader.u32("version")?;
        if !(2..=3).contains(&version) {
            let feature =
                if version.swap_bytes() <= 3 { "big-endian GGUF".into() } else { format!("GGUF version {version}") };
            return Err(Error::unsupported(path, feature, "convert the model again with a current llama.cpp"));
        }
        let tensor_count = reader.count("tensor count")?;
        let pair_count = reader.count("metadata count")?;

        let (mut pairs, mut places) = (HashMap::new(), Vec::new());
        for _ in 0..pair_count {
            let start = reader.at;
            let key = reader.text("metadata key")?;
            let kind = reader.u32(&key)?;
            let value = reader.value(kind, &key)?;
            if pairs.contains_key(&key) {
                return Err(reader.malformed(&format!("metadata key `{key}` is given twice")));
            }
            places.push((key.clone(), start..reader.at));
            pairs.insert(key, value);
        }
        let metadata = Metadata { path: path.to_owned(), pairs };
        let alignment = metadata.usize("general.alignment")?.unwrap_or(ALIGNMENT as usize);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(reader.malformed(&format!("alignment {alignment} is not a power of two of at most 1 MiB")));
        }

        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            tensors.push(reader.entry()?);
        }
        let data = reader.at.next_multiple_of(alignment);
        let mut names = std::collections::HashSet::new();
        for entry in &mut tensors {
            if !names.insert(entry.name.clone()) {
                return Err(reader.malformed(&format!("tensor `{}` is given twice", entry.name)));
            }
            let start = data.checked_add(entry.range.start);
            let end = start.and_then(|start| start.checked_add(entry.range.end));
            match (start, end) {
                (Some(start), Some(end)) if end <= bytes.len() => entry.range = start..end,
                _ => {
                    return Err(Error::malformed(
                        path,
                        format!(
                            "tensor `{}` ends past the end of the file ({} bytes): the file is cut short",
                            entry.name,
                            bytes.len()
                        ),
                    ));
                }
            }
        }
        Ok(Self { metadata, tensors, pairs: places })
    }
}

/// The metadata with typed access; a value of another type is an error that names the key.
#[derive(Debug)]
pub(crate) struct Metadata {
    path: std::path::PathBuf,
    pairs: HashMap<String, Value>,
}

impl Metadata {
    /// The file, for errors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value as it is.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.get(key)
    }

    /// A non-negative integer.
    pub fn usize(&self, key: &str) -> Result<Option<usize>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Int(value)) if u32::try_from(*value).is_ok() => Ok(Some(*value as usize)),
            Some(_) => Err(self.wrong(key, "an integer from 0 to 2^32")),
        }
    }

    /// A finite number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) if value.is_finite() => Ok(Some(*value as f32)),
            Some(Value::Int(value)) => Ok(Some(*value as f32)),
            Some(_) => Err(self.wrong(key, "a finite number")),
        }
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "a boolean")),
        }
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// A value that the model cannot do without.
    pub fn require<T>(&self, key: &str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| Error::malformed(&self.path, format!("metadata key `{key}` is missing")))
    }

    /// The error for a value of the wrong type.
    pub fn wrong(&self, key: &str, expected: &str) -> Error {
        Error::malformed(&self.path, format!("metadata key `{key}` is not {expected}"))
    }
}

/// A cursor over untrusted bytes.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn malformed(&self, reason: &str) -> Error {
        Error::malformed(self.path, format!("{reason} (at byte {})", self.at))
    }

    fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], Error> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(self.malformed(&format!(
                "the file ends inside {what}, which takes {length} bytes: it is cut short or damaged"
            )));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        let taken = self.take(N, what)?;
        let mut array = [0; N];
        array.copy_from_slice(taken);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn count(&mut self, what: &str) -> Result<u64, Error> {
        let count = self.u64(what)?;
        if count > ENTRIES_MAX {
            return Err(self.malformed(&format!("{what} {count} is more than {ENTRIES_MAX}: the header is damaged")));
        }
        Ok(count)
    }

    fn text(&mut self, what: &str) -> Result<String, Error> {
        let length = self.u64(what)?;
        let taken = self.take(usize::try_from(length).unwrap_or(usize::MAX), what)?;
        match std::str::from_utf8(taken) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.malformed(&format!("{what} is not UTF-8"))),
        }
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value, Error> {
        Ok(match kind {
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            7 => Value::Bool(self.boolean(key)?),
            8 => Value::Text(self.text(key)?),
            9 => {
                let kind = self.u32(key)?;
                let length = self.u64(key)?;
                return self.values(kind, length, key);
            }
            _ => Value::Int(self.integer(kind, key)?),
        })
    }

    fn boolean(&mut self, key: &str) -> Result<bool, Error> {
        match self.array::<1>(key)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.malformed(&format!("metadata key `{key}`: {other} is no boolean"))),
        }
    }

    fn integer(&mut self, kind: u32, key: &str) -> Result<i128, Error> {
        Ok(match kind {
            0 => self.array::<1>(key)?[0].into(),
            1 => i8::from_le_bytes(self.array(key)?).into(),
            2 => u16::from_le_bytes(self.array(key)?).into(),
            3 => i16::from_le_bytes(self.array(key)?).into(),
            4 => self.u32(key)?.into(),
            5 => i32::from_le_bytes(self.array(key)?).into(),
            10 => self.u64(key)?.into(),
            11 => i64::from_le_bytes(self.array(key)?).into(),
            _ => return Err(self.malformed(&format!("metadata key `{key}` has the unknown type {kind}"))),
        })
    }

    /// An array. Vectors grow as elements are read, so a false length costs nothing before the file ends.
    fn values(&mut self, kind: u32, length: u64, key: &str) -> Result<Value, Error> {
        Ok(match kind {
            6 => Value::Floats((0..length).map(|_| self.array(key).map(f32::from_le_bytes)).collect::<Result<_, _>>()?),
            7 => Value::Bools((0..length).map(|_| self.boolean(key)).collect::<Result<_, _>>()?),
            8 => Value::Texts((0..length).map(|_| self.text(key)).collect::<Result<_, _>>()?),
            9 => return Err(self.malformed(&format!("metadata key `{key}` is an array of arrays"))),
            12 => Value::Floats(
                (0..length)
                    .map(|_| self.array(key).map(|raw| f64::from_le_bytes(raw) as f32))
                    .collect::<Result<_, _>>()?,
            ),
            _ => Value::Ints(
                (0..length).map(|_| self.integer(kind, key).map(|value| value as i64)).collect::<Result<_, _>>()?,
            ),
        })
    }

    /// A line of the tensor table; `range` holds (offset, length) until the start of the data is known.
    fn entry(&mut self) -> Result<Entry, Error> {
        let name = self.text("tensor name")?;
        let dimensions = self.u32(&name)?;
        if !(1..=4).contains(&dimensions) {
            return Err(self.malformed(&format!("tensor `{name}` has {dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64(&name)?;
            shape.push(
                usize::try_from(size)
                    .map_err(|_| self.malformed(&format!("tensor `{name}` has a dimension of {size}")))?,
            );
        }
        while shape.len() > 2 && shape.last() == Some(&1) {
            shape.pop();
        }
        shape.reverse();
        let kind = self.u32(&name)?;
        let dtype = match kind {
            0 => Dtype::F32,
            1 => Dtype::F16,
            2 => Dtype::Q4_0,
            3 => Dtype::Q4_1,
            6 => Dtype::Q5_0,
            7 => Dtype::Q5_1,
            8 => Dtype::Q8_0,
            10 => Dtype::Q2K,
            11 => Dtype::Q3K,
            12 => Dtype::Q4K,
            13 => Dtype::Q5K,
            14 => Dtype::Q6K,
            30 => Dtype::Bf16,
            _ => {
                return Err(Error::unsupported(
                    self.path,
                    format!("element type {kind} of tensor `{name}`"),
                    "convert to F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or one of Q2_K to Q6_K",
                ));
            }
        };
        let offset = self.u64(&name)?;
        let (cols, rows) = (shape[shape.len() - 1], &shape[..shape.len() - 1]);
        let bytes = dtype
            .row_bytes(cols)
            .and_then(|bytes| rows.iter().try_fold(bytes, |bytes, rows| bytes.checked_mul(*rows)))
            .ok_or_else(|| {
                self.malformed(&format!("tensor `{name}`: shape {shape:?} does not fit {} blocks", dtype.name()))
            })?;
        let offset =
            usize::try_from(offset).map_err(|_| self.malformed(&format!("tensor `{name}`: offset {offset}")))?;
        // Not a range yet: `parse` turns (offset, length) into one once the data's start is known.
        Ok(Entry { name, dtype, shape, range: Range { start: offset, end: bytes } })
    }
}
