//! Many tenants on one engine: nobody starves, who leaves is let go, and deadlines hold.
//!
//! No test waits for a time: the engine's thread is held in a request's sink while the others are lined up.

mod common;

use bitdelta_engine::{Engine, EngineOptions, Error, Event, FinishReason, Request};
use common::{endless_model, finish, hot, request, variant};
use std::{
    path::Path,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

const PROMPT: [u32; 6] = [5, 9, 17, 33, 21, 12];

fn engine(options: EngineOptions) -> Engine {
    Engine::start(endless_model(), options).expect("an engine")
}

/// Submits a request that holds the engine's thread in its first event. Returns where it says that it got there, and
/// what lets it go when it is used or dropped.
fn holding(engine: &Engine, tenant: &str, max_tokens: usize) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (go, held) = mpsc::channel::<()>();
    let (here, arrived) = mpsc::channel();
    let mut first = true;
    let sink = Box::new(move |_: Event| {
        if std::mem::take(&mut first) {
            let _ = here.send(());
            let _ = held.recv();
        }
        true
    });
    let (asked, _) = request(&PROMPT, 0, max_tokens);
    engine.submit(Request { tenant: tenant.into(), sink, ..asked }).expect("taken");
    (arrived, go)
}

/// Holds the engine's thread until the returned sender is used or dropped.
fn hold(engine: &Engine, max_tokens: usize) -> mpsc::Sender<()> {
    let (arrived, go) = holding(engine, "holder", max_tokens);
    arrived.recv().expect("it runs");
    go
}

/// Submits a request that notes its name in `log` when it ends.
fn logged(engine: &Engine, log: &Arc<Mutex<Vec<String>>>, tenant: &str, prompt: &[u32], max_tokens: usize) {
    let (name, log) = (tenant.to_owned(), log.clone());
    let sink = Box::new(move |event| {
        if matches!(event, Event::Done(_)) {
            log.lock().expect("the log").push(name.clone());
        }
        true
    });
    let (asked, _) = request(prompt, 1, max_tokens);
    engine.submit(Request { tenant: tenant.into(), sink, ..asked }).expect("taken");
}

#[test]
fn one_request_beside_hundreds_of_a_hot_user_is_answered_before_them() {
    let engine = engine(EngineOptions { max_batch: 3, ..Default::default() });
    let log = Arc::default();
    let go = hold(&engine, 2);
    for _ in 0..300 {
        logged(&engine, &log, "hot", &PROMPT, 30);
    }
    logged(&engine, &log, "rare", &PROMPT, 5);
    drop(go);
    engine.drain();
    let log = log.lock().expect("the log");
    assert_eq!((log.len(), log[0].as_str()), (301, "rare"), "the others take 30 tokens each");
}

#[test]
fn more_distinct_variants_than_places_is_a_queue_and_never_an_error() {
    let model = endless_model();
    let options = EngineOptions { max_batch: 5, ..Default::default() };
    let engine = Engine::start(model.clone(), options).expect("an engine");
    let asks: Vec<_> = (0..30)
        .map(|seed| {
            let name = seed.to_string();
            let own = model.prepare(&name, Path::new("in memory"), variant(&model, seed)).expect("a variant");
            let (asked, events) = request(&PROMPT, 7, 12);
            engine.submit(Request { tenant: name.into(), variant: Some(own.clone()), ..asked }).expect("taken");
            (own, events)
        })
        .collect();
    let together: Vec<_> = asks.into_iter().map(|(own, events)| (own, finish(events).tokens)).collect();
    for (own, tokens) in together {
        let alone = engine.generate(PROMPT.to_vec(), Some(own), hot(7), 12, vec![]).expect("an answer");
        assert_eq!(tokens, alone.1.tokens);
    }
}

#[test]
fn a_newcomer_takes_a_place_of_the_one_who_has_several() {
    let engine = engine(EngineOptions { max_batch: 2, ..Default::default() });
    let log = Arc::default();
    let go = hold(&engine, 1);
    logged(&engine, &log, "hot", &PROMPT, 400);
    let (both_run, go_on) = holding(&engine, "hot", 400);
    drop(go);
    both_run.recv().expect("it runs");
    logged(&engine, &log, "rare", &PROMPT, 5);
    drop(go_on);
    engine.drain();
    assert_eq!(*log.lock().expect("the log"), ["rare", "hot"]);
    assert_eq!(engine.stats().preemptions, 1);
}

