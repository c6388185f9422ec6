//! Solving by prices (Dantzig–Wolfe): a small master program prices every coupling row (inventory, budgets); each pool
//! then answers on its own with its best whole fleet at those prices, which becomes a column of the master.
//!
//! 1. *First fleet*: pools choose one after another, highest tier and largest first, from what is left; a pool that
//!    comes away short moves to the front of its tier and all choose anew. A greedy fleet competes. Each is *polished*:
//!    every pool chooses once more with all others fixed.
//! 2. *Prices*: the master picks a mix of columns for each pool; its shadow prices ask the pools for new columns, until
//!    none helps or the rounds are up. Every round proves a lower bound (Lagrange): each pool's cheapest whole fleet at
//!    the prices, as if it were alone, less what the rows' capacity is worth. It is far tighter than the linear
//!    relaxation's, because fleets are whole.
//! 3. *Fleets from prices*: pools whose mix is a single column keep it, the few others choose in turn from what is
//!    left, at the prices; or all choose anew; or the master picks one whole column a pool. Polished, the best stands.
//!
//! Small fleets are then also solved as one program from that start. The work is a handful of tiny programs a
//! pool and round, and one small linear program a round: near-linear in pools.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::greedy::{Remaining, answer_of, greedy};
use super::inventory::{Cell, Eligibility};
use super::program::{
    self, Answer, Coupling, Fleet, Held, PoolAnswer, Problem, cost_of, relaxation, solve_whole,
};
use super::solver::{Comparison, Limits, Program, Solver};

/// Whole variables up to which a problem is also solved as one program.
const WHOLE_VARIABLES: usize = 500;
/// Times that pools which came away short may go first.
const REORDERS: usize = 2;
/// Branch-and-bound nodes of one pool's program.
const POOL_NODES: u64 = 100;

/// Solves a problem: serve tiers in order, then spend least. Never fails; always a bound.
pub fn solve(problem: &Problem<'_>, solver: &dyn Solver, limits: &Limits) -> Answer {
    if problem.pools.len() <= 1 {
        let (prices, _) = relaxation(problem, solver);
        return Answer { prices, ..solve_whole(problem, &greedy(problem), solver, limits) };
    }
    let by_prices = by_prices(problem, solver, limits);
    let prices = by_prices.prices.clone();
    let gap = (by_prices.objective - by_prices.bound) / by_prices.objective.abs().max(1e-9);
    if (by_prices.complete && gap <= limits.gap) || program::size(problem) > WHOLE_VARIABLES {
        return by_prices;
    }
    let fleet: Fleet = by_prices.pools.iter().map(|p| p.counts.clone()).collect();
    let whole = solve_whole(problem, &fleet, solver, limits);
    if !whole.complete || !by_prices.complete {
        // Something is short: only the one program weighs the pools of a tier against each other.
        return if by_prices.complete { by_prices } else { Answer { prices, ..whole } };
    }
    let bound = whole.bound.max(by_prices.bound);
    let best = if whole.objective <= by_prices.objective + 1e-9 { whole } else { by_prices };
    Answer { bound: bound.min(best.objective), prices, ..best }
}

