//! The search behind [`Covering::cheapest`]: depth first over whole numbers of replicas, bounded by cuts.
//!
//! Whatever serving the classes is worth (`y`), one replica of a kind can bring no more than `max_c y_c / load_c` (of one that only
//! prefills or decodes, with its part of `y`), and all
//! together must bring `Σ y_c`, or what they do not bring is lost (Benders' cuts, 1962; by duality the cuts together say all there is to
//! say). Segments are gone through best value for its price first, and a node is bounded by the cut of the linear relaxation's own prices, bought
//! in that order; a fleet that passes all cuts is asked for its flow, which either is an answer or gives a new cut.

use super::covering::{Covering, Scratch};

/// Most cuts that are kept.
const MOST_CUTS: usize = 64;
/// Classes up to which each begins with a cut of its own; of many, each alone says little.
const FEW_CLASSES: usize = 8;
/// What is missing by less than this share of a cut's worth is not missing.
const NOTHING: f64 = 1e-9;

/// What replicas must bring at some worth of the classes.
struct Cut {
    /// What one replica of each item brings at most.
    brings: Vec<f64>,
    /// What all classes are worth.
    worth: f64,
    /// What is lost for each unit that is not brought: infinite where it must be.
    loss: f64,
    /// Least price of what is brought, by items from each one on.
    least_price: Vec<f64>,
}

impl Cut {
    fn is_met(&self, missing: f64) -> bool {
        missing <= NOTHING * self.worth
    }
}

/// Some replicas at one price.
struct Item {
    kind: usize,
    segment: usize,
    cost: f64,
    most: u32,
}

/// The search.
pub(crate) struct Dive<'c> {
    covering: &'c Covering,
    scratch: &'c mut Scratch,
    /// Best value for its price first, by the first cut.
    items: Vec<Item>,
    cuts: Vec<Cut>,
    /// What one replica of each item takes of each limit.
    takes: Vec<Vec<f64>>,
    /// Replicas of each item.
    counts: Vec<u32>,
    /// What is still to be brought before each item, by cut.
    missing: Vec<Vec<f64>>,
    /// What the items from each one on cost at least: what is paid for taking them.
    refunds: Vec<f64>,
    /// The best fleet: cost and replicas of each kind.
    pub(crate) best: Option<(f64, Vec<u32>)>,
    /// Least bound of what was not looked into.
    pub(crate) proved: f64,
    left: u64,
    gap: f64,
}

impl<'c> Dive<'c> {
    /// Begins with what serving each class is worth in the linear relaxation, with at most `high` of each kind.
    pub(crate) fn new(
        covering: &'c Covering,
        high: &[u32],
        prices: &[f64],
        (nodes, gap): (u64, f64),
        best: Option<(f64, Vec<u32>)>,
        scratch: &'c mut Scratch,
    ) -> Self {
        let mut items = Vec::new();
        for (kind, k) in covering.kinds.iter().enumerate() {
            let mut at = 0;
            for (segment, s) in k.segments.iter().enumerate() {
                let most = s.most.min(high[kind].saturating_sub(at));
                at = at.saturating_add(s.most);
                if most > 0 {
                    items.push(Item { kind, segment, cost: s.cost, most });
                }
            }
        }
        // Where serving is worth nothing (what must be there anyway serves all), the first class alone says what is good value: the
        // first cut is only a bound in the order that it gives.
        let mut first = prices.to_vec();
        if let Some(y) = first.first_mut().filter(|_| prices.iter().sum::<f64>() <= 0.0) {
            *y = 1.0;
        }
        let prices = first.as_slice();
        let price = |item: &Item| {
            if item.cost <= 0.0 { item.cost } else { item.cost / covering.kinds[item.kind].brings(prices) }
        };
        items.sort_by(|a, b| {
            price(a).total_cmp(&price(b)).then((a.kind, a.segment).cmp(&(b.kind, b.segment)))
        });
        let mut refunds = vec![0.0; items.len() + 1];
        for (i, item) in items.iter().enumerate().rev() {
            refunds[i] = refunds[i + 1] + f64::from(item.most) * item.cost.min(0.0);
        }
        let takes = covering.limits.iter().map(|limit| {
            let of = |i: &Item| limit.takes.iter().find(|(k, s, _)| (*k, *s) == (i.kind, i.segment));
            items.iter().map(|i| of(i).map_or(0.0, |(_, _, n)| *n)).collect()
        });
        let takes = takes.collect();
        let mut dive = Self {
            takes,
            counts: vec![0; items.len()],
            missing: vec![Vec::with_capacity(MOST_CUTS); items.len() + 1],
            cuts: Vec::new(),
            proved: f64::INFINITY,
            left: nodes,
            covering,
            scratch,
            items,
            refunds,
            best,
            gap,
        };
        dive.cut(prices);
        let (classes, links) = (covering.unserved.len(), covering.links());
        let each = covering.unserved.iter().enumerate().filter(|_| classes <= FEW_CLASSES);
        for (c, price) in each {
            let worth = if price.is_finite() { *price } else { 1.0 };
            let mut alone = vec![0.0; (1 + links) * classes];
            alone[c] = worth;
            dive.cut(&alone);
            if links > 0 {
                // The other part: as if all of it were worth being decoded, and prompts nothing.
                (1..=links).for_each(|link| alone[link * classes + c] = worth);
                dive.cut(&alone);
            }
        }
        dive
    }

