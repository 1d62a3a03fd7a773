//! Lessons that are left and taken up again, and those that end where they gain no more.

#![allow(clippy::unwrap_used)]

use bitdelta_delta::{BitDeltaConfig, Info};
use bitdelta_model::{
    Base,
    chat::{Message, Template},
};
use bitdelta_train::{
    Error,
    batch::Example,
    budget::{self, LESSON, Options, SCALE_RATE, Schedule, Teacher, Watch, compress_to, distil_scales},
    compress::compress_pair,
    data::Conversation,
    progress::Progress,
};
use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

fn pair() -> (Base, Base) {
    let golden = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    let open = |name: &str| Base::open(golden(name).to_str().unwrap()).unwrap();
    (open("tiny-llama"), open("tiny-llama-ft"))
}

fn examples(base: &Base, numbers: std::ops::Range<usize>) -> Vec<Example> {
    let turn = |role: &str, content: String| Message { role: role.into(), content };
    let talk = |i: usize| Conversation {
        messages: vec![turn("user", format!("question {i}?")), turn("assistant", format!("answer {} it is", i % 4))],
    };
    budget::examples(base, &Template::ChatMl, &numbers.map(talk).collect::<Vec<_>>()).unwrap()
}

/// Raises its flag after so many steps of a lesson, never after none, and writes down what it is told.
#[derive(Default)]
struct Follower {
    steps: u64,
    done: AtomicU64,
    learning: AtomicBool,
    stop: AtomicBool,
    said: Mutex<Vec<String>>,
}

impl Follower {
    fn stopping_after(steps: u64) -> Self {
        Self { steps, ..Self::default() }
    }

    fn said(&self, what: &str) -> bool {
        self.said.lock().unwrap().iter().any(|line| line.contains(what))
    }
}

impl Progress for Follower {
    fn begin(&self, phase: &str, _: u64, _: &str) {
        self.learning.store(phase == LESSON, Ordering::Relaxed);
    }

    fn advance(&self, n: u64, _: &str) {
        if self.learning.load(Ordering::Relaxed) {
            let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
            self.stop.store(done > 0 && done == self.steps, Ordering::Relaxed);
        }
    }

    fn end(&self) {}

    fn say(&self, line: &str) {
        self.said.lock().unwrap().push(line.to_owned());
    }
}

