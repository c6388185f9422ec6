//! Dantzig–Wolfe: a small linear program, the master, prices every coupling row; each pool's best whole fleet at those
//! prices becomes a column of it.
//!
//! Every round proves a lower bound (Lagrange): each pool's cheapest whole fleet at the prices, as if it were alone, less
//! what the rows' capacity is worth. Columns that are far from paying at the last prices sleep, and a pool with one column
//! awake is no row of the master: it stays small however many columns there are.

use std::collections::BTreeMap;

use super::greedy::answer_of;
use super::options::{Counts, Options, Prices, Response, Service};
use super::parallel;
use super::program::{self, Coupling};
use super::solver::{Comparison, Limits, Program, Solver};

/// Most rounds.
const ROUNDS: usize = 24;
/// How much of the prices that proved most is kept in those that pools are asked at.
const TRUST: f64 = 0.6;
/// Relative distance of mix and bound at which the rounds end.
const CLOSE: f64 = 1e-3;
/// Rounds of one solve in which sleeping columns that would pay are woken.
const WAKES: usize = 3;
/// A column sleeps while it costs more than the pool's best at the last prices by this share of it.
const SLEEPS_ABOVE: f64 = 0.05;

/// A pool's fleet as the master sees it.
struct Column {
    counts: Counts,
    cost: f64,
    /// What it takes of coupling rows: row and amount.
    takes: Vec<(usize, f64)>,
    /// Its part in the master's latest mix, 0–1.
    part: f64,
}

pub(crate) struct Master<'s, 'p, 'a> {
    options: &'s Options<'p, 'a>,
    /// What each pool must serve.
    services: Vec<Service>,
    solver: &'s dyn Solver,
    limits: &'s Limits,
    rows: Vec<(Coupling, f64)>,
    /// Rows by cell.
    of_cell: Vec<Vec<usize>>,
    /// Rows of budgets.
    of_budgets: Vec<usize>,
    columns: Vec<Vec<Column>>,
    /// Price of each row, dollars per hour per unit.
    prices: Vec<f64>,
}

impl<'s, 'p, 'a> Master<'s, 'p, 'a> {
    pub(crate) fn new(
        options: &'s Options<'p, 'a>,
        services: Vec<Service>,
        solver: &'s dyn Solver,
        limits: &'s Limits,
    ) -> Self {
        let problem = options.problem();
        let rows = program::couplings(problem);
        let mut of_cell = vec![Vec::new(); problem.cells.len()];
        let mut of_budgets = Vec::new();
        for (r, (what, _)) in rows.iter().enumerate() {
            match what {
                Coupling::Slots { cell, .. } => of_cell[*cell].push(r),
                Coupling::Budget(_) => of_budgets.push(r),
            }
        }
        let columns = problem.pools.iter().map(|_| Vec::new()).collect();
        let prices = vec![0.0; rows.len()];
        Self { options, services, solver, limits, rows, of_cell, of_budgets, columns, prices }
    }

    /// Prices of the rows that have one.
    pub(crate) fn prices(&self) -> Vec<(Coupling, f64)> {
        self.named(&self.prices)
    }

    /// Prices by row, of the rows that have one.
    fn named(&self, prices: &[f64]) -> Vec<(Coupling, f64)> {
        let priced = self.rows.iter().zip(prices).filter(|(_, price)| **price > 0.0);
        priced.map(|((what, _), price)| (what.clone(), *price)).collect()
    }

    /// Sets the prices to begin with.
    pub(crate) fn start_at(&mut self, hints: &[(Coupling, f64)]) {
        for (what, price) in hints {
            if let Some(r) = self.rows.iter().position(|(w, _)| w == what) {
                self.prices[r] = *price;
            }
        }
    }

    /// Adds a fleet of a pool; whether it was new.
    pub(crate) fn add(&mut self, p: usize, counts: Counts) -> bool {
        if self.columns[p].iter().any(|c| c.counts == counts) {
            return false;
        }
        let problem = self.options.problem();
        let mut takes: BTreeMap<usize, f64> = BTreeMap::new();
        for ((k, c), n) in &counts {
            for r in self.of_cell[*c].iter().chain(&self.of_budgets) {
                let each = problem.takes(&self.rows[*r].0, p, *k, *c);
                if each != 0.0 {
                    *takes.entry(*r).or_default() += f64::from(*n) * each;
                }
            }
        }
        let cost = self.cost(p, &counts);
        self.columns[p].push(Column { counts, cost, takes: takes.into_iter().collect(), part: 0.0 });
        true
    }

