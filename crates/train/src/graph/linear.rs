//! Linears that share their input, as one product: y = x·Wᵀ + b (+ scale · (x·Aᵀ)·Bᵀ for each).
//!
//! q, k and v (and gate and up) read the same x, so their weights are stacked into one matrix: one large product runs
//! nearer the machine's peak than three small ones, and the gradient of x comes out summed. Only what is trained
//! gets a gradient: a frozen W costs one product backward (dX = dY·W) instead of two.

use super::{
    frozen::Frozen,
    matrix::{Matrix, Precision, product},
    parameter::Parameter,
};
use rayon::prelude::*;
use std::{ops::Range, sync::Arc};

/// The stacked weights of linears with one input.
#[derive(Debug)]
pub struct Linears {
    /// The weight, (outputs, inputs).
    pub weight: Weight,
    /// One a output, when any of the stacked linears has a bias. Not trained.
    pub bias: Option<Vec<f32>>,
    /// Low-rank factors beside the weight.
    pub adapter: Option<Adapter>,
    /// Which outputs belong to which linear, and its number in the base's order.
    pub parts: Vec<LinearPart>,
}

/// One linear of a stack.
#[derive(Debug, Clone)]
pub struct LinearPart {
    /// Its place in `Base::linears`.
    pub index: usize,
    /// Its rows of the stacked weight.
    pub rows: Range<usize>,
}

/// A weight that stays or one that learns.
#[derive(Debug)]
pub enum Weight {
    /// Stays as in the base.
    Frozen(Frozen),
    /// Learns.
    Trained(Arc<Parameter>),
}

/// Low-rank factors of every linear of a stack.
#[derive(Debug)]
pub struct Adapter {
    /// Rank of each.
    pub rank: usize,
    /// What B·A is multiplied by.
    pub scale: f32,
    /// How products with the factors are computed.
    pub precision: Precision,
    /// The A of each linear, one above the other: (linears · rank, inputs).
    pub a: Arc<Parameter>,
    /// The B of each linear: (its outputs, rank).
    pub b: Vec<Arc<Parameter>>,
}

impl Linears {
    /// Inputs.
    pub fn inputs(&self) -> usize {
        match &self.weight {
            Weight::Frozen(weight) => weight.cols(),
            Weight::Trained(weight) => weight.cols(),
        }
    }

    /// Outputs of all stacked linears together.
    pub fn outputs(&self) -> usize {
        match &self.weight {
            Weight::Frozen(weight) => weight.rows(),
            Weight::Trained(weight) => weight.rows(),
        }
    }

    /// Everything here that learns.
    pub fn parameters(&self) -> impl Iterator<Item = &Arc<Parameter>> {
        let weight = match &self.weight {
            Weight::Frozen(_) => None,
            Weight::Trained(weight) => Some(weight),
        };
        let adapter = self.adapter.iter().flat_map(|adapter| std::iter::once(&adapter.a).chain(&adapter.b));
        weight.into_iter().chain(adapter)
    }

    /// x (tokens, inputs) -> (tokens, outputs)
    ///
    /// # Errors
    /// What candle's product reports.
    pub fn forward(&self, x: &Matrix) -> candle_core::Result<Matrix> {
        let mut y = match &self.weight {
            Weight::Frozen(weight) => weight.forward(x.view())?,
            Weight::Trained(weight) => product(x.view(), weight.value().t())?,
        };
        if let Some(bias) = &self.bias {
            y.values_mut().par_chunks_mut(bias.len()).for_each(|row| {
                for (y, bias) in row.iter_mut().zip(bias) {
                    *y += bias;
                }
            });
        }
        if let Some(adapter) = &self.adapter {
            let z = product(x.view().at(adapter.precision), adapter.a.value().t())?;
            for (i, (part, b)) in self.parts.iter().zip(&adapter.b).enumerate() {
                let z = z.view().columns(i * adapter.rank..(i + 1) * adapter.rank).at(adapter.precision);
                let low_rank = product(z, b.value().t())?;
                y.add_to_columns(part.rows.clone(), &low_rank, adapter.scale);
            }
        }
        Ok(y)
    }

    /// The gradient of x, (tokens, inputs), from that of y, (tokens, outputs); gradients of what learns are added to it.
    ///
    /// # Errors
    /// What candle's product reports.
    pub fn backward(&self, x: &Matrix, dy: &Matrix) -> candle_core::Result<Matrix> {
        let mut dx = match &self.weight {
            Weight::Frozen(weight) => weight.backward(dy.view())?,
            Weight::Trained(weight) => {
                let weight_now = weight.value();
                weight.accumulate(product(dy.t(), x.view().at(weight_now.precision()))?);
                product(dy.view(), weight_now.view())?
            }
        };
        if let Some(adapter) = &self.adapter {
            let (rank, x) = (adapter.rank, x.view().at(adapter.precision));
            let z = product(x, adapter.a.value().t())?;
            // dz of every linear side by side, as z is; the scale is folded in here once.
            let mut dz = Matrix::cleared(z.rows(), z.cols());
            for (i, (part, b)) in self.parts.iter().zip(&adapter.b).enumerate() {
                let columns = i * rank..(i + 1) * rank;
                let dy = dy.view().columns(part.rows.clone()).at(adapter.precision);
                let mut db = product(dy.t(), z.view().columns(columns.clone()))?;
                db.scale(adapter.scale);
                let part_dz = product(dy, b.value().view())?;
                b.accumulate(db);
                dz.add_to_columns(columns, &part_dz, adapter.scale);
            }
            adapter.a.accumulate(product(dz.t(), x)?);
            dx.add(&product(dz.view().at(adapter.precision), adapter.a.value().view())?);
        }
        Ok(dx)
    }
}
