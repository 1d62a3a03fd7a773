//! Pages of keys and values in memory.

use crate::backend::{KvDtype, KvShape, PAGE, RowPlace};
use bitdelta_kernels::{self as kernels, KvElements, KvPages, PageLayout, Queries, for_each};
use half::bf16;
use std::sync::{Mutex, PoisonError};

/// Pages: page → layer → head → keys, then values, each as [`PageLayout`] says.
pub struct CpuKv {
    shape: KvShape,
    pages: Vec<Page>,
}

/// A page's elements; empty until it is first written.
enum Page {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    Int8 {
        codes: Vec<i8>,
        /// layer → head → keys, then values.
        scales: Vec<[f32; PAGE]>,
    },
}

impl Page {
    /// Writes row `row` of keys and values (rows, kv_heads, head_dim) of one layer at a position.
    fn store(&mut self, shape: KvShape, layer: usize, (k, v): (&[f32], &[f32]), row: usize, position: usize) {
        let KvShape { layers, kv_heads, head_dim } = shape;
        let blocks = 2 * layers * kv_heads;
        for head in 0..kv_heads {
            let from = (row * kv_heads + head) * head_dim..(row * kv_heads + head + 1) * head_dim;
            let (k, v) = (&k[from.clone()], &v[from]);
            let at = (2 * (layer * kv_heads + head), position);
            match self {
                Self::F32(e) => put(e, blocks, PageLayout::plain(head_dim), at, (k, v), (|k| k, |v| v)),
                Self::Bf16(e) => {
                    let bits = |value| bf16::from_f32(value).to_bits();
                    put(e, blocks, PageLayout::pairs(head_dim), at, (k, v), (bits, bits));
                }
                Self::Int8 { codes, scales } => {
                    scales.resize(blocks, [0.0; PAGE]);
                    let ((k_scale, k_inverse), (v_scale, v_inverse)) = (scale(k), scale(v));
                    scales[at.0][position] = k_scale;
                    scales[at.0 + 1][position] = v_scale;
                    let code = |inverse: f32| move |value: f32| (value * inverse).round_ties_even() as i8;
                    put(codes, blocks, PageLayout::plain(head_dim), at, (k, v), (code(k_inverse), code(v_inverse)));
                }
            }
        }
    }
}

/// One sequence's pages at one layer and head.
struct HeadPages<'a> {
    kv: &'a CpuKv,
    pages: &'a [u32],
    /// layer · heads + head.
    block: usize,
}

impl KvPages for HeadPages<'_> {
    fn page(&self, index: usize) -> (KvElements<'_>, KvElements<'_>) {
        let size = PAGE * self.kv.shape.head_dim;
        let (keys, values) = (2 * self.block * size, (2 * self.block + 1) * size);
        match &self.kv.pages[self.pages[index] as usize] {
            Page::F32(e) => (KvElements::F32(&e[keys..values]), KvElements::F32(&e[values..values + size])),
            Page::Bf16(e) => (KvElements::Bf16(&e[keys..values]), KvElements::Bf16(&e[values..values + size])),
            Page::Int8 { codes, scales } => (
                KvElements::Int8(&codes[keys..values], &scales[2 * self.block]),
                KvElements::Int8(&codes[values..values + size], &scales[2 * self.block + 1]),
            ),
        }
    }
}

impl CpuKv {
    /// At most `pages` pages; memory is taken when a page is first written.
    pub(super) fn new(shape: KvShape, dtype: KvDtype, pages: usize) -> Self {
        let empty = || match dtype {
            KvDtype::Auto | KvDtype::F32 => Page::F32(Vec::new()),
            KvDtype::Bf16 => Page::Bf16(Vec::new()),
            KvDtype::Int8 => Page::Int8 { codes: Vec::new(), scales: Vec::new() },
        };
        Self { shape, pages: (0..pages).map(|_| empty()).collect() }
    }

