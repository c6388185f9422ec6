//! Linear and mixed-integer programs, and the solvers that answer them.
//!
//! The planner writes a [`Program`]; a [`Solver`] answers it. The default backends are pure Rust: [`BranchAndBound`]
//! (microlp: dual simplex inside branch and bound, stopped by a *node* limit so that the same program always gives
//! the same answer) and [`InteriorPoint`] (Clarabel through `good_lp`: linear relaxations with shadow prices). With the feature `highs`
//! there is HiGHS besides.

use std::time::Duration;

use good_lp::constraint::ConstraintReference;
use good_lp::solvers::clarabel::clarabel;
use good_lp::variable::ProblemVariables;
use good_lp::{Expression, Solution as _, SolutionWithDual as _, SolverModel, variable, variables};
use microlp::{ComparisonOp, OptimizationDirection, Problem, SolveOptions, SolveOutcome};

/// Index of a variable within its [`Program`].
pub type VarId = usize;
/// Index of a row within its [`Program`].
pub type RowId = usize;

/// One decision variable.
#[derive(Debug, Clone, PartialEq)]
pub struct Variable {
    /// Objective coefficient (the program minimises).
    pub cost: f64,
    /// Lower bound.
    pub lower: f64,
    /// Upper bound, possibly infinite.
    pub upper: f64,
    /// Whether it must be whole.
    pub integer: bool,
}

/// How a row's left side compares with its right side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// At most.
    AtMost,
    /// At least.
    AtLeast,
    /// Equal.
    Equal,
}

/// One linear constraint.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Terms: each variable at most once.
    pub terms: Vec<(VarId, f64)>,
    /// Comparison.
    pub comparison: Comparison,
    /// Right side.
    pub rhs: f64,
}

/// A program to minimise.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Program {
    /// Variables.
    pub variables: Vec<Variable>,
    /// Rows.
    pub rows: Vec<Row>,
}

impl Program {
    /// Adds a real variable.
    pub fn real(&mut self, cost: f64, lower: f64, upper: f64) -> VarId {
        self.variables.push(Variable { cost, lower, upper, integer: false });
        self.variables.len() - 1
    }

    /// Adds a whole variable.
    pub fn integer(&mut self, cost: f64, lower: f64, upper: f64) -> VarId {
        self.variables.push(Variable { cost, lower, upper, integer: true });
        self.variables.len() - 1
    }

    /// Adds a row.
    pub fn row(&mut self, terms: Vec<(VarId, f64)>, comparison: Comparison, rhs: f64) -> RowId {
        self.rows.push(Row { terms, comparison, rhs });
        self.rows.len() - 1
    }

    /// Objective at a point.
    pub fn objective(&self, values: &[f64]) -> f64 {
        self.variables.iter().zip(values).map(|(v, x)| v.cost * x).sum()
    }

    /// A solver's values with whole numbers whole and the others within their bounds.
    ///
    /// # Errors
    /// [`SolveError::Failed`] if they do not meet the rows then.
    pub(super) fn tidied(&self, values: impl IntoIterator<Item = f64>) -> Result<Vec<f64>, SolveError> {
        let tidy = |(v, x): (&Variable, f64)| if v.integer { x.round() } else { x.clamp(v.lower, v.upper) };
        let values: Vec<f64> = self.variables.iter().zip(values).map(tidy).collect();
        if self.is_feasible(&values, 1e-5) {
            Ok(values)
        } else {
            Err(SolveError::Failed("its answer does not meet the constraints".to_owned()))
        }
    }

    /// Whether a point meets every bound and row within `tolerance` (relative to the size of the row).
    pub fn is_feasible(&self, values: &[f64], tolerance: f64) -> bool {
        values.len() == self.variables.len()
            && self.variables.iter().zip(values).all(|(v, x)| {
                x.is_finite()
                    && *x >= v.lower - tolerance
                    && *x <= v.upper + tolerance
                    && (!v.integer || (x - x.round()).abs() <= tolerance)
            })
            && self.rows.iter().all(|r| {
                let left: f64 = r.terms.iter().map(|(v, a)| a * values[*v]).sum();
                let slack = tolerance * (1.0 + r.rhs.abs());
                match r.comparison {
                    Comparison::AtMost => left <= r.rhs + slack,
                    Comparison::AtLeast => left >= r.rhs - slack,
                    Comparison::Equal => (left - r.rhs).abs() <= slack,
                }
            })
    }
}

/// Limits of one solve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Branch-and-bound nodes: the limit that keeps answers deterministic.
    pub nodes: u64,
    /// Relative gap at which the search may stop.
    pub gap: f64,
    /// Wall-clock safety net, seconds; meant never to be reached before `nodes`.
    pub seconds: f64,
}

/// A feasible answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Solution {
    /// Value of each variable; whole variables are exactly whole.
    pub values: Vec<f64>,
    /// Objective.
    pub objective: f64,
    /// Proved lower bound on the objective.
    pub bound: f64,
}