    /// What a fleet costs, with what it leaves undone where that has a price.
    fn cost(&self, p: usize, counts: &Counts) -> f64 {
        let cost = self.options.cost(p, counts);
        match self.services[p] {
            Service::All => cost,
            Service::Worth(usd) => {
                let problem = self.options.problem();
                cost + usd * problem.pools[p].undone(&answer_of(problem, p, counts))
            }
        }
    }

    /// Prices the rows anew, over the columns at hand, with other prices for what is left undone.
    pub(crate) fn price_anew(&mut self, services: Vec<Service>, first: &[Counts]) {
        self.services = services;
        for p in 0..self.columns.len() {
            let costs: Vec<f64> = self.columns[p].iter().map(|c| self.cost(p, &c.counts)).collect();
            self.columns[p].iter_mut().zip(costs).for_each(|(c, cost)| c.cost = cost);
        }
        self.solve(first);
    }

    /// Every pool's best fleet at some prices of the rows, and the lower bound that they prove together.
    fn ask(&self, prices: &[f64]) -> (Vec<Option<Response>>, f64) {
        let of_rows = Prices::new(self.options.problem(), &self.named(prices));
        let answers = parallel::map(self.columns.len(), |p| {
            self.options.at_prices(p, self.services[p], &of_rows, self.limits)
        });
        let worth: f64 = self.rows.iter().zip(prices).map(|((_, rhs), price)| price * rhs).sum();
        let proved: Option<f64> = answers.iter().map(|a| a.as_ref().map(|a| a.bound)).sum();
        (answers, proved.map_or(f64::NEG_INFINITY, |total| total - worth))
    }

    fn take_in(&mut self, answers: Vec<Option<Response>>) -> bool {
        let mut grew = false;
        for (p, answer) in answers.into_iter().enumerate() {
            if let Some(answer) = answer {
                grew |= self.add(p, answer.counts);
            }
        }
        grew
    }

    /// Adds columns until none helps, starting from a feasible fleet of the cost `target`; returns the best bound proved. Ends
    /// as soon as the target is proved to be within the gap.
    pub(crate) fn run(&mut self, first: &[Counts], target: f64) -> f64 {
        let mut bound = f64::NEG_INFINITY;
        for (p, counts) in first.iter().enumerate() {
            self.add(p, counts.clone());
        }
        let near =
            |bound: f64, gap: f64, figure: f64| figure.is_finite() && figure - bound <= gap * figure.abs();
        // The prices that proved most so far: the master's own jump about, so pools are asked between the two (Wentges 1997).
        let mut trusted = self.prices.clone();
        if trusted.iter().any(|p| *p > 0.0) {
            let (answers, proved) = self.ask(&trusted);
            bound = bound.max(proved);
            self.take_in(answers);
        }
        let mut trust = TRUST;
        for _ in 0..ROUNDS {
            let Some(mixed) = self.solve(first) else { break };
            let between = |(old, new): (&f64, &f64)| trust * old + (1.0 - trust) * new;
            let asked: Vec<f64> = trusted.iter().zip(&self.prices).map(between).collect();
            let (answers, proved) = self.ask(&asked);
            if proved > bound {
                bound = proved;
                trusted = asked;
            }
            let grew = self.take_in(answers);
            // What the mix still has above the bound is less than whole numbers will cost.
            if near(bound, self.limits.gap, target) || near(bound, CLOSE, mixed) || (!grew && trust == 0.0) {
                break;
            }
            trust = if grew { TRUST } else { 0.0 };
        }
        bound
    }

    /// Cost of a column at the prices.
    fn priced(&self, column: &Column) -> f64 {
        column.cost + column.takes.iter().map(|(r, n)| self.prices[*r] * n).sum::<f64>()
    }

    /// The master over the columns at hand: sets prices and mixes, and returns what the mix costs. `first` is a feasible
    /// fleet among the columns. `None` if the solver failed.
    fn solve(&mut self, first: &[Counts]) -> Option<f64> {
        let least = |costs: &[f64]| costs.iter().copied().fold(f64::INFINITY, f64::min);
        let priced: Vec<Vec<f64>> =
            self.columns.iter().map(|columns| columns.iter().map(|c| self.priced(c)).collect()).collect();
        let mut awake: Vec<Vec<bool>> = priced
            .iter()
            .zip(&self.columns)
            .zip(first)
            .map(|((priced, columns), first)| {
                let limit = least(priced) * (1.0 + SLEEPS_ABOVE) + 1e-6;
                priced.iter().zip(columns).map(|(x, c)| *x <= limit || c.counts == *first).collect()
            })
            .collect();
        let mut mixed = None;
        for _ in 0..WAKES {
            mixed = Some(self.solve_awake(&awake)?);
            let mut woke = false;
            for (columns, awake) in self.columns.iter().zip(&mut awake) {
                let priced: Vec<f64> = columns.iter().map(|c| self.priced(c)).collect();
                let up: Vec<f64> = priced.iter().zip(&*awake).filter(|(_, a)| **a).map(|(x, _)| *x).collect();
                let best = least(&up);
                for (x, awake) in priced.iter().zip(awake) {
                    if !*awake && *x < best - 1e-6 * best.abs().max(1.0) {
                        *awake = true;
                        woke = true;
                    }
                }
            }
            if !woke {
                break;
            }
        }
        mixed
    }

