//! Scale distillation (Liu et al., "BitDelta", 2402.10193, section 3.2): the codes of a dense delta stay, and all of its
//! scales are trained so that the variant's next-token distributions match the fine-tuned model's.
//!
//! The graph multiplies by base + delta as full weights, which it holds in f32 while this lasts. A scale's gradient is the
//! sum of its group's weight gradients times their levels; Adam moves each scale as a factor of where it began.

use super::{
    Schedule, Teacher, Watch,
    course::{Learner, adam, follow},
    distil::Merged,
};
use crate::{
    Error,
    batch::{self, Example},
    graph::{Adaptation, Graph, linear::Weight, matrix::Matrix, parameter::Parameter},
    optimiser::AdamW,
};
use bitdelta_delta::{PackedMatrix, Part, Variant, part};
use bitdelta_model::Base;
use rayon::prelude::*;
use serde_json::Value;
use std::sync::Arc;

/// The rate at which factors of scales start, unless told otherwise. (At a fifth of it two passes are too few.)
pub const SCALE_RATE: f64 = 0.1;
/// No scale becomes smaller than this share of where it began.
const LEAST_FACTOR: f32 = 0.05;

/// One linear with a dense part.
struct Scaled {
    /// Its place in the variant, and that of its dense part among its parts.
    index: usize,
    part: usize,
    /// The stack's weights, and where its own begin among them.
    weights: Arc<Parameter>,
    start: usize,
    /// Base and all parts but the dense one, (rows, cols).
    rest: Vec<f32>,
    /// Each scale as a factor of what it was, (rows, groups).
    factors: Arc<Parameter>,
}

/// Trains the scales of every dense part of `variant` towards the fine-tuned model on `examples`. Returns the mean divergence
/// of a token over the first and over the last epoch. `teacher` was made of `examples` and then of what is watched.
///
/// # Errors
/// [`Error::Setting`] when there is nothing to train or to train on, [`Error::Diverged`], [`Error::Interrupted`], what the
/// graph reports.
pub fn distil_scales(
    base: &Base,
    teacher: &Teacher,
    variant: &mut Variant,
    examples: &[Example],
    schedule: Schedule,
    watch: Watch<'_>,
) -> Result<(f64, f64), Error> {
    let longest = batch::longest(examples).max(batch::longest(watch.watched));
    // With its norms, biases and tables; the linears' weights are written as their scales learn.
    let graph = Graph::new(&base.config, &Merged { base, variant }, Adaptation::Full, longest, false)?;
    let scaled = scaled(base, &graph, variant)?;
    if scaled.is_empty() || examples.is_empty() {
        return Err(Error::setting("data", "scale distillation needs conversations, and a variant with dense parts"));
    }
    let parameters: Vec<Arc<Parameter>> = scaled.iter().map(|scaled| scaled.factors.clone()).collect();
    let optimiser = adam(&parameters);
    let mut learner = Scales { graph, scaled, variant, parameters, optimiser };
    learner.write();
    let losses = follow(&mut learner, (examples, teacher), schedule, watch)?;
    let Scales { scaled, .. } = learner;
    for scaled in &scaled {
        let factors = scaled.factors.value();
        if let Part::Dense(matrix) = &mut variant.linears[scaled.index].parts[scaled.part] {
            matrix.multiply_scales(factors.values());
        }
        variant.linears[scaled.index].relative_error = None;
    }
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    let epoch = schedule.steps_per_epoch(examples.len()).min(losses.len());
    Ok((mean(&losses[..epoch]), mean(&losses[losses.len() - epoch..])))
}

/// All scales of a variant, which learn.
struct Scales<'a> {
    graph: Graph,
    scaled: Vec<Scaled>,
    variant: &'a Variant,
    parameters: Vec<Arc<Parameter>>,
    optimiser: AdamW,
}

impl Scales<'_> {
    fn write(&self) {
        self.scaled.par_iter().for_each(|scaled| scaled.write(self.variant));
    }
}

