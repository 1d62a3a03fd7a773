//! Training factors through their rounding, towards the distributions of a teacher.
//!
//! The forward and backward pass see the rounded factors; the gradient goes straight through the rounding to the exact
//! ones behind it (Bengio et al., 1308.3432), which Adam moves in units of their own step, so that one rate suits every
//! row. Meanwhile a controller moves the one distortion that all steps follow from, so that the coded size stays at the
//! budget. In the end levels nearest to a smaller one give way until the file fits to the byte.

use super::{
    Coded, Factors, Sensitivity, Student, Watch,
    course::{Learner, adam, follow},
    rate::{DEAD, Steps},
};
use crate::{
    Error,
    batch::{self, Example},
    graph::{
        Adaptation, Graph, PackedBatch, Weights, distil_loss::kl, loss::cross_entropy, matrix::Matrix,
        parameter::Parameter,
    },
    optimiser::{AdamW, gradient_norm},
    progress::Progress,
};
use bitdelta_delta::{
    Variant,
    file::coded_bytes,
    part,
    tread::{LARGEST, SMALLEST, Step},
};
use bitdelta_model::{Base, ModelConfig};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{convert::Infallible, sync::Arc};

/// Examples whose gradients tell the sensitivities, and how many go into one gradient: the fewer, the nearer its square
/// is to the sum of single ones.
pub(super) const PROBES: usize = 96;
pub(super) const EXAMPLES_PER_PROBE: usize = 4;
/// Examples that are run at once where nothing learns.
const TOGETHER: usize = 8;
/// Steps between two looks at the coded size.
const CONTROL_EVERY: usize = 4;
/// Share of all steps after which the distortion stays.
const CONTROL_UNTIL: f64 = 0.75;
/// What the controller aims at, as a share of the budget: the rest is for what the last steps add.
const AIM: f64 = 0.985;

/// Components of a linear that learn at the full rate. All move its outputs at once, so more of them go slower (22 at 0.2 never
/// come near): by the fourth root of their number, as what was best at 2, 7 and 22 did.
const FEW_COMPONENTS: f64 = 2.0;
/// Halvings of the range of magnitudes that give way in the end.
const TRIMMINGS: usize = 20;

/// The fine-tuned model's last hidden states at every answer's token, which with its head give its distributions.
#[derive(Debug)]
pub struct Teacher {
    /// (targets, hidden) of each example.
    hidden: Vec<Matrix>,
    /// Its head; `None`: the base's.
    head: Option<Matrix>,
}

impl Teacher {
    /// Runs the fine-tuned model over `examples`.
    ///
    /// # Errors
    /// An unreadable tensor, or what the graph reports.
    pub fn new(finetuned: &Base, base: &Base, examples: &[Example], progress: &dyn Progress) -> Result<Self, Error> {
        Self::with_weights((&finetuned.config, finetuned), base, examples, progress)
    }

    /// Runs the model of these weights over `examples`, for students on `base`.
    pub(super) fn with_weights(
        (config, weights): (&ModelConfig, &dyn Weights),
        base: &Base,
        examples: &[Example],
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let longest = batch::longest(examples);
        let graph = Graph::new(config, weights, Adaptation::Frozen, longest, false)?;
        let teacher = Self::of(&graph, examples, progress)?;
        let name = if base.config.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let same = base.tensor_f32(name)? == graph.head().values();
        Ok(Self { head: (!same).then(|| graph.head().clone()), ..teacher })
    }

    /// Runs a graph as it is now over `examples`; its head is that of the student.
    ///
    /// # Errors
    /// What the graph reports.
    pub fn of(graph: &Graph, examples: &[Example], progress: &dyn Progress) -> Result<Self, Error> {
        progress.begin("asking the teacher", examples.len() as u64, "examples");
        let mut hidden = Vec::with_capacity(examples.len());
        for examples in examples.chunks(TOGETHER) {
            let packed = batch::pack(examples);
            let all = graph.hidden(&packed)?;
            let mut from = 0;
            for example in examples {
                let rows: Vec<usize> = (from..from + example.targets()).collect();
                from += rows.len();
                hidden.push(all.select_rows(&rows));
            }
            progress.advance(examples.len() as u64, "");
        }
        progress.end();
        Ok(Self { hidden, head: None })
    }
}

impl Teacher {
    /// Mean KL(teacher ‖ base + variant) of a token over the examples that the teacher was made of.
    ///
    /// # Errors
    /// As [`Teacher::new`].
    pub fn divergence_of(&self, base: &Base, variant: &Variant, examples: &[Example]) -> Result<f64, Error> {
        let longest = batch::longest(examples);
        let merged = Merged { base, variant };
        let graph = Graph::new(&base.config, &merged, Adaptation::Frozen, longest, false)?;
        divergence_of(&graph, self, 0, examples)
    }

