//! What others do, to compare with: policies that answer the planner's own [`Problem`] by the rules of other systems and of habit.
//!
//! All see the same load lines, prices, inventory and budgets as the planner, so that a comparison is about who chooses what,
//! not about who knows more. Rules that know nothing of inventory or budgets are cut down to both afterwards ([`clip`]): highest
//! tier first, pools in order, as many replicas as there is room for. Pure and deterministic.
//!
//! | policy | rule from |
//! |---|---|
//! | [`one_kind_for_all`], [`one_kind_per_pool`] | habit; nothing published |
//! | [`melange`] | Griggs et al., "Mélange" (arXiv 2404.14527), §5: an integer program a model, endless GPUs |
//! | [`aibrix`] | AIBrix's GPU optimizer: that program with four slices a bucket |
//! | [`wva`] | llm-d's workload variant autoscaler: greedy by priority and regret under limited stock |
//! | [`adaptive_greedy`] | Cheng and Nguyen (arXiv 2604.07472): multi-start greedy, relocation, consolidation |
//!
//! Where a source leaves something open, what is done here says so at the function.

mod adaptive;
mod habit;
mod melange;
mod wva;

use std::collections::BTreeMap;

use crate::plan::PlanInput;
use crate::plan::candidates::Leniency;
use crate::plan::inventory::{Eligibility, Reserved};
use crate::plan::performance::Performance;
use crate::plan::prepare;
use crate::plan::program::{Fleet, Problem};
use crate::plan::residual::Remaining;

pub use adaptive::adaptive_greedy;
pub use habit::{one_kind_for_all, one_kind_per_pool};
pub use melange::{aibrix, melange};
pub use wva::{Unallocated, wva};

/// Replicas of one pool by candidate, wherever they may go.
pub type Wish = BTreeMap<usize, u32>;

/// Which candidates a problem is asked for with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidates {
    /// Those that the planner keeps: none that another of its accelerator class makes pointless.
    Kept,
    /// All.
    All,
}

/// Writes the planner's problem of an input for all pools that can be planned, and hands it to `ask`.
pub fn with_problem<T>(
    input: &PlanInput<'_>,
    model: &dyn Performance,
    which: Candidates,
    ask: impl FnOnce(&Problem<'_>) -> T,
) -> T {
    let mut drafts = prepare::drafts(input, model);
    if which == Candidates::All {
        drafts.iter_mut().for_each(|d| d.set = d.all.clone());
    }
    let mut reserved = Reserved::default();
    let spent = prepare::reserve_fixed(input.snapshot, &drafts, &mut reserved);
    let members: Vec<usize> = (0..drafts.len()).filter(|i| drafts[*i].is_planned()).collect();
    ask(&prepare::problem_with(input, &drafts, &members, &reserved, &spent, &BTreeMap::new()))
}

/// What a fleet is worth.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Verdict {
    /// List price of all replicas, dollars per hour.
    pub usd_per_hour: f64,
    /// Requests per second that are asked for.
    pub demand_rps: f64,
    /// Requests per second that are served within their objectives.
    pub attained_rps: f64,
    /// Share of each pool's requests that are not, summed by tier, highest first.
    pub undone: Vec<(i32, f64)>,
}

impl Verdict {
    /// Share of all requests that are served within their objectives, 0–1.
    pub fn attainment(&self) -> f64 {
        if self.demand_rps > 0.0 { self.attained_rps / self.demand_rps } else { 1.0 }
    }
}

/// What a fleet serves of a problem when its flows are as good as they can be, and what it costs.
pub fn judge(problem: &Problem<'_>, fleet: &Fleet) -> Verdict {
    let mut verdict = Verdict::default();
    let mut undone: BTreeMap<i32, f64> = BTreeMap::new();
    for (p, (pool, counts)) in problem.pools.iter().zip(fleet).enumerate() {
        let answer = crate::plan::greedy::answer_of(problem, p, counts);
        let late = |class: usize| {
            pool.set.lenient.iter().any(|(c, l)| *c == class && matches!(l, Leniency::Stretched(_)))
        };
        let mut attained = 0.0;
        for (c, class) in pool.set.classes.iter().enumerate().filter(|(c, _)| !late(*c)) {
            attained += class.rps * (1.0 - answer.unserved[c]);
        }
        let asked = pool.total_rps();
        verdict.demand_rps += asked;
        verdict.attained_rps += attained;
        if asked > 0.0 {
            *undone.entry(pool.pool.priority).or_default() += 1.0 - attained / asked;
        }
        verdict.usd_per_hour +=
            counts.iter().map(|((k, c), n)| pool.usd(*k, &problem.cells[*c]) * f64::from(*n)).sum::<f64>();
    }
    verdict.undone = undone.into_iter().rev().collect();
    verdict
}

