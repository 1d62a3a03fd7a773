//! What is in memory, by user: found, handed out, evicted least recently used first, never while somebody uses it.
//!
//! The cache keeps a value itself and hands out handles to it, one for all who use it at the same time. Whether a value
//! is in use is whether its handle is alive; a handle's end wakes the loads that wait for room. A value's bytes go back to
//! the budget when the value is dropped, by the cache or, where that let go of it first, by the last handle.
//!
//! No file is looked at here, and nothing is loaded or freed while the map is locked.

use super::{
    budget::{Budget, Lease, Pin},
    folder::Version,
    lock,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

/// What a cache can keep. A value holds its own [`Lease`].
pub(crate) trait Kept {
    /// What its users hold.
    type Handle;

    /// A handle, which lives as long as the pin in it.
    fn handle(self: Arc<Self>, pin: Pin) -> Self::Handle;
}

/// Values by user, within a budget.
pub(super) struct Cache<T: Kept> {
    budget: Arc<Budget>,
    places: Mutex<Places<T>>,
    evictions: AtomicU64,
}

struct Places<T: Kept> {
    by_user: HashMap<Arc<str>, Place<T>>,
    /// The same users, by the turn of their last use.
    by_turn: BTreeMap<u64, Arc<str>>,
    turns: u64,
}

struct Place<T: Kept> {
    kept: Arc<T>,
    handle: Weak<T::Handle>,
    version: Version,
    turn: u64,
    last_used: SystemTime,
}

/// One place, for a listing.
pub(super) struct Seen<T> {
    pub user: Arc<str>,
    pub kept: Arc<T>,
    pub in_use: bool,
    pub last_used: SystemTime,
}

impl<T: Kept> Cache<T> {
    pub fn new(budget: Arc<Budget>) -> Self {
        let places = Places { by_user: HashMap::new(), by_turn: BTreeMap::new(), turns: 0 };
        Self { budget, places: Mutex::new(places), evictions: AtomicU64::new(0) }
    }

    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Values evicted so far.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// The user's value, if it is of this version.
    pub fn get(&self, user: &str, version: &Version) -> Option<Arc<T::Handle>> {
        let mut places = lock(&self.places);
        let places = &mut *places;
        let place = places.by_user.get_mut(user).filter(|place| place.version == *version)?;
        let user = places.by_turn.remove(&place.turn)?;
        places.turns += 1;
        place.turn = places.turns;
        place.last_used = SystemTime::now();
        places.by_turn.insert(place.turn, user);
        Some(place.handle(&self.budget))
    }

    /// Keeps a value in place of the user's former one.
    pub fn insert(&self, user: &str, version: Version, value: T) -> Arc<T::Handle> {
        let mut places = lock(&self.places);
        let former = places.remove(user);
        places.turns += 1;
        let turn = places.turns;
        let last_used = SystemTime::now();
        let mut place = Place { kept: Arc::new(value), handle: Weak::new(), version, turn, last_used };
        let handle = place.handle(&self.budget);
        let user: Arc<str> = user.into();
        places.by_turn.insert(turn, Arc::clone(&user));
        places.by_user.insert(user, place);
        drop(places);
        drop(former);
        handle
    }

    /// Lets go of the user's value. False when there is none.
    pub fn remove(&self, user: &str) -> bool {
        let former = lock(&self.places).remove(user);
        former.is_some()
    }

    /// Bytes for a load; evicts for them, and waits while all that is left is in use.
    pub fn promise(&self, bytes: u64) -> Lease {
        self.budget.promise(bytes, || self.evict())
    }

    /// See [`Lease::settle`]; evicts for what was not planned.
    pub fn settle(&self, lease: Lease, exact: u64) -> Option<Lease> {
        lease.settle(exact, || self.evict())
    }

    /// Everything kept.
    pub fn list(&self) -> Vec<Seen<T>> {
        lock(&self.places).by_user.iter().map(|(user, place)| place.seen(user)).collect()
    }

    /// The user's place, not counted as a use.
    pub fn see(&self, user: &str) -> Option<Seen<T>> {
        lock(&self.places).by_user.get_key_value(user).map(|(user, place)| place.seen(user))
    }

    /// How many values are kept, and how many of them are in use.
    pub fn count(&self) -> (usize, usize) {
        let places = lock(&self.places);
        (places.by_user.len(), places.by_user.values().filter(|place| place.in_use()).count())
    }

    /// Drops the value that nobody uses and whose last use is longest ago. False when all are in use.
    fn evict(&self) -> bool {
        let mut places = lock(&self.places);
        let idle = |user: &&Arc<str>| places.by_user.get(*user).is_some_and(|place| !place.in_use());
        let Some(user) = places.by_turn.values().find(idle).cloned() else { return false };
        let evicted = places.remove(&user);
        drop(places);
        self.evictions.fetch_add(1, Ordering::Relaxed);
        evicted.is_some()
    }
}

impl<T: Kept> Places<T> {
    fn remove(&mut self, user: &str) -> Option<Place<T>> {
        let place = self.by_user.remove(user)?;
        self.by_turn.remove(&place.turn);
        Some(place)
    }
}

impl<T: Kept> Place<T> {
    fn seen(&self, user: &Arc<str>) -> Seen<T> {
        let (kept, in_use) = (Arc::clone(&self.kept), self.in_use());
        Seen { user: Arc::clone(user), kept, in_use, last_used: self.last_used }
    }

    fn in_use(&self) -> bool {
        self.handle.strong_count() > 0
    }

    /// The one handle that all users at a time share.
    fn handle(&mut self, budget: &Arc<Budget>) -> Arc<T::Handle> {
        if let Some(handle) = self.handle.upgrade() {
            return handle;
        }
        let handle = Arc::new(Arc::clone(&self.kept).handle(budget.pin()));
        self.handle = Arc::downgrade(&handle);
        handle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{path::Path, thread};

    struct Thing {
        name: &'static str,
        _lease: Lease,
    }

    struct Held {
        thing: Arc<Thing>,
        _pin: Pin,
    }

    impl Kept for Thing {
        type Handle = Held;

        fn handle(self: Arc<Self>, pin: Pin) -> Held {
            Held { thing: self, _pin: pin }
        }
    }

    fn cache(limit: u64) -> Cache<Thing> {
        Cache::new(Budget::new(limit))
    }

    fn version() -> Version {
        Version::of(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml").as_path()).unwrap()
    }

    fn load(cache: &Cache<Thing>, name: &'static str, bytes: u64) -> Arc<Held> {
        let lease = cache.promise(bytes);
        let lease = cache.settle(lease, bytes).unwrap();
        cache.insert(name, version(), Thing { name, _lease: lease })
    }

    fn names(cache: &Cache<Thing>) -> Vec<String> {
        let mut names: Vec<String> = cache.list().iter().map(|seen| seen.kept.name.to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_least_recently_used_goes_and_what_is_in_use_stays() {
        let cache = cache(30);
        let held = load(&cache, "a", 10);
        drop((load(&cache, "b", 10), load(&cache, "c", 10)));
        // b was used after c, a before both.
        drop(cache.get("b", &version()).unwrap());
        drop(load(&cache, "d", 10));
        assert_eq!(names(&cache), ["a", "b", "d"]);
        assert_eq!((cache.count(), cache.evictions()), ((3, 1), 1));
        drop(held);
        drop(load(&cache, "e", 20));
        assert_eq!(names(&cache), ["d", "e"], "a and b were used before d");
    }

    #[test]
    fn all_who_use_a_value_share_its_handle() {
        let cache = cache(10);
        let first = load(&cache, "a", 10);
        let second = cache.get("a", &version()).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        drop((first, second));
        assert_eq!(cache.get("a", &version()).unwrap().thing.name, "a");
        assert_eq!(cache.count(), (1, 0));
    }

    #[test]
    fn what_was_removed_counts_until_its_last_user_lets_go() {
        let cache = cache(10);
        let used = load(&cache, "a", 10);
        assert!(cache.remove("a") && !cache.remove("a"));
        assert_eq!((cache.count(), cache.budget().taken().resident), ((0, 0), 10));
        drop(used);
        assert_eq!(cache.budget().taken().resident, 0);
    }

    #[test]
    fn a_load_waits_while_everything_is_in_use_and_others_find_theirs() {
        let cache = cache(10);
        let used = load(&cache, "a", 10);
        thread::scope(|scope| {
            let waits = scope.spawn(|| load(&cache, "b", 10));
            while cache.budget().taken().waiting == 0 {
                thread::yield_now();
            }
            let again = cache.get("a", &version()).expect("a hit does not wait");
            drop((used, again));
            assert_eq!(waits.join().unwrap().thing.name, "b");
        });
        assert_eq!((names(&cache), cache.evictions()), (vec!["b".to_owned()], 1));
    }
}
