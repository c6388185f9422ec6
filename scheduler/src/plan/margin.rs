//! Headroom that is worth its price: how much more than its demand a pool's fleet should carry, since neither the forecast nor
//! the engine model is exact.
//!
//! Let `X` be what comes, in units of what is planned for: demand and delays together, log-normal with a spread that joins
//! the forecast's and the model's (independent, so variances add). A fleet that carries `κ` times the plan loses the share
//! `E[(X − κ)⁺]` of its requests, and a lost request costs `price` times what serving it costs at least. Of a few levels of headroom each pool takes
//! that of least cost plus expected loss; that is the newsvendor's rule (buy until one more unit costs what it is expected to
//! save: `P(X > κ) = 1/price` where capacity comes in any amount), applied to whole fleets, at the prices of scarce rows of
//! the plan in force and with the price of change. Whole fleets often carry more than was asked; that headroom is free and is counted first.
//!
//! Where not everything can be served, headroom is the first to go.

use std::sync::Arc;

use super::candidates::CandidateSet;
use super::greedy::fill;
use super::options::{Counts, Options, Prices, Service};
use super::parallel;
use super::program::{PoolProblem, Problem};
use super::solver::Limits;

/// Levels of headroom that are compared, besides none.
const LEVELS: [f64; 4] = [1.1, 1.2, 1.35, 1.5];
/// Standard normal quantile of 90 %: errors are stated as what 90 % stay within.
const Z90: f64 = 1.281_551_565_544_600_4;
/// By how much a fleet must be better than what runs, relative, to be asked for.
const HARDLY: f64 = 0.03;
/// Halvings when a fleet's capacity is searched for.
const HALVINGS: usize = 6;

/// Spread (standard deviation of the logarithm) of a quantity that stays within `1 + error` of what was said for 90 % of the time.
pub fn spread(relative_error: f64) -> f64 {
    let error = if relative_error.is_finite() { relative_error.clamp(0.0, 10.0) } else { 0.25 };
    error.ln_1p() / Z90
}

/// `E[(X − k)⁺]` of a log-normal `X` with median 1 and this spread: Black's formula.
pub fn expected_excess(k: f64, spread: f64) -> f64 {
    if spread <= 1e-9 {
        return (1.0 - k).max(0.0);
    }
    if k <= 0.0 {
        return (0.5 * spread * spread).exp() - k;
    }
    let d = -k.ln() / spread;
    ((0.5 * spread * spread).exp() * normal_cdf(d + spread) - k * normal_cdf(d)).max(0.0)
}

/// Standard normal distribution, by Abramowitz and Stegun 7.1.26 (error below 2·10⁻⁷).
fn normal_cdf(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let series = 1.061_405_429_f64;
    let series = [-1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592]
        .into_iter()
        .fold(series, |sum, c| sum * t + c);
    let tail = 0.5 * series * t * (-z * z).exp();
    if x >= 0.0 { 1.0 - tail } else { tail }
}

/// What is not certain about a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Doubt {
    /// Spread of demand and delays together.
    pub spread: f64,
    /// Factor by which load lines were drawn in already for the model's error (≥ 1).
    pub drawn_in: f64,
}

/// Raises each pool's headroom to what is worth its price. O(pools × levels) answers of one pool.
pub(crate) fn raise(problem: &mut Problem<'_>, doubts: &[Doubt], price: f64, limits: &Limits) {
    if !(price.is_finite() && price > 1.0) || doubts.iter().all(|d| d.spread <= 1e-9) {
        return;
    }
    let prices = Prices::new(problem, &problem.hints);
    // Cost and expected loss of each pool's fleet at each level.
    let mut best: Vec<(f64, f64)> = vec![(f64::INFINITY, 1.0); problem.pools.len()];
    let mut least: Vec<Option<f64>> = vec![None; problem.pools.len()];
    for level in std::iter::once(1.0).chain(LEVELS) {
        let mut roomy = problem.clone();
        roomy.pools.iter_mut().for_each(|p| p.headroom = p.headroom.max(level));
        let options = Options::new(&roomy);
        let answers = parallel::map(roomy.pools.len(), |p| {
            let response = options.at_prices(p, Service::All, &prices, limits)?;
            let capacity = capacity(&problem.pools[p], &response.counts, roomy.pools[p].headroom);
            Some((options.cost(p, &response.counts), capacity))
        });
        for (p, answer) in answers.into_iter().enumerate() {
            let Some((cost, capacity)) = answer else { continue };
            let serving = *least[p].get_or_insert(cost.max(0.0));
            let lost = expected_excess(capacity * doubts[p].drawn_in, doubts[p].spread);
            let all = cost + price * serving * lost;
            if all < best[p].0 - 1e-9 {
                best[p] = (all, roomy.pools[p].headroom);
            }
        }
    }
    let options = Options::new(problem);
    let running: Vec<Option<(f64, f64)>> = parallel::map(problem.pools.len(), |p| {
        let pool = &problem.pools[p];
        let known = Some(&pool.running).filter(|r| !r.is_empty() && r.values().sum::<u32>() >= pool.floor)?;
        let carries = capacity(pool, known, 1.0);
        let lost = expected_excess(carries * doubts[p].drawn_in, doubts[p].spread);
        let serves = fill(pool, known).unserved.iter().all(|u| *u <= 1e-6);
        serves.then(|| (options.cost(p, known) + price * least[p].unwrap_or(0.0) * lost, carries))
    });
    drop(options);
    let most = LEVELS.last().copied().unwrap_or(1.0);
    for ((pool, (all, headroom)), runs) in problem.pools.iter_mut().zip(best).zip(running) {
        if !all.is_finite() || pool.total_rps() <= 0.0 {
            continue;
        }
        // What runs is kept where another fleet is hardly better: prices and demand move a little with every plan.
        pool.headroom = match runs {
            Some((as_it_runs, carries)) if as_it_runs <= all * (1.0 + HARDLY) => {
                (carries * (1.0 - 1e-3)).clamp(pool.headroom, most.max(pool.headroom))
            }
            _ => headroom,
        };
    }
}