/// The answer to a linear relaxation.
#[derive(Debug, Clone, PartialEq)]
pub struct Relaxed {
    /// Value of each variable.
    pub values: Vec<f64>,
    /// Objective.
    pub objective: f64,
    /// Shadow price of each row: change of the objective by one more unit of the row's right side.
    pub prices: Vec<f64>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SolveError {
    /// No point meets all rows.
    #[error("no point meets all constraints")]
    Infeasible,
    /// Limits were reached before any feasible point was found.
    #[error("no feasible point was found within the limits")]
    Limit,
    /// The solver failed.
    #[error("the solver failed: {0}")]
    Failed(String),
}

/// Answers programs. Implementations are deterministic as long as the wall-clock safety net is not reached.
pub trait Solver: Send + Sync {
    /// Minimises a mixed-integer program, starting from `start` where that is feasible.
    ///
    /// # Errors
    /// [`SolveError`] if there is no feasible point, none was found, or the solver failed.
    fn solve(
        &self,
        program: &Program,
        limits: &Limits,
        start: Option<&[f64]>,
    ) -> Result<Solution, SolveError>;

    /// Solves the linear relaxation and prices its rows.
    ///
    /// # Errors
    /// As for [`Solver::solve`].
    fn relax(&self, program: &Program) -> Result<Relaxed, SolveError>;
}

/// What a solver library answers, or that it failed: on figures that are too far apart they may panic, which must cost one answer
/// and not the planner.
pub(super) fn contained<T>(solve: impl FnOnce() -> T) -> Result<T, SolveError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(solve))
        .map_err(|_| SolveError::Failed("it panicked; the program's figures may be too far apart".to_owned()))
}

/// The default solver: microlp's branch and bound for whole variables, Clarabel for relaxations and prices.
#[derive(Debug, Clone, Copy, Default)]
pub struct BranchAndBound;

impl Solver for BranchAndBound {
    fn solve(
        &self,
        program: &Program,
        limits: &Limits,
        start: Option<&[f64]>,
    ) -> Result<Solution, SolveError> {
        let mut problem = Problem::new(OptimizationDirection::Minimize);
        let mut vars = Vec::with_capacity(program.variables.len());
        for v in &program.variables {
            if v.lower > v.upper {
                return Err(SolveError::Infeasible);
            }
            vars.push(if v.integer {
                let bound = |x: f64| x.clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32;
                problem.add_integer_var(v.cost, (bound(v.lower.ceil()), bound(v.upper.floor())))
            } else {
                problem.add_var(v.cost, (v.lower, v.upper))
            });
        }
        for r in &program.rows {
            let op = match r.comparison {
                Comparison::AtMost => ComparisonOp::Le,
                Comparison::AtLeast => ComparisonOp::Ge,
                Comparison::Equal => ComparisonOp::Eq,
            };
            let terms: Vec<_> =
                r.terms.iter().filter(|(_, a)| *a != 0.0).map(|(v, a)| (vars[*v], *a)).collect();
            if terms.is_empty() {
                let holds = match r.comparison {
                    Comparison::AtMost => r.rhs >= -1e-9,
                    Comparison::AtLeast => r.rhs <= 1e-9,
                    Comparison::Equal => r.rhs.abs() <= 1e-9,
                };
                if !holds {
                    return Err(SolveError::Infeasible);
                }
                continue;
            }
            problem.add_constraint(terms, op, r.rhs);
        }
        let mut options = SolveOptions::default();
        options.node_limit = Some(limits.nodes);
        options.mip_gap = limits.gap;
        options.time_limit = Duration::try_from_secs_f64(limits.seconds).ok();
        options.warm_start = start.map(|s| vars.iter().copied().zip(s.iter().copied()).collect());
        let outcome = contained(|| problem.solve_with(options))?.map_err(|e| match e {
            microlp::Error::Infeasible => SolveError::Infeasible,
            other => SolveError::Failed(other.to_string()),
        })?;
        let solution = match outcome {
            SolveOutcome::Solution(s) => s,
            SolveOutcome::Interrupted(_) => return Err(SolveError::Limit),
        };
        let values = program.tidied(vars.iter().map(|id| solution.var_value(*id)))?;
        let objective = program.objective(&values);
        let stats = solution.stats();
        let bound =
            if stats.gap == Some(0.0) { objective } else { stats.best_bound.unwrap_or(f64::NEG_INFINITY) };
        Ok(Solution { values, objective, bound: bound.min(objective) })
    }

    fn relax(&self, program: &Program) -> Result<Relaxed, SolveError> {
        InteriorPoint.relax(program)
    }
}

