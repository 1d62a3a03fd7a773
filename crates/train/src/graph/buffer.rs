//! Memory of a step's matrices, used again: a step makes and drops the same sizes over and over, and pages that go back
//! to the system in between cost a tenth of the step. What is made to stay (weights, moments) goes back when it is dropped.

use candle_core::CpuStorage;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Values from which on a buffer is kept.
const WORTH_KEEPING: usize = 1 << 14;
/// Buffers that are kept at most.
const MOST_KEPT: usize = 64;

/// Buffers that nobody uses.
static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Values of a matrix, as candle's product takes them.
#[derive(Debug)]
pub struct Buffer {
    storage: CpuStorage,
    /// Whether its memory is kept for the next one.
    lent: bool,
}

fn free() -> MutexGuard<'static, Vec<Vec<f32>>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives all memory back that is kept for later.
pub fn give_back() {
    let kept = std::mem::take(&mut *free());
    drop(kept);
}

impl Buffer {
    /// So many values, whatever they are, in memory that is used again.
    pub fn any(length: usize) -> Self {
        let fits = |buffer: &Vec<f32>| (length..=2 * length).contains(&buffer.capacity());
        let mut values = Vec::new();
        if length >= WORTH_KEEPING {
            let mut free = free();
            // The last to come is the likeliest to be in the cache.
            if let Some(found) = free.iter().rposition(fits) {
                values = free.swap_remove(found);
            }
        }
        values.resize(length, 0.0);
        Self { storage: CpuStorage::F32(values), lent: true }
    }

    /// These values.
    pub fn of(values: Vec<f32>) -> Self {
        Self::of_storage(CpuStorage::F32(values))
    }

    /// What candle multiplied.
    pub fn of_storage(storage: CpuStorage) -> Self {
        Self { storage, lent: false }
    }

    /// For candle's product.
    pub fn storage(&self) -> &CpuStorage {
        &self.storage
    }

    /// To read.
    pub fn values(&self) -> &[f32] {
        match &self.storage {
            CpuStorage::F32(values) => values,
            _ => unreachable!("made from f32 values and f32 products alone"),
        }
    }

    /// To write.
    pub fn values_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            CpuStorage::F32(values) => values,
            _ => unreachable!("made from f32 values and f32 products alone"),
        }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        Self { storage: CpuStorage::F32(self.values().to_vec()), lent: false }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let CpuStorage::F32(values) = &mut self.storage else { return };
        if !self.lent || values.capacity() < WORTH_KEEPING {
            return;
        }
        let mut free = free();
        if free.len() < MOST_KEPT {
            free.push(std::mem::take(values));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again_and_a_copy_is_a_copy() {
        let mut buffer = Buffer::any(WORTH_KEEPING + 7);
        buffer.values_mut().fill(3.0);
        assert_eq!(buffer.clone().values(), buffer.values());
        let capacity = buffer.values().len();
        drop(buffer);
        // Whatever another test does meanwhile, a buffer has the length that was asked for.
        assert_eq!(Buffer::any(capacity - 5).values().len(), capacity - 5);
        give_back();
    }
}
