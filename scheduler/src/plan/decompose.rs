//! Solving by prices (Dantzig–Wolfe): a small master program prices every coupling row (inventory, budgets); each pool
//! then answers on its own with its best whole fleet at those prices, which becomes a column of the master.
//!
//! 1. *First fleet*: each pool takes what it would take alone; where that does not fit, pools choose one after another, highest tier
//!    and largest first, from what is left; a pool that comes away short moves to the front of its tier and all choose anew. Polished, a greedy
//!    fleet competes: every pool chooses once more with all others fixed. Where something is short, so does that of
//!    [`crate::baselines::adaptive_greedy`]; and what runs stands unless another fleet leaves a twentieth less undone.
//! 2. *Prices* ([`super::master`]): the master picks a mix of columns for each pool; its shadow prices ask the pools for new columns, until
//!    none helps or the rounds are up. Every round proves a lower bound. It is far tighter than the linear
//!    relaxation's, because fleets are whole. A re-plan begins at the prices of the plan in force.
//! 3. *Fleets from prices*: each pool takes the column that is most of its mix, the surest first, while it fits; the others choose from
//!    what is left, at the prices; or the master picks one whole column a pool. Polished, the best stands.
//!
//! A pool's choice is exact and takes microseconds ([`super::covering`]); one that finds no room for a fleet that serves it is solved
//! as a program of its own, which weighs what to leave undone. Small fleets are then also solved as one program from that start. The work is a handful
//! of choices a pool and round, and one small linear program a round: near-linear in pools.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::candidates::CandidateSet;
use super::greedy::{answer_of, greedy};
use super::inventory::{Cell, Eligibility};
use super::master::Master;
use super::options::{Counts, Options, Prices, Service};
use super::parallel;
use super::program::{self, Answer, Coupling, PoolAnswer, PoolProblem, Problem};
use super::residual::Remaining;
use super::solver::{Limits, Solver};
use super::whole::solve_whole;
use crate::baselines::adaptive_greedy;

/// Whole variables up to which a problem is also solved as one program.
const WHOLE_VARIABLES: usize = 500;
/// Pools up to which more ways from prices to whole fleets are tried.
const FEW_POOLS: usize = 100;
/// Times that pools which came away short may go first.
const REORDERS: usize = 2;
/// Most times that a fleet which leaves something undone is solved for cost.
const COST_ROUNDS: usize = 3;
/// Most times that all pools choose once more.
const POLISHES: usize = 4;
/// What runs is changed for a fleet that leaves this share of what it leaves undone, or less.
const WORTH_CHANGING: f64 = 0.95;
/// Branch-and-bound nodes of the programs that are solved on the way.
const PROGRAM_NODES: u64 = 100;

/// Solves a problem: serve tiers in order, then spend least. Never fails; always a bound.
pub fn solve(problem: &Problem<'_>, solver: &dyn Solver, limits: &Limits) -> Answer {
    let by_prices = by_prices(problem, solver, limits);
    let prices = by_prices.prices.clone();
    let gap = (by_prices.objective - by_prices.bound) / by_prices.objective.abs().max(1e-9);
    let large = problem.pools.len() > WHOLE_VARIABLES || program::size(problem) > WHOLE_VARIABLES;
    if (by_prices.complete && gap <= limits.gap) || large {
        return by_prices;
    }
    let fleet: Vec<Counts> = by_prices.pools.iter().map(|p| p.counts.clone()).collect();
    let whole = solve_whole(problem, &fleet, solver, limits);
    if !whole.complete || !by_prices.complete {
        // Something is short: only the one program weighs the pools of a tier against each other.
        return if by_prices.complete { by_prices } else { Answer { prices, ..whole } };
    }
    let bound = whole.bound.max(by_prices.bound);
    let best = if whole.objective <= by_prices.objective + 1e-9 { whole } else { by_prices };
    Answer { bound: bound.min(best.objective), prices, ..best }
}

