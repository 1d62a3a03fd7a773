//! Variants of every kind, of many ranks, with tables and with norms of their own, beside each other in one batch.

mod common;

use bitdelta_delta::{BitDeltaConfig, Extra, GroupSize, Info, LinearDelta, Part, Variant, factor, quantize};
use bitdelta_engine::{BaseDtype, Cancel, Engine, EngineOptions, Event, Model, Registry, Request, Resident, Sampling};
use bitdelta_model::Base;
use common::{model, model_in, variant};
use half::f16;
use std::{
    path::Path,
    sync::{Arc, mpsc::channel},
    thread,
};
use tempfile::tempdir;

const PROMPT: [u32; 6] = [5, 9, 17, 33, 21, 12];
const SAMPLING: Sampling = Sampling { temperature: 1.2, seed: 3, ..Sampling::GREEDY };

/// Values in -1..1 that depend on the seed.
fn noise(count: usize, seed: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729 + i * i % 31 * 17) % 613) as f32 / 306.5 - 1.0;
    (0..count).map(value).collect()
}

fn codes(rows: usize, cols: usize, seed: usize, bits: u8, group: GroupSize, symmetric: bool) -> Part {
    let delta: Vec<f32> = noise(rows * cols, seed).iter().map(|x| x * 0.1).collect();
    let config = BitDeltaConfig { bits, group_size: Some(group), symmetric, ..Default::default() };
    quantize("w", &delta, rows, cols, &config).expect("codes")
}

fn low_rank(rows: usize, cols: usize, seed: usize, rank: usize, bits: u8) -> Part {
    let (a, b) = (noise(rank * cols, seed), noise(rows * rank, seed + 1));
    let b: Vec<f32> = b.iter().map(|x| x * 0.1).collect();
    factor("w", &a, &b, (rows, rank, cols), bits).expect("factors")
}

/// The parts of the matrix at `index` in the variant of `user`, by user a kind.
fn parts(user: usize, index: usize, rows: usize, cols: usize) -> Vec<Part> {
    let seed = 31 * user + index;
    match user {
        0 => vec![codes(rows, cols, seed, 1, GroupSize::Elements(64), true)],
        1 => vec![codes(rows, cols, seed, 2, GroupSize::Row, true)],
        2 => vec![codes(rows, cols, seed, 4, GroupSize::Elements(40), false)],
        3 => vec![low_rank(rows, cols, seed, 1, 2)],
        4 => vec![low_rank(rows, cols, seed, 5, 4)],
        5 => vec![low_rank(rows, cols, seed, 16, 8)],
        6 => vec![low_rank(rows, cols, seed, 3, 4), codes(rows, cols, seed, 1, GroupSize::Row, true)],
        7 => {
            let config = BitDeltaConfig { enable_compression: false, ..Default::default() };
            let delta: Vec<f32> = noise(rows * cols, seed).iter().map(|x| x * 0.1).collect();
            vec![quantize("w", &delta, rows, cols, &config).expect("f16 values")]
        }
        // Its ranks differ from matrix to matrix, and every third matrix is left alone.
        _ if index.is_multiple_of(3) => Vec::new(),
        _ => vec![low_rank(rows, cols, seed, 1 + index % 7, 4)],
    }
}

const USERS: usize = 9;

fn of_user(base: &Base, user: usize) -> Variant {
    // Every other one changes the embedding and the head as well.
    let tables = if user.is_multiple_of(2) { usize::MAX } else { 0 };
    let matrices = base.linears().iter().map(|linear| (linear.rows, linear.cols));
    let matrices = matrices.chain(base.tables().take(tables).map(|table| (table.rows, table.cols)));
    let deltas = matrices.enumerate().map(|(index, (rows, cols))| LinearDelta {
        rows,
        cols,
        parts: parts(user, index, rows, cols),
        relative_error: None,
    });
    let info = Info::new(base.fingerprint(), &base.name, BitDeltaConfig::default(), "model");
    let mut variant = Variant::new(info, deltas.collect());
    if user.is_multiple_of(3) {
        let norms = base.tensors().iter().enumerate().filter(|(_, tensor)| tensor.name.contains("norm"));
        let half = |x: f32| f16::from_f32(0.2 * x).to_bits();
        let extra = |(tensor, norm): (usize, &bitdelta_model::TensorRef)| Extra {
            tensor,
            values: noise(norm.rows * norm.cols, user).into_iter().map(half).collect(),
        };
        variant.extras = norms.map(extra).collect();
    }
    variant
}

