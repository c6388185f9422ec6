//! HiGHS (through `good_lp`), for those who build with the feature `highs`: it needs CMake, a C++ compiler and libclang, and minutes.
//!
//! [`SecondOpinion`] asks it where the default solver could not prove its answer; tests put both to the same programs.

use good_lp::solvers::highs::highs;
use good_lp::{
    DualValues as _, ResolutionError, Solution as _, SolutionStatus, SolutionWithDual as _, SolverModel as _,
    WithInitialSolution as _,
};

use super::solver::{
    BranchAndBound, Limits, Program, Relaxed, Solution, SolveError, Solver, columns, contained, rows,
};

/// Absolute gap at which HiGHS stops besides the relative one: its own default, stated because bounds are made of it.
const ABSOLUTE_GAP: f64 = 1e-6;

/// HiGHS, on one thread and with a fixed seed: the same program always gives the same answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Highs;

/// What HiGHS answered.
struct Answered {
    values: Vec<f64>,
    status: SolutionStatus,
    prices: Vec<f64>,
}

fn ask(
    program: &Program,
    integers: bool,
    limits: Option<&Limits>,
    start: Option<&[f64]>,
) -> Result<Answered, SolveError> {
    let (variables, ids, objective) = columns(program, integers)?;
    let mut model = variables.minimise(objective).using(highs).set_threads(1);
    if let Some(limits) = limits {
        model = model
            .set_option("mip_rel_gap", limits.gap)
            .set_option("mip_abs_gap", ABSOLUTE_GAP)
            .set_option("mip_max_nodes", i32::try_from(limits.nodes).unwrap_or(i32::MAX))
            .set_time_limit(limits.seconds);
    }
    if let Some(start) = start {
        model = model.with_initial_solution(ids.iter().copied().zip(start.iter().copied()));
    }
    let references = rows(program, &ids, &mut model);
    let mut solution = contained(|| model.solve())?.map_err(|e| match e {
        ResolutionError::Infeasible => SolveError::Infeasible,
        ResolutionError::Other("NoSolutionFound") => SolveError::Limit,
        other => SolveError::Failed(other.to_string()),
    })?;
    let status = solution.status();
    let values = ids.iter().map(|id| solution.value(*id)).collect();
    let duals = solution.compute_dual();
    Ok(Answered { values, status, prices: references.into_iter().map(|r| duals.dual(r)).collect() })
}

impl Solver for Highs {
    fn solve(
        &self,
        program: &Program,
        limits: &Limits,
        start: Option<&[f64]>,
    ) -> Result<Solution, SolveError> {
        let answered = ask(program, true, Some(limits), start)?;
        let values = program.tidied(answered.values)?;
        let objective = program.objective(&values);
        // It does not hand out its bound: what it calls optimal is so within the gaps that it was given.
        let bound = match answered.status {
            SolutionStatus::Optimal | SolutionStatus::GapLimit => {
                objective - (limits.gap * objective.abs()).max(ABSOLUTE_GAP)
            }
            SolutionStatus::TimeLimit => self.relax(program).map_or(f64::NEG_INFINITY, |r| r.objective),
        };
        Ok(Solution { values, objective, bound: bound.min(objective) })
    }

    fn relax(&self, program: &Program) -> Result<Relaxed, SolveError> {
        let Answered { values, prices, .. } = ask(program, false, None, None)?;
        let objective = program.objective(&values);
        Ok(Relaxed { values, objective, prices })
    }
}

/// The default solver, and HiGHS where that leaves a gap: the better answer of the two, and the better bound.
#[derive(Debug, Clone, Copy, Default)]
pub struct SecondOpinion;

impl Solver for SecondOpinion {
    fn solve(
        &self,
        program: &Program,
        limits: &Limits,
        start: Option<&[f64]>,
    ) -> Result<Solution, SolveError> {
        let first = BranchAndBound.solve(program, limits, start);
        let proved = |s: &Solution| s.objective - s.bound <= limits.gap * s.objective.abs() + ABSOLUTE_GAP;
        if first.as_ref().is_ok_and(proved) || first == Err(SolveError::Infeasible) {
            return first;
        }
        let from = first.as_ref().ok().map(|s| s.values.as_slice()).or(start);
        match (first.clone(), Highs.solve(program, limits, from)) {
            (Ok(first), Ok(second)) => {
                let bound = first.bound.max(second.bound);
                let better = if second.objective < first.objective { second } else { first };
                Ok(Solution { bound: bound.min(better.objective), ..better })
            }
            (Err(_), Ok(second)) => Ok(second),
            (first, Err(_)) => first,
        }
    }

