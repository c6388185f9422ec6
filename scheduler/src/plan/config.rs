//! Settings of the planner.

use super::solver::Limits;

/// Settings of the planner. The defaults suit a fleet that re-plans about every minute.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannerConfig {
    /// Predictions must stay below the objectives by this many times their known relative error.
    pub margin_factor: f64,
    /// What a request costs that does not meet its objectives because more came, or all took longer, than foreseen: in prices of
    /// serving it. Capacity beyond the plan is bought until it costs what it is expected to save ([`super::margin`]); up to 1 (the default): none.
    pub lost_request_price: f64,
    /// By how much demand may exceed its estimate, relative (90 % stay within): what the estimate's own quantile does not cover.
    pub demand_error: f64,
    /// Time over which the price of a start or stop is spread, seconds: how long a decision is expected to hold.
    pub change_horizon_seconds: f64,
    /// Price of a stop, as a share of the price of a start.
    pub stop_share: f64,
    /// Running replicas are kept while demand less than this share above the estimate would need them: a dip that
    /// is smaller than the forecast's own noise stops nothing.
    pub scale_down_headroom: f64,
    /// Most times that placement's findings go back to the program.
    pub placement_rounds: u32,
    /// Branch-and-bound nodes of one solve.
    pub solve_nodes: u64,
    /// Relative gap at which a solve may stop.
    pub solve_gap: f64,
    /// Time within which an autoscaler must have added a node for a replica that waits for one, seconds.
    pub provision_seconds: f64,
    /// Time for which autoscalable capacity of a class is not counted on after it did not come, seconds.
    pub unprovisioned_seconds: f64,
    /// Wall-clock safety net of one solve, seconds.
    pub solve_seconds: f64,
}

impl Default for PlannerConfig {
    fn default() -> Self {
        Self {
            margin_factor: 1.0,
            lost_request_price: 0.0,
            demand_error: 0.0,
            change_horizon_seconds: 600.0,
            stop_share: 0.1,
            scale_down_headroom: 0.15,
            placement_rounds: 3,
            solve_nodes: 2_000,
            solve_gap: 1e-4,
            provision_seconds: 900.0,
            unprovisioned_seconds: 1800.0,
            solve_seconds: 5.0,
        }
    }
}

impl PlannerConfig {
    /// Margin for predictions with this relative error, 0–1.
    pub fn margin(&self, relative_error: f64) -> f64 {
        let error = if relative_error.is_finite() { relative_error.clamp(0.0, 1.0) } else { 0.25 };
        (error * self.margin_factor).clamp(0.0, 1.0)
    }

    /// Limits of one solve.
    pub fn limits(&self) -> Limits {
        Limits { nodes: self.solve_nodes, gap: self.solve_gap, seconds: self.solve_seconds }
    }

    /// Price of a start in dollars per hour, for each dollar per hour that the replica costs.
    pub fn start_factor(&self, cold_start_seconds: f64) -> f64 {
        let cold =
            if cold_start_seconds.is_finite() { cold_start_seconds.clamp(0.0, 86_400.0) } else { 60.0 };
        cold / self.change_horizon_seconds.max(1.0)
    }
}
