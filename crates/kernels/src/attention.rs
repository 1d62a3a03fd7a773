//! Attention of query heads over the pages of the keys and values that they share.
//!
//! Softmax is computed online, page after page (Milakov & Gimelshein 2018): a running maximum, sum and weighted value
//! are rescaled when a page raises the maximum. Pages lie at fixed positions of the sequence, so a token's result does
//! not depend on how its prompt was cut into chunks, nor on which other rows were done with it.
//!
//! A page holds the keys of [`PAGE`] positions transposed, (head_dim, positions), so that sixteen positions' scores are
//! sixteen lanes and need no sum across lanes; values are (positions, head_dim). Several queries share a page's loads: the
//! heads of a row (grouped-query attention, Ainslie et al. 2023) and neighbouring rows of a prompt.
//!
//! bf16 elements lie in pairs, two of a key's or two positions' of a value, as dot products of bf16 take them. Where the CPU
//! has those (`vdpbf16ps`), queries and the softmax's weights are rounded to bf16, too; as in [`crate::Activations::narrow`],
//! how the instruction rounds a pair's sum is the CPU's affair. Everything else has the same bits on every instruction set.

// As in `int8`: loops over an index keep the sums in registers.
#![allow(clippy::needless_range_loop)]

use crate::{
    isa::{Isa, dispatch},
    matmul::{Element, F32},
    narrow,
    vector::{LANES, Vector},
};
use std::{marker::PhantomData, ops::Range};

/// Positions in a page.
pub const PAGE: usize = 32;
/// Vectors that hold a page's scores.
const PARTS: usize = PAGE / LANES;
/// Queries that share the loads of a page, where there are enough registers for their sums.
const MOST: usize = 12;
/// The same elsewhere.
const FEW: usize = 4;

/// The elements of a page's keys or values.
#[derive(Debug, Clone, Copy)]
pub enum KvElements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16, as bits, in pairs.
    Bf16(&'a [u16]),
    /// int8; with a scale for each position.
    Int8(&'a [i8], &'a [f32; PAGE]),
}

/// Where the elements of a page lie.
#[derive(Debug, Clone, Copy)]
pub struct PageLayout {
    head_dim: usize,
    /// 2^pairs elements of a key, or positions of a value, lie beside each other.
    pairs: u32,
}

impl PageLayout {
    /// Of f32 and int8.
    pub fn plain(head_dim: usize) -> Self {
        Self { head_dim, pairs: 0 }
    }

    /// Of bf16.
    ///
    /// # Panics
    /// When `head_dim` is odd.
    pub fn pairs(head_dim: usize) -> Self {
        assert!(head_dim.is_multiple_of(2), "keys of {head_dim} elements do not lie in pairs");
        Self { head_dim, pairs: 1 }
    }

    /// Elements of a page's keys, and of its values.
    pub fn size(self) -> usize {
        PAGE * self.head_dim
    }

    /// Where element `i` of the key at `position` is.
    #[inline]
    pub fn key(self, position: usize, i: usize) -> usize {
        self.place(i, PAGE, position)
    }

    /// Where element `i` of the value at `position` is.
    #[inline]
    pub fn value(self, position: usize, i: usize) -> usize {
        self.place(position, self.head_dim, i)
    }

    /// Of a matrix whose rows of `width` lie together, two by two where they are pairs.
    #[inline]
    fn place(self, row: usize, width: usize, column: usize) -> usize {
        let within = row & ((1 << self.pairs) - 1);
        (((row >> self.pairs) * width + column) << self.pairs) + within
    }
}

impl KvElements<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(e) => e.len(),
            Self::Bf16(e) => e.len(),
            Self::Int8(e, _) => e.len(),
        }
    }
}

/// Where the keys and values of one sequence, layer and key/value head are.
pub trait KvPages {
    /// Page `index`: keys and values, each as [`PageLayout`] says, of the same kind of elements. Positions that were not written
    /// yet hold finite values.
    fn page(&self, index: usize) -> (KvElements<'_>, KvElements<'_>);
}

/// Rows whose `heads` query heads each fill the registers together with the fewest left over.
pub fn rows_together(heads: usize) -> usize {
    (1..MOST).find(|rows| (rows * heads).is_multiple_of(MOST)).unwrap_or(MOST)
}

/// Query heads that share keys and values, in neighbouring rows of one sequence.
#[derive(Debug, Clone)]
pub struct Queries<'a> {
    /// (rows, `width`): a row's query heads side by side.
    pub q: &'a [f32],
    /// Floats of a row.
    pub width: usize,
    /// Which of them are the heads that share the keys and values.
    pub shared: Range<usize>,
    /// Floats of a head.
    pub head_dim: usize,
    /// Positions that the first row sees; each further row sees one more.
    pub positions: usize,
    /// What scores are multiplied with.
    pub scale: f32,
}