    fn solve_awake(&mut self, awake: &[Vec<bool>]) -> Option<f64> {
        let mut program = Program::default();
        let mut rhs: Vec<f64> = self.rows.iter().map(|(_, rhs)| *rhs).collect();
        let mut terms: Vec<Vec<(usize, f64)>> = vec![Vec::new(); self.rows.len()];
        let mut fixed = 0.0;
        // Pool, column, variable.
        let mut mixed: Vec<(usize, usize, usize)> = Vec::new();
        for (p, (columns, awake)) in self.columns.iter_mut().zip(awake).enumerate() {
            columns.iter_mut().for_each(|c| c.part = 0.0);
            let up: Vec<usize> = (0..columns.len()).filter(|i| awake[*i]).collect();
            if let [only] = up.as_slice() {
                columns[*only].part = 1.0;
                fixed += columns[*only].cost;
                columns[*only].takes.iter().for_each(|(r, n)| rhs[*r] -= n);
                continue;
            }
            let mut row = Vec::with_capacity(up.len());
            for i in up {
                let v = program.real(columns[i].cost, 0.0, f64::INFINITY);
                columns[i].takes.iter().for_each(|(r, n)| terms[*r].push((v, *n)));
                row.push((v, 1.0));
                mixed.push((p, i, v));
            }
            program.row(row, Comparison::Equal, 1.0);
        }
        let mut rows = Vec::new();
        for (r, (terms, rhs)) in terms.into_iter().zip(rhs).enumerate() {
            if !terms.is_empty() {
                rows.push((r, program.row(terms, Comparison::AtMost, rhs)));
            }
        }
        self.prices.iter_mut().for_each(|p| *p = 0.0);
        if mixed.is_empty() {
            return Some(fixed);
        }
        let relaxed = self.solver.relax(&program).ok()?;
        for (r, row) in rows {
            let price = -relaxed.prices[row];
            self.prices[r] = if price > 1e-6 { price } else { 0.0 };
        }
        for (p, i, v) in mixed {
            self.columns[p][i].part = relaxed.values[v];
        }
        Some(fixed + relaxed.objective)
    }

    /// Each pool's largest column of the mix, with its part.
    pub(crate) fn preferred(&self) -> Vec<Option<(f64, Counts)>> {
        let largest = |columns: &Vec<Column>| {
            let best = columns.iter().max_by(|a, b| a.part.total_cmp(&b.part))?;
            Some((best.part, best.counts.clone()))
        };
        self.columns.iter().map(largest).collect()
    }

    /// The best choice of one column a pool, from a known one.
    pub(crate) fn choose(&self, known: &[Counts]) -> Option<Vec<Counts>> {
        let mut program = Program::default();
        let mut start = Vec::new();
        let mut terms: Vec<Vec<(usize, f64)>> = vec![Vec::new(); self.rows.len()];
        let mut variables = Vec::with_capacity(self.columns.len());
        for (columns, known) in self.columns.iter().zip(known) {
            let mut row = Vec::with_capacity(columns.len());
            for c in columns {
                let v = program.integer(c.cost, 0.0, 1.0);
                start.push(if c.counts == *known { 1.0 } else { 0.0 });
                c.takes.iter().for_each(|(r, n)| terms[*r].push((v, *n)));
                row.push((v, 1.0));
            }
            variables.push(row.iter().map(|(v, _)| *v).collect::<Vec<_>>());
            program.row(row, Comparison::Equal, 1.0);
        }
        for (terms, (_, rhs)) in terms.into_iter().zip(&self.rows) {
            if !terms.is_empty() {
                program.row(terms, Comparison::AtMost, *rhs);
            }
        }
        let start = Some(start.as_slice()).filter(|s| program.is_feasible(s, 1e-6));
        let chosen = self.solver.solve(&program, self.limits, start).ok()?;
        let one = |(columns, variables): (&Vec<Column>, &Vec<usize>)| {
            let column = columns.iter().zip(variables).find(|(_, v)| chosen.values[**v] > 0.5)?.0;
            Some(column.counts.clone())
        };
        self.columns.iter().zip(&variables).map(one).collect()
    }
}
