//! Fleets by greedy choice, and what given replicas can serve: the start of every solve, and the answer should the
//! solver fail. O(replicas × candidates × cells) a pool.

use std::collections::{BTreeMap, BTreeSet};

use super::inventory::Eligibility;
use super::program::{Coupling, Fleet, PoolAnswer, PoolProblem, Problem, TIE_USD};

/// Serves a pool's classes with given replicas, cheapest capacity first and all classes in step: a feasible, not
/// always best, flow.
pub fn fill(pool: &PoolProblem<'_>, counts: &BTreeMap<(usize, usize), u32>) -> PoolAnswer {
    let classes = &pool.set.classes;
    let mut rest: Vec<f64> = classes.iter().map(|c| if c.rps > 0.0 { 1.0 } else { 0.0 }).collect();
    let mut shares = vec![vec![0.0; pool.set.candidates.len()]; classes.len()];
    let mut totals = vec![0_u32; pool.set.candidates.len()];
    for ((k, _), n) in counts {
        totals[*k] += n;
    }
    // Shapes that serve fewest classes first: the others can take what these cannot.
    let mut order: Vec<usize> = (0..totals.len()).filter(|k| totals[*k] > 0).collect();
    order.sort_by_key(|k| pool.set.candidates[*k].rates.iter().filter(|r| **r > 0.0).count());
    for k in order {
        let rates = &pool.set.candidates[k].rates;
        let need: f64 = (0..rest.len())
            .filter(|c| rates[*c] > 0.0)
            .map(|c| rest[c] * classes[c].rps * pool.headroom / rates[c])
            .sum();
        if need <= 0.0 {
            continue;
        }
        let part = (f64::from(totals[k]) / need).min(1.0);
        for c in 0..rest.len() {
            if rates[c] > 0.0 {
                shares[c][k] = rest[c] * part;
                rest[c] -= shares[c][k];
            }
        }
    }
    // What headroom reserved is first of all for the demand there is.
    if pool.headroom > 1.0 {
        for c in 0..rest.len() {
            let served: f64 = shares[c].iter().sum();
            let target = (served * pool.headroom).min(if classes[c].rps > 0.0 { 1.0 } else { 0.0 });
            if served > 0.0 && rest[c] > 1e-9 {
                shares[c].iter_mut().for_each(|s| *s *= target / served);
                rest[c] = 1.0 - target;
            }
        }
    }
    PoolAnswer {
        counts: counts.clone(),
        shares,
        unserved: rest.into_iter().map(|r| if r < 1e-9 { 0.0 } else { r }).collect(),
        short: pool.floor.saturating_sub(counts.values().sum()),
        zones_short: 0,
    }
}

/// What given replicas of one pool of a problem can do: [`fill`], and the zones they span.
pub fn answer_of(problem: &Problem<'_>, p: usize, counts: &BTreeMap<(usize, usize), u32>) -> PoolAnswer {
    let pool = &problem.pools[p];
    let zones: BTreeSet<&str> = counts
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|((_, c), _)| problem.cells[*c].zone.as_str())
        .filter(|z| !z.is_empty())
        .collect();
    let zones_short = if pool.min_zones > 1 { pool.min_zones.saturating_sub(zones.len() as u32) } else { 0 };
    PoolAnswer { zones_short, ..fill(pool, counts) }
}

/// What is left of the coupling rows while a fleet is built up.
#[derive(Debug, Clone)]
pub struct Remaining<'p, 'a> {
    problem: &'p Problem<'a>,
    /// Groups taken: by cell, `(tp, pp) → replicas`.
    taken: BTreeMap<usize, BTreeMap<(u32, u32), u32>>,
    /// By budget row, in its unit.
    spent: Vec<f64>,
}

impl<'p, 'a> Remaining<'p, 'a> {
    /// Nothing taken yet.
    pub fn new(problem: &'p Problem<'a>) -> Self {
        Self { problem, taken: BTreeMap::new(), spent: vec![0.0; problem.budgets.len()] }
    }

