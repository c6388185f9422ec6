//! The cheapest whole fleet of one pool: how many replicas of each shape, so that all request classes are served.
//!
//! A [`Covering`] is one pool's part of the program of DESIGN §7 at given prices: kinds of replica, each with the load that
//! each class would put on it and with prices that rise with the number taken (what runs first, then new ones, then cells
//! that are dearer); flows may be split as one likes, and what is left unserved may have a price. A request is served
//! by one replica, or by a prefill and a decode replica that a link joins ([`Part`]). [`Covering::cheapest`] solves it
//! exactly: kinds that others make pointless are left out, a linear relaxation on a tableau of a few rows says what serving each class is
//! worth, and a search over whole numbers ([`super::dive`]) starts from there. Deterministic: its limit counts nodes.
//!
//! Complexity: a node costs a few multiplications by cuts, tens of nanoseconds; most pools take tens to thousands of nodes.

use super::dive::{Dive, offer};
use super::tableau::Tableau;

/// Some replicas of a kind at one price.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Segment {
    /// Price of each, dollars per hour, with all that is added to it; may be negative (what runs, if stopping is dear).
    pub(crate) cost: f64,
    /// How many there are at this price.
    pub(crate) most: u32,
}

/// What a replica does of the requests that come to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Part {
    /// All.
    #[default]
    Whole,
    /// Prompts, whose answers decode replicas of the same link generate.
    Prefill(usize),
    /// Answers to prompts that prefill replicas of the same link computed.
    Decode(usize),
}

impl Part {
    fn link(self) -> Option<usize> {
        match self {
            Self::Whole => None,
            Self::Prefill(link) | Self::Decode(link) => Some(link),
        }
    }
}

/// Replicas of one candidate.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Kind {
    /// What they do.
    pub(crate) part: Part,
    /// Replicas (not whole) that each class would take if all of it came here; infinite if it cannot be served.
    pub(crate) load: Vec<f64>,
    /// Prices, lowest first.
    pub(crate) segments: Vec<Segment>,
}

impl Kind {
    fn most(&self) -> u32 {
        self.segments.iter().fold(0, |sum, s| sum.saturating_add(s.most))
    }

    /// Price of the first `count`.
    fn cost(&self, count: u32) -> f64 {
        let mut left = count;
        let mut cost = 0.0;
        for s in &self.segments {
            let here = left.min(s.most);
            cost += s.cost * f64::from(here);
            left -= here;
        }
        cost
    }

    /// What doing this kind's part of all of a class is worth, where `prices` are [`Scratch::prices`].
    fn worth(&self, prices: &[f64], c: usize) -> f64 {
        let decode = |link: usize| prices.get((1 + link) * self.load.len() + c).copied().unwrap_or(0.0);
        match self.part {
            Part::Whole => prices[c],
            Part::Prefill(link) => prices[c] - decode(link),
            Part::Decode(link) => decode(link),
        }
    }

    /// What one replica can bring at most at these prices.
    pub(crate) fn brings(&self, prices: &[f64]) -> f64 {
        self.load.iter().enumerate().map(|(c, load)| self.worth(prices, c) / load).fold(0.0, f64::max)
    }

    /// How many there are at no more than a price.
    fn within(&self, cost: f64) -> u32 {
        self.segments.iter().filter(|s| s.cost <= cost).fold(0, |sum, s| sum.saturating_add(s.most))
    }
}

/// A number of replicas that stands for as many as one likes.
pub(crate) const ENDLESS: u32 = 1 << 20;

/// A row that several segments fill together: a budget, the slots of a cell.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Limit {
    /// What one replica takes: kind, segment, amount (> 0).
    pub(crate) takes: Vec<(usize, usize, f64)>,
    /// How much there is.
    pub(crate) most: f64,
}

/// One pool's program. See the module.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Covering {
    /// Kinds of replica.
    pub(crate) kinds: Vec<Kind>,
    /// Price of leaving each request class wholly unserved, dollars per hour; infinite: it must be served.
    pub(crate) unserved: Vec<f64>,
    /// Price of each replica below the floor, dollars per hour; infinite: there must be as many.
    pub(crate) short: f64,
    /// Fewest replicas.
    pub(crate) floor: u32,
    /// Most replicas.
    pub(crate) ceiling: u32,
    /// Rows over several segments. Where a kind's cheaper segments take more of one than its dearer ones, the answer may not be the best.
    pub(crate) limits: Vec<Limit>,
}

