//! What is left of the coupling rows while a fleet is built up.

use std::collections::BTreeMap;

use super::program::{Coupling, Held, Problem};

/// Groups of one cell.
#[derive(Debug, Clone, Default)]
struct Groups {
    /// Group sizes that a row counts, ascending.
    sizes: Vec<u32>,
    /// Groups of each size that there are.
    most: Vec<u32>,
    /// Groups of each size that are taken.
    taken: Vec<u32>,
}

/// What is left of the coupling rows while a fleet is built up. Every question costs a few rows.
#[derive(Debug, Clone)]
pub struct Remaining<'p, 'a> {
    problem: &'p Problem<'a>,
    cells: Vec<Groups>,
    /// Replicas taken: by cell, accelerators of a stage and stages.
    shapes: BTreeMap<(usize, u32, u32), u32>,
    /// By budget row, in its unit.
    spent: Vec<f64>,
}

impl<'p, 'a> Remaining<'p, 'a> {
    /// Nothing taken yet.
    pub fn new(problem: &'p Problem<'a>) -> Self {
        let mut by_class: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for candidate in problem.pools.iter().flat_map(|p| &p.set.candidates) {
            let sizes = by_class.entry(&candidate.shape.accelerator).or_default();
            if !sizes.contains(&candidate.shape.stage_gpus()) {
                sizes.push(candidate.shape.stage_gpus());
            }
        }
        let groups = |c: usize| {
            let cell = &problem.cells[c];
            let mut sizes = by_class.get(cell.accelerator.as_str()).cloned().unwrap_or_default();
            sizes.push(1);
            sizes.extend(problem.cuts.iter().filter(|cut| cut.cell == c).map(|cut| cut.size));
            sizes.extend(problem.held.iter().filter(|h| h.cell == c).map(|h| h.stage_gpus));
            sizes.sort_unstable();
            sizes.dedup();
            let most = sizes.iter().map(|size| problem.groups(c, *size)).collect();
            Groups { taken: vec![0; sizes.len()], most, sizes }
        };
        let cells = (0..problem.cells.len()).map(groups).collect();
        Self { problem, cells, shapes: BTreeMap::new(), spent: vec![0.0; problem.budgets.len()] }
    }

    /// What is left of a budget row, in its unit; less than nothing where it is overdrawn.
    pub fn left(&self, budget: usize) -> f64 {
        self.problem.budgets[budget].left - self.spent[budget]
    }

    /// Whether the budgets have room for a replica in cell `to` instead of `from`, where a kilowatt-hour may be dirtier.
    pub fn may_move(&self, p: usize, k: usize, from: usize, to: usize) -> bool {
        (0..self.spent.len()).all(|b| {
            let takes = |c| self.problem.takes(&Coupling::Budget(b), p, k, c);
            takes(to) <= takes(from) + 1e-12 || takes(to) - takes(from) <= self.left(b) + 1e-9
        })
    }

    /// What is taken, as another problem's [`Held`].
    pub(crate) fn held(&self) -> Vec<Held> {
        let one = |((cell, stage_gpus, pipeline), count): (&(usize, u32, u32), &u32)| Held {
            cell: *cell,
            stage_gpus: *stage_gpus,
            pipeline: *pipeline,
            count: *count,
        };
        self.shapes.iter().filter(|(_, n)| **n > 0).map(one).collect()
    }

    /// Rows of a cell: group size, and how many groups of at least that size are left.
    pub(crate) fn groups(&self, c: usize) -> impl Iterator<Item = (u32, u32)> {
        let cell = &self.cells[c];
        let rows = cell.sizes.iter().zip(&cell.most).zip(&cell.taken);
        rows.map(|((size, most), taken)| (*size, most.saturating_sub(*taken)))
    }

    /// How many more replicas of pool `p`, candidate `k` find accelerators in cell `c`.
    pub fn slots(&self, p: usize, k: usize, c: usize) -> u32 {
        let shape = &self.problem.pools[p].set.candidates[k].shape;
        self.groups(c)
            .filter(|(size, _)| *size <= shape.stage_gpus())
            .map(|(size, left)| left / ((shape.stage_gpus() / size) * shape.pipeline_parallel).max(1))
            .min()
            .unwrap_or(0)
    }

    /// How many more replicas of pool `p`, candidate `k` fit cell `c` and every budget.
    pub fn room(&self, p: usize, k: usize, c: usize) -> u32 {
        let mut room = self.slots(p, k, c);
        for b in 0..self.spent.len() {
            let each = self.problem.takes(&Coupling::Budget(b), p, k, c);
            if each > 0.0 {
                let left = (self.left(b) + 1e-9) / each;
                room = room.min(left.max(0.0).min(f64::from(u32::MAX)) as u32);
            }
        }
        room
    }

