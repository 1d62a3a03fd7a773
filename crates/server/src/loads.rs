//! From a user to their variant without holding up anybody else's request.
//!
//! A variant that is loaded is handed out at once. A cold load takes one of a few places, so that loads, which may wait
//! long for a slow disk or for others' memory, never use up the threads that all requests share. Who waits for a place, or
//! for the same user's load, holds no thread, and leaves the queue when the client leaves.
use crate::{
    ApiError,
    service::{Service, blocking},
};
use bitdelta_engine::{Error as EngineError, Resident};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::{Mutex as Gate, Semaphore, SemaphorePermit};

/// Loads under way at a time. A few keep a disk and two cores busy; the rest of the runtime's 512 threads stay free.
const LOADS_AT_ONCE: usize = 8;
/// Most requests that may wait for loads; one more is answered with 429.
const MAX_WAITING: usize = 1024;

/// The cold loads under way.
pub struct Loads {
    places: Semaphore,
    /// A gate for each user whose variant is being loaded; gates that nobody holds are dropped.
    users: Mutex<HashMap<String, Weak<Gate<()>>>>,
    waiting: AtomicUsize,
}

impl Default for Loads {
    fn default() -> Self {
        Self { places: Semaphore::new(LOADS_AT_ONCE), users: Mutex::default(), waiting: AtomicUsize::new(0) }
    }
}

impl Loads {
    /// One of the few places for loads.
    ///
    /// # Errors
    /// 503 when the server stops.
    pub async fn place(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        self.places.acquire().await.map_err(|_| EngineError::Stopped.into())
    }

    /// A place in the queue.
    fn queue(&self) -> Result<Waiting<'_>, ApiError> {
        let waiting = self.waiting.fetch_add(1, Ordering::AcqRel);
        let place = Waiting(&self.waiting);
        // A load is a matter of milliseconds; what waits for memory waits for answers to end.
        let busy = || EngineError::Busy { waiting, retry_seconds: 5 };
        if waiting < MAX_WAITING { Ok(place) } else { Err(busy().into()) }
    }

    fn gate(&self, user: &str) -> Arc<Gate<()>> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = users.get(user).and_then(Weak::upgrade) {
            return gate;
        }
        users.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Gate::new(()));
        users.insert(user.to_owned(), Arc::downgrade(&gate));
        gate
    }
}

/// Leaves the queue when dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The user's variant, loaded if need be.
///
/// # Errors
/// The registry's; 429 when too many requests wait for loads.
pub async fn variant(service: &Arc<Service>, user: &str) -> Result<Arc<Resident>, ApiError> {
    if let Some(variant) = loaded(service, user).await? {
        return Ok(variant);
    }
    let _waiting = service.loads.queue()?;
    let gate = service.loads.gate(user);
    let _alone = gate.lock().await;
    // Whoever was first has loaded it.
    if let Some(variant) = loaded(service, user).await? {
        return Ok(variant);
    }
    let _place = service.loads.place().await?;
    let user = user.to_owned();
    blocking(service, move |service| Ok(service.variants()?.resolve(&user)?)).await
}

/// A look at the user's file: quick, but a disk may be slow.
async fn loaded(service: &Arc<Service>, user: &str) -> Result<Option<Arc<Resident>>, ApiError> {
    let user = user.to_owned();
    blocking(service, move |service| Ok(service.variants()?.loaded(&user)?)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_shared_while_held_and_forgotten_after() {
        let loads = Loads::default();
        let ada = loads.gate("ada");
        assert!(Arc::ptr_eq(&ada, &loads.gate("ada")));
        drop(ada);
        let _bob = loads.gate("bob");
        let users = loads.users.lock().expect("a lock");
        assert_eq!(users.keys().collect::<Vec<_>>(), ["bob"]);
    }

    #[test]
    fn a_full_queue_is_a_429_and_leaving_makes_room() {
        let loads = Loads::default();
        let mut queue: Vec<_> = (0..MAX_WAITING).map(|_| loads.queue().expect("a place")).collect();
        let full = loads.queue().err().expect("no place");
        assert_eq!((full.status.as_u16(), full.code), (429, Some("queue_full")));
        queue.pop();
        assert!(loads.queue().is_ok());
    }
}