    /// What it was made of, example by example.
    pub(super) fn states(&self) -> impl Iterator<Item = &Matrix> {
        self.hidden.iter()
    }
}

/// Mean KL(teacher ‖ graph) of a token over `examples`, which the teacher was made of from number `first` on.
pub(super) fn divergence_of(
    graph: &Graph,
    teacher: &Teacher,
    first: usize,
    examples: &[Example],
) -> Result<f64, Error> {
    let (mut sum, mut tokens) = (0.0, 0);
    let states = &teacher.hidden[first..first + examples.len()];
    for (examples, states) in examples.chunks(TOGETHER).zip(states.chunks(TOGETHER)) {
        let packed = batch::pack(examples);
        let head = teacher.head.as_ref().unwrap_or(graph.head());
        let found = kl(&graph.hidden(&packed)?, &stacked(states), graph.head(), head, None)?;
        sum += found.loss;
        tokens += packed.rows.len();
    }
    Ok(sum / tokens as f64)
}

/// Base and variant as one set of weights.
pub(super) struct Merged<'a> {
    pub base: &'a Base,
    pub variant: &'a Variant,
}

impl Weights for Merged<'_> {
    fn tensor(&self, name: &str) -> Result<Vec<f32>, Error> {
        let mut values = self.base.tensor_f32(name)?;
        if let Some(at) = self.base.matrices().position(|matrix| matrix.name == name)
            && let Some(delta) = self.variant.linears.get(at)
        {
            part::add_to(&delta.parts, &mut values, delta.cols);
        }
        let tensor = self.base.tensors().iter().position(|tensor| tensor.name == name);
        if let Some(extra) = self.variant.extras.iter().find(|extra| Some(extra.tensor) == tensor) {
            extra.add_to(&mut values);
        }
        Ok(values)
    }

    fn has(&self, name: &str) -> bool {
        self.base.has(name)
    }
}

/// How long and how fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Passes over the examples.
    pub epochs: f64,
    /// Examples of one step.
    pub batch: usize,
    /// Adam's rate at the start, in steps of the rounding; it falls to 0 in a straight line.
    pub rate: f64,
    /// Of the order.
    pub seed: u64,
}

impl Schedule {
    /// Steps of one pass over `count` examples.
    pub(super) fn steps_per_epoch(&self, count: usize) -> usize {
        count.div_ceil(self.batch)
    }

    /// All steps over `count` examples.
    pub(super) fn steps(&self, count: usize) -> usize {
        (self.epochs * self.steps_per_epoch(count) as f64).ceil() as usize
    }

    /// Which of `count` examples step `step` takes.
    pub(super) fn examples(&self, step: usize, count: usize) -> Vec<usize> {
        let per_epoch = self.steps_per_epoch(count);
        let order = batch::order(count, step / per_epoch, self.seed, true);
        order.into_iter().skip(step % per_epoch * self.batch).take(self.batch).collect()
    }

    /// The same for so many components of each linear, where its rate is that of few.
    pub(super) fn for_rank(self, rank: usize) -> Self {
        let slower = (FEW_COMPONENTS / rank as f64).powf(0.25).min(1.0);
        Self { rate: slower * self.rate, ..self }
    }

    /// The rate of step `step` of `total`.
    pub(super) fn rate_at(&self, step: usize, total: usize) -> f64 {
        self.rate * (1.0 - step as f64 / total as f64)
    }
}

/// What was trained, to be rounded by [`Distillation::coded`].
#[derive(Debug)]
pub struct Distillation {
    latent: Latent,
}

/// What is trained on, by whom, and how.
pub struct Lesson<'a> {
    /// The graph whose factors learn.
    pub student: &'a Student<'a>,
    /// What is read.
    pub examples: &'a [Example],
    /// What is to be matched on `examples`, and then on what is watched.
    pub teacher: &'a Teacher,
    /// How long and how fast.
    pub schedule: Schedule,
    /// Who follows it.
    pub watch: Watch<'a>,
}

/// Trains `factors` through rounding, whose coded stream is kept at `bytes` while it goes on.
///
/// # Errors
/// [`Error::Diverged`], [`Error::Interrupted`], or what the graph reports.
pub fn distil(lesson: &Lesson<'_>, factors: &[Factors], bytes: u64) -> Result<Distillation, Error> {
    let Lesson { student, examples, teacher, schedule, watch } = *lesson;
    factors.iter().enumerate().for_each(|(index, factors)| student.set(index, &factors.a, &factors.bt));
    let latent = Latent::new(factors, lesson.sensitivities()?, bytes);
    latent.write(student);
    let controlled = (CONTROL_UNTIL * schedule.steps(examples.len()) as f64).ceil() as usize;
    let mut rounded = Rounded { student, latent, bytes, controlled };
    follow(&mut rounded, (examples, teacher), schedule, watch)?;
    Ok(Distillation { latent: rounded.latent })
}

