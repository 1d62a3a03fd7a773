//! Projections: `Y = X · Wᵀ` of a base matrix for all rows, plus each user's own delta for that user's rows, for as many
//! matrices as share the rows X (queries, keys and values; gate and up).
//!
//! One operation for the team, each task taking a range of outputs of one matrix, for some of the rows. A task multiplies the
//! base and then adds every delta to the same outputs while they are in cache. What must be whole before a delta is added
//! (`A · x` of each low-rank one, the tables of dense ones) is done by the first tasks: in an operation of its own, all threads
//! met once more.

use crate::{
    again::Again,
    ahead::{Ahead, Pieces},
    int8::{Int8Weights, TILE, run_int8},
    isa::Isa,
    lowrank::{self, LowRankTiles},
    matmul::{Weights, run_floats},
    packed::{self, Packed},
    parallel::{Before, Output, for_each, threads},
    planes::{PlaneTiles, Tables, run_planes},
    rounded::{Activations, BLOCK, Rounded},
    sparse::{SparseRows, run_sparse},
};
use std::ops::Range;

/// Tasks for each thread: a few, so that one slow core does not hold up the others. Each asks for every variant's part anew: with
/// 8, a batch of 8 users of rank 4 lost 4 %.
const TASKS: usize = 5;
/// Multiply-adds below which a second thread costs more than it brings.
const WORTH_SPLITTING: usize = 1 << 16;
/// Bytes that stay in a core's second cache beside what passes through: activations beside weights, a task's weights beside deltas.
const CACHED: usize = 256 << 10;
/// Bytes of weights that stay in the caches while they are multiplied by some rows after others.
const PASSED_AGAIN: usize = 2 << 20;
/// Rows that the int8 product takes at a time.
const CHUNK: usize = 8;
/// Pieces of the first factors for each thread.
const FACTOR_PIECES: usize = 4;
/// Rows of x that one task of a first factor takes.
const FACTOR_ROWS: usize = 16;

/// Something that multiplies activations.
#[derive(Debug, Clone, Copy)]
pub enum Matrix<'a> {
    /// Floats.
    Floats(Weights<'a>),
    /// int8 weights; the activations must be rounded.
    Int8(&'a Int8Weights),
    /// A dense delta in tiles; the activations must be rounded.
    Planes(&'a PlaneTiles),
    /// A dense delta as its file stores it.
    Packed(Packed<'a>),
    /// A sparse delta; activations are taken as they are.
    Sparse(&'a SparseRows),
    /// Bᵀ · A with A (rank, inputs) and B (rank, outputs), as their file stores them.
    LowRank(Packed<'a>, Packed<'a>),
    /// `scale` · B · A of floats, with A (rank, inputs) and B (outputs, rank).
    Factors(Weights<'a>, Weights<'a>, f32),
    /// The same in tiles; the activations must be rounded.
    LowRankTiles(&'a LowRankTiles),
}

impl Matrix<'_> {
    /// (outputs, inputs).
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Floats(w) => (w.rows, w.cols),
            Self::Int8(w) => w.shape(),
            Self::Planes(d) => d.shape(),
            Self::Packed(d) => (d.rows, d.cols),
            Self::Sparse(d) => d.shape(),
            Self::LowRank(a, b) => (b.cols, a.cols),
            Self::LowRankTiles(d) => d.shape(),
            Self::Factors(a, b, _) => (b.rows, a.cols),
        }
    }

    /// Outputs that a task takes are a multiple of this: what the matrix is laid out in. Each divides the greater ones.
    fn unit(&self) -> usize {
        match self {
            Self::LowRank(..) => BLOCK,
            Self::LowRankTiles(_) => BLOCK / 2,
            _ => TILE,
        }
    }

    /// The rank of a product of two factors.
    fn rank(&self) -> Option<usize> {
        match self {
            Self::LowRank(a, _) => Some(a.rows),
            Self::LowRankTiles(d) => Some(d.rank()),
            Self::Factors(a, ..) => Some(a.rows),
            _ => None,
        }
    }

    /// Values between the two factors, of a row.
    fn between(&self) -> Option<usize> {
        match self {
            Self::LowRankTiles(d) => Some(d.digits()),
            _ => self.rank(),
        }
    }

    fn check(&self, isa: Isa, x: &Activations) {
        match self {
            Self::Floats(w) => w.check(),
            Self::Int8(_) | Self::Planes(_) | Self::LowRankTiles(_) => {
                let suits = x.rounded.as_ref().is_some_and(|rounded| rounded.suits(isa));
                assert!(suits, "activations rounded on {isa:?} for integer products");
                let laid_out = !matches!(self, Self::Planes(d) if !d.suits(isa));
                assert!(laid_out, "a delta laid out for products on {isa:?}");
            }
            Self::Packed(d) => d.check(),
            // It was checked when it was made.
            Self::Sparse(_) => {}
            Self::LowRank(a, b) => {
                a.check();
                b.check();
                assert_eq!(a.rows, b.rows, "factors of one rank");
            }
            Self::Factors(a, b, _) => {
                a.check();
                b.check();
                assert_eq!(a.rows, b.cols, "factors of one rank");
            }
        }
    }
}

/// A matrix and the rows of X that it multiplies.
#[derive(Debug, Clone)]
pub struct Term<'a> {
    /// The matrix.
    pub matrix: Matrix<'a>,
    /// The rows.
    pub rows: Range<usize>,
}

/// A sum of terms.
#[derive(Debug)]
pub struct Product<'a> {
    /// In the order in which they are added. Unless `add`, the first is of all rows, and no low-rank one.
    pub terms: Vec<Term<'a>>,
    /// (rows, outputs).
    pub y: &'a mut [f32],
    /// Whether the sum is added to what `y` holds.
    pub add: bool,
}

