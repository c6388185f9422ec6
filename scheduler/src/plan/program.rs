//! The program of DESIGN §7 and its answer.
//!
//! Variables: whole replicas kept and started by pool, shape and cell; the share of each request class that flows to
//! each shape; shares left unserved; shortfalls below the replica and zone bounds. Rows: demand, load lines, slots of
//! each cell ([`super::inventory`]), budgets, replica bounds, zones. Tiers are served in order, lexicographically: if
//! everything can be served, one solve finds the cheapest fleet; otherwise each tier, highest first, minimises what it
//! leaves unserved with the tiers above fixed, and the last solve minimises dollars and price of change.
//!
//! Size: pools × shapes × cells whole variables, pools × shapes × classes real ones. The number of solves is at most
//! the number of tiers plus two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use plimsoll_engine::power::Grid;
use plimsoll_fleet::{BudgetUnit, Consumption, ModelPool};

use super::candidates::CandidateSet;
use super::greedy::{answer_of, fill};
use super::inventory::{Cell, Eligibility};
use super::options::Options;
use super::solver::{Comparison, Limits, Program, RowId, Solution, SolveError, Solver, VarId};

/// One pool as the program sees it.
#[derive(Debug, Clone)]
pub struct PoolProblem<'a> {
    /// The pool.
    pub pool: &'a ModelPool,
    /// Its candidates.
    pub set: Arc<CandidateSet>,
    /// Fewest replicas.
    pub floor: u32,
    /// Most replicas.
    pub ceiling: u32,
    /// Fewest zones.
    pub min_zones: u32,
    /// Demand is multiplied by this when the fleet is sized (≥ 1): running replicas are not stopped for a dip that
    /// the forecast cannot tell from noise.
    pub headroom: f64,
    /// Live replicas by candidate and cell.
    pub running: BTreeMap<(usize, usize), u32>,
    /// Hours of a replica's price that a start costs, spread over the horizon: dollars per hour per dollar per hour.
    pub start_factor: f64,
    /// The same for a stop.
    pub stop_factor: f64,
    /// Seconds of a replica's work that an interruption of spot capacity costs: the start of another, and what was under way.
    pub interruption_seconds: f64,
    /// Price of a replica whose variant is below the wanted quality, in prices of the replica: far more than any that is not
    /// could cost instead.
    pub below_quality_factor: f64,
}

