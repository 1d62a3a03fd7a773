//! The pages of the KV cache: who uses which, and which full ones may be shared.
//!
//! Equal beginnings of one tenant's requests on one variant are kept once. The known pages form a tree for each
//! [`Scope`]: a page hangs under the page before it and is named by its own tokens,
//!
//! ```text
//! (tenant, variant's hash) ── [system prompt, page 0] ── [page 1] ── [question A]
//!                                                            └────── [question B]
//! ```
//!
//! so a page is found only by walking from its scope over equal tokens, one page after the other. Nothing is compared
//! by a digest of tokens: no collision, and no tenant who chooses names or texts, can make two different beginnings
//! meet. Only full pages are shared, and a full page is never written again: there is nothing to copy.
//!
//! A page that nobody uses stays known until a page is needed; the one that was used longest ago goes first. Whoever
//! uses a page uses all pages above it, and is let go from the end, so a page never goes before those below it.

use crate::backend::PAGE;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Whose pages: shared by requests that agree on all of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    /// The tenant; the base's pages are not shared between tenants either.
    pub tenant: Arc<str>,
    /// Content hash of the variant; `None` is the base.
    pub variant: Option<String>,
}

/// A page's place in its scope's tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    above: Above,
    tokens: [u32; PAGE],
}

/// What a page hangs under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Above {
    Root(Arc<Scope>),
    Page(u32),
}

/// One page.
#[derive(Debug, Clone, Default)]
struct Page {
    /// Sequences that hold it.
    users: u32,
    /// Its place in a tree, once it is full and known.
    key: Option<Arc<Key>>,
    /// When its last user let it go.
    left: u64,
}

/// All pages of a KV cache. A page is free, used by at least one sequence, or kept: known and used by nobody.
#[derive(Debug)]
pub(crate) struct Pages {
    pages: Vec<Page>,
    free: Vec<u32>,
    known: HashMap<Arc<Key>, u32>,
    /// Known pages without users, by when their last user let them go.
    kept: BTreeMap<u64, u32>,
    clock: u64,
    share: bool,
}

impl Pages {
    /// `count` free pages; `share`: whether full ones become known.
    pub fn new(count: usize, share: bool) -> Self {
        Self {
            pages: vec![Page::default(); count],
            free: (0..count as u32).rev().collect(),
            known: HashMap::new(),
            kept: BTreeMap::new(),
            clock: 0,
            share,
        }
    }

    /// Whether full pages are shared.
    pub fn shares(&self) -> bool {
        self.share
    }

    /// Pages that can be taken: free or kept.
    pub fn available(&self) -> usize {
        self.free.len() + self.kept.len()
    }

    /// Whether nobody else uses the page.
    pub fn is_alone(&self, page: u32) -> bool {
        self.pages[page as usize].users == 1
    }

    /// A page to write, unless all are used.
    pub fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.kept.pop_first()?;
                if let Some(key) = self.pages[page as usize].key.take() {
                    self.known.remove(&key);
                }
                page
            }
        };
        self.pages[page as usize].users = 1;
        Some(page)
    }

    /// Uses the known page that follows `before` and holds `tokens`, where there is one.
    pub fn reuse(&mut self, scope: &Arc<Scope>, before: &[u32], tokens: &[u32]) -> Option<u32> {
        let page = *self.known.get(&key(scope, before, tokens)?)?;
        self.hold(page);
        Some(page)
    }

    /// Makes the full `page` known, which follows `before` and holds `tokens`. Returns the page to go on with: another
    /// one where the same was known already.
    pub fn publish(&mut self, scope: &Arc<Scope>, before: &[u32], tokens: &[u32], page: u32) -> u32 {
        if !self.share {
            return page;
        }
        let Some(key) = key(scope, before, tokens) else { return page };
        if let Some(same) = self.known.get(&key).copied() {
            self.hold(same);
            self.release(page);
            return same;
        }
        let key = Arc::new(key);
        self.pages[page as usize].key = Some(key.clone());
        self.known.insert(key, page);
        page
    }

    /// Lets go of a sequence's pages.
    pub fn release_all(&mut self, pages: &mut Vec<u32>) {
        // From the end: what hangs below is older than what it hangs under.
        while let Some(page) = pages.pop() {
            self.release(page);
        }
    }

    fn hold(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        if entry.users == 0 {
            self.kept.remove(&entry.left);
        }
        entry.users += 1;
    }

    fn release(&mut self, page: u32) {
        let entry = &mut self.pages[page as usize];
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        if entry.key.is_none() {
            self.free.push(page);
            return;
        }
        self.clock += 1;
        entry.left = self.clock;
        self.kept.insert(self.clock, page);
    }

    /// Every page is in one state, and exactly the pages of `held` are used, as often as they occur.
    #[cfg(test)]
    pub fn check<'a>(&self, held: impl Iterator<Item = &'a Vec<u32>>) {
        let mut users = vec![0; self.pages.len()];
        held.flatten().for_each(|page| users[*page as usize] += 1);
        for (page, entry) in self.pages.iter().enumerate() {
            let page_id = page as u32;
            assert_eq!(entry.users, users[page], "users of page {page}");
            let free = self.free.iter().filter(|free| **free == page_id).count();
            let kept = usize::from(entry.users == 0 && self.kept.get(&entry.left) == Some(&page_id));
            assert_eq!(free + kept + usize::from(entry.users > 0), 1, "page {page} is in one state: {entry:?}");
            if let Some(key) = &entry.key {
                assert_eq!(self.known.get(key), Some(&page_id));
                if let Above::Page(above) = key.above {
                    let above = &self.pages[above as usize];
                    assert!(above.key.is_some(), "page {page} hangs under a page that is not known any more");
                    assert!(above.users >= entry.users, "page {page} is used without the page it hangs under");
                }
            }
        }
        assert_eq!(self.known.len(), self.pages.iter().filter(|page| page.key.is_some()).count());
        assert_eq!(self.kept.len() + self.free.len(), users.iter().filter(|users| **users == 0).count());
    }
}

