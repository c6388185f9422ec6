//! What a person asks of one replica: latencies of a whole mix at a rate, and where the time of its steps goes.

use plimsoll_fleet::{Percentile, RequestClass, Slo};
use serde::{Deserialize, Serialize};

use crate::mix::Mix;
use crate::sim::RequestOutcome;
use crate::{ClassPrediction, ReplicaModel, StepBreakdown};

/// Which percentile of each latency is meant.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Of time to first token.
    pub ttft: Percentile,
    /// Of time per output token.
    pub tpot: Percentile,
    /// End to end.
    pub e2e: Percentile,
}

impl Percentiles {
    /// The same percentile of each.
    pub fn all(p: Percentile) -> Self {
        Self { ttft: p, tpot: p, e2e: p }
    }

    /// Those that objectives name; `otherwise` where there is none.
    pub fn of(slo: &Slo, otherwise: Percentile) -> Self {
        let of = |o: Option<plimsoll_fleet::Objective>| o.map_or(otherwise, |o| o.percentile);
        Self { ttft: of(slo.ttft), tpot: of(slo.tpot), e2e: of(slo.e2e) }
    }
}

/// A replica at one rate, all its requests together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OperatingPoint {
    /// Requests per second.
    pub rps: f64,
    /// Mean running requests.
    pub running: f64,
    /// Mean share of the KV cache in use.
    pub kv_usage: f64,
    /// Time to first token, milliseconds; infinite if saturated.
    pub ttft_ms: f64,
    /// Time per output token, milliseconds.
    pub tpot_ms: f64,
    /// End to end, milliseconds.
    pub e2e_ms: f64,
    /// Mean power of the replica's accelerators, watts.
    pub watts: f64,
}

/// The value that a share `p` of a mixture's requests stay below, by bisection. `quantile` gives a class's own.
fn mixture(
    classes: &[ClassPrediction],
    p: Percentile,
    quantile: impl Fn(&ClassPrediction, Percentile) -> f64,
) -> f64 {
    let counted: Vec<&ClassPrediction> = classes.iter().filter(|c| c.rps > 0.0).collect();
    let counted = if counted.is_empty() { classes.iter().collect() } else { counted };
    let ends = counted.iter().map(|c| quantile(c, p));
    let (mut low, mut high) = ends.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
    if counted.len() < 2 || !high.is_finite() {
        return high;
    }
    let total: f64 = counted.iter().map(|c| c.rps.max(f64::MIN_POSITIVE)).sum();
    // Share of a class's requests above a limit, its distribution being known by its quantiles.
    let above = |c: &ClassPrediction, limit: f64| {
        let (mut a, mut b) = (0.0_f64, 100.0_f64);
        for _ in 0..12 {
            let middle = 0.5 * (a + b);
            match Percentile::new(middle) {
                Ok(q) if quantile(c, q) <= limit => a = middle,
                _ => b = middle,
            }
        }
        1.0 - a / 100.0
    };
    while high - low > 0.002 * high {
        let middle = 0.5 * (low + high);
        let late: f64 = counted.iter().map(|c| c.rps.max(f64::MIN_POSITIVE) / total * above(c, middle)).sum();
        if late > 1.0 - p.fraction() { low = middle } else { high = middle }
    }
    high
}

impl ReplicaModel {
    /// The replica when `mix` arrives at `rps` requests per second; percentiles are over all requests.
    pub fn operating_point(
        &self,
        mix: &[RequestClass],
        rps: f64,
        arrival_scv: f64,
        percentiles: &Percentiles,
    ) -> OperatingPoint {
        let load = self.predict(mix, rps, arrival_scv);
        OperatingPoint {
            rps,
            running: load.running,
            kv_usage: load.kv_usage,
            ttft_ms: mixture(&load.classes, percentiles.ttft, ClassPrediction::ttft_ms),
            tpot_ms: mixture(&load.classes, percentiles.tpot, ClassPrediction::tpot_ms),
            e2e_ms: mixture(&load.classes, percentiles.e2e, ClassPrediction::e2e_ms),
            watts: load.watts,
        }
    }

    /// Where the time of a mean step goes when `mix` arrives at `rps` requests per second.
    pub fn step_at(&self, mix: &[RequestClass], rps: f64, arrival_scv: f64) -> StepBreakdown {
        if mix.is_empty() {
            return StepBreakdown::default();
        }
        let running = self.predict(mix, rps, arrival_scv).running;
        Mix::new(self, mix).breakdown(self, running, rps / 1e3)
    }

    /// How many requests of `mix`, of mean length, can run at once: as many as the KV cache holds, and no more than
    /// the engine's limit.
    pub fn requests_at_once(&self, mix: &[RequestClass]) -> u32 {
        if mix.is_empty() { 0 } else { u32::try_from(Mix::new(self, mix).limit).unwrap_or(u32::MAX) }
    }
}

/// What a simulated run showed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Simulated {
    /// Requests counted, those of the warm-up left out.
    pub requests: usize,
    /// Requests per second that were answered.
    pub rps: f64,
    /// Time to first token, milliseconds.
    pub ttft_ms: f64,
    /// Time per output token, milliseconds (0 where all answers have one token).
    pub tpot_ms: f64,
    /// End to end, milliseconds.
    pub e2e_ms: f64,
    /// Share of requests that met every objective, 0–1.
    pub attainment: f64,
    /// Preemptions for want of KV cache, for each request.
    pub preemptions: f64,
}

impl Simulated {
    /// Sums up a run, without its first `warm_up` requests. `None` if nothing is left.
    pub fn of(
        outcomes: &[RequestOutcome],
        warm_up: usize,
        percentiles: &Percentiles,
        slo: &Slo,
    ) -> Option<Self> {
        let counted = outcomes.get(warm_up..).unwrap_or_default();
        let (first, last) = (counted.first()?, counted.last()?);
        let quantile = |values: Vec<f64>, p: Percentile| {
            let mut values = values;
            values.sort_by(f64::total_cmp);
            let at = (values.len() as f64 * p.fraction()) as usize;
            values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
        };
        let met = counted.iter().filter(|o| slo.met_by(o.ttft_ms, o.tpot_ms, o.e2e_ms)).count();
        let span_ms = last.sent_ms - first.sent_ms;
        let n = counted.len() as f64;
        Some(Self {
            requests: counted.len(),
            rps: if span_ms > 0.0 { 1e3 * (n - 1.0) / span_ms } else { 0.0 },
            ttft_ms: quantile(counted.iter().map(|o| o.ttft_ms).collect(), percentiles.ttft),
            tpot_ms: quantile(counted.iter().filter_map(|o| o.tpot_ms).collect(), percentiles.tpot),
            e2e_ms: quantile(counted.iter().map(|o| o.e2e_ms).collect(), percentiles.e2e),
            attainment: met as f64 / n,
            preemptions: f64::from(counted.iter().map(|o| o.preemptions).sum::<u32>()) / n,
        })
    }
}
