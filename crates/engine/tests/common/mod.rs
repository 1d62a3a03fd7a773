//! What the behaviour tests share: a tiny base, variants of it, and requests.
#![allow(dead_code, reason = "each test uses its part")]

use bitdelta_delta::{BitDeltaConfig, Info, LinearDelta, Variant, quantize};
use bitdelta_engine::{
    BaseDtype, Cancel, Engine, EngineOptions, Error, Event, Finish, Model, ModelOptions, Request, Sampling,
};
use bitdelta_model::Base;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
};

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

pub fn model() -> Arc<Model> {
    model_in(BaseDtype::Stored)
}

/// A model without an end token: every answer has its full length.
pub fn endless_model() -> Arc<Model> {
    let mut base = Base::open(golden("tiny-llama").to_str().expect("a plain path")).expect("the base opens");
    base.config.eos.clear();
    Arc::new(
        Model::load(Arc::new(base), ModelOptions { threads: 2, ..ModelOptions::default() }).expect("the base loads"),
    )
}

pub fn model_in(base_dtype: BaseDtype) -> Arc<Model> {
    let base = Base::open(golden("tiny-llama").to_str().expect("a plain path")).expect("the base opens");
    Arc::new(
        Model::load(Arc::new(base), ModelOptions { threads: 2, base_dtype, ..ModelOptions::default() })
            .expect("the base loads"),
    )
}

/// A variant of signs that depend on `seed`, strong enough to change every answer.
pub fn variant(model: &Model, seed: usize) -> Variant {
    let base = model.base();
    let config = BitDeltaConfig::default();
    let linears = base.linears().iter().map(|linear| {
        let count = linear.rows * linear.cols;
        let delta: Vec<f32> = (0..count).map(|i| if (i * i + seed * i) % 7 < 3 { 0.05 } else { -0.05 }).collect();
        let part = quantize(&linear.name, &delta, linear.rows, linear.cols, &config).expect("codes");
        LinearDelta { rows: linear.rows, cols: linear.cols, parts: vec![part], relative_error: None }
    });
    let linears = linears.collect();
    Variant::new(Info::new(base.fingerprint(), &base.name, config, "model"), linears)
}

/// A long, lively answer: hot enough not to fall into a loop, and the same each time for one seed.
pub fn hot(seed: u64) -> Sampling {
    Sampling { temperature: 1.5, seed, ..Sampling::GREEDY }
}

/// Bytes of one page of 32 positions of the KV cache, asked of the engine itself.
pub fn page_bytes(model: &Arc<Model>) -> u64 {
    match Engine::start(model.clone(), EngineOptions { kv_bytes: 1, ..Default::default() }).err() {
        Some(Error::Memory { needed, .. }) => needed,
        other => panic!("one byte is no page: {other:?}"),
    }
}

/// A request of the base whose events arrive at the returned receiver.
pub fn request(prompt: &[u32], seed: u64, max_tokens: usize) -> (Request, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::channel();
    let sink = Box::new(move |event| sender.send(event).is_ok());
    let (prompt, sampling) = (prompt.to_vec(), hot(seed));
    let (tenant, deadline, cancel) = ("".into(), None, Cancel::default());
    (Request { tenant, prompt, variant: None, sampling, max_tokens, stop: vec![], deadline, cancel, sink }, events)
}

/// How the request ended.
pub fn finish(events: mpsc::Receiver<Event>) -> Finish {
    for event in events {
        match event {
            Event::Text(_) => {}
            Event::Done(finish) => return finish,
            Event::Failed(error) => panic!("{error}"),
        }
    }
    panic!("the request was dropped");
}
