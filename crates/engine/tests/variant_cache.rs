//! The variant cache at work: more users than memory holds, more of them at once than fit, loads beside answers.

mod common;

use bitdelta_delta::{BitDeltaConfig, Variant, quantize};
use bitdelta_engine::{Engine, EngineOptions, Error, Model, Registry, RegistryOptions, Resident, Sampling};
use common::{model, variant};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};
use tempfile::tempdir;

const PROMPT: [u32; 6] = [5, 9, 17, 33, 21, 12];

fn within(model: &Arc<Model>, dir: &Path, bytes: u64) -> Registry {
    let options = RegistryOptions { resident_bytes: Some(bytes) };
    Registry::with_options(model.clone(), Some(dir.to_owned()), options).expect("a registry")
}

fn publish(variant: &Variant, dir: &Path, user: &str) -> PathBuf {
    let path = dir.join(format!("{user}.safetensors"));
    variant.write(&path).expect("a written variant");
    path
}

/// The larger of what a file takes on disk and in memory.
fn weight(model: &Arc<Model>, file: &Path) -> u64 {
    let resident = model.prepare("user", file, Variant::read(file).expect("a variant")).expect("a resident variant");
    resident.memory_bytes().max(fs::metadata(file).expect("a file").len())
}

fn answer(engine: &Engine, variant: Option<Arc<Resident>>, tokens: usize) -> Vec<u32> {
    let sampling = Sampling { temperature: 1.5, seed: 3, ..Sampling::GREEDY };
    engine.generate(PROMPT.to_vec(), variant, sampling, tokens, Vec::new()).expect("an answer").1.tokens
}

/// What each of these files' variants answers, asked outside any cache.
fn answers(model: &Arc<Model>, engine: &Engine, files: &[PathBuf], tokens: usize) -> Vec<Vec<u32>> {
    let alone = files.iter().map(|file| {
        let variant = Variant::read(file).expect("a variant");
        answer(engine, Some(model.prepare("alone", file, variant).expect("a resident variant")), tokens)
    });
    alone.collect()
}

#[test]
fn ten_thousand_users_by_zipf_are_answered_within_the_budget() {
    const USERS: usize = 10_000;
    const SOURCES: usize = 8;
    const THREADS: usize = 4;
    const REQUESTS: usize = 500;
    const TOKENS: usize = 4;
    let (sources, dir, model) = (tempdir().unwrap(), tempdir().unwrap(), model());
    let files: Vec<_> = (0..SOURCES).map(|i| publish(&variant(&model, i), sources.path(), &i.to_string())).collect();
    for user in 0..USERS {
        let name = dir.path().join(format!("user-{user}.safetensors"));
        fs::hard_link(&files[user % SOURCES], &name)
            .or_else(|_| fs::copy(&files[user % SOURCES], &name).map(|_| ()))
            .unwrap();
    }
    let engine = Engine::start(model.clone(), EngineOptions::default()).unwrap();
    let expected = answers(&model, &engine, &files, TOKENS);
    let hashes: Vec<_> = files.iter().map(|file| Variant::read_hashed(file).unwrap().1).collect();
    let weight = weight(&model, &files[0]);
    let budget = 40 * weight;
    let registry = within(&model, dir.path(), budget);

    // Rank r is asked for in proportion to 1 / r.
    let mut sum = 0.0;
    let shares: Vec<f64> = (1..=USERS)
        .map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        })
        .collect();
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (registry, engine, expected, hashes, shares) = (&registry, &engine, &expected, &hashes, &shares);
            scope.spawn(move || {
                let mut state = 0x9E37_79B9_7F4A_7C15 ^ number as u64;
                for _ in 0..REQUESTS {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let point = (state >> 11) as f64 / (1u64 << 53) as f64 * sum;
                    let user = shares.partition_point(|share| *share < point).min(USERS - 1);
                    let variant = registry.resolve(&format!("user-{user}")).expect("a variant");
                    assert_eq!(variant.hash(), hashes[user % SOURCES], "user {user}");
                    assert_eq!(answer(engine, Some(variant), TOKENS), expected[user % SOURCES], "user {user}");
                    let stats = registry.stats();
                    assert!(stats.resident_bytes + stats.loading_bytes <= budget, "{stats:?}");
                }
            });
        }
    });
    // Its thread lets go of an answered request's variant a moment after the answer.
    drop(engine);
    let stats = registry.stats();
    assert_eq!(stats.hits + stats.misses, (THREADS * REQUESTS) as u64);
    assert_eq!((stats.loads, stats.pinned, stats.waiting), (stats.evictions + stats.resident as u64, 0, 0));
    assert!(stats.hits > 400 && stats.evictions > 400, "the head stays, the tail comes and goes: {stats:?}");
    assert!(stats.resident >= 37, "the budget is used: {stats:?}");
    let listed = registry.list();
    assert_eq!(listed.len(), USERS);
    let loaded: Vec<_> = listed.iter().filter_map(|line| line.loaded.as_ref()).collect();
    assert_eq!(loaded.len(), stats.resident);
    assert_eq!(loaded.iter().map(|loaded| loaded.bytes).sum::<u64>(), stats.resident_bytes);
}

