//! What came of a scenario.

use std::collections::BTreeMap;

use plimsoll_agent::telemetry::Finished;
use plimsoll_fleet::PoolId;
use plimsoll_fleet::plan::ScalingRecord;
use serde::Serialize;

/// What came of a scenario under one policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The policy.
    pub policy: String,
    /// Virtual seconds that were counted: from the end of the warm-up to the last arrival.
    pub seconds: f64,
    /// Price of the accelerators that replicas held in that time, dollars.
    pub usd: f64,
    /// By pool.
    pub pools: Vec<PoolOutcome>,
    /// How the fleet went over time.
    pub timeline: Vec<Sample>,
    /// Changes of fleets, and why, in order of time.
    pub changes: Vec<ScalingRecord>,
}

impl Outcome {
    /// Share of all requests that met every objective of their class; one that was refused or did not finish met none.
    pub fn attainment(&self) -> f64 {
        let (attained, requests) =
            self.pools.iter().fold((0, 0), |(a, n), p| (a + p.attained, n + p.requests));
        attained as f64 / (requests as f64).max(1.0)
    }
}

/// What came of one pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolOutcome {
    /// The pool.
    pub pool: PoolId,
    /// Requests that came.
    pub requests: u64,
    /// Of these, answered in full.
    pub finished: u64,
    /// Of these, within every objective of their class.
    pub attained: u64,
    /// Refused.
    pub refused: u64,
    /// Not over at the end, or lost.
    pub failed: u64,
    /// Time to first token of those that finished, ms.
    pub ttft_ms: Quantiles,
    /// Time per output token after the first, ms.
    pub tpot_ms: Quantiles,
    /// End to end, ms.
    pub e2e_ms: Quantiles,
    /// Prompt tokens of those that finished.
    pub input_tokens: u64,
    /// Of these, found in prefix caches.
    pub cached_tokens: u64,
    /// Answer tokens.
    pub output_tokens: u64,
    /// Replicas that held accelerators, on average over time.
    pub mean_replicas: f64,
    /// And at most.
    pub peak_replicas: u32,
    /// Changes of the number of replicas that were wanted.
    pub changes: u32,
    /// Of these, against the direction of the one before.
    pub reversals: u32,
    /// Price of the accelerators held, dollars.
    pub usd: f64,
}

/// Quantiles of a measure.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Quantiles {
    /// Of these values, nearest rank; zeros of none.
    fn of(values: &mut [f64]) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |q: f64| {
            let rank = (q * values.len() as f64).ceil().max(1.0) as usize;
            values.get(rank - 1).copied().unwrap_or(0.0)
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }
}

/// A pool at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// Virtual seconds from the start of the scenario.
    pub at_seconds: f64,
    /// The pool.
    pub pool: PoolId,
    /// Arrivals since the last sample, requests per second.
    pub rps: f64,
    /// Replicas that the policy wants.
    pub wanted: u32,
    /// Replicas that hold accelerators.
    pub held: u32,
    /// Replicas that serve.
    pub ready: u32,
    /// Requests finished since the last sample that met every objective, as a share of those that ended.
    pub attainment: Option<f64>,
    /// Price of the accelerators held, $/h.
    pub usd_per_hour: f64,
}

/// Counts of one pool.
#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    finished: u64,
    attained: u64,
    refused: u64,
    failed: u64,
    ttft_ms: Vec<f64>,
    tpot_ms: Vec<f64>,
    e2e_ms: Vec<f64>,
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    replica_seconds: f64,
    peak: u32,
    changes: u32,
    reversals: u32,
    /// Of the last change.
    up: Option<bool>,
    wanted: Option<u32>,
    usd: f64,
    /// Since the last sample: arrived, ended, attained; whether counted or not.
    lately: (u64, u64, u64),
}

/// Counts what happens.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pools: BTreeMap<PoolId, Counts>,
    timeline: Vec<Sample>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum End {
    Finished(Finished),
    Refused,
    Failed,
}

impl Tally {
    pub(super) fn new(pools: impl Iterator<Item = PoolId>) -> Self {
        Self { pools: pools.map(|p| (p, Counts::default())).collect(), timeline: Vec::new() }
    }

    fn pool(&mut self, pool: &PoolId) -> &mut Counts {
        self.pools.entry(pool.clone()).or_default()
    }

    /// A request came.
    pub(super) fn arrived(&mut self, pool: &PoolId, counted: bool) {
        let counts = self.pool(pool);
        counts.lately.0 += 1;
        counts.requests += u64::from(counted);
    }

