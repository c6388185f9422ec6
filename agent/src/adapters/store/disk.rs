//! What a node's cache of adapters holds, and what makes room. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::super::eviction::Rule;

/// Names an adapter's files: a digest of its source.
pub type Key = String;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    bytes: u64,
    /// Part of a download that was broken off.
    partial: bool,
    uses: f64,
    last: u64,
    fetch_ms: f64,
    /// GDSF's H.
    worth: f64,
}

/// No room, whatever goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the node's adapter cache has no room for {wanted} bytes: it may take {cap}, and {in_use} are in use; enlarge it, or place fewer \
     adapters on this node"
)]
pub struct NoRoom {
    /// Wanted, bytes.
    pub wanted: u64,
    /// May be taken in all, bytes.
    pub cap: u64,
    /// Of those: in use, bytes.
    pub in_use: u64,
}

/// A cache's content.
#[derive(Debug, Clone)]
pub struct Disk {
    cap: u64,
    rule: Rule,
    entries: BTreeMap<Key, Entry>,
    /// Set aside for downloads under way, bytes.
    reserved: BTreeMap<Key, u64>,
    clock: u64,
    /// GDSF's L.
    age: f64,
}

impl Disk {
    /// An empty one that may take `cap` bytes.
    pub fn new(cap: u64, rule: Rule) -> Self {
        Self { cap, rule, entries: BTreeMap::new(), reserved: BTreeMap::new(), clock: 0, age: 0.0 }
    }

    /// Bytes taken and set aside.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(|e| e.bytes).chain(self.reserved.values().copied()).sum()
    }

    /// Whether all files of an adapter are there.
    pub fn holds(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|e| !e.partial)
    }

    /// Bytes of an adapter's files.
    pub fn size(&self, key: &str) -> Option<u64> {
        self.entries.get(key).filter(|e| !e.partial).map(|e| e.bytes)
    }

    /// Takes note of a use.
    pub fn used(&mut self, key: &str) {
        self.clock += 1;
        let (clock, age, rule) = (self.clock, self.age, self.rule);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.uses += 1.0;
            entry.last = clock;
            entry.worth = worth(rule, age, entry);
        }
    }

    /// Sets `bytes` aside for the download of an adapter, in place of what was set aside for it and of what is left of it: what has to
    /// go for it, the least worth first, never of what is in `in_use`.
    ///
    /// # Errors
    /// [`NoRoom`] if not even all else makes enough; then nothing has changed.
    pub fn make_room(&mut self, key: &str, bytes: u64, in_use: &BTreeSet<Key>) -> Result<Vec<Key>, NoRoom> {
        let stays = |name: &Key| name != key && (in_use.contains(name) || self.reserved.contains_key(name));
        let others = self.entries.iter().filter(|(name, _)| *name != key);
        let set_aside: u64 = self.reserved.iter().filter(|(name, _)| *name != key).map(|(_, b)| *b).sum();
        let mut taken = set_aside + others.clone().map(|(_, e)| e.bytes).sum::<u64>();
        let mut may_go: Vec<(&Key, Entry)> =
            others.filter(|(name, _)| !stays(name)).map(|(n, e)| (n, *e)).collect();
        let rank = |e: &Entry| match self.rule {
            Rule::Lru => 0.0,
            Rule::Lfu => e.uses,
            Rule::Gdsf => e.worth,
        };
        may_go.sort_by(|(_, a), (_, b)| {
            b.partial.cmp(&a.partial).then(rank(a).total_cmp(&rank(b))).then(a.last.cmp(&b.last))
        });
        let mut out = Vec::new();
        let mut age = self.age;
        for (name, entry) in may_go {
            if taken.saturating_add(bytes) <= self.cap {
                break;
            }
            taken -= entry.bytes;
            age = age.max(entry.worth);
            out.push(name.clone());
        }
        if taken.saturating_add(bytes) > self.cap {
            return Err(NoRoom { wanted: bytes, cap: self.cap, in_use: taken });
        }
        self.age = age;
        for name in &out {
            self.entries.remove(name);
        }
        self.entries.remove(key);
        self.reserved.insert(key.to_owned(), bytes);
        Ok(out)
    }

    /// A download has ended: all of it is there (after `fetch_ms`), or `partial` bytes of it.
    pub fn fetched(&mut self, key: &str, bytes: u64, partial: bool, fetch_ms: f64) {
        self.reserved.remove(key);
        self.clock += 1;
        self.entries.remove(key);
        if bytes > 0 || !partial {
            let mut entry = Entry { bytes, partial, uses: 0.0, last: self.clock, fetch_ms, worth: 0.0 };
            entry.worth = worth(self.rule, self.age, &entry);
            self.entries.insert(key.to_owned(), entry);
        }
    }
}