impl PoolProblem<'_> {
    /// Total demand, requests per second.
    pub fn total_rps(&self) -> f64 {
        self.set.classes.iter().map(|c| c.rps).sum()
    }

    /// Price of a replica of candidate `k` in a cell, dollars per hour.
    pub fn usd(&self, k: usize, cell: &Cell) -> f64 {
        cell.usd_per_hour * f64::from(self.set.candidates[k].shape.gpus())
    }

    /// Price of a replica in the objective, dollars per hour: with expected interruptions, with what keeps variants below the wanted
    /// quality for need, and with what breaks ties: among equals, the better variant, and more small replicas rather than fewer
    /// large ones, because losing a node then costs less.
    pub fn cost(&self, k: usize, cell: &Cell) -> f64 {
        let (usd, candidate) = (self.usd(k, cell), &self.set.candidates[k]);
        let size = f64::from(candidate.shape.gpus());
        let tie = TIE_USD * (size * (1.0 + 0.1 * size.log2()) + (1.0 - candidate.quality.clamp(0.0, 1.0)));
        let preferred = self.pool.placement.spot == plimsoll_fleet::pool::SpotPolicy::Preferred && !cell.spot;
        let below = if self.is_below_quality(k) { self.below_quality_factor * (1.0 + usd) } else { 0.0 };
        usd + tie + if preferred { 0.01 * usd } else { 0.0 } + below + self.interruptions_usd(k, cell)
    }

    /// Replicas (not whole) of candidate `k` that all of each class (by index) would take, headroom included; infinite where it
    /// cannot be served.
    pub(crate) fn load(&self, k: usize, classes: &[usize]) -> Vec<f64> {
        let of = |c: &usize| {
            let rate = self.set.candidates[k].rates[*c];
            if rate > 0.0 { self.set.classes[*c].rps * self.headroom / rate } else { f64::INFINITY }
        };
        classes.iter().map(of).collect()
    }

    /// Whole replicas of candidate `k` that all classes it can serve would take.
    pub(crate) fn load_of(&self, k: usize) -> f64 {
        let served = self.set.classes.iter().zip(&self.set.candidates[k].rates).filter(|(_, r)| **r > 0.0);
        (served.map(|(c, r)| c.rps / r).sum::<f64>() * self.headroom).ceil().max(1.0)
    }

    /// Expected cost of interruptions of a replica of candidate `k` in a cell, dollars per hour: nothing on demand.
    pub fn interruptions_usd(&self, k: usize, cell: &Cell) -> f64 {
        cell.interruptions_per_hour * self.interruption_seconds / 3600.0 * self.usd(k, cell)
    }

    /// Whether the variant of candidate `k` is below the quality that the pool wants.
    pub fn is_below_quality(&self, k: usize) -> bool {
        self.set.candidates[k].quality < self.pool.min_quality
    }

    /// What an answer leaves undone, in the units of its tier: 1 is a wholly unserved pool.
    pub fn undone(&self, answer: &PoolAnswer) -> f64 {
        let total = self.total_rps();
        let share: f64 = self.set.classes.iter().zip(&answer.unserved).map(|(c, u)| c.rps * u).sum();
        let unserved = if total > 0.0 { share / total } else { 0.0 };
        let short = SHORT_WEIGHT * f64::from(answer.short) / f64::from(self.floor.max(1));
        unserved + short + ZONE_WEIGHT * f64::from(answer.zones_short) / f64::from(self.min_zones.max(1))
    }

    /// What a replica of candidate `k` in a cell takes of budgets, at its load line.
    pub fn consumption(&self, k: usize, cell: &Cell) -> Consumption {
        let watts = self.set.candidates[k].watts;
        Consumption {
            usd_per_hour: self.usd(k, cell),
            watts,
            grams_co2e_per_hour: grams_co2e_per_hour(watts, &cell.grid),
        }
    }

    /// Most replicas of candidate `k` that could be of use.
    pub(crate) fn useful(&self, k: usize) -> f64 {
        self.load_of(k).max(f64::from(self.floor)).max(f64::from(self.min_zones)).max(1.0)
    }
}

/// Emissions of accelerators that draw this much, grams of CO₂ equivalent per hour.
pub fn grams_co2e_per_hour(watts: f64, grid: &Grid) -> f64 {
    grid.grams(watts * 3600.0)
}

/// What one unit of a budget row is in its budget's unit: rows are in $/h, kW and kg of CO₂ equivalent per hour, all of
/// about one size, so that one tolerance suits the solver for all.
pub fn row_unit(unit: BudgetUnit) -> f64 {
    match unit {
        BudgetUnit::UsdPerHour => 1.0,
        BudgetUnit::Watts | BudgetUnit::GramsCo2ePerHour => 1e3,
    }
}

/// One cap of a budget. Amounts are in row units ([`row_unit`]).
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetRow {
    /// Name of the budget.
    pub name: String,
    /// What it caps.
    pub unit: BudgetUnit,
    /// What may still be taken.
    pub left: f64,
    /// The cap as declared.
    pub cap: f64,
    /// Whether it lets pools be served with variants below the wanted quality rather than not at all.
    pub downgrades: bool,
    /// Whether each pool counts against it.
    pub covers: Vec<bool>,
}

impl BudgetRow {
    /// The row as one pool sees it.
    pub fn of_pool(&self, p: usize) -> Self {
        Self {
            name: self.name.clone(),
            unit: self.unit,
            left: self.left,
            cap: self.cap,
            downgrades: self.downgrades,
            covers: vec![self.covers[p]],
        }
    }
}

/// A limit that placement found: at most so many groups of at least this size in a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Cell.
    pub cell: usize,
    /// Group size.
    pub size: u32,
    /// Groups of that size that fit.
    pub groups: u32,
}

