//! Attention of query heads over the pages of the keys and values that they share.
//!
//! Softmax is computed online, page after page (Milakov & Gimelshein 2018): a running maximum, sum and weighted value
//! are rescaled when a page raises the maximum. Pages lie at fixed positions of the sequence, so a token's result does
//! not depend on how its prompt was cut into chunks.
//!
//! A page holds the keys of [`PAGE`] positions transposed, (head_dim, positions), so that sixteen positions' scores are
//! sixteen lanes and need no sum across lanes; values are (positions, head_dim). Several query heads share a page's loads
//! (grouped-query attention, Ainslie et al. 2023).

// As in `int8`: loops over an index keep the sums in registers.
#![allow(clippy::needless_range_loop)]

use crate::{
    isa::{Isa, dispatch},
    matmul::{Bf16, Element, F32},
    vector::{LANES, Vector},
};

/// Positions in a page.
pub const PAGE: usize = 32;
/// Vectors that hold a page's scores.
const PARTS: usize = PAGE / LANES;
/// Vectors of a head's values that are added to side by side.
const WIDE: usize = 4;
/// Query heads that share the loads of a page.
const TOGETHER: usize = 4;

/// The elements of a page's keys or values.
#[derive(Debug, Clone, Copy)]
pub enum KvElements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16, as bits.
    Bf16(&'a [u16]),
    /// int8; with a scale for each position.
    Int8(&'a [i8], &'a [f32; PAGE]),
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
    /// Page `index`: keys (head_dim, PAGE) and values (PAGE, head_dim), of the same kind of elements. Positions that were
    /// not written yet hold finite values.
    fn page(&self, index: usize) -> (KvElements<'_>, KvElements<'_>);
}

/// `out (heads, head_dim) = softmax(scale · q · Kᵀ) · V` over the first `positions` positions, for query heads
/// q (heads, head_dim) that share the keys and values.
///
/// # Panics
/// When a page is shorter than its positions, `positions` is 0, or the heads are not whole.
pub fn attend(q: &[f32], pages: &dyn KvPages, head_dim: usize, positions: usize, scale: f32, out: &mut [f32]) {
    attend_on(Isa::selected(), q, pages, head_dim, positions, scale, out);
}

/// [`attend`] on a given instruction set, which must be one of [`Isa::available`].
///
/// # Panics
/// As [`attend`].
pub fn attend_on(
    isa: Isa,
    q: &[f32],
    pages: &dyn KvPages,
    head_dim: usize,
    positions: usize,
    scale: f32,
    out: &mut [f32],
) {
    assert!(positions > 0 && head_dim > 0, "{positions} positions of {head_dim}");
    assert!(q.len() == out.len() && q.len().is_multiple_of(head_dim), "queries and outputs of whole heads");
    isa.check();
    let heads = TOGETHER * head_dim;
    for (q, out) in q.chunks(heads).zip(out.chunks_mut(heads)) {
        let mut running = [Running { greatest: f32::NEG_INFINITY, sum: 0.0 }; TOGETHER];
        out.fill(0.0);
        for index in 0..positions.div_ceil(PAGE) {
            let (keys, values) = pages.page(index);
            let size = PAGE * head_dim;
            assert!(keys.len() == size && values.len() == size, "page {index} has not {PAGE} positions of {head_dim}");
            let page = Page { q, head_dim, scale, here: PAGE.min(positions - index * PAGE) };
            run_page(isa, page, keys, values, &mut running, out);
        }
        for (out, running) in out.chunks_mut(head_dim).zip(running) {
            out.iter_mut().for_each(|v| *v /= running.sum);
        }
    }
}

/// Softmax so far.
#[derive(Debug, Clone, Copy)]
struct Running {
    greatest: f32,
    sum: f32,
}

#[derive(Clone, Copy)]
struct Page<'a> {
    q: &'a [f32],
    head_dim: usize,
    scale: f32,
    /// Positions that count.
    here: usize,
}

fn run_page(
    isa: Isa,
    page: Page,
    keys: KvElements,
    values: KvElements,
    running: &mut [Running; TOGETHER],
    out: &mut [f32],
) {
    dispatch!(
        isa,
        add_page(page: Page, keys: KvElements, values: KvElements, running: &mut [Running; TOGETHER], out: &mut [f32])
    );
}

/// # Safety
/// Keys and values hold PAGE · head_dim elements, q and out as many heads, at most `TOGETHER`.
#[inline(always)]
unsafe fn add_page<V: Vector>(
    page: Page,
    keys: KvElements,
    values: KvElements,
    running: &mut [Running; TOGETHER],
    out: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (keys, values) {
            (KvElements::F32(k), KvElements::F32(v)) => {
                heads::<V, F32>(page, (k.as_ptr(), v.as_ptr()), None, running, out);
            }
            (KvElements::Bf16(k), KvElements::Bf16(v)) => {
                heads::<V, Bf16>(page, (k.as_ptr(), v.as_ptr()), None, running, out);
            }
            (KvElements::Int8(k, k_scales), KvElements::Int8(v, v_scales)) => {
                heads::<V, I8>(page, (k.as_ptr(), v.as_ptr()), Some((k_scales, v_scales)), running, out);
            }
            _ => unreachable!("a page's keys and values are of one kind"),
        }
    }
}

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

