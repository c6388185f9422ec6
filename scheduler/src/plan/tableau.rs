//! A small linear program with bounded variables, by the primal simplex method on a dense tableau.
//!
//! Made for the tens of rows of one pool's program, which is solved thousands of times a plan; larger programs go
//! through [`super::solver`]. The method is the textbook's: the bounded-variable simplex of Dantzig (1955), in which a variable at its
//! upper bound is written as its distance from it.

/// Values this small are zero.
const EPSILON: f64 = 1e-9;
/// Pivots after which the first improving column is taken instead of the best (Bland's rule), which cannot cycle.
const CALM_PIVOTS: usize = 200;
/// Pivots after which the search is given up.
const MOST_PIVOTS: usize = 5_000;

/// Minimises `cost · x` over `rows x = rhs`, `0 ≤ x ≤ upper`, from a basis of given columns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tableau {
    columns: usize,
    /// Row by row.
    entries: Vec<f64>,
    rhs: Vec<f64>,
    /// Column that is basic in each row.
    basis: Vec<usize>,
    cost: Vec<f64>,
    upper: Vec<f64>,
    /// Whether a column is written as its distance from its upper bound.
    flipped: Vec<bool>,
    is_basic: Vec<bool>,
    objective: f64,
}

impl Tableau {
    /// Empties it and gives it so many columns, each of cost 0 and without upper bound.
    pub(crate) fn clear(&mut self, columns: usize) {
        self.columns = columns;
        self.entries.clear();
        self.rhs.clear();
        self.basis.clear();
        self.cost.clear();
        self.cost.resize(columns, 0.0);
        self.upper.clear();
        self.upper.resize(columns, f64::INFINITY);
        self.flipped.clear();
        self.flipped.resize(columns, false);
        self.is_basic.clear();
        self.is_basic.resize(columns, false);
        self.objective = 0.0;
    }

    /// Sets a column's cost and upper bound (≥ 0).
    pub(crate) fn column(&mut self, j: usize, cost: f64, upper: f64) {
        self.cost[j] = cost;
        self.upper[j] = upper;
    }

    /// Adds a row in which `basic`, a column that is in no other row, starts as basic with coefficient 1. `rhs` is at
    /// least 0 and at most the basic column's upper bound.
    pub(crate) fn row(&mut self, terms: impl IntoIterator<Item = (usize, f64)>, basic: usize, rhs: f64) {
        let begin = self.entries.len();
        self.entries.resize(begin + self.columns, 0.0);
        for (j, a) in terms {
            self.entries[begin + j] += a;
        }
        self.entries[begin + basic] = 1.0;
        self.rhs.push(rhs);
        self.basis.push(basic);
        self.is_basic[basic] = true;
    }

    /// Objective of the point reached.
    pub(crate) fn objective(&self) -> f64 {
        self.objective
    }

    /// What one more of a column would cost at the point reached.
    pub(crate) fn reduced_cost(&self, j: usize) -> f64 {
        self.cost[j]
    }

    /// Solves it; false if the search was given up (numerically hopeless) or the objective has no bound.
    pub(crate) fn minimise(&mut self) -> bool {
        // Reduced costs of the starting basis.
        for i in 0..self.rhs.len() {
            let weight = self.cost[self.basis[i]];
            if weight != 0.0 {
                self.objective += weight * self.rhs[i];
                let row = i * self.columns;
                for j in 0..self.columns {
                    self.cost[j] -= weight * self.entries[row + j];
                }
            }
        }
        for pivots in 0..MOST_PIVOTS {
            let Some(entering) = self.entering(pivots >= CALM_PIVOTS) else { return true };
            let (step, leaving) = self.leaving(entering);
            if !step.is_finite() {
                return false;
            }
            match leaving {
                None => self.flip(entering),
                Some((row, at_upper)) => {
                    if at_upper {
                        self.flip_basic(row);
                    }
                    self.pivot(row, entering);
                }
            }
        }
        false
    }

    fn entering(&self, first: bool) -> Option<usize> {
        let mut best = (-EPSILON * 10.0, None);
        for j in 0..self.columns {
            if self.cost[j] < best.0 && !self.is_basic[j] && self.upper[j] > 0.0 {
                if first {
                    return Some(j);
                }
                best = (self.cost[j], Some(j));
            }
        }
        best.1
    }

    /// How far the entering column may go, and the row that stops it with whether at its basic column's upper bound
    /// (`None`: its own upper bound does).
    fn leaving(&self, entering: usize) -> (f64, Option<(usize, bool)>) {
        let mut step = self.upper[entering];
        let mut found: Option<(usize, bool)> = None;
        for i in 0..self.rhs.len() {
            let a = self.entries[i * self.columns + entering];
            let (limit, at_upper) = if a > EPSILON {
                ((self.rhs[i] / a).max(0.0), false)
            } else if a < -EPSILON && self.upper[self.basis[i]].is_finite() {
                (((self.upper[self.basis[i]] - self.rhs[i]) / -a).max(0.0), true)
            } else {
                continue;
            };
            let better = limit < step - 1e-12
                || (limit <= step + 1e-12 && found.is_some_and(|(r, _)| self.basis[i] < self.basis[r]));
            if better {
                step = limit.min(step);
                found = Some((i, at_upper));
            }
        }
        (step, found)
    }

