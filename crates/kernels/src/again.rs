//! Memory of an operation that the next one of the same thread takes again: a step has hundreds of them, and an allocator that
//! joins and gives back what they free takes as long as some of them.

use std::{
    cell::Cell,
    ops::{Deref, DerefMut},
    thread::LocalKey,
};

/// What is worth keeping, as it was left by whoever had it.
pub(crate) trait Keep: Default + 'static {
    /// Where a thread keeps one.
    fn place() -> &'static LocalKey<Cell<Option<Self>>>;
}

/// A value that goes back to its thread's place when it is dropped.
#[derive(Debug)]
pub(crate) struct Again<T: Keep>(T);

impl<T: Keep> Again<T> {
    /// What this thread kept, or a new one.
    pub fn take() -> Self {
        Self(T::place().take().unwrap_or_default())
    }
}

impl<T: Keep> Drop for Again<T> {
    fn drop(&mut self) {
        let value = std::mem::take(&mut self.0);
        // A thread that ends keeps nothing.
        let _ = T::place().try_with(|place| place.set(Some(value)));
    }
}

impl<T: Keep> Deref for Again<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Keep> DerefMut for Again<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// Makes a vector at least so long; what it holds already stays.
pub(crate) fn reach<T: Clone + Default>(values: &mut Vec<T>, length: usize) {
    if values.len() < length {
        values.resize(length, T::default());
    }
}
