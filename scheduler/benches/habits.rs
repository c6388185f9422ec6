//! The planner against other policies on the same fleets: `cargo bench -p plimsoll-scheduler --bench habits [-- pools=N]`.
//!
//! For each policy: the share of requests that it serves within their objectives (mean over pools) and what it costs; then the least
//! that the planner pays for as large a share, found by planning under falling caps. All see the same load lines, with the same margins.

mod support;

use plimsoll_fleet::PoolPlan;
use plimsoll_scheduler::baselines::{
    Candidates, Unallocated, adaptive_greedy, aibrix, judge, melange, one_kind_for_all, one_kind_per_pool,
    with_problem, wva,
};
use plimsoll_scheduler::plan::program::{Fleet, Problem};
use plimsoll_scheduler::plan::{EngineModel, plan};
use support::fleet::World;
use support::{Failure, budget};

/// A policy with its name.
type Policy = (&'static str, fn(&Problem<'_>) -> Fleet);

fn policies() -> [Policy; 6] {
    [
        ("one kind for all pools", one_kind_for_all),
        ("one kind per pool", one_kind_per_pool),
        ("Mélange per pool", melange),
        ("AIBrix's optimizer", aibrix),
        ("WVA's greedy", |p| wva(p, Unallocated::WhatIsLeft)),
        ("adaptive greedy", adaptive_greedy),
    ]
}

/// What the benchmark asks of a world.
struct Asked(World);

impl Asked {
    /// Cost and attainment of the planner's fleet under a cap (`None`: none more).
    fn ours(&self, cap: Option<f64>) -> (f64, f64) {
        let mut snapshot = self.0.snapshot.clone();
        snapshot.budgets.extend(cap.map(|usd| budget("cap", usd, None, None)));
        let plan = plan(&self.0.input(&snapshot)).plan;
        let served = |p: &PoolPlan| 1.0 - p.unserved_rps / p.demand.total_rps().max(1e-9);
        let mean = plan.pools.iter().map(served).sum::<f64>() / plan.pools.len().max(1) as f64;
        (plan.usd_per_hour, mean)
    }

    /// The least that the planner pays for at least this attainment.
    fn least(&self, attainment: f64, frontier: &mut Vec<(f64, f64)>) -> f64 {
        let enough = |a: f64| a >= attainment - 1e-4;
        for _ in 0..7 {
            let low = frontier.iter().filter(|(_, a)| !enough(*a)).map(|(c, _)| *c).fold(0.0, f64::max);
            let high =
                frontier.iter().filter(|(_, a)| enough(*a)).map(|(c, _)| *c).fold(f64::INFINITY, f64::min);
            if !high.is_finite() || high - low < 0.005 * high {
                break;
            }
            frontier.push(self.ours(Some(0.5 * (low + high))));
        }
        frontier.iter().filter(|(_, a)| enough(*a)).map(|(usd, _)| *usd).fold(f64::INFINITY, f64::min)
    }
}

fn table(title: &str, world: &Asked) {
    println!("\n{title}");
    println!("{:24} {:>8} {:>10} {:>14} {:>8}", "", "served %", "$/h", "planner's $/h", "saves %");
    let full = world.ours(None);
    let mut frontier = vec![full];
    for (name, policy) in policies() {
        let verdict =
            with_problem(&world.0.input(&world.0.snapshot), &EngineModel, Candidates::Kept, |problem| {
                let verdict = judge(problem, &policy(problem));
                let undone: f64 = verdict.undone.iter().map(|(_, u)| *u).sum();
                (verdict.usd_per_hour, 1.0 - undone / problem.pools.len().max(1) as f64)
            });
        let (usd, attainment) = verdict;
        let ours = world.least(attainment, &mut frontier);
        let saves = 100.0 * (1.0 - ours / usd);
        // Where the planner serves less at any price, it has no cost at that share.
        let (ours, saves) = match ours.is_finite() {
            true => (format!("{ours:.2}"), format!("{saves:.1}")),
            false => ("serves less".to_owned(), "–".to_owned()),
        };
        println!("{name:24} {:8.1} {usd:10.2} {ours:>14} {saves:>8}", 100.0 * attainment);
    }
    println!("{:24} {:8.1} {:10.2}", "planner", 100.0 * full.1, full.0);
}

fn main() -> Result<(), Failure> {
    let pools = std::env::args().find_map(|a| a.strip_prefix("pools=")?.parse().ok()).unwrap_or(40);
    let seed = std::env::args().find_map(|a| a.strip_prefix("seed=")?.parse().ok()).unwrap_or(7);
    let world = |load, stock| Ok::<_, Failure>(Asked(World::new(pools, load, stock, seed)?));
    let ample = world(6.0, 10.0)?;
    table("inventory ample", &ample);
    table("inventory binds, all can be served", &world(6.0, 1.0)?);
    table("inventory binds, not all can be served", &world(12.0, 1.0)?);
    let (usd, _) = ample.ours(None);
    let mut capped = world(6.0, 10.0)?;
    capped.0.snapshot.budgets.push(budget("all", 0.7 * usd, None, None));
    table("a budget binds (70 % of what serving all costs)", &capped);
    Ok(())
}
