//! The plan: from what the cluster is and what is asked of it to the cheapest fleet that meets every objective inside
//! every budget.
//!
//! [`plan`] is a pure function. It finds each pool's candidates ([`candidates`]), counts what may be used
//! ([`inventory`]), solves the program ([`program`]) by prices through a [`solver::Solver`], spreads the replicas over
//! zones that cost the same ([`spread`]), places them ([`crate::place`]), and writes down the reasons ([`crate::explain`]). Broken pools, budgets or classes get a reason
//! each and disturb no other.
//!
//! Complexity: candidates cost questions to the engine model that are cached between plans; solving by prices takes a
//! search of microseconds a pool and a small linear program a round, near-linear in pools, and small fleets are
//! solved as one program besides ([`whole`]); placement is linear in replicas × nodes of a cell. Measured by
//! `cargo bench -p plimsoll-scheduler --bench fleets`.

mod assemble;
pub mod candidates;
mod config;
mod covering;
mod decompose;
mod dive;
mod downgrade;
mod engine_model;
pub(crate) mod greedy;
#[cfg(feature = "highs")]
pub mod highs;
pub mod inventory;
pub mod margin;
mod master;
mod options;
mod pairs;
pub(crate) mod parallel;
pub mod performance;
pub(crate) mod prepare;
pub mod program;
mod provision;
pub(crate) mod residual;
pub mod solver;
mod spread;
mod tableau;
mod today;
mod together;
mod whole;

use std::collections::BTreeMap;

use plimsoll_fleet::{ClusterSnapshot, Consumption, DemandEstimate, Plan, PoolId};

pub use config::PlannerConfig;
pub use engine_model::{EngineModel, engine_config};
pub use performance::ShapeCache;

use crate::place;
use inventory::Reserved;
use performance::Performance;
use prepare::Spent;
use program::{Answer, Cut, Problem};
use solver::Solver;

/// Everything a plan depends on.
#[derive(Debug, Clone)]
pub struct PlanInput<'a> {
    /// The cluster.
    pub snapshot: &'a ClusterSnapshot,
    /// Demand by pool. A pool without an entry keeps at least the replicas it has.
    pub demands: &'a BTreeMap<PoolId, DemandEstimate>,
    /// The plan in force.
    pub previous: Option<&'a Plan>,
    /// Settings.
    pub config: &'a PlannerConfig,
    /// Number of the new plan.
    pub number: u64,
    /// First serial number to name new replicas by.
    pub next_serial: u64,
    /// Now.
    pub now: jiff::Timestamp,
    /// What made the scheduler plan anew.
    pub trigger: String,
    /// Seconds each pool has been without a request; a pool without an entry counts as busy.
    pub idle: &'a BTreeMap<PoolId, f64>,
    /// Answers of the engine model, kept between plans. The plan does not depend on what is in it.
    pub cache: &'a ShapeCache,
}

/// A plan and what to pass on to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOutcome {
    /// The plan. Its `quality.solve_ms` is 0: this function has no clock; the caller that has one sets it.
    pub plan: Plan,
    /// First serial number for the next plan's new replicas.
    pub next_serial: u64,
}

/// Plans with the engine model and the default solver; with the feature `highs`, with HiGHS for a second opinion.
pub fn plan(input: &PlanInput<'_>) -> PlanOutcome {
    #[cfg(feature = "highs")]
    let solver = highs::SecondOpinion;
    #[cfg(not(feature = "highs"))]
    let solver = solver::BranchAndBound;
    plan_with(input, &EngineModel, &solver)
}

/// Plans with a given performance model and solver.
pub fn plan_with(input: &PlanInput<'_>, model: &dyn Performance, solver: &dyn Solver) -> PlanOutcome {
    input.cache.next_plan();
    let drafts = prepare::drafts(input, model);
    let mut reserved = Reserved::default();
    let mut spent = prepare::reserve_fixed(input.snapshot, &drafts, &mut reserved);
    let unprovisioned = provision::unprovisioned(input);
    provision::reserve(input, &drafts, &unprovisioned, &mut reserved);
    let mut solved: Vec<Group<'_>> = Vec::new();
    // Pools that Plimsoll only advises on must not take anything from those it runs: they plan with what is left.
    for enforced in [true, false] {
        let members: Vec<usize> = (0..drafts.len())
            .filter(|i| {
                drafts[*i].is_planned()
                    && (drafts[*i].pool.mode == plimsoll_fleet::pool::Mode::Enforce) == enforced
            })
            .collect();
        if members.is_empty() {
            continue;
        }
        if !enforced {
            reserved.returned = today::held(input.snapshot);
        }
        let group = solve_group(input, &drafts, members, &reserved, &spent, solver);
        for (at, member) in group.members.iter().enumerate() {
            for placed in group.placement.placed.iter().filter(|p| group.wants[p.want].pool == at) {
                let want = &group.wants[placed.want];
                reserved.add(&want.shape, &placed.nodes);
                prepare::spend(
                    input.snapshot,
                    &drafts[*member].pool.id,
                    &group.consumption(want),
                    &mut spent,
                );
            }
        }
        solved.push(group);
    }
    assemble::assemble(input, &drafts, &solved, unprovisioned, model)
}

