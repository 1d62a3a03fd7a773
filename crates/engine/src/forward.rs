//! The forward pass of the Llama and Qwen3 family: one pass of the base for all rows, plus each row's own delta.
//!
//! ```text
//! rows        chunk of user A        | chunk of A | chunk of B | base
//! segments   [        variant A                   ][ variant B ][ none ]
//! linear      y = x · Wᵀ  over all rows at once, then y[segment] += x[segment] · Δᵀ from packed bits
//! embedding   x = E[tokens]  over all rows, then x[segment] += Δ[tokens of the segment]; the head is a linear
//! ```

use crate::{
    Model, Resident,
    backend::{Backend, PAGE, Projection, RowPlace},
    weights::VectorId,
};
use bitdelta_model::LinearKind;
use std::{
    ops::Range,
    time::{Duration, Instant},
};

/// Consecutive tokens of one sequence to run in this step.
pub(crate) struct Chunk<'a, B: Backend> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// Position of the first.
    pub start: usize,
    /// The sequence's pages; they reach at least to the last token.
    pub pages: &'a [u32],
    /// Whose delta.
    pub variant: Option<&'a Resident<B>>,
    /// Which of the tokens (counted from the chunk's first) want logits.
    pub logits: Range<usize>,
}

/// Rows of the same variant.
struct Segment<'a, B: Backend> {
    rows: Range<usize>,
    variant: Option<&'a Resident<B>>,
}

/// Rows of logits computed at a time: bounds the memory of a long evaluation.
const LOGIT_ROWS: usize = 32;

/// Where the time of steps went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Embeddings, norms, the gate: what is done to each row alone.
    pub rows: Duration,
    /// The layers' projections, base and deltas together.
    pub projections: Duration,
    /// Rotation, storing keys and values, attention.
    pub attention: Duration,
    /// The head's projection.
    pub head: Duration,
    /// Choosing tokens from logits.
    pub choice: Duration,
}

/// Measures one phase after another.
struct Clock(Instant);

impl Clock {
    /// Adds the time since the last call.
    fn lap(&mut self, phase: &mut Duration) {
        let now = Instant::now();
        *phase += now - self.0;
        self.0 = now;
    }
}

/// Activations, kept from step to step.
pub(crate) struct Workspace<B: Backend> {
    rows: usize,
    /// Of all steps so far.
    pub phases: Phases,
    residual: B::Buffer,
    normed: B::Buffer,
    q: B::Buffer,
    k: B::Buffer,
    v: B::Buffer,
    attended: B::Buffer,
    gate: B::Buffer,
    up: B::Buffer,
    picked: B::Buffer,
    logits: B::Buffer,
}

impl<B: Backend> Workspace<B> {
    /// Room for steps of `rows` rows.
    pub fn new(model: &Model<B>, rows: usize) -> Self {
        let config = &model.base().config;
        let buffer = |width: usize| model.backend().buffer(rows * width);
        Self {
            rows,
            phases: Phases::default(),
            residual: buffer(config.hidden),
            normed: buffer(config.hidden),
            q: buffer(config.heads * config.head_dim),
            k: buffer(config.kv_heads * config.head_dim),
            v: buffer(config.kv_heads * config.head_dim),
            attended: buffer(config.heads * config.head_dim),
            gate: buffer(config.intermediate),
            up: buffer(config.intermediate),
            picked: model.backend().buffer(LOGIT_ROWS.min(rows) * config.hidden),
            logits: model.backend().buffer(LOGIT_ROWS.min(rows) * config.vocab),
        }
    }

    /// Bytes that `rows` rows need, with what their projections take meanwhile.
    pub fn bytes(model: &Model<B>, rows: usize) -> u64 {
        let c = &model.base().config;
        let width = 2 * c.hidden + 2 * (c.heads + c.kv_heads) * c.head_dim + 2 * c.intermediate;
        let widest = c.hidden.max(c.intermediate).max(c.heads * c.head_dim);
        let projected = rows * model.backend().projected_row_bytes(widest);
        (4 * (rows * width + LOGIT_ROWS.min(rows) * (c.hidden + c.vocab)) + projected) as u64
    }
}

/// Runs the chunks, which come sorted by variant, and calls `each(chunk, row in chunk, logits)` for every row that wants
/// them, in order.
///
/// # Panics
/// When the chunks hold more rows than the workspace.
pub(crate) fn forward<B: Backend>(
    model: &Model<B>,
    chunks: &[Chunk<B>],
    kv: &mut B::Kv,
    space: &mut Workspace<B>,
    each: &mut dyn FnMut(usize, usize, &[f32]),
) {
    let tokens: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.tokens).copied().collect();
    assert!(tokens.len() <= space.rows, "{} rows in a workspace of {}", tokens.len(), space.rows);
    let places: Vec<RowPlace> = chunks
        .iter()
        .flat_map(|c| (0..c.tokens.len()).map(|i| RowPlace { pages: c.pages, position: c.start + i }))
        .collect();
    debug_assert!(places.iter().all(|place| place.position / PAGE < place.pages.len()));
    let clock = Clock(Instant::now());
    let mut pass = Pass { model, segments: segments(chunks), rows: tokens.len(), space, clock };
    let angles = model.angles(places.iter().map(|place| place.position));
    pass.embed(&tokens);
    for layer in 0..model.base().config.layers {
        pass.attention(layer, &angles, &places, kv);
        pass.mlp(layer);
    }
    pass.logits(chunks, each);
}

