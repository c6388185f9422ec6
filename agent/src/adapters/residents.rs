//! Which adapters are worth a slot.
//!
//! The value of a set C is Σ over requests of max over their adapters of (worth − load price where not in C), less the load prices
//! of what is in C and was not before. Its first part is a facility location: monotone and submodular, so that greedy choice is within
//! 1 − 1/e of the best (Nemhauser, Wolsey and Fisher, 1978); exchanges then mend what greed missed.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// A request, or several alike: what each adapter that may answer it is worth.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// How often it comes.
    pub weight: f64,
    /// Adapter, and the worth of its answer in the unit of load prices.
    pub choices: Vec<(usize, f64)>,
}

/// The residents worth most.
///
/// `load_price` is by adapter; `slots` are at most as many residents as there may be; `before` are today's. Today's stay unless
/// another set is worth more with its loads paid. Ties go to the lower adapter.
pub fn best(
    demand: &[Demand],
    load_price: &[f64],
    slots: usize,
    before: &BTreeSet<usize>,
) -> BTreeSet<usize> {
    let problem = Problem::new(demand, load_price, before);
    let kept: BTreeSet<usize> =
        before.iter().copied().filter(|&i| i < load_price.len()).take(slots).collect();
    let mut best = problem.exchanged(kept);
    let found = problem.exchanged(problem.greedy(slots));
    if problem.value(&found) > problem.value(&best) + 1e-9 {
        best = found;
    }
    best
}

struct Problem<'a> {
    demand: &'a [Demand],
    load_price: &'a [f64],
    before: &'a BTreeSet<usize>,
    /// By adapter: index of a demand, and the adapter's worth there.
    of_adapter: BTreeMap<usize, Vec<(usize, f64)>>,
    /// By demand: the best of it with nothing resident.
    floor: Vec<f64>,
}

impl<'a> Problem<'a> {
    fn new(demand: &'a [Demand], load_price: &'a [f64], before: &'a BTreeSet<usize>) -> Self {
        let mut of_adapter: BTreeMap<usize, Vec<(usize, f64)>> = BTreeMap::new();
        let mut floor = Vec::with_capacity(demand.len());
        for (index, one) in demand.iter().enumerate() {
            let mut best = f64::NEG_INFINITY;
            for &(adapter, worth) in &one.choices {
                let Some(price) = load_price.get(adapter) else { continue };
                best = best.max(worth - price);
                of_adapter.entry(adapter).or_default().push((index, worth));
            }
            floor.push(best);
        }
        Self { demand, load_price, before, of_adapter, floor }
    }

    /// What it costs that an adapter becomes a resident.
    fn entry_price(&self, adapter: usize) -> f64 {
        if self.before.contains(&adapter) { 0.0 } else { self.load_price[adapter] }
    }

    /// What an adapter adds where each demand has `reached` already.
    fn gain(&self, adapter: usize, reached: &[f64]) -> f64 {
        let served = self.of_adapter.get(&adapter).into_iter().flatten();
        let more: f64 = served.map(|&(d, worth)| self.demand[d].weight * (worth - reached[d]).max(0.0)).sum();
        more - self.entry_price(adapter)
    }

    fn reached(&self, set: &BTreeSet<usize>) -> Vec<f64> {
        let mut reached = self.floor.clone();
        for adapter in set {
            for &(d, worth) in self.of_adapter.get(adapter).into_iter().flatten() {
                reached[d] = reached[d].max(worth);
            }
        }
        reached
    }

    fn value(&self, set: &BTreeSet<usize>) -> f64 {
        let served: f64 = self
            .reached(set)
            .iter()
            .zip(self.demand)
            .filter(|(reached, _)| reached.is_finite())
            .map(|(reached, one)| one.weight * reached)
            .sum();
        served - set.iter().map(|&i| self.entry_price(i)).sum::<f64>()
    }

    /// Lazy greedy choice (Minoux, 1978): gains only shrink, so the largest stale one is looked at first.
    fn greedy(&self, slots: usize) -> BTreeSet<usize> {
        let mut reached = self.floor.clone();
        let mut set = BTreeSet::new();
        let mut waiting: BinaryHeap<Waiting> = self
            .of_adapter
            .keys()
            .map(|&adapter| Waiting { gain: self.gain(adapter, &reached), adapter, round: 0 })
            .collect();
        while set.len() < slots
            && let Some(top) = waiting.pop()
        {
            if top.gain <= 0.0 {
                break;
            }
            if top.round < set.len() {
                let gain = self.gain(top.adapter, &reached);
                waiting.push(Waiting { gain, round: set.len(), ..top });
                continue;
            }
            for &(d, worth) in self.of_adapter.get(&top.adapter).into_iter().flatten() {
                reached[d] = reached[d].max(worth);
            }
            set.insert(top.adapter);
        }
        set
    }

