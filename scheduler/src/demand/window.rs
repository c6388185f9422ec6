//! Merged latencies, attainment and totals of one pool over the last minutes.

use std::collections::{BTreeMap, VecDeque};

use plimsoll_fleet::telemetry::{LogHistogram, TrafficReport};
use plimsoll_fleet::{Objective, Percentile, SloClass};
use serde::{Deserialize, Serialize};

/// Length of one bucket, seconds.
const BUCKET_SECONDS: f64 = 10.0;

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Bucket {
    index: i64,
    finished: u64,
    attained: u64,
    output_tokens: f64,
    ttft_ms: LogHistogram,
    tpot_us: LogHistogram,
    e2e_ms: LogHistogram,
}

/// A sliding window per SLO class, and totals.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Window {
    classes: BTreeMap<String, VecDeque<Bucket>>,
    first: Option<f64>,
    /// Requests finished since the state began.
    pub finished: u64,
    /// Requests refused.
    pub refused: u64,
    /// Requests failed.
    pub failed: u64,
}

/// What a window shows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Seen {
    /// Time to first token at the class's percentile, milliseconds.
    pub ttft_ms: Option<f64>,
    /// Time per output token, milliseconds.
    pub tpot_ms: Option<f64>,
    /// End to end, milliseconds.
    pub e2e_ms: Option<f64>,
    /// Share of finished requests, of all classes, that met every objective of their class.
    pub attainment: Option<f64>,
    /// Finished requests in the window, all classes.
    pub finished: u64,
    /// Answer tokens per second.
    pub output_tokens_per_second: f64,
}

fn merge(into: &mut LogHistogram, other: &LogHistogram) {
    if other.sum.is_finite() && other.bins.len() <= LogHistogram::MAX_BINS {
        into.merge(other);
    }
}

impl Window {
    /// Takes in one report.
    pub fn observe(&mut self, class: &str, r: &TrafficReport, now: f64, window_seconds: f64) {
        self.finished = self.finished.saturating_add(r.finished);
        self.refused = self.refused.saturating_add(r.refused);
        self.failed = self.failed.saturating_add(r.failed);
        self.first.get_or_insert(now);
        let index = (now / BUCKET_SECONDS).floor() as i64;
        let buckets = self.classes.entry(class.to_owned()).or_default();
        let oldest = ((now - window_seconds) / BUCKET_SECONDS).floor() as i64;
        while buckets.front().is_some_and(|b| b.index < oldest) {
            buckets.pop_front();
        }
        if buckets.back().is_none_or(|b| b.index < index) {
            buckets.push_back(Bucket { index, ..Bucket::default() });
        }
        if let Some(bucket) = buckets.back_mut() {
            bucket.finished = bucket.finished.saturating_add(r.finished);
            bucket.attained = bucket.attained.saturating_add(r.attained.min(r.finished));
            if r.output_tokens.sum.is_finite() {
                bucket.output_tokens += r.output_tokens.sum.max(0.0);
            }
            merge(&mut bucket.ttft_ms, &r.ttft_ms);
            merge(&mut bucket.tpot_us, &r.tpot_us);
            merge(&mut bucket.e2e_ms, &r.e2e_ms);
        }
    }

    /// Latencies of `class` at its own objectives' percentiles (p95 where it has none), and attainment of all classes,
    /// over the `window_seconds` before `now`.
    pub fn seen(&self, class: Option<&SloClass>, now: f64, window_seconds: f64) -> Seen {
        let oldest = ((now - window_seconds) / BUCKET_SECONDS).floor() as i64;
        let (mut ttft, mut tpot, mut e2e) = <(LogHistogram, LogHistogram, LogHistogram)>::default();
        let (mut finished, mut attained, mut tokens) = (0u64, 0u64, 0.0);
        for (name, buckets) in &self.classes {
            let own = class.is_none_or(|c| &c.name == name);
            for b in buckets.iter().filter(|b| b.index >= oldest) {
                finished = finished.saturating_add(b.finished);
                attained = attained.saturating_add(b.attained);
                tokens += b.output_tokens;
                if own {
                    ttft.merge(&b.ttft_ms);
                    tpot.merge(&b.tpot_us);
                    e2e.merge(&b.e2e_ms);
                }
            }
        }
        let at = |o: Option<Objective>| o.map_or(Percentile::P95, |o| o.percentile).fraction();
        let slo = class.map(|c| c.slo).unwrap_or_default();
        let span =
            (now - self.first.unwrap_or(now)).clamp(BUCKET_SECONDS, window_seconds.max(BUCKET_SECONDS));
        Seen {
            ttft_ms: ttft.quantile(at(slo.ttft)),
            tpot_ms: tpot.quantile(at(slo.tpot)).map(|us| us / 1000.0),
            e2e_ms: e2e.quantile(at(slo.e2e)),
            attainment: (finished > 0).then(|| attained as f64 / finished as f64),
            finished,
            output_tokens_per_second: tokens / span,
        }
    }
}
