//! The schedule with a made-up model: the "cache" remembers which tokens a page's positions were computed over, and the
//! next token is a digest of all tokens so far. An answer is right exactly if every row read pages that hold its own
//! beginning.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A token's digest over all tokens up to it, and whose they are.
type Past = (u64, Arc<Scope>);

/// Tokens of prompt and answer at most: every job fits the smallest cache of the tests.
const MAX_TOKENS: usize = 5 * PAGE;

fn digest(past: u64, token: u32) -> u64 {
    (past ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23)
}

/// What the made-up model says after `tokens`.
fn next_token(past: u64) -> u32 {
    (past >> 40) as u32 % 50
}

fn alone(prompt: &[u32], answer: usize) -> Vec<u32> {
    let mut past = prompt.iter().fold(0, |past, token| digest(past, *token));
    let mut said = Vec::new();
    for _ in 0..answer {
        said.push(next_token(past));
        past = digest(past, said[said.len() - 1]);
    }
    said
}

/// One request and how it ended.
#[derive(Debug, Clone)]
struct Ask {
    tenant: usize,
    variant: usize,
    prompt: Vec<u32>,
    answer: usize,
    /// Step in which it comes.
    comes: usize,
    /// Step in which its client leaves.
    leaves: Option<usize>,
}

impl Ask {
    fn scope(&self) -> Scope {
        let variant = (self.variant > 0).then(|| format!("hash {}", self.variant));
        Scope { tenant: format!("tenant {}", self.tenant).into(), variant }
    }
}

/// A run of the schedule over requests.
struct Run {
    schedule: Schedule<usize>,
    asks: Vec<Ask>,
    /// What was computed at each position of each page.
    cache: Vec<Vec<Option<Past>>>,
    /// Answers of those that ended.
    ended: BTreeMap<usize, Vec<u32>>,
    left: Vec<usize>,
    step: usize,
    rows: usize,
}

impl Run {
    /// The requests are numbered as they come.
    fn new(mut asks: Vec<Ask>, places: usize, budget: usize, pages: usize, share: bool) -> Self {
        asks.sort_by_key(|ask| ask.comes);
        let schedule = Schedule::new(places, budget, Pages::new(pages, share));
        let cache = vec![vec![None; PAGE]; pages];
        Self { schedule, asks, cache, ended: BTreeMap::new(), left: Vec::new(), step: 0, rows: 0 }
    }

    /// Runs until all have ended or left.
    fn run_all(&mut self) {
        let longest = 1 + self.asks.iter().map(|ask| ask.comes).max().unwrap_or(0);
        let mut steps = 0;
        while self.step < longest || !self.schedule.is_idle() {
            self.step();
            steps += 1;
            assert!(steps < 20_000, "it does not end");
        }
        self.schedule.pages.check(std::iter::empty());
    }

    fn step(&mut self) {
        for (index, ask) in self.asks.iter().enumerate().filter(|(_, ask)| ask.comes == self.step) {
            self.schedule.push(Job::new(index as u64, ask.scope(), ask.prompt.clone(), index));
        }
        let leaves = |job: &Job<usize>| self.asks[job.own].leaves.is_some_and(|at| at <= self.step);
        self.left.extend(self.schedule.remove(leaves).into_iter().map(|job| job.own));
        self.schedule.admit(|_| {});
        self.check_places();
        let take = self.schedule.plan();
        self.check_plan(&take);
        let mut next = Vec::new();
        for (at, tokens) in take.iter().enumerate() {
            let past = (0..*tokens).fold(None, |_, row| Some(self.compute(at, row)));
            next.push(past);
        }
        self.rows += take.iter().sum::<usize>();
        self.schedule.advance(&take);
        for at in (0..take.len()).rev() {
            let job = &mut self.schedule.running[at];
            let Some(past) = next[at].filter(|_| job.computed == job.tokens.len()) else { continue };
            job.tokens.push(next_token(past));
            let ask = &self.asks[job.own];
            if job.tokens.len() == ask.prompt.len() + ask.answer {
                let job = self.schedule.stop(at);
                let said = job.tokens[ask.prompt.len()..].to_vec();
                assert!(self.ended.insert(job.own, said).is_none(), "{} ended twice", job.own);
            }
        }
        self.schedule.pages.check(self.schedule.running.iter().map(|job| &job.pages));
        self.step += 1;
    }