fn segments<'a, B: Backend>(chunks: &[Chunk<'a, B>]) -> Vec<Segment<'a, B>> {
    let mut segments: Vec<Segment<B>> = Vec::new();
    let mut row = 0;
    for chunk in chunks {
        let rows = row..row + chunk.tokens.len();
        row = rows.end;
        match segments.last_mut() {
            Some(last) if same(last.variant, chunk.variant) => last.rows.end = rows.end,
            _ => segments.push(Segment { rows, variant: chunk.variant }),
        }
    }
    segments
}

fn same<B: Backend>(a: Option<&Resident<B>>, b: Option<&Resident<B>>) -> bool {
    a.map(std::ptr::from_ref) == b.map(std::ptr::from_ref)
}

/// One step on its way through the layers.
struct Pass<'a, B: Backend> {
    model: &'a Model<B>,
    segments: Vec<Segment<'a, B>>,
    rows: usize,
    space: &'a mut Workspace<B>,
    clock: Clock,
}

impl<B: Backend> Pass<'_, B> {
    /// residual = the tokens' rows of the embedding.
    fn embed(&mut self, tokens: &[u32]) {
        let (backend, residual) = (self.model.backend(), &mut self.space.residual);
        backend.embed(&self.model.weights.embedding, tokens, residual);
        for segment in &self.segments {
            if let Some(delta) = segment.variant.and_then(Resident::embedding) {
                backend.add_embedding_delta(delta, tokens, segment.rows.clone(), residual);
            }
        }
        self.clock.lap(&mut self.space.phases.rows);
    }

    /// residual += attention(norm(residual)).
    fn attention(&mut self, layer: usize, angles: &Angles, places: &[RowPlace], kv: &mut B::Kv) {
        let (model, rows, segments) = (self.model, self.rows, &self.segments);
        let (backend, config) = (model.backend(), &model.base().config);
        let (heads, kv_heads, width) = (config.heads, config.kv_heads, config.head_dim);
        let s = &mut *self.space;
        norm(model, segments, VectorId::INPUT_NORM.at(layer), &s.residual, &mut s.normed);
        self.clock.lap(&mut s.phases.rows);
        let to = [(LinearKind::Q, &mut s.q), (LinearKind::K, &mut s.k), (LinearKind::V, &mut s.v)];
        project(model, segments, rows, layer, &s.normed, to, false);
        self.clock.lap(&mut s.phases.projections);
        head_norm(model, segments, VectorId::Q_NORM.at(layer), heads, &mut s.q);
        head_norm(model, segments, VectorId::K_NORM.at(layer), kv_heads, &mut s.k);
        backend.rope(&angles.cos, &angles.sin, rows, heads, width, &mut s.q);
        backend.rope(&angles.cos, &angles.sin, rows, kv_heads, width, &mut s.k);
        backend.store_kv(kv, layer, &s.k, &s.v, places);
        backend.attend(kv, layer, &s.q, heads, places, &mut s.attended);
        self.clock.lap(&mut s.phases.attention);
        project(model, segments, rows, layer, &s.attended, [(LinearKind::O, &mut s.residual)], true);
        self.clock.lap(&mut s.phases.projections);
    }

    /// residual += down(silu(gate) · up) of norm(residual).
    fn mlp(&mut self, layer: usize) {
        let (model, rows, segments) = (self.model, self.rows, &self.segments);
        let (backend, config) = (model.backend(), &model.base().config);
        let s = &mut *self.space;
        norm(model, segments, VectorId::MLP_NORM.at(layer), &s.residual, &mut s.normed);
        self.clock.lap(&mut s.phases.rows);
        let to = [(LinearKind::Gate, &mut s.gate), (LinearKind::Up, &mut s.up)];
        project(model, segments, rows, layer, &s.normed, to, false);
        self.clock.lap(&mut s.phases.projections);
        backend.silu_mul(&s.gate, rows * config.intermediate, &mut s.up);
        self.clock.lap(&mut s.phases.rows);
        project(model, segments, rows, layer, &s.up, [(LinearKind::Down, &mut s.residual)], true);
        self.clock.lap(&mut s.phases.projections);
    }

    fn logits(&mut self, chunks: &[Chunk<B>], each: &mut dyn FnMut(usize, usize, &[f32])) {
        let (model, s) = (self.model, &mut *self.space);
        let (backend, config) = (model.backend(), &model.base().config);
        norm(model, &self.segments, VectorId::final_norm(config.layers), &s.residual, &mut s.normed);
        let mut wanted = Vec::new();
        let mut first = 0;
        for (index, chunk) in chunks.iter().enumerate() {
            wanted.extend(chunk.logits.clone().map(|row| (index, row, first + row)));
            first += chunk.tokens.len();
        }
        let head = model.weights.head.as_ref().unwrap_or(&model.weights.embedding);
        for wanted in wanted.chunks(LOGIT_ROWS) {
            let rows: Vec<usize> = wanted.iter().map(|(_, _, row)| *row).collect();
            backend.gather(&s.normed, &rows, config.hidden, &mut s.picked);
            let mut first = 0;
            let mut deltas = Vec::new();
            for run in wanted.chunk_by(|a, b| same(chunks[a.0].variant, chunks[b.0].variant)) {
                let rows = first..first + run.len();
                first = rows.end;
                if let Some(delta) = chunks[run[0].0].variant.and_then(Resident::head) {
                    deltas.push((delta, rows));
                }
            }
            let head = Projection { weights: head, deltas, y: &mut s.logits, add: false };
            backend.project(&s.picked, rows.len(), vec![head]);
            self.clock.lap(&mut s.phases.head);
            for (i, (chunk, row, _)) in wanted.iter().enumerate() {
                let at = i * config.vocab..(i + 1) * config.vocab;
                backend.read(&s.logits, at, &mut |logits| each(*chunk, *row, logits));
            }
            self.clock.lap(&mut s.phases.choice);
        }
    }
}

