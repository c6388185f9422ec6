//! Where each candidate of each pool may be, and what it costs there; from that, one pool's best fleet at given prices.

use std::collections::BTreeMap;

use super::covering::{Covering, ENDLESS, Kind, Limit, Segment};
use super::inventory::Eligibility;
use super::program::{Coupling, Problem, SHORT_WEIGHT};
use super::residual::Remaining;
use super::solver::Limits;

/// Nodes of the search for one pool's fleet.
const POOL_NODES: u64 = 3_000;

/// Replicas by candidate and cell.
pub(crate) type Counts = BTreeMap<(usize, usize), u32>;

/// A cell that a candidate may be in.
#[derive(Debug, Clone, PartialEq)]
struct Place {
    cell: usize,
    /// Replicas that run there.
    running: u32,
    /// Whether new ones may come, where the cell has any room at all.
    open: bool,
    /// Price of a replica, dollars per hour, with what breaks ties.
    cost: f64,
    /// What starting one adds, dollars per hour.
    start: f64,
    /// What stopping one adds.
    stop: f64,
}

/// Every pool's candidates and where they may be. Made once a problem: O(pools × candidates × cells of their class).
#[derive(Debug)]
pub(crate) struct Options<'p, 'a> {
    problem: &'p Problem<'a>,
    /// By pool, by candidate.
    places: Vec<Vec<Vec<Place>>>,
}

/// Prices of coupling rows, by what they are on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prices {
    /// By cell: group size and price.
    cells: Vec<Vec<(u32, f64)>>,
    budgets: Vec<(usize, f64)>,
}

impl Prices {
    pub(crate) fn new(problem: &Problem<'_>, prices: &[(Coupling, f64)]) -> Self {
        let mut sorted = Self { cells: vec![Vec::new(); problem.cells.len()], budgets: Vec::new() };
        for (what, price) in prices {
            match what {
                Coupling::Slots { cell, size } => sorted.cells[*cell].push((*size, *price)),
                Coupling::Budget(b) => sorted.budgets.push((*b, *price)),
            }
        }
        sorted
    }

    /// What one replica pays, dollars per hour.
    fn surcharge(&self, problem: &Problem<'_>, p: usize, k: usize, c: usize) -> f64 {
        let slots = self.cells.get(c).into_iter().flatten();
        let slots = slots.map(|(size, price)| (Coupling::Slots { cell: c, size: *size }, price));
        let budgets = self.budgets.iter().map(|(b, price)| (Coupling::Budget(*b), price));
        slots
            .chain(budgets)
            .map(|(what, price)| price * problem.takes(&what, p, k, c))
            .fold(0.0, |a, b| a + b)
    }
}

/// What a pool's answer must serve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Service {
    /// Everything, and its fewest replicas.
    All,
    /// What pays: a pool that is wholly unserved costs so much, dollars per hour.
    Worth(f64),
}

/// A pool's best fleet at some prices.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Response {
    /// The fleet.
    pub(crate) counts: Counts,
    /// Lower bound on what any fleet costs with the prices.
    pub(crate) bound: f64,
}

impl<'p, 'a> Options<'p, 'a> {
    pub(crate) fn new(problem: &'p Problem<'a>) -> Self {
        let by_class = problem.cells_by_class();
        let mut groups: BTreeMap<(usize, u32), u32> = BTreeMap::new();
        let mut place = |p: usize, k: usize, c: usize| {
            let (pool, cell) = (&problem.pools[p], &problem.cells[c]);
            if cell.eligible[p] == Eligibility::Closed {
                return None;
            }
            let shape = &pool.set.candidates[k].shape;
            let usd = pool.usd(k, cell);
            let tensor = shape.tensor_parallel;
            let groups = *groups.entry((c, tensor)).or_insert_with(|| problem.groups(c, tensor));
            let room = groups / shape.pipeline_parallel.max(1);
            Some(Place {
                cell: c,
                running: pool.running.get(&(k, c)).copied().unwrap_or(0),
                open: cell.eligible[p] == Eligibility::Open && room >= 1,
                cost: pool.cost(k, cell),
                start: pool.start_factor * usd,
                stop: pool.stop_factor * usd,
            })
        };
        let mut places = Vec::with_capacity(problem.pools.len());
        for (p, pool) in problem.pools.iter().enumerate() {
            let mut of_pool = Vec::with_capacity(pool.set.candidates.len());
            for (k, candidate) in pool.set.candidates.iter().enumerate() {
                let cells = by_class.get(candidate.shape.accelerator.as_str());
                of_pool.push(cells.into_iter().flatten().filter_map(|c| place(p, k, *c)).collect());
            }
            places.push(of_pool);
        }
        Self { problem, places }
    }

    /// The problem they are of.
    pub(crate) fn problem(&self) -> &'p Problem<'a> {
        self.problem
    }

