//! What runs in a step: places, pages and the prompt budget, without a model.
//!
//! ```text
//! push ─▶ waiting, by tenant ── admit ─▶ running ── plan ─▶ tokens of each in this step ── advance ─▶ … ── remove
//!              ▲                            │
//!              └──── gives way (pages) ─────┘
//! ```
//!
//! **Places.** The next place is the turn of a tenant (see [`crate::fair`]). A tenant with nothing running need not wait
//! for another's answers to end: the tenant that runs most gives one place back while it has two or more.
//!
//! **Pages** are taken as a sequence grows. When none is left, the youngest sequence of the tenant that runs most gives
//! its pages back and is run again later; what it computed stays in the cache until the pages are needed. The oldest
//! running sequence never gives way to growth, so there is always one that ends.
//!
//! **The prompt budget** of a step goes round the tenants with prompts to run, least served first, a quantum at a time.
//! Of what a tenant gets, half is for its oldest prompt and the rest for the shortest ones: short questions overtake a
//! long document, which still goes on in every round. Every sequence past its prompt runs its one token in every step.
//! A prompt waits while another of its [`Scope`] computes the page that both need next.

use crate::{
    backend::PAGE,
    fair::Fair,
    pages::{Pages, Scope},
};
use std::{collections::HashMap, sync::Arc};

/// A request that runs or waits. `tokens[..computed]` are in the KV cache; the rest is to be run, be it the prompt, the
/// last token or, after giving way, everything again.
#[derive(Debug)]
pub(crate) struct Job<T> {
    /// Order of arrival.
    pub number: u64,
    pub scope: Arc<Scope>,
    pub tokens: Vec<u32>,
    pub computed: usize,
    pub pages: Vec<u32>,
    /// How many of `pages` are full and known to the pool.
    known: usize,
    /// What the schedule does not need to know.
    pub own: T,
}

impl<T> Job<T> {
    pub fn new(number: u64, scope: Scope, tokens: Vec<u32>, own: T) -> Self {
        let scope = Arc::new(scope);
        Self { number, scope, tokens, computed: 0, pages: Vec::new(), known: 0, own }
    }

    pub fn tenant(&self) -> &Arc<str> {
        &self.scope.tenant
    }

    fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Pages that it still needs for `tokens` tokens in all.
    fn missing(&self, tokens: usize) -> usize {
        tokens.div_ceil(PAGE).saturating_sub(self.pages.len())
    }

    /// Its next page's tokens, where that page could come from the cache: it begins here, is full, and leaves at least
    /// one token to run, since the last one's logits are needed.
    fn next_page(&self) -> Option<&[u32]> {
        let end = self.computed + PAGE;
        let wanted = self.computed == self.pages.len() * PAGE && end < self.tokens.len();
        wanted.then(|| &self.tokens[self.computed..end])
    }

    /// Whether `self` would compute the same page that `ahead` is about to.
    fn follows(&self, ahead: &Self) -> bool {
        let end = self.computed + PAGE;
        self.scope == ahead.scope
            && self.computed <= ahead.computed
            && self.next_page().is_some()
            && ahead.tokens.get(..end).is_some_and(|tokens| *tokens == self.tokens[..end])
    }
}

/// The jobs and the pages.
#[derive(Debug)]
pub(crate) struct Schedule<T> {
    /// Most running jobs.
    places: usize,
    /// Most prompt tokens in a step.
    budget: usize,
    pub pages: Pages,
    waiting: Fair<Job<T>>,
    pub running: Vec<Job<T>>,
    /// Times a job gave way.
    pub preemptions: u64,
    /// Tokens found in the cache instead of run.
    pub reused: u64,
}

