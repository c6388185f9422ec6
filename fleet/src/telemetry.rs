//! What agents report.

use serde::{Deserialize, Serialize};

use crate::{NodeName, PoolId, ReplicaId};

/// A mergeable histogram with logarithmic bins: bin `i` counts values in `[G^i, G^(i+1))` with `G = 2^(1/4)`
/// (relative error at most 9 %). Bins merge by addition, so reports combine in any order.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LogHistogram {
    /// Counts, from the bin of value 1; values below 1 count in bin 0.
    pub bins: Vec<u64>,
    /// Sum of all values.
    pub sum: f64,
}

impl LogHistogram {
    const BINS_PER_OCTAVE: f64 = 4.0;
    /// Most bins; larger values count in the last.
    pub const MAX_BINS: usize = 160;

    /// Adds one value. Values that are not finite or are negative are ignored.
    pub fn record(&mut self, value: f64) {
        if !value.is_finite() || value < 0.0 {
            return;
        }
        let bin = ((value.max(1.0).log2() * Self::BINS_PER_OCTAVE) as usize).min(Self::MAX_BINS - 1);
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, 0);
        }
        self.bins[bin] += 1;
        self.sum += value;
    }

    /// Adds another histogram's counts.
    pub fn merge(&mut self, other: &Self) {
        if self.bins.len() < other.bins.len() {
            self.bins.resize(other.bins.len(), 0);
        }
        for (a, b) in self.bins.iter_mut().zip(&other.bins) {
            *a += b;
        }
        self.sum += other.sum;
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.bins.iter().sum()
    }

    /// Mean, `None` when empty.
    pub fn mean(&self) -> Option<f64> {
        let n = self.count();
        (n > 0).then(|| self.sum / n as f64)
    }

    /// The value below which `fraction` (0–1) of the values lie (geometric middle of its bin), `None` when empty.
    pub fn quantile(&self, fraction: f64) -> Option<f64> {
        let n = self.count();
        if n == 0 {
            return None;
        }
        let rank = (fraction.clamp(0.0, 1.0) * n as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bin, count) in self.bins.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(((bin as f64 + 0.5) / Self::BINS_PER_OCTAVE).exp2());
            }
        }
        None
    }
}

/// Counts of one (pool, SLO class) at one agent since its previous report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrafficReport {
    /// Pool.
    pub pool: PoolId,
    /// SLO class.
    pub slo_class: String,
    /// Requests that arrived.
    pub arrived: u64,
    /// Requests that finished.
    pub finished: u64,
    /// Finished requests that met every objective of their class.
    pub attained: u64,
    /// Requests that were refused (queue full, no capacity, deadline).
    pub refused: u64,
    /// Requests that failed after being sent to an engine.
    pub failed: u64,
    /// Requests waiting here now for a pool to wake.
    pub holding: u64,
    /// Joint counts of (input, output) lengths: `(log2 input bucket, log2 output bucket, count)`.
    pub lengths: Vec<(u8, u8, u64)>,
    /// Prompt tokens.
    pub input_tokens: LogHistogram,
    /// Answer tokens.
    pub output_tokens: LogHistogram,
    /// Prompt tokens that engines served from their prefix cache.
    pub cached_tokens: u64,
    /// Time to first token, milliseconds.
    pub ttft_ms: LogHistogram,
    /// Time per output token, microseconds.
    pub tpot_us: LogHistogram,
    /// End to end, milliseconds.
    pub e2e_ms: LogHistogram,
    /// Sum of squared inter-arrival times, s², and their sum, s: for the arrivals' coefficient of variation.
    pub interarrival_moments: (f64, f64),
}

/// What one replica served of one SLO class, as an agent's clients saw it, since the agent's previous report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaTraffic {
    /// Replica.
    pub replica: ReplicaId,
    /// SLO class; empty for tries that failed, which are counted without one.
    pub slo_class: String,
    /// Requests that it finished, all of them.
    pub finished: u64,
    /// Tries that failed there, whether or not another replica then served the request.
    pub failed: u64,
    /// Finished requests that missed the class's limit for the time to first token.
    pub missed_ttft: u64,
    /// … for the time per output token.
    pub missed_tpot: u64,
    /// … end to end.
    pub missed_e2e: u64,
    /// What the finished requests took.
    #[serde(default)]
    pub work: Work,
}