    /// What stopping all that runs of a pool costs: paid by a fleet less what it keeps.
    fn stopping(&self, p: usize) -> f64 {
        self.places[p].iter().flatten().map(|at| f64::from(at.running) * at.stop).fold(0.0, |a, b| a + b)
    }

    /// Cost of a pool's fleet, price of change included, dollars per hour.
    pub(crate) fn cost(&self, p: usize, counts: &Counts) -> f64 {
        let mut cost = self.stopping(p);
        for ((k, c), n) in counts {
            let Some(at) = self.places[p][*k].iter().find(|at| at.cell == *c) else { continue };
            let kept = (*n).min(at.running);
            cost += f64::from(*n) * at.cost - f64::from(kept) * at.stop + f64::from(n - kept) * at.start;
        }
        cost
    }

    /// The program of one pool, without limits: for each candidate, the cells and prices of its segments.
    fn covering(
        &self,
        p: usize,
        service: Service,
        segments: impl Fn(usize, &[Place]) -> Vec<(usize, Segment)>,
    ) -> (Covering, Vec<Vec<usize>>) {
        let pool = &self.problem.pools[p];
        let classes = &pool.set.classes;
        let wanted: Vec<usize> = (0..classes.len()).filter(|c| classes[*c].rps > 0.0).collect();
        let mut kinds = Vec::with_capacity(pool.set.candidates.len());
        let mut cells = Vec::with_capacity(pool.set.candidates.len());
        for k in 0..pool.set.candidates.len() {
            let mut found = segments(k, &self.places[p][k]);
            found.retain(|(_, s)| s.most > 0);
            found.sort_by(|a, b| a.1.cost.total_cmp(&b.1.cost).then(a.0.cmp(&b.0)));
            kinds.push(Kind {
                load: pool.load(k, &wanted),
                segments: found.iter().map(|(_, s)| *s).collect(),
            });
            cells.push(found.iter().map(|(c, _)| *c).collect());
        }
        let (unserved, short) = match service {
            Service::All => (vec![f64::INFINITY; wanted.len()], f64::INFINITY),
            Service::Worth(usd) => (
                wanted.iter().map(|c| usd * classes[*c].rps / pool.total_rps()).collect(),
                usd * SHORT_WEIGHT / f64::from(pool.floor.max(1)),
            ),
        };
        let (floor, ceiling) = (pool.floor, pool.ceiling);
        (Covering { kinds, unserved, short, floor, ceiling, limits: Vec::new() }, cells)
    }

    fn solve(
        &self,
        p: usize,
        limits: &Limits,
        covering: &Covering,
        cells: &[Vec<usize>],
    ) -> Option<Response> {
        let cover = covering.cheapest(POOL_NODES, limits.gap)?;
        let mut counts = Counts::new();
        for (k, n) in cover.counts.iter().enumerate() {
            let mut left = *n;
            for (s, c) in covering.kinds[k].segments.iter().zip(&cells[k]) {
                let here = left.min(s.most);
                if here > 0 {
                    *counts.entry((k, *c)).or_default() += here;
                    left -= here;
                }
            }
        }
        Some(Response { counts, bound: cover.bound + self.stopping(p) })
    }

    /// A pool's cheapest whole fleet at the prices, in an endless cluster; `None` if even that does not serve it. Zones are
    /// left out.
    pub(crate) fn at_prices(
        &self,
        p: usize,
        service: Service,
        prices: &Prices,
        limits: &Limits,
    ) -> Option<Response> {
        let (covering, cells) = self.covering(p, service, |k, places| {
            let pays = |at: &Place| at.cost + prices.surcharge(self.problem, p, k, at.cell);
            let kept = places.iter().filter(|at| at.running > 0);
            let kept = kept.map(|at| (at.cell, Segment { cost: pays(at) - at.stop, most: at.running }));
            let new = places.iter().filter(|at| at.open).map(|at| (at.cell, pays(at) + at.start));
            let cheapest = new.min_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
            kept.chain(cheapest.map(|(c, cost)| (c, Segment { cost, most: ENDLESS }))).collect()
        });
        self.solve(p, limits, &covering, &cells)
    }

    /// A pool's cheapest whole fleet at the prices in what is left of the cluster; `None` if none was found that serves it
    /// and fits. Zones are left out.
    pub(crate) fn within(
        &self,
        p: usize,
        service: Service,
        prices: &Prices,
        left: &Remaining<'_, '_>,
        limits: &Limits,
    ) -> Option<Response> {
        let (mut covering, cells) = self.covering(p, service, |k, places| {
            let mut segments = Vec::with_capacity(places.len() + 1);
            for at in places {
                let room = left.room(p, k, at.cell);
                let pays = at.cost + prices.surcharge(self.problem, p, k, at.cell);
                let kept = room.min(at.running);
                segments.push((at.cell, Segment { cost: pays - at.stop, most: kept }));
                if at.open {
                    segments.push((at.cell, Segment { cost: pays + at.start, most: room - kept }));
                }
            }
            segments
        });
        covering.limits = self.limits(p, &covering, &cells, left);
        self.solve(p, limits, &covering, &cells).filter(|found| left.fits_all(p, &found.counts))
    }

