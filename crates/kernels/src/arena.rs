//! Memory for what is read over and over: a base's matrices, or one variant's.
//!
//! It is asked of the system in one piece, in huge pages where the system gives them (a translation for 2 MiB instead of
//! 4 KiB: measured 5 to 15 % more of the memory's speed, and a fraction of the page faults when it is filled), and goes
//! back in one piece when the last of it is dropped. Small pieces come from the heap.

use memmap2::{MmapMut, MmapOptions};
use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::Arc,
};

/// Below this the heap is as good.
const WORTH_MAPPING: usize = 4 << 20;
/// A huge page, at whose multiples a region starts: it would begin and end in small pages otherwise.
const HUGE: usize = 2 << 20;
/// Slabs start at a multiple of this.
const ALIGN: usize = 64;

/// Memory that slabs are taken from, one after another.
#[derive(Debug, Default)]
pub struct Arena {
    region: Option<Arc<Region>>,
    used: usize,
}

#[derive(Debug)]
struct Region {
    start: NonNull<u8>,
    /// From there to the end.
    bytes: usize,
    /// Unmaps when dropped.
    _map: MmapMut,
}

// SAFETY: the region is only memory; each part of it belongs to one slab.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// Plain numbers, of which zero bytes are zeros.
pub trait Plain: Copy + Default + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u64 {}

impl Arena {
    /// Room for slabs of `bytes` bytes in all. What does not fit comes from the heap.
    pub fn new(bytes: usize) -> Self {
        if bytes < WORTH_MAPPING {
            return Self::default();
        }
        let region = MmapOptions::new().len(bytes + HUGE).map_anon().ok().and_then(|mut map| {
            #[cfg(target_os = "linux")]
            // Where the system has no huge pages, small ones do.
            let _ = map.advise(memmap2::Advice::HugePage);
            let before = map.as_ptr().align_offset(HUGE);
            let start = NonNull::new(map.get_mut(before..)?.as_mut_ptr())?;
            Some(Arc::new(Region { start, bytes: map.len() - before, _map: map }))
        });
        Self { region, used: 0 }
    }

    /// `len` zeros.
    pub fn take<T: Plain>(&mut self, len: usize) -> Slab<T> {
        let bytes = len * size_of::<T>();
        let start = self.used.next_multiple_of(ALIGN);
        match &self.region {
            Some(region) if start + bytes <= region.bytes => {
                self.used = start + bytes;
                // SAFETY: the part lies inside the region, which is fresh and so zero there; a map starts at a page, so
                // that the part is aligned; `used` never goes back, so that the part is this slab's alone.
                let at = unsafe { region.start.add(start).cast::<T>() };
                Slab(Memory::Part { at, len, _region: region.clone(), _owns: PhantomData })
            }
            _ => vec![T::default(); len].into(),
        }
    }
}

/// Numbers in an arena, which lives as long as any of its slabs.
#[derive(Debug)]
pub struct Slab<T: Plain>(Memory<T>);

#[derive(Debug)]
enum Memory<T> {
    Heap(Vec<T>),
    Part { at: NonNull<T>, len: usize, _region: Arc<Region>, _owns: PhantomData<T> },
}

impl<T: Plain> From<Vec<T>> for Slab<T> {
    /// On the heap, where the vector is.
    fn from(values: Vec<T>) -> Self {
        Self(Memory::Heap(values))
    }
}

// SAFETY: a slab owns its part as a vector owns its elements.
unsafe impl<T: Plain> Send for Slab<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Slab<T> {}

impl<T: Plain> Deref for Slab<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Memory::Heap(values) => values,
            // SAFETY: the part is `len` initialised values, and lives as long as the region that this slab holds.
            Memory::Part { at, len, .. } => unsafe { std::slice::from_raw_parts(at.as_ptr(), *len) },
        }
    }
}

impl<T: Plain> DerefMut for Slab<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.0 {
            Memory::Heap(values) => values,
            // SAFETY: as above, and no other slab has the part.
            Memory::Part { at, len, .. } => unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), *len) },
        }
    }
}

impl<T: Plain> Clone for Slab<T> {
    fn clone(&self) -> Self {
        let mut copy = Arena::new(size_of_val::<[T]>(self)).take(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl<T: Plain + PartialEq> PartialEq for Slab<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Plain + Eq> Eq for Slab<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_zero_apart_and_outlive_their_arena() {
        for bytes in [0, 1 << 10, 5 << 20] {
            let mut arena = Arena::new(bytes);
            let mut slabs: Vec<Slab<u16>> = (0..9).map(|i| arena.take(i * 100_001)).collect();
            drop(arena);
            for (i, slab) in slabs.iter_mut().enumerate() {
                assert!(slab.len() == i * 100_001 && slab.iter().all(|value| *value == 0));
                slab.fill(i as u16 + 1);
            }
            let copy = slabs[3].clone();
            assert!(copy == slabs[3] && copy != slabs[4]);
            for (i, slab) in slabs.iter().enumerate() {
                assert!(slab.iter().all(|value| *value == i as u16 + 1), "slab {i} of an arena of {bytes}");
                assert_eq!(slab.as_ptr().addr() % align_of::<u16>(), 0);
            }
        }
    }
}