/// Factors that learn through their rounding.
struct Rounded<'a> {
    student: &'a Student<'a>,
    latent: Latent,
    bytes: u64,
    /// Steps in which the size is looked after.
    controlled: usize,
}

impl Learner for Rounded<'_> {
    fn learn(&mut self, rate: f64) {
        let step = self.latent.optimiser.step;
        self.latent.update(self.student, rate);
        if step.is_multiple_of(CONTROL_EVERY) && step < self.controlled {
            self.latent.control(self.bytes);
        }
        self.latent.write(self.student);
    }

    fn graph(&self) -> &Graph {
        self.student.graph
    }

    fn parameters(&self) -> Vec<Arc<Parameter>> {
        self.latent.parameters()
    }

    fn optimiser(&mut self) -> &mut AdamW {
        &mut self.latent.optimiser
    }

    fn notes(&self) -> Value {
        json!(Notes::of(&self.latent))
    }

    fn restore(&mut self, notes: &Value) -> Result<(), Error> {
        let notes = Notes::deserialize(notes).map_err(|error| Error::setting("checkpoint", error.to_string()))?;
        notes.put_into(&mut self.latent)?;
        self.latent.write(self.student);
        Ok(())
    }
}

/// What is known of the rounding beside the values; numbers as their bits, which no text changes.
#[derive(Serialize, Deserialize)]
struct Notes {
    distortion: u32,
    epsilon: u64,
    /// The codes of each linear's steps.
    steps: Vec<[Vec<u8>; 2]>,
}

impl Notes {
    fn of(latent: &Latent) -> Self {
        let codes = |steps: &[Step]| steps.iter().map(|step| step.code()).collect();
        Self {
            distortion: latent.distortion.to_bits(),
            epsilon: latent.optimiser.epsilon.to_bits(),
            steps: latent.steps.iter().map(|steps| [codes(&steps.a), codes(&steps.bt)]).collect(),
        }
    }

    fn put_into(self, latent: &mut Latent) -> Result<(), Error> {
        let wrong = || Error::setting("checkpoint", "its steps are none of these factors'");
        let steps = |codes: &[u8], now: &[Step]| -> Result<Vec<Step>, Error> {
            let steps: Option<Vec<Step>> = codes.iter().map(|code| Step::from_code(*code)).collect();
            steps.filter(|steps| steps.len() == now.len()).ok_or_else(wrong)
        };
        if self.steps.len() != latent.steps.len() {
            return Err(wrong());
        }
        for ([a, bt], now) in self.steps.iter().zip(&mut latent.steps) {
            *now = Steps { a: steps(a, &now.a)?, bt: steps(bt, &now.bt)? };
        }
        latent.distortion = f32::from_bits(self.distortion);
        latent.optimiser.epsilon = f64::from_bits(self.epsilon);
        Ok(())
    }
}

impl Distillation {
    /// The rounded factors, components of zeros left out, of which `size` is at most `bytes`: where the trained rounding
    /// gives more, the levels nearest to a smaller one give way.
    ///
    /// # Errors
    /// Those of `size`.
    pub fn coded<E>(&self, bytes: u64, mut size: impl FnMut(&[Coded]) -> Result<u64, E>) -> Result<Vec<Coded>, E> {
        let coded = self.latent.coded(DEAD);
        if size(&coded)? <= bytes {
            return Ok(coded);
        }
        // A level of one that is a whole step wide away from zero goes at 1; by then all are.
        let (mut low, mut high) = (DEAD, LARGEST as f32 + 1.0);
        let mut best = self.latent.coded(high);
        for _ in 0..TRIMMINGS {
            let middle = 0.5 * (low + high);
            let coded = self.latent.coded(middle);
            if size(&coded)? <= bytes {
                (high, best) = (middle, coded);
            } else {
                low = middle;
            }
        }
        Ok(best)
    }
}

/// Σ KL(teacher ‖ graph) over the targets of the chosen examples, whose gradient times `scale` is gathered.
pub(super) fn divergence(
    graph: &Graph,
    packed: &PackedBatch,
    teacher: &Teacher,
    chosen: &[usize],
    scale: f32,
) -> Result<f64, Error> {
    let wanted = stacked(chosen.iter().map(|&index| &teacher.hidden[index]));
    graph.accumulate_by(packed, |hidden, head| {
        let found = kl(hidden, &wanted, head, teacher.head.as_ref().unwrap_or(head), Some(scale))?;
        Ok((found.loss, found.gradient))
    })
}

