//! The written-out backward pass gives the gradients that candle's autograd gives for the same model, composed of
//! candle's own operations.

mod common;

use bitdelta_model::{Architecture, ModelConfig};
use bitdelta_train::graph::{
    Adaptation, Graph, Keeping, PackedBatch, Storage, distil_loss::kl, frozen::Frozen, matrix::Matrix,
};
use candle_core::{D, Device, Tensor, Var};
use common::{Tensors, config, tensors};

/// Largest difference between two gradients, as a share of the larger norm: both are f32 sums in different orders.
const TOLERANCE: f32 = 2e-5;

/// Weights of the linears as variables, the rest as constants.
struct Reference<'a> {
    config: &'a ModelConfig,
    tensors: &'a Tensors,
    /// (weight's name, variable) of every linear, in order.
    linears: Vec<(String, Var)>,
}

impl<'a> Reference<'a> {
    fn new(config: &'a ModelConfig, tensors: &'a Tensors) -> candle_core::Result<Self> {
        let mut linears = Vec::new();
        let (hidden, queries) = (config.hidden, config.heads * config.head_dim);
        let keys = config.kv_heads * config.head_dim;
        for layer in 0..config.layers {
            for (name, rows, cols) in [
                ("self_attn.q_proj", queries, hidden),
                ("self_attn.k_proj", keys, hidden),
                ("self_attn.v_proj", keys, hidden),
                ("self_attn.o_proj", hidden, queries),
                ("mlp.gate_proj", config.intermediate, hidden),
                ("mlp.up_proj", config.intermediate, hidden),
                ("mlp.down_proj", hidden, config.intermediate),
            ] {
                let name = format!("model.layers.{layer}.{name}");
                let values = tensors.0[&format!("{name}.weight")].clone();
                linears.push((name, Var::from_vec(values, (rows, cols), &Device::Cpu)?));
            }
        }
        Ok(Self { config, tensors, linears })
    }

    fn constant(&self, name: &str, shape: (usize, usize)) -> candle_core::Result<Tensor> {
        Tensor::from_vec(self.tensors.0[name].clone(), shape, &Device::Cpu)
    }

    fn linear(&self, layer: usize, name: &str, x: &Tensor) -> candle_core::Result<Tensor> {
        let name = format!("model.layers.{layer}.{name}_proj");
        let weight = &self.linears.iter().find(|(known, _)| *known == name).expect("a linear").1;
        let y = x.matmul(&weight.t()?)?;
        match self.tensors.0.get(&format!("{name}.bias")) {
            Some(bias) => y.broadcast_add(&Tensor::new(bias.as_slice(), &Device::Cpu)?),
            None => Ok(y),
        }
    }

    fn norm(&self, name: &str, x: &Tensor) -> candle_core::Result<Tensor> {
        let width = x.dim(D::Minus1)?;
        let mean = (x.sqr()?.sum_keepdim(D::Minus1)? / width as f64)?;
        let normed = x.broadcast_div(&(mean + f64::from(self.config.rms_eps))?.sqrt()?)?;
        normed.broadcast_mul(&self.constant(&format!("{name}.weight"), (1, width))?)
    }

