//! A problem as one mixed-integer program: for small fleets, and for a pool that finds no room for a fleet that serves it.
//!
//! Variables: whole replicas kept and started by pool, shape and cell; the share of each request class that flows to
//! each shape; shares left unserved; shortfalls below the replica and zone bounds. Rows: demand, load lines, slots of
//! each cell ([`super::inventory`]), budgets, replica bounds, zones; and where prefill and decode are apart, that what is prefilled within
//! reach of some decode replicas is decoded there. Tiers are served in order, lexicographically: if
//! everything can be served, one solve finds the cheapest fleet; otherwise each tier, highest first, minimises what it
//! leaves unserved with the tiers above fixed, and the last solve minimises dollars and price of change.
//!
//! Size: pools × shapes × cells whole variables, pools × shapes × classes real ones. The number of solves is at most
//! the number of tiers plus two.

use std::collections::BTreeMap;

use super::covering::Part;
use super::greedy::{answer_of, fill};
use super::inventory::Eligibility;
use super::options::Options;
use super::program::{
    Answer, Coupling, Fleet, PartShare, PoolAnswer, PoolProblem, Problem, SHORT_WEIGHT, ZONE_WEIGHT,
};
use super::solver::{Comparison, Limits, Program, Solution, SolveError, Solver, VarId};

/// The variables of one pool.
#[derive(Debug, Default)]
struct PoolVars {
    kept: Vec<(usize, usize, VarId)>,
    new: Vec<(usize, usize, VarId)>,
    /// Candidates, each as often as there are places from which its replicas reach different others.
    kinds: Vec<(usize, Part)>,
    /// By class, by kind.
    flow: Vec<Vec<Option<VarId>>>,
    unserved: Vec<VarId>,
    short: VarId,
    zones_short: Option<VarId>,
    zones: Vec<VarId>,
}

struct Built {
    program: Program,
    vars: Vec<PoolVars>,
    /// Cost of stopping everything that runs: a constant of the objective.
    constant: f64,
}

