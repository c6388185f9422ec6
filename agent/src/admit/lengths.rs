//! How long answers get: quantiles by (tenant, class), learned as answers end and conditioned on what has come already.
//!
//! JITServe (arXiv 2504.20068: abstract, and its authors' published code) schedules by a conservative quantile of the
//! output length, 0.95, which relaxes as generation goes on. Its quantile forest reads prompts; here the quantiles are
//! those of what the same tenant asked of the same class before, which needs neither a tokenizer nor a model. That, and
//! conditioning on `length > produced` every [`REFINE_EVERY`] tokens, are inferences of ours: the code predicts once.

use crate::hash::QuickMap;

/// The quantile that deadlines are judged by.
pub const CONSERVATIVE: f64 = 0.95;
/// Tokens after which the length of a running answer is estimated anew.
pub const REFINE_EVERY: f64 = 50.0;

/// Buckets are so many times as wide as the ones before.
const RATIO: f64 = 1.15;
const BUCKETS: usize = 100;
/// Buckets whose sum is kept, so that a quantile need not add all of them up.
const GROUP: usize = 10;
/// Answers after which the weight of older ones is halved.
const MEMORY: f32 = 2_000.0;
/// Fewer answers than this say nothing about a 0.95 quantile.
const LEAST: f32 = 20.0;
/// Most (tenant, class) pairs and classes remembered; the ones that learned nothing for longest give way.
const MOST_KEYS: usize = 1_024;

/// Whose answers: tenant and class, hashed by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LengthKey {
    /// Tenant (0: none).
    pub tenant: u64,
    /// SLO class.
    pub class: u64,
}

/// A histogram of lengths over buckets that widen geometrically; old answers fade.
#[derive(Debug, Clone)]
struct Lengths {
    counts: [f32; BUCKETS],
    groups: [f32; BUCKETS / GROUP],
    total: f32,
    stamp: u64,
}

fn bucket(tokens: f64) -> usize {
    ((tokens.max(1.0).ln() / RATIO.ln()) as usize).min(BUCKETS - 1)
}

fn upper(bucket: usize) -> f64 {
    RATIO.powi(bucket as i32 + 1)
}

impl Lengths {
    const EMPTY: Self = Self { counts: [0.0; BUCKETS], groups: [0.0; BUCKETS / GROUP], total: 0.0, stamp: 0 };

    fn learn(&mut self, tokens: f64, stamp: u64) {
        let at = bucket(tokens);
        self.counts[at] += 1.0;
        self.groups[at / GROUP] += 1.0;
        self.total += 1.0;
        self.stamp = stamp;
        if self.total >= MEMORY {
            self.counts.iter_mut().chain(&mut self.groups).for_each(|c| *c /= 2.0);
            self.total /= 2.0;
        }
    }

    /// The `q`-quantile of lengths above `beyond`, as the upper end of its bucket.
    fn quantile(&self, q: f64, beyond: f64) -> Option<f64> {
        if self.total < LEAST {
            return None;
        }
        let first = if beyond < 1.0 { 0 } else { bucket(beyond) };
        // Of the bucket that `beyond` lies in, the part above it.
        let lower = if first == 0 { 0.0 } else { upper(first - 1) };
        let part = ((upper(first) - beyond.max(lower)) / (upper(first) - lower)).clamp(0.0, 1.0);
        let at_first = f64::from(self.counts[first]) * part;
        let sum = |counts: &[f32]| f64::from(counts.iter().sum::<f32>());
        let next_group = (first / GROUP + 1) * GROUP;
        let tail =
            at_first + sum(&self.counts[first + 1..next_group]) + sum(&self.groups[next_group / GROUP..]);
        if tail <= 1e-3 * f64::from(self.total) {
            return None;
        }
        let wanted = q * tail;
        let mut below = at_first;
        if below >= wanted {
            return Some(upper(first).max(beyond + 1.0));
        }
        let mut i = first + 1;
        while i < BUCKETS {
            let group = f64::from(self.groups[i / GROUP]);
            if i.is_multiple_of(GROUP) && below + group < wanted {
                below += group;
                i += GROUP;
                continue;
            }
            below += f64::from(self.counts[i]);
            if below >= wanted {
                return Some(upper(i).max(beyond + 1.0));
            }
            i += 1;
        }
        None
    }
}

/// Lengths of answers by tenant and class; what is too rare is answered for by the class, then by all together.
#[derive(Debug, Clone)]
pub struct LengthBook {
    pairs: QuickMap<LengthKey, Box<Lengths>>,
    classes: QuickMap<u64, Box<Lengths>>,
    all: Box<Lengths>,
    stamp: u64,
}

impl Default for LengthBook {
    fn default() -> Self {
        Self {
            pairs: QuickMap::default(),
            classes: QuickMap::default(),
            all: Box::new(Lengths::EMPTY),
            stamp: 0,
        }
    }
}

