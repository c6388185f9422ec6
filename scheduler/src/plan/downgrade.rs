//! Budgets with `onLimit: Downgrade`: where one binds, its pools may be served with variants below `spec.minQuality` rather than
//! not at all.
//!
//! The fleet is planned without such variants first, and stands if that serves everything. Else it is planned once more with them,
//! each at a price far above what it could save, so that as few as possible are taken, in low tiers first; that fleet is taken if
//! it serves more. A pool that runs such variants goes back only when the better ones serve more than today's demand: else it would
//! go to and fro with every whiff of traffic.

use std::collections::BTreeMap;
use std::sync::Arc;

use plimsoll_fleet::budget::OnLimit;
use plimsoll_fleet::pool::Disaggregation;
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{DemandEstimate, ModelPool};

use super::PlanInput;
use super::candidates::{CandidateSet, candidates, prune};
use super::greedy::answer_of;
use super::inventory::Eligibility;
use super::performance::Performance;
use super::prepare::{Draft, budgets_of};
use super::program::{Answer, Coupling, Problem};
use super::residual::Remaining;
use crate::place::Live;

/// Price of a replica below the wanted quality in the lowest tier, in prices of the replica.
const FACTOR: f64 = 20.0;

/// A pool's candidates with those of variants below the wanted quality; `None` where there are none or no budget allows them.
pub(crate) fn lowered(
    input: &PlanInput<'_>,
    pool: &ModelPool,
    demand: &DemandEstimate,
    set: &CandidateSet,
    live: &[Live],
    model: &dyn Performance,
) -> Option<CandidateSet> {
    let names = budgets_of(input.snapshot, &pool.id);
    let allows =
        |b: &plimsoll_fleet::Budget| b.on_limit == OnLimit::Downgrade && names.contains(b.name.as_str());
    let below: Vec<Variant> =
        pool.variants.iter().filter(|v| v.quality < pool.min_quality).cloned().collect();
    if below.is_empty() || !input.snapshot.budgets.iter().any(allows) {
        return None;
    }
    let mut worse = ModelPool { variants: below, min_quality: 0.0, ..pool.clone() };
    let scv = if demand.arrival_scv > 0.0 { demand.arrival_scv } else { 1.0 };
    // Where quality gives way, prefill and decode need not be apart as well.
    worse.parallelism.disaggregation = Disaggregation::Never;
    let of = (demand.classes.as_slice(), scv);
    let mut more = candidates(input.snapshot, &worse, &[], of, input.config, model, input.cache);
    // What only longer objectives would let them serve, better variants may serve within the true ones.
    for (c, _) in more.lenient.iter().filter(|(c, _)| !set.lenient.iter().any(|(known, _)| known == c)) {
        more.candidates.iter_mut().for_each(|k| k.rates[*c] = 0.0);
    }
    more.candidates.retain(|k| k.rates.iter().any(|r| *r > 0.0));
    prune(&mut more, pool, &|shape| live.iter().any(|l| &l.shape == shape));
    if more.candidates.is_empty() {
        return None;
    }
    let mut all = set.clone();
    all.candidates.append(&mut more.candidates);
    all.candidates.sort_by(|a, b| a.shape.cmp(&b.shape));
    Some(all)
}

/// Price of a pool's replicas below the wanted quality, in their own prices: higher by tier.
pub(crate) fn factor(pool: &ModelPool, pools: &[&ModelPool]) -> f64 {
    let mut below: Vec<i32> = pools.iter().map(|p| p.priority).filter(|p| *p < pool.priority).collect();
    below.sort_unstable();
    below.dedup();
    FACTOR * (1.0 + below.len().min(10) as f64)
}

/// The pools (by their place in `members`) that run variants below the wanted quality on account of a budget.
pub(crate) fn served_below(drafts: &[Draft<'_>], members: &[usize]) -> Vec<usize> {
    let is_below = |p: &usize| {
        let draft = &drafts[members[*p]];
        let quality = |l: &Live| draft.pool.variant(&l.shape.variant).map(|v| v.quality);
        let below = |l: &Live| quality(l).is_some_and(|q| q < draft.pool.min_quality);
        draft.lowered.is_some() && draft.live.iter().any(below)
    };
    (0..members.len()).filter(is_below).collect()
}

/// A fleet before placement.
pub(crate) struct Sized<'a> {
    /// What was solved.
    pub(crate) problem: Problem<'a>,
    /// The fleet.
    pub(crate) answer: Answer,
    /// The pools that may be served below the wanted quality, each with the budget that binds.
    pub(crate) lowered: BTreeMap<usize, String>,
}