/// Bytes that products of one row of `width` activations take beside their operands, at most: those in two digits, and the sums
/// of them that dense deltas look up.
pub fn rounded_row_bytes(width: usize) -> usize {
    let isa = Isa::selected();
    Rounded::row_bytes(isa, width) + Tables::row_bytes(isa, width)
}

/// Computes all `products` of the same activations.
///
/// # Panics
/// When shapes disagree, when a term's rows are not among those of `x`, or when a matrix needs rounded activations and
/// these are not.
pub fn project(x: &Activations, products: &mut [Product]) {
    project_on(Isa::selected(), x, products);
}

/// [`project`] on a given instruction set, which must be one of [`Isa::available`].
///
/// # Panics
/// As [`project`].
pub fn project_on(isa: Isa, x: &Activations, products: &mut [Product]) {
    isa.check();
    if x.rows == 0 {
        return;
    }
    for product in &*products {
        check(isa, x, product);
    }
    let tables = tables(isa, x, products);
    let total = products.iter().map(|product| work(x, product)).sum();
    let tasks = tasks(x, products, total);
    let out: Vec<Output> = products.iter_mut().map(|product| Output::new(product.y)).collect();
    let products = &*products;
    let factors = Factors::new(isa, x, products);
    let each = |i: usize| {
        let task = &tasks[i];
        factors.help();
        tables.iter().for_each(Tables::help);
        let small = Small { product: task.index, factors: &factors, tables: tables.as_ref() };
        run_terms(isa, x, &products[task.index], small, task, out[task.index].pointer());
    };
    if total < WORTH_SPLITTING { (0..tasks.len()).for_each(each) } else { for_each(tasks.len(), each) }
}

/// Some rows' outputs `range` of the product of that index.
struct Task {
    rows: Range<usize>,
    index: usize,
    range: Range<usize>,
}

impl Task {
    /// Which of its rows a term multiplies, if any.
    fn rows_of(&self, term: &Term) -> Option<Range<usize>> {
        let rows = self.rows.start.max(term.rows.start)..self.rows.end.min(term.rows.end);
        (!rows.is_empty()).then_some(rows)
    }
}

/// The tasks in the order in which threads take them: some outputs of a matrix or of a few, whose weights stay in the second
/// cache, for some rows after others, whose activations and tables stay nearer.
fn tasks(x: &Activations, products: &[Product], total: usize) -> Vec<Task> {
    let chunks = row_chunks(x.rows, products);
    let pieces = if total < WORTH_SPLITTING { 1 } else { (threads() * TASKS).div_ceil(chunks.len()) };
    let mut ranges = Vec::new();
    for (index, product) in products.iter().enumerate() {
        let outputs = product.y.len() / x.rows;
        let bytes = base_bytes(product).div_ceil(outputs.max(1));
        // Ranges of about the same work in all products.
        let mut step = outputs.div_ceil((pieces * work(x, product)).div_ceil(total.max(1)).max(1));
        if chunks.len() > 1 {
            step = step.min(CACHED / bytes.max(1)).max(1);
        }
        let step = step.next_multiple_of(product.terms.iter().map(|term| term.matrix.unit()).max().unwrap_or(TILE));
        let all = (0..outputs).step_by(step).map(|first| first..outputs.min(first + step));
        ranges.extend(all.map(|range| (index, range.len() * bytes, range)));
    }
    let mut tasks = Vec::with_capacity(chunks.len() * ranges.len());
    let mut rest = &ranges[..];
    while !rest.is_empty() {
        let mut together = 0;
        let fits = rest.iter().take_while(|(_, bytes, _)| {
            together += bytes;
            together <= PASSED_AGAIN
        });
        let (group, others) = rest.split_at(fits.count().max(1));
        rest = others;
        for rows in &chunks {
            tasks.extend(group.iter().map(|(index, _, range)| Task {
                rows: rows.clone(),
                index: *index,
                range: range.clone(),
            }));
        }
    }
    tasks
}