    /// What is left of a budget row, in its unit; less than nothing where it is overdrawn.
    pub fn left(&self, budget: usize) -> f64 {
        self.problem.budgets[budget].left - self.spent[budget]
    }

    /// Whether one more replica of pool `p`, candidate `k` fits cell `c` and every budget.
    pub fn fits(&self, p: usize, k: usize, c: usize) -> bool {
        (0..self.spent.len()).all(|b| {
            let takes = self.problem.takes(&Coupling::Budget(b), p, k, c);
            takes <= 0.0 || takes <= self.left(b) + 1e-9
        }) && self.has_slots(p, k, c)
    }

    /// Whether one more replica of pool `p`, candidate `k` finds accelerators in cell `c`.
    pub fn has_slots(&self, p: usize, k: usize, c: usize) -> bool {
        let shape = &self.problem.pools[p].set.candidates[k].shape;
        let empty = BTreeMap::new();
        let taken = self.taken.get(&c).unwrap_or(&empty);
        let mut sizes: Vec<u32> = taken.keys().map(|(tp, _)| *tp).chain([1, shape.tensor_parallel]).collect();
        sizes.extend(self.problem.cuts.iter().filter(|cut| cut.cell == c).map(|cut| cut.size));
        sizes.extend(self.problem.held.iter().filter(|h| h.cell == c).map(|h| h.tensor));
        sizes.sort_unstable();
        sizes.dedup();
        sizes.iter().filter(|s| **s <= shape.tensor_parallel).all(|size| {
            let used: u32 = taken
                .iter()
                .filter(|((tp, _), _)| tp >= size)
                .map(|((tp, pp), n)| (tp / size) * pp * n)
                .sum();
            used + (shape.tensor_parallel / size) * shape.pipeline_parallel <= self.problem.groups(c, *size)
        })
    }

    /// Whether the budgets have room for a replica in cell `to` instead of `from`, where a kilowatt-hour may be dirtier.
    pub fn may_move(&self, p: usize, k: usize, from: usize, to: usize) -> bool {
        (0..self.spent.len()).all(|b| {
            let takes = |c| self.problem.takes(&Coupling::Budget(b), p, k, c);
            takes(to) <= takes(from) + 1e-12 || takes(to) - takes(from) <= self.left(b) + 1e-9
        })
    }

    /// Takes one replica's worth.
    pub fn take(&mut self, p: usize, k: usize, c: usize) {
        let pool = &self.problem.pools[p];
        let shape = &pool.set.candidates[k].shape;
        *self
            .taken
            .entry(c)
            .or_default()
            .entry((shape.tensor_parallel, shape.pipeline_parallel))
            .or_default() += 1;
        for (b, spent) in self.spent.iter_mut().enumerate() {
            *spent += self.problem.takes(&Coupling::Budget(b), p, k, c);
        }
    }

    /// Takes these replicas, whether they fit or not.
    pub fn take_each(&mut self, p: usize, counts: &BTreeMap<(usize, usize), u32>) {
        for ((k, c), n) in counts {
            (0..*n).for_each(|_| self.take(p, *k, *c));
        }
    }

    /// Takes some replicas, all of them or, if they do not fit together, none; says which.
    pub fn take_all(&mut self, p: usize, counts: &BTreeMap<(usize, usize), u32>) -> bool {
        let each = || counts.iter().flat_map(|((k, c), n)| (0..*n).map(move |_| (*k, *c)));
        for (taken, (k, c)) in each().enumerate() {
            if !self.fits(p, k, c) {
                each().take(taken).for_each(|(k, c)| self.release(p, k, c));
                return false;
            }
            self.take(p, k, c);
        }
        true
    }

    /// Gives one replica's worth back.
    pub fn release(&mut self, p: usize, k: usize, c: usize) {
        let pool = &self.problem.pools[p];
        let shape = &pool.set.candidates[k].shape;
        if let Some(n) =
            self.taken.get_mut(&c).and_then(|t| t.get_mut(&(shape.tensor_parallel, shape.pipeline_parallel)))
        {
            *n = n.saturating_sub(1);
        }
        for (b, spent) in self.spent.iter_mut().enumerate() {
            *spent -= self.problem.takes(&Coupling::Budget(b), p, k, c);
        }
    }
}