type Scales<'a> = Option<(&'a [f32; PAGE], &'a [f32; PAGE])>;

#[inline(always)]
unsafe fn heads<V: Vector, E: Element>(
    page: Page,
    at: (*const E::Stored, *const E::Stored),
    scales: Scales,
    running: &mut [Running; TOGETHER],
    out: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match page.q.len() / page.head_dim {
            1 => add::<V, E, 1>(page, at, scales, running, out),
            2 => add::<V, E, 2>(page, at, scales, running, out),
            3 => add::<V, E, 3>(page, at, scales, running, out),
            _ => add::<V, E, 4>(page, at, scales, running, out),
        }
    }
}

/// H query heads.
#[inline(always)]
unsafe fn add<V: Vector, E: Element, const H: usize>(
    page: Page,
    (keys, values): (*const E::Stored, *const E::Stored),
    scales: Scales,
    running: &mut [Running; TOGETHER],
    out: &mut [f32],
) {
    let (width, here) = (page.head_dim, page.here);
    // SAFETY: every load and store lies inside the page and the heads; the last chunk of a head is partial.
    unsafe {
        let q = page.q.as_ptr();
        let mut scores = [[V::splat(0.0); PARTS]; H];
        for i in 0..width {
            let mut k = [V::splat(0.0); PARTS];
            for part in 0..PARTS {
                k[part] = E::load(keys.add(i * PAGE + part * LANES));
            }
            for h in 0..H {
                let q = V::splat(*q.add(h * width + i));
                for part in 0..PARTS {
                    scores[h][part] = scores[h][part].fma(q, k[part]);
                }
            }
        }
        let mut weights = [[0f32; PAGE]; H];
        let mut corrections = [V::splat(0.0); H];
        for h in 0..H {
            for part in 0..PARTS {
                let mut score = scores[h][part].mul(V::splat(page.scale));
                if let Some((keys, _)) = scales {
                    score = score.mul(V::load(keys.as_ptr().add(part * LANES)));
                }
                score.store(weights[h].as_mut_ptr().add(part * LANES));
            }
            weights[h][here..].fill(f32::NEG_INFINITY);
            let before = running[h].greatest;
            let mut greatest = V::splat(before);
            for part in 0..PARTS {
                greatest = greatest.max(V::load(weights[h].as_ptr().add(part * LANES)));
            }
            let greatest = greatest.greatest();
            for part in 0..PARTS {
                let at = weights[h].as_mut_ptr().add(part * LANES);
                V::load(at).sub(V::splat(greatest)).exp().store(at);
            }
            weights[h][here..].fill(0.0);
            let mut total = V::splat(0.0);
            for part in 0..PARTS {
                total = total.add(V::load(weights[h].as_ptr().add(part * LANES)));
            }
            corrections[h] = V::splat(before - greatest).exp();
            let mut rescaled = [0f32; LANES];
            V::splat(running[h].sum).mul(corrections[h]).add(V::splat(total.sum())).store(rescaled.as_mut_ptr());
            running[h] = Running { greatest, sum: rescaled[0] };
            if let Some((_, values)) = scales {
                for j in 0..here {
                    weights[h][j] *= values[j];
                }
            }
        }
        let mut at = 0;
        while at + WIDE * LANES <= width {
            // Enough sums that an addition does not wait for the one before.
            let mut sums = [[V::splat(0.0); WIDE]; H];
            for h in 0..H {
                for c in 0..WIDE {
                    sums[h][c] = V::load(out.as_ptr().add(h * width + at + c * LANES)).mul(corrections[h]);
                }
            }
            for j in 0..here {
                let mut v = [V::splat(0.0); WIDE];
                for c in 0..WIDE {
                    v[c] = E::load(values.add(j * width + at + c * LANES));
                }
                for h in 0..H {
                    let weight = V::splat(weights[h][j]);
                    for c in 0..WIDE {
                        sums[h][c] = sums[h][c].fma(weight, v[c]);
                    }
                }
            }
            for h in 0..H {
                for c in 0..WIDE {
                    sums[h][c].store(out.as_mut_ptr().add(h * width + at + c * LANES));
                }
            }
            at += WIDE * LANES;
        }
        while at < width {
            let lanes = LANES.min(width - at);
            let mut sums = [V::splat(0.0); H];
            for h in 0..H {
                sums[h] = V::load_partial(out.as_ptr().add(h * width + at), lanes).mul(corrections[h]);
            }
            for j in 0..here {
                let from = values.add(j * width + at);
                let v = if lanes == LANES { E::load::<V>(from) } else { E::load_partial::<V>(from, lanes) };
                for h in 0..H {
                    sums[h] = sums[h].fma(V::splat(weights[h][j]), v);
                }
            }
            for h in 0..H {
                sums[h].store_partial(out.as_mut_ptr().add(h * width + at), lanes);
            }
            at += lanes;
        }
    }
}