/// Large problems: an answer in which only these pools chose anew, from what the others leave, and no less is served; `None`
/// if that cannot be, or if the problem is small enough to be solved anew.
pub(crate) fn repair(
    problem: &Problem<'_>,
    answer: &Answer,
    pools: &BTreeSet<usize>,
    solver: &dyn Solver,
    limits: &Limits,
) -> Option<Answer> {
    if problem.pools.len() <= FEW_POOLS {
        return None;
    }
    let limits = Limits { nodes: limits.nodes.min(PROGRAM_NODES), ..*limits };
    let options = Options::new(problem);
    let mut left = Remaining::new(problem);
    let mut repaired = answer.clone();
    for (p, pool) in answer.pools.iter().enumerate().filter(|(p, _)| !pools.contains(p)) {
        left.take_each(p, &pool.counts);
    }
    let prices = Prices::new(problem, &answer.prices);
    for p in pools {
        let again = one(&options, *p, &left, &prices, (solver, &limits));
        if problem.pools[*p].undone(&again) > problem.pools[*p].undone(&answer.pools[*p]) + 1e-6 {
            return None;
        }
        left.take_each(*p, &again.counts);
        repaired.pools[*p] = again;
    }
    repaired.objective = repaired.pools.iter().enumerate().map(|(p, a)| options.cost(p, &a.counts)).sum();
    Some(repaired)
}

fn by_prices(problem: &Problem<'_>, solver: &dyn Solver, limits: &Limits) -> Answer {
    let limits = Limits { nodes: limits.nodes.min(PROGRAM_NODES), ..*limits };
    let options = Options::new(problem);
    let search = Search::new(problem, &options, solver, &limits);
    let mut best = Best { search: &search, found: None };
    best.consider(search.in_turn(search.alone.wishes.clone(), &Prices::default()));
    if best.gap_to(search.least_usd()) > limits.gap {
        best.consider(search.of_fleets(&greedy(problem)));
    }
    if best.is_complete() {
        return search.cheapest(best, &problem.hints);
    }
    let (_, objective, answers) = best.current();
    if problem.pools.len() > FEW_POOLS && problem.pools.iter().any(|p| p.headroom > 1.0) {
        // Not all of it can be had with ease: then headroom is the first to go, and this answer with it.
        return Answer { pools: answers, objective, bound: 0.0, complete: false, prices: Vec::new() };
    }
    let stands = best.consider_what_runs();
    if best.is_complete() {
        return search.cheapest(best, &problem.hints);
    }
    if problem.pools.len() <= FEW_POOLS && !stands {
        // Where something is short, another way to build fleets is worth its time: many orders, and a local search.
        best.consider(search.of_fleets(&adaptive_greedy(problem)));
        if best.is_complete() {
            return search.cheapest(best, &problem.hints);
        }
    }
    let (hints, prices) = search.serve_more(&mut best);
    if best.is_complete() {
        return search.cheapest(best, &hints);
    }
    // What is served stands; what it costs can still be less. That may leave room to serve more.
    let mut found = None;
    for _ in 0..if stands { 1 } else { COST_ROUNDS } {
        let (lost, _, answers) = best.current();
        let reduced = served(problem, &answers);
        let options = Options::new(&reduced);
        let cheapest = {
            let search = Search::new(&reduced, &options, solver, &limits);
            let mut best = Best { search: &search, found: None };
            best.consider(search.of_fleets(&answers.into_iter().map(|a| a.counts).collect::<Vec<_>>()));
            search.cheapest(best, &prices)
        };
        let fleets: Vec<Counts> = cheapest.pools.iter().map(|a| a.counts.clone()).collect();
        let pools = search.of_fleets(&fleets);
        found = Some(Answer { pools: pools.clone(), complete: false, prices: prices.clone(), ..cheapest });
        best.found = None;
        best.consider(pools);
        if best.current().0 >= 0.99 * lost {
            break;
        }
    }
    found.unwrap_or_default()
}

/// The problem in which only what these answers serve is asked for.
fn served<'a>(problem: &Problem<'a>, answers: &[PoolAnswer]) -> Problem<'a> {
    let mut reduced = problem.clone();
    for (pool, answer) in reduced.pools.iter_mut().zip(answers).filter(|(_, a)| !done(a)) {
        let mut set = CandidateSet::clone(&pool.set);
        for (class, unserved) in set.classes.iter_mut().zip(&answer.unserved) {
            let share = (1.0 - unserved).max(0.0);
            class.rps = if share > 1e-6 { class.rps * share * (1.0 - 1e-7) } else { 0.0 };
        }
        pool.set = Arc::new(set);
        pool.floor -= answer.short.min(pool.floor);
        pool.min_zones -= answer.zones_short.min(pool.min_zones);
    }
    reduced
}