    /// Who has nothing running waits only while nobody has two places, or for want of pages.
    fn check_places(&self) {
        let Schedule { running, waiting, pages, .. } = &self.schedule;
        let Some((tenant, next)) = waiting.next() else { return };
        if pages.shares() || waiting.running(tenant) > 0 || running.iter().all(|job| waiting.running(job.tenant()) < 2)
        {
            return;
        }
        let mut first: BTreeMap<&Arc<str>, &Job<usize>> = BTreeMap::new();
        for job in running {
            let oldest = first.entry(job.tenant()).or_insert(job);
            *oldest = if job.number < oldest.number { job } else { oldest };
        }
        let needed: usize = first.into_values().chain([next]).map(|job| job.tokens.len().div_ceil(PAGE)).sum();
        assert!(needed > self.cache.len(), "{tenant} waits although {needed} pages would do");
    }

    /// What holds of every plan.
    fn check_plan(&self, take: &[usize]) {
        let running = &self.schedule.running;
        assert!(running.len() <= self.schedule.places);
        let prompts: Vec<_> = running.iter().zip(take).filter(|(job, _)| job.pending() > 1).collect();
        assert!(prompts.iter().map(|(_, tokens)| **tokens).sum::<usize>() <= self.schedule.budget);
        assert!(prompts.is_empty() || prompts.iter().any(|(_, tokens)| **tokens > 0), "no prompt goes on");
        for (job, tokens) in running.iter().zip(take) {
            assert!(job.pending() > 1 || *tokens == 1, "a sequence past its prompt runs in every step");
            assert!(job.pages.len() * PAGE >= job.computed + tokens, "a page for every row");
        }
    }

    /// Runs one row: it must find its own past in its pages, and write where nobody else reads.
    fn compute(&mut self, at: usize, row: usize) -> u64 {
        let job = &self.schedule.running[at];
        let position = job.computed + row;
        let mut past = 0;
        for before in 0..position {
            past = digest(past, job.tokens[before]);
            let found = &self.cache[job.pages[before / PAGE] as usize][before % PAGE];
            assert_eq!(found.as_ref(), Some(&(past, job.scope.clone())), "position {before} of request {}", job.own);
        }
        past = digest(past, job.tokens[position]);
        let page = job.pages[position / PAGE];
        assert!(self.schedule.pages.is_alone(page), "a shared page is written");
        self.cache[page as usize][position % PAGE] = Some((past, job.scope.clone()));
        past
    }
}

fn ask(tenant: usize, prompt: usize, answer: usize) -> Ask {
    Ask { tenant, variant: 0, prompt: (0..prompt as u32).collect(), answer, comes: 0, leaves: None }
}

