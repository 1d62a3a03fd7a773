//! Attention of one query head over the pages of its keys and values.
//!
//! Softmax is computed online, page after page (Milakov & Gimelshein 2018): a running maximum, sum and weighted value
//! are rescaled when a page raises the maximum. Pages lie at fixed positions of the sequence, so a token's result does
//! not depend on how its prompt was cut into chunks.

use crate::{
    isa::{Isa, dispatch},
    vector::{LANES, Vector},
};

/// Where the keys and values of one sequence, layer and key/value head are.
pub trait KvPages {
    /// Page `index`: keys and values, each (positions, head_dim), at least as many positions as asked for.
    fn page(&self, index: usize) -> (&[f32], &[f32]);
}

/// `out (head_dim) = softmax(scale · q · Kᵀ) · V` over the first `positions` positions, `page_size` a page.
///
/// # Panics
/// When a page is shorter than its positions, or `positions` is 0.
pub fn attend(q: &[f32], pages: &dyn KvPages, page_size: usize, positions: usize, scale: f32, out: &mut [f32]) {
    attend_on(Isa::selected(), q, pages, page_size, positions, scale, out);
}

/// [`attend`] on a given instruction set, which must be one of [`Isa::available`].
///
/// # Panics
/// As [`attend`].
pub fn attend_on(
    isa: Isa,
    q: &[f32],
    pages: &dyn KvPages,
    page_size: usize,
    positions: usize,
    scale: f32,
    out: &mut [f32],
) {
    assert!(positions > 0 && page_size > 0, "{positions} positions in pages of {page_size}");
    assert_eq!(q.len(), out.len(), "query and output are of one head");
    assert!(Isa::available().contains(&isa), "{isa:?} is not available here");
    let mut weights = vec![0f32; page_size];
    let (mut greatest, mut sum) = (f32::NEG_INFINITY, 0f32);
    out.fill(0.0);
    for index in 0..positions.div_ceil(page_size) {
        let here = page_size.min(positions - index * page_size);
        let (keys, values) = pages.page(index);
        assert!(keys.len() >= here * q.len() && values.len() >= here * q.len(), "page {index} is too short");
        let page = Page { q, keys, values, scale };
        run_page(isa, page, &mut weights[..here], &mut greatest, &mut sum, out);
    }
    out.iter_mut().for_each(|v| *v /= sum);
}

#[derive(Clone, Copy)]
struct Page<'a> {
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    scale: f32,
}

fn run_page(isa: Isa, page: Page, weights: &mut [f32], greatest: &mut f32, sum: &mut f32, out: &mut [f32]) {
    dispatch!(
        isa,
        add_page(page: Page, weights: &mut [f32], greatest: &mut f32, sum: &mut f32, out: &mut [f32])
    );
}

/// # Safety
/// The page holds `weights.len()` keys and values of `q.len()` = `out.len()` elements.
#[inline(always)]
unsafe fn add_page<V: Vector>(page: Page, weights: &mut [f32], greatest: &mut f32, sum: &mut f32, out: &mut [f32]) {
    let width = page.q.len();
    // SAFETY: every chunk lies inside the head (the last is partial) and every position inside the page.
    unsafe {
        for (j, weight) in weights.iter_mut().enumerate() {
            let mut dot = V::splat(0.0);
            for_chunks(width, |at, lanes| {
                let (q, k) = (page.q.as_ptr().add(at), page.keys.as_ptr().add(j * width + at));
                dot = dot.fma(load::<V>(q, lanes), load::<V>(k, lanes));
            });
            *weight = dot.sum() * page.scale;
        }
        let highest = weights.iter().copied().fold(*greatest, f32::max);
        let correction = V::splat(*greatest - highest).exp();
        let mut total = V::splat(0.0);
        for_chunks(weights.len(), |at, lanes| {
            let at = weights.as_mut_ptr().add(at);
            load::<V>(at, lanes).sub(V::splat(highest)).exp().store_partial(at, lanes);
            total = total.add(load::<V>(at, lanes));
        });
        let mut rescaled = [0f32; LANES];
        V::splat(*sum).mul(correction).add(V::splat(total.sum())).store(rescaled.as_mut_ptr());
        (*greatest, *sum) = (highest, rescaled[0]);
        for_chunks(width, |at, lanes| {
            let to = out.as_mut_ptr().add(at);
            let mut value = load::<V>(to, lanes).mul(correction);
            for (j, &weight) in weights.iter().enumerate() {
                value = value.fma(V::splat(weight), load::<V>(page.values.as_ptr().add(j * width + at), lanes));
            }
            value.store_partial(to, lanes);
        });
    }
}

#[inline(always)]
fn for_chunks(length: usize, mut f: impl FnMut(usize, usize)) {
    let mut at = 0;
    while at < length {
        let lanes = LANES.min(length - at);
        f(at, lanes);
        at += lanes;
    }
}

/// # Safety
/// `lanes` values are readable.
#[inline(always)]
unsafe fn load<V: Vector>(from: *const f32, lanes: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe { if lanes == LANES { V::load(from) } else { V::load_partial(from, lanes) } }
}