impl Learner for Scales<'_> {
    fn learn(&mut self, rate: f64) {
        self.scaled.par_iter().for_each(|scaled| scaled.gather(self.variant));
        for stack in self.graph.parameters() {
            *stack.gradient() = None;
        }
        self.optimiser.update(&self.parameters, rate, 1.0);
        self.write();
    }

    fn graph(&self) -> &Graph {
        &self.graph
    }

    fn parameters(&self) -> Vec<Arc<Parameter>> {
        self.parameters.clone()
    }

    fn optimiser(&mut self) -> &mut AdamW {
        &mut self.optimiser
    }

    fn notes(&self) -> Value {
        Value::Null
    }

    fn restore(&mut self, _: &Value) -> Result<(), Error> {
        self.write();
        Ok(())
    }
}

/// Every dense part of the linears, with its place in the graph.
fn scaled(base: &Base, graph: &Graph, variant: &Variant) -> Result<Vec<Scaled>, Error> {
    let mut all = Vec::new();
    for stack in graph.stacks() {
        let Weight::Trained(weights) = &stack.weight else { unreachable!("full adaptation trains every stack") };
        for place in &stack.parts {
            let delta = &variant.linears[place.index];
            let Some(part) = delta.parts.iter().position(|part| matches!(part, Part::Dense(_))) else { continue };
            let Part::Dense(matrix) = &delta.parts[part] else { continue };
            let mut rest = base.tensor_f32(&base.linears()[place.index].name)?;
            let others: Vec<Part> =
                delta.parts.iter().enumerate().filter(|(at, _)| *at != part).map(|(_, part)| part.clone()).collect();
            part::add_to(&others, &mut rest, delta.cols);
            let groups = matrix.groups_per_row();
            let ones = Matrix::new(matrix.rows, groups, vec![1.0; matrix.rows * groups]);
            all.push(Scaled {
                index: place.index,
                part,
                weights: weights.clone(),
                start: place.rows.start * delta.cols,
                rest,
                factors: Arc::new(Parameter::new(format!("{}.scales", place.index), ones)),
            });
        }
    }
    Ok(all)
}

impl Scaled {
    fn matrix<'a>(&self, variant: &'a Variant) -> &'a PackedMatrix {
        match &variant.linears[self.index].parts[self.part] {
            Part::Dense(matrix) => matrix,
            _ => unreachable!("it was chosen for its dense part"),
        }
    }

    /// Puts the weights with the present scales into the graph.
    fn write(&self, variant: &Variant) {
        let matrix = self.matrix(variant);
        let (cols, groups) = (matrix.cols, matrix.groups_per_row());
        let mut factors = self.factors.value_mut();
        factors.values_mut().iter_mut().for_each(|factor| *factor = factor.max(LEAST_FACTOR));
        let mut weights = self.weights.value_mut();
        let weights = &mut weights.values_mut()[self.start..][..self.rest.len()];
        let mut levels = vec![0.0; cols];
        for (row, (weights, rest)) in weights.chunks_mut(cols).zip(self.rest.chunks(cols)).enumerate() {
            matrix.dequantize_row(row, &mut levels);
            for (group, values) in levels.chunks_mut(matrix.group).enumerate() {
                let (factor, offset) = (factors.values()[row * groups + group], matrix.offset(row, group));
                values.iter_mut().for_each(|value| *value = offset + (*value - offset) * factor);
            }
            for ((weight, rest), delta) in weights.iter_mut().zip(rest).zip(&levels) {
                *weight = rest + delta;
            }
        }
    }

    /// Makes the gradient of the factors out of that of the weights.
    fn gather(&self, variant: &Variant) {
        let matrix = self.matrix(variant);
        let (cols, groups) = (matrix.cols, matrix.groups_per_row());
        let gradient = self.weights.gradient();
        let Some(gradient) = gradient.as_ref() else { return };
        let mut sums = vec![0.0; matrix.rows * groups];
        let mut levels = vec![0.0; cols];
        let rows = gradient.values()[self.start..][..self.rest.len()].chunks(cols);
        for (row, gradient) in rows.enumerate() {
            matrix.dequantize_row(row, &mut levels);
            let pairs = levels.chunks(matrix.group).zip(gradient.chunks(matrix.group));
            for (group, (levels, gradient)) in pairs.enumerate() {
                let offset = matrix.offset(row, group);
                sums[row * groups + group] = levels.iter().zip(gradient).map(|(level, g)| (level - offset) * g).sum();
            }
        }
        self.factors.accumulate(Matrix::new(matrix.rows, groups, sums));
    }
}