fn build(problem: &Problem<'_>) -> Built {
    let mut program = Program::default();
    let mut all = Vec::with_capacity(problem.pools.len());
    let mut constant = 0.0;
    // Terms of the coupling rows, gathered while variables are made.
    let mut slots: BTreeMap<usize, Vec<(u32, u32, VarId)>> = BTreeMap::new();
    let mut spend: Vec<Vec<(VarId, f64)>> = vec![Vec::new(); problem.budgets.len()];
    for (p, pool) in problem.pools.iter().enumerate() {
        let mut vars = PoolVars::default();
        let mut by_kind: Vec<Vec<VarId>> = Vec::new();
        let mut by_zone: BTreeMap<&str, Vec<VarId>> = BTreeMap::new();
        for (k, candidate) in pool.set.candidates.iter().enumerate() {
            let shape = &candidate.shape;
            let useful = pool.useful(k).min(f64::from(pool.ceiling));
            for (c, cell) in problem.cells.iter().enumerate() {
                if cell.accelerator != shape.accelerator || cell.eligible[p] == Eligibility::Closed {
                    continue;
                }
                let Some(part) = pool.part(k, c) else { continue };
                let cost = pool.cost(k, cell);
                let takes: Vec<(usize, f64)> = (0..problem.budgets.len())
                    .map(|b| (b, problem.takes(&Coupling::Budget(b), p, k, c)))
                    .filter(|(_, takes)| *takes > 0.0)
                    .collect();
                let running = pool.running.get(&(k, c)).copied().unwrap_or(0);
                let stop = pool.stop_usd(k, cell);
                constant += f64::from(running) * stop;
                let kind = vars.kinds.iter().position(|x| *x == (k, part)).unwrap_or_else(|| {
                    vars.kinds.push((k, part));
                    by_kind.push(Vec::new());
                    by_kind.len() - 1
                });
                let mut add = |program: &mut Program, cost: f64, upper: f64| {
                    let v = program.integer(cost, 0.0, upper);
                    by_kind[kind].push(v);
                    by_zone.entry(cell.zone.as_str()).or_default().push(v);
                    slots.entry(c).or_default().push((shape.stage_gpus(), shape.pipeline_parallel, v));
                    for (b, takes) in &takes {
                        spend[*b].push((v, *takes));
                    }
                    v
                };
                if running > 0 {
                    vars.kept.push((k, c, add(&mut program, cost - stop, f64::from(running))));
                }
                let room = f64::from(cell.groups(shape.stage_gpus()) / shape.pipeline_parallel.max(1));
                let allowed = problem.allowed.as_ref().is_none_or(|a| a.contains(&(k, c)));
                if allowed && cell.eligible[p] == Eligibility::Open && room >= 1.0 {
                    let start = pool.start_usd(k, cell);
                    vars.new.push((k, c, add(&mut program, cost + start, room.min(useful))));
                }
            }
        }
        // Demand: every class is served or counted as unserved, in shares of its rate.
        let mut load: Vec<Vec<(VarId, f64)>> = vec![Vec::new(); vars.kinds.len()];
        for (c, class) in pool.set.classes.iter().enumerate() {
            let mut terms = Vec::new();
            let mut flows = vec![None; vars.kinds.len()];
            let mut through: BTreeMap<usize, Vec<(VarId, f64)>> = BTreeMap::new();
            if class.rps > 0.0 {
                for (i, (k, part)) in vars.kinds.iter().enumerate() {
                    let rate = pool.set.candidates[*k].rates[c];
                    if rate > 0.0 && !by_kind[i].is_empty() {
                        let v = program.real(0.0, 0.0, 1.0);
                        flows[i] = Some(v);
                        match part {
                            Part::Whole => terms.push((v, 1.0)),
                            Part::Prefill(link) => {
                                terms.push((v, 1.0));
                                through.entry(*link).or_default().push((v, 1.0));
                            }
                            Part::Decode(link) => through.entry(*link).or_default().push((v, -1.0)),
                        }
                        load[i].push((v, class.rps * pool.headroom / rate));
                    }
                }
            }
            for balance in through.into_values() {
                program.row(balance, Comparison::AtMost, 0.0);
            }
            let u = program.real(0.0, 0.0, if class.rps > 0.0 { 1.0 } else { 0.0 });
            if class.rps > 0.0 {
                terms.push((u, 1.0));
                program.row(terms, Comparison::Equal, 1.0);
            }
            vars.flow.push(flows);
            vars.unserved.push(u);
        }
        for (k, mut terms) in load.into_iter().enumerate() {
            if !terms.is_empty() {
                terms.extend(by_kind[k].iter().map(|v| (*v, -1.0)));
                program.row(terms, Comparison::AtMost, 0.0);
            }
        }
        let every: Vec<VarId> = by_kind.iter().flatten().copied().collect();
        vars.short = program.real(0.0, 0.0, f64::from(pool.floor));
        if pool.floor > 0 {
            let mut terms: Vec<_> = every.iter().map(|v| (*v, 1.0)).collect();
            terms.push((vars.short, 1.0));
            program.row(terms, Comparison::AtLeast, f64::from(pool.floor));
        }
        if !every.is_empty() {
            program.row(
                every.iter().map(|v| (*v, 1.0)).collect(),
                Comparison::AtMost,
                f64::from(pool.ceiling),
            );
        }
        if pool.min_zones > 1 {
            let mut terms = Vec::new();
            for (zone, members) in &by_zone {
                if zone.is_empty() {
                    continue;
                }
                let z = program.integer(0.0, 0.0, 1.0);
                let mut row: Vec<_> = members.iter().map(|v| (*v, -1.0)).collect();
                row.push((z, 1.0));
                program.row(row, Comparison::AtMost, 0.0);
                terms.push((z, 1.0));
                vars.zones.push(z);
            }
            let short = program.real(0.0, 0.0, f64::from(pool.min_zones));
            terms.push((short, 1.0));
            program.row(terms, Comparison::AtLeast, f64::from(pool.min_zones));
            vars.zones_short = Some(short);
        }
        all.push(vars);
    }
    for (c, members) in &slots {
        let mut sizes: Vec<u32> = members.iter().map(|(tp, _, _)| *tp).collect();
        sizes.push(1);
        sizes.extend(problem.held.iter().filter(|h| h.cell == *c).map(|h| h.stage_gpus));
        sizes.sort_unstable();
        sizes.dedup();
        for size in sizes {
            let terms: Vec<_> = members
                .iter()
                .filter(|(tp, _, _)| *tp >= size)
                .map(|(tp, pp, v)| (*v, f64::from((tp / size) * pp)))
                .collect();
            let groups = problem.groups(*c, size);
            // A row that every member's bound already implies would only slow the solver down.
            let most: f64 = terms.iter().map(|(v, a)| a * program.variables[*v].upper).sum();
            if most > f64::from(groups) {
                program.row(terms, Comparison::AtMost, f64::from(groups));
            }
        }
    }
    for (b, terms) in spend.into_iter().enumerate() {
        let most: f64 = terms.iter().map(|(v, a)| a * program.variables[*v].upper).sum();
        if most > problem.budgets[b].left {
            program.row(terms, Comparison::AtMost, problem.budgets[b].left.max(0.0));
        }
    }
    Built { program, vars: all, constant }
}

