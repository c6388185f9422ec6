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

/// What a budget caps in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BudgetUnit {
    /// Dollars per hour.
    UsdPerHour,
    /// Watts at the accelerators.
    Watts,
    /// Grams of CO₂ equivalent per hour.
    #[serde(rename = "gramsCO2ePerHour")]
    GramsCo2ePerHour,
}

impl BudgetUnit {
    /// All of them, in the order of a Budget's fields.
    pub const ALL: [Self; 3] = [Self::UsdPerHour, Self::Watts, Self::GramsCo2ePerHour];

    /// The field of a Budget that caps it.
    pub fn field(self) -> &'static str {
        match self {
            Self::UsdPerHour => "usdPerHour",
            Self::Watts => "watts",
            Self::GramsCo2ePerHour => "gramsCO2ePerHour",
        }
    }

    /// An amount as people write it: `$1.40/h`, `350 W`, `900 gCO2e/h`.
    pub fn amount(self, value: f64) -> String {
        let figure = |v: f64| if v.abs() < 10.0 { format!("{v:.1}") } else { format!("{v:.0}") };
        match self {
            Self::UsdPerHour => format!("${value:.2}/h"),
            Self::Watts => format!("{} W", figure(value)),
            Self::GramsCo2ePerHour => format!("{} gCO2e/h", figure(value)),
        }
    }

    /// The amount that a price is given for, such as 100 for watts: less of it would be worth fractions of a cent.
    pub fn step(self) -> f64 {
        match self {
            Self::UsdPerHour => 1.0,
            Self::Watts | Self::GramsCo2ePerHour => 100.0,
        }
    }

    /// That amount as people write it.
    pub fn step_text(self) -> &'static str {
        match self {
            Self::UsdPerHour => "$/h",
            Self::Watts => "100 W",
            Self::GramsCo2ePerHour => "100 gCO2e/h",
        }
    }
}

/// What replicas take of the budgets that cover them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Consumption {
    /// Running cost.
    pub usd_per_hour: f64,
    /// Power at the accelerators.
    pub watts: f64,
    /// Emissions.
    pub grams_co2e_per_hour: f64,
}

impl Consumption {
    /// The part that a cap of this unit counts.
    pub fn of(&self, unit: BudgetUnit) -> f64 {
        match unit {
            BudgetUnit::UsdPerHour => self.usd_per_hour,
            BudgetUnit::Watts => self.watts,
            BudgetUnit::GramsCo2ePerHour => self.grams_co2e_per_hour,
        }
    }
}

impl std::ops::AddAssign for Consumption {
    fn add_assign(&mut self, more: Self) {
        self.usd_per_hour += more.usd_per_hour;
        self.watts += more.watts;
        self.grams_co2e_per_hour += more.grams_co2e_per_hour;
    }
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
    /// The cap of a unit, if the budget has one.
    pub fn cap(&self, unit: BudgetUnit) -> Option<f64> {
        match unit {
            BudgetUnit::UsdPerHour => self.effective_usd_per_hour(),
            BudgetUnit::Watts => self.watts,
            BudgetUnit::GramsCo2ePerHour => self.grams_co2e_per_hour,
        }
    }

    /// Replaces the cap of a unit.
    pub fn set_cap(&mut self, unit: BudgetUnit, cap: f64) {
        match unit {
            BudgetUnit::UsdPerHour => (self.usd_per_hour, self.usd_per_month) = (Some(cap), None),
            BudgetUnit::Watts => self.watts = Some(cap),
            BudgetUnit::GramsCo2ePerHour => self.grams_co2e_per_hour = Some(cap),
        }
    }

    /// The tighter of the hourly cap and a 730th of the monthly one.
    pub fn effective_usd_per_hour(&self) -> Option<f64> {
        match (self.usd_per_hour, self.usd_per_month.map(|m| m / 730.0)) {
            (Some(h), Some(m)) => Some(h.min(m)),
            (h, m) => h.or(m),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_as_people_write_them() {
        let text = |unit: BudgetUnit, x: f64| unit.amount(x);
        assert_eq!(text(BudgetUnit::UsdPerHour, 1.4), "$1.40/h");
        assert_eq!(text(BudgetUnit::Watts, 349.6), "350 W");
        assert_eq!(text(BudgetUnit::Watts, 2.25), "2.2 W");
        assert_eq!(text(BudgetUnit::GramsCo2ePerHour, 900.0), "900 gCO2e/h");
    }

    #[test]
    fn units_are_written_as_the_fields_of_a_budget() {
        for unit in BudgetUnit::ALL {
            assert_eq!(serde_json::to_value(unit).unwrap(), unit.field());
        }
    }
}