/// GreedyDual-Size-Frequency: uses × cost / size above the age.
fn worth(rule: Rule, age: f64, entry: &Entry) -> f64 {
    match rule {
        Rule::Lru | Rule::Lfu => 0.0,
        Rule::Gdsf => age + entry.uses * entry.fetch_ms.max(1.0) / entry.bytes.max(1) as f64,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn none() -> BTreeSet<Key> {
        BTreeSet::new()
    }

    fn put(disk: &mut Disk, key: &str, bytes: u64) -> Vec<Key> {
        let out = disk.make_room(key, bytes, &none()).unwrap();
        disk.fetched(key, bytes, false, 100.0);
        disk.used(key);
        out
    }

    #[test]
    fn what_was_used_least_lately_makes_room() {
        let mut disk = Disk::new(100, Rule::Lru);
        for key in ["a", "b", "c"] {
            assert_eq!(put(&mut disk, key, 30), Vec::<Key>::new());
        }
        disk.used("a");
        assert_eq!(put(&mut disk, "d", 40), ["b"]);
        assert!(disk.holds("a") && disk.holds("d") && !disk.holds("b"));
        assert_eq!(disk.bytes(), 100);
    }

    #[test]
    fn what_is_in_use_stays_and_the_refusal_changes_nothing() {
        let mut disk = Disk::new(100, Rule::Lru);
        put(&mut disk, "a", 60);
        put(&mut disk, "b", 30);
        let used = BTreeSet::from(["a".to_owned()]);
        assert_eq!(disk.make_room("c", 50, &used), Err(NoRoom { wanted: 50, cap: 100, in_use: 60 }));
        assert!(disk.holds("b"));
        assert_eq!(disk.make_room("c", 40, &used), Ok(vec!["b".to_owned()]));
        // What is set aside for one download is not another's.
        assert!(disk.make_room("d", 10, &used).is_err());
        disk.fetched("c", 0, true, 0.0);
        assert_eq!(disk.make_room("d", 10, &used), Ok(vec![]));
    }

    #[test]
    fn parts_go_first_and_make_room_for_their_own_rest() {
        let mut disk = Disk::new(100, Rule::Gdsf);
        put(&mut disk, "a", 50);
        disk.make_room("b", 50, &none()).unwrap();
        disk.fetched("b", 20, true, 0.0);
        assert!(!disk.holds("b") && disk.bytes() == 70);
        assert_eq!(disk.make_room("b", 50, &none()), Ok(vec![]));
        disk.fetched("b", 20, true, 0.0);
        assert_eq!(disk.make_room("c", 40, &none()), Ok(vec!["b".to_owned()]));
        assert!(disk.holds("a"));
    }

    #[test]
    fn gdsf_keeps_what_is_used_often_and_small() {
        let mut disk = Disk::new(100, Rule::Gdsf);
        put(&mut disk, "large", 60);
        put(&mut disk, "small", 10);
        disk.used("small");
        assert_eq!(put(&mut disk, "new", 40), ["large"]);
    }

    proptest! {
        /// Never over the cap, never without what is in use.
        #[test]
        fn the_cap_holds(
            asks in prop::collection::vec((0usize..9, 1u64..60, prop::collection::btree_set(0usize..9, 0..4), any::<bool>()), 1..60),
            rule in prop_oneof![Just(Rule::Lru), Just(Rule::Lfu), Just(Rule::Gdsf)],
        ) {
            let mut disk = Disk::new(100, rule);
            for (key, bytes, used, whole) in asks {
                let used: BTreeSet<Key> = used.into_iter().map(|k| k.to_string()).collect();
                let before: Vec<Key> = used.iter().filter(|k| disk.holds(k)).cloned().collect();
                let key = key.to_string();
                if let Ok(out) = disk.make_room(&key, bytes, &used) {
                    prop_assert!(out.iter().all(|k| !used.contains(k)));
                    prop_assert!(disk.bytes() <= 100);
                    disk.fetched(&key, if whole { bytes } else { bytes / 2 }, !whole, 10.0);
                }
                prop_assert!(before.iter().all(|k| *k == key || disk.holds(k)));
                prop_assert!(disk.bytes() <= 100);
            }
        }
    }
}
