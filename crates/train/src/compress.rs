//! A pair of models, base and fine-tuned, into a variant: tensor by tensor, so that memory holds a few tensors and the
//! growing variant, never two models.
//!
//! Linears become packed parts as the configuration says. Vectors (norms, biases) that moved are kept as f16 deltas,
//! for they are small and cost a linear's accuracy when lost. A moved embedding or output head is not carried by this
//! format yet: what is dropped is measured, named in the report and recorded in the variant's notes.

use crate::{Error, progress::Progress};
use bitdelta_delta::{
    BitDeltaConfig, Extra, Info, LinearDelta, Part, Variant,
    metrics::{Distance, distance},
    quantize,
};
use bitdelta_model::{Base, TensorRef, chat::Template};
use serde::Serialize;
use serde_json::json;
use std::collections::{HashMap, HashSet};

/// Rows of an embedding that are compared at once.
const BLOCK_ROWS: usize = 1024;

/// What became of a pair.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Linears with a delta.
    pub linears: usize,
    /// Linears that did not move.
    pub unchanged: usize,
    /// Vectors (norms, biases) with a delta.
    pub vectors: usize,
    /// Weights in the linears.
    pub weights: u64,
    /// ‖Δ̂ − Δ‖ ÷ ‖Δ‖ over all linears together.
    pub relative_error: f32,
    /// The linear with the largest relative error, and that error.
    pub worst: Option<(String, f32)>,
    /// Matrices that moved and are left as in the base.
    pub dropped: Vec<Dropped>,
    /// Sentences that the user should read.
    pub warnings: Vec<String>,
}

/// A matrix whose change a variant cannot carry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dropped {
    /// HF name.
    pub name: String,
    /// ‖F − B‖ ÷ ‖B‖.
    pub relative_change: f32,
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
    let linears = pair.linears()?;
    let extras = pair.others()?;
    let report = pair.finish();
    progress.end();

    let template = finetuned.tokenizer.template_id(&Template::Model);
    let mut info = Info::new(base.fingerprint(), &base.name, config, &template);
    info.notes.insert("method".into(), json!("compress"));
    info.notes.insert("finetuned".into(), json!(finetuned.name));
    let four_digits = (f64::from(report.relative_error) * 1e4).round() / 1e4;
    info.notes.insert("relative_error".into(), json!(four_digits));
    if !report.dropped.is_empty() {
        info.notes.insert("dropped".into(), json!(report.dropped));
    }
    let mut variant = Variant::new(info, linears);
    variant.extras = extras;
    Ok((variant, report))
}

impl Report {
    fn empty(config: &BitDeltaConfig) -> Self {
        Self {
            linears: 0,
            unchanged: 0,
            vectors: 0,
            weights: 0,
            relative_error: 0.0,
            worst: None,
            dropped: Vec::new(),
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

impl Pair<'_> {
    /// finetuned − base of one tensor.
    fn difference(&self, name: &str) -> Result<Vec<f32>, Error> {
        let mut difference = self.finetuned.tensor_f32(name)?;
        for (value, base) in difference.iter_mut().zip(self.base.tensor_f32(name)?) {
            *value -= base;
        }
        Ok(difference)
    }

    fn linears(&mut self) -> Result<Vec<LinearDelta>, Error> {
        let mut total = Distance::default();
        let mut linears = Vec::new();
        for linear in self.base.linears() {
            let (name, rows, cols) = (&linear.name, linear.rows, linear.cols);
            let delta = self.difference(name)?;
            let moved = delta.iter().any(|&x| x != 0.0);
            let parts = if moved { vec![quantize(name, &delta, rows, cols, self.config)?] } else { Vec::new() };
            let distance = distance(&parts, &delta, cols);
            let error = distance.relative();
            total = total + distance;
            self.report.weights += rows as u64 * cols as u64;
            self.report.linears += usize::from(moved);
            self.report.unchanged += usize::from(!moved);
            if moved && self.report.worst.as_ref().is_none_or(|(_, worst)| error > *worst) {
                self.report.worst = Some((name.clone(), error));
            }
            linears.push(LinearDelta { rows, cols, parts, relative_error: Some(error) });
            self.progress.advance(1, &format!("relative error {:.3}", total.relative()));
        }
        self.report.relative_error = total.relative();
        Ok(linears)
    }

    /// The tensors that are no linears: vectors become extras, matrices are measured.
    fn others(&mut self) -> Result<Vec<Extra>, Error> {
        let linears: HashSet<&str> = self.base.linears().iter().map(|l| l.name.as_str()).collect();
        let mut extras = Vec::new();
        for (tensor, reference) in self.base.tensors().iter().enumerate() {
            if linears.contains(reference.name.as_str()) {
                continue;
            }
            if reference.rows > 1 {
                self.measure(reference)?;
            } else if let Some(values) = self.vector(reference)? {
                extras.push(Extra { tensor, values });
                self.report.vectors += 1;
            }
            self.progress.advance(1, "");
        }
        Ok(extras)
    }

    /// f16 bits of a vector's delta; `None` when it did not move.
    fn vector(&self, reference: &TensorRef) -> Result<Option<Vec<u16>>, Error> {
        let delta = self.difference(&reference.name)?;
        if delta.iter().all(|&x| x == 0.0) {
            return Ok(None);
        }
        let exact = BitDeltaConfig { enable_compression: false, clip_outliers: false, ..BitDeltaConfig::default() };
        match quantize(&reference.name, &delta, 1, reference.cols, &exact)? {
            Part::Full { values, .. } => Ok(Some(values)),
            _ => Ok(None),
        }
    }

    /// Notes a matrix that moved although no variant carries it.
    fn measure(&mut self, reference: &TensorRef) -> Result<(), Error> {
        let TensorRef { ref name, rows, cols, .. } = *reference;
        let mut change = Distance::default();
        let (mut before, mut after) = (vec![0.0; BLOCK_ROWS * cols], vec![0.0; BLOCK_ROWS * cols]);
        for start in (0..rows).step_by(BLOCK_ROWS) {
            let range = start..rows.min(start + BLOCK_ROWS);
            let length = range.len() * cols;
            self.base.rows_f32(name, range.clone(), &mut before[..length])?;
            self.finetuned.rows_f32(name, range, &mut after[..length])?;
            for (before, after) in before[..length].iter().zip(&after[..length]) {
                let (before, after) = (f64::from(*before), f64::from(*after));
                change = change + Distance { error: (after - before).powi(2), norm: before.powi(2) };
            }
        }
        if change.error > 0.0 {
            let relative_change = change.relative();
            self.report.warnings.push(format!(
                "{name} differs by {:.2} % of its norm; variants carry no change of it, so it stays as in the base \
                 (`bitdelta eval --finetuned` shows what that costs)",
                100.0 * relative_change
            ));
            self.report.dropped.push(Dropped { name: name.clone(), relative_change });
        }
        Ok(())
    }

    fn finish(mut self) -> Report {
        if self.report.linears == 0 && self.report.vectors == 0 {
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

/// Both models must have the same tensors of the same shapes.
fn check_shapes(base: &Base, finetuned: &Base) -> Result<(), Error> {
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