/// Everything to decide together.
#[derive(Debug, Clone)]
pub struct Problem<'a> {
    /// Pools.
    pub pools: Vec<PoolProblem<'a>>,
    /// Cells.
    pub cells: Vec<Cell>,
    /// Budgets.
    pub budgets: Vec<BudgetRow>,
    /// Cuts.
    pub cuts: Vec<Cut>,
    /// What others hold of the cells.
    pub held: Vec<Held>,
    /// Prices of coupling rows to begin with: those of the plan in force.
    pub hints: Vec<(Coupling, f64)>,
    /// New replicas only of these candidates in these cells (`None`: of all in all). For a single pool.
    pub allowed: Option<BTreeSet<(usize, usize)>>,
}

/// Replicas of others in a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Cell.
    pub cell: usize,
    /// Tensor-parallel degree.
    pub tensor: u32,
    /// Pipeline stages.
    pub pipeline: u32,
    /// Replicas.
    pub count: u32,
}

impl Problem<'_> {
    /// Groups of `size` that a cell has left.
    pub(crate) fn groups(&self, cell: usize, size: u32) -> u32 {
        let mut groups = self.cells[cell].groups(size);
        for cut in self.cuts.iter().filter(|cut| cut.cell == cell && cut.size == size) {
            groups = groups.min(cut.groups);
        }
        let held: u32 = self
            .held
            .iter()
            .filter(|h| h.cell == cell && h.tensor >= size)
            .map(|h| (h.tensor / size) * h.pipeline * h.count)
            .sum();
        groups.saturating_sub(held)
    }

    /// What one replica of a shape in a cell takes of a coupling row.
    pub fn takes(&self, what: &Coupling, p: usize, k: usize, cell: usize) -> f64 {
        let shape = &self.pools[p].set.candidates[k].shape;
        match what {
            Coupling::Slots { cell: c, size } if *c == cell && shape.tensor_parallel >= *size => {
                f64::from((shape.tensor_parallel / size) * shape.pipeline_parallel)
            }
            Coupling::Budget(b) if self.budgets[*b].covers[p] => self.takes_of(*b, p, k, cell),
            Coupling::Slots { .. } | Coupling::Budget(_) => 0.0,
        }
    }

    /// A coupling row as people read it: its name, the unit it is priced by, and how many of those a row unit is.
    pub(crate) fn named(&self, what: &Coupling) -> (String, String, f64) {
        match what {
            Coupling::Slots { cell, size: 1 } => {
                (format!("inventory {}", self.cells[*cell].label()), "GPU".to_owned(), 1.0)
            }
            Coupling::Slots { cell, size } => {
                let name = format!("inventory {} in groups of {size}", self.cells[*cell].label());
                (name, format!("group of {size} GPUs"), 1.0)
            }
            Coupling::Budget(b) => {
                let row = &self.budgets[*b];
                let steps = row_unit(row.unit) / row.unit.step();
                (format!("budget {}", row.name), row.unit.step_text().to_owned(), steps)
            }
        }
    }

    /// What one replica of a shape of a pool that a budget row covers takes of it, in row units.
    fn takes_of(&self, budget: usize, p: usize, k: usize, cell: usize) -> f64 {
        let unit = self.budgets[budget].unit;
        self.pools[p].consumption(k, &self.cells[cell]).of(unit) / row_unit(unit)
    }
}

/// A coupling row that could bind.
#[derive(Debug, Clone, PartialEq)]
pub enum Coupling {
    /// Slots of a group size in a cell.
    Slots {
        /// Cell.
        cell: usize,
        /// Group size.
        size: u32,
    },
    /// A budget row.
    Budget(usize),
}

/// One pool's part of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PoolAnswer {
    /// Replicas by candidate and cell.
    pub counts: BTreeMap<(usize, usize), u32>,
    /// Share of each class (outer) that each candidate (inner) serves.
    pub shares: Vec<Vec<f64>>,
    /// Share of each class left unserved.
    pub unserved: Vec<f64>,
    /// Replicas short of the floor.
    pub short: u32,
    /// Zones short of the wanted number.
    pub zones_short: u32,
}

impl PoolAnswer {
    /// Replicas.
    pub fn replicas(&self) -> u32 {
        self.counts.values().sum()
    }

    /// Replicas of a candidate, all cells.
    pub fn of(&self, k: usize) -> u32 {
        self.counts.iter().filter(|((j, _), _)| *j == k).map(|(_, n)| n).sum()
    }
}

