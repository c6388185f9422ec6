//! How fleets are bought without a planner.

use std::collections::BTreeSet;

use super::{Wish, cheapest_alone, clip, judge};
use crate::plan::program::{Fleet, Problem};

/// One kind of accelerator for all pools: each takes the shape of that kind that serves it alone for least, and the kind is the
/// one with which most requests are served, then the one that costs least.
pub fn one_kind_for_all(problem: &Problem<'_>) -> Fleet {
    let candidates = problem.pools.iter().flat_map(|p| &p.set.candidates);
    let kinds: BTreeSet<&str> = candidates.map(|c| c.shape.accelerator.as_str()).collect();
    let mut best: Option<(f64, f64, Fleet)> = None;
    for kind in kinds {
        let fleet = clip(
            problem,
            &wishes(problem, &|k, p| problem.pools[p].set.candidates[k].shape.accelerator == kind),
        );
        let verdict = judge(problem, &fleet);
        let (served, usd) = (verdict.attained_rps, verdict.usd_per_hour);
        let better =
            |(s, u, _): &(f64, f64, Fleet)| served > s + 1e-6 || (served > s - 1e-6 && usd < u - 1e-9);
        if best.as_ref().is_none_or(better) {
            best = Some((served, usd, fleet));
        }
    }
    best.map_or_else(|| vec![Default::default(); problem.pools.len()], |(_, _, fleet)| fleet)
}

/// One kind of accelerator for each pool: the shape that serves it alone for least, whatever others take.
pub fn one_kind_per_pool(problem: &Problem<'_>) -> Fleet {
    clip(problem, &wishes(problem, &|_, _| true))
}

fn wishes(problem: &Problem<'_>, may: &dyn Fn(usize, usize) -> bool) -> Vec<Wish> {
    let wish = |p: usize| cheapest_alone(problem, p, &|k| may(k, p)).map(|(k, n, _)| (k, n));
    (0..problem.pools.len()).map(|p| wish(p).into_iter().collect()).collect()
}