/// All rows, one matrix after another.
fn stacked<'a>(parts: impl IntoIterator<Item = &'a Matrix> + Clone) -> Matrix {
    let (rows, width) = parts.clone().into_iter().fold((0, 0), |(rows, _), part| (rows + part.rows(), part.cols()));
    Matrix::new(rows, width, parts.into_iter().flat_map(|part| part.values()).copied().collect())
}

impl Lesson<'_> {
    /// The root of the mean squared gradient of each row of the factors that are in the student.
    fn sensitivities(&self) -> Result<Vec<Sensitivity>, Error> {
        let progress = self.watch.progress;
        let order = batch::order(self.examples.len(), usize::MAX >> 1, self.schedule.seed, true);
        let probes: Vec<&[usize]> = order[..PROBES.min(order.len())].chunks(EXAMPLES_PER_PROBE).collect();
        let mut sums: Vec<Sensitivity> = Vec::new();
        progress.begin("sensitivities", probes.len() as u64, "batches");
        for chosen in probes {
            // Where the student matches its teacher already, the divergence has no slope; the curvature is that of the
            // model's own likelihood, which the squared gradient of the loss on the data estimates (Fisher).
            let packed = batch::pack(chosen.iter().map(|&index| &self.examples[index]));
            self.student.graph.accumulate_by(&packed, |hidden, head| {
                let found = cross_entropy(hidden, head, &packed.targets, Some(1.0 / packed.targets.len() as f32))?;
                Ok((found.loss, found.gradient))
            })?;
            let squares: Vec<Sensitivity> = (0..self.student.linears())
                .into_par_iter()
                .map(|index| {
                    let (a, bt) = self.student.gradients(index);
                    let mean = |values: &[f32]| -> Vec<f32> {
                        let width = values.len() / self.student.rank;
                        values.chunks(width).map(|row| row.iter().map(|g| g * g).sum::<f32>() / width as f32).collect()
                    };
                    Sensitivity { a: mean(&a), bt: mean(&bt) }
                })
                .collect();
            self.student.clear_gradients();
            if sums.is_empty() {
                sums = squares;
            } else {
                for (sum, more) in sums.iter_mut().zip(squares) {
                    let add = |sum: &mut Vec<f32>, more: Vec<f32>| sum.iter_mut().zip(more).for_each(|(s, m)| *s += m);
                    add(&mut sum.a, more.a);
                    add(&mut sum.bt, more.bt);
                }
            }
            progress.advance(1, "");
        }
        progress.end();
        for sum in &mut sums {
            sum.a.iter_mut().chain(&mut sum.bt).for_each(|s| *s = s.sqrt());
        }
        Ok(sums)
    }
}

/// The exact factors behind the rounded ones, in units of their steps.
#[derive(Debug)]
struct Latent {
    /// (a, bt) of each linear, as parameters for the optimiser.
    values: Vec<[Arc<Parameter>; 2]>,
    shapes: Vec<(usize, usize)>,
    optimiser: AdamW,
    sensitivities: Vec<Sensitivity>,
    steps: Vec<Steps>,
    distortion: f32,
}

/// What each step is as a number, worked out once for a row.
fn sizes(steps: &[Step]) -> impl Iterator<Item = f32> {
    steps.iter().map(|step| step.value())
}

impl Latent {
    fn new(factors: &[Factors], sensitivities: Vec<Sensitivity>, bytes: u64) -> Self {
        let (distortion, _) = super::fit_to::<Infallible>(factors, &sensitivities, bytes, |_| Ok(0))
            .unwrap_or_else(|never| match never {});
        let steps: Vec<Steps> = factors.iter().zip(&sensitivities).map(|(f, s)| Steps::at(f, s, distortion)).collect();
        let parameter = |name: String, values: &[f32], width: usize, steps: &[Step]| {
            let rows = values.chunks(width).zip(sizes(steps));
            let units = rows.flat_map(|(row, step)| row.iter().map(move |x| x / step)).collect();
            Arc::new(Parameter::new(name, Matrix::new(steps.len(), width, units)))
        };
        let values: Vec<[Arc<Parameter>; 2]> = factors
            .iter()
            .zip(&steps)
            .enumerate()
            .map(|(index, (f, steps))| {
                let a = parameter(format!("{index}.a"), &f.a, f.cols, &steps.a);
                [a, parameter(format!("{index}.bt"), &f.bt, f.rows, &steps.bt)]
            })
            .collect();
        let shapes = factors.iter().map(|factors| (factors.rows, factors.cols)).collect();
        let all: Vec<Arc<Parameter>> = values.iter().flatten().cloned().collect();
        let optimiser = adam(&all);
        Self { values, shapes, optimiser, sensitivities, steps, distortion }
    }

