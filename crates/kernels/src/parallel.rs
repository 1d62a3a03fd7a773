//! Splitting the outputs of one product over threads.

use rayon::prelude::*;
use std::ops::Range;

/// A pointer to the result, which threads write at places of their own.
#[derive(Clone, Copy)]
pub(crate) struct Output(*mut f32);

impl Output {
    pub(crate) fn new(y: &mut [f32]) -> Self {
        Self(y.as_mut_ptr())
    }

    pub(crate) fn pointer(self) -> *mut f32 {
        self.0
    }
}

// SAFETY: `over_outputs` gives each task its own range of outputs, and the kernels write only inside it.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

/// Multiply-adds below which a second thread costs more than it brings.
const WORTH_SPLITTING: usize = 1 << 17;

/// Calls `task` with ranges that cover `0..outputs`, on all threads of the pool where `work` multiply-adds are worth it.
/// Ranges start at multiples of `align`.
pub(crate) fn over_outputs(outputs: usize, align: usize, work: usize, task: impl Fn(Range<usize>) + Sync) {
    let threads = rayon::current_num_threads();
    if threads == 1 || work < WORTH_SPLITTING {
        return task(0..outputs);
    }
    // A few tasks a thread, so that one slow core does not hold up the others.
    let tasks = threads * 4;
    let step = outputs.div_ceil(tasks).next_multiple_of(align);
    (0..outputs.div_ceil(step))
        .into_par_iter()
        .with_max_len(1)
        .for_each(|i| task(i * step..((i + 1) * step).min(outputs)));
}