/// What each pool would do with the cluster to itself.
struct Alone {
    /// The fleet it would take, if that serves it.
    wishes: Vec<Option<Counts>>,
    /// What it costs at least, dollars per hour and price of change; `None` if it cannot be served even so.
    least_usd: Vec<Option<f64>>,
}

impl Alone {
    fn of(problem: &Problem<'_>, options: &Options<'_, '_>, limits: &Limits) -> Self {
        let none = Prices::default();
        let of = |p: usize| {
            let Some(response) = options.at_prices(p, Service::All, &none, limits) else {
                return (None, None);
            };
            let zoned = options.with_zones(p, response.counts.clone(), &none, None);
            (zoned.filter(|w| done(&answer_of(problem, p, w))), Some(response.bound))
        };
        let (wishes, least_usd) = parallel::map(problem.pools.len(), of).into_iter().unzip();
        Self { wishes, least_usd }
    }
}

/// Prices of coupling rows, dollars per hour per unit.
type RowPrices = Vec<(Coupling, f64)>;

/// What every step of the search needs.
struct Search<'s, 'p, 'a> {
    problem: &'p Problem<'a>,
    options: &'s Options<'p, 'a>,
    solver: &'s dyn Solver,
    limits: &'s Limits,
    alone: Alone,
    /// Pools, highest tier and largest first.
    order: Vec<usize>,
}