/// An answer to the whole problem.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// Pools, in the problem's order.
    pub pools: Vec<PoolAnswer>,
    /// Dollars per hour and price of change.
    pub objective: f64,
    /// Proved lower bound on it, given what each tier is served.
    pub bound: f64,
    /// Whether all demand is served and all bounds are met.
    pub complete: bool,
    /// Shadow prices of the coupling rows that have one, dollars per hour per unit of the row (positive: one more unit saves).
    pub prices: Vec<(Coupling, f64)>,
}

/// Weight of a missing replica below the floor, against a wholly unserved pool (1).
pub(crate) const SHORT_WEIGHT: f64 = 0.25;
/// Weight of a missing zone.
const ZONE_WEIGHT: f64 = 0.05;
/// Dollars per hour that a GPU costs at least in the objective, so that free hardware is not wasted.
pub(crate) const TIE_USD: f64 = 1e-4;

/// The variables of one pool.
#[derive(Debug, Default)]
struct PoolVars {
    kept: Vec<(usize, usize, VarId)>,
    new: Vec<(usize, usize, VarId)>,
    /// By class, by candidate.
    flow: Vec<Vec<Option<VarId>>>,
    unserved: Vec<VarId>,
    short: VarId,
    zones_short: Option<VarId>,
    zones: Vec<VarId>,
}

struct Built {
    program: Program,
    vars: Vec<PoolVars>,
    coupling: Vec<(Coupling, RowId)>,
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
        let mut by_candidate: Vec<Vec<VarId>> = vec![Vec::new(); pool.set.candidates.len()];
        let mut by_zone: BTreeMap<&str, Vec<VarId>> = BTreeMap::new();
        for (k, candidate) in pool.set.candidates.iter().enumerate() {
            let shape = &candidate.shape;
            let useful = pool.useful(k).min(f64::from(pool.ceiling));
            for (c, cell) in problem.cells.iter().enumerate() {
                if cell.accelerator != shape.accelerator || cell.eligible[p] == Eligibility::Closed {
                    continue;
                }
                let usd = pool.usd(k, cell);
                let cost = pool.cost(k, cell);
                let takes: Vec<(usize, f64)> = (0..problem.budgets.len())
                    .map(|b| (b, problem.takes(&Coupling::Budget(b), p, k, c)))
                    .filter(|(_, takes)| *takes > 0.0)
                    .collect();
                let running = pool.running.get(&(k, c)).copied().unwrap_or(0);
                let stop = pool.stop_factor * usd;
                constant += f64::from(running) * stop;
                let mut add = |program: &mut Program, cost: f64, upper: f64| {
                    let v = program.integer(cost, 0.0, upper);
                    by_candidate[k].push(v);
                    by_zone.entry(cell.zone.as_str()).or_default().push(v);
                    slots.entry(c).or_default().push((shape.tensor_parallel, shape.pipeline_parallel, v));
                    for (b, takes) in &takes {
                        spend[*b].push((v, *takes));
                    }
                    v
                };
                if running > 0 {
                    vars.kept.push((k, c, add(&mut program, cost - stop, f64::from(running))));
                }
                let room = f64::from(cell.groups(shape.tensor_parallel) / shape.pipeline_parallel.max(1));
                let allowed = problem.allowed.as_ref().is_none_or(|a| a.contains(&(k, c)));
                if allowed && cell.eligible[p] == Eligibility::Open && room >= 1.0 {
                    let start = pool.start_factor * usd;
                    vars.new.push((k, c, add(&mut program, cost + start, room.min(useful))));
                }
            }
        }
        // Demand: every class is served or counted as unserved, in shares of its rate.
        let mut load: Vec<Vec<(VarId, f64)>> = vec![Vec::new(); pool.set.candidates.len()];
        for (c, class) in pool.set.classes.iter().enumerate() {
            let mut terms = Vec::new();
            let mut flows = vec![None; pool.set.candidates.len()];
            if class.rps > 0.0 {
                for (k, candidate) in pool.set.candidates.iter().enumerate() {
                    if candidate.rates[c] > 0.0 && !by_candidate[k].is_empty() {
                        let v = program.real(0.0, 0.0, 1.0);
                        flows[k] = Some(v);
                        terms.push((v, 1.0));
                        load[k].push((v, class.rps * pool.headroom / candidate.rates[c]));
                    }
                }
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
                terms.extend(by_candidate[k].iter().map(|v| (*v, -1.0)));
                program.row(terms, Comparison::AtMost, 0.0);
            }
        }
        let every: Vec<VarId> = by_candidate.iter().flatten().copied().collect();
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
    let mut coupling = Vec::new();
    for (c, members) in &slots {
        let mut sizes: Vec<u32> = members.iter().map(|(tp, _, _)| *tp).collect();
        sizes.push(1);
        sizes.extend(problem.held.iter().filter(|h| h.cell == *c).map(|h| h.tensor));
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
                let row = program.row(terms, Comparison::AtMost, f64::from(groups));
                coupling.push((Coupling::Slots { cell: *c, size }, row));
            }
        }
    }
    for (b, terms) in spend.into_iter().enumerate() {
        let most: f64 = terms.iter().map(|(v, a)| a * program.variables[*v].upper).sum();
        if most > problem.budgets[b].left {
            let row = program.row(terms, Comparison::AtMost, problem.budgets[b].left.max(0.0));
            coupling.push((Coupling::Budget(b), row));
        }
    }
    Built { program, vars: all, coupling, constant }
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
            for (k, v) in flows.iter().enumerate() {
                if let Some(v) = v {
                    values[*v] = filled.shares[c][k];
                    served += filled.shares[c][k];
                }
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
        .map(|(pool, vars)| {
            let mut counts = BTreeMap::new();
            for (k, c, v) in vars.kept.iter().chain(&vars.new) {
                let n = values[*v].round().max(0.0) as u32;
                if n > 0 {
                    *counts.entry((*k, *c)).or_insert(0) += n;
                }
            }
            let tidy = |x: f64| if x < 1e-7 { 0.0 } else { x.min(1.0) };
            let shares: Vec<Vec<f64>> = vars
                .flow
                .iter()
                .map(|flows| flows.iter().map(|v| v.map_or(0.0, |v| tidy(values[v]))).collect())
                .collect();
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
            PoolAnswer { counts, shares, unserved, short, zones_short }
        })
        .collect()
}

