//! The CPU backend: buffers are vectors, operations are the `kernels` crate's.

mod factors;
mod kv;

use crate::{
    Error,
    backend::{Backend, BaseDtype, Halves, HostTensor, KvDtype, KvShape, Projection, RowPlace},
};
use bitdelta_delta::{
    file::LinearDelta,
    part::{self, Part},
};
use bitdelta_kernels as kernels;
use bitdelta_kernels::{
    Activations, Arena, Blocks, Elements, Int8Weights, Layout, LowRankTiles, Matrix, PlaneTiles, Product, Team, Term,
    Weights, for_each_chunk,
};
use bitdelta_model::CodeBlocks;
use factors::CpuFactors;
use half::{bf16, f16};
pub use kv::CpuKv;
use smallvec::SmallVec;
use std::ops::Range;

/// Runs on the machine's cores, with a team of threads of its own.
pub struct Cpu {
    team: Team,
    base_dtype: BaseDtype,
    kv_dtype: KvDtype,
}

impl Cpu {
    /// `threads` threads (0 is one for each core), with the base's matrices kept as `base_dtype`, keys and values as
    /// `kv_dtype`.
    ///
    /// # Errors
    /// [`Error::Threads`] when the system gives no threads.
    pub fn new(threads: usize, base_dtype: BaseDtype, kv_dtype: KvDtype) -> Result<Self, Error> {
        let team = Team::new(threads).map_err(|e| Error::Threads { reason: e.to_string() })?;
        Ok(Self { team, base_dtype, kv_dtype: kv_dtype.beside(base_dtype) })
    }
}

/// A base tensor in memory.
pub enum CpuWeights {
    /// Floats, multiplied as they are.
    Floats {
        /// The elements, floats of some width.
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

    fn matrix(&self) -> Matrix<'_> {
        match self {
            Self::Int8(weights) => Matrix::Int8(weights),
            Self::Floats { tensor, rows, cols } => {
                let elements = match tensor {
                    HostTensor::F32(e) => Elements::F32(e),
                    HostTensor::F16(e) => Elements::F16(e),
                    HostTensor::Bf16(e) => Elements::Bf16(e),
                    HostTensor::Codes { .. } => unreachable!("weights() keeps codes as int8"),
                };
                Matrix::Floats(Weights { elements, rows: *rows, cols: *cols })
            }
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
            Self::Floats { tensor: HostTensor::Codes { .. }, .. } => unreachable!("weights() keeps codes as int8"),
        }
    }
}

fn widen(tensor: HostTensor) -> Vec<f32> {
    match tensor {
        HostTensor::F32(values) => values,
        HostTensor::F16(bits) => bits.iter().map(|b| f16::from_bits(*b).to_f32()).collect(),
        HostTensor::Bf16(bits) => bits.iter().map(|b| bf16::from_bits(*b).to_f32()).collect(),
        HostTensor::Codes { .. } => unreachable!("codes are read for a matrix in int8 alone"),
    }
}

/// One linear's delta: what the base's dtype lets be multiplied with rounded activations, and the rest as it is.
pub struct CpuDelta {
    /// One in most deltas, which lies with its neighbours' in a row then.
    tiles: SmallVec<[Tiles; 1]>,
    factors: Vec<CpuFactors>,
    rest: LinearDelta,
}

/// A part in the layout of the products with rounded activations.
enum Tiles {
    Dense(PlaneTiles),
    LowRank(LowRankTiles),
}

impl Tiles {
    /// `None` for what has no such layout.
    fn new(part: &Part, arena: &mut Arena) -> Option<Self> {
        match part {
            Part::Dense(matrix) => PlaneTiles::new(&matrix.packed(), arena).map(Self::Dense),
            Part::LowRank { a, bt } => LowRankTiles::new(&a.packed(), &bt.packed(), arena).map(Self::LowRank),
            Part::Sparse(_) | Part::Full { .. } => None,
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        match self {
            Self::Dense(tiles) => Matrix::Planes(tiles),
            Self::LowRank(tiles) => Matrix::LowRankTiles(tiles),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Dense(tiles) => tiles.bytes(),
            Self::LowRank(tiles) => tiles.bytes(),
        }
    }

    fn add_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Dense(tiles) => tiles.add_row(row, out),
            Self::LowRank(tiles) => tiles.add_row(row, out),
        }
    }
}

impl CpuDelta {
    /// What it adds to the product, in the order in which it is added.
    fn matrices(&self) -> impl Iterator<Item = Matrix<'_>> {
        let rest = self.rest.parts.iter().map(|part| match part {
            Part::Dense(matrix) => Matrix::Packed(matrix.packed()),
            Part::LowRank { a, bt } => Matrix::LowRank(a.packed(), bt.packed()),
            Part::Sparse(rows) => Matrix::Sparse(rows),
            Part::Full { rows, cols, values } => {
                Matrix::Floats(Weights { elements: Elements::F16(values), rows: *rows, cols: *cols })
            }
        });
        self.tiles.iter().map(Tiles::matrix).chain(rest).chain(self.factors.iter().map(CpuFactors::matrix))
    }
}

impl Backend for Cpu {
    type Buffer = Vec<f32>;
    type Weights = CpuWeights;
    type Delta = CpuDelta;
    type Kv = CpuKv;
    type Arena = Arena;

    fn threads(&self) -> usize {
        self.team.threads()
    }

    fn arena(&self, bytes: u64) -> Arena {
        Arena::new(bytes as usize)
    }