impl<'s, 'p, 'a> Search<'s, 'p, 'a> {
    fn new(
        problem: &'p Problem<'a>,
        options: &'s Options<'p, 'a>,
        solver: &'s dyn Solver,
        limits: &'s Limits,
    ) -> Self {
        let weight = |p: usize| {
            let pool = &problem.pools[p];
            let usd = pool.set.candidates.iter().map(|k| k.usd_per_hour * k.replicas_for(&pool.set.classes));
            usd.filter(|x| x.is_finite()).fold(0.0, f64::max)
        };
        let mut order: Vec<(Reverse<i32>, f64, usize)> = (0..problem.pools.len())
            .map(|p| (Reverse(problem.pools[p].pool.priority), weight(p), p))
            .collect();
        order.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(&b.2)));
        let order = order.into_iter().map(|(_, _, p)| p).collect();
        let alone = Alone::of(problem, options, limits);
        Self { problem, options, solver, limits, alone, order }
    }

    /// What all pools cost at least, dollars per hour and price of change: each as if it were alone; 0 if one cannot be served.
    fn least_usd(&self) -> f64 {
        self.alone.least_usd.iter().copied().sum::<Option<f64>>().unwrap_or(0.0)
    }

    /// Whether anything runs.
    fn runs(&self) -> bool {
        self.problem.pools.iter().any(|p| !p.running.is_empty())
    }

    fn of_fleets(&self, fleets: &[Counts]) -> Vec<PoolAnswer> {
        fleets.iter().enumerate().map(|(p, f)| answer_of(self.problem, p, f)).collect()
    }

    /// From a fleet that serves everything to the cheapest that was found; prices begin at the hints.
    fn cheapest(&self, mut best: Best<'_, 's, 'p, 'a>, hints: &[(Coupling, f64)]) -> Answer {
        let gap = self.limits.gap;
        let own_best = self.least_usd();
        let (_, objective, answers) = best.current();
        if best.gap_to(own_best) <= gap {
            let bound = own_best.min(objective);
            return Answer { pools: answers, objective, bound, complete: true, prices: Vec::new() };
        }
        let everything = vec![Service::All; answers.len()];
        let mut master = Master::new(self.options, everything, self.solver, self.limits);
        for (p, wish) in self.alone.wishes.iter().enumerate() {
            wish.iter().for_each(|w| {
                master.add(p, w.clone());
            });
        }
        master.start_at(hints);
        let first: Vec<Counts> = answers.into_iter().map(|a| a.counts).collect();
        let bound = master.run(&first, objective).max(own_best);
        let prices = master.prices();
        let at = Prices::new(self.problem, &prices);
        if best.gap_to(bound) > gap {
            best.consider(self.rounded(master.preferred(), &at));
        }
        if self.problem.pools.len() <= FEW_POOLS {
            if best.gap_to(bound) > gap {
                best.consider(self.in_turn(vec![None; first.len()], &at));
            }
            if best.gap_to(bound) > gap
                && let Some(chosen) = master.choose(&first)
            {
                best.consider(self.of_fleets(&chosen));
            }
        }
        let (_, objective, answers) = best.current();
        Answer { pools: answers, objective, bound: bound.min(objective), complete: true, prices }
    }

    /// Looks for a fleet that serves more than one that leaves something undone. Returns the prices it ended with, and what more of each row
    /// would be worth.
    ///
    /// Tiers that are served stay so. In the others a pool that is wholly unserved has a price far above any fleet's, a thousand times more
    /// for each such tier above.
    fn serve_more(&self, best: &mut Best<'_, 's, 'p, 'a>) -> (RowPrices, RowPrices) {
        let (_, _, answers) = best.current();
        let pools = &self.problem.pools;
        let mut short: Vec<i32> =
            pools.iter().zip(&answers).filter(|(_, a)| !done(a)).map(|(p, _)| p.pool.priority).collect();
        short.sort_unstable();
        short.dedup();
        let dearest =
            |p: &PoolProblem<'_>| p.set.candidates.iter().map(|k| k.usd_per_hour).fold(0.0, f64::max);
        let much = 100.0 * pools.iter().map(dearest).fold(1.0, f64::max);
        let service = |p: &PoolProblem<'_>| match short.iter().position(|tier| *tier == p.pool.priority) {
            None => Service::All,
            Some(rank) => Service::Worth(much * 1e3_f64.powi(rank.min(2) as i32)),
        };
        let services: Vec<Service> = pools.iter().map(service).collect();
        let mut master = Master::new(self.options, services, self.solver, self.limits);
        let first: Vec<Counts> = answers.into_iter().map(|a| a.counts).collect();
        master.start_at(&self.problem.hints);
        master.run(&first, f64::INFINITY);
        let prices = master.prices();
        let at = Prices::new(self.problem, &prices);
        best.consider(self.rounded(master.preferred(), &at));
        // People are told prices at which unserved demand is worth a few times what serving it costs.
        let worth = |p: &PoolProblem<'_>| {
            let usd =
                p.set.candidates.iter().map(|k| k.usd_per_hour * k.replicas_for(&p.set.classes).max(1.0));
            let rank = f64::from(p.pool.priority.saturating_sub(lowest(self.problem)).min(20));
            Service::Worth(5.0 * usd.filter(|x| x.is_finite()).fold(1.0, f64::max) * (1.0 + rank))
        };
        master.price_anew(pools.iter().map(worth).collect(), &first);
        (prices, master.prices())
    }

    /// What an answer loses: by tier, folded into one figure, a thousand times more for each tier above.
    fn loss(&self, answers: &[PoolAnswer]) -> f64 {
        let lowest = lowest(self.problem);
        let of = |p: usize| {
            let rank = self.problem.pools[p].pool.priority.saturating_sub(lowest).min(10);
            if done(&answers[p]) {
                0.0
            } else {
                1e3_f64.powi(rank) * (self.problem.pools[p].undone(&answers[p]) + 1e-3)
            }
        };
        (0..answers.len()).map(of).sum()
    }

    /// What is lost while replicas of an answer start, in the units of [`Search::loss`]: each serves nothing for its start's share of the time that a
    /// decision is expected to hold.
    fn lost_to_starts(&self, answers: &[PoolAnswer]) -> f64 {
        let lowest = lowest(self.problem);
        let of = |p: usize| {
            let (pool, answer) = (&self.problem.pools[p], &answers[p]);
            let rank = pool.pool.priority.saturating_sub(lowest).min(10);
            let started = answer.counts.iter().map(|(at, n)| {
                let new = n.saturating_sub(pool.running.get(at).copied().unwrap_or(0));
                pool.start_factors[at.0].min(1.0) * f64::from(new)
            });
            let share = started.sum::<f64>() / f64::from(answer.replicas().max(1));
            1e3_f64.powi(rank) * share * (1.0 - pool.undone(answer)).max(0.0)
        };
        (0..answers.len()).map(of).sum()
    }

    /// Every pool chooses from what those before it left; pools that come away short go first the next time. A pool that finds
    /// what it wishes for takes that.
    fn in_turn(&self, wishes: Vec<Option<Counts>>, prices: &Prices) -> Vec<PoolAnswer> {
        let mut order = self.order.clone();
        let mut best: Option<(usize, Vec<PoolAnswer>)> = None;
        for _ in 0..=REORDERS {
            let answers = self.choose_in(&order, &wishes, prices);
            let short: BTreeSet<usize> = (0..answers.len()).filter(|p| !done(&answers[*p])).collect();
            if best.as_ref().is_none_or(|(n, _)| short.len() < *n) {
                best = Some((short.len(), answers));
            }
            if short.is_empty() {
                break;
            }
            order.sort_by_key(|p| (Reverse(self.problem.pools[*p].pool.priority), !short.contains(p)));
        }
        best.map(|(_, a)| a).unwrap_or_default()
    }

    fn choose_in(&self, order: &[usize], wishes: &[Option<Counts>], prices: &Prices) -> Vec<PoolAnswer> {
        let mut answers = vec![PoolAnswer::default(); order.len()];
        let mut left = Remaining::new(self.problem);
        for p in order {
            let wish = wishes[*p].as_ref().filter(|w| left.take_all(*p, w));
            answers[*p] = match wish {
                Some(wish) => answer_of(self.problem, *p, wish),
                None => {
                    let answer = self.one(*p, &left, prices);
                    left.take_each(*p, &answer.counts);
                    answer
                }
            };
        }
        answers
    }

    fn one(&self, p: usize, left: &Remaining<'_, '_>, prices: &Prices) -> PoolAnswer {
        one(self.options, p, left, prices, (self.solver, self.limits))
    }

    /// A fleet from the master's mix: the surest pools of each tier first.
    fn rounded(&self, preferred: Vec<Option<(f64, Counts)>>, prices: &Prices) -> Vec<PoolAnswer> {
        let part = |p: usize| preferred[p].as_ref().map_or(0.0, |(part, _)| (part * 20.0).round());
        let mut order = self.order.clone();
        let tier = |p: usize| Reverse(self.problem.pools[p].pool.priority);
        order.sort_by(|a, b| tier(*a).cmp(&tier(*b)).then(part(*b).total_cmp(&part(*a))));
        let wishes: Vec<Option<Counts>> =
            preferred.iter().map(|p| p.as_ref().map(|(_, c)| c.clone())).collect();
        self.choose_in(&order, &wishes, prices)
    }

    /// Each pool chooses once more at true cost, from what the others leave, and keeps the better of the two. One that costs
    /// no more than it would alone has no better choice.
    ///
    /// While something is left undone, all choose again as long as that serves more.
    fn polish(&self, answers: &mut [PoolAnswer]) {
        for _ in 0..POLISHES {
            let before = self.loss(answers);
            self.polish_once(answers);
            if self.loss(answers) >= 0.99 * before {
                return;
            }
        }
    }

    fn polish_once(&self, answers: &mut [PoolAnswer]) {
        let mut left = Remaining::new(self.problem);
        for (p, answer) in answers.iter().enumerate() {
            left.take_each(p, &answer.counts);
        }
        let none = Prices::default();
        for p in &self.order {
            let answer = &answers[*p];
            let usd = self.options.cost(*p, &answer.counts);
            if let Some(least_usd) = self.alone.least_usd[*p].filter(|_| done(answer))
                && usd - least_usd <= self.limits.gap * usd.abs()
            {
                continue;
            }
            left.release_each(*p, &answer.counts);
            let again = self.one(*p, &left, &none);
            let pool = &self.problem.pools[*p];
            let (old, new) = (pool.undone(answer), pool.undone(&again));
            let cheaper = || self.options.cost(*p, &again.counts) < usd - 1e-9;
            if new < old - 1e-9 || (new <= old + 1e-9 && cheaper()) {
                answers[*p] = again;
            }
            left.take_each(*p, &answers[*p].counts);
        }
    }
}

