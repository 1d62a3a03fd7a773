//! Whose turn it is: waiting requests by tenant.
//!
//! The next place goes to the tenant with the fewest running requests; among equals to the one that has been served the
//! fewest tokens (after the virtual token counter of Sheng et al., 2401.00588). A thousand requests of one tenant are
//! one tenant's turn; within a tenant, first come first served.
//!
//! A clock runs at the pace of a fair share: with every token by one part of as many as there are tenants. Who comes
//! back after doing nothing starts at the clock, so time spent away earns no credit; and since it always moves on, it
//! passes whoever had too much: newcomers without end cannot keep an old tenant waiting for ever.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Requests that wait, and what each tenant has had.
#[derive(Debug)]
pub(crate) struct Fair<W> {
    tenants: HashMap<Arc<str>, Tenant<W>>,
    /// In parts of a token.
    clock: u64,
}

/// Parts of a token that the clock counts.
const PARTS: u64 = 1 << 16;

#[derive(Debug)]
struct Tenant<W> {
    /// In order of arrival, each with its number.
    waiting: VecDeque<(u64, W)>,
    running: usize,
    /// Tokens run for it, prompts and answers, in parts of a token.
    served: u64,
}

impl<W> Tenant<W> {
    fn is_there(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

impl<W> Fair<W> {
    pub fn new() -> Self {
        Self { tenants: HashMap::new(), clock: 0 }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.tenants.values().all(|tenant| tenant.waiting.is_empty())
    }

    /// Those who wait.
    pub fn iter(&self) -> impl Iterator<Item = &W> {
        self.tenants.values().flat_map(|tenant| &tenant.waiting).map(|(_, item)| item)
    }

    /// Queues a new request; `number` is its order of arrival.
    pub fn push(&mut self, tenant: &Arc<str>, number: u64, item: W) {
        self.enter(tenant).waiting.push_back((number, item));
    }

    /// Queues a request again that was taken and did not begin, or had to give up its place: before the tenant's others
    /// that came later. The tenant was not away, so it keeps its turn.
    pub fn push_again(&mut self, tenant: &Arc<str>, number: u64, item: W) {
        let waiting = &mut self.stays(tenant).waiting;
        let at = waiting.partition_point(|(other, _)| *other < number);
        waiting.insert(at, (number, item));
    }

    /// The tenant whose turn it is, and its first request.
    pub fn next(&self) -> Option<(&Arc<str>, &W)> {
        let first = self.tenants.iter().filter_map(|(name, tenant)| {
            let (number, item) = tenant.waiting.front()?;
            Some(((tenant.running, tenant.served, *number), name, item))
        });
        first.min_by_key(|(order, ..)| *order).map(|(_, name, item)| (name, item))
    }

    /// Takes the tenant's first request.
    pub fn pop(&mut self, tenant: &str) -> Option<W> {
        Some(self.tenants.get_mut(tenant)?.waiting.pop_front()?.1)
    }

    /// Takes every waiting request of which `leaves` is true.
    pub fn remove(&mut self, mut leaves: impl FnMut(&W) -> bool) -> Vec<W> {
        let mut gone = Vec::new();
        for tenant in self.tenants.values_mut() {
            if tenant.waiting.iter().any(|(_, item)| leaves(item)) {
                let (out, stay): (VecDeque<_>, _) = tenant.waiting.drain(..).partition(|(_, item)| leaves(item));
                tenant.waiting = stay;
                gone.extend(out.into_iter().map(|(_, item)| item));
            }
        }
        gone
    }

    /// A request of the tenant begins to run.
    pub fn started(&mut self, tenant: &Arc<str>) {
        self.stays(tenant).running += 1;
    }

    /// A request of the tenant runs no more.
    pub fn stopped(&mut self, tenant: &str) {
        if let Some(tenant) = self.tenants.get_mut(tenant) {
            tenant.running -= 1;
        }
        if !self.tenants.values().any(Tenant::is_there) {
            self.tenants.clear();
            self.clock = 0;
        }
    }

    /// Counts the tokens that a step ran for each tenant.
    pub fn charge<'a>(&mut self, ran: impl Iterator<Item = (&'a str, usize)>) {
        let there = self.tenants.values().filter(|tenant| tenant.is_there()).count().max(1) as u64;
        for (tenant, tokens) in ran {
            let parts = tokens as u64 * PARTS;
            self.clock += parts / there;
            if let Some(tenant) = self.tenants.get_mut(tenant) {
                tenant.served += parts;
            }
        }
    }