/// Sums over finished requests that streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Of these, found in the engine's prefix cache.
    pub cached_tokens: u64,
    /// Answer tokens.
    pub output_tokens: u64,
    /// Answer tokens after each request's first.
    pub decode_tokens: u64,
    /// Time from each request's first token to its last, microseconds.
    pub decode_us: u64,
}

impl Work {
    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(other.cached_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.decode_tokens = self.decode_tokens.saturating_add(other.decode_tokens);
        self.decode_us = self.decode_us.saturating_add(other.decode_us);
    }
}

/// State of one engine as its agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineReport {
    /// Replica.
    pub replica: ReplicaId,
    /// Answers its health check.
    pub healthy: bool,
    /// Has work and has produced no token for the liveness limit: wedged, whatever its health check says.
    pub stalled: bool,
    /// Running requests, if its metrics say so (`None`: unknown, never zero).
    pub running: Option<f64>,
    /// Waiting requests.
    pub waiting: Option<f64>,
    /// Share of KV cache in use, 0–1.
    pub kv_usage: Option<f64>,
    /// Tokens in use or waiting, as the agent counts them itself.
    pub outstanding_tokens: f64,
    /// Adapters that it holds.
    pub adapters: Vec<String>,
    /// Adapters that it is to hold and could not load, and why.
    pub adapter_failures: Vec<(String, String)>,
    /// What its agent knows of adapters beyond that, in order of name.
    #[serde(default)]
    pub adapter_states: Vec<AdapterState>,
    /// A drain was asked for and every request it had is finished.
    pub drained: bool,
}

/// What an agent knows of an adapter at one engine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AdapterState {
    /// Served name.
    pub adapter: String,
    /// Bytes of its files, where they were measured.
    pub bytes: Option<u64>,
    /// What its last load took, its download left out, ms.
    pub load_ms: Option<u64>,
    /// Its files are in the node's cache.
    pub on_disk: bool,
    /// Requests for it that found it loaded, since the agent started.
    pub hits: u64,
    /// Those that had to wait for a load, or in vain.
    pub misses: u64,
}

/// One report of one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentReport {
    /// Agent's name (its node's name, or the gateway pod's).
    pub agent: String,
    /// Node it runs on; `None` for a gateway.
    pub node: Option<NodeName>,
    /// `host:port` where it takes requests.
    pub address: String,
    /// Serial number within the agent's life: duplicates are ignored.
    pub sequence: u64,
    /// Changes at each start of the agent.
    pub incarnation: u64,
    /// Length of the interval reported, seconds.
    pub interval_seconds: f64,
    /// Traffic.
    pub traffic: Vec<TrafficReport>,
    /// Engines.
    pub engines: Vec<EngineReport>,
    /// What each replica served.
    #[serde(default)]
    pub replicas: Vec<ReplicaTraffic>,
    /// Version of the route table it routes by.
    pub route_version: u64,
    /// LoRA adapters that requests asked for, by served name, and how many did.
    #[serde(default)]
    pub adapters: Vec<(String, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn merge_is_the_same_as_recording_all(a in prop::collection::vec(0.0..1e6f64, 0..50), b in prop::collection::vec(0.0..1e6f64, 0..50)) {
            let mut x = LogHistogram::default();
            let mut y = LogHistogram::default();
            let mut all = LogHistogram::default();
            for v in &a { x.record(*v); all.record(*v); }
            for v in &b { y.record(*v); all.record(*v); }
            x.merge(&y);
            prop_assert_eq!(&x.bins, &all.bins);
            prop_assert!((x.sum - all.sum).abs() <= 1e-6 * all.sum.max(1.0));
        }

        #[test]
        fn quantiles_are_within_a_bin(v in 1.0..1e9f64) {
            let mut h = LogHistogram::default();
            h.record(v);
            let q = h.quantile(0.5).unwrap();
            prop_assert!((q / v).ln().abs() <= 0.2, "{q} vs {v}");
        }
    }

    #[test]
    fn nonsense_is_ignored() {
        let mut h = LogHistogram::default();
        h.record(f64::NAN);
        h.record(-1.0);
        h.record(f64::INFINITY);
        assert_eq!(h.count(), 0);
        assert_eq!(h.quantile(0.5), None);
    }
}
