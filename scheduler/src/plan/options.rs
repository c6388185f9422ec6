//! Where each candidate of each pool may be, and what it costs there; from that, one pool's best fleet at given prices.

use std::collections::BTreeMap;

use super::covering::{Covering, ENDLESS, Kind, Limit, Part, Segment, dense};
use super::greedy::answer_of;
use super::inventory::Eligibility;
use super::program::{Coupling, Problem, SHORT_WEIGHT};
use super::residual::Remaining;
use super::solver::Limits;

/// Nodes of the search for one pool's fleet.
const POOL_NODES: u64 = 3_000;
/// The same where some replicas only prefill or decode. A search that is stopped early proves little, and all pools' gaps add up: fewer nodes
/// save less time than the rounds that loose bounds then take.
const POOL_NODES_APART: u64 = 10_000;

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

/// Cells in which replicas of a candidate do the same: all of its cells, or those within reach of the same counterparts.
#[derive(Debug)]
struct Range {
    candidate: usize,
    part: Part,
    places: Vec<Place>,
}

/// A kind of replica of a pool's program.
struct OfKind {
    candidate: usize,
    /// Cell of each segment.
    cells: Vec<usize>,
}

/// Every pool's candidates and where they may be. Made once a problem: O(pools × candidates × cells of their class).
#[derive(Debug)]
pub(crate) struct Options<'p, 'a> {
    problem: &'p Problem<'a>,
    /// By pool, in order of candidate.
    ranges: Vec<Vec<Range>>,
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
            let size = shape.stage_gpus();
            let groups = *groups.entry((c, size)).or_insert_with(|| problem.groups(c, size));
            let room = groups / shape.pipeline_parallel.max(1);
            Some(Place {
                cell: c,
                running: pool.running.get(&(k, c)).copied().unwrap_or(0),
                open: cell.eligible[p] == Eligibility::Open && room >= 1,
                cost: pool.cost(k, cell),
                start: pool.start_usd(k, cell),
                stop: pool.stop_usd(k, cell),
            })
        };
        let mut ranges = Vec::with_capacity(problem.pools.len());
        for (p, pool) in problem.pools.iter().enumerate() {
            let mut of_pool: Vec<Range> = Vec::with_capacity(pool.set.candidates.len());
            for (k, candidate) in pool.set.candidates.iter().enumerate() {
                let first = of_pool.len();
                let cells = by_class.get(candidate.shape.accelerator.as_str());
                for c in cells.into_iter().flatten() {
                    let Some(part) = pool.part(k, *c) else { continue };
                    let Some(place) = place(p, k, *c) else { continue };
                    match of_pool[first..].iter_mut().find(|range| range.part == part) {
                        Some(range) => range.places.push(place),
                        None => of_pool.push(Range { candidate: k, part, places: vec![place] }),
                    }
                }
            }
            ranges.push(of_pool);
        }
        Self { problem, ranges }
    }

    /// The problem they are of.
    pub(crate) fn problem(&self) -> &'p Problem<'a> {
        self.problem
    }

    /// A pool's places, with the candidate that may be there.
    fn places(&self, p: usize) -> impl Iterator<Item = (usize, &Place)> {
        self.ranges[p].iter().flat_map(|range| range.places.iter().map(|at| (range.candidate, at)))
    }

    /// Where a candidate may be in a cell.
    fn place(&self, p: usize, k: usize, c: usize) -> Option<&Place> {
        let first = self.ranges[p].partition_point(|range| range.candidate < k);
        let own = self.ranges[p][first..].iter().take_while(|range| range.candidate == k);
        own.flat_map(|range| &range.places).find(|at| at.cell == c)
    }

    /// What stopping all that runs of a pool costs: paid by a fleet less what it keeps.
    fn stopping(&self, p: usize) -> f64 {
        self.places(p).map(|(_, at)| f64::from(at.running) * at.stop).fold(0.0, |a, b| a + b)
    }

    /// Cost of a pool's fleet, price of change included, dollars per hour.
    pub(crate) fn cost(&self, p: usize, counts: &Counts) -> f64 {
        let mut cost = self.stopping(p);
        for ((k, c), n) in counts {
            let Some(at) = self.place(p, *k, *c) else { continue };
            let kept = (*n).min(at.running);
            cost += f64::from(*n) * at.cost - f64::from(kept) * at.stop + f64::from(n - kept) * at.start;
        }
        cost
    }

    /// The program of one pool, without limits, and what its kinds are of. `segments` gives the cells and prices of a range.
    fn covering(
        &self,
        p: usize,
        service: Service,
        segments: impl Fn(&Range) -> Vec<(usize, Segment)>,
    ) -> (Covering, Vec<OfKind>) {
        let pool = &self.problem.pools[p];
        let classes = &pool.set.classes;
        let wanted: Vec<usize> = (0..classes.len()).filter(|c| classes[*c].rps > 0.0).collect();
        let mut parts = Vec::with_capacity(self.ranges[p].len());
        let mut of = Vec::with_capacity(self.ranges[p].len());
        for range in &self.ranges[p] {
            let mut found = segments(range);
            found.retain(|(_, s)| s.most > 0);
            if found.is_empty() {
                continue;
            }
            found.sort_by(|a, b| a.1.cost.total_cmp(&b.1.cost).then(a.0.cmp(&b.0)));
            let load = pool.load(range.candidate, &wanted);
            parts.push((range.part, (load, found.iter().map(|(_, s)| *s).collect())));
            let cells = found.iter().map(|(c, _)| *c).collect();
            of.push(OfKind { candidate: range.candidate, cells });
        }
        let kind = |(part, (load, segments))| Kind { part, load, segments };
        let kinds = dense(parts).into_iter().map(kind).collect();
        let (unserved, short) = match service {
            Service::All => (vec![f64::INFINITY; wanted.len()], f64::INFINITY),
            Service::Worth(usd) => (
                wanted.iter().map(|c| usd * classes[*c].rps / pool.total_rps()).collect(),
                usd * SHORT_WEIGHT / f64::from(pool.floor.max(1)),
            ),
        };
        let (floor, ceiling) = (pool.floor, pool.ceiling);
        (Covering { kinds, unserved, short, floor, ceiling, limits: Vec::new() }, of)
    }

    fn solve(&self, p: usize, limits: &Limits, covering: &Covering, of: &[OfKind]) -> Option<Response> {
        let nodes = if covering.links() > 0 { POOL_NODES_APART } else { POOL_NODES };
        let cover = covering.cheapest(nodes, limits.gap)?;
        let mut counts = Counts::new();
        for ((n, kind), of) in cover.counts.iter().zip(&covering.kinds).zip(of) {
            let mut left = *n;
            for (s, c) in kind.segments.iter().zip(&of.cells) {
                let here = left.min(s.most);
                if here > 0 {
                    *counts.entry((of.candidate, *c)).or_default() += here;
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
        let pays = |k: usize, at: &Place| at.cost + prices.surcharge(self.problem, p, k, at.cell);
        let pointless = self.pointless_links(p, &pays);
        let (covering, of) = self.covering(p, service, |range| {
            let pays = |at: &Place| pays(range.candidate, at);
            let kept = range.places.iter().filter(|at| at.running > 0);
            let kept = kept.map(|at| (at.cell, Segment { cost: pays(at) - at.stop, most: at.running }));
            let new = range.places.iter().filter(|at| at.open && !pointless.contains(&range.part));
            let new = new.map(|at| (at.cell, pays(at) + at.start));
            let cheapest = new.min_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
            kept.chain(cheapest.map(|(c, cost)| (c, Segment { cost, most: ENDLESS }))).collect()
        });
        self.solve(p, limits, &covering, &of)
    }

    /// Parts in places that are not needed: where nothing of them runs, and those with more room have enough of it.
    fn distant_links(&self, p: usize, left: &Remaining<'_, '_>) -> Vec<Part> {
        // Link, room for prefill and for decode replicas in pools' worth, whether something runs there.
        let mut links: BTreeMap<usize, (f64, f64, bool)> = BTreeMap::new();
        for range in &self.ranges[p] {
            let (Part::Prefill(link) | Part::Decode(link)) = range.part else { continue };
            let (prefill, decode, runs) = links.entry(link).or_default();
            let load = self.problem.pools[p].load_of(range.candidate);
            for at in &range.places {
                *runs |= at.running > 0;
                let room = f64::from(left.room(p, range.candidate, at.cell)) / load;
                *if matches!(range.part, Part::Prefill(_)) { &mut *prefill } else { &mut *decode } += room;
            }
        }
        let mut order: Vec<(usize, f64, bool)> =
            links.into_iter().map(|(link, (p, d, runs))| (link, p.min(d), runs)).collect();
        order.sort_by(|a, b| b.2.cmp(&a.2).then(b.1.total_cmp(&a.1)).then(a.0.cmp(&b.0)));
        let mut room = 0.0;
        let mut distant = Vec::new();
        for (link, here, runs) in order {
            if room >= 1.0 && !runs {
                distant.extend([Part::Prefill(link), Part::Decode(link)]);
            }
            room += here;
        }
        distant
    }

    /// Parts in places where nothing of them runs and another place, of an endless cluster, offers each candidate for no more.
    fn pointless_links(&self, p: usize, pays: &dyn Fn(usize, &Place) -> f64) -> Vec<Part> {
        // Link, cheapest new replica by candidate, whether something runs there.
        let mut links: BTreeMap<usize, (BTreeMap<usize, f64>, bool)> = BTreeMap::new();
        for range in &self.ranges[p] {
            let (Part::Prefill(link) | Part::Decode(link)) = range.part else { continue };
            let (cheapest, runs) = links.entry(link).or_default();
            *runs |= range.places.iter().any(|at| at.running > 0);
            let new = range.places.iter().filter(|at| at.open).map(|at| pays(range.candidate, at) + at.start);
            if let Some(usd) = new.min_by(f64::total_cmp) {
                cheapest.insert(range.candidate, usd);
            }
        }
        let mut pointless = Vec::new();
        for (link, (cheapest, runs)) in &links {
            let beaten = |(other, (at, _)): (&usize, &(BTreeMap<usize, f64>, bool))| {
                let gain = |k: &usize| at.get(k).map_or(f64::NEG_INFINITY, |usd| cheapest[k] - usd);
                other != link
                    && cheapest.keys().all(|k| gain(k) >= 0.0)
                    && (other < link || cheapest.keys().any(|k| gain(k) > 0.0))
            };
            if !runs && links.iter().any(beaten) {
                pointless.extend([Part::Prefill(*link), Part::Decode(*link)]);
            }
        }
        pointless
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
        let distant = self.distant_links(p, left);
        let (mut covering, of) = self.covering(p, service, |range| {
            if distant.contains(&range.part) {
                return Vec::new();
            }
            let k = range.candidate;
            let mut segments = Vec::with_capacity(range.places.len() + 1);
            for at in &range.places {
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
        covering.limits = self.limits(p, &covering, &of, left);
        self.solve(p, limits, &covering, &of).filter(|found| left.fits_all(p, &found.counts))
    }

    /// The rows that candidates of one cell, or cells of one budget, could fill together beyond what is left.
    fn limits(&self, p: usize, covering: &Covering, of: &[OfKind], left: &Remaining<'_, '_>) -> Vec<Limit> {
        let candidates = &self.problem.pools[p].set.candidates;
        let segments = || {
            let cells = |i: usize| of[i].cells.iter().enumerate().map(move |(s, c)| (i, s, *c));
            (0..of.len()).flat_map(cells)
        };
        let binding = |takes: Vec<(usize, usize, f64)>, most: f64| {
            let wanted =
                |(k, s, n): &(usize, usize, f64)| n * f64::from(covering.kinds[*k].segments[*s].most);
            (takes.len() > 1 && takes.iter().map(wanted).sum::<f64>() > most).then_some(Limit { takes, most })
        };
        let mut found = Vec::new();
        let mut used: Vec<usize> = of.iter().flat_map(|of| &of.cells).copied().collect();
        used.sort_unstable();
        used.dedup();
        for c in used {
            for (size, groups) in left.groups(c) {
                let takes = |(i, s, at): (usize, usize, usize)| {
                    let shape = &candidates[of[i].candidate].shape;
                    let each = (shape.stage_gpus() / size) * shape.pipeline_parallel;
                    (at == c && each > 0).then_some((i, s, f64::from(each)))
                };
                found.extend(binding(segments().filter_map(takes).collect(), f64::from(groups)));
            }
        }
        for b in 0..self.problem.budgets.len() {
            let takes = |(i, s, c): (usize, usize, usize)| {
                let each = self.problem.takes(&Coupling::Budget(b), p, of[i].candidate, c);
                (each > 0.0).then_some((i, s, each))
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
        // Of a prefill and a decode replica that move, others may have had need.
        let undone = if pool.has_parts() { pool.undone(&answer_of(self.problem, p, &counts)) } else { 0.0 };
        let serves = |next: &Counts| {
            // Zones come closer with each step, so that they do not count here.
            !pool.has_parts() || pool.undone(&answer_of(self.problem, p, next)) <= undone + 1e-9
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
            for group in self.together(p, &|k, at| {
                let may = at.open || counts.get(&(k, at.cell)).copied().unwrap_or(0) < at.running;
                may && !zone(at.cell).is_empty() && !zones.contains(&zone(at.cell))
            }) {
                let more = || {
                    let mut more = counts.clone();
                    group.iter().for_each(|at| *more.entry(*at).or_default() += 1);
                    more
                };
                // In the place of one of each candidate in a zone that keeps another, or that is none; or besides.
                let mut tries: Vec<Counts> = Vec::new();
                let of_first = counts.keys().filter(|(j, c)| (*j, *c) != group[0] && *j == group[0].0);
                for first in of_first {
                    let from = zone(first.1);
                    let mut moved = more();
                    let others = group[1..]
                        .iter()
                        .map(|(k, _)| counts.keys().find(|(j, c)| j == k && zone(*c) == from));
                    let Some(leaving) =
                        std::iter::once(Some(first)).chain(others).collect::<Option<Vec<_>>>()
                    else {
                        continue;
                    };
                    if from.is_empty() || in_zone(&counts, from) > group.len() as u32 {
                        for at in leaving {
                            moved.entry(*at).and_modify(|n| *n = n.saturating_sub(1));
                        }
                        moved.retain(|_, n| *n > 0);
                        tries.push(moved);
                    }
                }
                if counts.values().sum::<u32>() + group.len() as u32 <= pool.ceiling {
                    tries.push(more());
                }
                for next in tries {
                    let cost = total(&next);
                    let fits = left.is_none_or(|left| left.fits_all(p, &next));
                    if fits && serves(&next) && best.as_ref().is_none_or(|(c, _)| cost < c - 1e-12) {
                        best = Some((cost, next));
                    }
                }
            }
            counts = best?.1;
        }
    }

    /// Replicas that make a difference together, of places that are allowed: one that serves requests whole, or a prefill and a decode
    /// replica that reach each other.
    fn together(&self, p: usize, may: &dyn Fn(usize, &Place) -> bool) -> Vec<Vec<(usize, usize)>> {
        let of = |range: &Range| -> Vec<(usize, usize)> {
            let open = range.places.iter().filter(|at| may(range.candidate, at));
            open.map(|at| (range.candidate, at.cell)).collect()
        };
        let mut groups = Vec::new();
        for range in &self.ranges[p] {
            match range.part {
                Part::Whole => groups.extend(of(range).into_iter().map(|at| vec![at])),
                Part::Prefill(link) => {
                    let decode = self.ranges[p].iter().filter(|other| other.part == Part::Decode(link));
                    let decode: Vec<(usize, usize)> = decode.flat_map(of).collect();
                    for first in of(range) {
                        groups.extend(decode.iter().map(|second| vec![first, *second]));
                    }
                }
                Part::Decode(_) => {}
            }
        }
        groups
    }
}
