//! What requests went through, for `/metrics`: times to the first and between tokens, and what each tenant used.
//!
//! A series for each of a million users would bring a scraper down, so tenants are the ids of keys and tokens' subjects,
//! the first [`MAX_TENANTS`] of them by name and the rest together.
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Tenants with series of their own.
pub const MAX_TENANTS: usize = 100;

type Labels = [(&'static str, String); 1];
type RequestLabels = [(&'static str, String); 2];

/// Series that grow with requests. A clone counts into the same series.
#[derive(Clone)]
pub struct Observed {
    first_token: Histogram,
    between_tokens: Histogram,
    requests: Family<RequestLabels, Counter>,
    prompt_tokens: Family<Labels, Counter>,
    completion_tokens: Family<Labels, Counter>,
    tenants: Arc<Mutex<HashSet<String>>>,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            // 1 ms to 65 s, and 0.25 ms to 8 s: a base of 100M weights to one of 8B on a busy machine.
            first_token: Histogram::new(exponential_buckets(0.001, 2.0, 17)),
            between_tokens: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            requests: Family::default(),
            prompt_tokens: Family::default(),
            completion_tokens: Family::default(),
            tenants: Arc::default(),
        }
    }
}

impl Observed {
    /// Names the series.
    pub fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, histogram: &Histogram| registry.register(name, help, histogram.clone());
        add("first_token_seconds", "From a request's arrival to the first text of its answer", &self.first_token);
        add("between_tokens_seconds", "Between two pieces of text of one answer", &self.between_tokens);
        registry.register("http_requests", "Requests by route and status", self.requests.clone());
        registry.register("tenant_prompt_tokens", "Prompt tokens by tenant", self.prompt_tokens.clone());
        registry.register("tenant_completion_tokens", "Tokens of answers by tenant", self.completion_tokens.clone());
    }

    /// Counts one request; `route` is a pattern, of which there are few.
    pub fn request(&self, route: &str, status: u16) {
        self.requests.get_or_create(&[("route", route.to_owned()), ("status", status.to_string())]).inc();
    }

    /// A clock for one answer of a request that came at `arrived`.
    pub fn clock(&self, arrived: Instant) -> Clock {
        Clock { observed: self.clone(), last: arrived, begun: false }
    }

    /// Counts what a tenant used.
    pub fn used(&self, tenant: &str, prompt_tokens: usize, completion_tokens: usize) {
        let labels = [("tenant", self.name_of(tenant))];
        self.prompt_tokens.get_or_create(&labels).inc_by(prompt_tokens as u64);
        self.completion_tokens.get_or_create(&labels).inc_by(completion_tokens as u64);
    }

    fn name_of(&self, tenant: &str) -> String {
        let mut named = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenant.is_empty() {
            return "anonymous".to_owned();
        }
        if named.contains(tenant) || (named.len() < MAX_TENANTS && named.insert(tenant.to_owned())) {
            return tenant.to_owned();
        }
        "other".to_owned()
    }
}

/// Times the pieces of one answer.
#[derive(Clone)]
pub struct Clock {
    observed: Observed,
    last: Instant,
    begun: bool,
}

impl Clock {
    /// Notes that a piece of text came.
    pub fn piece(&mut self) {
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.last).max(Duration::ZERO).as_secs_f64();
        let histogram = if self.begun { &self.observed.between_tokens } else { &self.observed.first_token };
        histogram.observe(passed);
        (self.last, self.begun) = (now, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_beyond_the_limit_are_counted_together() {
        let observed = Observed::default();
        for tenant in 0..MAX_TENANTS + 50 {
            observed.used(&format!("key-{tenant}"), 1, 2);
        }
        observed.used("", 5, 5);
        let count = |tenant: &str| observed.completion_tokens.get_or_create(&[("tenant", tenant.to_owned())]).get();
        assert_eq!((count("key-0"), count("other"), count("anonymous")), (2, 100, 5));
    }
}