prop_compose! {
    /// Prompts begin alike in some pages, so that much is shared, and differ after them.
    fn any_ask()(
        tenant in 0usize..4, variant in 0usize..2, alike in 0usize..3 * PAGE, own in 1usize..2 * PAGE - 20,
        seed in 0u32..3, answer in 1usize..20, comes in 0usize..60, leaves in proptest::option::weighted(0.3, 0usize..40),
    ) -> Ask {
        let prompt = (0..alike as u32).chain((0..own as u32).map(|i| (i * 7 + seed) % 40)).collect();
        Ask { tenant, variant, prompt, answer, comes, leaves: leaves.map(|after| comes + after) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_ends_once_with_the_answer_it_has_alone(
        asks in proptest::collection::vec(any_ask(), 1..30),
        places in 1usize..6, budget in 1usize..100, pages in 5usize..24, share in any::<bool>(),
    ) {
        let mut run = Run::new(asks, places, budget, pages, share);
        run.run_all();
        for (index, ask) in run.asks.iter().enumerate() {
            prop_assert!(ask.prompt.len() + ask.answer <= MAX_TOKENS);
            match run.ended.get(&index) {
                Some(said) => prop_assert_eq!(said, &alone(&ask.prompt, ask.answer)),
                None => prop_assert!(ask.leaves.is_some(), "request {} was lost", index),
            }
            let left = run.left.iter().filter(|left| **left == index).count();
            prop_assert_eq!(left + usize::from(run.ended.contains_key(&index)), 1, "it leaves or ends, once");
        }
    }

    #[test]
    fn tenants_who_queue_the_same_are_served_alike_however_much_each_queues(
        queued in proptest::collection::vec(150usize..400, 2..6), prompt in 1usize..40, answer in 1usize..30,
        places in 1usize..5, pages in 5usize..40,
    ) {
        let asks = queued.iter().enumerate().flat_map(|(tenant, count)| vec![ask(tenant, prompt, answer); *count]);
        // Fewer places than tenants: nobody has two, and nobody is ahead by more than what ran meanwhile: one request
        // whose turn it was, one begun before, and one that gave way for want of pages and ran again.
        let (tenants, bound) = (queued.len(), 3 * (prompt + answer) as u64);
        let mut run = Run::new(asks.collect(), places.min(tenants - 1), 64, pages, false);
        for _ in 0..150 {
            run.step();
            prop_assert!(run.schedule.running.iter().all(|job| run.schedule.waiting.running(job.tenant()) == 1));
            let served = (0..tenants).map(|t| run.schedule.waiting.served(&format!("tenant {t}")) >> 16);
            let served: Vec<u64> = served.collect();
            let ahead = served.iter().max().zip(served.iter().min()).map_or(0, |(most, least)| most - least);
            prop_assert!(ahead <= bound, "{:?}, bound {}", served, bound);
        }
    }
}

#[test]
fn one_request_beside_a_thousand_of_another_runs_in_the_next_step() {
    let mut asks = vec![ask(0, 20, 60); 1000];
    asks.push(Ask { comes: 30, ..ask(1, 20, 5) });
    let mut run = Run::new(asks, 4, 64, 40, true);
    for _ in 0..31 {
        run.step();
    }
    let rare = |run: &Run| run.schedule.running.iter().any(|job| job.own == 1000);
    assert!(rare(&run), "a place was made");
    assert_eq!(run.schedule.preemptions, 1);
    for _ in 0..6 {
        run.step();
    }
    assert!(run.ended.contains_key(&1000), "it is answered as if it were alone");
}

#[test]
fn a_tenant_short_of_pages_gets_them_from_the_one_that_runs_most() {
    // Three long answers hold all eight pages; the short request needs one.
    let mut asks = vec![ask(0, 2 * PAGE, 2 * PAGE); 3];
    asks.push(Ask { comes: 20, ..ask(1, 20, 5) });
    let mut run = Run::new(asks.clone(), 8, 200, 8, false);
    for _ in 0..27 {
        run.step();
    }
    assert!(run.ended.contains_key(&3));
    run.run_all();
    assert!((0..3).all(|index| run.ended[&index] == alone(&asks[index].prompt, 2 * PAGE)));
}

#[test]
fn a_long_prompt_does_not_hold_up_short_ones_of_others_nor_of_its_own_tenant() {
    for tenant in [1, 0] {
        let mut run = Run::new(vec![ask(0, 100 * PAGE, 1), ask(tenant, 100, 1)], 4, 2 * PAGE, 120, true);
        run.asks[1].prompt.reverse();
        for _ in 0..4 {
            run.step();
        }
        assert!(run.ended.contains_key(&1), "tenant {tenant}");
        run.run_all();
    }
}

#[test]
fn answers_to_one_prompt_compute_it_once() {
    let mut run = Run::new(vec![ask(0, 4 * PAGE + 1, 3); 8], 8, 64, 40, true);
    run.run_all();
    // Eight times the last token of the prompt and two of three tokens of the answer, which are in no full page.
    assert_eq!(run.rows, 4 * PAGE + 8 * 3);
    assert_eq!(run.schedule.reused, 7 * 4 * PAGE as u64);
}

#[test]
fn a_second_question_finds_the_first_ones_pages_and_only_in_its_scope() {
    let first = ask(0, 3 * PAGE + 5, 3);
    let later = |tenant, variant| Ask { comes: 50, tenant, variant, ..first.clone() };
    for (second, found) in [(later(0, 0), 3 * PAGE as u64), (later(1, 0), 0), (later(0, 1), 0), (later(1, 1), 0)] {
        let mut run = Run::new(vec![first.clone(), second.clone()], 2, 64, 20, true);
        run.run_all();
        assert_eq!(run.schedule.reused, found, "{second:?}");
    }
}

#[test]
fn kept_pages_give_way_to_new_ones() {
    let asks = (0..20).map(|index| Ask { comes: 10 * index, ..ask(index, 3 * PAGE, 3) }).collect();
    let mut run = Run::new(asks, 2, 200, 5, true);
    run.run_all();
    assert_eq!((run.ended.len(), run.schedule.preemptions), (20, 0));
}

#[test]
fn the_budget_goes_round() {
    assert_eq!(go_round(&[1000, 10, 1000], 256), [128, 10, 118]);
    assert_eq!(go_round(&[1000; 6], 256), [64, 64, 64, 64, 0, 0]);
    assert_eq!(go_round(&[1000], 256), [256]);
    assert_eq!(go_round(&[5, 5], 256), [5, 5]);
    assert_eq!(go_round(&[100, 100], 7), [7, 0]);
}
