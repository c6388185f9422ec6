//! The program of DESIGN §7: what is to be decided together, what couples it, and an answer to it.
//!
//! Solved by prices ([`super::decompose`]) and, where it is small, as one mixed-integer program ([`super::whole`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use plimsoll_engine::power::Grid;
use plimsoll_fleet::{BudgetUnit, Consumption, ModelPool, Role};

use super::candidates::CandidateSet;
use super::covering::Part;
use super::inventory::{Cell, Eligibility};

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
    /// By candidate: hours of a replica's price that a start costs, spread over the horizon: dollars per hour per dollar per hour.
    pub start_factors: Vec<f64>,
    /// Price of a stop, as a share of the price of a start.
    pub stop_share: f64,
    /// By candidate: seconds of a replica's work that an interruption of spot capacity costs: the start of another, and what was under way.
    pub interruption_seconds: Vec<f64>,
    /// Price of a replica whose variant is below the wanted quality, in prices of the replica: far more than any that is not
    /// could cost instead.
    pub below_quality_factor: f64,
    /// By cell: the cells whose replicas can hand caches to those here have the same number (`None`: it is not known which).
    pub reach: Arc<[Option<usize>]>,
}

impl PoolProblem<'_> {
    /// Total demand, requests per second.
    pub fn total_rps(&self) -> f64 {
        self.set.classes.iter().map(|c| c.rps).sum()
    }

    /// Whether some of its candidates only prefill or decode.
    pub(crate) fn has_parts(&self) -> bool {
        self.set.candidates.iter().any(|k| k.pairing.is_some())
    }

    /// What replicas of candidate `k` in a cell do of requests; `None` where prefill and decode replicas cannot reach each other.
    pub(crate) fn part(&self, k: usize, cell: usize) -> Option<Part> {
        let candidate = &self.set.candidates[k];
        let Some(pairing) = candidate.pairing else { return Some(Part::Whole) };
        let link = pairing * self.reach.len() + self.reach.get(cell).copied().flatten()?;
        Some(if candidate.shape.role == Role::Decode { Part::Decode(link) } else { Part::Prefill(link) })
    }

    /// Price of a replica of candidate `k` in a cell, dollars per hour.
    pub fn usd(&self, k: usize, cell: &Cell) -> f64 {
        cell.usd_per_hour * f64::from(self.set.candidates[k].shape.gpus())
    }

    /// Price of starting a replica of candidate `k` in a cell, dollars per hour.
    pub fn start_usd(&self, k: usize, cell: &Cell) -> f64 {
        self.start_factors[k] * self.usd(k, cell)
    }

    /// Price of stopping one.
    pub fn stop_usd(&self, k: usize, cell: &Cell) -> f64 {
        self.stop_share * self.start_usd(k, cell)
    }

    /// Price of a replica in the objective, dollars per hour: with expected interruptions, with what keeps variants below the wanted
    /// quality for need, and with what breaks ties: among equals, the better variant, replicas that serve requests whole, and more small
    /// replicas rather than fewer large ones, because losing a node then costs less.
    pub fn cost(&self, k: usize, cell: &Cell) -> f64 {
        let (usd, candidate) = (self.usd(k, cell), &self.set.candidates[k]);
        let size = f64::from(candidate.shape.gpus());
        let tie = TIE_USD * (size * (1.0 + 0.1 * size.log2()) + (1.0 - candidate.quality.clamp(0.0, 1.0)));
        let preferred = self.pool.placement.spot == plimsoll_fleet::pool::SpotPolicy::Preferred && !cell.spot;
        let below = if self.is_below_quality(k) { self.below_quality_factor * (1.0 + usd) } else { 0.0 };
        let half = if candidate.pairing.is_some() { HALF * usd } else { 0.0 };
        usd + tie + if preferred { 0.01 * usd } else { 0.0 } + half + below + self.interruptions_usd(k, cell)
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
        cell.interruptions_per_hour * self.interruption_seconds[k] / 3600.0 * self.usd(k, cell)
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
    /// Accelerators of a stage.
    pub stage_gpus: u32,
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
            .filter(|h| h.cell == cell && h.stage_gpus >= size)
            .map(|h| (h.stage_gpus / size) * h.pipeline * h.count)
            .sum();
        groups.saturating_sub(held)
    }

    /// What one replica of a shape in a cell takes of a coupling row.
    pub fn takes(&self, what: &Coupling, p: usize, k: usize, cell: usize) -> f64 {
        let shape = &self.pools[p].set.candidates[k].shape;
        match what {
            Coupling::Slots { cell: c, size } if *c == cell && shape.stage_gpus() >= *size => {
                f64::from((shape.stage_gpus() / size) * shape.pipeline_parallel)
            }
            Coupling::Budget(b) if self.budgets[*b].covers[p] => self.takes_of(*b, p, k, cell),
            Coupling::Slots { .. } | Coupling::Budget(_) => 0.0,
        }
    }

    /// Cells of each accelerator class.
    pub(crate) fn cells_by_class(&self) -> BTreeMap<&str, Vec<usize>> {
        let mut by_class: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (c, cell) in self.cells.iter().enumerate() {
            by_class.entry(&cell.accelerator).or_default().push(c);
        }
        by_class
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

/// A share of a class that replicas of one candidate prefill or decode in one place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PartShare {
    /// Class.
    pub class: usize,
    /// Candidate.
    pub candidate: usize,
    /// The first of the cells that can exchange caches with one another, as in [`PoolProblem::reach`].
    pub reach: usize,
    /// Share of the class.
    pub share: f64,
}