    /// The rows that candidates of one cell, or cells of one budget, could fill together beyond what is left.
    fn limits(
        &self,
        p: usize,
        covering: &Covering,
        cells: &[Vec<usize>],
        left: &Remaining<'_, '_>,
    ) -> Vec<Limit> {
        let candidates = &self.problem.pools[p].set.candidates;
        let segments = || {
            let of = |k: usize| cells[k].iter().enumerate().map(move |(s, c)| (k, s, *c));
            (0..cells.len()).flat_map(of)
        };
        let binding = |takes: Vec<(usize, usize, f64)>, most: f64| {
            let wanted =
                |(k, s, n): &(usize, usize, f64)| n * f64::from(covering.kinds[*k].segments[*s].most);
            (takes.len() > 1 && takes.iter().map(wanted).sum::<f64>() > most).then_some(Limit { takes, most })
        };
        let mut found = Vec::new();
        let mut used: Vec<usize> = cells.iter().flatten().copied().collect();
        used.sort_unstable();
        used.dedup();
        for c in used {
            for (size, groups) in left.groups(c) {
                let takes = |(k, s, at): (usize, usize, usize)| {
                    let shape = &candidates[k].shape;
                    let each = (shape.tensor_parallel / size) * shape.pipeline_parallel;
                    (at == c && each > 0).then_some((k, s, f64::from(each)))
                };
                found.extend(binding(segments().filter_map(takes).collect(), f64::from(groups)));
            }
        }
        for b in 0..self.problem.budgets.len() {
            let takes = |(k, s, c): (usize, usize, usize)| {
                let each = self.problem.takes(&Coupling::Budget(b), p, k, c);
                (each > 0.0).then_some((k, s, each))
            };
            found.extend(binding(segments().filter_map(takes).collect(), left.left(b).max(0.0)));
        }
        found
    }

    /// The same fleet over as many zones as the pool wants: replicas move to other zones, where that costs least; if there
    /// are too few, more are added. In what is left, or in an endless cluster. `None` if that cannot be.
    pub(crate) fn with_zones(
        &self,
        p: usize,
        mut counts: Counts,
        prices: &Prices,
        left: Option<&Remaining<'_, '_>>,
    ) -> Option<Counts> {
        let pool = &self.problem.pools[p];
        if pool.min_zones <= 1 {
            return Some(counts);
        }
        let zone = |c: usize| self.problem.cells[c].zone.as_str();
        let in_zone = |counts: &Counts, z: &str| -> u32 {
            counts.iter().filter(|((_, c), _)| zone(*c) == z).map(|(_, n)| n).sum()
        };
        let total = |counts: &Counts| {
            let pays = |((k, c), n): (&(usize, usize), &u32)| {
                f64::from(*n) * prices.surcharge(self.problem, p, *k, *c)
            };
            self.cost(p, counts) + counts.iter().map(pays).sum::<f64>()
        };
        loop {
            let mut zones: Vec<&str> =
                counts.keys().map(|(_, c)| zone(*c)).filter(|z| !z.is_empty()).collect();
            zones.sort_unstable();
            zones.dedup();
            if zones.len() as u32 >= pool.min_zones {
                return Some(counts);
            }
            let mut best: Option<(f64, Counts)> = None;
            for (k, places) in self.places[p].iter().enumerate() {
                for at in places {
                    let to = zone(at.cell);
                    let may = at.open || counts.get(&(k, at.cell)).copied().unwrap_or(0) < at.running;
                    if to.is_empty() || zones.contains(&to) || !may {
                        continue;
                    }
                    let more = || {
                        let mut more = counts.clone();
                        *more.entry((k, at.cell)).or_default() += 1;
                        more
                    };
                    // In the place of one of the same candidate in a zone that keeps another, or that is none; or besides.
                    let mut tries: Vec<Counts> = Vec::new();
                    for from in counts.keys().filter(|(j, c)| *j == k && *c != at.cell) {
                        if zone(from.1).is_empty() || in_zone(&counts, zone(from.1)) > 1 {
                            let mut moved = more();
                            moved.entry(*from).and_modify(|n| *n -= 1);
                            moved.retain(|_, n| *n > 0);
                            tries.push(moved);
                        }
                    }
                    if counts.values().sum::<u32>() < pool.ceiling {
                        tries.push(more());
                    }
                    for next in tries {
                        let cost = total(&next);
                        let fits = left.is_none_or(|left| left.fits_all(p, &next));
                        if fits && best.as_ref().is_none_or(|(c, _)| cost < c - 1e-12) {
                            best = Some((cost, next));
                        }
                    }
                }
            }
            counts = best?.1;
        }
    }
}