/// The rows in parts that are computed one after another: as many as the int8 product takes at a time. Other products make
/// something of the matrix first, once for all rows.
fn row_chunks(rows: usize, products: &[Product]) -> Vec<Range<usize>> {
    let has = |wanted: fn(&Matrix) -> bool| products.iter().flat_map(|p| &p.terms).any(|term| wanted(&term.matrix));
    let parts = has(|matrix| matches!(matrix, Matrix::Int8(_))) && !has(|matrix| matches!(matrix, Matrix::Packed(_)));
    let together = if parts { CHUNK } else { rows };
    (0..rows).step_by(together).map(|row| row..rows.min(row + together)).collect()
}

/// What the base's matrix takes in memory, where its rows are computed in parts.
fn base_bytes(product: &Product) -> usize {
    let bytes = |term: &Term| if let Matrix::Int8(w) = term.matrix { w.bytes() as usize } else { 0 };
    product.terms.iter().map(bytes).sum()
}

fn check(isa: Isa, x: &Activations, product: &Product) {
    let outputs = product.y.len() / x.rows;
    assert_eq!(product.y.len(), x.rows * outputs, "outputs of {} rows", x.rows);
    for term in &product.terms {
        assert_eq!(term.matrix.shape(), (outputs, x.width), "the shape of a term");
        assert!(term.rows.start <= term.rows.end && term.rows.end <= x.rows, "rows {:?} of {}", term.rows, x.rows);
        term.matrix.check(isa, x);
    }
    let begins = |term: &Term| term.rows == (0..x.rows) && term.matrix.rank().is_none();
    assert!(product.add || product.terms.first().is_some_and(begins), "the first term gives every output");
}

/// Multiply-adds, those of packed deltas counted as what they take beside the base's.
fn work(x: &Activations, product: &Product) -> usize {
    let outputs = product.y.len() / x.rows;
    let each = |term: &Term| match term.matrix {
        Matrix::LowRankTiles(d) => d.rank() * outputs / 4,
        Matrix::Int8(_) => outputs * x.width / 4,
        // A gather takes as long as a few vectors of a product.
        Matrix::Sparse(d) => 4 * d.count() + outputs,
        _ => outputs * term.matrix.rank().unwrap_or(x.width),
    };
    product.terms.iter().map(|term| term.rows.len() * each(term)).sum()
}

/// What the first factor of every low-rank term of every product makes of the term's rows.
struct Factors<'a> {
    isa: Isa,
    x: &'a Activations<'a>,
    /// (rows of the term, [`Matrix::between`]), one term after another.
    values: Output,
    _memory: Vec<f32>,
    /// Where each term's begin, product by product.
    begins: Vec<usize>,
    /// The first term of each product.
    products: Vec<usize>,
    tasks: Vec<FirstFactor<'a>>,
    /// Tasks of one piece: each is a matter of a microsecond.
    together: usize,
    before: Before,
}

/// Some rows of x by one first factor.
struct FirstFactor<'a> {
    matrix: &'a Matrix<'a>,
    /// Values of a row of the result.
    width: usize,
    rows: Range<usize>,
    /// Where the result begins.
    at: usize,
}