/// `out = softmax(scale · q · Kᵀ) · V` for the queries' shared heads, each over the positions that its row sees; `out` has the
/// shape of `q`, and its other floats are left as they are.
///
/// # Panics
/// When a page is shorter than its positions, `positions` is 0, rows or heads are not whole, or bf16 heads are odd.
pub fn attend(queries: &Queries, pages: &dyn KvPages, out: &mut [f32]) {
    attend_on(Isa::selected(), queries, pages, out);
}

/// [`attend`] on a given instruction set, which must be one of [`Isa::available`].
///
/// # Panics
/// As [`attend`].
pub fn attend_on(isa: Isa, queries: &Queries, pages: &dyn KvPages, out: &mut [f32]) {
    let Queries { q, width, ref shared, head_dim, positions, scale } = *queries;
    assert!(positions > 0 && head_dim > 0, "{positions} positions of {head_dim}");
    assert!(q.len() == out.len() && q.len().is_multiple_of(width), "queries and outputs of whole rows");
    assert!(shared.end <= width && shared.len().is_multiple_of(head_dim), "whole heads of a row");
    isa.check();
    let heads = shared.len() / head_dim;
    let all = q.len() / width * heads;
    let most = if isa >= Isa::Avx512 { MOST } else { FEW };
    let mut room = vec![0f32; 2 * most.min(all) * head_dim];
    let dots = narrow::narrows(isa) && matches!(pages.page(0).0, KvElements::Bf16(_));
    let mut narrow = vec![0u16; if dots { most.min(all) * head_dim } else { 0 }];
    let mut first = 0;
    while first < all {
        let count = if all - first >= most { most } else { FEW.min(all - first) };
        let at = |query: usize| (first + query) / heads * width + shared.start + (first + query) % heads * head_dim;
        let (own, sums) = room[..2 * count * head_dim].split_at_mut(count * head_dim);
        for (query, own) in own.chunks_mut(head_dim).enumerate() {
            own.copy_from_slice(&q[at(query)..at(query) + head_dim]);
        }
        sums.fill(0.0);
        if dots {
            narrow::round(isa, own, &mut narrow[..count * head_dim]);
        }
        let mut tile = Tile { count, q: own, narrow: &narrow, head_dim, scale, here: [0; LANES], sums };
        let mut running = Running { greatest: [f32::NEG_INFINITY; LANES], sum: [0.0; LANES] };
        let sees = |query: usize| positions + (first + query) / heads;
        for index in 0..sees(count - 1).div_ceil(PAGE) {
            let (keys, values) = pages.page(index);
            let size = PAGE * head_dim;
            assert!(keys.len() == size && values.len() == size, "page {index} has not {PAGE} positions of {head_dim}");
            let paired = matches!(keys, KvElements::Bf16(_));
            assert!(!paired || head_dim.is_multiple_of(2), "keys of {head_dim} elements do not lie in pairs");
            for query in 0..count {
                tile.here[query] = sees(query).saturating_sub(index * PAGE).min(PAGE);
            }
            run_page(isa, &mut tile, keys, values, &mut running);
        }
        for (query, sums) in tile.sums.chunks(head_dim).enumerate() {
            let out = &mut out[at(query)..at(query) + head_dim];
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum / running.sum[query]);
        }
        first += count;
    }
}

/// Softmax so far; a lane for each query.
struct Running {
    greatest: [f32; LANES],
    sum: [f32; LANES],
}

/// Queries that go over the pages together.
struct Tile<'a> {
    count: usize,
    /// (count, head_dim).
    q: &'a [f32],
    /// The same in bf16, where its dot products are taken; else empty.
    narrow: &'a [u16],
    head_dim: usize,
    scale: f32,
    /// Positions of the page that count, for each query.
    here: [usize; LANES],
    /// (count, head_dim): weighted values.
    sums: &'a mut [f32],
}

fn run_page(isa: Isa, tile: &mut Tile, keys: KvElements, values: KvElements, running: &mut Running) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn dots(tile: &mut Tile, keys: &[u16], values: &[u16], running: &mut Running) {
        // SAFETY: the caller's promise; this function has the target features that the vector's dot products need.
        unsafe { add::<crate::vector::avx512::Avx512, Dots>(tile, (keys.as_ptr(), values.as_ptr()), None, running) }
    }
    #[cfg(target_arch = "x86_64")]
    if let (false, KvElements::Bf16(keys), KvElements::Bf16(values)) = (tile.narrow.is_empty(), keys, values) {
        // SAFETY: queries were rounded, so the CPU has the instruction set; sizes were checked.
        return unsafe { dots(tile, keys, values, running) };
    }
    dispatch!(isa, add_page(tile: &mut Tile, keys: KvElements, values: KvElements, running: &mut Running));
}

