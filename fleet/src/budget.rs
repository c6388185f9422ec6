//! Budgets.

use serde::{Deserialize, Serialize};

use crate::PoolId;

/// What happens to traffic when a cap binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLimit {
    /// Refuse the lowest tier first.
    #[default]
    Shed,
    /// Let it wait.
    Queue,
    /// Serve with a cheaper variant.
    Downgrade,
    /// Serve, and raise an alert.
    Alert,
}

/// What a budget covers. All lists empty: everything. Otherwise a pool is covered if any list names it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BudgetScope {
    /// Namespaces.
    pub namespaces: Vec<String>,
    /// Pools.
    pub pools: Vec<PoolId>,
    /// Tenants (matters to the request ledger, not to the plan).
    pub tenants: Vec<String>,
}

impl BudgetScope {
    /// Whether a pool's replicas count against a budget with this scope.
    pub fn covers(&self, pool: &PoolId) -> bool {
        (self.namespaces.is_empty() && self.pools.is_empty() && self.tenants.is_empty())
            || self.namespaces.iter().any(|n| n == pool.namespace())
            || self.pools.contains(pool)
    }
}

/// A cap on spending.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Name.
    pub name: String,
    /// What it covers.
    pub scope: BudgetScope,
    /// The budget this one is nested in.
    pub parent: Option<String>,
    /// Cap on running cost.
    pub usd_per_hour: Option<f64>,
    /// Cap on monthly cost (730 hours).
    pub usd_per_month: Option<f64>,
    /// Cap on tokens a minute.
    pub tokens_per_minute: Option<f64>,
    /// Cap on power.
    pub watts: Option<f64>,
    /// Cap on emissions.
    pub grams_co2e_per_hour: Option<f64>,
    /// What happens when it binds.
    pub on_limit: OnLimit,
}

impl Budget {
    /// The tighter of the hourly cap and a 730th of the monthly one.
    pub fn effective_usd_per_hour(&self) -> Option<f64> {
        match (self.usd_per_hour, self.usd_per_month.map(|m| m / 730.0)) {
            (Some(h), Some(m)) => Some(h.min(m)),
            (h, m) => h.or(m),
        }
    }
}
