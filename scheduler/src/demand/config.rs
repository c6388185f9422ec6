//! Constants of demand estimation.

use serde::{Deserialize, Serialize};

/// Constants of demand estimation. All times are virtual seconds: the caller's clock may run faster than the wall's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DemandConfig {
    /// Length of one step of the rate series.
    pub step_seconds: f64,
    /// Steps that the peak is averaged over: shorter peaks are queueing noise, which the engine model already covers.
    pub smoothing_steps: u32,
    /// Quantile of the peak to plan for, 0–1.
    pub quantile: f64,
    /// Weight of a new step in the level.
    pub alpha: f64,
    /// Weight of a new slope in the trend.
    pub beta: f64,
    /// Damping of the trend per step ahead.
    pub phi: f64,
    /// Half-life of forecast errors in the empirical quantile, seconds.
    pub error_half_life_seconds: f64,
    /// Most that the margin may add, as a share of the expected peak.
    pub max_margin: f64,
    /// Time after the first request over which the prior gives way to what is seen.
    pub blend_seconds: f64,
    /// Silence after which an agent's telemetry is stale.
    pub stale_after_seconds: f64,
    /// Time for which a stale agent's last rate is held in full; it halves with each such time after that.
    pub hold_seconds: f64,
    /// Half-life of request lengths, class shares and arrival moments.
    pub mix_half_life_seconds: f64,
    /// Most request classes of one pool (more only if it has more SLO classes).
    pub max_classes: usize,
    /// Window of merged latencies and attainment.
    pub window_seconds: f64,
}

impl Default for DemandConfig {
    fn default() -> Self {
        Self {
            step_seconds: 10.0,
            smoothing_steps: 3,
            quantile: 0.9,
            alpha: 0.3,
            beta: 0.1,
            phi: 0.9,
            error_half_life_seconds: 900.0,
            max_margin: 0.5,
            blend_seconds: 300.0,
            stale_after_seconds: 10.0,
            hold_seconds: 300.0,
            mix_half_life_seconds: 600.0,
            max_classes: 6,
            window_seconds: 180.0,
        }
    }
}