    /// Everything that learns.
    fn parameters(&self) -> Vec<Arc<Parameter>> {
        self.values.iter().flatten().cloned().collect()
    }

    /// The factors that the latent values stand for, not rounded.
    fn factors(&self) -> Vec<Factors> {
        let exact = |parameter: &Parameter, steps: &[Step]| -> Vec<f32> {
            let values = parameter.value();
            let rows = values.values().chunks(parameter.cols()).zip(sizes(steps));
            rows.flat_map(|(row, step)| row.iter().map(move |x| x * step)).collect()
        };
        let places = self.values.par_iter().zip(&self.steps).zip(&self.shapes);
        let factors = places.map(|(([a, bt], steps), &(rows, cols))| Factors {
            rows,
            cols,
            a: exact(a, &steps.a),
            bt: exact(bt, &steps.bt),
        });
        factors.collect()
    }

    fn round(&self, dead: f32) -> Vec<Coded> {
        self.factors().par_iter().zip(&self.steps).map(|(factors, steps)| Coded::round(factors, steps, dead)).collect()
    }

    fn coded(&self, dead: f32) -> Vec<Coded> {
        self.round(dead).iter().map(Coded::compact).collect()
    }

    /// Puts the rounded factors into the student.
    fn write(&self, student: &Student<'_>) {
        self.round(DEAD).par_iter().enumerate().for_each(|(index, coded)| {
            student.set(index, &coded.a.values(), &coded.bt.values());
        });
    }

    /// One step of Adam along the student's gradients, which are cleared.
    fn update(&mut self, student: &Student<'_>, rate: f64) {
        self.values.par_iter().zip(&self.steps).enumerate().for_each(|(index, ([a, bt], steps))| {
            let (da, dbt) = student.gradients(index);
            for (parameter, mut gradient, steps) in [(a, da, &steps.a), (bt, dbt, &steps.bt)] {
                let width = parameter.cols();
                for (row, step) in gradient.chunks_mut(width).zip(sizes(steps)) {
                    row.iter_mut().for_each(|g| *g *= step);
                }
                parameter.accumulate(Matrix::new(steps.len(), width, gradient));
            }
        });
        student.clear_gradients();
        let all = self.parameters();
        if self.optimiser.step == 0 {
            // In units of their steps all rows' gradients are about as large. An element whose gradient is small beside
            // that is better left where it is than moved as fast as the others, as plain Adam would: its level would
            // wander away from zero, which costs bytes and gains nothing.
            let elements: usize = all.iter().map(|parameter| parameter.len()).sum();
            let typical = gradient_norm(&all) / (elements as f64).sqrt();
            self.optimiser.epsilon = typical.max(f64::MIN_POSITIVE);
        }
        self.optimiser.update(&all, rate, 1.0);
        for parameter in &all {
            // Beyond the levels there is nothing to reach.
            let bounds = (SMALLEST as f32 - 0.5, LARGEST as f32 + 0.5);
            parameter.value_mut().values_mut().iter_mut().for_each(|x| *x = x.clamp(bounds.0, bounds.1));
        }
    }

    /// Moves the distortion towards the budget; the exact factors stay what they are.
    fn control(&mut self, bytes: u64) {
        let coded = self.coded(DEAD);
        let size = coded_bytes(coded.iter().flat_map(|coded| [&coded.a, &coded.bt]));
        let factor = (size as f64 / (AIM * bytes as f64)).powf(0.7).clamp(0.9, 1.1);
        self.distortion *= factor as f32;
        let factors = self.factors();
        self.steps = factors.iter().zip(&self.sensitivities).map(|(f, s)| Steps::at(f, s, self.distortion)).collect();
        self.values.par_iter().zip(&self.steps).zip(&factors).for_each(|(([a, bt], steps), exact)| {
            for (parameter, exact, steps) in [(a, &exact.a, &steps.a), (bt, &exact.bt, &steps.bt)] {
                let width = parameter.cols();
                let mut values = parameter.value_mut();
                let rows = values.values_mut().chunks_mut(width).zip(exact.chunks(width)).zip(sizes(steps));
                rows.for_each(|((row, exact), step)| {
                    row.iter_mut().zip(exact).for_each(|(x, exact)| *x = exact / step)
                });
            }
        });
    }
}
