//! The CPU backend: buffers are vectors, operations are the `kernels` crate's.

use crate::{
    Error,
    backend::{Backend, BaseDtype, HostTensor, KvShape, PAGE, RowPlace},
};
use bitdelta_delta::{
    dense::PackedMatrix,
    file::LinearDelta,
    part::{self, Part},
};
use bitdelta_kernels as kernels;
use bitdelta_kernels::{Elements, Int8Weights, KvPages, Packed, PlaneTiles, Weights, packed};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Runs on the machine's cores, in a pool of its own.
pub struct Cpu {
    pool: rayon::ThreadPool,
    base_dtype: BaseDtype,
}

impl Cpu {
    /// A pool of `threads` threads (0 is one for each core), with the base's matrices kept as `base_dtype`.
    ///
    /// # Errors
    /// [`Error::Threads`] when the system gives no threads.
    pub fn new(threads: usize, base_dtype: BaseDtype) -> Result<Self, Error> {
        let name = |i| format!("bitdelta-{i}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build();
        pool.map(|pool| Self { pool, base_dtype }).map_err(|e| Error::Threads { reason: e.to_string() })
    }
}

/// A base tensor in memory.
pub enum CpuWeights {
    /// Floats, multiplied as they are.
    Floats {
        /// The elements.
        tensor: HostTensor,
        /// Outputs.
        rows: usize,
        /// Inputs.
        cols: usize,
    },
    /// int8, multiplied with rounded activations.
    Int8(Int8Weights),
}

impl CpuWeights {
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Floats { rows, cols, .. } => (*rows, *cols),
            Self::Int8(weights) => weights.shape(),
        }
    }

    /// A vector of the model (norm weight, bias): always kept in f32.
    fn vector(&self) -> &[f32] {
        match self {
            Self::Floats { tensor: HostTensor::F32(values), .. } => values,
            _ => unreachable!("weights() keeps vectors in f32"),
        }
    }

    fn copy_row(&self, row: usize, out: &mut [f32]) {
        let at = row * out.len()..(row + 1) * out.len();
        match self {
            Self::Int8(weights) => weights.copy_row(row, out),
            Self::Floats { tensor: HostTensor::F32(e), .. } => out.copy_from_slice(&e[at]),
            Self::Floats { tensor: HostTensor::F16(e), .. } => {
                out.iter_mut().zip(&e[at]).for_each(|(o, b)| *o = f16::from_bits(*b).to_f32());
            }
            Self::Floats { tensor: HostTensor::Bf16(e), .. } => {
                out.iter_mut().zip(&e[at]).for_each(|(o, b)| *o = bf16::from_bits(*b).to_f32());
            }
        }
    }
}

fn widen(tensor: HostTensor) -> Vec<f32> {
    match tensor {
        HostTensor::F32(values) => values,
        HostTensor::F16(bits) => bits.into_iter().map(|b| f16::from_bits(b).to_f32()).collect(),
        HostTensor::Bf16(bits) => bits.into_iter().map(|b| bf16::from_bits(b).to_f32()).collect(),
    }
}

/// One linear's delta: what the base's dtype lets be multiplied with rounded activations, and the rest as it is.
pub struct CpuDelta {
    tiles: Vec<PlaneTiles>,
    rest: LinearDelta,
}

impl CpuDelta {
    /// `y (m, rows) += x (m, cols) · Δᵀ`.
    fn add(&self, x: &[f32], y: &mut [f32]) {
        let Self { tiles, rest: delta } = self;
        for tiles in tiles {
            kernels::add_planes(x, tiles, y);
        }
        for part in &delta.parts {
            match part {
                Part::Dense(matrix) => packed::add_product(x, &packed_view(matrix), y),
                Part::LowRank { a, bt } => {
                    let mut t = vec![0.0; x.len() / delta.cols * a.rows];
                    packed::add_product(x, &packed_view(a), &mut t);
                    packed::add_transposed(&t, &packed_view(bt), y);
                }
                Part::Full { rows, cols, values } => {
                    let weights = Weights { elements: Elements::F16(values), rows: *rows, cols: *cols };
                    kernels::matmul(x, &weights, y, true);
                }
            }
        }
    }
}

/// Pages of keys and values: page → layer → head → keys then values → position → head_dim.
pub struct CpuKv {
    shape: KvShape,
    pages: Vec<Vec<f32>>,
}

impl CpuKv {
    /// Where keys (values follow) of a layer and head start in a page.
    fn at(&self, layer: usize, head: usize) -> usize {
        (layer * self.shape.kv_heads + head) * 2 * PAGE * self.shape.head_dim
    }
}

