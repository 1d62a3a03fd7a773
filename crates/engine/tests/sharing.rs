//! What one prompt leaves in the cache serves the next of the same tenant and variant, and nobody else, and never shows
//! in an answer.

mod common;

use bitdelta_engine::{Engine, EngineOptions, Finish, Model, Registry, Request, Resident};
use common::{endless_model, finish, page_bytes, request, variant};
use proptest::prelude::*;
use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

/// Positions in a page.
const PAGE: usize = 32;

fn prompt(tokens: usize, seed: usize) -> Vec<u32> {
    (0..tokens).map(|i| (3 + (i * 7 + seed * i * i) % 280) as u32).collect()
}

fn engine(model: &Arc<Model>, share_prefixes: bool) -> Engine {
    Engine::start(model.clone(), EngineOptions { share_prefixes, ..Default::default() }).expect("an engine")
}

fn resident(model: &Arc<Model>, user: &str, seed: usize) -> Arc<Resident> {
    model.prepare(user, Path::new("in memory"), variant(model, seed)).expect("a variant")
}

fn ask(engine: &Engine, tenant: &str, own: Option<&Arc<Resident>>, prompt: &[u32]) -> Finish {
    let (asked, events) = request(prompt, 5, 40);
    engine.submit(Request { tenant: tenant.into(), variant: own.cloned(), ..asked }).expect("taken");
    finish(events)
}

#[test]
fn full_pages_but_the_last_token_are_found_again_and_the_answer_is_the_same() {
    let model = endless_model();
    let ann = resident(&model, "ann", 1);
    for (tokens, found) in [(1, 0), (31, 0), (32, 0), (33, 32), (64, 32), (65, 64), (150, 128)] {
        for own in [None, Some(&ann)] {
            let prompt = prompt(tokens, 3);
            let fresh = ask(&engine(&model, false), "ann", own, &prompt);
            let sharing = engine(&model, true);
            let (first, second) = (ask(&sharing, "ann", own, &prompt), ask(&sharing, "ann", own, &prompt));
            assert_eq!((first.cached_tokens, second.cached_tokens), (0, found), "{tokens} tokens");
            assert_eq!([&first.tokens, &second.tokens], [&fresh.tokens; 2], "{tokens} tokens");
            assert_eq!(sharing.stats().reused_tokens, found as u64);
        }
    }
}

#[test]
fn the_next_turn_of_a_chat_finds_the_answer_before_it() {
    let model = endless_model();
    let engine = engine(&model, true);
    let mut chat = prompt(50, 1);
    chat.extend(ask(&engine, "ann", None, &chat.clone()).tokens);
    chat.extend(prompt(20, 9));
    let fresh = ask(&self::engine(&model, false), "ann", None, &chat).tokens;
    let turn = ask(&engine, "ann", None, &chat);
    // 50 + 40 tokens; the last of them was said and never run.
    assert_eq!((turn.cached_tokens, turn.tokens), (64, fresh));
}

#[test]
fn nothing_is_shared_between_tenants_or_variants_or_with_the_base() {
    let model = endless_model();
    let (one, two) = (resident(&model, "ann", 1), resident(&model, "ann", 2));
    // The same file in the hands of another user: equal hash, another tenant.
    let copy = resident(&model, "bob", 1);
    assert_eq!(one.hash(), copy.hash());
    let prompt = prompt(100, 2);
    let engine = engine(&model, true);
    assert_eq!(ask(&engine, "ann", Some(&one), &prompt).cached_tokens, 0);
    for (tenant, own) in
        [("bob", Some(&copy)), ("ann", Some(&two)), ("ann", None), ("", None), ("bob", None), ("", Some(&one))]
    {
        let alone = ask(&self::engine(&model, false), tenant, own, &prompt);
        let found = ask(&engine, tenant, own, &prompt);
        assert_eq!((found.cached_tokens, &found.tokens), (0, &alone.tokens), "{tenant:?} {:?}", own.map(|v| v.hash()));
    }
    assert_eq!(engine.stats().reused_tokens, 0);
    assert_eq!(ask(&engine, "ann", Some(&one), &prompt).cached_tokens, 96);
}

#[test]
fn a_variant_published_anew_finds_nothing_of_the_old_one() {
    let (dir, model) = (tempfile::tempdir().expect("a folder"), endless_model());
    let registry = Registry::new(model.clone(), Some(dir.path().to_owned()));
    let publish = |seed| {
        let mut new = variant(&model, seed);
        // Another size, since two writes may fall into one tick of the file system's clock.
        new.info.base_name.push_str(&"x".repeat(seed));
        new.write(&dir.path().join("ann.safetensors")).expect("written");
        registry.resolve("ann").expect("a variant")
    };
    let (engine, prompt) = (engine(&model, true), prompt(100, 4));
    let before = ask(&engine, "ann", Some(&publish(1)), &prompt);
    let after = ask(&engine, "ann", Some(&publish(2)), &prompt);
    assert_ne!(before.tokens, after.tokens);
    assert_eq!(after.cached_tokens, 0);
    assert_eq!(ask(&engine, "ann", Some(&publish(1)), &prompt), Finish { cached_tokens: 96, ..before });
}