/// One pool's best answer in what is left: all of it served, or as much as can be.
fn one(
    options: &Options<'_, '_>,
    p: usize,
    left: &Remaining<'_, '_>,
    prices: &Prices,
    (solver, limits): (&dyn Solver, &Limits),
) -> PoolAnswer {
    let problem = options.problem();
    let pool = &problem.pools[p];
    let usd = pool.set.candidates.iter().enumerate().map(|(k, of)| of.usd_per_hour * pool.load_of(k));
    let most = usd.fold(1.0, f64::max);
    for service in [Service::All, Service::Worth(1e3 * most)] {
        if let Some(found) = options.within(p, service, prices, left, limits) {
            let zoned = options.with_zones(p, found.counts.clone(), prices, Some(left));
            let answer = answer_of(problem, p, &zoned.unwrap_or(found.counts));
            if done(&answer) || service != Service::All {
                return answer;
            }
        }
    }
    let alone = only(problem, p, left);
    solve_whole(&alone, &greedy(&alone), solver, limits).pools.pop().unwrap_or_default()
}

/// The best fleet so far.
struct Best<'b, 's, 'p, 'a> {
    search: &'b Search<'s, 'p, 'a>,
    /// Demand lost (weighed by tier), with what starts lose where any is; cost, answers.
    found: Option<(f64, f64, Vec<PoolAnswer>)>,
}

