//! The scheduler under pressure: too little memory, too many requests, clients that leave, an end.

mod common;

use bitdelta_engine::{BaseDtype, Engine, EngineOptions, Error, Event, FinishReason, MAX_STOP_BYTES, Model, Sampling};
use common::{finish, hot, model, model_in, page_bytes, request, variant};
use std::{
    path::Path,
    sync::{Arc, mpsc},
};

const PROMPT: [u32; 6] = [5, 9, 17, 33, 21, 12];

fn tokens(events: mpsc::Receiver<Event>) -> Vec<u32> {
    finish(events).tokens
}

#[test]
fn preempted_requests_give_the_answers_they_give_alone() {
    let model = model();
    // Four pages for six requests that grow to three pages each.
    let options = EngineOptions { kv_bytes: 4 * page_bytes(&model), max_context: 96, ..Default::default() };
    let engine = Engine::start(model.clone(), options).unwrap();
    let alone: Vec<_> =
        (0..6).map(|seed| engine.generate(PROMPT.to_vec(), None, hot(seed), 80, vec![]).unwrap().1.tokens).collect();
    assert!(alone.iter().filter(|tokens| tokens.len() > 60).count() > 2, "too short to run out of pages: {alone:?}");
    let before = engine.stats().preemptions;
    let running: Vec<_> = (0..6)
        .map(|seed| {
            let (request, events) = request(&PROMPT, seed, 80);
            engine.submit(request).unwrap();
            events
        })
        .collect();
    assert_eq!(running.into_iter().map(tokens).collect::<Vec<_>>(), alone);
    assert!(engine.stats().preemptions > before, "nothing was preempted");
    engine.drain();
    assert_eq!((engine.stats().running, engine.stats().waiting), (0, 0));
}

