//! Writes that wait for their turn. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::write::Write;
use crate::backoff::Backoff;

/// Wait before a failed write is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// An object that is written to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Kind.
    pub kind: String,
    /// Namespace (`None` for cluster-wide kinds).
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was made.
    Made,
    /// What it was for is gone.
    Gone,
    /// It is to be tried again.
    Failed,
}

/// Writes that wait and those under way: at most one of each an object, and the newest counts.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeMap<Target, Write>,
    /// Targets of `waiting`, whose turn is first in front.
    order: VecDeque<Target>,
    under_way: BTreeMap<Target, Write>,
    /// What failed lately: how to go on, and when.
    failed: BTreeMap<Target, (Backoff, Timestamp)>,
}

impl Queue {
    /// Adds a write in the place of an older one for the same object, whose turn it takes.
    pub fn put(&mut self, write: Write) {
        let target = write.target();
        if self.under_way.get(&target) == Some(&write) {
            // It is being written; what came between is out of date again.
            self.waiting.remove(&target);
            self.order.retain(|t| *t != target);
        } else if self.waiting.insert(target.clone(), write).is_none() {
            self.order.push_back(target);
        }
    }

    /// The next write that may begin while at most `most` are under way.
    pub fn take(&mut self, now: Timestamp, most: usize) -> Option<Write> {
        if self.under_way.len() >= most {
            return None;
        }
        let ready =
            |t: &Target| !self.under_way.contains_key(t) && self.not_before(t).is_none_or(|at| at <= now);
        let position = self.order.iter().position(ready)?;
        let target = self.order.remove(position)?;
        let write = self.waiting.remove(&target)?;
        self.under_way.insert(target, write.clone());
        Some(write)
    }

    /// When a write that failed is to be tried next, if one waits for its time alone.
    pub fn next_try(&self, now: Timestamp) -> Option<Timestamp> {
        self.order.iter().filter_map(|t| self.not_before(t)).filter(|at| *at > now).min()
    }

    fn not_before(&self, target: &Target) -> Option<Timestamp> {
        self.failed.get(target).map(|(_, at)| *at)
    }

    /// Takes note of how a write ended. One that failed is tried again after growing, jittered delays, unless a newer one
    /// waits, which is then tried in its place.
    pub fn ended(&mut self, write: Write, end: End, now: Timestamp) {
        let target = write.target();
        self.under_way.remove(&target);
        if end != End::Failed {
            self.failed.remove(&target);
            return;
        }
        let (backoff, not_before) = self.failed.entry(target.clone()).or_insert_with(|| {
            let mut hasher = std::hash::DefaultHasher::new();
            target.hash(&mut hasher);
            (Backoff::new(RETRY.0, RETRY.1, hasher.finish()), now)
        });
        let delay = SignedDuration::try_from(backoff.next_delay()).unwrap_or(SignedDuration::MAX);
        *not_before = now.saturating_add(delay).unwrap_or(now);
        if !self.waiting.contains_key(&target) {
            self.put(write);
        }
        let known: BTreeSet<&Target> = self.waiting.keys().chain(self.under_way.keys()).collect();
        self.failed.retain(|t, _| known.contains(t));
    }

    /// Whether a write to this is yet to be made.
    pub fn is_pending(&self, target: &Target) -> bool {
        self.waiting.contains_key(target) || self.under_way.contains_key(target)
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_crds::ModelPool;
    use serde_json::json;

    use super::*;

    fn write(name: &str, ready: u32) -> Write {
        Write::status::<ModelPool>(Some("default"), name, Some("u"), &json!({"readyReplicas": ready}))
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000 + ms).unwrap()
    }

    #[test]
    fn the_newest_is_written_in_the_oldest_ones_turn() {
        let mut queue = Queue::default();
        queue.put(write("a", 1));
        queue.put(write("b", 1));
        queue.put(write("a", 2));
        assert_eq!(queue.take(at(0), 16), Some(write("a", 2)));
        assert_eq!(queue.take(at(0), 16), Some(write("b", 1)));
        assert_eq!(queue.take(at(0), 16), None);
        assert!(queue.is_pending(&write("a", 0).target()));
        queue.ended(write("a", 2), End::Made, at(1));
        assert!(!queue.is_pending(&write("a", 0).target()));
    }

    #[test]
    fn an_object_is_written_once_at_a_time_and_not_twice_the_same() {
        let mut queue = Queue::default();
        queue.put(write("a", 1));
        let first = queue.take(at(0), 16).unwrap();
        queue.put(write("a", 2));
        assert_eq!(queue.take(at(0), 16), None, "the first is under way");
        queue.put(write("a", 1));
        queue.ended(first, End::Made, at(1));
        assert_eq!(queue.take(at(1), 16), None, "what was wanted last has just been written");
    }

    #[test]
    fn no_more_than_asked_are_under_way() {
        let mut queue = Queue::default();
        ["a", "b", "c"].into_iter().for_each(|name| queue.put(write(name, 1)));
        assert!(queue.take(at(0), 2).is_some() && queue.take(at(0), 2).is_some());
        assert_eq!(queue.take(at(0), 2), None);
        assert_eq!(queue.take(at(0), 3), Some(write("c", 1)));
    }

    #[test]
    fn what_fails_is_tried_again_ever_later_and_holds_up_no_other() {
        let mut queue = Queue::default();
        queue.put(write("a", 1));
        let mut now = at(0);
        let mut delays = Vec::new();
        for _ in 0..10 {
            let tried = queue.take(now, 16).unwrap();
            queue.ended(tried, End::Failed, now);
            assert_eq!(queue.take(now, 16), None);
            let next = queue.next_try(now).unwrap();
            delays.push(next.duration_since(now).as_secs_f64());
            now = next;
        }
        assert!((0.5..=1.0).contains(&delays[0]) && (7.5..=15.0).contains(&delays[9]), "{delays:?}");
        queue.put(write("b", 1));
        let before = now.saturating_sub(SignedDuration::from_secs(1)).unwrap();
        assert_eq!(queue.take(before, 16), Some(write("b", 1)));
        // A newer status waits as long, and is then the one that counts.
        queue.put(write("a", 2));
        assert_eq!(queue.take(before, 16), None);
        let tried = queue.take(now, 16).unwrap();
        assert_eq!(tried, write("a", 2));
        queue.ended(tried, End::Made, now);
        queue.put(write("a", 3));
        assert_eq!(queue.take(now, 16), Some(write("a", 3)), "a success ends the waiting");
    }

    #[test]
    fn what_is_gone_is_not_tried_again() {
        let mut queue = Queue::default();
        queue.put(write("a", 1));
        let tried = queue.take(at(0), 16).unwrap();
        queue.ended(tried, End::Gone, at(0));
        assert!(!queue.is_pending(&write("a", 1).target()));
        assert_eq!((queue.take(at(0), 16), queue.next_try(at(0))), (None, None));
    }
}