fn answer(engine: &Engine, variant: Option<Arc<Resident>>, tokens: usize) -> Vec<u32> {
    engine.generate(PROMPT.to_vec(), variant, SAMPLING, tokens, Vec::new()).expect("an answer").1.tokens
}

#[test]
fn kinds_and_ranks_and_tables_mix_in_one_batch() {
    for dtype in [BaseDtype::Stored, BaseDtype::Int8] {
        let model = model_in(dtype);
        let mut users: Vec<Option<Arc<Resident>>> = (0..USERS).map(|user| Some(prepare(&model, user))).collect();
        users.push(None);
        let engine = Engine::start(model, EngineOptions::default()).expect("an engine");
        let alone: Vec<_> = users.iter().map(|variant| answer(&engine, variant.clone(), 40)).collect();
        for (user, found) in alone.iter().enumerate() {
            assert!(!alone[..user].contains(found), "user {user} of {dtype:?} and another have one answer: {found:?}");
        }
        let together: Vec<_> = thread::scope(|scope| {
            let asked: Vec<_> =
                users.iter().map(|variant| scope.spawn(|| answer(&engine, variant.clone(), 40))).collect();
            asked.into_iter().map(|thread| thread.join().expect("an answer")).collect()
        });
        assert_eq!(together, alone, "{dtype:?}");
    }
}

fn prepare(model: &Arc<Model>, user: usize) -> Arc<Resident> {
    let name = format!("user-{user}");
    model.prepare(&name, Path::new("in memory"), of_user(model.base(), user)).expect("a resident variant")
}

#[test]
fn a_small_rank_beside_a_large_one_takes_its_own_bytes_only() {
    let model = model();
    let (small, large) = (prepare(&model, 3), prepare(&model, 5));
    let packed = of_user(model.base(), 3).payload_bytes();
    // Norms are kept in f32, twice their bytes in the file.
    assert!(small.bytes() <= 2 * packed, "{} of {packed}", small.bytes());
    assert!(10 * small.bytes() < large.bytes(), "{} beside {}", small.bytes(), large.bytes());
}

#[test]
fn a_new_version_is_not_taken_up_inside_a_request() {
    let (dir, model) = (tempdir().unwrap(), model());
    let path = dir.path().join("ada.safetensors");
    variant(&model, 1).write(&path).unwrap();
    let registry = Arc::new(Registry::new(model.clone(), Some(dir.path().to_owned())));
    let engine = Engine::start(model.clone(), EngineOptions::default()).unwrap();
    let old = registry.resolve("ada").unwrap();
    let expected_old = answer(&engine, Some(old.clone()), 40);
    let mut newer = variant(&model, 2);
    newer.info.base_name.push_str(", of another length");
    let expected_new = answer(&engine, Some(model.prepare("ada", &path, newer.clone()).unwrap()), 40);
    assert!(expected_old != expected_new && expected_old.len() > 10);

    // The next version is published and loaded when the first text of the answer is there.
    let (sender, ended) = channel();
    let (hash, publishing) = (newer.content_hash().unwrap(), registry.clone());
    let mut texts = 0;
    let sink = Box::new(move |event| {
        match event {
            Event::Text(_) => texts += 1,
            Event::Done(finish) => drop(sender.send((texts, finish.tokens))),
            Event::Failed(error) => panic!("{error}"),
        }
        if texts == 1 {
            newer.write(&path).unwrap();
            assert_eq!(publishing.resolve("ada").unwrap().hash(), hash);
        }
        true
    });
    let (prompt, max_tokens, stop) = (PROMPT.to_vec(), 40, Vec::new());
    engine
        .submit(Request {
            tenant: "".into(),
            deadline: None,
            cancel: Cancel::default(),
            prompt,
            variant: Some(old),
            sampling: SAMPLING,
            max_tokens,
            stop,
            sink,
        })
        .unwrap();
    let (texts, tokens) = ended.recv().unwrap();
    assert!(texts > 5, "published inside the answer");
    assert_eq!(tokens, expected_old);
    assert_eq!(answer(&engine, Some(registry.resolve("ada").unwrap()), 40), expected_new);
}