    /// Whether one more replica of pool `p`, candidate `k` fits cell `c` and every budget.
    pub fn fits(&self, p: usize, k: usize, c: usize) -> bool {
        self.room(p, k, c) > 0
    }

    /// Whether one more replica of pool `p`, candidate `k` finds accelerators in cell `c`.
    pub fn has_slots(&self, p: usize, k: usize, c: usize) -> bool {
        self.slots(p, k, c) > 0
    }

    /// Takes or gives back `count` replicas' worth.
    fn change(&mut self, p: usize, k: usize, c: usize, count: u32, sign: f64) {
        let shape = &self.problem.pools[p].set.candidates[k].shape;
        let cell = &mut self.cells[c];
        for (size, taken) in cell.sizes.iter().zip(&mut cell.taken) {
            let each = (shape.stage_gpus() / size) * shape.pipeline_parallel * count;
            *taken = if sign > 0.0 { taken.saturating_add(each) } else { taken.saturating_sub(each) };
        }
        let here = self.shapes.entry((c, shape.stage_gpus(), shape.pipeline_parallel)).or_default();
        *here = if sign > 0.0 { here.saturating_add(count) } else { here.saturating_sub(count) };
        for (b, spent) in self.spent.iter_mut().enumerate() {
            *spent += sign * f64::from(count) * self.problem.takes(&Coupling::Budget(b), p, k, c);
        }
    }

    /// Whether more is taken than there is.
    pub(crate) fn is_overdrawn(&self) -> bool {
        let over = |cell: &Groups| cell.most.iter().zip(&cell.taken).any(|(most, taken)| taken > most);
        let spent = |b: usize| self.left(b) < -1e-6 * (1.0 + self.problem.budgets[b].left.abs());
        self.cells.iter().any(over) || (0..self.spent.len()).any(spent)
    }

    /// Whether these replicas fit together.
    pub fn fits_all(&self, p: usize, counts: &BTreeMap<(usize, usize), u32>) -> bool {
        let shape = |k: usize| &self.problem.pools[p].set.candidates[k].shape;
        let in_cell = |c: usize| {
            let cell = &self.cells[c];
            cell.sizes.iter().zip(&cell.most).zip(&cell.taken).all(|((size, most), taken)| {
                let here = counts.iter().filter(|((_, at), _)| *at == c);
                let more = here.map(|((k, _), n)| {
                    u64::from((shape(*k).stage_gpus() / size) * shape(*k).pipeline_parallel) * u64::from(*n)
                });
                let more: u64 = more.sum();
                more == 0 || u64::from(*taken) + more <= u64::from(*most)
            })
        };
        let paid = |b: usize| {
            let each = |((k, c), n): (&(usize, usize), &u32)| {
                f64::from(*n) * self.problem.takes(&Coupling::Budget(b), p, *k, *c)
            };
            counts.iter().map(each).fold(0.0, |a, b| a + b)
        };
        let afforded = |b: usize| {
            let more = paid(b);
            more <= 0.0 || more <= self.left(b) + 1e-9
        };
        counts.keys().all(|(_, c)| in_cell(*c)) && (0..self.spent.len()).all(afforded)
    }

    /// Takes one replica's worth, whether it fits or not.
    pub fn take(&mut self, p: usize, k: usize, c: usize) {
        self.change(p, k, c, 1, 1.0);
    }

    /// Takes these replicas, whether they fit or not.
    pub fn take_each(&mut self, p: usize, counts: &BTreeMap<(usize, usize), u32>) {
        counts.iter().for_each(|((k, c), n)| self.change(p, *k, *c, *n, 1.0));
    }

    /// Takes some replicas, all of them or, if they do not fit together, none; says which.
    pub fn take_all(&mut self, p: usize, counts: &BTreeMap<(usize, usize), u32>) -> bool {
        let fit = self.fits_all(p, counts);
        if fit {
            self.take_each(p, counts);
        }
        fit
    }

    /// Gives one replica's worth back.
    pub fn release(&mut self, p: usize, k: usize, c: usize) {
        self.change(p, k, c, 1, -1.0);
    }

    /// Gives these replicas' worth back.
    pub fn release_each(&mut self, p: usize, counts: &BTreeMap<(usize, usize), u32>) {
        counts.iter().for_each(|((k, c), n)| self.change(p, *k, *c, *n, -1.0));
    }
}