/// What one pool leaves undone, in the units of its tier: 1 is a wholly unserved pool.
fn undone(pool: &PoolProblem<'_>, vars: &PoolVars) -> Vec<(VarId, f64)> {
    let total = pool.total_rps();
    let mut terms: Vec<(VarId, f64)> = Vec::new();
    for (class, u) in pool.set.classes.iter().zip(&vars.unserved) {
        if class.rps > 0.0 {
            terms.push((*u, class.rps / total));
        }
    }
    if pool.floor > 0 {
        terms.push((vars.short, SHORT_WEIGHT / f64::from(pool.floor)));
    }
    if let Some(z) = vars.zones_short {
        terms.push((z, ZONE_WEIGHT / f64::from(pool.min_zones)));
    }
    terms
}

/// Whole-variable values of a fleet, as a start for the solver.
fn start_of(problem: &Problem<'_>, built: &Built, fleet: &[BTreeMap<(usize, usize), u32>]) -> Vec<f64> {
    let mut values = vec![0.0; built.program.variables.len()];
    for ((pool, vars), counts) in problem.pools.iter().zip(&built.vars).zip(fleet) {
        let mut left = counts.clone();
        for (k, c, v) in vars.kept.iter().chain(&vars.new) {
            if let Some(n) = left.get_mut(&(*k, *c)) {
                let take = (*n).min(built.program.variables[*v].upper.max(0.0) as u32);
                values[*v] = f64::from(take);
                *n -= take;
            }
        }
        let counts: BTreeMap<_, _> =
            counts.iter().filter(|(_, n)| **n > 0).map(|(key, n)| (*key, *n)).collect();
        let filled = fill(pool, &counts);
        for (c, flows) in vars.flow.iter().enumerate() {
            let mut served = 0.0;
            for (v, (k, part)) in flows.iter().zip(&vars.kinds) {
                let Some(v) = v else { continue };
                let at = |s: &&PartShare| {
                    let link = pool.part(*k, s.reach);
                    s.class == c && s.candidate == *k && link.as_ref() == Some(part)
                };
                let share = match part {
                    Part::Whole => filled.shares[c][*k],
                    _ => filled.apart.iter().filter(at).map(|s| s.share).sum(),
                };
                values[*v] = share;
                served += if matches!(part, Part::Decode(_)) { 0.0 } else { share };
            }
            if pool.set.classes[c].rps > 0.0 {
                values[vars.unserved[c]] = (1.0 - served).clamp(0.0, 1.0);
            }
        }
        values[vars.short] = f64::from(pool.floor.saturating_sub(counts.values().sum()));
        let mut zones: Vec<&str> = counts.keys().map(|(_, c)| problem.cells[*c].zone.as_str()).collect();
        zones.retain(|z| !z.is_empty());
        zones.sort_unstable();
        zones.dedup();
        let mut named: Vec<&str> = vars
            .kept
            .iter()
            .chain(&vars.new)
            .map(|(_, c, _)| problem.cells[*c].zone.as_str())
            .filter(|z| !z.is_empty())
            .collect();
        named.sort_unstable();
        named.dedup();
        for (zone, z) in named.iter().zip(&vars.zones) {
            values[*z] = if zones.contains(zone) { 1.0 } else { 0.0 };
        }
        if let Some(short) = vars.zones_short {
            values[short] = f64::from(pool.min_zones.saturating_sub(zones.len() as u32));
        }
    }
    values
}