    fn relax(&self, program: &Program) -> Result<Relaxed, SolveError> {
        BranchAndBound.relax(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::solver::{Comparison, InteriorPoint};
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { nodes: 100_000, gap: 0.0, seconds: 30.0 };

    /// A random covering program as pools make them: kinds of replica by request classes, with room in rows that all share.
    fn covering(kinds: std::ops::Range<usize>, most: u32) -> impl Strategy<Value = Program> {
        let classes = 1..4_usize;
        (kinds, classes).prop_flat_map(move |(kinds, classes)| {
            (
                prop::collection::vec(1..400_u32, kinds),
                prop::collection::vec(prop::collection::vec(0..60_u32, classes), kinds),
                prop::collection::vec(1..80_u32, classes),
                prop::collection::vec((1..4_u32, 1..=most), kinds),
                1..40_u32,
            )
                .prop_map(|(costs, rates, demand, limits, room)| {
                    let mut p = Program::default();
                    let counts: Vec<usize> = costs
                        .iter()
                        .zip(&limits)
                        .map(|(c, (_, most))| p.integer(f64::from(*c) / 100.0, 0.0, f64::from(*most)))
                        .collect();
                    let mut load: Vec<Vec<(usize, f64)>> = counts.iter().map(|v| vec![(*v, -1.0)]).collect();
                    for (c, rps) in demand.iter().enumerate() {
                        // What is unserved costs a lot, so that there always is an answer.
                        let mut served = vec![(p.real(1e3, 0.0, 1.0), 1.0)];
                        for (k, of) in rates.iter().enumerate().filter(|(_, of)| of[c] > 0) {
                            let flow = p.real(0.0, 0.0, 1.0);
                            served.push((flow, 1.0));
                            load[k].push((flow, f64::from(*rps) / f64::from(of[c])));
                        }
                        p.row(served, Comparison::Equal, 1.0);
                    }
                    for terms in load {
                        p.row(terms, Comparison::AtMost, 0.0);
                    }
                    let takes = counts.iter().zip(&limits).map(|(v, (each, _))| (*v, f64::from(*each)));
                    p.row(takes.collect(), Comparison::AtMost, f64::from(room));
                    p
                })
        })
    }

    /// Every choice of the whole variables, each with its linear rest solved: no search that could miss one.
    fn best_of_all(p: &Program) -> Option<f64> {
        let whole: Vec<usize> = (0..p.variables.len()).filter(|v| p.variables[*v].integer).collect();
        let mut at: Vec<f64> = whole.iter().map(|v| p.variables[*v].lower).collect();
        let mut best: Option<f64> = None;
        loop {
            let mut fixed = p.clone();
            for (v, x) in whole.iter().zip(&at) {
                (fixed.variables[*v].lower, fixed.variables[*v].upper) = (*x, *x);
            }
            if let Ok(found) = InteriorPoint.relax(&fixed) {
                best = Some(best.map_or(found.objective, |b| b.min(found.objective)));
            }
            let Some(next) = (0..at.len()).find(|i| at[*i] < p.variables[whole[*i]].upper) else {
                return best;
            };
            at[next] += 1.0;
            at[..next].iter_mut().zip(&whole).for_each(|(x, v)| *x = p.variables[*v].lower);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn both_solvers_agree_on_random_programs(p in covering(2..6, 8)) {
            let ours = BranchAndBound.solve(&p, &LIMITS, None).unwrap();
            let theirs = Highs.solve(&p, &LIMITS, None).unwrap();
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-4 * (1.0 + a.abs());
            prop_assert!(near(ours.objective, theirs.objective), "{} or {}", ours.objective, theirs.objective);
            prop_assert!(ours.bound <= theirs.objective + 1e-4 && theirs.bound <= ours.objective + 1e-4);
            prop_assert_eq!(&theirs, &Highs.solve(&p, &LIMITS, None).unwrap(), "the same program, the same answer");
            let (a, b) = (BranchAndBound.relax(&p).unwrap(), Highs.relax(&p).unwrap());
            prop_assert!(near(a.objective, b.objective), "relaxed: {} or {}", a.objective, b.objective);
        }

        #[test]
        fn both_find_the_best_of_all_whole_points(p in covering(1..4, 3)) {
            let best = best_of_all(&p).unwrap();
            for (name, s) in [("default", BranchAndBound.solve(&p, &LIMITS, None)), ("HiGHS", Highs.solve(&p, &LIMITS, None))] {
                let s = s.unwrap();
                let tolerance = 1e-4 * (1.0 + best.abs());
                prop_assert!((s.objective - best).abs() <= tolerance, "{name}: {} instead of {best}", s.objective);
                prop_assert!(s.bound <= best + tolerance, "{name}: the bound {} is above {best}", s.bound);
            }
        }

        /// Where the default solver is stopped at once, the second opinion closes what is left.
        #[test]
        fn a_second_opinion_is_never_worse_than_the_first(p in covering(2..6, 8)) {
            let hurried = Limits { nodes: 1, ..LIMITS };
            let both = SecondOpinion.solve(&p, &hurried, None).unwrap();
            if let Ok(first) = BranchAndBound.solve(&p, &hurried, None) {
                prop_assert!(both.objective <= first.objective + 1e-9 && both.bound >= first.bound - 1e-9);
            }
            let best = BranchAndBound.solve(&p, &LIMITS, None).unwrap();
            prop_assert!(both.bound <= best.objective + 1e-4 && both.objective >= best.bound - 1e-4);
        }
    }

    #[test]
    fn contradictions_are_infeasible() {
        let mut p = Program::default();
        let v = p.integer(1.0, 0.0, 10.0);
        p.row(vec![(v, 1.0)], Comparison::AtLeast, 11.0);
        assert_eq!(Highs.solve(&p, &LIMITS, None), Err(SolveError::Infeasible));
        assert_eq!(SecondOpinion.solve(&p, &LIMITS, None), Err(SolveError::Infeasible));
    }

    #[test]
    fn prices_have_the_same_sign_as_the_default_solvers() {
        let mut p = Program::default();
        let (a, b) = (p.real(3.0, 0.0, 100.0), p.real(2.0, 0.0, 100.0));
        p.row(vec![(a, 2.0), (b, 1.0)], Comparison::AtLeast, 5.0);
        p.row(vec![(a, 1.0)], Comparison::AtMost, 2.0);
        let (ours, theirs) = (BranchAndBound.relax(&p).unwrap(), Highs.relax(&p).unwrap());
        for (x, y) in ours.prices.iter().zip(&theirs.prices) {
            assert!((x - y).abs() < 1e-4, "{:?} or {:?}", ours.prices, theirs.prices);
        }
    }
}