#[test]
fn a_long_prompt_does_not_hold_up_short_ones() {
    let engine = engine(EngineOptions { prefill_chunk: 32, ..Default::default() });
    let long: Vec<u32> = (0..400).map(|i| 3 + i % 280).collect();
    let log = Arc::default();
    let go = hold(&engine, 2);
    logged(&engine, &log, "long", &long, 1);
    for tenant in ["a", "b", "long"] {
        logged(&engine, &log, tenant, &PROMPT, 1);
    }
    drop(go);
    engine.drain();
    let log = log.lock().expect("the log");
    assert_eq!(log[3], "long", "400 tokens at 32 a step");
    let mut short = log[..3].to_vec();
    short.sort();
    assert_eq!(short, ["a", "b", "long"]);
}

#[test]
fn a_hot_user_cannot_fill_the_queue_for_others() {
    let engine = engine(EngineOptions { max_batch: 1, max_queue: 8, ..Default::default() });
    let go = hold(&engine, 2);
    let submit = |tenant: &str| {
        let (asked, events) = request(&PROMPT, 0, 1);
        engine.submit(Request { tenant: tenant.into(), ..asked }).map(|()| events)
    };
    let mut taken = Vec::new();
    for (tenant, room) in [("hot", 4), ("warm", 2), ("rare", 1)] {
        for _ in 0..room {
            taken.push(submit(tenant).expect("room"));
        }
        assert!(matches!(submit(tenant), Err(Error::Busy { waiting, .. }) if waiting == taken.len()));
    }
    drop(go);
    taken.into_iter().for_each(|events| drop(finish(events)));
}

#[test]
fn who_leaves_while_waiting_or_with_half_a_prompt_is_let_go_at_once() {
    let engine = engine(EngineOptions { max_batch: 3, prefill_chunk: 32, ..Default::default() });
    let long: Vec<u32> = (0..400).map(|i| 3 + i % 280).collect();
    let go = hold(&engine, 40);
    let (half, half_events) = request(&long, 0, 10);
    let (waits, waits_events) = request(&long, 0, 10);
    let (stays, stays_events) = request(&PROMPT, 0, 10);
    let cancels = [half.cancel.clone(), waits.cancel.clone()];
    let (arrived, go_on) = holding(&engine, "marker", 1);
    engine.submit(Request { tenant: "half".into(), ..half }).expect("taken");
    engine.submit(Request { tenant: "waits".into(), ..waits }).expect("taken");
    engine.submit(Request { tenant: "stays".into(), ..stays }).expect("taken");
    drop(go);
    arrived.recv().expect("the marker ran");
    cancels.iter().for_each(bitdelta_engine::Cancel::cancel);
    drop(go_on);
    assert_eq!(finish(stays_events).completion_tokens, 10);
    engine.drain();
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.cancelled), (0, 0, 2));
    // One step's budget of a long prompt at most, and three short ones.
    assert!((15..=32 + 18).contains(&stats.prompt_tokens), "the long prompts ran on for nobody: {stats:?}");
    for events in [half_events, waits_events] {
        assert!(events.iter().next().is_none(), "nobody hears of it");
    }
}

#[test]
fn a_deadline_fails_what_has_not_begun_and_cuts_what_has() {
    let engine = engine(EngineOptions { max_batch: 1, ..Default::default() });
    let go = hold(&engine, 2);
    let (late, late_events) = request(&PROMPT, 0, 10);
    engine.submit(Request { deadline: Some(Instant::now()), ..late }).expect("taken");
    drop(go);
    let last = late_events.iter().last();
    assert!(matches!(last, Some(Event::Failed(Error::Deadline { begun: false }))), "{last:?}");

    // This one has said a word when its time is over.
    let deadline = Instant::now() + Duration::from_millis(30);
    let (sender, events) = mpsc::channel();
    let sink = Box::new(move |event| {
        while Instant::now() < deadline {
            std::thread::yield_now();
        }
        sender.send(event).is_ok()
    });
    let (cut, _) = request(&PROMPT, 0, 400);
    engine.submit(Request { deadline: Some(deadline), sink, ..cut }).expect("taken");
    match events.iter().last() {
        Some(Event::Done(end)) => {
            assert_eq!(end.reason, FinishReason::Deadline);
            assert!((1..400).contains(&end.completion_tokens), "{}", end.completion_tokens);
        }
        // A machine so slow that the prompt alone took longer.
        Some(Event::Failed(Error::Deadline { begun: true })) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(engine.stats().expired, 2);
}

#[test]
fn a_request_that_waits_longer_than_it_may_fails() {
    let engine = engine(EngineOptions { max_batch: 1, max_wait: Some(Duration::ZERO), ..Default::default() });
    let (asked, events) = request(&PROMPT, 0, 10);
    engine.submit(asked).expect("taken");
    assert!(matches!(events.recv(), Ok(Event::Failed(Error::Deadline { begun: false }))));
    engine.drain();
    assert_eq!(engine.stats().waiting, 0);
}
