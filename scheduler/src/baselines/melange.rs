//! Mélange's integer program, a model at a time.
//!
//! Griggs et al., "Mélange: Cost Efficient Large Language Model Serving by Exploiting GPU Heterogeneity" (arXiv 2404.14527), §5: demand
//! is cut into buckets and each bucket into `S` equal slices; a slice goes to one instance type; with `T[b,g]` the highest rate of
//! bucket `b` on type `g`, `Σ_s x[s,g]·(d_b/S)/T[b,g] ≤ n_g`; least `Σ c_g·n_g`. Slices of one bucket are alike, so they are
//! counted here (`y[b,g] ∈ 0…S`) rather than told apart: the same program without its symmetry.
//!
//! An instance type is one fixed parallelism of a GPU kind there; here every candidate is a type, which gives it more to choose from.

use super::{Wish, clip};
use crate::plan::parallel;
use crate::plan::program::{Fleet, PoolProblem, Problem};
use crate::plan::solver::{BranchAndBound, Comparison, Limits, Program, Solver};

/// Branch-and-bound nodes a pool.
const NODES: u64 = 2_000;

/// Mélange a pool, each with endless accelerators, then cut down to what there is. One slice a bucket, as in its example.
pub fn melange(problem: &Problem<'_>) -> Fleet {
    clip(problem, &wishes(problem, 1))
}

/// AIBrix's GPU optimizer: the same program with four slices a bucket; the rate is the greater of the window's mean and the
/// current one, which for a forecast is the forecast. Its own way with a type that misses a bucket's objective (it counts as a load
/// of a million) comes to the same as leaving that type out wherever another can serve the bucket, which is done here. Without
/// records it asks for the fewest replicas, as here.
pub fn aibrix(problem: &Problem<'_>) -> Fleet {
    clip(problem, &wishes(problem, 4))
}

fn wishes(problem: &Problem<'_>, slices: u32) -> Vec<Wish> {
    parallel::map(problem.pools.len(), |p| wish(&problem.pools[p], slices))
}

/// What one pool wants, were there no end of accelerators. A bucket that no type serves is left out.
pub(super) fn wish(pool: &PoolProblem<'_>, slices: u32) -> Wish {
    let types = &pool.set.candidates;
    let mut program = Program::default();
    let most = f64::from(pool.ceiling);
    let counts: Vec<usize> =
        types.iter().map(|t| program.integer(t.usd_per_hour.max(1e-6), 0.0, most)).collect();
    let mut loads: Vec<Vec<(usize, f64)>> = vec![Vec::new(); types.len()];
    for (b, bucket) in pool.set.classes.iter().enumerate().filter(|(_, c)| c.rps > 0.0) {
        let mut row = Vec::new();
        for (g, t) in types.iter().enumerate().filter(|(_, t)| t.rates[b] > 0.0) {
            let y = program.integer(0.0, 0.0, f64::from(slices));
            row.push((y, 1.0));
            loads[g].push((y, bucket.rps * pool.headroom / f64::from(slices) / t.rates[b]));
        }
        if !row.is_empty() {
            program.row(row, Comparison::Equal, f64::from(slices));
        }
    }
    for (g, mut row) in loads.into_iter().enumerate().filter(|(_, row)| !row.is_empty()) {
        row.push((counts[g], -1.0));
        program.row(row, Comparison::AtMost, 0.0);
    }
    let floor = counts.iter().map(|n| (*n, 1.0)).collect();
    program.row(floor, Comparison::AtLeast, f64::from(pool.floor));
    let limits = Limits { nodes: NODES, gap: 1e-4, seconds: 20.0 };
    let Ok(solution) = BranchAndBound.solve(&program, &limits, None) else { return Wish::new() };
    let of = |(g, n): (usize, &usize)| (g, solution.values[*n].round().max(0.0) as u32);
    counts.iter().enumerate().map(of).filter(|(_, n)| *n > 0).collect()
}