impl<T> Schedule<T> {
    pub fn new(places: usize, budget: usize, pages: Pages) -> Self {
        let (waiting, running) = (Fair::new(), Vec::new());
        Self { places, budget, pages, waiting, running, preemptions: 0, reused: 0 }
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub fn push(&mut self, job: Job<T>) {
        let tenant = job.tenant().clone();
        self.waiting.push(&tenant, job.number, job);
    }

    /// The jobs that wait.
    pub fn waiting(&self) -> impl Iterator<Item = &Job<T>> {
        self.waiting.iter()
    }

    /// Takes out every job, waiting or running, of which `leaves` is true, and frees its pages.
    pub fn remove(&mut self, mut leaves: impl FnMut(&Job<T>) -> bool) -> Vec<Job<T>> {
        let mut gone = self.waiting.remove(&mut leaves);
        while let Some(at) = self.running.iter().position(&mut leaves) {
            gone.push(self.stop(at));
        }
        gone
    }

    /// Lets waiting jobs in while there is a place, and pages for all they hold so far. Calls `begins` for each; what of it
    /// was found in the cache counts as computed.
    pub fn admit(&mut self, mut begins: impl FnMut(&mut Job<T>)) {
        let mut promised: usize = self.running.iter().map(|job| job.missing(job.tokens.len())).sum();
        while let Some((tenant, _)) = self.waiting.next() {
            let tenant = tenant.clone();
            let Some(mut job) = self.waiting.pop(&tenant) else { return };
            self.find_pages(&mut job);
            let needed = promised + job.missing(job.tokens.len());
            let fits = self.running.len() < self.places && needed <= self.pages.available();
            if !fits && !self.running.is_empty() {
                self.pages.release_all(&mut job.pages);
                (job.computed, job.known) = (0, 0);
                let (number, pages) = (job.number, job.missing(job.tokens.len()));
                self.waiting.push_again(&tenant, number, job);
                if self.waiting.running(&tenant) > 0 || !self.others_make_room(pages) {
                    return;
                }
                promised = self.running.iter().map(|job| job.missing(job.tokens.len())).sum();
                continue;
            }
            promised = needed;
            self.reused += job.computed as u64;
            begins(&mut job);
            self.waiting.started(&tenant);
            self.running.push(job);
        }
    }

    /// Takes one place from the tenant that runs most, if giving back all places beyond everybody's first would leave
    /// `needed` pages.
    fn others_make_room(&mut self, needed: usize) -> bool {
        let mut oldest: HashMap<&Arc<str>, u64> = HashMap::new();
        for job in &self.running {
            let number = oldest.entry(job.tenant()).or_insert(job.number);
            *number = job.number.min(*number);
        }
        let (first, more): (Vec<_>, Vec<_>) = self.running.iter().partition(|job| oldest[job.tenant()] == job.number);
        let alone = |job: &&Job<T>| job.pages.iter().filter(|page| self.pages.is_alone(**page)).count();
        let room = self.pages.available() + more.iter().map(alone).sum::<usize>();
        let promised: usize = first.iter().map(|job| job.missing(job.tokens.len())).sum();
        let enough = !more.is_empty() && promised + needed <= room;
        if enough {
            self.preempt();
        }
        enough
    }

    /// How many tokens each running job runs now, with the pages for them taken.
    pub fn plan(&mut self) -> Vec<usize> {
        loop {
            let take = self.shares();
            let both = || self.running.iter().zip(&take);
            let missing: usize = both().map(|(job, tokens)| job.missing(job.computed + tokens)).sum();
            if missing > self.pages.available() && self.running.len() > 1 {
                self.preempt();
                continue;
            }
            for (job, tokens) in self.running.iter_mut().zip(&take) {
                for _ in 0..job.missing(job.computed + tokens) {
                    job.pages.extend(self.pages.take());
                }
            }
            return take;
        }
    }

    /// One token for those past their prompt, and their shares of the budget for the others.
    fn shares(&mut self) -> Vec<usize> {
        let mut running = std::mem::take(&mut self.running);
        for job in &mut running {
            let before = job.computed;
            self.find_pages(job);
            self.reused += (job.computed - before) as u64;
        }
        self.running = running;
        let mut take: Vec<usize> = self.running.iter().map(|job| usize::from(job.pending() == 1)).collect();
        let tenants = self.prompts(&take);
        let wanted = |own: &Vec<usize>| own.iter().map(|at| self.running[*at].pending()).sum();
        let wanted: Vec<usize> = tenants.iter().map(wanted).collect();
        for (mut own, share) in tenants.into_iter().zip(go_round(&wanted, self.budget)) {
            let first = self.running[own[0]].pending().min(share.div_ceil(2));
            take[own[0]] = first;
            let mut left = share - first;
            own.sort_by_key(|at| self.running[*at].pending() - take[*at]);
            for at in own {
                let more = left.min(self.running[at].pending() - take[at]);
                take[at] += more;
                left -= more;
            }
        }
        take
    }

    /// Prompts to go on with, by tenant in the order of their turns; of each tenant the oldest first, then the shortest.
    fn prompts(&self, take: &[usize]) -> Vec<Vec<usize>> {
        let mut tenants: Vec<Vec<usize>> = Vec::new();
        for at in (0..take.len()).filter(|at| take[*at] == 0) {
            let tenant = self.running[at].tenant();
            match tenants.iter_mut().find(|own| self.running[own[0]].tenant() == tenant) {
                Some(own) => own.push(at),
                None => tenants.push(vec![at]),
            }
        }
        for own in &mut tenants {
            own.sort_by_key(|at| self.running[*at].number);
            own[1..].sort_by_key(|at| self.running[*at].pending());
            let mut ahead: Vec<usize> = Vec::new();
            own.retain(|at| {
                let goes = !self.pages.shares() || !ahead.iter().any(|a| self.running[*at].follows(&self.running[*a]));
                ahead.extend(goes.then_some(*at));
                goes
            });
        }
        tenants.sort_by_key(|own| (self.waiting.served(self.running[own[0]].tenant()), self.running[own[0]].number));
        tenants
    }

    /// Goes on in the cache as far as its pages are known.
    fn find_pages(&mut self, job: &mut Job<T>) {
        while let Some(tokens) = job.next_page() {
            let Some(page) = self.pages.reuse(&job.scope, &job.pages, tokens) else { return };
            job.pages.push(page);
            job.computed += PAGE;
            job.known = job.pages.len();
        }
    }

    /// Each running job has run its part of the plan: its full pages may be shared from now on.
    pub fn advance(&mut self, take: &[usize]) {
        let ran = self.running.iter().zip(take).map(|(job, tokens)| (&*job.scope.tenant, *tokens));
        self.waiting.charge(ran);
        for (job, tokens) in self.running.iter_mut().zip(take) {
            job.computed += tokens;
            while (job.known + 1) * PAGE <= job.computed {
                let (before, page) = job.pages.split_at_mut(job.known);
                let tokens = &job.tokens[job.known * PAGE..][..PAGE];
                page[0] = self.pages.publish(&job.scope, before, tokens, page[0]);
                job.known += 1;
            }
        }
    }

    /// Ends running job `at`; the last one takes its index.
    pub fn stop(&mut self, at: usize) -> Job<T> {
        let mut job = self.running.swap_remove(at);
        self.pages.release_all(&mut job.pages);
        self.waiting.stopped(&job.scope.tenant);
        job
    }

    /// The youngest job of the tenant that runs most gives its pages back and waits.
    fn preempt(&mut self) {
        let age = |at: &usize| (self.waiting.running(self.running[*at].tenant()), self.running[*at].number);
        let Some(at) = (0..self.running.len()).max_by_key(age) else { return };
        let mut job = self.running.swap_remove(at);
        self.pages.release_all(&mut job.pages);
        (job.computed, job.known) = (0, 0);
        let tenant = job.tenant().clone();
        self.waiting.push_again(&tenant, job.number, job);
        self.waiting.stopped(&tenant);
        self.preemptions += 1;
    }
}

/// Shares of `budget` for those who want so much, in turns of a quantum: a quarter of the budget, so that a step's
/// prompts are of few tenants (each brings its own delta to read), and everybody's turn comes in a few steps.
fn go_round(wanted: &[usize], budget: usize) -> Vec<usize> {
    let quantum = (budget / 4).max(PAGE);
    let mut shares = vec![0; wanted.len()];
    let mut left = budget;
    while left > 0 && shares.iter().zip(wanted).any(|(share, wanted)| share < wanted) {
        for (share, wanted) in shares.iter_mut().zip(wanted) {
            let more = quantum.min(left).min(wanted - *share);
            *share += more;
            left -= more;
        }
    }
    shares
}

#[cfg(test)]
mod tests;
