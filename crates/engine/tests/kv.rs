//! Keys and values in bf16 and int8: near the exact ones, smaller by what they promise, and as blind to company.

mod common;

use bitdelta_engine::{BaseDtype, KvDtype, Model, ModelOptions};
use bitdelta_model::Base;
use common::{golden, page_bytes, variant};
use std::{path::Path, sync::Arc};

fn model(base_dtype: BaseDtype, kv_dtype: KvDtype) -> Arc<Model> {
    let base = Base::open(golden("tiny-llama").to_str().expect("a plain path")).expect("the base opens");
    let options = ModelOptions { threads: 2, base_dtype, kv_dtype };
    Arc::new(Model::load(Arc::new(base), options).expect("the base loads"))
}

/// More than two pages.
fn prompt() -> Vec<u32> {
    (0..75).map(|i| (i * 37 + 11) % 200).collect()
}

fn logits(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut out = Vec::new();
    model.logits(tokens, 0..tokens.len(), None, &mut |_, row| out.extend_from_slice(row)).expect("logits");
    out
}

#[test]
fn rounded_keys_and_values_give_logits_near_the_exact_ones() {
    let exact = logits(&model(BaseDtype::F32, KvDtype::F32), &prompt());
    let spread = exact.iter().fold(0f32, |most, logit| most.max(logit.abs()));
    // Of the greatest logit: half a step of bf16 (2⁻⁹) and of int8 (1/254), a few layers deep.
    for (dtype, tolerance) in [(KvDtype::Bf16, 0.01), (KvDtype::Int8, 0.03)] {
        let found = logits(&model(BaseDtype::F32, dtype), &prompt());
        let worst = found.iter().zip(&exact).map(|(found, exact)| (found - exact).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance * spread, "{dtype:?}: {worst} of {spread}");
        assert!(worst > 0.0, "{dtype:?} rounds something");
    }
}

#[test]
fn auto_is_exact_beside_an_exact_base_and_bf16_beside_a_rounded_one() {
    let of = |base, kv| logits(&model(base, kv), &prompt());
    assert_eq!(of(BaseDtype::Stored, KvDtype::Auto), of(BaseDtype::Stored, KvDtype::F32));
    assert_eq!(of(BaseDtype::Int8, KvDtype::Auto), of(BaseDtype::Int8, KvDtype::Bf16));
}

#[test]
fn a_page_takes_a_half_or_about_a_quarter() {
    let bytes = |dtype| page_bytes(&model(BaseDtype::F32, dtype));
    let exact = bytes(KvDtype::F32);
    assert_eq!(bytes(KvDtype::Bf16) * 2, exact);
    let head = Base::open(golden("tiny-llama").to_str().expect("a path")).expect("a base").config.head_dim as u64;
    assert_eq!(bytes(KvDtype::Int8) * 4 * head, exact * (head + 4), "a byte an element and a scale a head");
}

#[test]
fn an_answer_does_not_depend_on_its_company_with_rounded_keys_and_values() {
    use bitdelta_engine::{Engine, EngineOptions};
    for (base, kv) in [(BaseDtype::Int8, KvDtype::Bf16), (BaseDtype::Int8, KvDtype::Int8)] {
        let model = model(base, kv);
        let user = model.prepare("user", Path::new("user.safetensors"), variant(&model, 3)).expect("it fits");
        let alone = |prompt: Vec<u32>, own: bool, chunk: usize| {
            let options = EngineOptions { prefill_chunk: chunk, ..EngineOptions::default() };
            let engine = Engine::start(Arc::clone(&model), options).expect("an engine");
            let variant = own.then(|| Arc::clone(&user));
            engine.generate(prompt, variant, common::hot(5), 40, vec![]).expect("an answer").1.tokens
        };
        let prompts = [prompt(), prompt()[..20].to_vec(), prompt()[5..].to_vec()];
        let engine = Engine::start(Arc::clone(&model), EngineOptions::default()).expect("an engine");
        std::thread::scope(|scope| {
            let answers: Vec<_> = (0..prompts.len())
                .map(|i| {
                    let (engine, prompt, variant) = (&engine, prompts[i].clone(), (i > 0).then(|| Arc::clone(&user)));
                    scope.spawn(move || engine.generate(prompt, variant, common::hot(5), 40, vec![]))
                })
                .collect();
            for (i, answer) in answers.into_iter().enumerate() {
                let together = answer.join().expect("no panic").expect("an answer").1.tokens;
                assert_eq!(together, alone(prompts[i].clone(), i > 0, 256), "request {i}, {kv:?}");
                assert_eq!(together, alone(prompts[i].clone(), i > 0, 7), "request {i} in small chunks, {kv:?}");
            }
        });
    }
}
