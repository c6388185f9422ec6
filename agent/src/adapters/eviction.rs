//! Slots that are filled on demand, as engines and caches do: whoever is asked for is loaded in place of another.

use std::collections::BTreeMap;

/// Whom a load takes the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Used least lately (vLLM's rule).
    Lru,
    /// Used least often since it was loaded; of those, least lately.
    Lfu,
    /// Least worth keeping: uses since loaded × load time / size, aged by what was put out last (GreedyDual-Size-Frequency,
    /// Cherkasova 1998).
    Gdsf,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    uses: f64,
    last: u64,
    /// GDSF's H.
    worth: f64,
}

/// Slots under a rule.
#[derive(Debug, Clone)]
pub struct Slots {
    rule: Rule,
    count: usize,
    held: BTreeMap<usize, Held>,
    clock: u64,
    /// GDSF's L.
    age: f64,
}

impl Slots {
    /// Empty slots.
    pub fn new(rule: Rule, count: usize) -> Self {
        Self { rule, count, held: BTreeMap::new(), clock: 0, age: 0.0 }
    }

    /// Whether an adapter is in a slot.
    pub fn holds(&self, adapter: usize) -> bool {
        self.held.contains_key(&adapter)
    }

    /// Serves a request for an adapter whose load costs `load_ms` and takes `size` (any unit, above zero); whether it was in a slot.
    pub fn request(&mut self, adapter: usize, load_ms: f64, size: f64) -> bool {
        self.clock += 1;
        let hit = self.holds(adapter);
        let full = !hit && self.held.len() >= self.count;
        let out = full.then(|| self.least()).flatten().and_then(|out| self.held.remove(&out));
        if let Some(out) = out.filter(|_| self.rule == Rule::Gdsf) {
            self.age = self.age.max(out.worth);
        }
        if self.count > 0 {
            let uses = self.held.get(&adapter).map_or(0.0, |held| held.uses) + 1.0;
            let worth = self.age + uses * load_ms / size;
            self.held.insert(adapter, Held { uses, last: self.clock, worth });
        }
        hit
    }

    fn least(&self) -> Option<usize> {
        let key = |held: &Held| match self.rule {
            Rule::Lru => (0.0, held.last),
            Rule::Lfu => (held.uses, held.last),
            Rule::Gdsf => (held.worth, held.last),
        };
        let order = |a: &(f64, u64), b: &(f64, u64)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        self.held.iter().min_by(|a, b| order(&key(a.1), &key(b.1))).map(|(adapter, _)| *adapter)
    }
}

/// For each request, whether slots that know all that is still to come hold its adapter (Belady's MIN, 1966): a load takes the place of
/// the adapter that is asked for latest.
pub fn belady(requests: &[usize], slots: usize) -> Vec<bool> {
    let mut next = vec![usize::MAX; requests.len()];
    let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
    for (at, &adapter) in requests.iter().enumerate().rev() {
        if let Some(later) = seen.insert(adapter, at) {
            next[at] = later;
        }
    }
    let mut held: BTreeMap<usize, usize> = BTreeMap::new();
    requests
        .iter()
        .zip(next)
        .map(|(&adapter, next)| {
            let hit = held.contains_key(&adapter);
            if !hit
                && held.len() >= slots
                && let Some(out) = held.iter().max_by_key(|(_, next)| **next).map(|(out, _)| *out)
            {
                held.remove(&out);
            }
            if slots > 0 {
                held.insert(adapter, next);
            }
            hit
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn hits(rule: Rule, requests: &[usize], slots: usize) -> Vec<usize> {
        let mut cache = Slots::new(rule, slots);
        let hit = |(at, &adapter): (usize, &usize)| cache.request(adapter, 10.0, 1.0).then_some(at);
        requests.iter().enumerate().filter_map(hit).collect()
    }

    #[rstest]
    // 3 takes the place of 2, used before 1.
    #[case(Rule::Lru, &[1, 2, 1, 3, 1, 2], &[2, 4])]
    // 1 was used twice, and stays whatever comes.
    #[case(Rule::Lfu, &[1, 1, 2, 3, 2, 1], &[1, 5])]
    // As LFU at first, but what left raises the bar: 3 comes with 10 + 10, and of two worth 20 the one used before goes.
    #[case(Rule::Gdsf, &[1, 1, 2, 3, 2, 1], &[1])]
    fn each_puts_out_by_its_rule(#[case] rule: Rule, #[case] requests: &[usize], #[case] hit: &[usize]) {
        assert_eq!(hits(rule, requests, 2), hit);
    }

    #[test]
    fn gdsf_keeps_what_is_dear_to_load_and_small() {
        let mut cache = Slots::new(Rule::Gdsf, 2);
        cache.request(0, 100.0, 1.0);
        cache.request(1, 100.0, 10.0);
        cache.request(2, 50.0, 1.0);
        assert!(cache.holds(0) && !cache.holds(1));
    }

    /// The worked example of every textbook: 7 0 1 2 0 3 0 4 2 3 0 3 2 in three frames, 7 faults.
    #[test]
    fn belady_is_the_textbooks() {
        let requests = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2];
        assert_eq!(belady(&requests, 3).iter().filter(|hit| !**hit).count(), 7);
        assert_eq!(belady(&requests, 0), [false; 13]);
    }

    proptest! {
        #[test]
        fn nobody_hits_more_often_than_belady(
            requests in prop::collection::vec(0usize..8, 0..120),
            slots in 0usize..6,
        ) {
            let most = belady(&requests, slots).into_iter().filter(|hit| *hit).count();
            for rule in [Rule::Lru, Rule::Lfu, Rule::Gdsf] {
                prop_assert!(hits(rule, &requests, slots).len() <= most);
            }
        }
    }
}