    /// Moves a column that is not basic from one of its bounds to the other.
    fn flip(&mut self, j: usize) {
        let upper = self.upper[j];
        self.objective += self.cost[j] * upper;
        for i in 0..self.rhs.len() {
            let entry = &mut self.entries[i * self.columns + j];
            self.rhs[i] -= *entry * upper;
            *entry = -*entry;
        }
        self.cost[j] = -self.cost[j];
        self.flipped[j] = !self.flipped[j];
    }

    /// Writes a row's basic column as its distance from its upper bound.
    fn flip_basic(&mut self, row: usize) {
        let basic = self.basis[row];
        let begin = row * self.columns;
        for entry in &mut self.entries[begin..begin + self.columns] {
            *entry = -*entry;
        }
        self.entries[begin + basic] = 1.0;
        self.rhs[row] = self.upper[basic] - self.rhs[row];
        self.flipped[basic] = !self.flipped[basic];
    }

    fn pivot(&mut self, row: usize, entering: usize) {
        let columns = self.columns;
        let begin = row * columns;
        let scale = 1.0 / self.entries[begin + entering];
        for entry in &mut self.entries[begin..begin + columns] {
            *entry *= scale;
        }
        self.rhs[row] = (self.rhs[row] * scale).max(0.0);
        let (before, rest) = self.entries.split_at_mut(begin);
        let (pivot, after) = rest.split_at_mut(columns);
        let value = self.rhs[row];
        for (i, other) in before.chunks_exact_mut(columns).chain(after.chunks_exact_mut(columns)).enumerate()
        {
            let i = if i < row { i } else { i + 1 };
            let a = other[entering];
            if a.abs() > 1e-13 {
                other.iter_mut().zip(pivot.iter()).for_each(|(x, y)| *x -= a * y);
                self.rhs[i] -= a * value;
                if self.rhs[i].abs() < 1e-12 {
                    self.rhs[i] = 0.0;
                }
            }
            other[entering] = 0.0;
        }
        let a = self.cost[entering];
        self.cost.iter_mut().zip(pivot.iter()).for_each(|(x, y)| *x -= a * y);
        self.cost[entering] = 0.0;
        self.objective += a * value;
        self.is_basic[self.basis[row]] = false;
        self.is_basic[entering] = true;
        self.basis[row] = entering;
    }

    /// Writes the value of each column.
    pub(crate) fn values(&self, into: &mut Vec<f64>) {
        into.clear();
        into.resize(self.columns, 0.0);
        for (i, basic) in self.basis.iter().enumerate() {
            into[*basic] = self.rhs[i];
        }
        for (j, x) in into.iter_mut().enumerate() {
            if self.flipped[j] {
                *x = self.upper[j] - *x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::solver::{BranchAndBound, Comparison, Program, Solver};
    use proptest::prelude::*;

    /// The program of the tableau: rows `≤` with a slack each.
    fn both(costs: &[f64], uppers: &[f64], rows: &[(Vec<f64>, f64)]) -> (f64, f64) {
        let n = costs.len();
        let mut tableau = Tableau::default();
        tableau.clear(n + rows.len());
        let mut program = Program::default();
        for (j, (cost, upper)) in costs.iter().zip(uppers).enumerate() {
            tableau.column(j, *cost, *upper);
            program.real(*cost, 0.0, *upper);
        }
        for (i, (terms, rhs)) in rows.iter().enumerate() {
            let terms: Vec<(usize, f64)> = terms.iter().copied().enumerate().collect();
            tableau.row(terms.clone(), n + i, *rhs);
            program.row(terms, Comparison::AtMost, *rhs);
        }
        assert!(tableau.minimise());
        let mut values = Vec::new();
        tableau.values(&mut values);
        assert!(program.is_feasible(&values[..n], 1e-6), "{values:?}");
        assert!((program.objective(&values[..n]) - tableau.objective()).abs() < 1e-6);
        (tableau.objective(), BranchAndBound.relax(&program).unwrap().objective)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn agrees_with_the_interior_point_method(
            costs in prop::collection::vec(-9..9_i32, 6),
            uppers in prop::collection::vec(0..5_i32, 6),
            rows in prop::collection::vec((prop::collection::vec(-4..5_i32, 6), 0..20_i32), 1..6),
        ) {
            let real = |v: &[i32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
            let rows: Vec<_> = rows.iter().map(|(a, b)| (real(a), f64::from(*b))).collect();
            let (ours, theirs) = both(&real(&costs), &real(&uppers), &rows);
            prop_assert!((ours - theirs).abs() < 1e-4 * (1.0 + theirs.abs()), "{ours} against {theirs}");
        }
    }

    #[test]
    fn an_objective_without_bound_is_said_not_looped_over() {
        let mut tableau = Tableau::default();
        tableau.clear(2);
        tableau.column(0, -1.0, f64::INFINITY);
        tableau.row([(0, -1.0)], 1, 1.0);
        assert!(!tableau.minimise());
    }
}