    /// Requests of the tenant that run.
    pub fn running(&self, tenant: &str) -> usize {
        self.tenants.get(tenant).map_or(0, |tenant| tenant.running)
    }

    /// What the tenant has been served, comparable between tenants that are there.
    pub fn served(&self, tenant: &str) -> u64 {
        self.tenants.get(tenant).map_or(0, |tenant| tenant.served)
    }

    /// The tenant of a request that was just taken: also without others it was not away, and keeps its turn.
    fn stays(&mut self, name: &Arc<str>) -> &mut Tenant<W> {
        let served = self.clock;
        let new = || Tenant { waiting: VecDeque::new(), running: 0, served };
        self.tenants.entry(name.clone()).or_insert_with(new)
    }

    /// The tenant of a new request.
    fn enter(&mut self, name: &Arc<str>) -> &mut Tenant<W> {
        let clock = self.clock;
        if !self.tenants.get(name).is_some_and(Tenant::is_there) {
            // Those who left and would start at the clock anyway need not be remembered.
            self.tenants.retain(|_, tenant| tenant.is_there() || tenant.served > clock);
        }
        let new = || Tenant { waiting: VecDeque::new(), running: 0, served: 0 };
        let tenant = self.tenants.entry(name.clone()).or_insert_with(new);
        if !tenant.is_there() {
            tenant.served = tenant.served.max(clock);
        }
        tenant
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names<const N: usize>(names: [&str; N]) -> [Arc<str>; N] {
        names.map(Arc::from)
    }

    fn charge(fair: &mut Fair<u64>, tenant: &str, tokens: usize) {
        fair.charge([(tenant, tokens)].into_iter());
    }

    /// Starts the next request and says whose it is.
    fn start(fair: &mut Fair<u64>) -> Option<Arc<str>> {
        let tenant = fair.next()?.0.clone();
        fair.pop(&tenant)?;
        fair.started(&tenant);
        Some(tenant)
    }

    #[test]
    fn a_request_that_finds_no_room_keeps_its_tenants_turn() {
        let [busy, patient, other] = names(["busy", "patient", "other"]);
        let mut fair = Fair::new();
        fair.push(&patient, 0, 0);
        fair.push(&busy, 1, 1);
        fair.push(&other, 2, 2);
        charge(&mut fair, "busy", 10);
        charge(&mut fair, "other", 1);
        // The clock is past what the patient one was served.
        for _ in 0..2 {
            assert_eq!(fair.next().map(|(tenant, _)| tenant), Some(&patient));
            let item = fair.pop(&patient).expect("its request");
            fair.push_again(&patient, 0, item);
        }
        assert_eq!(start(&mut fair), Some(patient));
        assert_eq!(fair.served("patient"), 0, "it began and was not away");
    }

    #[test]
    fn the_one_with_the_fewest_running_is_next_whatever_the_others_queue() {
        let [hot, rare] = names(["hot", "rare"]);
        let mut fair = Fair::new();
        (0..1000).for_each(|number| fair.push(&hot, number, number));
        assert_eq!(start(&mut fair), Some(hot.clone()));
        assert_eq!(start(&mut fair), Some(hot.clone()));
        fair.push(&rare, 1000, 1000);
        assert_eq!(start(&mut fair), Some(rare));
        assert_eq!(start(&mut fair), Some(hot));
    }

    #[test]
    fn with_one_place_tenants_take_turns_by_tokens_served() {
        let [long, short] = names(["long", "short"]);
        let mut fair = Fair::new();
        for number in 0..100 {
            fair.push(&long, 2 * number, number);
            fair.push(&short, 2 * number + 1, number);
        }
        let mut served = [0, 0];
        for _ in 0..80 {
            let tenant = start(&mut fair).expect("someone waits");
            let (at, tokens) = if tenant == long { (0, 30) } else { (1, 10) };
            served[at] += tokens;
            charge(&mut fair, &tenant, tokens);
            fair.stopped(&tenant);
            assert!(served[0].abs_diff(served[1]) <= 30, "{served:?}");
        }
    }

    #[test]
    fn time_spent_away_earns_no_credit_and_a_pause_forgives_no_excess() {
        let [a, b, c] = names(["a", "b", "c"]);
        let mut fair = Fair::new();
        fair.push(&a, 0, 0);
        fair.push(&b, 1, 0);
        start(&mut fair);
        start(&mut fair);
        charge(&mut fair, &a, 500);
        charge(&mut fair, &b, 900);
        fair.stopped(&b);
        fair.push(&c, 2, 0);
        assert_eq!(fair.served("c"), 700 * PARTS, "a newcomer starts where a fair share would be");
        fair.push(&b, 3, 0);
        assert_eq!(fair.served("b"), 900 * PARTS, "a pause is not forgotten while others are there");
        for tenant in [&c, &b] {
            fair.pop(tenant);
        }
        fair.stopped(&a);
        fair.push(&a, 4, 0);
        assert_eq!(fair.served("a"), 0, "after everybody left all start anew");
    }

    #[test]
    fn newcomers_without_end_do_not_starve_one_who_had_much() {
        let much: Arc<str> = "much".into();
        let mut fair = Fair::new();
        fair.push(&much, 0, 0);
        let first: Arc<str> = "first".into();
        fair.push(&first, 1, 1);
        start(&mut fair);
        charge(&mut fair, &much, 1000);
        fair.stopped(&much);
        fair.push(&much, 2, 2);
        let turn = (3..1000).position(|number| {
            fair.push(&number.to_string().into(), number, number);
            let tenant = start(&mut fair).expect("someone waits");
            charge(&mut fair, &tenant, 100);
            fair.stopped(&tenant);
            tenant == much
        });
        assert!(turn.is_some_and(|turn| turn < 40), "its turn was number {turn:?}");
    }

    #[test]
    fn tenants_who_left_are_forgotten_when_others_catch_up() {
        let mut fair = Fair::new();
        let stays: Arc<str> = "stays".into();
        fair.push(&stays, 0, 0);
        start(&mut fair);
        for number in 1..500 {
            let tenant: Arc<str> = number.to_string().into();
            fair.push(&tenant, number, number);
            start(&mut fair);
            charge(&mut fair, &tenant, 1);
            charge(&mut fair, &stays, 3);
            fair.stopped(&tenant);
        }
        assert!(fair.tenants.len() < 5, "{} are remembered", fair.tenants.len());
    }

    #[test]
    fn a_request_that_gave_way_comes_before_later_ones_of_its_tenant() {
        let [a] = names(["a"]);
        let mut fair = Fair::new();
        (0..4).for_each(|number| fair.push(&a, number, number));
        assert_eq!((fair.pop("a"), fair.pop("a")), (Some(0), Some(1)));
        fair.push_again(&a, 1, 1);
        fair.push_again(&a, 0, 0);
        assert_eq!(fair.remove(|number| *number == 2), [2]);
        assert_eq!([fair.pop("a"), fair.pop("a"), fair.pop("a")], [Some(0), Some(1), Some(3)]);
        assert!(fair.is_empty());
    }
}