/// One sequence's pages at one layer and head.
struct HeadPages<'a> {
    kv: &'a CpuKv,
    pages: &'a [u32],
    at: usize,
}

impl KvPages for HeadPages<'_> {
    fn page(&self, index: usize) -> (&[f32], &[f32]) {
        let size = PAGE * self.kv.shape.head_dim;
        self.kv.pages[self.pages[index] as usize][self.at..self.at + 2 * size].split_at(size)
    }
}

fn packed_view(m: &PackedMatrix) -> Packed<'_> {
    Packed {
        bits: m.bits.into(),
        rows: m.rows,
        cols: m.cols,
        group: m.group,
        planes: &m.planes,
        scales: &m.scales,
        offsets: &m.offsets,
        tensor_scale: m.tensor_scale,
    }
}

impl Backend for Cpu {
    type Buffer = Vec<f32>;
    type Weights = CpuWeights;
    type Delta = CpuDelta;
    type Kv = CpuKv;

    fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn weights(&self, tensor: HostTensor, rows: usize, cols: usize) -> CpuWeights {
        let tensor = match self.base_dtype {
            _ if rows == 1 => HostTensor::F32(widen(tensor)),
            BaseDtype::Stored => tensor,
            BaseDtype::F32 => HostTensor::F32(widen(tensor)),
            BaseDtype::Bf16 => match tensor {
                HostTensor::Bf16(bits) => HostTensor::Bf16(bits),
                other => HostTensor::Bf16(widen(other).into_iter().map(|w| bf16::from_f32(w).to_bits()).collect()),
            },
            BaseDtype::Int8 => return CpuWeights::Int8(Int8Weights::quantize(&widen(tensor), rows, cols)),
        };
        CpuWeights::Floats { tensor, rows, cols }
    }

    fn delta(&self, delta: &LinearDelta) -> CpuDelta {
        let mut tiles = Vec::new();
        let mut rest = LinearDelta { parts: Vec::new(), ..*delta };
        for part in &delta.parts {
            let tiled = match part {
                Part::Dense(matrix) if self.base_dtype == BaseDtype::Int8 => PlaneTiles::new(&packed_view(matrix)),
                _ => None,
            };
            match tiled {
                Some(tiled) => tiles.push(tiled),
                None => rest.parts.push(part.clone()),
            }
        }
        CpuDelta { tiles, rest }
    }

    fn delta_bytes(&self, delta: &CpuDelta) -> u64 {
        let tiles: u64 = delta.tiles.iter().map(PlaneTiles::bytes).sum();
        tiles + delta.rest.parts.iter().map(Part::bytes).sum::<u64>()
    }

    fn buffer(&self, len: usize) -> Vec<f32> {
        vec![0.0; len]
    }

    fn write(&self, values: &[f32], to: &mut Vec<f32>) {
        to[..values.len()].copy_from_slice(values);
    }

    fn read(&self, from: &Vec<f32>, range: Range<usize>, f: &mut dyn FnMut(&[f32])) {
        f(&from[range]);
    }