fn key(scope: &Arc<Scope>, before: &[u32], tokens: &[u32]) -> Option<Key> {
    let above = before.last().map_or_else(|| Above::Root(scope.clone()), |page| Above::Page(*page));
    Some(Key { above, tokens: tokens.try_into().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(tenant: &str, variant: Option<&str>) -> Arc<Scope> {
        Arc::new(Scope { tenant: tenant.into(), variant: variant.map(str::to_owned) })
    }

    fn page_of(first: u32) -> Vec<u32> {
        (first..first + PAGE as u32).collect()
    }

    /// Takes, fills and publishes pages with these tokens, one after another.
    fn write(pages: &mut Pages, scope: &Arc<Scope>, tokens: &[Vec<u32>]) -> Vec<u32> {
        let mut held = Vec::new();
        for tokens in tokens {
            let page = pages.take().expect("a page");
            let page = pages.publish(scope, &held, tokens, page);
            held.push(page);
        }
        held
    }

    #[test]
    fn a_known_page_is_found_by_its_scope_and_every_token_before_it() {
        let mut pages = Pages::new(8, true);
        let ann = scope("ann", Some("v1"));
        let held = write(&mut pages, &ann, &[page_of(0), page_of(100)]);
        assert_eq!(pages.reuse(&ann, &[], &page_of(0)), Some(held[0]));
        assert_eq!(pages.reuse(&ann, &held[..1], &page_of(100)), Some(held[1]));
        for (other, before, tokens) in [
            (scope("bob", Some("v1")), &[][..], page_of(0)),
            (scope("ann", Some("v2")), &[], page_of(0)),
            (scope("ann", None), &[], page_of(0)),
            (ann.clone(), &[], page_of(1)),
            // The second page's tokens at the beginning are another text.
            (ann.clone(), &[], page_of(100)),
            (ann.clone(), &held[1..], page_of(100)),
            (ann.clone(), &[], page_of(0)[..PAGE - 1].to_vec()),
        ] {
            assert_eq!(pages.reuse(&other, before, &tokens), None, "{other:?} {tokens:?}");
        }
        pages.check([held.clone(), held].iter());
    }

    #[test]
    fn names_that_run_into_each_other_do_not_meet() {
        let mut pages = Pages::new(4, true);
        write(&mut pages, &scope("ann", Some("bc")), &[page_of(0)]);
        for other in
            [scope("annb", Some("c")), scope("an", Some("nbc")), scope("annbc", None), scope("", Some("annbc"))]
        {
            assert_eq!(pages.reuse(&other, &[], &page_of(0)), None, "{other:?}");
        }
    }

    #[test]
    fn the_same_page_written_twice_is_kept_once() {
        let mut pages = Pages::new(4, true);
        let ann = scope("ann", None);
        let first = write(&mut pages, &ann, &[page_of(0), page_of(50)]);
        let second = write(&mut pages, &ann, &[page_of(0), page_of(50)]);
        assert_eq!(first, second);
        assert_eq!(pages.available(), 2);
        pages.check([first, second].iter());
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_from_the_end() {
        let mut pages = Pages::new(4, true);
        let ann = scope("ann", None);
        let mut old = write(&mut pages, &ann, &[page_of(0), page_of(10)]);
        let mut new = write(&mut pages, &ann, &[page_of(20), page_of(30)]);
        let (before_old, before_new) = (old.clone(), new.clone());
        pages.release_all(&mut old);
        pages.release_all(&mut new);
        assert_eq!(pages.available(), 4);
        let mut taken = Vec::new();
        for expected in [before_old[1], before_old[0], before_new[1]] {
            taken.extend(pages.take());
            assert_eq!(taken.last(), Some(&expected));
            pages.check([taken.clone()].iter());
        }
        assert_eq!(pages.reuse(&ann, &[], &page_of(20)), Some(before_new[0]));
        assert_eq!(pages.take(), None, "all four are used");
    }

    #[test]
    fn without_sharing_nothing_is_known_and_all_pages_come_back_free() {
        let mut pages = Pages::new(2, false);
        let ann = scope("ann", None);
        let mut held = write(&mut pages, &ann, &[page_of(0)]);
        assert_eq!(pages.reuse(&ann, &[], &page_of(0)), None);
        pages.release_all(&mut held);
        assert_eq!(pages.free.len(), 2);
    }
}