/// A fleet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cover {
    /// Replicas of each kind.
    pub(crate) counts: Vec<u32>,
    /// What they cost, with what is left unserved.
    pub(crate) cost: f64,
    /// Proved lower bound on the cost of any fleet.
    pub(crate) bound: f64,
}

/// Bounds on the number of replicas of each kind.
#[derive(Debug, Clone)]
struct Node {
    low: Vec<u32>,
    high: Vec<u32>,
}

/// Answer to a node's relaxation.
enum Relaxed {
    Infeasible,
    /// Cost, and replicas of each kind.
    Point(f64, Vec<f64>),
}

/// What relaxations are solved in.
#[derive(Default)]
pub(crate) struct Scratch {
    tableau: Tableau,
    values: Vec<f64>,
    /// What serving each class was worth in the last one; then, link by link, what decoding each class was worth of that.
    pub(crate) prices: Vec<f64>,
}

impl Covering {
    /// Finds it; `None` if the pool cannot be served within its bounds.
    pub(crate) fn cheapest(&self, nodes: u64, gap: f64) -> Option<Cover> {
        let kept = self.undominated();
        let reduced;
        let program = if kept.len() == self.kinds.len() {
            self
        } else {
            let limit = |l: &Limit| {
                let at = |k: usize| kept.iter().position(|x| *x == k);
                let takes = l.takes.iter().filter_map(|(k, s, n)| Some((at(*k)?, *s, *n))).collect();
                Limit { takes, most: l.most }
            };
            reduced = Self {
                kinds: kept.iter().map(|k| self.kinds[*k].clone()).collect(),
                unserved: self.unserved.clone(),
                limits: self.limits.iter().map(limit).collect(),
                ..*self
            };
            &reduced
        };
        let found = program.search(nodes, gap)?;
        let mut counts = vec![0; self.kinds.len()];
        kept.iter().zip(&found.counts).for_each(|(k, n)| counts[*k] = *n);
        Some(Cover { counts, ..found })
    }

    /// Links between prefill and decode replicas.
    pub(crate) fn links(&self) -> usize {
        self.kinds.iter().filter_map(|k| k.part.link()).max().map_or(0, |last| last + 1)
    }

    /// Kinds that no other makes pointless. Of equals the first stays.
    fn undominated(&self) -> Vec<usize> {
        let useful: Vec<u32> = self.kinds.iter().map(|k| self.useful(k)).collect();
        // Whether each of `k` can be some of `j` instead, at no higher price.
        let beats = |j: usize, k: usize| {
            let (a, b) = (&self.kinds[j], &self.kinds[k]);
            let limited = self.limits.iter().flat_map(|l| &l.takes).any(|(kind, _, _)| *kind == j);
            let times = |(a, b): (&f64, &f64)| if a <= b { 1.0 } else { a / b };
            let times = a.load.iter().zip(&b.load).map(times).fold(1.0, f64::max);
            // One that serves requests whole does either part of them, and spares the other.
            let alike = a.part == b.part || a.part == Part::Whole;
            if limited || !alike || times > 64.0 {
                return false;
            }
            let times = (times - 1e-9).ceil() as u32;
            let needed = useful[j].saturating_add(times.saturating_mul(useful[k]));
            let cheapest = b.segments.first().map_or(f64::INFINITY, |s| s.cost);
            a.within(cheapest / f64::from(times)) >= needed && (times == 1 || needed <= self.ceiling)
        };
        let pointless =
            |k: usize| (0..self.kinds.len()).any(|j| j != k && beats(j, k) && (j < k || !beats(k, j)));
        (0..self.kinds.len()).filter(|k| self.kinds[*k].most() > 0 && !pointless(*k)).collect()
    }

    /// Replicas beyond which no more of a kind are of use, unless they are paid for.
    fn useful(&self, kind: &Kind) -> u32 {
        let load: f64 = kind.load.iter().filter(|l| l.is_finite()).sum();
        let free = kind.segments.iter().filter(|s| s.cost < 0.0).fold(0_u32, |n, s| n.saturating_add(s.most));
        (load.ceil().min(f64::from(ENDLESS)) as u32)
            .max(self.floor)
            .max(free)
            .min(kind.most())
            .min(self.ceiling)
    }