impl<'a> Factors<'a> {
    fn new(isa: Isa, x: &'a Activations<'a>, products: &'a [Product<'a>]) -> Self {
        let terms = products.iter().map(|product| product.terms.len()).sum();
        let (mut begins, mut firsts, mut length) = (Vec::with_capacity(terms), Vec::with_capacity(products.len()), 0);
        let mut tasks = Vec::with_capacity(terms);
        for product in products {
            firsts.push(begins.len());
            for term in &product.terms {
                begins.push(length);
                let Some(width) = term.matrix.between() else { continue };
                for first in term.rows.clone().step_by(FACTOR_ROWS) {
                    let rows = first..term.rows.end.min(first + FACTOR_ROWS);
                    let at = length + (first - term.rows.start) * width;
                    tasks.push(FirstFactor { matrix: &term.matrix, width, rows, at });
                }
                length += term.rows.len() * width;
            }
        }
        let mut memory = vec![0.0; length];
        let together = tasks.len().div_ceil(threads() * FACTOR_PIECES).max(1);
        let before = Before::new(tasks.len().div_ceil(together));
        let values = Output::new(&mut memory);
        Self { isa, x, values, _memory: memory, begins, products: firsts, tasks, together, before }
    }

    /// Computes what nobody else has begun.
    fn help(&self) {
        self.before.help(|piece| self.compute(piece));
    }

    /// What was made for a term of a product, which is of `length` values, when all are there.
    fn of(&self, product: usize, term: usize, length: usize) -> &[f32] {
        self.before.wait(|piece| self.compute(piece));
        // SAFETY: the term's values lie there, and nobody writes any more.
        unsafe { std::slice::from_raw_parts(self.values_at(product, term), length) }
    }

    /// Where a term's values begin.
    fn values_at(&self, product: usize, term: usize) -> *const f32 {
        self.values.pointer().wrapping_add(self.begins[self.products[product] + term])
    }

    fn compute(&self, piece: usize) {
        let (isa, x) = (self.isa, self.x);
        for (i, task) in self.tasks.iter().enumerate().skip(piece * self.together).take(self.together) {
            let FirstFactor { matrix, width, rows, at } = task;
            // SAFETY: the task's part of the values lies at `at`.
            let y = unsafe { self.values.pointer().add(*at) };
            let job = Job {
                x,
                rows: rows.clone(),
                outputs: *width,
                first: 0,
                last: *width,
                y,
                y_row: rows.start,
                add: false,
            };
            match matrix {
                Matrix::LowRankTiles(d) => {
                    if let Some(FirstFactor { matrix: Matrix::LowRankTiles(next), .. }) = self.tasks.get(i + 1) {
                        next.prefetch_first();
                    }
                    lowrank::run_first(isa, job, d);
                }
                Matrix::LowRank(a, _) => packed::run_product(isa, job, a),
                Matrix::Factors(a, ..) => run_floats(isa, job, a),
                _ => unreachable!("it has a rank"),
            }
        }
    }
}

/// What is looked up, if anything is.
fn tables<'a>(isa: Isa, x: &'a Activations, products: &[Product]) -> Option<Tables<'a>> {
    let terms = || products.iter().flat_map(|product| &product.terms);
    let looked_up = |term: &&Term| matches!(term.matrix, Matrix::Planes(_));
    terms().find(looked_up)?;
    Some(Tables::new(isa, x.rounded.as_ref()?, x.rows, terms().filter(looked_up).map(|term| term.rows.clone())))
}

/// What the terms of a product need beside them.
#[derive(Clone, Copy)]
struct Small<'a> {
    product: usize,
    factors: &'a Factors<'a>,
    tables: Option<&'a Tables<'a>>,
}

fn run_terms(isa: Isa, x: &Activations, product: &Product, small: Small, task: &Task, y: *mut f32) {
    let mut add = product.add;
    let (outputs, range) = (product.y.len() / x.rows, task.range.clone());
    for (index, term) in product.terms.iter().enumerate() {
        let Some(rows) = task.rows_of(term) else { continue };
        let before = rows.start - term.rows.start;
        let job = Job { x, rows, outputs, first: range.start, last: range.end, y, y_row: 0, add };
        let t = |width: usize| &small.factors.of(small.product, index, term.rows.len() * width)[before * width..];
        match &term.matrix {
            Matrix::Floats(w) => run_floats(isa, job, w),
            Matrix::Int8(w) => {
                let steps = w.steps(job.rows.len(), range.clone());
                run_int8(isa, job, w, &Ahead::new(pieces(product, small, index + 1, task), steps));
            }
            Matrix::Planes(d) => {
                let Some(tables) = small.tables else { unreachable!("tables were made for every dense delta") };
                run_planes(isa, job, d, tables);
            }
            Matrix::Packed(d) => packed::run_product(isa, job, d),
            Matrix::Sparse(d) => run_sparse(isa, job, d),
            Matrix::LowRank(_, b) => packed::run_transposed(isa, job, t(b.rows), b),
            Matrix::LowRankTiles(d) => lowrank::run_second(isa, job, t(d.digits()), d),
            Matrix::Factors(_, b, scale) => run_second(isa, job, t(b.cols), b, *scale),
        }
        add = true;
    }
}