#[test]
fn a_full_queue_refuses_and_keeps_what_it_has() {
    let options = EngineOptions { max_batch: 1, max_queue: 4, ..Default::default() };
    let engine = Engine::start(model(), options).unwrap();
    let mut accepted = Vec::new();
    let mut refused = 0;
    for seed in 0..200 {
        let (request, events) = request(&PROMPT, seed, 30);
        match engine.submit(request) {
            Ok(()) => accepted.push(events),
            Err(Error::Busy { waiting, retry_seconds }) => {
                assert_eq!(waiting, 2, "one tenant has half of the queue");
                assert!(retry_seconds >= 1);
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 0 && accepted.len() >= 2, "{refused} refused, {} accepted", accepted.len());
    accepted.into_iter().for_each(|events| drop(tokens(events)));
}

#[test]
fn a_client_that_leaves_makes_room_for_others() {
    let engine = Engine::start(model(), EngineOptions { max_batch: 1, ..Default::default() }).unwrap();
    let (leaving, events) = request(&PROMPT, 1, usize::MAX);
    engine.submit(leaving).unwrap();
    assert!(matches!(events.recv(), Ok(Event::Text(_))));
    drop(events);
    let (staying, events) = request(&PROMPT, 2, 5);
    engine.submit(staying).unwrap();
    assert!(tokens(events).len() <= 5);
    assert!(engine.stats().generated_tokens < 2000, "the one who left went on: {:?}", engine.stats());
}

#[test]
fn an_answer_ends_at_the_limit_or_at_the_end_of_the_context() {
    let engine = Engine::start(model(), EngineOptions { max_context: 20, ..Default::default() }).unwrap();
    // Greedy tiny-llama repeats itself and never ends by itself.
    let ends = |max| engine.generate(PROMPT.to_vec(), None, Sampling::GREEDY, max, vec![]).unwrap().1;
    assert_eq!((ends(4).completion_tokens, ends(4).reason), (4, FinishReason::Length));
    assert_eq!((ends(500).completion_tokens, ends(500).reason), (20 - PROMPT.len(), FinishReason::Length));
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    let engine = Engine::start(model(), EngineOptions::default()).unwrap();
    let generate = |stop| engine.generate(PROMPT.to_vec(), None, hot(3), 60, stop).unwrap();
    let (whole, _) = generate(vec![]);
    let middle: String = whole.chars().skip(10).take(3).collect();
    let (cut, finish) = generate(vec![middle.clone()]);
    assert_eq!(finish.reason, FinishReason::Stop);
    assert_eq!(Some(cut.as_str()), whole.split(&middle).next());
}

#[test]
fn what_cannot_be_answered_is_refused_with_its_reason() {
    let engine = Engine::start(model(), EngineOptions { max_context: 16, ..Default::default() }).unwrap();
    let submit = |prompt: &[u32], max_tokens| engine.submit(request(prompt, 0, max_tokens).0).unwrap_err();
    assert!(matches!(submit(&[], 1), Error::EmptyPrompt));
    assert!(matches!(submit(&[1; 16], 1), Error::PromptTooLong { tokens: 16, limit: 15 }));
    assert!(matches!(submit(&[1, 1_000_000], 1), Error::UnknownToken { token: 1_000_000, .. }));
    assert!(matches!(submit(&[1], 0), Error::InvalidParameter { name: "max_tokens", .. }));
    for stop in [vec!["x".to_owned(); 17], vec!["x".repeat(MAX_STOP_BYTES + 1)]] {
        let refused = engine.generate(vec![1], None, Sampling::GREEDY, 1, stop);
        assert!(matches!(refused, Err(Error::InvalidParameter { name: "stop", .. })));
    }
}

#[test]
fn limits_that_no_step_could_have_are_refused() {
    let model = model();
    let start = |options| Engine::start(model.clone(), options).err();
    for max_batch in [0, 1 << 20, usize::MAX] {
        let refused = start(EngineOptions { max_batch, ..Default::default() });
        assert!(matches!(refused, Some(Error::InvalidParameter { name: "max_batch", .. })), "{refused:?}");
    }
    let refused = start(EngineOptions { prefill_chunk: usize::MAX, ..Default::default() });
    assert!(matches!(refused, Some(Error::InvalidParameter { name: "prefill_chunk", .. })), "{refused:?}");
}

#[test]
fn draining_finishes_what_runs_and_takes_nothing_new() {
    let engine = Engine::start(model(), EngineOptions::default()).unwrap();
    let (running, events) = request(&PROMPT, 4, 50);
    engine.submit(running).unwrap();
    engine.drain();
    assert!(!tokens(events).is_empty());
    assert!(matches!(engine.submit(request(&PROMPT, 5, 5).0), Err(Error::Stopped)));
}

#[test]
fn users_in_one_batch_do_not_see_each_others_deltas() {
    for dtype in [BaseDtype::Stored, BaseDtype::Bf16, BaseDtype::Int8] {
        each_user_alone_and_in_one_batch(&model_in(dtype));
    }
}

fn each_user_alone_and_in_one_batch(model: &Arc<Model>) {
    let variants: Vec<_> = (0..4)
        .map(|seed| model.prepare(&seed.to_string(), Path::new("in memory"), variant(model, seed)).expect("a variant"))
        .collect();
    let engine = Engine::start(model.clone(), EngineOptions::default()).expect("an engine");
    let asked = |user: usize| (PROMPT.to_vec(), variants.get(user).cloned(), hot(9), 40, Vec::new());
    let run = |(prompt, variant, sampling, max, stop)| {
        engine.generate(prompt, variant, sampling, max, stop).expect("an answer").0
    };
    let alone: Vec<_> = (0..5).map(|user| run(asked(user))).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..5).map(|user| scope.spawn(move || run(asked(user)))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
    });
    assert_eq!(together, alone);
    for (user, answer) in alone.iter().enumerate() {
        assert!(!alone[..user].contains(answer), "users {user} and another have one answer: {answer}");
    }
}

#[test]
fn an_int8_base_stays_near_the_exact_one() {
    let (exact, rounded) = (model(), model_in(BaseDtype::Int8));
    assert!(rounded.bytes() * 3 < exact.bytes(), "{} of {} bytes", rounded.bytes(), exact.bytes());
    let logits = |model: &Arc<Model>| {
        let own = model.prepare("user", Path::new("in memory"), variant(model, 3)).expect("a resident variant");
        let mut out = Vec::new();
        model
            .logits(&PROMPT, 0..PROMPT.len(), Some(&own), &mut |_, logits| out.extend_from_slice(logits))
            .expect("logits");
        out
    };
    let (exact, rounded) = (logits(&exact), logits(&rounded));
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let error = square(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b)) / square(&mut exact.iter().copied());
    // Rounding to 1 in 127 on both sides of every product of a few layers.
    assert!(error.sqrt() < 0.03, "relative error {}", error.sqrt());
    assert!(error > 0.0, "nothing was rounded");
}