    fn search(&self, nodes: u64, gap: f64) -> Option<Cover> {
        let mut scratch = Scratch::default();
        let high: Vec<u32> = self.kinds.iter().map(|k| self.useful(k)).collect();
        let root = Node { low: vec![0; self.kinds.len()], high };
        let Relaxed::Point(bound, point) = self.relax(&root, &mut scratch) else { return None };
        let prices = scratch.prices.clone();
        let mut best = None;
        self.round_up(&root, &point, &mut best, &mut scratch);
        let mut dive = Dive::new(self, &root.high, &prices, (nodes, gap), best, &mut scratch);
        dive.run();
        let (proved, best) = (dive.proved, dive.best);
        best.map(|(cost, counts)| Cover { counts, cost, bound: proved.max(bound).min(cost) })
    }

    /// What a fleet costs, with what it leaves unserved; `None` if it may not be.
    pub(crate) fn value(&self, counts: &[u32], scratch: &mut Scratch) -> Option<f64> {
        let fixed = Node { low: counts.to_vec(), high: counts.to_vec() };
        match self.relax(&fixed, scratch) {
            Relaxed::Point(cost, _) => Some(cost),
            Relaxed::Infeasible => None,
        }
    }

    /// A fleet from a node's point: all rounded up, then without what does not pay, dearest first.
    fn round_up(
        &self,
        node: &Node,
        point: &[f64],
        best: &mut Option<(f64, Vec<u32>)>,
        scratch: &mut Scratch,
    ) {
        let mut counts: Vec<u32> = point
            .iter()
            .zip(&node.high)
            .map(|(n, high)| ((n - 1e-6).ceil().max(0.0) as u32).min(*high))
            .collect();
        let mut value = self.value(&counts, scratch);
        let last = |k: usize, n: u32| self.kinds[k].cost(n) - self.kinds[k].cost(n - 1);
        let mut order: Vec<usize> = (0..counts.len()).filter(|k| counts[*k] > 0).collect();
        order.sort_by(|a, b| last(*b, counts[*b]).total_cmp(&last(*a, counts[*a])).then(a.cmp(b)));
        for k in order {
            while counts[k] > node.low[k] {
                counts[k] -= 1;
                let fewer = self.value(&counts, scratch);
                // Rounded up, it may have been too much for a limit: then anything that is not is better.
                let better = match (fewer, value) {
                    (Some(fewer), Some(value)) => fewer < value,
                    (Some(_), None) => true,
                    (None, Some(_)) => false,
                    (None, None) => !self.limits.is_empty(),
                };
                if !better {
                    counts[k] += 1;
                    break;
                }
                value = fewer;
            }
        }
        if let Some(value) = value {
            offer(best, value, &counts);
        }
    }