/// What a product's terms from `first` on read in a task.
fn pieces(product: &Product, small: Small, first: usize, task: &Task) -> Again<Pieces> {
    let mut pieces = Pieces::none();
    for (index, term) in product.terms.iter().enumerate().skip(first) {
        let Some(rows) = task.rows_of(term) else { continue };
        match term.matrix {
            Matrix::Planes(d) => d.push_to(&mut pieces, task.range.clone()),
            Matrix::LowRankTiles(d) => {
                d.push_second_to(&mut pieces, task.range.clone());
                // Half of them lie in another core's cache.
                let values = small.factors.values_at(small.product, index);
                let before = (rows.start - term.rows.start) * d.digits();
                pieces.push_at(values.wrapping_add(before).cast(), size_of::<f32>() * rows.len() * d.digits());
            }
            _ => {}
        }
    }
    pieces
}

/// `y[job.rows] += scale · t · bᵀ`, t being (rows of the job, rank).
fn run_second(isa: Isa, job: Job, t: &[f32], b: &Weights, scale: f32) {
    let scaled: Vec<f32> = t[..job.rows.len() * b.cols].iter().map(|t| t * scale).collect();
    let t = Activations::exact(&scaled, b.cols);
    // The factors' rows count from the term's first.
    let (rows, y_row) = (0..job.rows.len(), 0);
    // SAFETY: the job's rows lie in y.
    let y = unsafe { job.y.add((job.rows.start - job.y_row) * job.outputs) };
    run_floats(isa, Job { x: &t, rows, y, y_row, ..job }, b);
}

/// Outputs `first..last` of some rows. Kernels get it by value, checked: the rows are among those of `x`, the outputs
/// below `outputs`, and `y` has room for them.
#[derive(Clone)]
pub(crate) struct Job<'a> {
    pub x: &'a Activations<'a>,
    /// Rows of x.
    pub rows: Range<usize>,
    /// Width of y.
    pub outputs: usize,
    pub first: usize,
    pub last: usize,
    pub y: *mut f32,
    /// The row of x whose result comes first in y.
    pub y_row: usize,
    /// Whether the product is added to what y holds.
    pub add: bool,
}

impl Job<'_> {
    /// Inputs.
    #[inline(always)]
    pub fn width(&self) -> usize {
        self.x.width
    }

    /// The rows in blocks that stay in a core's cache while all of the job's outputs are computed, at `bytes` a value.
    #[inline(always)]
    pub fn row_blocks(&self, bytes: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        // Whole tiles of rows.
        let together = (CACHED / (bytes * self.width())).next_multiple_of(8).max(8);
        let (start, end) = (self.rows.start, self.rows.end);
        (start..end).step_by(together).map(move |row| row..end.min(row + together))
    }

    /// The rounded activations, which the caller checked to be there.
    #[inline(always)]
    pub fn rounded(&self) -> &Rounded {
        match &self.x.rounded {
            Some(rounded) => rounded,
            None => unreachable!("`check` asked for them"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_row_are_those_that_it_takes() {
        // Each in a thread that keeps nothing yet.
        let check = |width: usize, isa: Isa| {
            let values = vec![1.0; 3 * width];
            let x = Activations::rounded_on(isa, &values, width);
            let rounded = x.rounded.as_ref().expect("rounded");
            let vectors = [
                size_of_val(&rounded.codes[..]),
                size_of_val(&rounded.fine[..]),
                size_of_val(&rounded.joined[..]),
                size_of_val(&rounded.scales[..]),
                size_of_val(&rounded.steps[..]),
                size_of_val(&rounded.sums[..]),
                size_of_val(&rounded.totals[..]),
            ];
            assert_eq!(vectors.iter().sum::<usize>(), 3 * Rounded::row_bytes(isa, width), "{width} on {isa:?}");
            let tables = Tables::new(isa, rounded, 3, [1..3, 0..2].into_iter());
            assert_eq!(tables.bytes(), 3 * Tables::row_bytes(isa, width), "{width} on {isa:?}");
        };
        for width in [1, 64, 65, 576] {
            for isa in Isa::available() {
                std::thread::scope(|scope| scope.spawn(|| check(width, isa)).join().expect("equal"));
            }
        }
    }
}