    /// A request ended.
    pub(super) fn ended(&mut self, pool: &PoolId, counted: bool, end: End) {
        let counts = self.pool(pool);
        counts.lately.1 += 1;
        let attained = matches!(end, End::Finished(f) if !f.missed.any());
        counts.lately.2 += u64::from(attained);
        if !counted {
            return;
        }
        match end {
            End::Refused => counts.refused += 1,
            End::Failed => counts.failed += 1,
            End::Finished(f) => {
                counts.finished += 1;
                counts.attained += u64::from(attained);
                counts.ttft_ms.extend(f.ttft_ms);
                counts.tpot_ms.extend(f.tpot_ms);
                counts.e2e_ms.push(f.e2e_ms);
                counts.input_tokens += f.input_tokens;
                counts.cached_tokens += f.cached_tokens;
                counts.output_tokens += f.output_tokens;
            }
        }
    }

    /// A pool held replicas for some time.
    pub(super) fn held(&mut self, pool: &PoolId, seconds: f64, replicas: u32, usd_per_hour: f64) {
        let counts = self.pool(pool);
        counts.replica_seconds += seconds * f64::from(replicas);
        counts.peak = counts.peak.max(replicas);
        counts.usd += usd_per_hour * seconds / 3600.0;
    }

    /// A policy wants so many replicas of a pool.
    pub(super) fn wanted(&mut self, pool: &PoolId, replicas: u32, counted: bool) {
        let counts = self.pool(pool);
        let Some(before) = counts.wanted.replace(replicas).filter(|before| *before != replicas) else {
            return;
        };
        let up = replicas > before;
        let turned = counts.up.replace(up).is_some_and(|last| last != up);
        counts.changes += u32::from(counted);
        counts.reversals += u32::from(counted && turned);
    }

    /// Takes a sample of a pool.
    pub(super) fn sample(
        &mut self,
        pool: &PoolId,
        at_seconds: f64,
        seconds: f64,
        held: u32,
        ready: u32,
        usd_per_hour: f64,
    ) {
        let counts = self.pool(pool);
        let (arrived, ended, attained) = std::mem::take(&mut counts.lately);
        let wanted = counts.wanted.unwrap_or(0);
        self.timeline.push(Sample {
            at_seconds,
            pool: pool.clone(),
            rps: arrived as f64 / seconds.max(1e-9),
            wanted,
            held,
            ready,
            attainment: (ended > 0).then(|| attained as f64 / ended as f64),
            usd_per_hour,
        });
    }

    /// The outcome over so many virtual seconds.
    pub(super) fn outcome(self, policy: String, seconds: f64, changes: Vec<ScalingRecord>) -> Outcome {
        let pools: Vec<PoolOutcome> = self
            .pools
            .into_iter()
            .map(|(pool, mut c)| PoolOutcome {
                pool,
                requests: c.requests,
                finished: c.finished,
                attained: c.attained,
                refused: c.refused,
                failed: c.failed,
                ttft_ms: Quantiles::of(&mut c.ttft_ms),
                tpot_ms: Quantiles::of(&mut c.tpot_ms),
                e2e_ms: Quantiles::of(&mut c.e2e_ms),
                input_tokens: c.input_tokens,
                cached_tokens: c.cached_tokens,
                output_tokens: c.output_tokens,
                mean_replicas: c.replica_seconds / seconds.max(1e-9),
                peak_replicas: c.peak,
                changes: c.changes,
                reversals: c.reversals,
                usd: c.usd,
            })
            .collect();
        let usd = pools.iter().map(|p| p.usd).sum();
        Outcome { policy, seconds, usd, pools, timeline: self.timeline, changes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reversals_are_changes_against_the_last() {
        let pool: PoolId = "default/chat".parse().unwrap();
        let mut tally = Tally::new(std::iter::once(pool.clone()));
        for wanted in [1, 2, 2, 4, 3, 3, 5] {
            tally.wanted(&pool, wanted, true);
        }
        let outcome = tally.outcome("p".into(), 10.0, Vec::new());
        assert_eq!((outcome.pools[0].changes, outcome.pools[0].reversals), (4, 2));
    }

    #[test]
    fn quantiles_are_nearest_rank() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let q = Quantiles::of(&mut values);
        assert_eq!((q.p50, q.p90, q.p99), (50.0, 90.0, 99.0));
        assert_eq!(Quantiles::of(&mut []), Quantiles::default());
    }
}