    /// Linear relaxation of a node. Columns: each class's share on each kind that serves it; replicas of each segment
    /// above the node's lower bound; slack of each kind; share unserved of each class, at its price or, where there is none,
    /// at one that keeps it at zero if anything can; slack or shortage of the bounds on all replicas; slack of each limit; what more of
    /// each class could be decoded than is prefilled, by link.
    fn relax(&self, node: &Node, scratch: &mut Scratch) -> Relaxed {
        let (kinds, classes) = (self.kinds.len(), self.unserved.len());
        let least: u32 = node.low.iter().sum();
        if least > self.ceiling || node.low.iter().zip(&node.high).any(|(l, h)| l > h) {
            return Relaxed::Infeasible;
        }
        // Segments within the node's bounds.
        let mut pieces: Vec<(usize, f64, f64)> = Vec::with_capacity(kinds * 2);
        // Which piece a segment is.
        let mut piece_of: Vec<Vec<Option<usize>>> = Vec::new();
        let mut left: Vec<f64> = self.limits.iter().map(|l| l.most).collect();
        let mut paid = 0.0;
        for (k, kind) in self.kinds.iter().enumerate() {
            let mut at = 0_u32;
            let mut of_kind = vec![None; if self.limits.is_empty() { 0 } else { kind.segments.len() }];
            for (i, s) in kind.segments.iter().enumerate() {
                let (from, to) = (at, at.saturating_add(s.most).min(node.high[k]));
                let bought = node.low[k].clamp(from, to.max(from)) - from;
                paid += s.cost * f64::from(bought);
                if bought > 0 {
                    for (limit, left) in self.limits.iter().zip(&mut left) {
                        let takes =
                            limit.takes.iter().filter(|(kind, segment, _)| (*kind, *segment) == (k, i));
                        *left -= takes.map(|(_, _, n)| n * f64::from(bought)).sum::<f64>();
                    }
                }
                if to > from + bought {
                    if let Some(piece) = of_kind.get_mut(i) {
                        *piece = Some(pieces.len());
                    }
                    pieces.push((k, s.cost, f64::from(to - from - bought)));
                }
                at = to.max(from);
            }
            piece_of.push(of_kind);
        }
        if left.iter().zip(&self.limits).any(|(left, l)| *left < -1e-9 * (1.0 + l.most.abs())) {
            return Relaxed::Infeasible;
        }
        // Kinds of which there can be none have no part in it: most, where a whole fleet is valued.
        let shares: Vec<(usize, usize, f64)> = (0..kinds)
            .filter(|k| node.high[*k] > 0)
            .flat_map(|k| (0..classes).map(move |c| (k, c)))
            .map(|(k, c)| (k, c, self.kinds[k].load[c]))
            .filter(|(_, _, load)| load.is_finite())
            .collect();
        let (x0, slack0) = (shares.len(), shares.len() + pieces.len());
        let unserved0 = slack0 + kinds;
        let (over, short, spare) = (unserved0 + classes, unserved0 + classes + 1, unserved0 + classes + 2);
        let dearest = pieces.iter().map(|(_, cost, _)| cost.abs()).fold(1.0, f64::max);
        let heaviest = shares.iter().map(|(_, _, load)| *load).fold(1.0, f64::max);
        let priced = self
            .unserved
            .iter()
            .chain([&self.short])
            .filter(|x| x.is_finite())
            .fold(0.0, |a, b| f64::max(a, *b));
        let forbidden = 1e3 * (dearest * heaviest).max(priced);
        let tableau = &mut scratch.tableau;
        let more0 = spare + 1 + self.limits.len();
        let links = self.links();
        tableau.clear(more0 + links * classes);
        for (i, (_, cost, most)) in pieces.iter().enumerate() {
            tableau.column(x0 + i, *cost, *most);
        }
        for c in 0..classes {
            let price = self.unserved[c];
            tableau.column(unserved0 + c, if price.is_finite() { price } else { forbidden }, f64::INFINITY);
            let first =
                |s: &(usize, usize, f64)| s.1 == c && !matches!(self.kinds[s.0].part, Part::Decode(_));
            let terms = shares.iter().enumerate().filter(|(_, s)| first(s)).map(|(j, _)| (j, 1.0));
            tableau.row(terms, unserved0 + c, 1.0);
        }
        for (link, c) in (0..links).flat_map(|link| (0..classes).map(move |c| (link, c))) {
            let flows = shares.iter().enumerate().filter(|(_, s)| s.1 == c);
            let terms = flows.filter_map(|(j, s)| Some((j, balance(self.kinds[s.0].part, link)?)));
            let mut terms = terms.peekable();
            if terms.peek().is_some() {
                tableau.row(terms, more0 + link * classes + c, 0.0);
            }
        }
        for k in (0..kinds).filter(|k| node.high[*k] > 0) {
            let loads = shares.iter().enumerate().filter(|(_, s)| s.0 == k).map(|(j, s)| (j, s.2));
            let replicas = pieces.iter().enumerate().filter(|(_, p)| p.0 == k).map(|(i, _)| (x0 + i, -1.0));
            tableau.row(loads.chain(replicas), slack0 + k, f64::from(node.low[k]));
        }
        let all = || (0..pieces.len()).map(|i| (x0 + i, 1.0));
        let room: f64 = pieces.iter().map(|p| p.2).sum();
        if f64::from(least) + room > f64::from(self.ceiling) {
            tableau.row(all(), over, f64::from(self.ceiling - least));
        }
        if self.floor > least {
            tableau.column(short, if self.short.is_finite() { self.short } else { forbidden }, f64::INFINITY);
            tableau.row(all().chain([(spare, -1.0)]), short, f64::from(self.floor - least));
        }
        for (i, (limit, left)) in self.limits.iter().zip(&left).enumerate() {
            let of = |(k, s, n): &(usize, usize, f64)| Some((x0 + piece_of[*k][*s]?, *n));
            tableau.row(limit.takes.iter().filter_map(of), spare + 1 + i, left.max(0.0));
        }
        if !tableau.minimise() {
            // Numerically hopeless: nothing is proved, nothing is cut off that could matter.
            return Relaxed::Infeasible;
        }
        tableau.values(&mut scratch.values);
        let values = &scratch.values;
        let price = |c: usize| if self.unserved[c].is_finite() { self.unserved[c] } else { forbidden };
        let worth = |c: usize| (price(c) - tableau.reduced_cost(unserved0 + c)).max(0.0);
        scratch.prices.clear();
        scratch.prices.extend((0..classes).map(worth));
        for i in 0..links * classes {
            let decode = tableau.reduced_cost(more0 + i).clamp(0.0, scratch.prices[i % classes]);
            scratch.prices.push(decode);
        }
        let missing = |c: usize| self.unserved[c].is_infinite() && values[unserved0 + c] > 1e-7;
        if (0..classes).any(missing) || (self.short.is_infinite() && values[short] > 1e-7) {
            return Relaxed::Infeasible;
        }
        let mut point: Vec<f64> = node.low.iter().map(|n| f64::from(*n)).collect();
        for (i, (k, _, _)) in pieces.iter().enumerate() {
            point[*k] += values[x0 + i];
        }
        Relaxed::Point(paid + tableau.objective(), point)
    }
}