fn by_prices(problem: &Problem<'_>, solver: &dyn Solver, limits: &Limits) -> Answer {
    let limits = Limits { nodes: limits.nodes.min(POOL_NODES), ..*limits };
    let mut order: Vec<usize> = (0..problem.pools.len()).collect();
    let weight = |p: usize| {
        let pool = &problem.pools[p];
        let usd = pool.set.candidates.iter().map(|k| k.usd_per_hour * k.replicas_for(&pool.set.classes));
        usd.filter(|x| x.is_finite()).fold(0.0, f64::max)
    };
    let tier = |p: usize| Reverse(problem.pools[p].pool.priority);
    order.sort_by(|a, b| tier(*a).cmp(&tier(*b)).then(weight(*b).total_cmp(&weight(*a))).then(a.cmp(b)));

    // Lexicographic by tier, folded into one figure: a thousand times more for each tier above.
    let lowest = problem.pools.iter().map(|p| p.pool.priority).min().unwrap_or(0);
    let loss = |answers: &[PoolAnswer]| -> f64 {
        let of = |p: usize| {
            let rank = problem.pools[p].pool.priority.saturating_sub(lowest).min(10);
            if done(&answers[p]) { 0.0 } else { 1e3_f64.powi(rank) * (undone(&answers[p]) + 1e-3) }
        };
        (0..answers.len()).map(of).sum()
    };
    let alone = Alone::of(problem, solver, &limits);
    let own_best = alone.least_usd.iter().copied().sum::<Option<f64>>().unwrap_or(0.0);
    let mut best =
        Best { problem, order: &order, loss: &loss, alone: &alone, solver, limits: &limits, found: None };
    best.consider(in_turn(problem, &order, vec![None; order.len()], Some(&alone), &[], solver, &limits));
    if best.gap_to(own_best) > limits.gap {
        best.consider(greedy(problem).iter().enumerate().map(|(p, f)| answer_of(problem, p, f)).collect());
    }
    let (_, objective, answers) = best.current();
    if !answers.iter().all(done) {
        // Something is short: what is served comes first, and the relaxation says what binds.
        let (prices, _) = relaxation(problem, solver);
        best.consider(in_turn(problem, &order, vec![None; order.len()], None, &prices, solver, &limits));
        let (_, objective, answers) = best.current();
        let fleet: Fleet = answers.iter().map(|a| a.counts.clone()).collect();
        let bound = program::bound_given(problem, &fleet, solver).min(objective);
        let complete = answers.iter().all(done);
        return Answer { pools: answers, objective, bound, complete, prices };
    }
    if best.gap_to(own_best) <= limits.gap {
        return Answer {
            pools: answers,
            objective,
            bound: own_best.min(objective),
            complete: true,
            prices: Vec::new(),
        };
    }
    let mut master = Master::new(problem, solver, &limits);
    let first: Fleet = answers.iter().map(|a| a.counts.clone()).collect();
    let bound = master.run(&first, objective).max(own_best);
    let (prices, settled) = (master.prices.clone(), master.settled());
    if best.gap_to(bound) > limits.gap {
        best.consider(in_turn(problem, &order, settled, None, &prices, solver, &limits));
    }
    if best.gap_to(bound) > limits.gap {
        best.consider(in_turn(problem, &order, vec![None; order.len()], None, &prices, solver, &limits));
    }
    if best.gap_to(bound) > limits.gap
        && let Some(chosen) = master.choose(&first)
    {
        best.consider(chosen);
    }
    let (_, objective, answers) = best.current();
    Answer { pools: answers, objective, bound: bound.min(objective), complete: true, prices }
}

/// The best fleet so far.
struct Best<'s, 'p> {
    problem: &'s Problem<'p>,
    order: &'s [usize],
    loss: &'s dyn Fn(&[PoolAnswer]) -> f64,
    alone: &'s Alone,
    solver: &'s dyn Solver,
    limits: &'s Limits,
    /// Demand lost (weighed by tier), cost, answers.
    found: Option<(f64, f64, Vec<PoolAnswer>)>,
}