    fn rotate(&self, heads: &Tensor) -> candle_core::Result<Tensor> {
        let (_, length, d) = heads.dims3()?;
        let (frequencies, factor) = self.config.rope_frequencies();
        let angles: Vec<f32> = (0..length).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f)).collect();
        let angles = Tensor::from_vec(angles, (1, length, d / 2), &Device::Cpu)?;
        let (cos, sin) = ((angles.cos()? * f64::from(factor))?, (angles.sin()? * f64::from(factor))?);
        let (first, second) = (heads.narrow(2, 0, d / 2)?, heads.narrow(2, d / 2, d / 2)?);
        let a = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
        let b = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
        Tensor::cat(&[a, b], 2)
    }

    /// Hidden states of one sequence after the final norm.
    fn hidden(&self, tokens: &[u32]) -> candle_core::Result<Tensor> {
        let c = self.config;
        let (length, d) = (tokens.len(), c.head_dim);
        let embedding = self.constant("model.embed_tokens.weight", (c.vocab, c.hidden))?;
        let mut x = embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        let mask: Vec<f32> =
            (0..length * length).map(|i| if i % length > i / length { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (1, length, length), &Device::Cpu)?;
        for layer in 0..c.layers {
            let prefix = format!("model.layers.{layer}.");
            let normed = self.norm(&format!("{prefix}input_layernorm"), &x)?;
            let heads = |name: &str, count: usize| {
                let y = self.linear(layer, &format!("self_attn.{name}"), &normed)?;
                y.reshape((length, count, d))?.transpose(0, 1)?.contiguous()
            };
            let (mut q, mut k, v) = (heads("q", c.heads)?, heads("k", c.kv_heads)?, heads("v", c.kv_heads)?);
            if c.qk_norm {
                q = self.norm(&format!("{prefix}self_attn.q_norm"), &q.reshape((c.heads * length, d))?)?;
                k = self.norm(&format!("{prefix}self_attn.k_norm"), &k.reshape((c.kv_heads * length, d))?)?;
                q = q.reshape((c.heads, length, d))?;
                k = k.reshape((c.kv_heads, length, d))?;
            }
            let repeat = |t: Tensor| {
                let group = c.heads / c.kv_heads;
                t.unsqueeze(1)?.repeat((1, group, 1, 1))?.reshape((c.heads, length, d))
            };
            let (q, k, v) = (self.rotate(&q)?, repeat(self.rotate(&k)?)?, repeat(v)?);
            let scores = (q.matmul(&k.t()?.contiguous()?)? / (d as f64).sqrt())?.broadcast_add(&mask)?;
            let largest = scores.max_keepdim(2)?.detach();
            let powers = scores.broadcast_sub(&largest)?.exp()?;
            let p = powers.broadcast_div(&powers.sum_keepdim(2)?)?;
            let attended = p.matmul(&v)?.transpose(0, 1)?.reshape((length, c.heads * d))?;
            x = (x + self.linear(layer, "self_attn.o", &attended)?)?;
            let normed = self.norm(&format!("{prefix}post_attention_layernorm"), &x)?;
            let (gate, up) = (self.linear(layer, "mlp.gate", &normed)?, self.linear(layer, "mlp.up", &normed)?);
            x = (&x + self.linear(layer, "mlp.down", &(gate.silu()? * up)?)?)?;
        }
        self.norm("model.norm", &x)
    }

    fn logits(&self, tokens: &[u32]) -> candle_core::Result<Tensor> {
        let name = if self.config.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let head = self.constant(name, (self.config.vocab, self.config.hidden))?;
        self.hidden(tokens)?.matmul(&head.t()?)
    }

    /// Σ −ln p over the counted rows of all sequences.
    fn loss(&self, batch: &PackedBatch) -> candle_core::Result<Tensor> {
        let mut total = Tensor::new(0.0f32, &Device::Cpu)?;
        for border in batch.starts.windows(2) {
            let logits = self.logits(&batch.tokens[border[0]..border[1]])?;
            for (&row, &target) in batch.rows.iter().zip(&batch.targets) {
                if (border[0]..border[1]).contains(&row) {
                    let logits = logits.get(row - border[0])?;
                    let log_sum = logits.exp()?.sum_all()?.log()?;
                    total = (total + (log_sum - logits.get(target as usize)?)?)?;
                }
            }
        }
        Ok(total)
    }
}

/// Three sequences, one of a single token; some rows count and some do not.
fn batch() -> PackedBatch {
    let tokens: Vec<u32> = (0..41).map(|i| (i * 7 + 3) % 50).collect();
    let rows: Vec<usize> = (0..21).filter(|i| i % 3 != 0).chain(23..40).collect();
    let targets = rows.iter().map(|&row| tokens[row + 1]).collect();
    PackedBatch { tokens, starts: vec![0, 21, 22, 41], rows, targets }
}

fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
    difference / norm(&mut a.iter().copied()).max(norm(&mut b.iter().copied())).max(1e-12)
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().expect("flatten").to_vec1().expect("values")
}

/// Gradient of every linear by candle, in the base's order.
fn reference_gradients(reference: &Reference, batch: &PackedBatch) -> (f64, Vec<Vec<f32>>) {
    let loss = reference.loss(batch).expect("loss");
    let gradients = loss.backward().expect("backward");
    let value = f64::from(loss.to_scalar::<f32>().expect("scalar"));
    (value, reference.linears.iter().map(|(_, var)| flat(gradients.get(var).expect("gradient"))).collect())
}

#[test]
fn logits_equal_the_composed_model() {
    for architecture in [Architecture::Llama, Architecture::Qwen3] {
        let config = config(architecture);
        let tensors = tensors(&config, 1);
        let graph = Graph::new(&config, &tensors, Adaptation::Frozen, 64, false).expect("graph");
        let tokens: Vec<u32> = (0..37).map(|i| (i * 11 + 5) % 50).collect();
        let want = flat(&Reference::new(&config, &tensors).and_then(|r| r.logits(&tokens)).expect("logits"));
        let difference = relative_difference(graph.logits(&tokens).expect("logits").values(), &want);
        assert!(difference < TOLERANCE, "{architecture:?}: {difference}");
    }
}

#[test]
fn full_gradients_equal_autograd() {
    for (architecture, checkpointing) in [Architecture::Llama, Architecture::Qwen3].into_iter().zip([false, true]) {
        let config = config(architecture);
        let tensors = tensors(&config, 2);
        let batch = batch();
        let graph = Graph::new(&config, &tensors, Adaptation::Full, 64, checkpointing).expect("graph");
        let loss = graph.accumulate(&batch, 1.0).expect("backward");
        let (want_loss, want) = reference_gradients(&Reference::new(&config, &tensors).expect("reference"), &batch);
        assert!((loss - want_loss).abs() < 1e-4 * want_loss, "{loss} {want_loss}");
        assert!((graph.loss(&batch).expect("loss") - loss).abs() < 1e-9 * loss, "loss() and accumulate() agree");
        for stack in graph.stacks() {
            let parameter = stack.parameters().next().expect("a trained weight");
            let gradient = parameter.gradient();
            let gradient = gradient.as_ref().expect("a gradient");
            for part in &stack.parts {
                let mine = &gradient.values()[part.rows.start * gradient.cols()..part.rows.end * gradient.cols()];
                let difference = relative_difference(mine, &want[part.index]);
                assert!(difference < TOLERANCE, "{architecture:?} linear {}: {difference}", part.index);
            }
        }
    }
}

