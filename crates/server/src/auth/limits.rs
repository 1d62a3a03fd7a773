//! Requests and tokens a minute: a bucket of each for every key, filled steadily and at most one minute full.
//!
//! An answer's tokens are set aside when it is admitted, prompt and longest answer together, so that a burst of requests
//! cannot take more than one did; what was not used comes back at its end. What is larger than a whole bucket is let
//! through a full one, and paid off before the next. Time is an argument: tests need no clock.
use super::Grant;
use crate::ApiError;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

/// Most meters kept for callers who are not asking anything now.
const MAX_METERS: usize = 16_384;

/// What a caller may take in a minute; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Requests of any kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
}

impl Limits {
    fn or(self, others: Self) -> Self {
        Self {
            requests_per_minute: self.requests_per_minute.or(others.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.or(others.tokens_per_minute),
        }
    }
}

/// A meter for each caller that has limits.
#[derive(Debug, Default)]
pub(super) struct Meters {
    defaults: Limits,
    by_id: Mutex<HashMap<Arc<str>, Arc<Meter>>>,
}

impl Meters {
    pub fn new(defaults: Limits) -> Self {
        Self { defaults, by_id: Mutex::default() }
    }

    /// The caller's meter. Changed limits begin with full buckets.
    pub fn of(&self, grant: &Grant) -> Option<Arc<Meter>> {
        let limits = grant.limits().or(self.defaults);
        if limits == Limits::default() {
            return None;
        }
        let mut all = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = all.get(grant.id()).filter(|meter| meter.limits == limits) {
            return Some(Arc::clone(meter));
        }
        let now = Instant::now();
        if all.len() >= MAX_METERS {
            all.retain(|_, meter| Arc::strong_count(meter) > 1 || !meter.is_full(now));
        }
        let meter = Arc::new(Meter::new(limits, now));
        all.insert(grant.id().into(), Arc::clone(&meter));
        Some(meter)
    }
}

/// One caller's buckets.
#[derive(Debug)]
pub(super) struct Meter {
    limits: Limits,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// What is left, which is below zero while an answer larger than the bucket is paid off.
#[derive(Debug)]
struct Bucket {
    capacity: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_minute: u32, at: Instant) -> Self {
        let capacity = f64::from(per_minute.max(1));
        Self { capacity, left: capacity, at }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.capacity / 60.0).min(self.capacity);
        self.at = now.max(self.at);
    }

    /// Takes `amount`, or says in how many seconds there will be enough.
    fn take(&mut self, amount: f64, now: Instant) -> Result<(), u64> {
        self.fill(now);
        // A thousandth less than it needs is enough: sums of fractions are not exact.
        let missing = amount.min(self.capacity) - self.left;
        if missing > 1e-3 {
            return Err(((missing * 60.0 / self.capacity).ceil() as u64).max(1));
        }
        self.left -= amount;
        Ok(())
    }
}

impl Meter {
    fn new(limits: Limits, now: Instant) -> Self {
        let bucket = |per_minute: Option<u32>| per_minute.map(|per_minute| Bucket::new(per_minute, now));
        let buckets =
            Buckets { requests: bucket(limits.requests_per_minute), tokens: bucket(limits.tokens_per_minute) };
        Self { limits, buckets: Mutex::new(buckets) }
    }

    /// What the buckets hold.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    fn buckets(&self) -> std::sync::MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self, now: Instant) -> bool {
        let mut buckets = self.buckets();
        let Buckets { requests, tokens } = &mut *buckets;
        [requests, tokens].into_iter().flatten().all(|bucket| {
            bucket.fill(now);
            bucket.left >= bucket.capacity
        })
    }

    /// Counts one request.
    pub fn request(&self, now: Instant) -> Result<(), ApiError> {
        let taken = self.buckets().requests.as_mut().map_or(Ok(()), |bucket| bucket.take(1.0, now));
        taken.map_err(|seconds| exceeded("requests", self.limits.requests_per_minute, seconds))
    }

    /// Sets tokens aside until the answer's end.
    pub fn reserve(this: &Arc<Self>, tokens: usize, now: Instant) -> Result<Reserved, ApiError> {
        let taken = this.buckets().tokens.as_mut().map_or(Ok(()), |bucket| bucket.take(tokens as f64, now));
        taken.map_err(|seconds| exceeded("tokens", this.limits.tokens_per_minute, seconds))?;
        Ok(Reserved { meter: Arc::clone(this), tokens, spent: Spent::default() })
    }
}