/// A set of pools solved together, with the answer and its placement.
pub(crate) struct Group<'a> {
    /// Index of each pool's draft.
    pub(crate) members: Vec<usize>,
    pub(crate) problem: Problem<'a>,
    pub(crate) answer: Answer,
    pub(crate) wants: Vec<place::Want>,
    pub(crate) placement: place::Placement,
    /// The pools that may be served with variants below the wanted quality, each with the budget that binds.
    pub(crate) lowered: BTreeMap<usize, String>,
}

impl Group<'_> {
    /// What one replica of a want takes of budgets.
    pub(crate) fn consumption(&self, want: &place::Want) -> Consumption {
        let pool = &self.problem.pools[want.pool];
        let k = pool.set.candidates.iter().position(|c| c.shape == want.shape);
        k.map_or_else(Consumption::default, |k| pool.consumption(k, &self.problem.cells[want.cell]))
    }
}

fn solve_group<'a>(
    input: &PlanInput<'_>,
    drafts: &'a [prepare::Draft<'a>],
    members: Vec<usize>,
    reserved: &Reserved,
    spent: &Spent,
    solver: &dyn Solver,
) -> Group<'a> {
    let limits = input.config.limits();
    let solve = |problem: &Problem<'_>| {
        let mut answer = decompose::solve(problem, solver, &limits);
        spread::over_zones(problem, &mut answer);
        answer
    };
    let doubts: Vec<margin::Doubt> = members.iter().map(|i| prepare::doubt(input, &drafts[*i])).collect();
    let problem_of = |lowered: &BTreeMap<usize, String>| {
        let mut problem = prepare::problem_with(input, drafts, &members, reserved, spent, lowered);
        margin::raise(&mut problem, &doubts, input.config.lost_request_price, &limits);
        problem
    };
    let below = downgrade::served_below(drafts, &members);
    let more = 1.0 + input.config.scale_down_headroom.clamp(0.0, 10.0);
    let downgrade::Sized { mut problem, mut answer, lowered } =
        downgrade::size(&problem_of, &solve, &below, more, &|p| drafts[members[p]].lowered.is_some());
    let mut wants = prepare::wants(drafts, &members, &problem, &answer);
    let mut placement = place::place(&problem.cells, &wants, place::Mode::Stay);
    if placement.unplaced.is_empty() {
        return Group { members, problem, answer, wants, placement, lowered };
    }
    // Running replicas leave gaps that are too small: look for a fleet that fits around them.
    let uncut = (answer.clone(), wants.clone());
    for _ in 0..input.config.placement_rounds {
        for want in &placement.unplaced {
            let (cell, size) = (wants[*want].cell, wants[*want].shape.stage_gpus());
            let groups = placement
                .placed
                .iter()
                .map(|p| &wants[p.want])
                .filter(|w| w.cell == cell && w.shape.stage_gpus() >= size)
                .map(|w| (w.shape.stage_gpus() / size) * w.shape.pipeline_parallel)
                .sum();
            problem.cuts.push(Cut { cell, size, groups });
        }
        let homeless = placement.unplaced.iter().map(|want| wants[*want].pool).collect();
        answer = match decompose::repair(&problem, &answer, &homeless, solver, &limits) {
            Some(repaired) => repaired,
            None => solve(&problem),
        };
        wants = prepare::wants(drafts, &members, &problem, &answer);
        placement = place::place(&problem.cells, &wants, place::Mode::Stay);
        if placement.unplaced.is_empty() {
            break;
        }
    }
    if !placement.unplaced.is_empty() || (uncut.0.complete && !answer.complete) {
        // Nothing serves as much around them: move smaller replicas aside.
        let repacked = place::place(&problem.cells, &uncut.1, place::Mode::Repack);
        if repacked.unplaced.len() <= placement.unplaced.len() {
            problem.cuts.clear();
            (answer, wants) = uncut;
            placement = repacked;
        }
    }
    if !placement.unplaced.is_empty() {
        prepare::drop_unplaced(&problem, &mut answer, &wants, &placement);
    }
    Group { members, problem, answer, wants, placement, lowered }
}

#[cfg(test)]
pub(crate) mod tests;