    fn cut(&mut self, prices: &[f64]) {
        let worth: f64 = prices.iter().take(self.covering.unserved.len()).sum();
        if worth <= 0.0 || self.cuts.len() >= MOST_CUTS {
            return;
        }
        let brings: Vec<f64> =
            self.items.iter().map(|i| self.covering.kinds[i.kind].brings(prices)).collect();
        let mut least_price = vec![f64::INFINITY; self.items.len() + 1];
        for (i, item) in self.items.iter().enumerate().rev() {
            let price = if brings[i] > 0.0 { item.cost.max(0.0) / brings[i] } else { f64::INFINITY };
            least_price[i] = least_price[i + 1].min(price);
        }
        let may_be_lost = prices.iter().zip(&self.covering.unserved).any(|(y, u)| *y > 0.0 && u.is_finite());
        let loss = if may_be_lost { 1.0 } else { f64::INFINITY };
        self.cuts.push(Cut { brings, worth, loss, least_price });
    }

    pub(crate) fn run(&mut self) {
        self.missing[0] = self.cuts.iter().map(|c| c.worth).collect();
        self.look(0, 0.0, 0);
    }

    /// Whether nothing that costs at least so much is of interest.
    fn hopeless(&mut self, bound: f64) -> bool {
        let hopeless = match &self.best {
            Some((cost, _)) => bound >= cost - self.gap * cost.abs() - 1e-9,
            None => bound == f64::INFINITY,
        };
        if hopeless {
            self.proved = self.proved.min(bound);
        }
        hopeless
    }

    /// Lower bound with the items before `at` fixed: by the first cut the rest is bought in order, by the others at the
    /// least price.
    fn bound(&self, at: usize, paid: f64) -> f64 {
        let mut more: f64 = 0.0;
        for (i, (cut, missing)) in self.cuts.iter().zip(&self.missing[at]).enumerate() {
            let mut missing = *missing;
            if cut.is_met(missing) {
                continue;
            }
            if i == 0 {
                let mut cost = 0.0;
                for (item, brings) in self.items.iter().zip(&cut.brings).skip(at) {
                    if *brings <= 0.0 || item.cost >= cut.loss * brings {
                        continue;
                    }
                    let take = (missing / brings).min(f64::from(item.most));
                    cost += take * item.cost.max(0.0);
                    missing -= take * brings;
                    if missing <= 0.0 {
                        break;
                    }
                }
                more = more.max(if cut.is_met(missing) { cost } else { cost + cut.loss * missing });
            } else {
                if self.refunds[at] < 0.0 {
                    let rest = self.items.iter().zip(&cut.brings).skip(at);
                    let free = rest.filter(|(i, _)| i.cost <= 0.0).map(|(i, b)| f64::from(i.most) * b);
                    missing -= free.sum::<f64>();
                }
                if !cut.is_met(missing) {
                    more = more.max(missing * cut.least_price[at].min(cut.loss));
                }
            }
        }
        paid + self.refunds[at] + more
    }