impl Best<'_, '_, '_, '_> {
    /// Polishes a fleet and keeps it if it is better. One that does not fit is none.
    fn consider(&mut self, mut answers: Vec<PoolAnswer>) {
        let mut left = Remaining::new(self.search.problem);
        answers.iter().enumerate().for_each(|(p, a)| left.take_each(p, &a.counts));
        if left.is_overdrawn() && self.found.is_some() {
            return;
        }
        self.search.polish(&mut answers);
        let cost = answers.iter().enumerate().map(|(p, a)| self.search.options.cost(p, &a.counts)).sum();
        let mut lost = self.search.loss(&answers);
        if lost > 0.0 && self.search.runs() {
            lost += self.search.lost_to_starts(&answers);
        }
        let (less, as_good) = match self.search.runs() {
            // Neither is changed for a twentieth of what is lost, nor is as much lost anew with every plan to save a little.
            true => (WORTH_CHANGING, 1.0),
            false => (0.998, 1.0 / 0.998),
        };
        let better =
            |l: f64, c: f64| lost < less * l - 1e-9 || (lost < as_good * l + 1e-9 && cost < c - 1e-9);
        if self.found.as_ref().is_none_or(|(l, c, _)| better(*l, *c)) {
            self.found = Some((lost, cost, answers));
        }
    }

    /// Where something is short: what runs stands, with what it has room for, unless much less is lost by the best fleet so far. Whether it does.
    fn consider_what_runs(&mut self) -> bool {
        if !self.search.runs() {
            return false;
        }
        let running: Vec<Counts> = self.search.problem.pools.iter().map(|p| p.running.clone()).collect();
        let other = self.found.take();
        self.consider(self.search.of_fleets(&running));
        let fits = |answers: &[PoolAnswer]| {
            let mut left = Remaining::new(self.search.problem);
            answers.iter().enumerate().for_each(|(p, a)| left.take_each(p, &a.counts));
            !left.is_overdrawn()
        };
        let stands = match (&self.found, &other) {
            (Some((lost, _, answers)), Some((least, ..))) => {
                fits(answers) && WORTH_CHANGING * lost <= least + 1e-9
            }
            (found, _) => found.is_some(),
        };
        if !stands {
            self.found = other;
        }
        stands
    }

    fn is_complete(&self) -> bool {
        self.found.as_ref().is_some_and(|(_, _, answers)| answers.iter().all(done))
    }

    fn current(&self) -> (f64, f64, Vec<PoolAnswer>) {
        self.found.clone().unwrap_or_default()
    }

