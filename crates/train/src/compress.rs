//! A pair of models, base and fine-tuned, into a variant: tensor by tensor, so that memory holds a few tensors and the
//! growing variant, never two models.
//!
//! Linears become packed parts as the configuration says, and so do the tables (embedding, untied head) of a pair in
//! which one of them moved: a full fine-tune of all weights moves them, one of the linears alone does not, and most
//! variants are spared their size. A table is never clipped: the rows of tokens that training did not see stand still, so
//! the spread over a whole table says nothing about the rows that moved. Vectors (norms, biases) that moved are kept as
//! f16 deltas, for they are small and cost a linear's accuracy when lost.

use crate::{
    Error,
    progress::{Progress, Silent},
};
use bitdelta_delta::{
    BitDeltaConfig, Extra, Info, LinearDelta, Part, Values, Variant,
    metrics::{Distance, distance_of_pair},
    quantize, quantize_pair,
};
use bitdelta_model::{Base, Dtype, TensorRef, chat::Template};
use serde::Serialize;
use serde_json::json;
use std::collections::{HashMap, HashSet};

/// Rows of a tensor that are read at once to be compared.
const BLOCK_ROWS: usize = 1024;

/// The vectors of a pair (norms, biases) that moved, as f16 deltas.
pub(crate) fn moved_vectors(base: &Base, finetuned: &Base) -> Result<Vec<Extra>, Error> {
    Pair::silent(base, finetuned, &BitDeltaConfig::default()).vectors()
}

/// Whether a table of a pair moved: the embedding or the head.
pub(crate) fn tables_moved(base: &Base, finetuned: &Base) -> Result<bool, Error> {
    let config = BitDeltaConfig::default();
    let pair = Pair::silent(base, finetuned, &config);
    for table in base.tables() {
        if pair.moved(table)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What became of a pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Linears with a delta.
    pub linears: usize,
    /// Linears that did not move.
    pub unchanged: usize,
    /// Tables (embedding, untied head) with a delta.
    pub tables: usize,
    /// Vectors (norms, biases) with a delta.
    pub vectors: usize,
    /// Weights in the linears.
    pub weights: u64,
    /// ‖Δ̂ − Δ‖ ÷ ‖Δ‖ over all linears and tables together.
    pub relative_error: f32,
    /// The linear or table with the largest relative error, and that error.
    pub worst: Option<(String, f32)>,
    /// Sentences that the user should read.
    pub warnings: Vec<String>,
}

/// Compresses the difference `finetuned` − `base`.
///
/// # Errors
/// Models of different shapes ([`Error::Pair`]), a configuration out of range, a NaN or infinity (named by tensor, row
/// and column), or an unreadable tensor.
pub fn compress_pair(
    base: &Base,
    finetuned: &Base,
    config: &BitDeltaConfig,
    progress: &dyn Progress,
) -> Result<(Variant, Report), Error> {
    config.validate()?;
    check_shapes(base, finetuned)?;
    let weights = base.tensors().iter().map(|tensor| tensor.rows as u64 * tensor.cols as u64).sum();
    let config = config.for_model(weights);
    progress.begin("compressing", base.tensors().len() as u64, "tensors");
    let mut pair = Pair { base, finetuned, config: &config, progress, report: Report::empty(&config) };
    let matrices = pair.matrices()?;
    let extras = pair.vectors()?;
    let report = pair.finish();
    progress.end();

    let template = finetuned.tokenizer.template_id(&Template::Model);
    let mut info = Info::new(base.fingerprint(), &base.name, config, &template);
    info.notes.insert("method".into(), json!("compress"));
    info.notes.insert("finetuned".into(), json!(finetuned.name));
    let four_digits = (f64::from(report.relative_error) * 1e4).round() / 1e4;
    info.notes.insert("relative_error".into(), json!(four_digits));
    let mut variant = Variant::new(info, matrices);
    variant.extras = extras;
    Ok((variant, report))
}

impl Report {
    fn empty(config: &BitDeltaConfig) -> Self {
        Self {
            linears: 0,
            unchanged: 0,
            tables: 0,
            vectors: 0,
            weights: 0,
            relative_error: 0.0,
            worst: None,
            warnings: config.warnings(),
        }
    }
}

/// The work in hand.
struct Pair<'a> {
    base: &'a Base,
    finetuned: &'a Base,
    config: &'a BitDeltaConfig,
    progress: &'a dyn Progress,
    report: Report,
}