    fn scope<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.install(f)
    }

    fn embed(&self, table: &CpuWeights, tokens: &[u32], out: &mut Vec<f32>) {
        out.chunks_exact_mut(table.shape().1).zip(tokens).for_each(|(out, token)| table.copy_row(*token as usize, out));
    }

    fn add_embedding_delta(&self, delta: &CpuDelta, tokens: &[u32], rows: Range<usize>, out: &mut Vec<f32>) {
        let CpuDelta { tiles, rest: delta } = delta;
        let out = &mut out[rows.start * delta.cols..rows.end * delta.cols];
        let tokens = tokens[rows].par_iter();
        out.par_chunks_mut(delta.cols).zip(tokens).for_each(|(out, token)| {
            part::add_row(&delta.parts, *token as usize, out);
            tiles.iter().for_each(|tiles| tiles.add_row(*token as usize, out));
        });
    }

    fn linear(&self, x: &Vec<f32>, w: &CpuWeights, rows: usize, y: &mut Vec<f32>) {
        let (outputs, inputs) = w.shape();
        let (x, y) = (&x[..rows * inputs], &mut y[..rows * outputs]);
        match w {
            CpuWeights::Int8(w) => kernels::matmul_int8(x, w, y),
            CpuWeights::Floats { tensor, .. } => {
                let elements = match tensor {
                    HostTensor::F32(e) => Elements::F32(e),
                    HostTensor::F16(e) => Elements::F16(e),
                    HostTensor::Bf16(e) => Elements::Bf16(e),
                };
                kernels::matmul(x, &Weights { elements, rows: outputs, cols: inputs }, y, false);
            }
        }
    }

    fn add_deltas(&self, deltas: &[(&CpuDelta, Range<usize>)], x: &Vec<f32>, y: &mut Vec<f32>) {
        let mut left = y.as_mut_slice();
        let mut row = 0;
        let mut jobs = Vec::with_capacity(deltas.len());
        for (delta, rows) in deltas {
            let (outputs, inputs) = (delta.rest.rows, delta.rest.cols);
            let (_, from) = left.split_at_mut((rows.start - row) * outputs);
            let (own, rest) = from.split_at_mut(rows.len() * outputs);
            (left, row) = (rest, rows.end);
            jobs.push((*delta, &x[rows.start * inputs..rows.end * inputs], own));
        }
        match jobs.as_mut_slice() {
            [(delta, x, y)] => delta.add(x, y),
            jobs => jobs.par_iter_mut().with_max_len(1).for_each(|(delta, x, y)| delta.add(x, y)),
        }
    }

    fn add_bias(&self, bias: &CpuWeights, rows: Range<usize>, y: &mut Vec<f32>) {
        kernels::add_bias(bias.vector(), &mut y[rows.start * bias.shape().1..rows.end * bias.shape().1]);
    }

    fn rms_norm(&self, x: &Vec<f32>, weight: &CpuWeights, eps: f32, rows: Range<usize>, y: &mut Vec<f32>) {
        let width = weight.shape().1;
        let at = rows.start * width..rows.end * width;
        kernels::rms_norm(&x[at.clone()], weight.vector(), eps, &mut y[at]);
    }

    fn rms_norm_in_place(&self, weight: &CpuWeights, eps: f32, rows: Range<usize>, x: &mut Vec<f32>) {
        let width = weight.shape().1;
        let x = &mut x[rows.start * width..rows.end * width];
        let copy = x.to_vec();
        kernels::rms_norm(&copy, weight.vector(), eps, x);
    }

    fn rope(&self, cos: &[f32], sin: &[f32], rows: usize, heads: usize, head_dim: usize, x: &mut Vec<f32>) {
        kernels::rope(&mut x[..rows * heads * head_dim], head_dim, cos, sin);
    }

    fn silu_mul(&self, gate: &Vec<f32>, values: usize, up: &mut Vec<f32>) {
        kernels::silu_mul(&gate[..values], &mut up[..values]);
    }

    fn add(&self, x: &Vec<f32>, values: usize, y: &mut Vec<f32>) {
        kernels::add(&x[..values], &mut y[..values]);
    }

    fn gather(&self, from: &Vec<f32>, rows: &[usize], width: usize, to: &mut Vec<f32>) {
        for (to, row) in to.chunks_exact_mut(width).zip(rows) {
            to.copy_from_slice(&from[row * width..][..width]);
        }
    }

    fn kv(&self, shape: KvShape, pages: usize) -> Result<CpuKv, Error> {
        Ok(CpuKv { shape, pages: vec![Vec::new(); pages] })
    }

    fn store_kv(&self, kv: &mut CpuKv, layer: usize, k: &Vec<f32>, v: &Vec<f32>, rows: &[RowPlace]) {
        let (width, heads) = (kv.shape.head_dim, kv.shape.kv_heads);
        for (row, place) in rows.iter().enumerate() {
            let values = kv.shape.page_values();
            let starts: Vec<usize> = (0..heads).map(|head| kv.at(layer, head)).collect();
            let page = &mut kv.pages[place.pages[place.position / PAGE] as usize];
            if page.is_empty() {
                page.resize(values, 0.0);
            }
            for (head, start) in starts.into_iter().enumerate() {
                let from = (row * heads + head) * width;
                let to = start + place.position % PAGE * width;
                page[to..to + width].copy_from_slice(&k[from..from + width]);
                page[to + PAGE * width..to + (PAGE + 1) * width].copy_from_slice(&v[from..from + width]);
            }
        }
    }

    fn attend(&self, kv: &CpuKv, layer: usize, q: &Vec<f32>, heads: usize, rows: &[RowPlace], out: &mut Vec<f32>) {
        let width = kv.shape.head_dim;
        let scale = 1.0 / (width as f32).sqrt();
        let shared = heads / kv.shape.kv_heads;
        let used = rows.len() * heads * width;
        out[..used].par_chunks_mut(width).zip(q[..used].par_chunks(width)).enumerate().for_each(|(i, (out, q))| {
            let place = rows[i / heads];
            let pages = HeadPages { kv, pages: place.pages, at: kv.at(layer, i % heads / shared) };
            kernels::attend(q, &pages, PAGE, place.position + 1, scale, out);
        });
    }
}