/// The vector at `place`: the variant's own, else the base's.
fn vector<'a, B: Backend>(model: &'a Model<B>, segment: &Segment<'a, B>, place: usize) -> Option<&'a B::Weights> {
    segment.variant.and_then(|variant| variant.vector(place)).or(model.weights.vectors[place].as_ref())
}

/// Normalises each segment with its own weight; neighbours that have the same one together.
fn norm<B: Backend>(model: &Model<B>, segments: &[Segment<B>], place: usize, x: &B::Buffer, y: &mut B::Buffer) {
    let address = |segment: &Segment<B>| vector(model, segment, place).map(std::ptr::from_ref);
    for run in segments.chunk_by(|a, b| address(a) == address(b)) {
        let rows = run[0].rows.start..run[run.len() - 1].rows.end;
        if let Some(weight) = vector(model, &run[0], place) {
            model.backend().rms_norm(x, weight, model.base().config.rms_eps, rows, y);
        }
    }
}

/// Normalises each head in place, in models that do (Qwen3).
fn head_norm<B: Backend>(model: &Model<B>, segments: &[Segment<B>], place: usize, heads: usize, x: &mut B::Buffer) {
    for segment in segments {
        if let Some(weight) = vector(model, segment, place) {
            let rows = segment.rows.start * heads..segment.rows.end * heads;
            model.backend().rms_norm_in_place(weight, model.base().config.rms_eps, rows, x);
        }
    }
}

/// `y (+)= x · Wᵀ` for all rows, with each segment's delta and bias, for all the linears that share x.
fn project<B: Backend, const N: usize>(
    model: &Model<B>,
    segments: &[Segment<B>],
    rows: usize,
    layer: usize,
    x: &B::Buffer,
    mut to: [(LinearKind, &mut B::Buffer); N],
    add: bool,
) {
    expect(model, segments, layer * LinearKind::ALL.len() + to[N - 1].0 as usize);
    let mut projections = Vec::with_capacity(N);
    for (kind, y) in &mut to {
        let index = layer * LinearKind::ALL.len() + *kind as usize;
        let mut deltas = Vec::with_capacity(segments.len());
        deltas.extend(segments.iter().filter_map(|s| Some((s.variant?.delta(index), s.rows.clone()))));
        projections.push(Projection { weights: &model.weights.linears[index], deltas, y: &mut **y, add });
    }
    model.backend().project(x, rows, projections);
    for (kind, y) in to {
        for segment in segments {
            if let Some(bias) = vector(model, segment, VectorId::bias(kind).at(layer)) {
                model.backend().add_bias(bias, segment.rows.clone(), y);
            }
        }
    }
}

/// Announces the deltas of the linears after the one at `last`, as many as may share their rows.
fn expect<B: Backend>(model: &Model<B>, segments: &[Segment<B>], last: usize) {
    const TOGETHER: usize = 3;
    let next = last + 1..model.weights.linears.len().min(last + 1 + TOGETHER);
    for variant in segments.iter().filter_map(|segment| segment.variant) {
        next.clone().for_each(|index| model.backend().expect(variant.delta(index)));
    }
}

/// Cosines and sines of the rotary angles, (rows, head_dim / 2).
pub(crate) struct Angles {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}
