//! Low-rank factors of every linear, and the training graph that multiplies by them.

use super::Coded;
use crate::graph::{
    Graph,
    matrix::{Matrix, axpy},
    parameter::Parameter,
};
use bitdelta_delta::lowrank::balance;
use std::sync::Arc;

/// Δ = Bᵀᵀ·A of one linear.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// (rank, cols), row-major.
    pub a: Vec<f32>,
    /// (rank, rows), row-major.
    pub bt: Vec<f32>,
}

impl Factors {
    /// Components.
    pub fn rank(&self) -> usize {
        self.a.len() / self.cols
    }

    /// The same product with components of zeros up to `rank`.
    pub fn padded(mut self, rank: usize) -> Self {
        self.a.resize(rank * self.cols, 0.0);
        self.bt.resize(rank * self.rows, 0.0);
        self
    }

    /// Δ (rows, cols), row-major.
    pub fn product(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (a, bt) in self.a.chunks(self.cols).zip(self.bt.chunks(self.rows)) {
            for (out, factor) in out.chunks_mut(self.cols).zip(bt) {
                axpy(*factor, a, out);
            }
        }
        out
    }
}

/// Where one linear's factors are in a graph.
#[derive(Debug)]
struct Place {
    rows: usize,
    cols: usize,
    /// The stack's A, whose rows `first..first + rank` are this linear's.
    a: Arc<Parameter>,
    first: usize,
    /// (rows, rank)
    b: Arc<Parameter>,
}

/// A training graph with factors beside each linear.
#[derive(Debug)]
pub struct Student<'a> {
    /// The model.
    pub graph: &'a Graph,
    /// Components of each linear.
    pub rank: usize,
    /// What the graph multiplies B·A by; the factors here are without it.
    scale: f32,
    places: Vec<Place>,
}

impl<'a> Student<'a> {
    /// The factors of a graph whose adaptation is low-rank.
    pub fn new(graph: &'a Graph) -> Self {
        let (mut rank, mut scale) = (0, 1.0);
        let mut places = Vec::new();
        for stack in graph.stacks() {
            let Some(adapter) = &stack.adapter else { unreachable!("low-rank adaptation gives every stack factors") };
            (rank, scale) = (adapter.rank, adapter.scale);
            for (at, (part, b)) in stack.parts.iter().zip(&adapter.b).enumerate() {
                places.push(Place {
                    rows: part.rows.len(),
                    cols: stack.inputs(),
                    a: adapter.a.clone(),
                    first: at * rank,
                    b: b.clone(),
                });
            }
        }
        Self { graph, rank, scale, places }
    }

    /// Puts factors in: `a` (rank, cols), `bt` (rank, rows) of linear `index`.
    pub fn set(&self, index: usize, a: &[f32], bt: &[f32]) {
        let place = &self.places[index];
        place.a.value_mut().values_mut()[place.first * place.cols..][..a.len()].copy_from_slice(a);
        let values =
            (0..place.rows * self.rank).map(|at| bt[at % self.rank * place.rows + at / self.rank] / self.scale);
        *place.b.value_mut() = Matrix::new(place.rows, self.rank, values.collect());
    }

    /// Puts rounded factors in; components that they lack become zeros.
    pub fn put(&self, index: usize, coded: &Coded) {
        let place = &self.places[index];
        let (mut a, mut bt) = (coded.a.values(), coded.bt.values());
        a.resize(self.rank * place.cols, 0.0);
        bt.resize(self.rank * place.rows, 0.0);
        self.set(index, &a, &bt);
    }

    /// The factors of linear `index`, balanced: components by falling singular value, each split evenly.
    pub fn balanced(&self, index: usize) -> Factors {
        let (place, rank) = (&self.places[index], self.rank);
        let a = place.a.value().values()[place.first * place.cols..][..rank * place.cols].to_vec();
        let mut b = place.b.value().clone();
        b.scale(self.scale);
        let (a, bt) = balance(&a, b.values(), (place.rows, rank, place.cols));
        Factors { rows: place.rows, cols: place.cols, a, bt }
    }

    /// Takes the gradients gathered for linear `index`, laid out as the factors; zeros where there are none.
    pub fn gradients(&self, index: usize) -> (Vec<f32>, Vec<f32>) {
        let place = &self.places[index];
        let rows = place.first * place.cols..(place.first + self.rank) * place.cols;
        let zeros = vec![0.0; rows.len()];
        let a = place.a.gradient().as_ref().map_or(zeros, |g| g.values()[rows].to_vec());
        let bt = place.b.gradient().as_ref().map_or_else(|| vec![0.0; self.rank * place.rows], |g| self.transposed(g));
        (a, bt.into_iter().map(|g| g / self.scale).collect())
    }

    /// Forgets all gradients.
    pub fn clear_gradients(&self) {
        self.places.iter().for_each(|place| {
            *place.a.gradient() = None;
            *place.b.gradient() = None;
        });
    }

    /// Linears.
    pub fn linears(&self) -> usize {
        self.places.len()
    }

    /// (rows, rank) -> (rank, rows)
    fn transposed(&self, b: &Matrix) -> Vec<f32> {
        (0..self.rank * b.rows()).map(|at| b.row(at % b.rows())[at / b.rows()]).collect()
    }
}
