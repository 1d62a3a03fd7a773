//! Codes of dense deltas chosen for the inputs that the user's data makes, see `PackedMatrix::refine`.
//!
//! The fine-tuned model runs over the data a layer at a time; the second moments of a layer's four inputs are gathered, its
//! linears' codes are moved, and they are forgotten before the next layer's. So memory holds the hidden states of all tokens
//! and the moments of one layer. (Tokens weighed by the squared gradient of their outputs, as in "GuidedQuant", 2505.07004,
//! came out worse on held-out answers: a fine-tune is sure of the data that it has seen, and the gradient there is noise.)

use super::distil::Merged;
use crate::{
    Error,
    batch::{self, Example},
    graph::{
        Adaptation, Graph, Keeping, PackedBatch, Precision, Weights,
        matrix::{Matrix, product},
    },
    progress::Progress,
};
use bitdelta_delta::{Part, Variant};
use bitdelta_model::Base;

/// Tokens that tell the moments: some for each of the widest inputs.
const TOKENS: usize = 1 << 14;
/// Tokens of one pass.
const TOKENS_PER_PASS: usize = 1 << 10;
/// Added to the diagonal, as a share of its mean: directions that the data does not show count a little too.
const DAMPING: f32 = 0.02;

/// Moves the codes of every dense part of `variant` to what is nearest to the fine-tuned model on `examples`.
///
/// # Errors
/// [`Error::Setting`] without examples, an unreadable tensor, or what the graph reports.
pub fn refine_codes(
    base: &Base,
    finetuned: &Base,
    variant: &mut Variant,
    examples: &[Example],
    seed: u64,
    progress: &dyn Progress,
) -> Result<(), Error> {
    if examples.is_empty() {
        return Err(Error::setting("data", "codes are chosen for conversations, and there are none with an answer"));
    }
    let longest = batch::longest(examples);
    let graph = Graph::kept(&finetuned.config, finetuned, Adaptation::Frozen, Keeping::FAST, longest, false)?;
    let batches = sample(examples, seed);
    let stacks: Vec<Vec<usize>> =
        graph.stacks().map(|stack| stack.parts.iter().map(|part| part.index).collect()).collect();
    let mut moments: Vec<Option<Matrix>> = stacks.iter().map(|_| None).collect();
    progress.begin("choosing codes", stacks.len() as u64, "inputs");
    graph.inputs(&batches, |stack, input, last| {
        let more = product(input.t().at(Precision::Bf16), input.view())?;
        match &mut moments[stack] {
            Some(moment) => moment.add(&more),
            empty => *empty = Some(more),
        }
        if last && let Some(mut moment) = moments[stack].take() {
            damp(&mut moment);
            for &index in &stacks[stack] {
                refine(base, finetuned, variant, index, &moment)?;
            }
            progress.advance(1, "");
        }
        Ok(())
    })?;
    progress.end();
    Ok(())
}

/// Some of the examples, in batches.
fn sample(examples: &[Example], seed: u64) -> Vec<PackedBatch> {
    let order = batch::order(examples.len(), usize::MAX >> 1, seed, true);
    let (mut batches, mut some, mut tokens, mut all) = (Vec::new(), Vec::new(), 0, 0);
    for example in order.into_iter().map(|index| &examples[index]) {
        if all >= TOKENS {
            break;
        }
        (tokens, all) = (tokens + example.tokens.len(), all + example.tokens.len());
        some.push(example);
        if tokens >= TOKENS_PER_PASS {
            batches.push(batch::pack(some.drain(..)));
            tokens = 0;
        }
    }
    if !some.is_empty() {
        batches.push(batch::pack(some));
    }
    batches
}

fn damp(moment: &mut Matrix) {
    let cols = moment.cols();
    let mean = (0..cols).map(|i| moment.row(i)[i]).sum::<f32>() / cols.max(1) as f32;
    for diagonal in moment.values_mut().iter_mut().step_by(cols + 1) {
        *diagonal += DAMPING * mean;
    }
}

/// Moves the codes of one linear.
fn refine(base: &Base, finetuned: &Base, variant: &mut Variant, index: usize, moment: &Matrix) -> Result<(), Error> {
    let linear = &base.linears()[index];
    // What the variant leaves of the difference.
    let mut error = finetuned.tensor_f32(&linear.name)?;
    let now = Merged { base, variant }.tensor(&linear.name)?;
    error.iter_mut().zip(&now).for_each(|(error, now)| *error -= now);
    let error = Matrix::new(linear.rows, linear.cols, error);
    let dense = variant.linears[index].parts.iter_mut().find_map(|part| match part {
        Part::Dense(matrix) => Some(matrix),
        _ => None,
    });
    if let Some(matrix) = dense {
        matrix.refine(product(error.view(), moment.view())?.values_mut(), moment.values());
    }
    Ok(())
}