/// Replicas by candidate and cell, for each pool.
pub type Fleet = Vec<BTreeMap<(usize, usize), u32>>;

/// Shadow prices of the coupling rows in the linear relaxation, and its bound. Where not everything can be served,
/// unserved demand is priced so high that the rows that keep it out show their worth.
pub fn relaxation(problem: &Problem<'_>, solver: &dyn Solver) -> (Vec<(Coupling, f64)>, f64) {
    let mut built = build(problem);
    let undone: Vec<Vec<(VarId, f64)>> =
        problem.pools.iter().zip(&built.vars).map(|(p, v)| undone(p, v)).collect();
    let saved: Vec<f64> = undone.iter().flatten().map(|(v, _)| built.program.variables[*v].upper).collect();
    undone.iter().flatten().for_each(|(v, _)| built.program.variables[*v].upper = 0.0);
    let mut bound = 0.0;
    let relaxed =
        solver.relax(&built.program).inspect(|r| bound = r.objective + built.constant).or_else(|_| {
            undone
                .iter()
                .flatten()
                .zip(&saved)
                .for_each(|((v, _), u)| built.program.variables[*v].upper = *u);
            let lowest = problem.pools.iter().map(|p| p.pool.priority).min().unwrap_or(0);
            for (pool, terms) in problem.pools.iter().zip(&undone) {
                let rank = f64::from(pool.pool.priority.saturating_sub(lowest).min(20));
                let usd = pool
                    .set
                    .candidates
                    .iter()
                    .map(|k| k.usd_per_hour * k.replicas_for(&pool.set.classes).max(1.0))
                    .filter(|x| x.is_finite())
                    .fold(1.0, f64::max);
                for (v, weight) in terms {
                    built.program.variables[*v].cost += 5.0 * usd * weight * (1.0 + rank);
                }
            }
            solver.relax(&built.program)
        });
    let prices = relaxed.map_or_else(
        |_| Vec::new(),
        |r| {
            let priced = built.coupling.iter().filter(|(_, row)| r.prices[*row] < -1e-4);
            priced.map(|(what, row)| (what.clone(), -r.prices[*row])).collect()
        },
    );
    (prices, bound)
}

