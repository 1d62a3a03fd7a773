//! The byte budget: memory is promised before it is used, and who finds none waits for it.
//!
//! Two accounts share one limit. What is being read counts in `loading`, by what the reading may take at most; what is
//! loaded counts in `resident`, exactly, until the last request that uses it has ended: also a variant that was unloaded
//! or replaced. A promise that does not fit makes room (the cache evicts) and else waits until bytes come back or a
//! variant is let go. Promises are served in the order in which they were asked for, so that a large variant is not
//! overtaken for ever by small ones.
//!
//! Nothing here waits while it holds the lock, and the lock is never held over other code: to end a request, which
//! happens on the engine's thread, costs a few instructions under it.

use super::lock;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A limit and what of it is taken.
pub(crate) struct Budget {
    limit: u64,
    accounts: Mutex<Accounts>,
    changed: Condvar,
    /// Bytes were freed.
    freed: Condvar,
}

#[derive(Default)]
struct Accounts {
    resident: u64,
    loading: u64,
    /// The ticket of the next promise, and the one that is served now.
    next: u64,
    serving: u64,
    /// Counts everything that may make room.
    changes: u64,
    /// Whether bytes were freed that the system was not given back yet, and whether nobody will want to know any more.
    freed: bool,
    closed: bool,
}

/// What is taken of a budget now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    pub resident: u64,
    pub loading: u64,
    /// Promises that wait.
    pub waiting: u64,
}

/// Bytes of a budget. They go back when this is dropped.
pub(crate) struct Lease {
    budget: Arc<Budget>,
    bytes: u64,
    loading: bool,
}

/// Tells the budget that something may be evicted, when it is dropped.
pub(crate) struct Pin(Arc<Budget>);

impl Budget {
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, accounts: Mutex::default(), changed: Condvar::new(), freed: Condvar::new() })
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn taken(&self) -> Taken {
        let accounts = lock(&self.accounts);
        let waiting = accounts.next - accounts.serving;
        Taken { resident: accounts.resident, loading: accounts.loading, waiting }
    }

    pub fn pin(self: &Arc<Self>) -> Pin {
        Pin(Arc::clone(self))
    }

    /// Bytes for a load, the limit at most. Waits until they are free; `make_room` frees some and says whether it could.
    pub fn promise(self: &Arc<Self>, bytes: u64, mut make_room: impl FnMut() -> bool) -> Lease {
        let bytes = bytes.min(self.limit);
        let mut accounts = lock(&self.accounts);
        let ticket = accounts.next;
        accounts.next += 1;
        loop {
            if accounts.serving == ticket {
                if accounts.fits(bytes, self.limit) {
                    accounts.loading += bytes;
                    accounts.serving += 1;
                    self.changed.notify_all();
                    return Lease { budget: Arc::clone(self), bytes, loading: true };
                }
                let seen = accounts.changes;
                drop(accounts);
                let freed = make_room();
                accounts = lock(&self.accounts);
                if freed || accounts.changes != seen {
                    continue;
                }
            }
            accounts = self.changed.wait(accounts).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until bytes were freed since the last call. False when the budget is closed.
    pub fn wait_for_freed(&self) -> bool {
        let idle = |accounts: &mut Accounts| !accounts.freed && !accounts.closed;
        let accounts = self.freed.wait_while(lock(&self.accounts), idle);
        let mut accounts = accounts.unwrap_or_else(PoisonError::into_inner);
        accounts.freed = false;
        !accounts.closed
    }

    /// Ends the wait for freed bytes, for good.
    pub fn close(&self) {
        lock(&self.accounts).closed = true;
        self.freed.notify_all();
    }

    fn change(&self, f: impl FnOnce(&mut Accounts)) {
        let mut accounts = lock(&self.accounts);
        f(&mut accounts);
        accounts.changes += 1;
        self.changed.notify_all();
    }
}

impl Accounts {
    fn fits(&self, bytes: u64, limit: u64) -> bool {
        (self.resident + self.loading).saturating_add(bytes) <= limit
    }
}

impl Lease {
    /// Turns what was promised for a load into the `exact` bytes of what was loaded. `None` when they are more than was
    /// promised and `make_room` does not find them at once; what was promised has gone back then.
    pub fn settle(mut self, exact: u64, mut make_room: impl FnMut() -> bool) -> Option<Self> {
        let budget = Arc::clone(&self.budget);
        loop {
            let mut accounts = lock(&budget.accounts);
            if exact <= self.bytes || accounts.fits(exact - self.bytes, budget.limit) {
                accounts.loading -= self.bytes;
                accounts.resident += exact;
                accounts.changes += 1;
                budget.changed.notify_all();
                (self.bytes, self.loading) = (exact, false);
                return Some(self);
            }
            drop(accounts);
            if !make_room() {
                return None;
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.change(|accounts| {
            let account = if self.loading { &mut accounts.loading } else { &mut accounts.resident };
            *account -= self.bytes;
            accounts.freed = true;
        });
        self.budget.freed.notify_all();
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.change(|_| ());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc::channel, thread};

    fn waiting(budget: &Budget, promises: u64) {
        while budget.taken().waiting < promises {
            thread::yield_now();
        }
    }

    #[test]
    fn a_load_counts_by_its_plan_and_then_by_what_it_came_to() {
        let budget = Budget::new(100);
        let lease = budget.promise(60, || false);
        assert_eq!(budget.taken(), Taken { resident: 0, loading: 60, waiting: 0 });
        let lease = lease.settle(25, || false).unwrap();
        assert_eq!(budget.taken(), Taken { resident: 25, loading: 0, waiting: 0 });
        drop(lease);
        drop(budget.promise(40, || false));
        assert_eq!(budget.taken(), Taken { resident: 0, loading: 0, waiting: 0 });
    }

    #[test]
    fn more_than_was_planned_takes_free_bytes_or_gives_all_back() {
        let budget = Budget::new(100);
        let first = budget.promise(10, || false).settle(80, || false).unwrap();
        let second = budget.promise(10, || false);
        assert!(second.settle(21, || false).is_none());
        assert_eq!(budget.taken().loading, 0);
        let mut first = Some(first);
        let third = budget.promise(10, || false).settle(30, || first.take().is_some());
        assert!(third.is_some() && first.is_none(), "room was made for it");
    }

    #[test]
    fn promises_wait_for_bytes_and_are_served_in_order() {
        let budget = Budget::new(100);
        let held = budget.promise(80, || false);
        let (served, order) = channel();
        thread::scope(|scope| {
            for (place, bytes) in [(0, 100), (1, 10)] {
                waiting(&budget, place);
                let (budget, served) = (&budget, served.clone());
                scope.spawn(move || {
                    let lease = budget.promise(bytes, || false);
                    served.send(bytes).unwrap();
                    drop(lease);
                });
            }
            waiting(&budget, 2);
            // The small one would fit, and does not overtake.
            assert!(order.try_recv().is_err());
            drop(held);
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), [100, 10]);
    }

    #[test]
    fn a_pin_that_goes_wakes_who_waits_for_room() {
        let budget = Budget::new(100);
        let held = Mutex::new(Some(budget.promise(100, || false)));
        let pin = Mutex::new(Some(budget.pin()));
        thread::scope(|scope| {
            let load = scope.spawn(|| budget.promise(50, || lock(&pin).is_none() && lock(&held).take().is_some()));
            waiting(&budget, 1);
            let gone = lock(&pin).take();
            drop(gone);
            assert_eq!(load.join().unwrap().bytes, 50);
        });
    }
}