impl Best<'_, '_> {
    /// Polishes a fleet and keeps it if it is better.
    fn consider(&mut self, mut answers: Vec<PoolAnswer>) {
        polish(self.problem, self.order, self.alone, &mut answers, self.solver, self.limits);
        let fleet: Fleet = answers.iter().map(|a| a.counts.clone()).collect();
        let (lost, cost) = ((self.loss)(&answers), cost_of(self.problem, &fleet));
        let better = |l: f64, c: f64| lost < l - 1e-9 || (lost < l + 1e-9 && cost < c - 1e-9);
        if self.found.as_ref().is_none_or(|(l, c, _)| better(*l, *c)) {
            self.found = Some((lost, cost, answers));
        }
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

/// Most rounds of the master.
const ROUNDS: usize = 20;

/// A pool's fleet as the master sees it.
struct Column {
    counts: BTreeMap<(usize, usize), u32>,
    cost: f64,
    /// What it takes of each coupling row.
    takes: Vec<f64>,
    /// Its part in the master's latest mix, 0–1.
    part: f64,
}

struct Master<'s, 'p> {
    problem: &'s Problem<'p>,
    solver: &'s dyn Solver,
    limits: &'s Limits,
    rows: Vec<(Coupling, f64)>,
    columns: Vec<Vec<Column>>,
    prices: Vec<(Coupling, f64)>,
}

impl<'s, 'p> Master<'s, 'p> {
    fn new(problem: &'s Problem<'p>, solver: &'s dyn Solver, limits: &'s Limits) -> Self {
        let columns = problem.pools.iter().map(|_| Vec::new()).collect();
        Self { problem, solver, limits, rows: program::couplings(problem), columns, prices: Vec::new() }
    }

    fn add(&mut self, p: usize, counts: BTreeMap<(usize, usize), u32>) -> bool {
        if self.columns[p].iter().any(|c| c.counts == counts) {
            return false;
        }
        let cost = cost_of(&single(self.problem, p, &[]), &vec![counts.clone()]);
        let takes = self
            .rows
            .iter()
            .map(|(what, _)| {
                let of = |((k, c), n): (&(usize, usize), &u32)| {
                    f64::from(*n) * self.problem.takes(what, p, *k, *c)
                };
                counts.iter().map(of).fold(0.0, |a, b| a + b)
            })
            .collect();
        self.columns[p].push(Column { counts, cost, takes, part: 0.0 });
        true
    }

    /// Adds columns until none helps, starting from a feasible fleet; returns the best bound proved.
    fn run(&mut self, first: &Fleet, target: f64) -> f64 {
        let mut bound = f64::NEG_INFINITY;
        for (p, counts) in first.iter().enumerate() {
            self.add(p, counts.clone());
        }
        for _ in 0..ROUNDS {
            if !self.solve() {
                break;
            }
            let answers: Vec<Option<Answer>> = (0..self.columns.len())
                .map(|p| at_prices(self.problem, p, &self.prices, self.solver, self.limits))
                .collect();
            let worth: f64 = self
                .prices
                .iter()
                .filter_map(|(what, price)| {
                    self.rows.iter().find(|(w, _)| w == what).map(|(_, rhs)| price * rhs)
                })
                .fold(0.0, |a, b| a + b);
            let proved: Option<f64> = answers.iter().map(|a| a.as_ref().map(|a| a.bound)).sum();
            bound = bound.max(proved.map_or(f64::NEG_INFINITY, |total| total - worth));
            let mut grew = false;
            for (p, answer) in answers.into_iter().enumerate() {
                if let Some(counts) = answer.and_then(|mut a| a.pools.pop()).map(|a| a.counts) {
                    grew |= self.add(p, counts);
                }
            }
            if !grew || target - bound <= self.limits.gap * target.abs() {
                break;
            }
        }
        bound
    }

    /// The master over the columns at hand; `whole`: each pool takes exactly one. With it the variables of each pool's
    /// columns and, where a coupling row has terms, its row.
    fn program(&self, whole: bool) -> (Program, Vec<Vec<usize>>, Vec<Option<usize>>) {
        let mut program = Program::default();
        let mut variables: Vec<Vec<usize>> = Vec::new();
        for columns in &self.columns {
            let mut variable = |c: &Column| {
                if whole {
                    program.integer(c.cost, 0.0, 1.0)
                } else {
                    program.real(c.cost, 0.0, f64::INFINITY)
                }
            };
            let vars: Vec<usize> = columns.iter().map(&mut variable).collect();
            program.row(vars.iter().map(|v| (*v, 1.0)).collect(), Comparison::Equal, 1.0);
            variables.push(vars);
        }
        let mut rows = Vec::new();
        for (r, (_, rhs)) in self.rows.iter().enumerate() {
            let terms = self.columns.iter().zip(&variables).flat_map(|(columns, vars)| {
                columns.iter().zip(vars).filter(|(c, _)| c.takes[r] != 0.0).map(|(c, v)| (*v, c.takes[r]))
            });
            let terms: Vec<_> = terms.collect();
            rows.push((!terms.is_empty()).then(|| program.row(terms, Comparison::AtMost, *rhs)));
        }
        (program, variables, rows)
    }

    /// Solves the master and reads prices and mixes; false if the solver failed.
    fn solve(&mut self) -> bool {
        let (program, variables, rows) = self.program(false);
        let Ok(relaxed) = self.solver.relax(&program) else { return false };
        let priced = self.rows.iter().zip(&rows).filter_map(|((what, _), row)| {
            let price = -relaxed.prices[(*row)?];
            (price > 1e-6).then(|| (what.clone(), price))
        });
        self.prices = priced.collect();
        for (columns, vars) in self.columns.iter_mut().zip(&variables) {
            columns.iter_mut().zip(vars).for_each(|(c, v)| c.part = relaxed.values[*v]);
        }
        true
    }

    /// The best choice of one column a pool, from a known one.
    fn choose(&self, known: &Fleet) -> Option<Vec<PoolAnswer>> {
        let (program, variables, _) = self.program(true);
        let mut start = vec![0.0; program.variables.len()];
        for ((columns, vars), counts) in self.columns.iter().zip(&variables).zip(known) {
            columns.iter().zip(vars).filter(|(c, _)| &c.counts == counts).for_each(|(_, v)| start[*v] = 1.0);
        }
        let start = Some(start.as_slice()).filter(|s| program.is_feasible(s, 1e-6));
        let chosen = self.solver.solve(&program, self.limits, start).ok()?;
        self.columns
            .iter()
            .zip(&variables)
            .enumerate()
            .map(|(p, (columns, vars))| {
                let column = columns.iter().zip(vars).find(|(_, v)| chosen.values[**v] > 0.5)?.0;
                Some(answer_of(self.problem, p, &column.counts))
            })
            .collect()
    }

    /// The fleet of each pool whose mix is a single column.
    fn settled(&self) -> Vec<Option<PoolAnswer>> {
        let one = |columns: &Vec<Column>| columns.iter().find(|c| c.part > 0.99).map(|c| c.counts.clone());
        self.columns
            .iter()
            .enumerate()
            .map(|(p, columns)| one(columns).map(|counts| answer_of(self.problem, p, &counts)).filter(done))
            .collect()
    }
}

/// What each pool would do with the cluster to itself.
struct Alone {
    /// The fleet it would take, if that serves it.
    wishes: Vec<Option<PoolAnswer>>,
    /// What it costs at least, dollars per hour and price of change; `None` if it cannot be served even so.
    least_usd: Vec<Option<f64>>,
}

impl Alone {
    fn of(problem: &Problem<'_>, solver: &dyn Solver, limits: &Limits) -> Self {
        let of = |p: usize| {
            let Some(mut answer) = at_prices(problem, p, &[], solver, limits) else { return (None, None) };
            // Zones are left out of that program.
            let wish = answer.pools.pop().filter(|_| problem.pools[p].min_zones <= 1);
            (wish.filter(done), Some(answer.bound))
        };
        let (wishes, least_usd) = (0..problem.pools.len()).map(of).unzip();
        Self { wishes, least_usd }
    }
}

/// Every pool chooses from what those before it left; pools that come away short go first the next time. A pool that finds
/// what it would take alone takes that: nothing is better.
fn in_turn(
    problem: &Problem<'_>,
    order: &[usize],
    settled: Vec<Option<PoolAnswer>>,
    alone: Option<&Alone>,
    prices: &[(Coupling, f64)],
    solver: &dyn Solver,
    limits: &Limits,
) -> Vec<PoolAnswer> {
    let mut order: Vec<usize> = order.iter().copied().filter(|p| settled[*p].is_none()).collect();
    let start: Vec<PoolAnswer> = settled.into_iter().map(Option::unwrap_or_default).collect();
    let mut best: Option<(usize, Vec<PoolAnswer>)> = None;
    for _ in 0..=REORDERS {
        let mut answers = start.clone();
        let mut left = Remaining::new(problem);
        for (p, answer) in start.iter().enumerate() {
            left.take_each(p, &answer.counts);
        }
        for p in &order {
            let wish = alone.and_then(|a| a.wishes[*p].as_ref()).filter(|w| left.take_all(*p, &w.counts));
            answers[*p] = match wish {
                Some(wish) => wish.clone(),
                None => {
                    let answer = one(&only(problem, *p, &answers, prices), solver, limits);
                    left.take_each(*p, &answer.counts);
                    answer
                }
            };
        }
        let short: BTreeSet<usize> = (0..answers.len()).filter(|p| !done(&answers[*p])).collect();
        if best.as_ref().is_none_or(|(n, _)| short.len() < *n) {
            best = Some((short.len(), answers));
        }
        if short.is_empty() {
            break;
        }
        order.sort_by_key(|p| (Reverse(problem.pools[*p].pool.priority), !short.contains(p)));
    }
    best.map(|(_, a)| a).unwrap_or_default()
}

/// Each pool chooses once more at true cost, from what the others leave, and keeps the better of the two. One that costs
/// no more than it would alone has no better choice.
fn polish(
    problem: &Problem<'_>,
    order: &[usize],
    alone: &Alone,
    answers: &mut [PoolAnswer],
    solver: &dyn Solver,
    limits: &Limits,
) {
    for p in order {
        if let Some(least_usd) = alone.least_usd[*p].filter(|_| done(&answers[*p])) {
            let usd = cost_of(&single(problem, *p, &[]), &vec![answers[*p].counts.clone()]);
            if usd - least_usd <= limits.gap * usd.abs() {
                continue;
            }
        }
        let alone = only(problem, *p, answers, &[]);
        let again = one(&alone, solver, limits);
        let cost = |a: &PoolAnswer| cost_of(&alone, &vec![a.counts.clone()]);
        let (old, new) = (undone(&answers[*p]), undone(&again));
        if new < old - 1e-9 || (new <= old + 1e-9 && cost(&again) < cost(&answers[*p]) - 1e-9) {
            answers[*p] = again;
        }
    }
}

/// What an answer leaves undone, in the units of a tier's objective.
fn undone(a: &PoolAnswer) -> f64 {
    a.unserved.iter().sum::<f64>() + 0.25 * f64::from(a.short) + 0.05 * f64::from(a.zones_short)
}

fn done(a: &PoolAnswer) -> bool {
    undone(a) <= 1e-6
}

fn one(alone: &Problem<'_>, solver: &dyn Solver, limits: &Limits) -> PoolAnswer {
    let answer = solve_whole(alone, &greedy(alone), solver, limits).pools.pop().unwrap_or_default();
    if done(&answer) || alone.allowed.is_none() {
        return answer;
    }
    // Shapes may have filled each other's cells: look at all of them.
    let everywhere = Problem { allowed: None, ..alone.clone() };
    solve_whole(&everywhere, &greedy(&everywhere), solver, limits).pools.pop().unwrap_or_default()
}

/// The problem of one pool, with what the other answers hold taken out.
fn only<'a>(
    problem: &Problem<'a>,
    p: usize,
    answers: &[PoolAnswer],
    prices: &[(Coupling, f64)],
) -> Problem<'a> {
    let mut held: BTreeMap<(usize, u32, u32), u32> = BTreeMap::new();
    let mut spent = vec![0.0; problem.budgets.len()];
    for (q, answer) in answers.iter().enumerate().filter(|(q, _)| *q != p) {
        let pool = &problem.pools[q];
        for ((k, c), n) in &answer.counts {
            let shape = &pool.set.candidates[*k].shape;
            *held.entry((*c, shape.tensor_parallel, shape.pipeline_parallel)).or_default() += n;
            for (b, spent) in spent.iter_mut().enumerate() {
                *spent += f64::from(*n) * problem.takes(&Coupling::Budget(b), q, *k, *c);
            }
        }
    }
    let mut alone = single(problem, p, prices);
    alone.held = held
        .into_iter()
        .map(|((cell, tensor, pipeline), count)| Held { cell, tensor, pipeline, count })
        .collect();
    for (b, spent) in alone.budgets.iter_mut().zip(&spent) {
        b.left = (b.left - spent).max(0.0);
    }
    alone.allowed = Some(near(&alone));
    alone
}