/// One pool's part of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PoolAnswer {
    /// Replicas by candidate and cell.
    pub counts: BTreeMap<(usize, usize), u32>,
    /// Share of each class (outer) that each candidate (inner) serves, or does its part of.
    pub shares: Vec<Vec<f64>>,
    /// The shares of candidates that only prefill or decode, by where they do.
    pub apart: Vec<PartShare>,
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
pub(crate) const ZONE_WEIGHT: f64 = 0.05;
/// Price of being half of a pair, in prices of the replica: of two that cost the same, the one that needs no other.
const HALF: f64 = 0.01;
/// Dollars per hour that a GPU costs at least in the objective, so that free hardware is not wasted.
pub(crate) const TIE_USD: f64 = 1e-4;

/// By cell, the first of the cells in its zone: replicas hand caches to others of their zone. Of nodes that an autoscaler has yet to add the
/// zone is known only where there is but one.
pub(crate) fn reach(cells: &[Cell]) -> Arc<[Option<usize>]> {
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    for (c, cell) in cells.iter().enumerate().filter(|(_, cell)| !cell.is_autoscaled()) {
        zones.entry(&cell.zone).or_insert(c);
    }
    let only = if zones.len() == 1 { zones.values().next().copied() } else { None };
    cells.iter().map(|c| if c.is_autoscaled() { only } else { zones.get(c.zone.as_str()).copied() }).collect()
}

/// Replicas by candidate and cell, for each pool.
pub type Fleet = Vec<BTreeMap<(usize, usize), u32>>;

/// The coupling rows that could bind, with what each offers: those that all that is of use to the pools would not fit into,
/// were there room for it.
pub fn couplings(problem: &Problem<'_>) -> Vec<(Coupling, f64)> {
    let mut wanted: Vec<BTreeMap<(u32, u32), f64>> = vec![BTreeMap::new(); problem.cells.len()];
    let mut spend = vec![0.0; problem.budgets.len()];
    for_each_upper(problem, |p, k, c, upper| {
        let shape = &problem.pools[p].set.candidates[k].shape;
        *wanted[c].entry((shape.stage_gpus(), shape.pipeline_parallel)).or_default() += upper;
        for (b, spend) in spend.iter_mut().enumerate() {
            *spend += upper * problem.takes(&Coupling::Budget(b), p, k, c);
        }
    });
    let mut rows = Vec::new();
    for (c, wanted) in wanted.iter().enumerate() {
        let mut sizes: Vec<u32> = wanted.keys().map(|(tp, _)| *tp).chain([1]).collect();
        sizes.extend(problem.held.iter().filter(|h| h.cell == c).map(|h| h.stage_gpus));
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
    let by_class = problem.cells_by_class();
    // Groups of a size in a cell: a sum over its nodes.
    let mut groups: BTreeMap<(usize, u32), u32> = BTreeMap::new();
    for (p, pool) in problem.pools.iter().enumerate() {
        for (k, candidate) in pool.set.candidates.iter().enumerate() {
            let shape = &candidate.shape;
            let useful = pool.useful(k).min(f64::from(pool.ceiling));
            for c in by_class.get(shape.accelerator.as_str()).into_iter().flatten().copied() {
                let cell = &problem.cells[c];
                if cell.eligible[p] == Eligibility::Closed || pool.part(k, c).is_none() {
                    continue;
                }
                let running = f64::from(pool.running.get(&(k, c)).copied().unwrap_or(0));
                let size = shape.stage_gpus();
                let groups = *groups.entry((c, size)).or_insert_with(|| cell.groups(size));
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
