//! The whole model: embedding, layers, final norm and head.

use super::{
    buffer::give_back,
    layer::{Layer, Saved},
    linear::{Linears, Weight},
    loss::cross_entropy,
    matrix::{Matrix, product},
    norm::RmsNorm,
    parameter::Parameter,
    rope::Rope,
};
use crate::Error;
use bitdelta_kernels::FreeMemoryKept;
use std::sync::Arc;

/// A base model whose linears, or factors beside them, learn.
#[derive(Debug)]
pub struct Graph {
    pub(super) embedding: Matrix,
    /// `None`: the head is the embedding.
    pub(super) head: Option<Matrix>,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: RmsNorm,
    pub(super) rope: Rope,
    /// Keep only each layer's input and run its forward pass again on the way back.
    pub(super) checkpointing: bool,
    /// A step makes and drops matrices of the same sizes over and over. Last, so that what the others held goes back with it.
    pub(super) _freed: FreeMemoryKept,
}

/// Token sequences one after another, and what is to be learnt from them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackedBatch {
    /// All tokens.
    pub tokens: Vec<u32>,
    /// Sequence s is tokens `starts[s]..starts[s + 1]`; starts with 0, ends with `tokens.len()`.
    pub starts: Vec<usize>,
    /// Rows whose next token counts, ascending.
    pub rows: Vec<usize>,
    /// That next token of each of `rows`.
    pub targets: Vec<u32>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        give_back();
    }
}

impl Graph {
    /// Everything that learns, in a fixed order.
    pub fn parameters(&self) -> Vec<Arc<Parameter>> {
        self.stacks().flat_map(Linears::parameters).cloned().collect()
    }

    /// The stacks of linears, in the base's order.
    pub fn stacks(&self) -> impl Iterator<Item = &Linears> {
        self.layers.iter().flat_map(Layer::linears)
    }

    /// Σ of the losses of the batch's targets, without gradients.
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub fn loss(&self, batch: &PackedBatch) -> Result<f64, Error> {
        Ok(cross_entropy(&self.hidden(batch)?, self.head(), &batch.targets, None)?.loss)
    }

    /// Σ of the losses of the batch's targets; `scale` times the gradient of that sum is added to what learns.
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub fn accumulate(&self, batch: &PackedBatch, scale: f32) -> Result<f64, Error> {
        if batch.rows.is_empty() {
            return Ok(0.0);
        }
        self.accumulate_by(batch, |hidden, head| {
            let result = cross_entropy(hidden, head, &batch.targets, Some(scale))?;
            Ok((result.loss, result.gradient))
        })
    }

    /// The hidden states of `batch.rows` after the final norm, (rows, hidden): with [`Graph::head`] they make the logits.
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub fn hidden(&self, batch: &PackedBatch) -> Result<Matrix, Error> {
        let mut x = self.embed(batch)?;
        for layer in &self.layers {
            x = layer.forward(x, &batch.starts, &self.rope)?.0;
        }
        Ok(self.final_norm.forward(&x.select_rows(&batch.rows)))
    }

    /// Runs the batches through a layer at a time, and calls `each` with the number of every stack of linears
    /// ([`Graph::stacks`]), what it reads (tokens, inputs) in every batch, and whether that is the last batch.
    ///
    /// # Errors
    /// [`Error::Graph`], and what `each` reports.
    pub fn inputs(
        &self,
        batches: &[PackedBatch],
        mut each: impl FnMut(usize, &Matrix, bool) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut states = batches.iter().map(|batch| self.embed(batch)).collect::<Result<Vec<_>, _>>()?;
        let mut first = 0;
        for layer in &self.layers {
            for (at, (batch, x)) in batches.iter().zip(&mut states).enumerate() {
                let read = std::mem::replace(x, Matrix::zeros(0, 0));
                let (y, saved) = layer.forward(read, &batch.starts, &self.rope)?;
                *x = y;
                for (stack, input) in layer.inputs(&saved).iter().enumerate() {
                    each(first + stack, input, at + 1 == batches.len())?;
                }
            }
            first += layer.linears().len();
        }
        Ok(())
    }

