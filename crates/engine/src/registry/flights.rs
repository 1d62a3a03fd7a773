//! One load a user at a time: who comes second waits and finds what the first one loaded.

use super::lock;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

/// The users whose variants are being loaded now, and nobody else: this does not grow with users.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<String, Arc<Mutex<()>>>>);

impl Flights {
    /// Runs `work` while nobody else works for the same user.
    pub fn alone<R>(&self, user: &str, work: impl FnOnce() -> R) -> R {
        let gate = lock(&self.0).entry(user.to_owned()).or_default().clone();
        let _leave = Leave { flights: self, user, gate: &gate };
        let _alone = lock(&gate);
        work()
    }
}

/// Forgets the user when the last one leaves, also after a panic.
struct Leave<'a> {
    flights: &'a Flights,
    user: &'a str,
    gate: &'a Arc<Mutex<()>>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut flights = lock(&self.flights.0);
        // The map's and this one's. Others would have been made under the lock that is held now.
        if Arc::strong_count(self.gate) == 2 {
            flights.remove(self.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    #[test]
    fn one_user_is_worked_for_once_at_a_time_and_others_meanwhile() {
        let (flights, now, both) = (Flights::default(), AtomicUsize::new(0), Barrier::new(2));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    flights.alone("ada", || {
                        assert_eq!(now.fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        now.fetch_sub(1, Ordering::SeqCst);
                    });
                });
            }
            // Each would wait for ever for the other if users shared a gate.
            scope.spawn(|| flights.alone("bob", || both.wait()));
            scope.spawn(|| flights.alone("eve", || both.wait()));
        });
        assert!(lock(&flights.0).is_empty(), "nobody is remembered");
    }
}