#[test]
fn answers_to_one_prompt_compute_it_once() {
    let model = endless_model();
    let (engine, prompt) = (engine(&model, true), prompt(200, 6));
    let submit = |seed| {
        let (asked, events) = request(&prompt, seed, 3);
        engine.submit(asked).expect("taken");
        events
    };
    let running: Vec<_> = (0..8).map(submit).collect();
    running.into_iter().for_each(|events| drop(finish(events)));
    engine.drain();
    let stats = engine.stats();
    // Each runs at least its prompt's last token and what is in no full page.
    assert_eq!(stats.prompt_tokens + stats.generated_tokens + stats.reused_tokens, 8 * (200 + 2), "{stats:?}");
    assert_eq!(stats.reused_tokens, 7 * 192, "{stats:?}");
}

/// One request among many.
#[derive(Debug, Clone)]
struct Ask {
    tenant: usize,
    own: bool,
    alike: usize,
    tokens: usize,
    seed: u64,
    answer: usize,
    /// Its client leaves after so many events.
    leaves: Option<usize>,
}

prop_compose! {
    fn any_ask()(
        tenant in 0usize..3, own in any::<bool>(), alike in 0usize..2 * PAGE, tokens in 1usize..40, seed in 0u64..4,
        answer in 1usize..40, leaves in proptest::option::weighted(0.3, 0usize..10),
    ) -> Ask {
        Ask { tenant, own, alike, tokens, seed, answer, leaves }
    }
}

/// The model, and a variant for each tenant.
fn world() -> &'static (Arc<Model>, Vec<Arc<Resident>>) {
    static WORLD: OnceLock<(Arc<Model>, Vec<Arc<Resident>>)> = OnceLock::new();
    WORLD.get_or_init(|| {
        let model = endless_model();
        let variants = (0..3).map(|seed| resident(&model, &seed.to_string(), seed)).collect();
        (model, variants)
    })
}

impl Ask {
    fn request(&self) -> (Request, std::sync::mpsc::Receiver<bitdelta_engine::Event>) {
        let prompt: Vec<u32> =
            prompt(self.alike, 0).into_iter().chain(prompt(self.tokens, 1 + self.seed as usize)).collect();
        let (asked, events) = request(&prompt, self.seed, self.answer);
        let variant = self.own.then(|| world().1[self.tenant].clone());
        (Request { tenant: self.tenant.to_string().into(), variant, ..asked }, events)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_a_tiny_cache_with_clients_that_leave_every_answer_is_the_one_given_alone(
        asks in proptest::collection::vec(any_ask(), 2..14), pages in 5u64..9, places in 1usize..6, chunk in 1usize..80,
    ) {
        let (model, _) = world();
        let alone = engine(model, false);
        let options = EngineOptions {
            kv_bytes: pages * page_bytes(model), max_context: 5 * PAGE, max_batch: places, prefill_chunk: chunk,
            ..Default::default()
        };
        let crowded = Engine::start(model.clone(), options).expect("an engine");
        let mut running = Vec::new();
        for ask in &asks {
            let (asked, events) = ask.request();
            let cancel = asked.cancel.clone();
            crowded.submit(asked).expect("taken");
            running.push((ask, cancel, events));
        }
        // Those who leave do so first, while all others run.
        running.sort_by_key(|(ask, ..)| ask.leaves.is_none());
        for (ask, cancel, events) in running {
            match ask.leaves {
                Some(after) => {
                    events.iter().take(after).for_each(drop);
                    if ask.seed % 2 == 0 {
                        cancel.cancel();
                    }
                }
                None => {
                    let (asked, expected) = ask.request();
                    alone.submit(asked).expect("taken");
                    let (found, expected) = (finish(events), finish(expected));
                    prop_assert_eq!(found.tokens, expected.tokens);
                    prop_assert_eq!(found.completion_tokens, ask.answer);
                }
            }
        }
        crowded.drain();
        let stats = crowded.stats();
        prop_assert_eq!((stats.running, stats.waiting), (0, 0));
        let leave = asks.iter().filter(|ask| ask.leaves.is_some()).count();
        prop_assert!(stats.cancelled <= leave as u64, "{} of {} left", stats.cancelled, leave);
    }
}