    fn weights(&self, tensor: HostTensor, rows: usize, cols: usize, arena: &mut Arena) -> CpuWeights {
        if let HostTensor::Codes { blocks: CodeBlocks { codes, scales, minima }, bits } = &tensor {
            let layout = if *bits == 4 { Layout::Nibbles } else { Layout::Bytes };
            return CpuWeights::Int8(Int8Weights::keep(&Blocks { codes, scales, minima }, layout, rows, cols, arena));
        }
        let tensor = match self.base_dtype {
            _ if rows == 1 => HostTensor::F32(widen(tensor)),
            BaseDtype::Stored => tensor,
            BaseDtype::F32 => HostTensor::F32(widen(tensor)),
            BaseDtype::Bf16 => match tensor {
                HostTensor::Bf16(bits) => HostTensor::Bf16(bits),
                other => {
                    let values = widen(other);
                    let mut bits = arena.take(values.len());
                    bits.iter_mut().zip(values).for_each(|(to, w)| *to = bf16::from_f32(w).to_bits());
                    HostTensor::Bf16(Halves::Owned(bits))
                }
            },
            BaseDtype::Int8 => return CpuWeights::Int8(Int8Weights::quantize(&widen(tensor), rows, cols, arena)),
        };
        CpuWeights::Floats { tensor, rows, cols }
    }

    fn delta(&self, delta: LinearDelta, arena: &mut Arena) -> CpuDelta {
        let mut tiles = SmallVec::new();
        let mut factors = Vec::new();
        let mut parts = Vec::new();
        for part in delta.parts {
            if let Some(floats) = CpuFactors::of(&part) {
                factors.push(floats);
                continue;
            }
            let tiled = if self.base_dtype == BaseDtype::Int8 { Tiles::new(&part, arena) } else { None };
            match tiled {
                Some(tiled) => tiles.push(tiled),
                None => parts.push(part),
            }
        }
        tiles.shrink_to_fit();
        factors.shrink_to_fit();
        parts.shrink_to_fit();
        CpuDelta { tiles, factors, rest: LinearDelta { parts, ..delta } }
    }

    fn expect(&self, delta: &CpuDelta) {
        kernels::prefetch_value(delta);
    }

    fn delta_bytes(&self, delta: &CpuDelta) -> u64 {
        let tiles: u64 = delta.tiles.iter().map(Tiles::bytes).sum();
        let factors: u64 = delta.factors.iter().map(CpuFactors::bytes).sum();
        tiles + factors + delta.rest.parts.iter().map(Part::bytes).sum::<u64>()
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
        self.team.install(f)
    }

    fn embed(&self, table: &CpuWeights, tokens: &[u32], out: &mut Vec<f32>) {
        out.chunks_exact_mut(table.shape().1).zip(tokens).for_each(|(out, token)| table.copy_row(*token as usize, out));
    }

    fn add_embedding_delta(&self, delta: &CpuDelta, tokens: &[u32], rows: Range<usize>, out: &mut Vec<f32>) {
        let CpuDelta { tiles, factors, rest: delta } = delta;
        let out = &mut out[rows.start * delta.cols..rows.end * delta.cols];
        let tokens = &tokens[rows];
        for_each_chunk(out, delta.cols, |i, out| {
            let token = tokens[i] as usize;
            part::add_row(&delta.parts, token, out);
            tiles.iter().for_each(|tiles| tiles.add_row(token, out));
            factors.iter().for_each(|factors| factors.add_row(token, out));
        });
    }

    fn project(&self, x: &Vec<f32>, rows: usize, projections: Vec<Projection<Self>>) {
        let Some(first) = projections.first() else { return };
        let width = first.weights.shape().1;
        let x = &x[..rows * width];
        let x = match self.base_dtype {
            BaseDtype::Int8 => Activations::rounded(x, width),
            BaseDtype::Bf16 => Activations::narrow(x, width),
            BaseDtype::Stored | BaseDtype::F32 => Activations::exact(x, width),
        };
        let product = |Projection { weights, deltas, y, add }| {
            let base = Term { matrix: CpuWeights::matrix(weights), rows: 0..rows };
            let mut terms = Vec::with_capacity(1 + deltas.len());
            terms.push(base);
            terms.extend(deltas.into_iter().flat_map(|(delta, rows)| {
                CpuDelta::matrices(delta).map(move |matrix| Term { matrix, rows: rows.clone() })
            }));
            let y: &mut Vec<f32> = y;
            Product { terms, y: &mut y[..rows * weights.shape().0], add }
        };
        kernels::project(&x, &mut projections.into_iter().map(product).collect::<Vec<_>>());
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

    fn gather(&self, from: &Vec<f32>, rows: &[usize], width: usize, to: &mut Vec<f32>) {
        for (to, row) in to.chunks_exact_mut(width).zip(rows) {
            to.copy_from_slice(&from[row * width..][..width]);
        }
    }

    fn projected_row_bytes(&self, width: usize) -> usize {
        match self.base_dtype {
            BaseDtype::Int8 => kernels::rounded_row_bytes(width),
            BaseDtype::Bf16 => width * size_of::<bf16>(),
            BaseDtype::Stored | BaseDtype::F32 => 0,
        }
    }

    fn kv_dtype(&self) -> KvDtype {
        self.kv_dtype
    }

    fn kv(&self, shape: KvShape, pages: usize) -> Result<CpuKv, Error> {
        Ok(CpuKv::new(shape, self.kv_dtype, pages))
    }

    fn store_kv(&self, kv: &mut CpuKv, layer: usize, k: &Vec<f32>, v: &Vec<f32>, rows: &[RowPlace]) {
        kv.store(layer, k, v, rows);
    }

    fn attend(&self, kv: &CpuKv, layer: usize, q: &Vec<f32>, heads: usize, rows: &[RowPlace], out: &mut Vec<f32>) {
        kv.attend(layer, q, heads, rows, out);
    }
}
