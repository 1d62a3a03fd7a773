//! What the behaviour tests share: a tiny base, and variants of it.

use bitdelta_delta::{BitDeltaConfig, Info, LinearDelta, Variant, quantize};
use bitdelta_engine::{BaseDtype, Model, ModelOptions};
use bitdelta_model::Base;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

pub fn model() -> Arc<Model> {
    model_in(BaseDtype::Stored)
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