fn read(problem: &Problem<'_>, built: &Built, values: &[f64]) -> Vec<PoolAnswer> {
    problem
        .pools
        .iter()
        .zip(&built.vars)
        .enumerate()
        .map(|(p, (pool, vars))| {
            let mut counts = BTreeMap::new();
            for (k, c, v) in vars.kept.iter().chain(&vars.new) {
                let n = values[*v].round().max(0.0) as u32;
                if n > 0 {
                    *counts.entry((*k, *c)).or_insert(0) += n;
                }
            }
            if pool.has_parts() {
                return answer_of(problem, p, &counts);
            }
            let tidy = |x: f64| if x < 1e-7 { 0.0 } else { x.min(1.0) };
            let share_of = |flows: &Vec<Option<VarId>>| {
                let mut shares = vec![0.0; pool.set.candidates.len()];
                for (v, (k, _)) in flows.iter().zip(&vars.kinds) {
                    shares[*k] = v.map_or(0.0, |v| tidy(values[v]));
                }
                shares
            };
            let shares: Vec<Vec<f64>> = vars.flow.iter().map(share_of).collect();
            let unserved = shares
                .iter()
                .zip(&pool.set.classes)
                .map(|(s, class)| if class.rps > 0.0 { tidy(1.0 - s.iter().sum::<f64>()) } else { 0.0 })
                .map(|u| if u < 1e-5 { 0.0 } else { u })
                .collect();
            let short = pool.floor.saturating_sub(counts.values().sum());
            let mut zones: Vec<&str> = counts
                .keys()
                .map(|(_, c): &(usize, usize)| problem.cells[*c].zone.as_str())
                .filter(|z| !z.is_empty())
                .collect();
            zones.sort_unstable();
            zones.dedup();
            let zones_short =
                if pool.min_zones > 1 { pool.min_zones.saturating_sub(zones.len() as u32) } else { 0 };
            PoolAnswer { counts, shares, apart: Vec::new(), unserved, short, zones_short }
        })
        .collect()
}

