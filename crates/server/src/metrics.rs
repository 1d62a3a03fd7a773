//! `GET /metrics`: the engine's and the variant cache's figures as Prometheus and OpenMetrics scrapers read them.
//!
//! No series has a user's name: it would grow with users. Tenants are those of `observed.rs`; which variants are resident is
//! in `GET /v1/variants`.
use crate::{
    ApiError,
    api_error::internal,
    auth::{Caller, Right},
    observed::Observed,
    openapi::schema,
    service::{Service, blocking},
};
use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use bitdelta_engine::{Registry, RegistryStats, Stats};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{
        counter::ConstCounter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
};
use std::{fmt, sync::Arc};

/// What the text below is, to a scraper.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All figures, for the operator alone.
///
/// # Errors
/// 403 for others.
#[utoipa::path(get, path = "/metrics", operation_id = "get_metrics", tag = "operator", responses((status = 200, content_type = "application/openmetrics-text", body = String), (status = "default", body = schema::Failure)))]
pub async fn metrics(caller: Caller, State(service): State<Arc<Service>>) -> Result<Response, ApiError> {
    caller.require(Right::Admin)?;
    let text = blocking(&service, |service| {
        let engine = &service.engine;
        let figures = Figures {
            engine: engine.stats(),
            variants: service.registry.as_ref().map(Registry::stats),
            base_bytes: engine.model().bytes(),
            kv_bytes: engine.kv_bytes(),
        };
        text_of(figures, &service.observed).map_err(|error| internal(&error.to_string()))
    });
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], text.await?).into_response())
}

fn text_of(figures: Figures, observed: &Observed) -> Result<String, fmt::Error> {
    let mut registry = prometheus_client::registry::Registry::with_prefix("bitdelta");
    observed.register(&mut registry);
    registry.register_collector(Box::new(figures));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// One scrape's figures.
#[derive(Debug)]
struct Figures {
    engine: Stats,
    variants: Option<RegistryStats>,
    base_bytes: u64,
    kv_bytes: u64,
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Stats {
            running,
            waiting,
            generated_tokens,
            prompt_tokens,
            reused_tokens,
            preemptions,
            cancelled,
            expired,
            phases: _,
        } = self.engine;
        let to = &mut encoder;
        gauge(to, "requests_running", "Requests in the batch", running as u64)?;
        gauge(to, "requests_waiting", "Requests in the queue", waiting as u64)?;
        counter(to, "generated_tokens", "Tokens generated", generated_tokens)?;
        counter(to, "prompt_tokens", "Prompt tokens run, those run again after a preemption included", prompt_tokens)?;
        counter(to, "reused_tokens", "Prompt tokens found in the cache instead of run", reused_tokens)?;
        counter(to, "preemptions", "Sequences that gave their place or their KV pages to others", preemptions)?;
        counter(to, "cancelled", "Requests whose client left before the end", cancelled)?;
        counter(to, "expired", "Requests that a limit in time ended", expired)?;
        self.memory(to)?;
        self.variants.as_ref().map_or(Ok(()), |variants| variant_figures(to, variants))
    }
}

impl Figures {
    fn memory(&self, to: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let tiers = Family::<[(&str, &str); 1], Gauge>::default();
        let set = |tier, bytes: u64| {
            let _former = tiers.get_or_create(&[("tier", tier)]).set(bytes.cast_signed());
        };
        set("base", self.base_bytes);
        set("kv_cache", self.kv_bytes);
        if let Some(variants) = &self.variants {
            set("variants", variants.resident_bytes);
            set("variants_loading", variants.loading_bytes);
        }
        let (name, help) = ("memory_bytes", "Bytes in memory by what they hold");
        tiers.encode(to.encode_descriptor(name, help, None, tiers.metric_type())?)
    }
}

fn variant_figures(to: &mut DescriptorEncoder<'_>, stats: &RegistryStats) -> Result<(), fmt::Error> {
    gauge(to, "variants_budget_bytes", "Most bytes that variants may take", stats.budget_bytes)?;
    gauge(to, "variants_resident_bytes", "Bytes of loaded variants", stats.resident_bytes)?;
    gauge(to, "variants_loading_bytes", "Bytes promised to loads under way", stats.loading_bytes)?;
    gauge(to, "variants_resident", "Variants loaded", stats.resident as u64)?;
    gauge(to, "variants_pinned", "Loaded variants that a request uses", stats.pinned as u64)?;
    gauge(to, "variants_loads_waiting", "Loads that wait for others' bytes", stats.waiting)?;
    counter(to, "variants_hits", "Requests that found their variant loaded", stats.hits)?;
    counter(to, "variants_misses", "Requests whose variant had to be loaded", stats.misses)?;
    counter(to, "variants_loads", "Variants loaded since the start", stats.loads)?;
    counter(to, "variants_failed_loads", "Loads that failed", stats.failed_loads)?;
    counter(to, "variants_evictions", "Variants that gave way to others", stats.evictions)?;
    let (name, help) = ("variants_load_seconds", "Time spent in loads, without the wait for bytes");
    let seconds = ConstCounter::new(stats.load_time.as_secs_f64());
    seconds.encode(to.encode_descriptor(name, help, None, seconds.metric_type())?)
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
    let gauge = ConstGauge::new(value);
    gauge.encode(to.encode_descriptor(name, help, None, gauge.metric_type())?)
}

fn counter(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
    let counter = ConstCounter::new(value);
    counter.encode(to.encode_descriptor(name, help, None, counter.metric_type())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_ends_in_total_and_a_server_without_variants_has_none() {
        let engine = Stats { running: 3, generated_tokens: 17, ..Stats::default() };
        let figures = |variants| Figures { engine, variants, base_bytes: 5, kv_bytes: 7 };
        let text = text_of(figures(None), &Observed::default()).expect("text");
        assert!(text.contains("# TYPE bitdelta_requests_running gauge\nbitdelta_requests_running 3\n"), "{text}");
        assert!(text.contains("bitdelta_generated_tokens_total 17\n") && text.ends_with("# EOF\n"), "{text}");
        assert!(!text.contains("variants"), "{text}");
        assert!(text.contains("bitdelta_memory_bytes{tier=\"base\"} 5\n"), "{text}");
        let variants = RegistryStats { evictions: 5, ..RegistryStats::default() };
        let text = text_of(figures(Some(variants)), &Observed::default()).expect("text");
        assert!(text.contains("bitdelta_variants_evictions_total 5\n"), "{text}");
        assert!(text.contains("bitdelta_variants_load_seconds_total 0.0\n"), "{text}");
    }
}