/// # Safety
/// Keys and values hold PAGE · head_dim elements.
#[inline(always)]
unsafe fn add_page<V: Vector>(tile: &mut Tile, keys: KvElements, values: KvElements, running: &mut Running) {
    // SAFETY: the caller's promise.
    unsafe {
        match (keys, values) {
            (KvElements::F32(k), KvElements::F32(v)) => {
                add::<V, Plain<F32>>(tile, (k.as_ptr(), v.as_ptr()), None, running);
            }
            (KvElements::Bf16(k), KvElements::Bf16(v)) => {
                add::<V, Pairs>(tile, (k.as_ptr(), v.as_ptr()), None, running);
            }
            (KvElements::Int8(k, k_scales), KvElements::Int8(v, v_scales)) => {
                add::<V, Plain<I8>>(tile, (k.as_ptr(), v.as_ptr()), Some((k_scales, v_scales)), running);
            }
            _ => unreachable!("a page's keys and values are of one kind"),
        }
    }
}

/// How a page's elements are multiplied: by a query's elements, and by the softmax's weights.
trait Kind: Copy {
    type Stored: Copy + Default;
    /// As in [`PageLayout`]; so many factors are used at a time.
    const TOGETHER: usize;
    /// `TOGETHER` elements in each lane.
    type Lanes<V: Vector>: Copy;
    type Factor: Factor;
    /// `TOGETHER` factors, the same in each lane.
    type Spread<V: Vector>: Copy;

    unsafe fn load<V: Vector>(from: *const Self::Stored) -> Self::Lanes<V>;
    unsafe fn spread<V: Vector>(from: *const Self::Factor) -> Self::Spread<V>;
    unsafe fn add<V: Vector>(sum: V, factors: Self::Spread<V>, lanes: Self::Lanes<V>) -> V;

    /// The first `lanes` (< 16) lanes of a row's end.
    #[inline(always)]
    unsafe fn load_partial<V: Vector>(from: *const Self::Stored, lanes: usize) -> Self::Lanes<V> {
        let mut padded = [Self::Stored::default(); 2 * LANES];
        // SAFETY: the caller promises so many readable elements; there is room for two a lane.
        unsafe {
            std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), lanes * Self::TOGETHER);
            Self::load(padded.as_ptr())
        }
    }
}

/// What elements are multiplied by.
trait Factor: Copy {
    /// A tile's queries.
    fn queries(tile: &Tile) -> *const Self;
    /// 16 of the softmax's weights.
    unsafe fn store<V: Vector>(weights: V, to: *mut Self);
}

impl Factor for f32 {
    #[inline(always)]
    fn queries(tile: &Tile) -> *const f32 {
        tile.q.as_ptr()
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(weights: V, to: *mut f32) {
        // SAFETY: the caller promises room for 16.
        unsafe { weights.store(to) }
    }
}

/// bf16, as bits.
impl Factor for u16 {
    #[inline(always)]
    fn queries(tile: &Tile) -> *const u16 {
        tile.narrow.as_ptr()
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(weights: V, to: *mut u16) {
        // SAFETY: the caller promises room for 16.
        unsafe { weights.store_bf16(to) }
    }
}

/// int8, which has scales beside it.
#[derive(Clone, Copy)]
struct I8;

impl Element for I8 {
    type Stored = i8;
    const WIDE: bool = false;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const i8) -> V {
        // SAFETY: the caller promises 16 readable elements.
        unsafe { V::load_i8(from) }
    }
}

/// Elements that are widened one to a lane.
#[derive(Clone, Copy)]
struct Plain<E>(PhantomData<E>);
/// Pairs that are widened.
#[derive(Clone, Copy)]
struct Pairs;
/// Pairs that are multiplied as they are, by factors in bf16, too.
#[derive(Clone, Copy)]
struct Dots;

impl<E: Element> Kind for Plain<E> {
    type Stored = E::Stored;
    const TOGETHER: usize = 1;
    type Lanes<V: Vector> = V;
    type Factor = f32;
    type Spread<V: Vector> = V;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const E::Stored) -> V {
        // SAFETY: the caller promises 16 readable elements.
        unsafe { E::load(from) }
    }
    #[inline(always)]
    unsafe fn spread<V: Vector>(from: *const f32) -> V {
        // SAFETY: the caller promises a readable factor.
        unsafe { V::splat(*from) }
    }
    #[inline(always)]
    unsafe fn add<V: Vector>(sum: V, factors: V, lanes: V) -> V {
        // SAFETY: the instruction set is the caller's promise.
        unsafe { sum.fma(factors, lanes) }
    }
}

