//! Service-level objectives.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A percentile in (0, 100).
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Percentile(f64);

/// A percentile outside (0, 100).
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("percentile {0} is out of range; use a number above 0 and below 100, such as 95")]
pub struct InvalidPercentile(pub f64);

impl Percentile {
    /// The median.
    pub const P50: Self = Self(50.0);
    /// The 90th percentile.
    pub const P90: Self = Self(90.0);
    /// The 95th percentile.
    pub const P95: Self = Self(95.0);
    /// The 99th percentile.
    pub const P99: Self = Self(99.0);

    /// Validates a percentile.
    ///
    /// # Errors
    /// [`InvalidPercentile`] unless `0 < value < 100`.
    pub fn new(value: f64) -> Result<Self, InvalidPercentile> {
        if value > 0.0 && value < 100.0 { Ok(Self(value)) } else { Err(InvalidPercentile(value)) }
    }

    /// As a number in (0, 100).
    pub fn value(self) -> f64 {
        self.0
    }

    /// As a fraction in (0, 1).
    pub fn fraction(self) -> f64 {
        self.0 / 100.0
    }
}

impl fmt::Display for Percentile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// "This percentile of the latency is at most this many milliseconds."
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// Which percentile.
    pub percentile: Percentile,
    /// The limit, milliseconds.
    pub ms: f64,
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ≤ {} ms", self.percentile, self.ms)
    }
}

/// The objectives of one class of requests; an absent one is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Slo {
    /// Time to first token.
    pub ttft: Option<Objective>,
    /// Time per output token after the first (a request's own mean).
    pub tpot: Option<Objective>,
    /// End to end.
    pub e2e: Option<Objective>,
}

impl Slo {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        self.ttft.is_none() && self.tpot.is_none() && self.e2e.is_none()
    }

    /// Whether one finished request meets every limit. `tpot_ms` is `None` for a single-token answer.
    pub fn met_by(&self, ttft_ms: f64, tpot_ms: Option<f64>, e2e_ms: f64) -> bool {
        self.ttft.is_none_or(|o| ttft_ms <= o.ms)
            && self.tpot.is_none_or(|o| tpot_ms.is_none_or(|t| t <= o.ms))
            && self.e2e.is_none_or(|o| e2e_ms <= o.ms)
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = [("TTFT", self.ttft), ("TPOT", self.tpot), ("E2E", self.e2e)]
            .into_iter()
            .filter_map(|(name, o)| o.map(|o| format!("{name} {o}")))
            .collect();
        if parts.is_empty() { f.write_str("no objective") } else { f.write_str(&parts.join(", ")) }
    }
}

/// A named class of requests with objectives of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SloClass {
    /// Name, e.g. `interactive`; the pool's unnamed default class is called `default`.
    pub name: String,
    /// Its objectives.
    pub slo: Slo,
    /// Request headers (lower-case name → exact value) that put a request into this class. The header
    /// `x-plimsoll-slo-class: NAME` always does.
    pub match_headers: BTreeMap<String, String>,
    /// The share of the pool's traffic expected in this class before any is seen, 0–1.
    pub expected_share: f64,
}

/// The name of a pool's default SLO class.
pub const DEFAULT_SLO_CLASS: &str = "default";
