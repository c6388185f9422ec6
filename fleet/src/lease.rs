//! Budget leases: permission to spend, granted for a short time.

use serde::{Deserialize, Serialize};

/// A grant to one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BudgetLease {
    /// Grows with each grant for the budget: a report under an older epoch is refused.
    pub epoch: u64,
    /// Budget.
    pub budget: String,
    /// Agent it was granted to.
    pub agent: String,
    /// What may be spent, in the budget's unit (tokens).
    pub amount: f64,
    /// When it ends; what was not reported spent by then counts as spent.
    pub expires_at: jiff::Timestamp,
}