/// Solves a problem as one program from a known fleet: serve tiers in order, then spend least.
///
/// Never fails: should the solver not answer, the given fleet stands, with the bound it has.
///
/// The answer carries no prices; [`relaxation`] has them.
pub fn solve_whole(problem: &Problem<'_>, fleet: &Fleet, solver: &dyn Solver, limits: &Limits) -> Answer {
    let mut built = build(problem);
    if built.program.variables.is_empty() {
        return Answer { complete: true, ..Answer::default() };
    }
    let costs: Vec<f64> = built.program.variables.iter().map(|v| v.cost).collect();
    let undone: Vec<Vec<(VarId, f64)>> =
        problem.pools.iter().zip(&built.vars).map(|(p, v)| undone(p, v)).collect();
    // Serve everything, if that can be done.
    let uppers: Vec<(VarId, f64)> =
        undone.iter().flatten().map(|(v, _)| (*v, built.program.variables[*v].upper)).collect();
    for (v, _) in &uppers {
        built.program.variables[*v].upper = 0.0;
    }
    let start = start_of(problem, &built, fleet);
    let start_ok = |program: &Program, s: &[f64]| program.is_feasible(s, 1e-6);
    let full = solver.solve(
        &built.program,
        limits,
        Some(&start).filter(|s| start_ok(&built.program, s)).map(Vec::as_slice),
    );
    let (solution, complete) = match full {
        Ok(s) => (Some(s), true),
        Err(_) if start_ok(&built.program, &start) => (Some(stand_in(&built.program, &start, solver)), true),
        Err(_) => {
            for (v, upper) in &uppers {
                built.program.variables[*v].upper = *upper;
            }
            (by_tiers(problem, &mut built, &costs, &undone, fleet, solver, limits), false)
        }
    };
    let Some(solution) = solution else {
        let options = Options::new(problem);
        let pools = fleet.iter().enumerate().map(|(p, f)| answer_of(problem, p, f)).collect();
        return Answer {
            pools,
            objective: fleet.iter().enumerate().map(|(p, f)| options.cost(p, f)).sum(),
            bound: 0.0,
            complete: false,
            prices: Vec::new(),
        };
    };
    let pools = read(problem, &built, &solution.values);
    Answer {
        pools,
        objective: solution.objective + built.constant,
        bound: solution.bound + built.constant,
        complete,
        prices: Vec::new(),
    }
}

/// A feasible point as an answer, bounded by the linear relaxation.
fn stand_in(program: &Program, values: &[f64], solver: &dyn Solver) -> Solution {
    let objective = program.objective(values);
    let bound = solver.relax(program).map_or(0.0, |r| r.objective).min(objective);
    Solution { values: values.to_vec(), objective, bound }
}

/// Serves tier after tier, highest first, then minimises cost with what each tier got fixed.
fn by_tiers(
    problem: &Problem<'_>,
    built: &mut Built,
    costs: &[f64],
    undone: &[Vec<(VarId, f64)>],
    fleet: &[BTreeMap<(usize, usize), u32>],
    solver: &dyn Solver,
    limits: &Limits,
) -> Option<Solution> {
    let mut tiers: Vec<i32> = problem.pools.iter().map(|p| p.pool.priority).collect();
    tiers.sort_unstable_by(|a, b| b.cmp(a));
    tiers.dedup();
    let mut point = start_of(problem, built, fleet);
    if !built.program.is_feasible(&point, 1e-6) {
        point = start_of(problem, built, &vec![BTreeMap::new(); problem.pools.len()]);
    }
    for tier in tiers {
        let terms: Vec<(VarId, f64)> = problem
            .pools
            .iter()
            .zip(undone)
            .filter(|(p, _)| p.pool.priority == tier)
            .flat_map(|(_, t)| t.iter().copied())
            .collect();
        built.program.variables.iter_mut().for_each(|v| v.cost = 0.0);
        for (v, weight) in &terms {
            built.program.variables[*v].cost += weight;
        }
        let value = |values: &[f64]| -> f64 { terms.iter().map(|(v, w)| w * values[*v]).sum() };
        let start = Some(point.as_slice()).filter(|s| built.program.is_feasible(s, 1e-6));
        if let Ok(s) = solver.solve(&built.program, limits, start)
            && (value(&s.values) <= value(&point) + 1e-9 || start.is_none())
        {
            point = s.values;
        }
        let reached = value(&point);
        if !terms.is_empty() {
            built.program.row(terms, Comparison::AtMost, reached + 1e-6);
        }
    }
    for (v, cost) in built.program.variables.iter_mut().zip(costs) {
        v.cost = *cost;
    }
    let start = Some(point.as_slice()).filter(|s| built.program.is_feasible(s, 1e-5));
    match solver.solve(&built.program, limits, start) {
        Ok(s) => Some(s),
        Err(SolveError::Infeasible | SolveError::Limit | SolveError::Failed(_)) => {
            start.map(|s| stand_in(&built.program, s, solver))
        }
    }
}