/// Tokens set aside for one request. What was not spent comes back when this is dropped.
#[derive(Debug)]
pub struct Reserved {
    meter: Arc<Meter>,
    tokens: usize,
    spent: Spent,
}

/// Counts what a request spends; the engine's side of a [`Reserved`].
#[derive(Debug, Clone, Default)]
pub struct Spent(Arc<AtomicUsize>);

impl Spent {
    /// Notes tokens that were run or generated.
    pub fn add(&self, tokens: usize) {
        self.0.fetch_add(tokens, Ordering::Relaxed);
    }
}

impl Reserved {
    /// The counter of what is spent.
    pub fn spent(&self) -> Spent {
        self.spent.clone()
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(bucket) = self.meter.buckets().tokens.as_mut() {
            bucket.left += self.tokens.saturating_sub(self.spent.0.load(Ordering::Relaxed)) as f64;
        }
    }
}

fn exceeded(what: &str, limit: Option<u32>, seconds: u64) -> ApiError {
    let limit = limit.unwrap_or_default();
    let message = format!("this key's limit of {limit} {what} a minute is reached; try again in {seconds} s");
    let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
    ApiError { retry_after: Some(seconds), ..error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn meter(requests: Option<u32>, tokens: Option<u32>) -> (Arc<Meter>, Instant) {
        let now = Instant::now();
        let limits = Limits { requests_per_minute: requests, tokens_per_minute: tokens };
        (Arc::new(Meter::new(limits, now)), now)
    }

    #[test]
    fn a_full_minute_of_requests_and_then_one_when_its_time_has_come() {
        let (meter, now) = meter(Some(6), None);
        assert_eq!((0..9).filter(|_| meter.request(now).is_ok()).count(), 6);
        let refused = meter.request(now).expect_err("none left");
        assert_eq!((refused.status.as_u16(), refused.retry_after), (429, Some(10)));
        assert!(meter.request(now + Duration::from_secs(9)).is_err());
        assert!(meter.request(now + Duration::from_secs(10)).is_ok());
        assert!(meter.request(now + Duration::from_secs(10)).is_err());
    }

    #[test]
    fn what_an_answer_does_not_use_comes_back() {
        let (meter, now) = meter(None, Some(100));
        let first = Meter::reserve(&meter, 80, now).expect("room");
        assert!(Meter::reserve(&meter, 80, now).is_err(), "a burst cannot take more than one did");
        first.spent().add(30);
        drop(first);
        assert!(Meter::reserve(&meter, 80, now).is_err());
        drop(Meter::reserve(&meter, 70, now).expect("70 are left"));
    }

    #[test]
    fn an_answer_larger_than_the_bucket_waits_for_a_full_one_and_is_paid_off() {
        let (meter, now) = meter(None, Some(60));
        let large = Meter::reserve(&meter, 150, now).expect("a full bucket");
        large.spent().add(150);
        drop(large);
        let refused = Meter::reserve(&meter, 1, now).expect_err("in debt");
        assert_eq!(refused.retry_after, Some(91));
        assert!(Meter::reserve(&meter, 1, now + Duration::from_secs(91)).is_ok());
    }

    #[test]
    fn a_key_keeps_its_meter_until_its_limits_change() {
        let meters = Meters::new(Limits { requests_per_minute: Some(5), tokens_per_minute: None });
        let grant = |requests| {
            let limits = Limits { requests_per_minute: requests, tokens_per_minute: None };
            Grant::of_key("a", super::super::Users::All, Default::default(), None, limits)
        };
        let first = meters.of(&grant(None)).expect("the defaults");
        assert!(Arc::ptr_eq(&first, &meters.of(&grant(Some(5))).expect("the same limits")));
        assert!(!Arc::ptr_eq(&first, &meters.of(&grant(Some(6))).expect("others")));
        assert!(Meters::default().of(&grant(None)).is_none());
    }
}
