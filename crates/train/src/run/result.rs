//! From what was learnt to a variant.

use crate::{
    Error, TrainConfig,
    config::Method,
    graph::{
        Graph,
        linear::{Adapter, LinearPart, Linears, Weight},
        matrix::{Matrix, axpy},
    },
    progress::Progress,
};
use bitdelta_delta::{BitDeltaConfig, LinearDelta, Part, lowrank, metrics::relative_error, part, quantize};
use bitdelta_model::{Base, Linear};
use rayon::prelude::*;

/// Quantises what `graph` learnt, one delta a linear in the base's order, and puts the quantised values back into the
/// graph, so that its loss is then the variant's.
pub(super) fn quantise(
    base: &Base,
    graph: &Graph,
    config: &TrainConfig,
    bitdelta: &BitDeltaConfig,
    progress: &dyn Progress,
) -> Result<Vec<LinearDelta>, Error> {
    progress.begin("compressing", base.linears().len() as u64, "tensors");
    let mut deltas = Vec::with_capacity(base.linears().len());
    for stack in graph.stacks() {
        for (place, part) in stack.parts.iter().enumerate() {
            let linear = &base.linears()[part.index];
            deltas.push(match config.method {
                Method::Full => dense(base, stack, part, linear, bitdelta)?,
                Method::LowRank => factors(stack, place, linear, config.factor_bits)?,
                Method::Experience => unreachable!("a run that learns words builds no graph"),
            });
            progress.advance(1, "");
        }
    }
    progress.end();
    Ok(deltas)
}

fn dense(
    base: &Base,
    stack: &Linears,
    place: &LinearPart,
    linear: &Linear,
    bitdelta: &BitDeltaConfig,
) -> Result<LinearDelta, Error> {
    let Weight::Trained(parameter) = &stack.weight else { unreachable!("full training trains every stack") };
    let (rows, cols) = (linear.rows, linear.cols);
    let mut weights = base.tensor_f32(&linear.name)?;
    let mut trained = parameter.value_mut();
    let trained = &mut trained.values_mut()[place.rows.start * cols..place.rows.end * cols];
    let delta: Vec<f32> = trained.par_iter().zip(&weights).map(|(trained, base)| trained - base).collect();
    let quantised = quantize::quantize(&linear.name, &delta, rows, cols, bitdelta)?;
    let parts = vec![quantised];
    let error = relative_error(&parts, &delta, cols);
    part::add_to(&parts, &mut weights, cols);
    trained.copy_from_slice(&weights);
    Ok(LinearDelta { rows, cols, parts, relative_error: Some(error) })
}

fn factors(stack: &Linears, place: usize, linear: &Linear, bits: u8) -> Result<LinearDelta, Error> {
    let (delta, adapter) = factored(stack, place, linear, bits)?;
    let (rows, cols, rank) = (linear.rows, linear.cols, adapter.rank);
    let a_rows = place * rank * cols..(place + 1) * rank * cols;
    if let Part::LowRank { a, bt } = &delta.parts[0] {
        adapter.a.value_mut().values_mut()[a_rows].copy_from_slice(&a.dequantize());
        let bt = Matrix::new(rank, rows, bt.dequantize());
        let values = (0..rows * rank).map(|at| bt.row(at % rank)[at / rank] / adapter.scale).collect();
        *adapter.b[place].value_mut() = Matrix::new(rows, rank, values);
    }
    Ok(delta)
}

/// The factors beside one linear, quantised; what learns is left as it is.
fn factored<'a>(
    stack: &'a Linears,
    place: usize,
    linear: &Linear,
    bits: u8,
) -> Result<(LinearDelta, &'a Adapter), Error> {
    let Some(adapter) = &stack.adapter else { unreachable!("low-rank training gives every stack factors") };
    let (rows, cols, rank) = (linear.rows, linear.cols, adapter.rank);
    let a = adapter.a.value().values()[place * rank * cols..(place + 1) * rank * cols].to_vec();
    let mut b = adapter.b[place].value().clone();
    b.scale(adapter.scale);
    let parts = vec![lowrank::factor(&linear.name, &a, b.values(), (rows, rank, cols), bits)?];
    let error = relative_error(&parts, &multiplied(&a, b.values(), rows, rank, cols), cols);
    Ok((LinearDelta { rows, cols, parts, relative_error: Some(error) }, adapter))
}

/// What `graph`'s factors are now, one delta a linear in the base's order; nothing in the graph changes.
pub(super) fn snapshot(base: &Base, graph: &Graph, bits: u8) -> Result<Vec<LinearDelta>, Error> {
    let parts = graph.stacks().flat_map(|stack| stack.parts.iter().enumerate().map(move |part| (stack, part)));
    parts.map(|(stack, (place, part))| Ok(factored(stack, place, &base.linears()[part.index], bits)?.0)).collect()
}

/// b (rows, rank) · a (rank, cols)
fn multiplied(a: &[f32], b: &[f32], rows: usize, rank: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * cols];
    out.par_chunks_mut(cols).zip(b.par_chunks(rank)).for_each(|(out, b)| {
        for (factor, a) in b.iter().zip(a.chunks_exact(cols)) {
            axpy(*factor, a, out);
        }
    });
    out
}
