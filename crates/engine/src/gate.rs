//! How many may wait, and how many of one tenant.
//!
//! A tenant may have as many requests waiting as there are places left in the queue. One tenant alone gets half of it,
//! k busy ones an equal part each, and as much as each of them has is left for the next who comes: nobody can fill the
//! queue so that others are turned away (a dynamic threshold, after Choudhury and Hahne 1998). The same rule bounds the
//! prompts' tokens, which is the memory that waiting takes.

use crate::Error;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Most prompt tokens that may wait: 64 MiB of them.
const MAX_TOKENS: usize = 16 << 20;

/// Longest wait that a refused client is told, in seconds: by then the queue may look quite different.
const LONGEST_RETRY: u64 = 60;

/// Requests that were taken and have not begun.
#[derive(Debug)]
pub(crate) struct Gate {
    max_requests: usize,
    waiting: Mutex<Waiting>,
    /// Microseconds between two ends of requests, smoothed.
    pace: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    all: Load,
    tenants: HashMap<Arc<str>, Load>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Load {
    requests: usize,
    tokens: usize,
}

impl Gate {
    pub fn new(max_requests: usize) -> Self {
        Self { max_requests, waiting: Mutex::default(), pace: AtomicU64::new(0) }
    }

    /// Counts a request with a prompt of `tokens`, if it may wait.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub fn enter(&self, tenant: &Arc<str>, tokens: usize) -> Result<(), Error> {
        let mut waiting = self.lock();
        let Load { requests, tokens: all_tokens } = waiting.all;
        let own = waiting.tenants.get(tenant).copied().unwrap_or_default();
        let room = own.requests < self.max_requests.saturating_sub(requests)
            && own.tokens + tokens <= MAX_TOKENS.saturating_sub(all_tokens);
        if !room {
            return Err(Error::Busy { waiting: requests, retry_seconds: self.retry_seconds(requests) });
        }
        waiting.all.requests += 1;
        waiting.all.tokens += tokens;
        let own = waiting.tenants.entry(tenant.clone()).or_default();
        own.requests += 1;
        own.tokens += tokens;
        Ok(())
    }

    /// A request that was counted begins, or will not.
    pub fn leave(&self, tenant: &str, tokens: usize) {
        let mut waiting = self.lock();
        waiting.all.requests -= 1;
        waiting.all.tokens -= tokens;
        if let Some(own) = waiting.tenants.get_mut(tenant) {
            own.requests -= 1;
            own.tokens -= tokens;
            if own.requests == 0 {
                waiting.tenants.remove(tenant);
            }
        }
    }

    /// Requests waiting.
    pub fn waiting(&self) -> usize {
        self.lock().all.requests
    }

    /// Seconds until half of those who wait now will have begun, at the pace of late.
    fn retry_seconds(&self, waiting: usize) -> u64 {
        let microseconds = (waiting as u64).div_ceil(2).saturating_mul(self.pace.load(Ordering::Relaxed));
        microseconds.div_ceil(1_000_000).clamp(1, LONGEST_RETRY)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Counts are changed together and nothing between the changes panics.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches how fast requests end, for the [`Gate`].
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When the last request ended, or the engine got to work.
    last: Option<Instant>,
}

impl Pace {
    /// `ended` requests have ended in the step that is over.
    pub fn step(&mut self, gate: &Gate, ended: usize) {
        let now = Instant::now();
        let since = now - *self.last.get_or_insert(now);
        if ended > 0 {
            let each = u64::try_from(since.as_micros()).unwrap_or(u64::MAX) / ended as u64;
            let before = gate.pace.load(Ordering::Relaxed);
            let pace = if before == 0 { each } else { before - before / 8 + each / 8 };
            gate.pace.store(pace.min(Duration::from_secs(LONGEST_RETRY).as_micros() as u64), Ordering::Relaxed);
            self.last = Some(now);
        }
    }

    /// Nothing runs: the time until something does says nothing.
    pub fn idle(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(gate: &Gate, tenant: &Arc<str>, tokens: usize) -> usize {
        (0..).take_while(|_| gate.enter(tenant, tokens).is_ok()).count()
    }

    #[test]
    fn whoever_fills_the_queue_leaves_room_for_the_next() {
        let gate = Gate::new(64);
        let tenants: Vec<Arc<str>> = (0..5).map(|tenant| tenant.to_string().into()).collect();
        let taken: Vec<usize> = tenants.iter().map(|tenant| fill(&gate, tenant, 10)).collect();
        assert_eq!(taken, [32, 16, 8, 4, 2]);
        for _ in 0..16 {
            gate.leave("0", 10);
        }
        assert!(gate.enter(&tenants[4], 10).is_ok(), "what one gives back others may have");
        assert_eq!(gate.waiting(), 62 - 16 + 1);
    }

    #[test]
    fn the_prompts_memory_is_shared_the_same_way() {
        let gate = Gate::new(1 << 20);
        let (long, short): (Arc<str>, Arc<str>) = ("long".into(), "short".into());
        assert_eq!(fill(&gate, &long, 1 << 20), 8);
        assert!(gate.enter(&short, 1000).is_ok());
        assert_eq!(gate.lock().all.tokens, (8 << 20) + 1000);
        for _ in 0..8 {
            gate.leave("long", 1 << 20);
        }
        gate.leave("short", 1000);
        let waiting = gate.lock();
        assert_eq!((waiting.all.requests, waiting.all.tokens, waiting.tenants.len()), (0, 0, 0));
    }

    #[test]
    fn a_refused_client_is_told_when_half_of_the_queue_will_be_gone() {
        let gate = Gate::new(0);
        let told = |waiting, microseconds| {
            gate.pace.store(microseconds, Ordering::Relaxed);
            gate.retry_seconds(waiting)
        };
        assert_eq!(told(100, 0), 1, "nothing is known yet");
        assert_eq!(told(100, 200_000), 10);
        assert_eq!(told(1, 1_000), 1);
        assert_eq!(told(100_000, u64::MAX / 8), LONGEST_RETRY);
        assert!(matches!(gate.enter(&"a".into(), 1), Err(Error::Busy { waiting: 0, retry_seconds: 1 })));
    }
}