    /// Exchanges one resident for another while that gains, at most once a slot and adapter.
    fn exchanged(&self, mut set: BTreeSet<usize>) -> BTreeSet<usize> {
        for _ in 0..set.len() {
            let value = self.value(&set);
            let mut best: Option<(f64, usize, usize)> = None;
            for &out in &set {
                let mut rest = set.clone();
                rest.remove(&out);
                let (reached, left) = (self.reached(&rest), self.value(&rest));
                for &into in self.of_adapter.keys().filter(|i| !set.contains(i)) {
                    let gained = left + self.gain(into, &reached) - value;
                    if gained > best.map_or(1e-9, |(most, ..)| most) {
                        best = Some((gained, out, into));
                    }
                }
            }
            let Some((_, out, into)) = best else { break };
            set.remove(&out);
            set.insert(into);
        }
        set
    }
}

struct Waiting {
    gain: f64,
    adapter: usize,
    /// How many were chosen when the gain was found.
    round: usize,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.gain.total_cmp(&other.gain).then_with(|| other.adapter.cmp(&self.adapter))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(adapter: usize, weight: f64) -> Demand {
        Demand { weight, choices: vec![(adapter, 0.0)] }
    }

    fn set(adapters: &[usize]) -> BTreeSet<usize> {
        adapters.iter().copied().collect()
    }

    #[test]
    fn the_most_wanted_are_resident() {
        let demand = [named(0, 5.0), named(1, 9.0), named(2, 1.0), named(3, 7.0)];
        assert_eq!(best(&demand, &[1.0; 4], 2, &set(&[])), set(&[1, 3]));
        // A dear load counts for more than a frequent one.
        assert_eq!(best(&demand, &[10.0, 1.0, 1.0, 1.0], 2, &set(&[])), set(&[0, 1]));
    }

    #[test]
    fn a_change_must_pay_for_its_load() {
        // One wanted 1.5 times as often is worth 1.5 loads an epoch against 1: the difference is less than the load.
        let demand = [named(0, 1.0), named(1, 1.5)];
        assert_eq!(best(&demand, &[1.0; 2], 1, &set(&[0])), set(&[0]));
        let demand = [named(0, 1.0), named(1, 2.5)];
        assert_eq!(best(&demand, &[1.0; 2], 1, &set(&[0])), set(&[1]));
        // What is asked for once is not worth a load ahead of it.
        assert_eq!(best(&[named(1, 1.0)], &[1.0; 2], 1, &set(&[])), set(&[]));
    }

    #[test]
    fn those_that_serve_the_same_requests_share_no_slots() {
        let like = |weight, choices: &[(usize, f64)]| Demand { weight, choices: choices.to_vec() };
        let demand =
            [like(10.0, &[(0, 5.0), (1, 4.9), (2, 0.0)]), like(4.0, &[(0, 0.0), (1, 0.0), (2, 5.0)])];
        assert_eq!(best(&demand, &[1.0; 3], 2, &set(&[])), set(&[0, 2]));
        // The second best of the first kind will do while it is there: its tenth less, ten times, is not worth a load.
        assert_eq!(best(&demand, &[1.1; 3], 2, &set(&[1, 2])), set(&[1, 2]));
    }

    #[test]
    fn what_is_unknown_is_nobody() {
        let demand =
            [Demand { weight: 1.0, choices: vec![(7, 1.0)] }, Demand { weight: 1.0, choices: vec![] }];
        assert_eq!(best(&demand, &[1.0; 2], 2, &set(&[9, 0])), set(&[0]));
        assert_eq!(best(&[], &[], 3, &set(&[])), set(&[]));
    }

    proptest! {
        /// Never worse than what there is, never over the slots, and within 1 − 1/e of the best set where nothing has to be loaded.
        #[test]
        fn it_is_near_the_best(
            worths in prop::collection::vec(prop::collection::vec(0.0f64..10.0, 6), 1..12),
            prices in prop::collection::vec(0.1f64..5.0, 6),
            slots in 0usize..5,
            before in prop::collection::btree_set(0usize..6, 0..4),
        ) {
            let demand: Vec<Demand> = worths
                .iter()
                .map(|w| Demand { weight: 1.0, choices: w.iter().copied().enumerate().collect() })
                .collect();
            let problem = Problem::new(&demand, &prices, &before);
            let chosen = best(&demand, &prices, slots, &before);
            prop_assert!(chosen.len() <= slots);
            let kept: BTreeSet<usize> = before.iter().copied().take(slots).collect();
            prop_assert!(problem.value(&chosen) >= problem.value(&kept) - 1e-9);

            let all: BTreeSet<usize> = (0..6).collect();
            let free = Problem::new(&demand, &prices, &all);
            let base = free.value(&set(&[]));
            let most = (0u32..64)
                .filter(|bits| bits.count_ones() as usize <= slots)
                .map(|bits| free.value(&(0..6).filter(|i| bits >> i & 1 == 1).collect()))
                .fold(base, f64::max);
            let reached = free.value(&free.exchanged(free.greedy(slots)));
            prop_assert!(reached - base >= (1.0 - (-1.0f64).exp()) * (most - base) - 1e-9);
        }
    }
}
