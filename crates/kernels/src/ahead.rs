//! What a product reads after the base's matrix: asked of the memory while the base is multiplied.
//!
//! The base's product for several rows waits for the arithmetic, the deltas' for the memory: each variant's part is short and
//! lies by itself, so that no hardware foresees it. Asked for a few lines at a time beside the base's products, the deltas
//! are in the second cache when their turn comes.

use crate::{
    again::{Again, Keep},
    vector::{LINE, from_first_line, prefetch_far},
};
use std::{cell::Cell, thread::LocalKey};

/// Where pieces of memory lie, and their bytes.
#[derive(Default)]
pub(crate) struct Pieces(Vec<(*const u8, usize)>);

impl Keep for Pieces {
    fn place() -> &'static LocalKey<Cell<Option<Self>>> {
        thread_local!(static KEPT: Cell<Option<Pieces>> = const { Cell::new(None) });
        &KEPT
    }
}

impl Pieces {
    /// No pieces yet.
    pub fn none() -> Again<Self> {
        let mut pieces = Again::<Self>::take();
        pieces.0.clear();
        pieces
    }

    /// `piece` will be read, after those before it.
    pub fn push<T>(&mut self, piece: &[T]) {
        self.push_at(piece.as_ptr().cast(), size_of_val(piece));
    }

    /// The same of bytes that others may still write.
    pub fn push_at(&mut self, start: *const u8, bytes: usize) {
        self.0.push(from_first_line(start, bytes));
    }
}

/// Pieces of memory, asked for one after another.
pub(crate) struct Ahead {
    pieces: Again<Pieces>,
    /// The next piece, and the byte in it.
    next: Cell<(usize, usize)>,
    /// Lines that each step asks for.
    lines: usize,
}

impl Ahead {
    /// Everything will have been asked for after about so many steps.
    pub fn new(pieces: Again<Pieces>, steps: usize) -> Self {
        let lines = pieces.0.iter().map(|(_, bytes)| bytes.div_ceil(LINE)).sum::<usize>();
        Self { pieces, next: Cell::default(), lines: lines.div_ceil(steps.max(1)) }
    }

    /// Asks for some lines, of one piece.
    #[inline(always)]
    pub fn step(&self) {
        let (piece, mut at) = self.next.get();
        let Some((start, bytes)) = self.pieces.0.get(piece) else { return };
        for _ in 0..self.lines {
            prefetch_far(start.wrapping_add(at));
            at += LINE;
        }
        self.next.set(if at < *bytes { (piece, at) } else { (piece + 1, 0) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_asked_for_in_all_lines_that_it_lies_in() {
        let memory = vec![0u8; 6 * LINE];
        let first = memory.as_ptr().addr().next_multiple_of(LINE) - memory.as_ptr().addr();
        for (from, bytes, lines) in
            [(0, LINE, 1), (0, LINE + 1, 2), (LINE - 8, 8, 1), (LINE - 8, 24, 2), (8, 2 * LINE, 3)]
        {
            let mut pieces = Pieces::none();
            pieces.push(&memory[first + from..][..bytes]);
            pieces.push(&memory[first..][..1]);
            let ahead = Ahead::new(pieces, usize::MAX);
            assert_eq!(ahead.lines, 1, "a line a step");
            let steps = (0..9).take_while(|_| {
                ahead.step();
                ahead.next.get().0 < 2
            });
            assert_eq!(steps.count(), lines, "{bytes} bytes from byte {from} of a line, and one more line");
        }
    }
}
