//! llm-d's workload variant autoscaler: its greedy optimiser under limited stock (October 2025).
//!
//! Each pool has an option for each accelerator kind: `max(min, ⌈rate/λ*⌉)` replicas of one shape. An option's value is the change of
//! cost, with a tenth of old and new cost added where the kind changes. Pools are sorted by priority, then by regret (value of the
//! second best option less that of the best); the first is given its best option if stock lasts, and comes back with its next best
//! if not. `λ*` is the common load line here, not that system's own queueing model, which knows means alone.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::{cheapest_alone, in_order, take};
use crate::plan::program::{Fleet, Problem};
use crate::plan::residual::Remaining;

/// What becomes of a pool none of whose options fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unallocated {
    /// It gets nothing: the rule as written down.
    Nothing,
    /// It gets as many replicas of its options as are left, cheapest option first. Ours: the rule is better off with it.
    WhatIsLeft,
}

/// A pool's option on one accelerator kind.
#[derive(Debug, Clone)]
struct Choice {
    candidate: usize,
    replicas: u32,
    value: f64,
}

/// The rule. See the module.
pub fn wva(problem: &Problem<'_>, unallocated: Unallocated) -> Fleet {
    let mut waiting: Vec<(usize, Vec<Choice>)> =
        in_order(problem).into_iter().map(|p| (p, options(problem, p))).collect();
    let all: BTreeMap<usize, Vec<Choice>> = waiting.iter().cloned().collect();
    waiting.retain(|(_, options)| !options.is_empty());
    let mut left = Remaining::new(problem);
    let mut fleet: Fleet = vec![BTreeMap::new(); problem.pools.len()];
    let mut without: Vec<usize> = Vec::new();
    let urgency = |a: &(usize, Vec<Choice>), b: &(usize, Vec<Choice>)| -> Ordering {
        let tier = |p: usize| problem.pools[p].pool.priority;
        tier(b.0).cmp(&tier(a.0)).then(regret(&b.1).total_cmp(&regret(&a.1))).then(a.0.cmp(&b.0))
    };
    while let Some(at) = (0..waiting.len()).min_by(|a, b| urgency(&waiting[*a], &waiting[*b])) {
        let (p, choice) = (waiting[at].0, waiting[at].1[0].clone());
        let (mut tried, mut with) = (left.clone(), fleet.clone());
        if take(problem, &mut tried, &mut with, (p, choice.candidate, choice.replicas)) == choice.replicas {
            (left, fleet) = (tried, with);
            waiting.swap_remove(at);
        } else if waiting[at].1.len() > 1 {
            waiting[at].1.remove(0);
        } else {
            waiting.swap_remove(at);
            without.push(p);
        }
    }
    if unallocated == Unallocated::WhatIsLeft {
        for p in without {
            // In units of the whole demand, so that options add up.
            let mut missing = 1.0;
            for choice in all.get(&p).into_iter().flatten() {
                let wanted = (f64::from(choice.replicas) * missing).ceil() as u32;
                let got = take(problem, &mut left, &mut fleet, (p, choice.candidate, wanted));
                missing -= f64::from(got) / f64::from(choice.replicas.max(1));
                if missing <= 0.0 {
                    break;
                }
            }
        }
    }
    fleet
}

/// Options of a pool, best value first.
fn options(problem: &Problem<'_>, p: usize) -> Vec<Choice> {
    let pool = &problem.pools[p];
    let mut now: BTreeMap<&str, u32> = BTreeMap::new();
    let mut old = 0.0;
    for ((k, c), n) in &pool.running {
        *now.entry(&pool.set.candidates[*k].shape.accelerator).or_default() += n;
        old += pool.usd(*k, &problem.cells[*c]) * f64::from(*n);
    }
    let current = now.into_iter().max_by_key(|(_, n)| *n).map(|(kind, _)| kind);
    let kinds: BTreeSet<&str> = pool.set.candidates.iter().map(|c| c.shape.accelerator.as_str()).collect();
    let mut options: Vec<Choice> = kinds
        .into_iter()
        .filter_map(|kind| {
            let of_kind = |k: usize| pool.set.candidates[k].shape.accelerator == kind;
            let (candidate, replicas, usd) = cheapest_alone(problem, p, &of_kind)?;
            let moves = if current == Some(kind) { 0.0 } else { 0.1 * (old + usd) };
            Some(Choice { candidate, replicas: replicas.min(pool.ceiling), value: usd - old + moves })
        })
        .collect();
    options.sort_by(|a, b| a.value.total_cmp(&b.value).then(a.candidate.cmp(&b.candidate)));
    options
}

/// What not getting the best option would cost; endless where there is no other.
fn regret(options: &[Choice]) -> f64 {
    match options {
        [best, second, ..] => second.value - best.value,
        _ => f64::INFINITY,
    }
}