/// How a share of what replicas of this part take counts in the balance of a link: what is prefilled less what is decoded.
fn balance(part: Part, link: usize) -> Option<f64> {
    match part {
        Part::Prefill(l) if l == link => Some(1.0),
        Part::Decode(l) if l == link => Some(-1.0),
        Part::Whole | Part::Prefill(_) | Part::Decode(_) => None,
    }
}

/// The same parts with links numbered from 0 on.
pub(crate) fn dense<T>(mut parts: Vec<(Part, T)>) -> Vec<(Part, T)> {
    let mut links: Vec<usize> = parts.iter().filter_map(|(part, _)| part.link()).collect();
    links.sort_unstable();
    links.dedup();
    let at = |link: usize| links.binary_search(&link).unwrap_or(0);
    for (part, _) in &mut parts {
        *part = match *part {
            Part::Whole => Part::Whole,
            Part::Prefill(link) => Part::Prefill(at(link)),
            Part::Decode(link) => Part::Decode(at(link)),
        };
    }
    parts
}

/// How given replicas can serve most: the share of each class (outer) on each kind (inner), such that what is unserved weighs
/// least. `kinds` are what each kind does and its [`Kind::load`], `weights` that of each class wholly unserved; `None` if nothing was
/// found.
pub(crate) fn flow(kinds: &[(Part, Vec<f64>)], counts: &[u32], weights: &[f64]) -> Option<Vec<Vec<f64>>> {
    let classes = weights.len();
    let shares: Vec<(usize, usize)> = (0..kinds.len())
        .filter(|k| counts[*k] > 0)
        .flat_map(|k| (0..classes).map(move |c| (k, c)))
        .filter(|(k, c)| kinds[*k].1[*c].is_finite())
        .collect();
    let links = kinds.iter().filter_map(|(part, _)| part.link()).max().map_or(0, |last| last + 1);
    let (slack0, unserved0) = (shares.len(), shares.len() + kinds.len());
    let more0 = unserved0 + classes;
    let mut tableau = Tableau::default();
    tableau.clear(more0 + links * classes);
    for (c, weight) in weights.iter().enumerate() {
        tableau.column(unserved0 + c, *weight, f64::INFINITY);
        let first = |s: &(usize, usize)| s.1 == c && !matches!(kinds[s.0].0, Part::Decode(_));
        let terms = shares.iter().enumerate().filter(|(_, s)| first(s)).map(|(j, _)| (j, 1.0));
        tableau.row(terms, unserved0 + c, 1.0);
    }
    for (link, c) in (0..links).flat_map(|link| (0..classes).map(move |c| (link, c))) {
        let flows = shares.iter().enumerate().filter(|(_, s)| s.1 == c);
        let terms = flows.filter_map(|(j, s)| Some((j, balance(kinds[s.0].0, link)?)));
        tableau.row(terms, more0 + link * classes + c, 0.0);
    }
    for (k, n) in counts.iter().enumerate() {
        let terms = shares.iter().enumerate().filter(|(_, s)| s.0 == k).map(|(j, s)| (j, kinds[k].1[s.1]));
        tableau.row(terms, slack0 + k, f64::from(*n));
    }
    if !tableau.minimise() {
        return None;
    }
    let mut values = Vec::new();
    tableau.values(&mut values);
    let mut found = vec![vec![0.0; kinds.len()]; classes];
    for ((k, c), value) in shares.into_iter().zip(values) {
        found[c][k] = value.clamp(0.0, 1.0);
    }
    // Decode replicas may have room for more than is prefilled: they get no more than there is.
    for found in &mut found {
        for link in 0..links {
            let sum = |part: Part| -> f64 {
                kinds.iter().zip(&*found).filter(|((p, _), _)| *p == part).map(|(_, share)| share).sum()
            };
            let (first, second) = (sum(Part::Prefill(link)), sum(Part::Decode(link)));
            let scale = if second > first { first / second } else { 1.0 };
            for ((part, _), share) in kinds.iter().zip(&mut *found) {
                if *part == Part::Decode(link) {
                    *share *= scale;
                }
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kind(load: &[f64], segments: &[(f64, u32)]) -> Kind {
        let segments = segments.iter().map(|(cost, most)| Segment { cost: *cost, most: *most }).collect();
        Kind { part: Part::Whole, load: load.to_vec(), segments }
    }

    fn all_of(kinds: Vec<Kind>, classes: usize, floor: u32, ceiling: u32) -> Covering {
        let (unserved, short) = (vec![f64::INFINITY; classes], f64::INFINITY);
        Covering { kinds, unserved, short, floor, ceiling, limits: Vec::new() }
    }

    #[test]
    fn what_does_not_pay_is_left_unserved() {
        // A second replica would serve a tenth of the class, worth 0.8.
        let kinds = vec![kind(&[1.1], &[(1.0, ENDLESS)])];
        let mut c = Covering { unserved: vec![8.8], ..all_of(kinds, 1, 0, 9) };
        let found = c.cheapest(100, 0.0).unwrap();
        assert_eq!(found.counts, [1]);
        assert!((found.cost - 1.8).abs() < 1e-9 && (found.bound - found.cost).abs() < 1e-9);
        c.unserved = vec![12.0];
        assert_eq!(c.cheapest(100, 0.0).unwrap().counts, [2]);
    }

    #[test]
    fn limits_hold_over_kinds() {
        // Money for three: the kind that carries more for its price is taken as far as that goes.
        let kinds = vec![kind(&[4.0], &[(1.0, ENDLESS)]), kind(&[2.5], &[(2.0, ENDLESS)])];
        let limit = Limit { takes: vec![(0, 0, 1.0), (1, 0, 2.0)], most: 3.0 };
        let c = Covering { unserved: vec![100.0], limits: vec![limit], ..all_of(kinds, 1, 0, 9) };
        // One large and one small serve 0.65, three small 0.75.
        let found = c.cheapest(100, 0.0).unwrap();
        assert_eq!(found.counts, [3, 0]);
        assert!((found.cost - 28.0).abs() < 1e-6, "{}", found.cost);
    }

    #[test]
    fn a_limit_that_two_kinds_share_does_not_hide_the_cheaper_fleet() {
        let kinds =
            vec![kind(&[2.25], &[(0.5, 2), (1.0, ENDLESS)]), kind(&[0.25], &[(0.25, 1), (0.25, ENDLESS)])];
        let takes = vec![(0, 0, 1.0), (0, 1, 1.0), (1, 0, 4.0), (1, 1, 4.0)];
        let c = Covering { limits: vec![Limit { takes, most: 6.0 }], ..all_of(kinds, 1, 2, 7) };
        let found = c.cheapest(100_000, 0.0).unwrap();
        assert_eq!(found.counts, [1, 1], "{found:?}");
    }

    #[test]
    fn what_runs_is_kept_while_a_new_one_is_dearer_with_its_start() {
        // One replica is enough; the running kind costs 3 kept, a new one of the other 2.5 and its start 1.
        let kinds = vec![kind(&[0.9], &[(3.0, 1), (4.0, ENDLESS)]), kind(&[0.9], &[(3.5, ENDLESS)])];
        let c = all_of(kinds, 1, 0, 10);
        let found = c.cheapest(100, 0.0).unwrap();
        assert_eq!((found.counts, found.cost), (vec![1, 0], 3.0));
        assert!((found.bound - 3.0).abs() < 1e-9);
    }

    #[test]
    fn unlike_classes_take_unlike_kinds() {
        let kinds = vec![kind(&[3.0, 10.0], &[(0.5, ENDLESS)]), kind(&[1.5, 1.0], &[(2.0, ENDLESS)])];
        let c = all_of(kinds, 2, 0, 100);
        let found = c.cheapest(100, 0.0).unwrap();
        assert_eq!((found.counts, found.cost), (vec![3, 1], 3.5));
    }

    #[test]
    fn bounds_that_contradict_the_demand_leave_nothing() {
        let one = kind(&[4.5], &[(1.0, 9)]);
        let of = |floor, ceiling| all_of(vec![one.clone()], 1, floor, ceiling);
        assert_eq!(of(0, 4).cheapest(100, 0.0), None, "five are needed");
        assert_eq!(of(12, 20).cheapest(100, 0.0), None, "there are nine");
        assert_eq!(of(7, 20).cheapest(100, 0.0).map(|c| c.counts), Some(vec![7]));
        let nobody = all_of(vec![], 1, 0, 3);
        assert_eq!(nobody.cheapest(100, 0.0), None);
        let no_demand = all_of(vec![one], 0, 0, 3);
        assert_eq!(no_demand.cheapest(100, 0.0).map(|c| c.counts), Some(vec![0]));
    }

    #[test]
    fn what_is_prefilled_is_decoded() {
        let part = |part, kind: Kind| Kind { part, ..kind };
        let whole = kind(&[2.5], &[(3.0, ENDLESS)]);
        let prefill = |link, load| part(Part::Prefill(link), kind(&[load], &[(1.0, ENDLESS)]));
        let decode = |link, load| part(Part::Decode(link), kind(&[load], &[(1.0, ENDLESS)]));
        // Two and three are cheaper than three that do both.
        let kinds = vec![whole.clone(), prefill(0, 1.5), decode(0, 2.5)];
        let found = all_of(kinds, 1, 0, 100).cheapest(1000, 0.0).unwrap();
        assert_eq!((found.counts, found.cost), (vec![0, 2, 3], 5.0));
        assert!((found.bound - 5.0).abs() < 1e-9);
        // Nobody decodes what is prefilled elsewhere.
        let kinds = vec![whole, prefill(0, 1.5), decode(1, 2.5)];
        let found = all_of(kinds, 1, 0, 100).cheapest(1000, 0.0).unwrap();
        assert_eq!(found.counts, vec![3, 0, 0]);
        // What is short of one part is as short as a whole.
        let kinds = [(Part::Prefill(0), vec![2.0]), (Part::Decode(0), vec![1.0])];
        assert_eq!(flow(&kinds, &[1, 1], &[1.0]), Some(vec![vec![0.5, 0.5]]));
    }

    /// All fleets of at most six of a kind, tried.
    fn brute_force(c: &Covering) -> Option<f64> {
        let mut best: Option<f64> = None;
        let mut counts = vec![0_u32; c.kinds.len()];
        loop {
            if let Some(cost) = worth(c, &counts) {
                best = Some(best.map_or(cost, |b| b.min(cost)));
            }
            let Some(k) = (0..counts.len()).find(|k| counts[*k] < c.kinds[*k].most().min(6)) else {
                return best;
            };
            counts[k] += 1;
            counts[..k].iter_mut().for_each(|n| *n = 0);
        }
    }

    /// What a fleet costs with what it leaves unserved, asked of another solver; `None` if it may not be.
    fn worth(c: &Covering, counts: &[u32]) -> Option<f64> {
        use crate::plan::solver::{BranchAndBound, Comparison, Program, Solver};
        let total: u32 = counts.iter().sum();
        if total > c.ceiling || (total < c.floor && c.short.is_infinite()) {
            return None;
        }
        for limit in &c.limits {
            let takes = |(k, s, n): &(usize, usize, f64)| {
                let before: u32 = c.kinds[*k].segments[..*s].iter().map(|s| s.most).sum();
                n * f64::from(counts[*k].saturating_sub(before).min(c.kinds[*k].segments[*s].most))
            };
            if limit.takes.iter().map(takes).sum::<f64>() > limit.most + 1e-9 {
                return None;
            }
        }
        let mut p = Program::default();
        let vars: Vec<Vec<Option<usize>>> = c
            .kinds
            .iter()
            .map(|k| k.load.iter().map(|l| l.is_finite().then(|| p.real(0.0, 0.0, 1.0))).collect())
            .collect();
        for (class, price) in c.unserved.iter().enumerate() {
            // Each link serves so much of the class: all of that is prefilled, and all of it decoded.
            let linked: Vec<_> = (0..c.links()).map(|_| p.real(0.0, 0.0, 1.0)).collect();
            let of = |part: Part| -> Vec<(usize, f64)> {
                let own = c.kinds.iter().zip(&vars).filter(|(k, _)| k.part == part);
                own.filter_map(|(_, v)| v[class].map(|v| (v, 1.0))).collect()
            };
            let mut all = of(Part::Whole);
            all.extend(linked.iter().map(|v| (*v, 1.0)));
            if price.is_finite() {
                all.push((p.real(*price, 0.0, 1.0), 1.0));
            }
            p.row(all, Comparison::Equal, 1.0);
            for (link, through) in linked.iter().enumerate() {
                for part in [Part::Prefill(link), Part::Decode(link)] {
                    let terms = of(part).into_iter().chain([(*through, -1.0)]).collect();
                    p.row(terms, Comparison::Equal, 0.0);
                }
            }
        }
        for ((kind, vars), n) in c.kinds.iter().zip(&vars).zip(counts) {
            let terms = vars.iter().zip(&kind.load).filter_map(|(v, l)| v.map(|v| (v, *l))).collect();
            p.row(terms, Comparison::AtMost, f64::from(*n));
        }
        let limits = crate::plan::solver::Limits { nodes: 10, gap: 0.0, seconds: 1.0 };
        let short = if total < c.floor { c.short * f64::from(c.floor - total) } else { 0.0 };
        let paid: f64 = c.kinds.iter().zip(counts).map(|(k, n)| k.cost(*n)).sum();
        BranchAndBound.solve(&p, &limits, None).ok().map(|s| s.objective + paid + short)
    }

    fn any_covering() -> impl Strategy<Value = Covering> {
        let load = prop_oneof![5 => (1..14_i32).prop_map(|q| f64::from(q) / 4.0), 1 => Just(f64::INFINITY)];
        let segments = (0..3_u32, 0..20_i32, 0..4_u32, 0..20_i32).prop_map(|(a, low, b, more)| {
            let low = f64::from(low) / 4.0 - 0.5;
            let high = low + f64::from(more) / 8.0;
            vec![
                Segment { cost: low, most: a },
                Segment { cost: high, most: if b == 0 { ENDLESS } else { b } },
            ]
        });
        let price = prop_oneof![1 => Just(f64::INFINITY), 1 => (0..40_i32).prop_map(|q| f64::from(q) / 2.0)];
        let limit = prop::option::of((1..5_i32, 1..5_i32, 0..12_i32));
        (1..5_usize, 1..3_usize, 0..3_u32, 0..9_u32, limit).prop_flat_map(
            move |(kinds, classes, floor, ceiling, limit)| {
                let part = prop_oneof![
                    2 => Just(Part::Whole),
                    2 => (0..2_usize).prop_map(Part::Prefill),
                    2 => (0..2_usize).prop_map(Part::Decode),
                ];
                let kind = (part, prop::collection::vec(load.clone(), classes), segments.clone())
                    .prop_map(|(part, load, segments)| Kind { part, load, segments });
                let unserved = prop::collection::vec(price.clone(), classes);
                (prop::collection::vec(kind, kinds), unserved, price.clone()).prop_map(
                    move |(kinds, unserved, short)| {
                        let limits = limit.map(|(a, b, most)| Limit {
                            takes: (0..kinds.len())
                                .flat_map(|k| [(k, 0), (k, 1)])
                                .map(|(k, s)| (k, s, f64::from(if k == 0 { a } else { b })))
                                .collect(),
                            most: f64::from(most),
                        });
                        let limits = limits.into_iter().collect();
                        Covering { kinds, unserved, short, floor, ceiling, limits }
                    },
                )
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn is_the_best_of_all_fleets(c in any_covering()) {
            let found = c.cheapest(100_000, 0.0);
            let best = brute_force(&c);
            match (&found, best) {
                (Some(f), Some(b)) => {
                    prop_assert!(f.cost <= b + 1e-6, "{} against {b}", f.cost);
                    prop_assert!((f.bound - f.cost).abs() < 1e-6, "{f:?}");
                    let worth = worth(&c, &f.counts);
                    prop_assert!(worth.is_some_and(|w| (w - f.cost).abs() < 1e-5), "{worth:?} {f:?}");
                    if f.counts.iter().all(|n| *n <= 6) {
                        prop_assert!(f.cost >= b - 1e-6, "{} against {b}", f.cost);
                    }
                }
                (None, Some(b)) => prop_assert!(false, "nothing found, although {b} would do"),
                (Some(f), None) => prop_assert!(f.counts.iter().any(|n| *n > 6), "{f:?} serves, brute force says not"),
                (None, None) => {}
            }
            prop_assert_eq!(found, c.cheapest(100_000, 0.0), "same input, same answer");
        }
    }
}
