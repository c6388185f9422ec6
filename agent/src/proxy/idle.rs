//! Connections that nobody uses at the moment, by whom and where they lead.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::upstream::Whom;
use crate::hash::QuickMap;

/// Unused connections, the one used last on top. Those at the bottom close for want of use.
#[derive(Debug)]
pub(super) struct Idle<T> {
    kept: Mutex<QuickMap<Whom, ByAddress<T>>>,
    keep: Duration,
    most: usize,
}

type Stack<T> = Vec<(Instant, T)>;
type ByAddress<T> = QuickMap<Arc<str>, Stack<T>>;

impl<T> Idle<T> {
    /// Keeps at most `most` for one address, each for so long.
    pub(super) fn new(keep: Duration, most: usize) -> Self {
        Self { kept: Mutex::default(), keep, most }
    }

    /// Takes the one used last, if that was not too long ago.
    pub(super) fn take(&self, whom: Whom, address: &str, now: Instant) -> Option<(Arc<str>, T)> {
        let stale;
        {
            let mut kept = self.kept.lock();
            let of_kind = kept.get_mut(&whom)?;
            let (key, stack) =
                of_kind.get_key_value(address).map(|(k, _)| k.clone()).zip(of_kind.get_mut(address))?;
            let (since, last) = stack.pop()?;
            if now.duration_since(since) < self.keep {
                return Some((key, last));
            }
            // All below are older still; closing them takes no lock.
            stale = (last, std::mem::take(stack));
        }
        drop(stale);
        None
    }

    /// Keeps one.
    pub(super) fn put(&self, whom: Whom, address: &Arc<str>, one: T, now: Instant) {
        let mut kept = self.kept.lock();
        let of_kind = kept.entry(whom).or_default();
        let stack = match of_kind.get_mut(&**address) {
            Some(stack) => stack,
            None => of_kind.entry(address.clone()).or_default(),
        };
        if stack.len() < self.most {
            stack.push((now, one));
        }
    }

    /// Drops those that were not used for too long.
    pub(super) fn sweep(&self, now: Instant) {
        let mut stale: Stack<T> = Vec::new();
        for of_kind in self.kept.lock().values_mut() {
            of_kind.retain(|_, stack| {
                let old = stack.partition_point(|(since, _)| now.duration_since(*since) >= self.keep);
                stale.extend(stack.drain(..old));
                !stack.is_empty()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_used_comes_first_and_the_old_go() {
        let idle = Idle::new(Duration::from_secs(4), 2);
        let (a, b): (Arc<str>, Arc<str>) = ("a:1".into(), "b:1".into());
        let begin = Instant::now();
        let at = |s| begin + Duration::from_secs(s);
        idle.put(Whom::Engine, &a, 1, at(0));
        idle.put(Whom::Engine, &a, 2, at(2));
        idle.put(Whom::Engine, &a, 3, at(2));
        idle.put(Whom::Agent, &a, 4, at(2));
        idle.put(Whom::Engine, &b, 5, at(2));
        assert_eq!(idle.take(Whom::Engine, "a:1", at(3)).map(|(_, n)| n), Some(2), "two is the most");
        idle.put(Whom::Engine, &a, 2, at(3));
        idle.sweep(at(5));
        assert_eq!(idle.take(Whom::Engine, "a:1", at(5)).map(|(_, n)| n), Some(2));
        assert_eq!(idle.take(Whom::Engine, "a:1", at(5)), None, "the other was swept");
        assert_eq!(idle.take(Whom::Agent, "a:1", at(6)), None, "too old, though not swept");
        assert_eq!(idle.take(Whom::Engine, "c:1", at(6)), None);
        idle.sweep(at(9));
        assert!(idle.kept.lock().values().all(QuickMap::is_empty));
    }
}