/// The fleet at the wanted quality, with headroom where that is to be had; or, where a budget that allows it binds, at less
/// quality. `problem_of` writes the problem in which given pools may go below, `below` are the pools that run so, which are sized
/// for `more` times their demand.
pub(crate) fn size<'a>(
    problem_of: &dyn Fn(&BTreeMap<usize, String>) -> Problem<'a>,
    solve: &dyn Fn(&Problem<'_>) -> Answer,
    below: &[usize],
    more: f64,
    may_go_below: &dyn Fn(usize) -> bool,
) -> Sized<'a> {
    let none = BTreeMap::new();
    let roomy = |lowered: &BTreeMap<usize, String>| {
        let mut problem = problem_of(lowered);
        for p in below {
            let mut set = CandidateSet::clone(&problem.pools[*p].set);
            set.classes.iter_mut().for_each(|c| c.rps *= more);
            (problem.pools[*p].set, problem.pools[*p].headroom) = (Arc::new(set), 1.0);
        }
        problem
    };
    let calm = |problem: &Problem<'_>| problem.pools.iter().any(|p| p.headroom > 1.0);
    let tight = |mut problem: Problem<'a>| {
        problem.pools.iter_mut().for_each(|p| p.headroom = 1.0);
        problem
    };
    let mut problem = roomy(&none);
    let mut answer = solve(&problem);
    let mut is_roomy = !below.is_empty();
    let mut lowered = BTreeMap::new();
    if !answer.complete && calm(&problem) {
        // Headroom is for calm times: when something is short, size by demand alone.
        problem = tight(problem);
        if !answer.prices.is_empty() {
            problem.hints = answer.prices;
        }
        answer = solve(&problem);
    }
    if !answer.complete {
        let mut binding = binding(&problem, &answer);
        binding.retain(|p, _| may_go_below(*p));
        if !binding.is_empty() {
            let mut worse = tight(roomy(&binding));
            let mut found = solve(&worse);
            let found_roomy = is_roomy && found.complete;
            if is_roomy && !found.complete {
                worse = tight(problem_of(&binding));
                found = solve(&worse);
            }
            if serves_more(&problem, &found, &answer) {
                // What more of the budget is worth is what it would serve at the wanted quality.
                let prices = std::mem::take(&mut answer.prices);
                (problem, answer) = (worse, Answer { prices, ..found });
                (lowered, is_roomy) = (binding, found_roomy);
            }
        }
    }
    if is_roomy && !answer.complete {
        problem = tight(problem_of(&none));
        answer = solve(&problem);
        is_roomy = false;
    }
    if is_roomy {
        // The fleet stands; what flows to it is today's demand.
        let today = problem_of(&lowered);
        for p in below {
            problem.pools[*p].set = Arc::clone(&today.pools[*p].set);
            answer.pools[*p] = answer_of(&problem, *p, &answer.pools[*p].counts);
        }
    }
    Sized { problem, answer, lowered }
}

/// The budgets that allow variants below the wanted quality and keep some pool from being served, by pool that they cover: a short
/// pool finds accelerators for one more replica, but too little of the budget is left.
fn binding(problem: &Problem<'_>, answer: &Answer) -> BTreeMap<usize, String> {
    let mut left = Remaining::new(problem);
    for (p, pool) in answer.pools.iter().enumerate() {
        left.take_each(p, &pool.counts);
    }
    let lacks = |p: usize, b: usize| {
        let pool = &problem.pools[p];
        pool.set.candidates.iter().enumerate().any(|(k, candidate)| {
            problem.cells.iter().enumerate().any(|(c, cell)| {
                cell.accelerator == candidate.shape.accelerator
                    && cell.eligible[p] == Eligibility::Open
                    && problem.takes(&Coupling::Budget(b), p, k, c) > left.left(b) + 1e-9
                    && left.has_slots(p, k, c)
            })
        })
    };
    let short: Vec<usize> = (0..problem.pools.len())
        .filter(|p| {
            let (pool, answer) = (&problem.pools[*p], &answer.pools[*p]);
            pool.undone(answer) > 1e-6 && answer.replicas() < pool.ceiling
        })
        .collect();
    let mut by_pool = BTreeMap::new();
    for (b, row) in problem.budgets.iter().enumerate().filter(|(_, row)| row.downgrades) {
        if short.iter().any(|p| row.covers[*p] && lacks(*p, b)) {
            for p in (0..problem.pools.len()).filter(|p| row.covers[*p]) {
                by_pool.entry(p).or_insert_with(|| row.name.clone());
            }
        }
    }
    by_pool
}

/// Whether an answer serves more than another to the same pools, the highest tier that differs deciding.
fn serves_more(problem: &Problem<'_>, more: &Answer, than: &Answer) -> bool {
    let mut tiers: BTreeMap<i32, f64> = BTreeMap::new();
    for (p, pool) in problem.pools.iter().enumerate() {
        *tiers.entry(pool.pool.priority).or_default() +=
            pool.undone(&than.pools[p]) - pool.undone(&more.pools[p]);
    }
    tiers.into_values().rev().find(|gain| gain.abs() > 1e-6).is_some_and(|gain| gain > 0.0)
}
