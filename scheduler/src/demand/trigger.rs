//! When demand has moved far enough from the plan to plan again at once.

use plimsoll_fleet::{ModelPool, PoolId};

use super::Seen;

/// Relative change that is material.
const MATERIAL: f64 = 0.2;
/// Finished requests from which attainment means something.
const ENOUGH_FINISHED: u64 = 20;

/// Says how the rate `to` differs from the planned `from` (requests per second), if by more than 20 % and more than
/// Poisson noise over half a minute (2 σ) explains.
pub fn material_change(pool: &PoolId, from: f64, to: f64) -> Option<String> {
    let noise = 2.0 * (from.max(to) / 30.0).max(0.0).sqrt();
    let moved = (to - from).abs();
    if moved <= MATERIAL * from.max(1e-9) || moved <= noise.min(0.5 * from.max(to)) {
        return None;
    }
    let direction = if to > from { "rose" } else { "fell" };
    Some(format!("demand of {pool} {direction} from {from:.1} to {to:.1} rps"))
}

/// Says that a pool misses its objectives, if the share of requests that meet them lies clearly (3 σ of a binomial) below
/// what the strictest percentile promises.
pub fn misses_objectives(pool: &ModelPool, seen: &Seen) -> Option<String> {
    let attainment = seen.attainment?;
    if seen.finished < ENOUGH_FINISHED {
        return None;
    }
    let slo = pool.slo_classes.first()?.slo;
    // Objectives on several metrics may each be missed by their own tail: the promises add up.
    let promised = 1.0
        - [slo.ttft, slo.tpot, slo.e2e].iter().flatten().map(|o| 1.0 - o.percentile.fraction()).sum::<f64>();
    let promised = promised.clamp(0.0, 1.0);
    let sigma = (promised * (1.0 - promised) / seen.finished as f64).sqrt();
    (attainment < promised - 3.0 * sigma - 0.01)
        .then(|| format!("{} meets its objectives for {:.1} % of requests", pool.id, attainment * 100.0))
}