fn entry<K: Copy + Eq + std::hash::Hash>(map: &mut QuickMap<K, Box<Lengths>>, key: K) -> &mut Lengths {
    if map.len() >= MOST_KEYS && !map.contains_key(&key) {
        let oldest = map.iter().min_by_key(|(_, l)| l.stamp).map(|(k, _)| *k);
        if let Some(oldest) = oldest {
            map.remove(&oldest);
        }
    }
    map.entry(key).or_insert_with(|| Box::new(Lengths::EMPTY))
}

impl LengthBook {
    /// An answer of so many tokens has ended by itself.
    pub fn learn(&mut self, key: LengthKey, tokens: f64) {
        if !(tokens.is_finite() && tokens >= 1.0) {
            return;
        }
        self.stamp += 1;
        entry(&mut self.pairs, key).learn(tokens, self.stamp);
        entry(&mut self.classes, key.class).learn(tokens, self.stamp);
        self.all.learn(tokens, self.stamp);
    }

    /// The `q`-quantile of the length of an answer that is longer than `beyond` tokens; `None` if too few such answers
    /// were seen.
    pub fn quantile(&self, key: LengthKey, q: f64, beyond: f64) -> Option<f64> {
        let known = [self.pairs.get(&key), self.classes.get(&key.class), Some(&self.all)];
        known.into_iter().flatten().find_map(|l| l.quantile(q, beyond))
    }

    /// (tenant, class) pairs remembered.
    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }
}

/// A length for an answer that went on beyond all that were seen: a quarter more, and at least the next refinement.
pub fn beyond_all(produced: f64) -> f64 {
    produced + (0.25 * produced).max(REFINE_EVERY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: LengthKey = LengthKey { tenant: 1, class: 2 };

    #[test]
    fn quantiles_come_from_the_tenant_then_the_class_then_everybody() {
        let mut book = LengthBook::default();
        assert_eq!(book.quantile(KEY, 0.95, 0.0), None);
        for i in 0..100 {
            book.learn(LengthKey { tenant: 9, class: 9 }, 1_000.0 + f64::from(i));
        }
        assert!(book.quantile(KEY, 0.5, 0.0).unwrap() > 1_000.0, "from everybody");
        for _ in 0..100 {
            book.learn(LengthKey { tenant: 9, class: 2 }, 200.0);
        }
        assert!((200.0..=230.0).contains(&book.quantile(KEY, 0.5, 0.0).unwrap()), "from the class");
        for _ in 0..100 {
            book.learn(KEY, 20.0);
        }
        assert!((20.0..=23.0).contains(&book.quantile(KEY, 0.95, 0.0).unwrap()), "from the tenant");
    }

    #[test]
    fn what_came_already_changes_what_is_expected() {
        let mut book = LengthBook::default();
        for _ in 0..90 {
            book.learn(KEY, 50.0);
        }
        for _ in 0..10 {
            book.learn(KEY, 800.0);
        }
        assert!(book.quantile(KEY, 0.5, 0.0).unwrap() < 60.0);
        let long = book.quantile(KEY, 0.5, 100.0).unwrap();
        assert!(
            (800.0..=920.0).contains(&long),
            "one that is not over after 100 is one of the long ones: {long}"
        );
        assert_eq!(book.quantile(KEY, 0.5, 5_000.0), None);
    }

    #[test]
    fn memory_is_bounded_and_old_habits_fade() {
        let mut book = LengthBook::default();
        for tenant in 0..5_000 {
            book.learn(LengthKey { tenant, class: tenant }, 10.0);
        }
        assert_eq!((book.pairs(), book.classes.len()), (MOST_KEYS, MOST_KEYS));
        for _ in 0..5_000 {
            book.learn(KEY, 10.0);
        }
        for _ in 0..5_000 {
            book.learn(KEY, 1_000.0);
        }
        assert!(book.quantile(KEY, 0.5, 0.0).unwrap() > 900.0);
    }

    proptest! {
        #[test]
        fn quantiles_grow_with_q_and_with_what_has_come_and_cover_what_was_seen(
            lengths in prop::collection::vec(1.0..5_000.0f64, 20..200), q in 0.05..0.95f64, beyond in 0.0..4_000.0f64,
        ) {
            let mut book = LengthBook::default();
            for l in &lengths {
                book.learn(KEY, *l);
            }
            let at = |q, beyond| book.quantile(KEY, q, beyond);
            prop_assert!(at(q, 0.0) <= at(q + 0.05, 0.0));
            if let (Some(a), Some(b)) = (at(q, beyond), at(q, beyond + 100.0)) {
                prop_assert!(a <= b + 1e-9 && a > beyond);
            }
            // At least the share q of what was seen is no longer than the quantile says.
            let value = at(q, 0.0).unwrap();
            let covered = lengths.iter().filter(|l| **l <= value).count() as f64;
            prop_assert!(covered + 1e-6 >= (q * lengths.len() as f64).floor(), "{covered} of {}", lengths.len());
        }
    }
}