/// A fleet by greedy choice, highest tier first: the running replicas that fit, then the cheapest coverage. The start
/// of every solve, and the answer should the solver fail.
pub fn greedy(problem: &Problem<'_>) -> Fleet {
    let mut fleet = vec![BTreeMap::new(); problem.pools.len()];
    let mut order: Vec<usize> = (0..problem.pools.len()).collect();
    order.sort_by_key(|p| std::cmp::Reverse(problem.pools[*p].pool.priority));
    let mut left = Remaining::new(problem);
    for p in order {
        let pool = &problem.pools[p];
        let counts: &mut BTreeMap<(usize, usize), u32> = &mut fleet[p];
        let mut total = 0;
        for ((k, c), n) in &pool.running {
            for _ in 0..*n {
                if total < pool.ceiling && (problem.uncoupled || left.fits(p, *k, *c)) {
                    left.take(p, *k, *c);
                    *counts.entry((*k, *c)).or_default() += 1;
                    total += 1;
                }
            }
        }
        // Add the cheapest coverage of what is still unserved.
        while total < pool.ceiling {
            let now = fill(pool, counts);
            let unserved = now.unserved.iter().any(|u| *u > 1e-9);
            if !unserved && total >= pool.floor {
                break;
            }
            let mut best: Option<(f64, usize, usize)> = None;
            for (k, candidate) in pool.set.candidates.iter().enumerate() {
                let need: f64 = pool
                    .set
                    .classes
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| candidate.rates[*i] > 0.0)
                    .map(|(i, c)| now.unserved[i] * c.rps * pool.headroom / candidate.rates[i])
                    .sum();
                let gain: f64 = pool
                    .set
                    .classes
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| candidate.rates[*i] > 0.0)
                    .map(|(i, c)| now.unserved[i] * c.rps)
                    .sum::<f64>()
                    * if need > 1.0 { 1.0 / need } else { 1.0 };
                if unserved && gain <= 0.0 {
                    continue;
                }
                for (c, cell) in problem.cells.iter().enumerate() {
                    if cell.accelerator != candidate.shape.accelerator
                        || cell.eligible[p] != Eligibility::Open
                        || problem.allowed.as_ref().is_some_and(|a| !a.contains(&(k, c)))
                        || !(problem.uncoupled || left.fits(p, k, c))
                    {
                        continue;
                    }
                    let usd = pool.usd(k, cell)
                        + problem.surcharge(p, k, c)
                        + TIE_USD * f64::from(candidate.shape.gpus());
                    let score = if unserved { usd / gain } else { usd };
                    if best.is_none_or(|(s, _, _)| score < s - 1e-12) {
                        best = Some((score, k, c));
                    }
                }
            }
            let Some((_, k, c)) = best else { break };
            left.take(p, k, c);
            *counts.entry((k, c)).or_default() += 1;
            total += 1;
        }
        // Let go of what is not needed, dearest first.
        let mut members: Vec<(usize, usize)> = counts.keys().copied().collect();
        members.sort_by(|a, b| {
            let usd =
                |m: &(usize, usize)| pool.usd(m.0, &problem.cells[m.1]) + problem.surcharge(p, m.0, m.1);
            usd(b).total_cmp(&usd(a)).then(a.cmp(b))
        });
        let unserved =
            |counts: &BTreeMap<(usize, usize), u32>| -> f64 { fill(pool, counts).unserved.iter().sum() };
        let base = unserved(counts);
        for m in members {
            while counts.get(&m).copied().unwrap_or(0) > 0 && counts.values().sum::<u32>() > pool.floor {
                let mut fewer = counts.clone();
                if let Some(n) = fewer.get_mut(&m) {
                    *n -= 1;
                }
                if unserved(&fewer) > base + 1e-9 {
                    break;
                }
                left.release(p, m.0, m.1);
                *counts = fewer;
            }
        }
        counts.retain(|_, n| *n > 0);
    }
    fleet
}