fn single<'a>(problem: &Problem<'a>, p: usize, prices: &[(Coupling, f64)]) -> Problem<'a> {
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
        prices: prices.to_vec(),
        allowed: None,
        uncoupled: false,
    }
}

/// For each candidate the cheapest cells that together have room for all it could be used for: the others cannot
/// matter. All cells, where zones are to be spanned.
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
            .map(|(c, cell)| (pool.usd(k, cell) + alone.surcharge(0, k, c), c))
            .collect();
        cells.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut room = 0.0;
        for (_, c) in cells {
            if room >= pool.useful(k) && pool.min_zones <= 1 {
                break;
            }
            let here = alone.groups(c, shape.tensor_parallel) / shape.pipeline_parallel.max(1);
            if here > 0 {
                room += f64::from(here);
                near.insert((k, c));
            }
        }
    }
    near
}

/// A pool's cheapest whole fleet at the prices, in an endless cluster; `None` if even that does not serve it.
fn at_prices(
    problem: &Problem<'_>,
    p: usize,
    prices: &[(Coupling, f64)],
    solver: &dyn Solver,
    limits: &Limits,
) -> Option<Answer> {
    let mut alone = single(problem, p, prices);
    alone.uncoupled = true;
    // In an endless cluster only the cheapest cell of each candidate matters.
    let pool = &alone.pools[0];
    let cheapest = (0..pool.set.candidates.len()).filter_map(|k| {
        let shape = &pool.set.candidates[k].shape;
        let open = |c: &Cell| c.accelerator == shape.accelerator && c.eligible[0] == Eligibility::Open;
        alone
            .cells
            .iter()
            .enumerate()
            .filter(|(_, cell)| open(cell) && cell.groups(shape.tensor_parallel) >= shape.pipeline_parallel)
            .map(|(c, cell)| (pool.usd(k, cell) + alone.surcharge(0, k, c), c))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
            .map(|(_, c)| (k, c))
    });
    alone.allowed = Some(cheapest.collect());
    Some(solve_whole(&alone, &greedy(&alone), solver, limits)).filter(|a| a.complete)
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
        let order: Vec<usize> = (0..5).collect();
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
            let alone = Alone::of(&problem, &BranchAndBound, &limits);
            let turn = |alone| in_turn(&problem, &order, vec![None; 5], alone, &[], &BranchAndBound, &limits);
            let answers = turn(Some(&alone));
            let fleet = |answers: &[PoolAnswer]| answers.iter().map(|a| a.counts.clone()).collect::<Fleet>();
            if roomy {
                let wishes: Vec<PoolAnswer> = alone.wishes.iter().flatten().cloned().collect();
                assert_eq!(answers, wishes, "seed {seed}");
                let (fast, slow) =
                    (cost_of(&problem, &fleet(&answers)), cost_of(&problem, &fleet(&turn(None))));
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