    /// Relative gap to a bound; infinite while something is left undone.
    fn gap_to(&self, bound: f64) -> f64 {
        match &self.found {
            Some((_, cost, answers)) if answers.iter().all(done) => (cost - bound) / cost.abs().max(1e-9),
            _ => f64::INFINITY,
        }
    }
}

fn lowest(problem: &Problem<'_>) -> i32 {
    problem.pools.iter().map(|p| p.pool.priority).min().unwrap_or(0)
}

fn done(a: &PoolAnswer) -> bool {
    a.short == 0 && a.zones_short == 0 && a.unserved.iter().all(|u| *u <= 1e-6)
}

/// The problem of one pool in what is left.
fn only<'a>(problem: &Problem<'a>, p: usize, left: &Remaining<'_, '_>) -> Problem<'a> {
    let mut alone = single(problem, p);
    alone.held = left.held();
    for (b, budget) in alone.budgets.iter_mut().enumerate() {
        budget.left = left.left(b).max(0.0);
    }
    alone.allowed = Some(near(&alone));
    alone
}

fn single<'a>(problem: &Problem<'a>, p: usize) -> Problem<'a> {
    Problem {
        pools: vec![problem.pools[p].clone()],
        // Not cloned whole: eligibilities of all pools would be.
        cells: problem
            .cells
            .iter()
            .map(|c| Cell {
                accelerator: c.accelerator.clone(),
                zone: c.zone.clone(),
                spot: c.spot,
                usd_per_hour: c.usd_per_hour,
                grid: c.grid,
                interruptions_per_hour: c.interruptions_per_hour,
                slots: c.slots.clone(),
                eligible: vec![c.eligible[p]],
            })
            .collect(),
        budgets: problem.budgets.iter().map(|b| b.of_pool(p)).collect(),
        cuts: problem.cuts.clone(),
        held: Vec::new(),
        hints: Vec::new(),
        allowed: None,
    }
}