#[test]
fn more_variants_at_once_than_fit_wait_and_every_user_is_answered() {
    const USERS: usize = 16;
    const TOKENS: usize = 24;
    let (dir, model) = (tempdir().unwrap(), model());
    let files: Vec<_> = (0..USERS).map(|i| publish(&variant(&model, i), dir.path(), &format!("user-{i}"))).collect();
    let engine = Engine::start(model.clone(), EngineOptions::default()).unwrap();
    let expected = answers(&model, &engine, &files, TOKENS);
    // Room for two, and for the reading of one beside them.
    let budget = 3 * weight(&model, &files[0]);
    let registry = within(&model, dir.path(), budget);
    let found: Vec<_> = thread::scope(|scope| {
        let ask = |user: usize| {
            let variant = registry.resolve(&format!("user-{user}")).expect("a variant, after a wait");
            let stats = registry.stats();
            assert!(stats.resident_bytes + stats.loading_bytes <= budget, "{stats:?}");
            answer(&engine, Some(variant), TOKENS)
        };
        let asked: Vec<_> = (0..USERS).map(|user| scope.spawn(move || ask(user))).collect();
        asked.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    assert_eq!(found, expected);
    let stats = registry.stats();
    assert_eq!((stats.loads, stats.failed_loads), (USERS as u64, 0));
    assert!(stats.resident <= 3, "{stats:?}");
}

#[test]
fn a_load_that_waits_holds_up_neither_answers_nor_hits() {
    let (dir, model) = (tempdir().unwrap(), model());
    let file = publish(&variant(&model, 1), dir.path(), "here");
    publish(&variant(&model, 2), dir.path(), "cold");
    let engine = Engine::start(model.clone(), EngineOptions::default()).unwrap();
    let registry = within(&model, dir.path(), 2 * weight(&model, &file));
    let here = registry.resolve("here").unwrap();
    let (alone, base) = (answer(&engine, Some(here.clone()), 40), answer(&engine, None, 40));
    thread::scope(|scope| {
        let cold = scope.spawn(|| registry.resolve("cold").unwrap());
        while registry.stats().waiting == 0 {
            thread::yield_now();
        }
        // All of the budget is in use, so the load cannot end before this.
        assert!(Arc::ptr_eq(&registry.resolve("here").unwrap(), &here));
        assert_eq!(answer(&engine, Some(here.clone()), 40), alone);
        assert_eq!(answer(&engine, None, 40), base);
        assert!(matches!(registry.resolve("nobody"), Err(Error::UnknownUser { .. })));
        assert_eq!((registry.stats().waiting, registry.list().len()), (1, 2));
        drop(here);
        assert_eq!(cold.join().unwrap().user(), "cold");
    });
    assert_eq!(registry.stats().evictions, 1);
}

#[test]
fn a_variant_larger_than_the_budget_is_an_error_and_the_others_stay() {
    let (dir, model) = (tempdir().unwrap(), model());
    let file = publish(&variant(&model, 1), dir.path(), "small");
    let mut large = variant(&model, 2);
    let config = BitDeltaConfig { enable_compression: false, ..Default::default() };
    for (delta, linear) in large.linears.iter_mut().zip(model.base().linears()) {
        let values = vec![0.01; linear.rows * linear.cols];
        delta.parts = vec![quantize(&linear.name, &values, linear.rows, linear.cols, &config).unwrap()];
    }
    publish(&large, dir.path(), "large");
    let registry = within(&model, dir.path(), 3 * weight(&model, &file));
    registry.resolve("small").unwrap();
    match registry.resolve("large").err() {
        Some(Error::VariantTooLarge { user, needed, budget }) => assert!(user == "large" && needed > budget),
        other => panic!("{other:?}"),
    }
    assert!(registry.loaded("small").unwrap().is_some(), "nothing was evicted for it");
    let stats = registry.stats();
    assert_eq!((stats.loading_bytes, stats.failed_loads, stats.evictions), (0, 1, 0));
}

#[test]
fn a_budget_is_one_byte_or_more_and_no_more_than_there_is() {
    let model = model();
    let with = |bytes| {
        let options = RegistryOptions { resident_bytes: Some(bytes) };
        Registry::with_options(model.clone(), None, options).map(|_| ())
    };
    assert!(matches!(with(0), Err(Error::InvalidParameter { .. })));
    assert!(matches!(with(u64::MAX), Err(Error::Memory { .. })));
    assert!(Registry::new(model.clone(), None).stats().budget_bytes > 0);
}

#[test]
fn an_operators_variant_that_gave_way_is_found_again() {
    let (dir, elsewhere, model) = (tempdir().unwrap(), tempdir().unwrap(), model());
    let file = publish(&variant(&model, 1), elsewhere.path(), "brought");
    publish(&variant(&model, 2), dir.path(), "ada");
    let registry = within(&model, dir.path(), 2 * weight(&model, &file));
    let hash = registry.load(&file).unwrap().hash().to_owned();
    registry.resolve("ada").unwrap();
    let states: Vec<_> = registry.list().into_iter().map(|line| (line.user, line.loaded.is_some())).collect();
    assert_eq!(states, [("ada".to_owned(), true), ("brought".to_owned(), false)]);
    assert_eq!(registry.resolve("brought").unwrap().hash(), hash);
}