    /// As [`Graph::accumulate_by`], or forward alone when nothing is to be learnt.
    ///
    /// # Errors
    /// As [`Graph::accumulate_by`].
    pub fn pass_by<T>(
        &self,
        batch: &PackedBatch,
        learn: bool,
        loss: impl FnOnce(&Matrix, &Matrix) -> Result<(T, Option<Matrix>), Error>,
    ) -> Result<T, Error> {
        if learn { self.accumulate_by(batch, loss) } else { Ok(loss(&self.hidden(batch)?, self.head())?.0) }
    }

    /// Forward and back with a loss of the caller's: `loss` gets the hidden states of `batch.rows` (as [`Graph::hidden`]
    /// gives them) and the head, and returns what it likes and the gradient of those hidden states, which is taken
    /// through the model and added to what learns; without a gradient, nothing is added.
    ///
    /// # Errors
    /// [`Error::Graph`], and what `loss` reports.
    pub fn accumulate_by<T>(
        &self,
        batch: &PackedBatch,
        loss: impl FnOnce(&Matrix, &Matrix) -> Result<(T, Option<Matrix>), Error>,
    ) -> Result<T, Error> {
        /// What is kept of a layer.
        enum Kept {
            All(Box<Saved>),
            Input(Matrix),
        }
        let mut x = self.embed(batch)?;
        let mut kept = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let input = self.checkpointing.then(|| x.clone());
            let (y, saved) = layer.forward(x, &batch.starts, &self.rope)?;
            kept.push(input.map_or_else(|| Kept::All(Box::new(saved)), Kept::Input));
            x = y;
        }
        let selected = x.select_rows(&batch.rows);
        drop(x);
        let (result, d_hidden) = loss(&self.final_norm.forward(&selected), self.head())?;
        let Some(d_hidden) = d_hidden else { return Ok(result) };
        let mut d_selected = Matrix::cleared(selected.rows(), selected.cols());
        self.final_norm.backward_add(&selected, &d_hidden, &mut d_selected);
        let mut gradient = d_selected.scatter_rows(&batch.rows, batch.tokens.len());
        for layer in self.layers.iter().rev() {
            let saved = match kept.pop() {
                Some(Kept::All(saved)) => *saved,
                Some(Kept::Input(x)) => layer.forward(x, &batch.starts, &self.rope)?.1,
                None => unreachable!("every layer kept something on the way forward"),
            };
            gradient = layer.backward(saved, gradient, &batch.starts, &self.rope)?;
        }
        Ok(result)
    }

    /// The logits of every token of one sequence, (tokens, vocabulary).
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub fn logits(&self, tokens: &[u32]) -> Result<Matrix, Error> {
        let batch = PackedBatch { tokens: tokens.to_vec(), starts: vec![0, tokens.len()], ..Default::default() };
        let mut x = self.embed(&batch)?;
        for layer in &self.layers {
            x = layer.forward(x, &batch.starts, &self.rope)?.0;
        }
        Ok(product(self.final_norm.forward(&x).view(), self.head().t())?)
    }

    /// f32 values kept for one token between the forward and the backward pass.
    pub fn saved_per_token(&self) -> usize {
        let all = self.layers.first().map_or(0, Layer::saved_per_token);
        match self.checkpointing {
            true => self.layers.len() * self.embedding.cols() + all,
            false => self.layers.len() * all,
        }
    }

    /// Bytes of the base that stays as it is.
    pub fn frozen_bytes(&self) -> usize {
        let linears = self.stacks().map(|stack| match &stack.weight {
            Weight::Frozen(weight) => weight.bytes(),
            Weight::Trained(_) => 0,
        });
        let tables = self.embedding.bytes() + self.head.as_ref().map_or(0, Matrix::bytes);
        tables + linears.sum::<usize>()
    }

    /// The frozen head, (vocabulary, hidden).
    pub fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    fn embed(&self, batch: &PackedBatch) -> Result<Matrix, Error> {
        let rows: Vec<usize> = batch.tokens.iter().map(|&token| token as usize).collect();
        if let Some(&token) = rows.iter().find(|&&row| row >= self.embedding.rows()) {
            let problem = format!("token {token} in a model whose embedding has {} rows", self.embedding.rows());
            return Err(Error::setting("model_name_or_path", problem));
        }
        let longest = batch.starts.windows(2).map(|border| border[1] - border[0]).max().unwrap_or(0);
        if longest > self.rope.positions() {
            let problem =
                format!("a sequence of {longest} tokens, but the graph was made for {}", self.rope.positions());
            return Err(Error::setting("cutoff_len", problem));
        }
        Ok(self.embedding.select_rows(&rows))
    }
}