/// For each candidate the cheapest cells that together have room for all it could be used for: the others cannot
/// matter. All cells, where zones are to be spanned or prefill and decode replicas have to be in one.
fn near(alone: &Problem<'_>) -> BTreeSet<(usize, usize)> {
    let pool = &alone.pools[0];
    let mut near = BTreeSet::new();
    for (k, candidate) in pool.set.candidates.iter().enumerate() {
        let shape = &candidate.shape;
        let mut cells: Vec<(f64, usize)> = alone
            .cells
            .iter()
            .enumerate()
            .filter(|(_, c)| c.accelerator == shape.accelerator && c.eligible[0] == Eligibility::Open)
            .map(|(c, cell)| (pool.usd(k, cell), c))
            .collect();
        cells.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut room = 0.0;
        for (_, c) in cells {
            if room >= pool.useful(k) && pool.min_zones <= 1 && candidate.pairing.is_none() {
                break;
            }
            let here = alone.groups(c, shape.stage_gpus()) / shape.pipeline_parallel.max(1);
            if here > 0 {
                room += f64::from(here);
                near.insert((k, c));
            }
        }
    }
    near
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::prepare;
    use crate::plan::solver::BranchAndBound;
    use crate::plan::tests::support::*;

    /// Five pools of two request classes that fight over few accelerators of three kinds.
    fn contested(seed: u32) -> (World, Table) {
        let mut w = World::new(vec![
            node("a0", "l4", 2 + seed % 3, "a"),
            node("a1", "l4", 2, "b"),
            node("b0", "l40s", 4, "a"),
            node("c0", "h100", 4 + seed % 2, "b"),
        ]);
        let pick = |i: u32, n: u32| f64::from((seed * 7919 + i * 104_729) % n);
        for i in 0..5 {
            let mut p = pool(&format!("p{i}"), "llama-3.1-8b", 1e6, 1e4);
            p.variants.truncate(1);
            p.parallelism.tensor = vec![1, 2];
            let classes = vec![
                class("c0", 0.8 + 0.45 * pick(i, 7), 100.0, 100.0),
                class("c1", 0.12 * pick(i, 5), 4000.0, 100.0),
            ];
            w.add(p, demand(classes));
        }
        if seed.is_multiple_of(2) {
            w.snapshot.budgets.push(budget("all", 20.0));
        }
        let rates = [("l4", vec![1.0, 0.1]), ("l40s", vec![1.7, 0.4]), ("h100", vec![4.0, 1.2])];
        (w, Table(rates.into_iter().map(|(n, r)| (n.to_owned(), r)).collect()))
    }

    #[test]
    fn pools_take_what_they_would_take_alone_while_there_is_room() {
        let limits = Limits { nodes: 2_000, gap: 1e-4, seconds: 20.0 };
        for (seed, roomy) in (0..6).flat_map(|seed| [(seed, true), (seed, false)]) {
            let (mut w, model) = contested(seed);
            if roomy {
                w.snapshot.budgets.clear();
                w.snapshot.nodes.iter_mut().for_each(|n| n.allocatable_gpus = 64);
            }
            let input = w.input();
            let drafts = prepare::drafts(&input, &model);
            let members: Vec<usize> = (0..drafts.len()).collect();
            let problem =
                prepare::problem(&input, &drafts, &members, &Default::default(), &Default::default());
            let options = Options::new(&problem);
            let search = Search::new(&problem, &options, &BranchAndBound, &limits);
            let answers = search.in_turn(search.alone.wishes.clone(), &Prices::default());
            let fleet =
                |answers: &[PoolAnswer]| answers.iter().map(|a| a.counts.clone()).collect::<Vec<Counts>>();
            if roomy {
                let wishes: Vec<Counts> = search.alone.wishes.iter().flatten().cloned().collect();
                assert_eq!(fleet(&answers), wishes, "seed {seed}");
                let cost = |answers: &[PoolAnswer]| -> f64 {
                    answers.iter().enumerate().map(|(p, a)| options.cost(p, &a.counts)).sum()
                };
                let slow = cost(&search.in_turn(vec![None; 5], &Prices::default()));
                let fast = cost(&answers);
                assert!((fast - slow).abs() < 1e-3 * slow, "seed {seed}: {fast} against {slow}");
            }
            for (what, most) in program::couplings(&problem) {
                let taken: f64 = answers
                    .iter()
                    .enumerate()
                    .flat_map(|(p, a)| a.counts.iter().map(move |((k, c), n)| (p, *k, *c, *n)))
                    .map(|(p, k, c, n)| f64::from(n) * problem.takes(&what, p, k, c))
                    .sum();
                assert!(taken <= most + 1e-6, "seed {seed}: {what:?} {taken} of {most}");
            }
        }
    }

    #[test]
    fn prices_agree_with_the_whole_program() {
        let exact = Limits { nodes: 20_000, gap: 0.0, seconds: 20.0 };
        let usual = Limits { nodes: 2_000, gap: 1e-4, seconds: 20.0 };
        let (mut compared, mut gaps) = (0, 0.0);
        for seed in 0..12 {
            let (w, model) = contested(seed);
            let input = w.input();
            let drafts = prepare::drafts(&input, &model);
            let members: Vec<usize> = (0..drafts.len()).collect();
            let problem =
                prepare::problem(&input, &drafts, &members, &Default::default(), &Default::default());
            let a = by_prices(&problem, &BranchAndBound, &usual);
            let b = solve_whole(&problem, &greedy(&problem), &BranchAndBound, &exact);
            assert!(b.complete || !a.complete, "seed {seed}: what prices serve, the whole program serves");
            if !a.complete {
                continue;
            }
            compared += 1;
            gaps += (a.objective - a.bound) / a.objective;
            println!(
                "seed {seed}: {:.4} ≥ {:.4}, whole {:.4} ≥ {:.4}",
                a.objective, a.bound, b.objective, b.bound
            );
            assert!(
                a.bound <= b.objective + 1e-4,
                "seed {seed}: the bound {} is above {}",
                a.bound,
                b.objective
            );
            assert!(
                b.bound <= a.objective + 1e-4,
                "seed {seed}: {} beats the proved {}",
                a.objective,
                b.bound
            );
            assert!(
                a.objective <= 1.1 * b.objective + 1e-6,
                "seed {seed}: {} against {}",
                a.objective,
                b.objective
            );
        }
        assert!(compared >= 6 && gaps / f64::from(compared) < 0.1, "{compared} compared, gaps {gaps}");
    }
}