impl Kind for Pairs {
    type Stored = u16;
    const TOGETHER: usize = 2;
    type Lanes<V: Vector> = (V, V);
    type Factor = f32;
    type Spread<V: Vector> = (V, V);

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u16) -> (V, V) {
        // SAFETY: the caller promises 32 readable elements.
        unsafe { V::load_pairs(from).halves() }
    }
    #[inline(always)]
    unsafe fn spread<V: Vector>(from: *const f32) -> (V, V) {
        // SAFETY: the caller promises two readable factors.
        unsafe { (V::splat(*from), V::splat(*from.add(1))) }
    }
    #[inline(always)]
    unsafe fn add<V: Vector>(sum: V, factors: (V, V), lanes: (V, V)) -> V {
        // SAFETY: the instruction set is the caller's promise.
        unsafe { sum.fma(factors.0, lanes.0).fma(factors.1, lanes.1) }
    }
}

impl Kind for Dots {
    type Stored = u16;
    const TOGETHER: usize = 2;
    type Lanes<V: Vector> = V;
    type Factor = u16;
    type Spread<V: Vector> = V;

    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u16) -> V {
        // SAFETY: the caller promises 32 readable elements.
        unsafe { V::load_pairs(from) }
    }
    #[inline(always)]
    unsafe fn spread<V: Vector>(from: *const u16) -> V {
        // SAFETY: the caller promises two readable factors.
        unsafe { V::splat(f32::from_bits(from.cast::<u32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn add<V: Vector>(sum: V, factors: V, lanes: V) -> V {
        // SAFETY: the instruction set is the caller's promise.
        unsafe { sum.add_dots(factors, lanes) }
    }
}

/// Scales of a page's keys, and of its values.
type Scales<'a> = Option<(&'a [f32; PAGE], &'a [f32; PAGE])>;

#[inline(always)]
unsafe fn add<V: Vector, K: Kind>(
    tile: &mut Tile,
    at: (*const K::Stored, *const K::Stored),
    scales: Scales,
    running: &mut Running,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.count {
            1 => queries::<V, K, 1, 4>(tile, at, scales, running),
            2 => queries::<V, K, 2, 4>(tile, at, scales, running),
            3 => queries::<V, K, 3, 4>(tile, at, scales, running),
            FEW => queries::<V, K, FEW, 4>(tile, at, scales, running),
            _ => queries::<V, K, MOST, 2>(tile, at, scales, running),
        }
    }
}

/// Q queries; W vectors of their sums are added to side by side, enough that an addition does not wait for the one before.
#[inline(always)]
unsafe fn queries<V: Vector, K: Kind, const Q: usize, const W: usize>(
    tile: &mut Tile,
    (keys, values): (*const K::Stored, *const K::Stored),
    scales: Scales,
    running: &mut Running,
) {
    let width = tile.head_dim;
    // SAFETY: every load and store lies inside the page and the tile, which holds Q queries; the last chunk of a head is
    // partial.
    unsafe {
        let scores = scores::<V, K, Q>(K::Factor::queries(tile), width, keys);
        let mut weights = [[0f32; PAGE]; Q];
        let mut greatest = running.greatest;
        for q in 0..Q {
            for part in 0..PARTS {
                let mut score = scores[q][part].mul(V::splat(tile.scale));
                if let Some((keys, _)) = scales {
                    score = score.mul(V::load(keys.as_ptr().add(part * LANES)));
                }
                score.store(weights[q].as_mut_ptr().add(part * LANES));
            }
            weights[q][tile.here[q]..].fill(f32::NEG_INFINITY);
            let mut most = V::load(weights[q].as_ptr());
            for part in 1..PARTS {
                most = most.max(V::load(weights[q].as_ptr().add(part * LANES)));
            }
            greatest[q] = most.max(V::splat(greatest[q])).greatest();
        }
        let mut corrections = [0f32; LANES];
        let correction = V::load(running.greatest.as_ptr()).sub(V::load(greatest.as_ptr())).exp();
        correction.store(corrections.as_mut_ptr());
        let mut totals = [0f32; LANES];
        let mut factors = [[std::mem::zeroed::<K::Factor>(); PAGE]; Q];
        for q in 0..Q {
            for part in 0..PARTS {
                let at = weights[q].as_mut_ptr().add(part * LANES);
                V::load(at).sub(V::splat(greatest[q])).exp().store(at);
            }
            weights[q][tile.here[q]..].fill(0.0);
            let mut total = V::splat(0.0);
            for part in 0..PARTS {
                let mut weight = V::load(weights[q].as_ptr().add(part * LANES));
                total = total.add(weight);
                if let Some((_, values)) = scales {
                    weight = weight.mul(V::load(values.as_ptr().add(part * LANES)));
                }
                K::Factor::store(weight, factors[q].as_mut_ptr().add(part * LANES));
            }
            totals[q] = total.sum();
        }
        let sum = V::load(running.sum.as_ptr()).mul(correction).add(V::load(totals.as_ptr()));
        sum.store(running.sum.as_mut_ptr());
        running.greatest = greatest;

        let here = tile.here[..Q].iter().fold(0, |most, here| most.max(*here)).next_multiple_of(K::TOGETHER);
        let mut at = 0;
        while at + W * LANES <= width {
            add_values::<V, K, Q, W>(tile.sums, width, at, values, here, &corrections, &factors);
            at += W * LANES;
        }
        while at + LANES <= width {
            add_values::<V, K, Q, 1>(tile.sums, width, at, values, here, &corrections, &factors);
            at += LANES;
        }
        if at < width {
            let lanes = width - at;
            let mut sums = [V::splat(0.0); Q];
            for q in 0..Q {
                let from = tile.sums.as_ptr().add(q * width + at);
                sums[q] = V::load_partial(from, lanes).mul(V::splat(corrections[q]));
            }
            for j in (0..here).step_by(K::TOGETHER) {
                let v = K::load_partial::<V>(values.add(j * width + at * K::TOGETHER), lanes);
                for q in 0..Q {
                    sums[q] = K::add(sums[q], K::spread(factors[q].as_ptr().add(j)), v);
                }
            }
            for q in 0..Q {
                sums[q].store_partial(tile.sums.as_mut_ptr().add(q * width + at), lanes);
            }
        }
    }
}

/// Q queries' products with a page's keys.
#[inline(always)]
unsafe fn scores<V: Vector, K: Kind, const Q: usize>(
    q: *const K::Factor,
    width: usize,
    keys: *const K::Stored,
) -> [[V; PARTS]; Q] {
    // SAFETY: the caller promises Q queries and PAGE keys of `width` elements, a multiple of those that lie together.
    unsafe {
        let mut sums = [[V::splat(0.0); PARTS]; Q];
        for i in (0..width).step_by(K::TOGETHER) {
            let keys = keys.add(i * PAGE);
            let mut lanes = [K::load::<V>(keys); PARTS];
            for part in 1..PARTS {
                lanes[part] = K::load(keys.add(part * LANES * K::TOGETHER));
            }
            for query in 0..Q {
                let factors = K::spread::<V>(q.add(query * width + i));
                for part in 0..PARTS {
                    sums[query][part] = K::add(sums[query][part], factors, lanes[part]);
                }
            }
        }
        sums
    }
}

/// `sums = corrections · sums + weights · values` for elements `at..at + W · LANES` of Q queries.
#[inline(always)]
unsafe fn add_values<V: Vector, K: Kind, const Q: usize, const W: usize>(
    to: &mut [f32],
    width: usize,
    at: usize,
    values: *const K::Stored,
    here: usize,
    corrections: &[f32; LANES],
    factors: &[[K::Factor; PAGE]; Q],
) {
    // SAFETY: the caller promises Q rows of `width` sums, and values of `here` positions, a multiple of those that lie together.
    unsafe {
        let mut sums = [[V::splat(0.0); W]; Q];
        for q in 0..Q {
            for c in 0..W {
                let from = to.as_ptr().add(q * width + at + c * LANES);
                sums[q][c] = V::load(from).mul(V::splat(corrections[q]));
            }
        }
        for j in (0..here).step_by(K::TOGETHER) {
            let values = values.add(j * width + at * K::TOGETHER);
            let mut lanes = [K::load::<V>(values); W];
            for c in 1..W {
                lanes[c] = K::load(values.add(c * LANES * K::TOGETHER));
            }
            for q in 0..Q {
                let weight = K::spread::<V>(factors[q].as_ptr().add(j));
                for c in 0..W {
                    sums[q][c] = K::add(sums[q][c], weight, lanes[c]);
                }
            }
        }
        for q in 0..Q {
            for c in 0..W {
                sums[q][c].store(to.as_mut_ptr().add(q * width + at + c * LANES));
            }
        }
    }
}