    /// Writes keys and values (rows, kv_heads, head_dim) of one layer at their rows' places. Keys lie position by position
    /// in different cache lines, which takes a while where many rows are written: threads have a page each.
    pub(super) fn store(&mut self, layer: usize, k: &[f32], v: &[f32], rows: &[RowPlace]) {
        let shape = self.shape;
        let page_of = |row: usize| rows[row].pages[rows[row].position / PAGE] as usize;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|row| page_of(*row));
        let (mut rest, mut before) = (&mut self.pages[..], 0);
        let mut tasks = Vec::new();
        for rows_of_page in order.chunk_by(|a, b| page_of(*a) == page_of(*b)) {
            let number = page_of(rows_of_page[0]);
            let (page, after) =
                rest[number - before..].split_first_mut().expect("the row's page is one of the cache's");
            (rest, before) = (after, number + 1);
            tasks.push(Mutex::new((page, rows_of_page)));
        }
        for_each(tasks.len(), |i| {
            let mut task = tasks[i].lock().unwrap_or_else(PoisonError::into_inner);
            let (page, rows_of_page) = &mut *task;
            for &row in *rows_of_page {
                page.store(shape, layer, (k, v), row, rows[row].position % PAGE);
            }
        });
    }

    /// Each row attends to its own sequence up to its own position.
    pub(super) fn attend(&self, layer: usize, q: &[f32], heads: usize, rows: &[RowPlace], out: &mut [f32]) {
        let KvShape { kv_heads, head_dim, .. } = self.shape;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let all = heads * head_dim;
        // The query heads that share keys and values lie next to each other.
        let shared = all / kv_heads;
        let together = kernels::rows_together(heads / kv_heads);
        // What a thread does at a time: a few rows of one prompt, or one key and value head of a row.
        let mut tasks = Vec::new();
        let (mut q, mut out) = (&q[..rows.len() * all], &mut out[..rows.len() * all]);
        for block in rows.chunk_by(RowPlace::goes_on).flat_map(|rows| rows.chunks(together)) {
            let width = if block.len() == 1 { shared } else { all };
            for first in (0..all).step_by(width) {
                let (own, later) = q.split_at(block.len() * width);
                let (to, rest) = out.split_at_mut(own.len());
                (q, out) = (later, rest);
                tasks.push((block[0], first / shared..(first + width) / shared, own, Mutex::new(to)));
            }
        }
        for_each(tasks.len(), |i| {
            let (place, of, q, out) = &tasks[i];
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            for (i, head) in of.clone().enumerate() {
                let pages = HeadPages { kv: self, pages: place.pages, block: layer * kv_heads + head };
                let (width, shared) = (of.len() * shared, i * shared..(i + 1) * shared);
                let queries = Queries { q, width, shared, head_dim, positions: place.position + 1, scale };
                kernels::attend(&queries, &pages, &mut out);
            }
        });
    }
}

/// An int8 block's scale and its inverse.
fn scale(values: &[f32]) -> (f32, f32) {
    let greatest = values.iter().fold(0f32, |greatest, value| greatest.max(value.abs()));
    (greatest / 127.0, if greatest > 0.0 { 127.0 / greatest } else { 0.0 })
}

/// Writes one position's key and value into blocks `block` and `block + 1` of a page of `blocks` blocks.
fn put<T: Copy + Default>(
    page: &mut Vec<T>,
    blocks: usize,
    layout: PageLayout,
    (block, position): (usize, usize),
    (k, v): (&[f32], &[f32]),
    (key, value): (impl Fn(f32) -> T, impl Fn(f32) -> T),
) {
    let size = layout.size();
    page.resize(blocks * size, T::default());
    let (keys, values) = page[block * size..(block + 2) * size].split_at_mut(size);
    for (i, (k, v)) in k.iter().zip(v).enumerate() {
        keys[layout.key(position, i)] = key(*k);
        values[layout.value(position, i)] = value(*v);
    }
}