#[test]
fn low_rank_gradients_are_the_full_gradient_through_the_factors() {
    // With W' = W + s·B·A: dA = s·Bᵀ·dW' and dB = s·dW'·Aᵀ, dW' being the gradient of the merged weight.
    let config = config(Architecture::Qwen3);
    let mut tensors = tensors(&config, 3);
    let batch = batch();
    let (rank, scale) = (3, 0.7);
    let adaptation = Adaptation::LowRank { rank, scale, seed: 5 };
    let graph = Graph::new(&config, &tensors, adaptation, 64, false).expect("graph");
    for stack in graph.stacks() {
        for (i, b) in stack.adapter.as_ref().expect("adapter").b.iter().enumerate() {
            for (j, value) in b.value_mut().values_mut().iter_mut().enumerate() {
                *value = ((i * 31 + j * 17) % 13) as f32 * 0.02 - 0.12;
            }
        }
    }
    let loss = graph.accumulate(&batch, 2.0).expect("backward");

    let reference = Reference::new(&config, &tensors).expect("reference");
    let names: Vec<String> = reference.linears.iter().map(|(name, _)| name.clone()).collect();
    drop(reference);
    let factors = |index: usize| -> (Matrix, Matrix) {
        let stack = graph.stacks().find(|stack| stack.parts.iter().any(|part| part.index == index)).expect("stack");
        let adapter = stack.adapter.as_ref().expect("adapter");
        let place = stack.parts.iter().position(|part| part.index == index).expect("part");
        let rows: Vec<usize> = (place * rank..(place + 1) * rank).collect();
        let (a, b) = (adapter.a.value().select_rows(&rows), adapter.b[place].value().clone());
        (a, b)
    };
    for (index, name) in names.iter().enumerate() {
        let (a, b) = factors(index);
        let weight = tensors.0.get_mut(&format!("{name}.weight")).expect("weight");
        for (o, row) in weight.chunks_mut(a.cols()).enumerate() {
            for (i, value) in row.iter_mut().enumerate() {
                *value += scale * (0..rank).map(|r| b.row(o)[r] * a.row(r)[i]).sum::<f32>();
            }
        }
    }
    let (want_loss, merged) = reference_gradients(&Reference::new(&config, &tensors).expect("reference"), &batch);
    assert!((loss - want_loss).abs() < 1e-4 * want_loss, "{loss} {want_loss}");

    for stack in graph.stacks() {
        let adapter = stack.adapter.as_ref().expect("adapter");
        let da = adapter.a.gradient();
        let da = da.as_ref().expect("gradient");
        for (place, part) in stack.parts.iter().enumerate() {
            let (a, b) = factors(part.index);
            let dw = &merged[part.index];
            let cols = a.cols();
            let want_a: Vec<f32> = (0..rank * cols)
                .map(|at| {
                    2.0 * scale * (0..b.rows()).map(|o| b.row(o)[at / cols] * dw[o * cols + at % cols]).sum::<f32>()
                })
                .collect();
            let want_b: Vec<f32> = (0..b.rows() * rank)
                .map(|at| 2.0 * scale * (0..cols).map(|i| dw[at / rank * cols + i] * a.row(at % rank)[i]).sum::<f32>())
                .collect();
            let mine_a = &da.values()[place * rank * cols..(place + 1) * rank * cols];
            assert!(relative_difference(mine_a, &want_a) < TOLERANCE, "A of linear {}", part.index);
            let db = adapter.b[place].gradient();
            let db = db.as_ref().expect("gradient");
            assert!(relative_difference(db.values(), &want_b) < TOLERANCE, "B of linear {}", part.index);
        }
    }
}

#[test]
fn a_packed_sequence_does_not_see_its_neighbours() {
    let config = config(Architecture::Llama);
    let tensors = tensors(&config, 4);
    let graph = Graph::new(&config, &tensors, Adaptation::Frozen, 64, false).expect("graph");
    let packed = batch();
    let alone: f64 = packed
        .starts
        .windows(2)
        .map(|border| {
            let counted = |row: &&usize| (border[0]..border[1]).contains(*row);
            let rows: Vec<usize> = packed.rows.iter().filter(counted).map(|row| row - border[0]).collect();
            let tokens = packed.tokens[border[0]..border[1]].to_vec();
            let targets = rows.iter().map(|&row| packed.tokens[border[0] + row + 1]).collect();
            let starts = vec![0, tokens.len()];
            graph.loss(&PackedBatch { tokens, starts, rows, targets }).expect("loss")
        })
        .sum();
    let together = graph.loss(&packed).expect("loss");
    assert!((alone - together).abs() < 1e-5 * together, "{alone} {together}");
}