/// Lower bound on the cost of any fleet that leaves no more undone than this one, by the linear relaxation.
pub fn bound_given(problem: &Problem<'_>, fleet: &Fleet, solver: &dyn Solver) -> f64 {
    let mut built = build(problem);
    let values = start_of(problem, &built, fleet);
    for (pool, vars) in problem.pools.iter().zip(&built.vars) {
        for (v, _) in undone(pool, vars) {
            built.program.variables[v].upper = values[v] + 1e-6;
        }
    }
    solver.relax(&built.program).map_or(0.0, |r| r.objective + built.constant)
}

/// The coupling rows that could bind, with what each offers: those that all that is of use to the pools would not fit into,
/// were there room for it.
pub fn couplings(problem: &Problem<'_>) -> Vec<(Coupling, f64)> {
    let mut wanted: Vec<BTreeMap<(u32, u32), f64>> = vec![BTreeMap::new(); problem.cells.len()];
    let mut spend = vec![0.0; problem.budgets.len()];
    for_each_upper(problem, |p, k, c, upper| {
        let shape = &problem.pools[p].set.candidates[k].shape;
        *wanted[c].entry((shape.tensor_parallel, shape.pipeline_parallel)).or_default() += upper;
        for (b, spend) in spend.iter_mut().enumerate() {
            *spend += upper * problem.takes(&Coupling::Budget(b), p, k, c);
        }
    });
    let mut rows = Vec::new();
    for (c, wanted) in wanted.iter().enumerate() {
        let mut sizes: Vec<u32> = wanted.keys().map(|(tp, _)| *tp).chain([1]).collect();
        sizes.extend(problem.held.iter().filter(|h| h.cell == c).map(|h| h.tensor));
        sizes.sort_unstable();
        sizes.dedup();
        for size in sizes {
            let of = |((tp, pp), n): (&(u32, u32), &f64)| {
                if *tp >= size { f64::from((tp / size) * pp) * n } else { 0.0 }
            };
            let most: f64 = wanted.iter().map(of).sum();
            let groups = f64::from(problem.groups(c, size));
            if most > groups {
                rows.push((Coupling::Slots { cell: c, size }, groups));
            }
        }
    }
    for (b, most) in spend.iter().enumerate() {
        if *most > problem.budgets[b].left {
            rows.push((Coupling::Budget(b), problem.budgets[b].left.max(0.0)));
        }
    }
    rows
}

/// Calls `f(pool, candidate, cell, useful)` for every place that a pool's replicas may be in.
fn for_each_upper(problem: &Problem<'_>, mut f: impl FnMut(usize, usize, usize, f64)) {
    let mut by_class: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (c, cell) in problem.cells.iter().enumerate() {
        by_class.entry(&cell.accelerator).or_default().push(c);
    }
    // Groups of a size in a cell: a sum over its nodes.
    let mut groups: BTreeMap<(usize, u32), u32> = BTreeMap::new();
    for (p, pool) in problem.pools.iter().enumerate() {
        for (k, candidate) in pool.set.candidates.iter().enumerate() {
            let shape = &candidate.shape;
            let useful = pool.useful(k).min(f64::from(pool.ceiling));
            for c in by_class.get(shape.accelerator.as_str()).into_iter().flatten().copied() {
                let cell = &problem.cells[c];
                if cell.eligible[p] == Eligibility::Closed {
                    continue;
                }
                let running = f64::from(pool.running.get(&(k, c)).copied().unwrap_or(0));
                let tensor = shape.tensor_parallel;
                let groups = *groups.entry((c, tensor)).or_insert_with(|| cell.groups(tensor));
                let room = f64::from(groups / shape.pipeline_parallel.max(1));
                let open = cell.eligible[p] == Eligibility::Open && room >= 1.0;
                // Not bounded by the room: a pool that answers by prices does not look at it.
                let new = if open { useful } else { 0.0 };
                if running + new > 0.0 {
                    f(p, k, c, running + new);
                }
            }
        }
    }
}

/// Whole variables of a problem's program, about.
pub fn size(problem: &Problem<'_>) -> usize {
    let mut size = 0;
    for_each_upper(problem, |p, k, c, _| {
        size += 1 + usize::from(problem.pools[p].running.contains_key(&(k, c)))
    });
    size
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
