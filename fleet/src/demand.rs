//! Demand: rates, length distributions, request classes.

use serde::{Deserialize, Serialize};

/// A distribution of token counts, summarised as people know it: a mean and a 95th percentile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LengthDistribution {
    /// Mean, tokens.
    pub mean_tokens: f64,
    /// 95th percentile, tokens.
    pub p95_tokens: f64,
}

impl LengthDistribution {
    /// Parameters (mu, sigma) of the log-normal with this mean and 95th percentile. Where the pair is impossible
    /// for a log-normal (p95 above about 3.87 times the mean), the heaviest tail that keeps the mean is used.
    pub fn log_normal(&self) -> (f64, f64) {
        // p95 = exp(mu + z s), mean = exp(mu + s²/2)  ⇒  s²/2 − z s + ln(p95/mean) = 0.
        const Z95: f64 = 1.644_853_626_951_472_2;
        let mean = self.mean_tokens.max(1.0);
        let ratio = (self.p95_tokens.max(mean) / mean).ln();
        let discriminant = (Z95 * Z95 - 2.0 * ratio).max(0.0);
        let sigma = (Z95 - discriminant.sqrt()).clamp(1e-6, Z95);
        (mean.ln() - sigma * sigma / 2.0, sigma)
    }
}

/// What a pool's owner expects before traffic is seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DemandPrior {
    /// Requests per second.
    pub rps: f64,
    /// Prompt lengths.
    pub input: LengthDistribution,
    /// Answer lengths.
    pub output: LengthDistribution,
}

/// A request class: one cell of (input, output) lengths × one SLO class, with its rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestClass {
    /// Identifies the class within its pool, e.g. `default/in1024-out256`.
    pub name: String,
    /// The SLO class it belongs to.
    pub slo_class: String,
    /// Representative (mean) prompt length, tokens.
    pub input_tokens: f64,
    /// Representative (mean) answer length, tokens.
    pub output_tokens: f64,
    /// Share of prompt tokens expected to hit the prefix cache, 0–1.
    pub cached_fraction: f64,
    /// Arrival rate to plan for, requests per second.
    pub rps: f64,
}

/// Demand of one pool as the planner takes it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DemandEstimate {
    /// Rates by request class; their sum is the pool's planned rate.
    pub classes: Vec<RequestClass>,
    /// Observed rate just now, requests per second (`None` until traffic was seen).
    pub observed_rps: Option<f64>,
    /// Squared coefficient of variation of inter-arrival times (1 = Poisson).
    pub arrival_scv: f64,
    /// One line on where the figure comes from, e.g. `p90 forecast of the next 90 s` or `prior from spec.demand`.
    pub source: String,
}

impl DemandEstimate {
    /// Total planned rate, requests per second.
    pub fn total_rps(&self) -> f64 {
        self.classes.iter().map(|c| c.rps).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_normal_reproduces_mean_and_p95() {
        let d = LengthDistribution { mean_tokens: 1200.0, p95_tokens: 4000.0 };
        let (mu, sigma) = d.log_normal();
        assert!(((mu + sigma * sigma / 2.0).exp() - 1200.0).abs() < 1e-6);
        assert!(((mu + 1.644_853_626_951_472_2 * sigma).exp() - 4000.0).abs() < 1e-6);
    }

    #[test]
    fn impossible_pair_keeps_the_mean() {
        let d = LengthDistribution { mean_tokens: 100.0, p95_tokens: 10_000.0 };
        let (mu, sigma) = d.log_normal();
        assert!(((mu + sigma * sigma / 2.0).exp() - 100.0).abs() < 1e-6);
    }
}