/// Learns something into a file's bytes.
type Learn<'a> = &'a dyn Fn(Watch<'_>) -> Result<Vec<u8>, Error>;

/// A lesson that is left after each of these steps and taken up again ends as one that nobody interrupts.
fn goes_on(learn: Learn<'_>, stops: &[u64]) {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Some(folder.path());
    let unbroken = Follower::default();
    let want = learn(Watch::new(&unbroken, &unbroken.stop)).unwrap();
    for steps in stops {
        let follower = Follower::stopping_after(*steps);
        match learn(Watch { checkpoint, ..Watch::new(&follower, &follower.stop) }) {
            Err(Error::Interrupted { step, checkpoint }) => {
                assert!(step as u64 == *steps && checkpoint.starts_with(folder.path()), "{step}: {checkpoint:?}");
            }
            other => panic!("{:?}", other.map(|bytes| bytes.len())),
        }
    }
    let last = Follower::default();
    let found = learn(Watch { checkpoint, ..Watch::new(&last, &last.stop) }).unwrap();
    assert!(last.said(&format!("continuing after step {}", stops.last().unwrap())));
    assert!(found == want, "other bytes than without a break");
}

#[test]
fn what_is_left_goes_on_to_the_same_bytes() {
    let (base, tuned) = pair();
    let examples = examples(&base, 0..24);
    let schedule = Schedule { epochs: 4.0, batch: 8, rate: 0.2, seed: 1 };
    let options = Options { schedule, ..Options::new(4_000) };
    let info = || Info::new(base.fingerprint(), &base.name, BitDeltaConfig::default(), "");
    let factors =
        |watch: Watch| compress_to(&base, &tuned, &examples, &options, info(), watch)?.to_bytes().map_err(Error::from);
    goes_on(&factors, &[2, 7]);

    let scales = |watch: Watch| {
        let (mut variant, _) = compress_pair(&base, &tuned, &BitDeltaConfig::default(), watch.progress)?;
        let teacher = Teacher::new(&tuned, &base, &examples, watch.progress)?;
        distil_scales(&base, &teacher, &mut variant, &examples, Schedule { rate: SCALE_RATE, ..schedule }, watch)?;
        variant.to_bytes().map_err(Error::from)
    };
    goes_on(&scales, &[5]);
}

#[test]
fn a_checkpoint_that_is_damaged_or_of_another_lesson_starts_it_anew() {
    let (base, tuned) = pair();
    let folder = tempfile::tempdir().unwrap();
    let learn = |numbers, follower: &Follower| {
        let info = Info::new(base.fingerprint(), &base.name, BitDeltaConfig::default(), "");
        let watch = Watch { checkpoint: Some(folder.path()), ..Watch::new(follower, &follower.stop) };
        compress_to(&base, &tuned, &examples(&base, numbers), &Options::new(4_000), info, watch)
    };
    let left = || match learn(0..24, &Follower::stopping_after(3)) {
        Err(Error::Interrupted { step: 3, checkpoint }) => checkpoint,
        other => panic!("{other:?}"),
    };
    left();
    let other = Follower::default();
    let unbroken = learn(8..24, &other).unwrap();
    assert!(other.said("of another lesson"));
    std::fs::remove_dir_all(folder.path()).unwrap();
    assert!(unbroken == learn(8..24, &Follower::default()).unwrap());

    std::fs::remove_dir_all(folder.path()).unwrap();
    let unbroken = learn(0..24, &Follower::default()).unwrap();
    std::fs::remove_dir_all(folder.path()).unwrap();
    let tensors = left().join("tensors.safetensors");
    let whole = std::fs::read(&tensors).unwrap();
    std::fs::write(&tensors, &whole[..whole.len() / 2]).unwrap();
    let again = Follower::default();
    assert!(unbroken == learn(0..24, &again).unwrap() && again.said("is damaged"));
}

#[test]
fn what_came_nearest_on_the_watched_is_kept_and_no_gain_ends_it() {
    let (base, tuned) = pair();
    let (examples, watched) = (examples(&base, 0..24), examples(&base, 24..32));
    let all = [&examples[..], &watched].concat();
    let teacher = Teacher::new(&tuned, &base, &all, &Follower::default()).unwrap();
    let of_watched = Teacher::new(&tuned, &base, &watched, &Follower::default()).unwrap();
    // So fast that it goes astray now and then.
    let schedule = Schedule { epochs: 12.0, batch: 2, rate: 0.2, seed: 1 };
    let follower = Follower::default();
    let (mut variant, _) = compress_pair(&base, &tuned, &BitDeltaConfig::default(), &follower).unwrap();
    let watch = Watch { watched: &watched, patience: 3, ..Watch::new(&follower, &follower.stop) };
    distil_scales(&base, &teacher, &mut variant, &examples, schedule, watch).unwrap();
    assert!(follower.said("stopping early") && follower.done.load(Ordering::Relaxed) < 12 * 12);
    let said = follower.said.lock().unwrap();
    let looks: Vec<f64> =
        said.iter().filter_map(|line| line.strip_prefix("KL on what is watched: ")?.parse().ok()).collect();
    let (least, last) = (looks.iter().copied().fold(f64::INFINITY, f64::min), looks[looks.len() - 1]);
    assert!(least < last, "{looks:?}");
    // Scales are rounded to f16 in the file.
    let kept = of_watched.divergence_of(&base, &variant, &watched).unwrap();
    assert!((kept - least).abs() < 1e-3, "{kept} of {looks:?}");
}