impl<'a> Pair<'a> {
    /// A pair that is looked at without a report.
    fn silent(base: &'a Base, finetuned: &'a Base, config: &'a BitDeltaConfig) -> Self {
        Self { base, finetuned, config, progress: &Silent, report: Report::empty(config) }
    }

    /// finetuned − base of one vector.
    fn difference(&self, vector: &TensorRef) -> Result<Vec<f32>, Error> {
        let mut difference = self.finetuned.tensor_f32(&vector.name)?;
        let base = self.base.tensor_f32(&vector.name)?;
        difference.iter_mut().zip(base).for_each(|(value, base)| *value -= base);
        Ok(difference)
    }

    /// Whether a tensor differs, found without holding it.
    fn moved(&self, tensor: &TensorRef) -> Result<bool, Error> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for start in (0..tensor.rows).step_by(BLOCK_ROWS) {
            let before = read_block(self.base, tensor, start, &mut before)?;
            if before != read_block(self.finetuned, tensor, start, &mut after)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The linears, and the tables where one of them moved.
    fn matrices(&mut self) -> Result<Vec<LinearDelta>, Error> {
        let linears = self.base.linears().len();
        let mut with_tables = false;
        for table in self.base.tables() {
            with_tables = with_tables || self.moved(table)?;
        }
        let tables = if with_tables { self.base.tables().count() } else { 0 };
        let for_tables = BitDeltaConfig { clip_outliers: false, ..self.config.clone() };
        let mut total = Distance::default();
        let mut deltas = Vec::new();
        for (index, matrix) in self.base.matrices().take(linears + tables).enumerate() {
            let (name, rows, cols) = (&matrix.name, matrix.rows, matrix.cols);
            let (before, after) = (Matrix::read(self.base, name)?, Matrix::read(self.finetuned, name)?);
            let config = if index < linears { self.config } else { &for_tables };
            let mut parts = vec![quantize_pair(name, before.values(), after.values(), rows, cols, config)?];
            let mut distance = distance_of_pair(&parts, before.values(), after.values(), cols);
            let moved = distance.norm > 0.0;
            if !moved {
                parts.clear();
                distance = Distance::default();
            }
            let error = distance.relative();
            total = total + distance;
            if index < linears {
                self.report.weights += rows as u64 * cols as u64;
                self.report.linears += usize::from(moved);
                self.report.unchanged += usize::from(!moved);
            } else {
                self.report.tables += usize::from(moved);
            }
            if moved && self.report.worst.as_ref().is_none_or(|(_, worst)| error > *worst) {
                self.report.worst = Some((name.clone(), error));
            }
            deltas.push(LinearDelta { rows, cols, parts, relative_error: Some(error) });
            self.progress.advance(1, &format!("relative error {:.3}", total.relative()));
        }
        self.report.relative_error = total.relative();
        self.progress.advance((self.base.matrices().count() - deltas.len()) as u64, "");
        Ok(deltas)
    }

    /// The vectors that moved.
    fn vectors(&mut self) -> Result<Vec<Extra>, Error> {
        let matrices: HashSet<&str> = self.base.matrices().map(|matrix| matrix.name.as_str()).collect();
        let mut extras = Vec::new();
        for (tensor, reference) in self.base.tensors().iter().enumerate() {
            if matrices.contains(reference.name.as_str()) {
                continue;
            }
            if let Some(values) = self.vector(reference)? {
                extras.push(Extra { tensor, values });
                self.report.vectors += 1;
            }
            self.progress.advance(1, "");
        }
        Ok(extras)
    }

    /// f16 bits of a vector's delta; `None` when it did not move.
    fn vector(&self, reference: &TensorRef) -> Result<Option<Vec<u16>>, Error> {
        let delta = self.difference(reference)?;
        if delta.iter().all(|&x| x == 0.0) {
            return Ok(None);
        }
        let exact = BitDeltaConfig { enable_compression: false, clip_outliers: false, ..BitDeltaConfig::default() };
        match quantize(&reference.name, &delta, 1, reference.cols, &exact)? {
            Part::Full { values, .. } => Ok(Some(values)),
            _ => Ok(None),
        }
    }

    fn finish(mut self) -> Report {
        if self.report.linears + self.report.tables + self.report.vectors == 0 {
            let what = format!("{} and {} have the same weights", self.base.name, self.finetuned.name);
            self.report.warnings.push(format!("{what}: the variant changes nothing"));
        }
        let [before, after] = [self.base, self.finetuned].map(|model| model.tokenizer.template_id(&Template::Model));
        if before != after {
            self.report.warnings.push(format!(
                "chat templates differ (base {before}, fine-tuned {after}); the variant will be asked with the base's"
            ));
        }
        for warning in &self.report.warnings {
            self.progress.say(warning);
        }
        self.report
    }
}

/// A matrix as it is stored where that is plain floats, in f32 else.
enum Matrix<'a> {
    Stored(Values<'a>),
    Wide(Vec<f32>),
}

impl<'a> Matrix<'a> {
    fn read(model: &'a Base, name: &str) -> Result<Self, Error> {
        let stored = model.raw(name)?.and_then(|raw| match raw.dtype {
            // A file may lay out its tensors at odd places.
            Dtype::F32 => bytemuck::try_cast_slice(raw.bytes).ok().map(Values::F32),
            Dtype::F16 => bytemuck::try_cast_slice(raw.bytes).ok().map(Values::F16),
            Dtype::Bf16 => bytemuck::try_cast_slice(raw.bytes).ok().map(Values::Bf16),
            _ => None,
        });
        Ok(match stored {
            Some(stored) => Self::Stored(stored),
            None => Self::Wide(model.tensor_f32(name)?),
        })
    }