/// How many times a pool's demand its fleet can carry: at least `known`, at most twice that.
fn capacity(pool: &PoolProblem<'_>, counts: &Counts, known: f64) -> f64 {
    let (mut low, mut high) = (known, 2.0 * known);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        let mut set = CandidateSet::clone(&pool.set);
        set.classes.iter_mut().for_each(|c| c.rps *= middle);
        let more = PoolProblem { set: Arc::new(set), headroom: 1.0, ..pool.clone() };
        let short = fill(&more, counts).unserved.iter().any(|u| *u > 1e-6);
        if short { high = middle } else { low = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_excess_is_that_of_a_log_normal() {
        // By quadrature over the density.
        let numeric = |k: f64, s: f64| -> f64 {
            let step = 1e-3;
            (-8000..8000)
                .map(|i| f64::from(i) * step)
                .map(|z| {
                    let density = (-0.5 * z * z).exp() / (2.0 * std::f64::consts::PI).sqrt();
                    ((s * z).exp() - k).max(0.0) * density * step
                })
                .sum()
        };
        for (k, s) in [(1.0, 0.1), (1.15, 0.11), (1.3, 0.2), (0.8, 0.3), (2.0, 0.5)] {
            let (got, want) = (expected_excess(k, s), numeric(k, s));
            assert!((got - want).abs() < 1e-5, "{k} {s}: {got}, should be {want}");
        }
        assert_eq!(expected_excess(1.2, 0.0), 0.0);
        assert!((expected_excess(0.9, 0.0) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn an_error_is_what_nine_in_ten_stay_within() {
        let s = spread(0.15);
        assert!((normal_cdf(1.15_f64.ln() / s) - 0.9).abs() < 1e-6);
        assert_eq!(spread(0.0), 0.0);
        assert!(spread(f64::NAN) > 0.0, "what is not known is not certain");
    }

    /// One pool of 10 requests/s on L4s that carry 1 each, with 10 % doubt (90 %) of demand and none of the model.
    fn chosen(price: f64, l4_usd: f64) -> f64 {
        use crate::plan::tests::support::*;
        let mut w = World::new(vec![node("l4", "l4", 64, "a")]);
        w.snapshot.accelerators[0].usd_per_hour = l4_usd;
        let mut p = pool("p", "llama-3.1-8b", 1e6, 1e4);
        p.variants.truncate(1);
        p.parallelism.tensor = vec![1];
        p.engine.cold_start_seconds = 0.0;
        w.add(p, demand(vec![class("c0", 10.0, 100.0, 100.0)]));
        let table = Table(std::collections::BTreeMap::from([("l4".to_owned(), vec![1.0])]));
        let limits = w.config.limits();
        crate::baselines::with_problem(&w.input(), &table, crate::baselines::Candidates::Kept, |problem| {
            let mut problem = problem.clone();
            raise(&mut problem, &[Doubt { spread: spread(0.1), drawn_in: 1.0 }], price, &limits);
            problem.pools[0].headroom
        })
    }

    #[test]
    fn headroom_grows_with_what_a_lost_request_costs_and_not_with_the_price_of_everything() {
        let levels: Vec<f64> = [1.0, 3.0, 20.0, 1e4].map(|price| chosen(price, 1.0)).to_vec();
        assert_eq!(levels[0], 1.0);
        assert!(levels.is_sorted() && levels[3] > levels[1], "{levels:?}");
        // The newsvendor's quantile: P(X > κ) = 1/20 is at 1.13 here; of whole replicas, 11 or 12.
        assert!((1.1..=1.2).contains(&levels[2]), "{levels:?}");
        assert_eq!(chosen(20.0, 5.0), chosen(20.0, 1.0));
    }
}