#[test]
fn distilling_from_hidden_states_reaches_what_learns() {
    // The slope of KL(teacher ‖ student) along a parameter's own gradient is that gradient's squared norm.
    let config = config(Architecture::Qwen3);
    let (student, teacher) = (tensors(&config, 5), tensors(&config, 6));
    let batch = batch();
    let teacher = Graph::new(&config, &teacher, Adaptation::Frozen, 64, false).expect("graph");
    let student = Graph::new(&config, &student, Adaptation::Full, 64, false).expect("graph");
    let wanted = teacher.hidden(&batch).expect("hidden states");
    let divergence = |scale| {
        let loss = |hidden: &Matrix, head: &Matrix| {
            let result = kl(hidden, &wanted, head, teacher.head(), scale)?;
            Ok((result.loss, result.gradient))
        };
        student.accumulate_by(&batch, loss).expect("a divergence")
    };
    divergence(Some(1.0));
    for parameter in student.parameters() {
        let gradient = parameter.gradient().take().expect("a gradient");
        let norm = gradient.values().iter().map(|x| x * x).sum::<f32>();
        let step = 2e-3 / norm.sqrt();
        let moved = |by: f32| {
            let before = parameter.value().clone();
            let cols = before.cols();
            parameter.value_mut().add_to_columns(0..cols, &gradient, by);
            let loss = divergence(None);
            *parameter.value_mut() = before;
            loss
        };
        let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
        let want = f64::from(norm);
        assert!((slope - want).abs() < 0.02 * want, "{}: {slope} {want}", parameter.name());
    }
}

#[test]
fn factors_beside_a_coded_base_learn_as_beside_the_weights_that_the_codes_stand_for() {
    // The same graph on the base as its codes have it: only the order of sums differs.
    let config = config(Architecture::Llama);
    let tensors = tensors(&config, 7);
    let batch = batch();
    let adaptation = Adaptation::LowRank { rank: 3, scale: 1.0, seed: 5 };
    let gradients = |graph: &Graph| -> (f64, Vec<Matrix>) {
        // B is zero at the start, and then A has no gradient.
        for stack in graph.stacks() {
            for b in &stack.adapter.as_ref().expect("adapter").b {
                b.value_mut().values_mut().fill(0.05);
            }
        }
        let loss = graph.accumulate(&batch, 1.0).expect("backward");
        (loss, graph.parameters().iter().map(|p| p.gradient().take().expect("a gradient")).collect())
    };
    let exact = gradients(&Graph::new(&config, &tensors, adaptation, 64, false).expect("graph"));
    // Of the exact gradients: what rounding the weights may change. Each is measured, with room for twice as much.
    for (storage, most) in [(Storage::Bf16, 0.02), (Storage::Int8, 0.06), (Storage::Nf4, 0.7)] {
        let coded = Graph::kept(&config, &tensors, adaptation, Keeping { storage, ..Keeping::default() }, 64, false)
            .expect("graph");
        let plain = Graph::new(&config, &tensors, adaptation, 64, false).expect("graph");
        assert!(coded.frozen_bytes() < plain.frozen_bytes(), "{storage:?}");
        let found = gradients(&coded);
        let mut rounded = tensors.0.clone();
        for (name, values) in rounded.iter_mut().filter(|(name, _)| name.ends_with("_proj.weight")) {
            let cols = if name.contains("down_proj") { config.intermediate } else { config.hidden };
            let cols = if name.contains("o_proj") { config.heads * config.head_dim } else { cols };
            let rows = values.len() / cols;
            let identity = (0..cols * cols).map(|at| if at % (cols + 1) == 0 { 1.0 } else { 0.0 }).collect();
            let weight = Frozen::new(Matrix::new(rows, cols, values.clone()), storage);
            // Row i of the identity times Wᵀ is column i of W.
            let columns = weight.forward(Matrix::new(cols, cols, identity).view()).expect("a product");
            *values = (0..rows * cols).map(|at| columns.row(at % cols)[at / cols]).collect();
        }
        let rounded = Tensors(rounded);
        let want = gradients(&Graph::new(&config, &rounded, adaptation, 64, false).expect("graph"));
        assert!((found.0 - want.0).abs() < 1e-5 * want.0, "{storage:?}: {} {}", found.0, want.0);
        for ((found, want), exact) in found.1.iter().zip(&want.1).zip(&exact.1) {
            assert!(relative_difference(found.values(), want.values()) < TOLERANCE, "{storage:?}");
            let lost = relative_difference(found.values(), exact.values());
            assert!(lost < most, "{storage:?}: {lost}");
        }
    }
}