/// A program's variables in `good_lp`'s terms, whole ones as such where asked, with its objective.
///
/// # Errors
/// [`SolveError::Infeasible`] where a variable's bounds contradict each other.
pub(super) fn columns(
    program: &Program,
    integers: bool,
) -> Result<(ProblemVariables, Vec<good_lp::Variable>, Expression), SolveError> {
    let mut vars: ProblemVariables = variables!();
    let mut ids = Vec::with_capacity(program.variables.len());
    for v in &program.variables {
        if v.lower > v.upper {
            return Err(SolveError::Infeasible);
        }
        let mut definition = variable().min(v.lower);
        if v.upper.is_finite() {
            definition = definition.max(v.upper);
        }
        ids.push(vars.add(if integers && v.integer { definition.integer() } else { definition }));
    }
    let mut objective = Expression::with_capacity(ids.len());
    for (v, id) in program.variables.iter().zip(&ids) {
        objective.add_mul(v.cost, id);
    }
    Ok((vars, ids, objective))
}

/// Adds a program's rows to a model of its variables.
pub(super) fn rows<M: SolverModel>(
    program: &Program,
    ids: &[good_lp::Variable],
    model: &mut M,
) -> Vec<ConstraintReference> {
    let mut references = Vec::with_capacity(program.rows.len());
    for r in &program.rows {
        let mut left = Expression::with_capacity(r.terms.len());
        for (v, a) in &r.terms {
            left.add_mul(*a, ids[*v]);
        }
        references.push(model.add_constraint(match r.comparison {
            Comparison::AtMost => left.leq(r.rhs),
            Comparison::AtLeast => left.geq(r.rhs),
            Comparison::Equal => left.eq(r.rhs),
        }));
    }
    references
}

/// Clarabel through `good_lp`: linear relaxations with shadow prices.
#[derive(Debug, Clone, Copy, Default)]
pub struct InteriorPoint;

impl InteriorPoint {
    /// Solves the linear relaxation and prices its rows.
    ///
    /// # Errors
    /// [`SolveError`] if there is no feasible point or the solver fails.
    pub fn relax(self, program: &Program) -> Result<Relaxed, SolveError> {
        let (variables, ids, objective) = columns(program, false)?;
        let mut model = variables.minimise(objective).using(clarabel);
        let references = rows(program, &ids, &mut model);
        let mut solution = contained(|| model.solve())?.map_err(|e| match e {
            good_lp::ResolutionError::Infeasible => SolveError::Infeasible,
            other => SolveError::Failed(other.to_string()),
        })?;
        let values: Vec<f64> = ids.iter().map(|id| solution.value(*id)).collect();
        let dual = solution.compute_dual();
        let prices = references.into_iter().map(|r| good_lp::DualValues::dual(&dual, r)).collect();
        let objective = program.objective(&values);
        Ok(Relaxed { values, objective, prices })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { nodes: 10_000, gap: 0.0, seconds: 30.0 };

    fn covering() -> Program {
        // min 3a + 2b, 2a + b ≥ 5, a ≤ 2 (as a row), a and b whole: (2, 1) at 8.
        let mut p = Program::default();
        let a = p.integer(3.0, 0.0, 100.0);
        let b = p.integer(2.0, 0.0, 100.0);
        p.row(vec![(a, 2.0), (b, 1.0)], Comparison::AtLeast, 5.0);
        p.row(vec![(a, 1.0)], Comparison::AtMost, 2.0);
        p
    }

    #[test]
    fn solves_whole_numbers_and_proves_it() {
        let s = BranchAndBound.solve(&covering(), &LIMITS, None).unwrap();
        assert_eq!(s.values, vec![2.0, 1.0]);
        assert!((s.objective - 8.0).abs() < 1e-9 && (s.bound - 8.0).abs() < 1e-6);
    }

    #[test]
    fn prices_are_the_change_of_the_objective_by_a_unit_of_the_right_side() {
        let r = BranchAndBound.relax(&covering()).unwrap();
        assert!((r.objective - 8.0).abs() < 1e-5, "{}", r.objective);
        // One more unit of cover costs 2 (b); one more unit of `a ≤ 2` saves 2·2 − 3 = 1.
        assert!((r.prices[0] - 2.0).abs() < 1e-4 && (r.prices[1] + 1.0).abs() < 1e-4, "{:?}", r.prices);
    }

    #[test]
    fn a_library_that_panics_costs_an_answer_and_not_the_planner() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let answer = contained(|| -> u32 { panic!("numerical trouble") });
        std::panic::set_hook(hook);
        assert!(matches!(answer, Err(SolveError::Failed(why)) if why.starts_with("it panicked")));
        assert_eq!(contained(|| 7), Ok(7));
    }

    #[test]
    fn contradictions_are_infeasible_not_panics() {
        let mut p = covering();
        p.row(vec![(0, 1.0), (1, 1.0)], Comparison::AtMost, 0.0);
        assert_eq!(BranchAndBound.solve(&p, &LIMITS, None), Err(SolveError::Infeasible));
        let mut q = Program::default();
        q.integer(1.0, 3.0, 2.0);
        assert_eq!(BranchAndBound.solve(&q, &LIMITS, None), Err(SolveError::Infeasible));
        assert_eq!(BranchAndBound.relax(&q), Err(SolveError::Infeasible));
    }
}