/// A fleet of another problem over the same cluster, in terms of this one; what this one does not know serves nothing and is left out.
pub fn translate(from: &Problem<'_>, fleet: &Fleet, to: &Problem<'_>) -> Fleet {
    let mut translated: Fleet = vec![BTreeMap::new(); to.pools.len()];
    for (pool, counts) in from.pools.iter().zip(fleet) {
        let Some(p) = to.pools.iter().position(|q| q.pool.id == pool.pool.id) else { continue };
        for ((k, c), n) in counts {
            let (shape, cell) = (&pool.set.candidates[*k].shape, &from.cells[*c]);
            let same = |x: &crate::plan::inventory::Cell| {
                (&x.accelerator, &x.zone, x.spot, x.is_autoscaled())
                    == (&cell.accelerator, &cell.zone, cell.spot, cell.is_autoscaled())
                    && x.slots == cell.slots
            };
            let k = to.pools[p].set.candidates.iter().position(|x| &x.shape == shape);
            if let (Some(k), Some(c)) = (k, to.cells.iter().position(same)) {
                *translated[p].entry((k, c)).or_default() += n;
            }
        }
    }
    translated
}

/// A plan's fleet in terms of a problem over the same cluster; what the problem does not know is left out.
pub fn of_plan(plan: &plimsoll_fleet::Plan, to: &Problem<'_>) -> Fleet {
    let mut fleet: Fleet = vec![BTreeMap::new(); to.pools.len()];
    for (p, pool) in to.pools.iter().enumerate() {
        for r in plan.pool(&pool.pool.id).map(|p| p.replicas.as_slice()).unwrap_or_default() {
            let is_here = |c: &crate::plan::inventory::Cell| {
                c.accelerator == r.shape.accelerator
                    && match r.nodes.first() {
                        Some(node) => c.slots.iter().any(|s| s.node.as_ref() == Some(node)),
                        None => c.is_autoscaled(),
                    }
            };
            let k = pool.set.candidates.iter().position(|c| c.shape == r.shape);
            if let (Some(k), Some(c)) = (k, to.cells.iter().position(is_here)) {
                *fleet[p].entry((k, c)).or_default() += 1;
            }
        }
    }
    fleet
}

/// Pools as those who come first see them: highest tier first, then in order.
fn in_order(problem: &Problem<'_>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..problem.pools.len()).collect();
    order.sort_by_key(|p| std::cmp::Reverse(problem.pools[*p].pool.priority));
    order
}

/// Open cells of a pool's candidate, cheapest first.
fn cells_of(problem: &Problem<'_>, p: usize, k: usize) -> Vec<usize> {
    let accelerator = &problem.pools[p].set.candidates[k].shape.accelerator;
    let open = |c: &usize| {
        let cell = &problem.cells[*c];
        &cell.accelerator == accelerator && cell.eligible[p] == Eligibility::Open
    };
    let mut cells: Vec<usize> = (0..problem.cells.len()).filter(open).collect();
    cells.sort_by(|a, b| problem.cells[*a].usd_per_hour.total_cmp(&problem.cells[*b].usd_per_hour));
    cells
}

/// Takes up to `count` replicas of a pool's candidate, in the cheapest cells with room; returns how many there were.
fn take(
    problem: &Problem<'_>,
    left: &mut Remaining<'_, '_>,
    fleet: &mut Fleet,
    (p, k, count): (usize, usize, u32),
) -> u32 {
    let mut taken = 0;
    for c in cells_of(problem, p, k) {
        while taken < count && left.fits(p, k, c) {
            left.take(p, k, c);
            *fleet[p].entry((k, c)).or_default() += 1;
            taken += 1;
        }
    }
    taken
}

/// Cuts wishes that know nothing of inventory and budgets down to both.
pub fn clip(problem: &Problem<'_>, wishes: &[Wish]) -> Fleet {
    let mut left = Remaining::new(problem);
    let mut fleet: Fleet = vec![BTreeMap::new(); problem.pools.len()];
    for p in in_order(problem) {
        let mut room = problem.pools[p].ceiling;
        for (k, n) in &wishes[p] {
            room -= take(problem, &mut left, &mut fleet, (p, *k, (*n).min(room)));
        }
    }
    fleet
}

/// Replicas of candidate `k` that serve all of a pool alone, at least its floor; `None` if it cannot.
fn alone(problem: &Problem<'_>, p: usize, k: usize) -> Option<u32> {
    let pool = &problem.pools[p];
    let need = pool.set.candidates[k].replicas_for(&pool.set.classes) * pool.headroom;
    (need.is_finite()).then(|| ((need - 1e-9).ceil().max(0.0) as u32).max(pool.floor))
}

/// The cheapest candidate that serves a pool alone among those that `may`, at list prices: candidate, replicas, dollars per hour.
fn cheapest_alone(problem: &Problem<'_>, p: usize, may: &dyn Fn(usize) -> bool) -> Option<(usize, u32, f64)> {
    let pool = &problem.pools[p];
    let mut best: Option<(usize, u32, f64)> = None;
    for k in (0..pool.set.candidates.len()).filter(|k| may(*k)) {
        let Some(n) = alone(problem, p, k) else { continue };
        let usd = f64::from(n) * pool.set.candidates[k].usd_per_hour;
        if !cells_of(problem, p, k).is_empty() && best.is_none_or(|(_, _, b)| usd < b - 1e-9) {
            best = Some((k, n, usd));
        }
    }
    best
}

#[cfg(test)]
mod tests;