    fn values(&self) -> Values<'_> {
        match self {
            Self::Stored(values) => *values,
            Self::Wide(values) => Values::F32(values),
        }
    }
}

/// Rows of `tensor` from `start`, as many as a block has; `memory` is reused from call to call.
fn read_block<'a>(
    model: &Base,
    tensor: &TensorRef,
    start: usize,
    memory: &'a mut Vec<f32>,
) -> Result<&'a [f32], Error> {
    let rows = start..tensor.rows.min(start + BLOCK_ROWS);
    memory.resize(rows.len() * tensor.cols, 0.0);
    model.rows_f32(&tensor.name, rows, memory)?;
    Ok(memory)
}

/// Both models must have the same tensors of the same shapes.
pub(crate) fn check_shapes(base: &Base, finetuned: &Base) -> Result<(), Error> {
    let shape = |tensor: &TensorRef| (tensor.rows, tensor.cols);
    let pair = |problem: String| Error::Pair { base: base.path.clone(), finetuned: finetuned.path.clone(), problem };
    let tuned: HashMap<&str, _> = finetuned.tensors().iter().map(|t| (t.name.as_str(), shape(t))).collect();
    for tensor in base.tensors() {
        match tuned.get(tensor.name.as_str()) {
            Some(&found) if found == shape(tensor) => {}
            Some((rows, cols)) => {
                let expected = format!("{} x {} in the base", tensor.rows, tensor.cols);
                return Err(pair(format!("{} is {expected}, {rows} x {cols} in the fine-tuned model", tensor.name)));
            }
            None => return Err(pair(format!("the fine-tuned model has no {}", tensor.name))),
        }
    }
    let known: HashSet<&str> = base.tensors().iter().map(|t| t.name.as_str()).collect();
    match finetuned.tensors().iter().find(|tensor| !known.contains(tensor.name.as_str())) {
        Some(tensor) => Err(pair(format!("the base has no {}, the fine-tuned model does", tensor.name))),
        None => Ok(()),
    }
}