    /// The most of an item that could be of use and is allowed.
    fn most(&self, at: usize, total: u32) -> u32 {
        let (item, covering) = (&self.items[at], self.covering);
        let wanted = |(cut, missing): (&Cut, &f64)| {
            let brings = cut.brings[at];
            if cut.is_met(*missing) || brings <= 0.0 { 0.0 } else { (missing / brings - NOTHING).ceil() }
        };
        let useful = self.cuts.iter().zip(&self.missing[at]).map(wanted).fold(0.0, f64::max);
        let useful =
            useful.max(f64::from(covering.floor.saturating_sub(total))).min(f64::from(item.most)) as u32;
        let mut most = if item.cost <= 0.0 { item.most } else { useful };
        most = most.min(covering.ceiling.saturating_sub(total));
        for (limit, takes) in covering.limits.iter().zip(&self.takes) {
            let own = takes[at];
            if own > 0.0 {
                let before = takes.iter().zip(&self.counts).take(at);
                let taken: f64 = before.map(|(each, n)| each * f64::from(*n)).sum();
                most = most.min(((limit.most - taken) / own + NOTHING).max(0.0).min(f64::from(most)) as u32);
            }
        }
        most
    }

    /// Looks into all numbers of the items from `at` on; `total` replicas are taken, at a price of `paid`.
    fn look(&mut self, at: usize, paid: f64, total: u32) {
        let covered = self.missing[at].iter().zip(&self.cuts).all(|(m, c)| c.is_met(*m));
        let nothing_more = covered && total >= self.covering.floor && self.refunds[at] >= 0.0;
        if at == self.items.len() || nothing_more {
            let met = self.leaf(at, paid, total);
            if met || at == self.items.len() {
                return;
            }
            // It passed all cuts and does not serve: the new cut asks for more.
            self.catch_up(at);
        }
        let mut low = 0;
        loop {
            let most = self.most(at, total);
            for count in (low..=most).rev() {
                self.try_count(at, count, paid, total);
            }
            // Cuts that were found below may ask for more of this one.
            self.counts[at] = 0;
            self.catch_up(at);
            low = low.max(most + 1);
            if self.most(at, total) < low {
                return;
            }
        }
    }

    fn try_count(&mut self, at: usize, count: u32, paid: f64, total: u32) {
        self.counts[at] = count;
        self.catch_up(at);
        let (before, after) = self.missing.split_at_mut(at + 1);
        let less = |(m, cut): (&f64, &Cut)| m - f64::from(count) * cut.brings[at];
        after[0].clear();
        after[0].extend(before[at].iter().zip(&self.cuts).map(less));
        let paid = paid + f64::from(count) * self.items[at].cost;
        let bound = self.bound(at + 1, paid);
        if self.hopeless(bound) {
            return;
        }
        if self.left == 0 {
            self.proved = self.proved.min(bound);
            return;
        }
        self.left -= 1;
        self.look(at + 1, paid, total + count);
    }

    /// What cuts that were added meanwhile miss before an item.
    fn catch_up(&mut self, at: usize) {
        for i in self.missing[at].len()..self.cuts.len() {
            let brought = self.counts.iter().zip(&self.cuts[i].brings).take(at);
            let brought: f64 = brought.map(|(n, b)| f64::from(*n) * b).sum();
            self.missing[at].push(self.cuts[i].worth - brought);
        }
    }

    /// A fleet with nothing of the items from `at` on; whether it is known what it costs.
    fn leaf(&mut self, at: usize, paid: f64, total: u32) -> bool {
        let missed = self.missing[at].iter().zip(&self.cuts).filter(|(m, c)| !c.is_met(**m));
        let lost = missed.map(|(m, c)| m * c.loss).fold(0.0, f64::max);
        let short = self.covering.floor.saturating_sub(total);
        let least = paid + lost + if short > 0 { f64::from(short) * self.covering.short } else { 0.0 };
        if self.hopeless(least) || least == f64::INFINITY {
            return true;
        }
        let mut counts = vec![0; self.covering.kinds.len()];
        for (item, n) in self.items.iter().zip(&self.counts).take(at) {
            counts[item.kind] += n;
        }
        let value = self.covering.value(&counts, self.scratch);
        let known = value.is_some_and(|v| v <= least + NOTHING * (1.0 + least.abs()));
        if !known {
            if self.cuts.len() >= MOST_CUTS {
                self.proved = self.proved.min(least);
            }
            let prices = self.scratch.prices.clone();
            self.cut(&prices);
        }
        if let Some(value) = value {
            offer(&mut self.best, value, &counts);
        }
        known
    }
}

/// Keeps a fleet if it is better.
pub(crate) fn offer(best: &mut Option<(f64, Vec<u32>)>, cost: f64, counts: &[u32]) {
    if best.as_ref().is_none_or(|(c, _)| cost < *c - 1e-9) {
        *best = Some((cost, counts.to_vec()));
    }
}
