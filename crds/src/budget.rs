//! Budget: a cap on what a part of the fleet may spend.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use plimsoll_fleet as fleet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::invalid::{Check, InvalidField};

/// A cap on spending: money, tokens, power or emissions. When it binds, the plan serves higher priorities first and says
/// what one more unit of the cap would be worth.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[kube(
    group = "plimsoll.dev",
    version = "v1alpha1",
    kind = "Budget",
    plural = "budgets",
    category = "plimsoll",
    status = "BudgetStatus",
    derive = "PartialEq",
    doc = "A cap on what a part of the fleet may spend: money, tokens, power or emissions. When it binds, the plan serves higher priorities first and says what one more unit of the cap would be worth.",
    printcolumn(
        name = "Cap $/h",
        type_ = "string",
        json_path = ".status.capUsdPerHour",
        description = "The tighter of usdPerHour and usdPerMonth / 730"
    ),
    printcolumn(
        name = "Planned $/h",
        type_ = "string",
        json_path = ".status.plannedUsdPerHour",
        description = "Cost of the covered pools' wanted replicas"
    ),
    printcolumn(
        name = "Binding",
        type_ = "string",
        json_path = ".status.binding",
        description = "Whether demand goes unserved because of it, and its price"
    ),
    printcolumn(name = "On limit", type_ = "string", json_path = ".spec.onLimit"),
    printcolumn(name = "Parent", type_ = "string", json_path = ".spec.parent", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.usdPerHour) || has(self.usdPerMonth) || has(self.tokensPerMinute) || has(self.watts) || has(self.gramsCO2ePerHour)")
        .message("give at least one cap: usdPerHour, usdPerMonth, tokensPerMinute, watts or gramsCO2ePerHour")
)]
pub struct BudgetSpec {
    /// What the budget covers. Left out: everything.
    #[serde(default)]
    pub scope: Scope,
    /// The Budget that this one is nested in: its caps hold as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub parent: Option<String>,
    /// Cap on the running cost of replicas, $/h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1000000000.0))]
    pub usd_per_hour: Option<f64>,
    /// Cap on the cost of a month (730 hours), $.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1000000000000.0))]
    pub usd_per_month: Option<f64>,
    /// Cap on prompt and answer tokens a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1000000000000.0))]
    pub tokens_per_minute: Option<f64>,
    /// Cap on the power of replicas' accelerators, each at its load line, watts. Hosts, networks and cooling are not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1000000000000.0))]
    pub watts: Option<f64>,
    /// Cap on emissions, grams of CO₂ equivalent per hour: that power × the `pue` and `gramsCO2ePerKwh` of the AcceleratorClass.
    #[serde(default, rename = "gramsCO2ePerHour", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1000000000000.0))]
    pub grams_co2e_per_hour: Option<f64>,
    /// What happens when a cap binds. Downgrade: pools may be served with variants below their minQuality rather than not at
    /// all. Alert: nothing is limited; the plan says by how much the cap is exceeded.
    #[serde(default)]
    pub on_limit: OnLimit,
}

/// What a budget covers. All lists empty: everything. Else a pool is covered if any list names it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Scope {
    /// Namespaces whose pools are covered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 63)))]
    pub namespaces: Vec<String>,
    /// Pools as `namespace/name` (a bare name: namespace default).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 317)))]
    pub pools: Vec<String>,
    /// Tenants whose requests are covered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 253)))]
    pub tenants: Vec<String>,
}

/// What happens to traffic when a cap binds.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
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

/// How the budget is used.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct BudgetStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, BudgetLimited.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The tighter of usdPerHour and usdPerMonth / 730, e.g. `20.00`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap_usd_per_hour: Option<String>,
    /// Cost of the covered pools' wanted replicas, e.g. `9.20`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_usd_per_hour: Option<String>,
    /// `no`, or `yes` with the price of one more unit, or by how much a cap that only alerts is exceeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<String>,
    /// What is planned of each cap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<CapStatus>,
}

/// What is planned of a cap.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct CapStatus {
    /// Field of the spec, e.g. `watts`.
    pub cap: String,
    /// The cap, e.g. `5000 W`.
    pub most: String,
    /// What the covered pools' wanted replicas take, those of nested budgets included, e.g. `4200 W`.
    pub planned: String,
}

impl Budget {
    /// The budget as the domain knows it.
    ///
    /// # Errors
    /// Every invalid field, in the order of the spec.
    pub fn to_fleet(&self) -> Result<fleet::Budget, Vec<InvalidField>> {
        let mut check = Check::default();
        let spec = &self.spec;
        let name = self.metadata.name.clone().unwrap_or_default();
        if spec.parent.as_deref() == Some(name.as_str()) {
            check.invalid(
                "spec.parent",
                &name,
                "is the budget itself",
                "name another Budget or leave it out",
            );
        }
        let mut pools = Vec::new();
        for (i, pool) in spec.scope.pools.iter().enumerate() {
            match pool.parse::<fleet::PoolId>() {
                Ok(id) => pools.push(id),
                Err(e) => check.invalid(
                    format!("spec.scope.pools[{i}]"),
                    pool,
                    e.problem,
                    "use namespace/name of a ModelPool",
                ),
            }
        }
        let caps = [
            ("usdPerHour", spec.usd_per_hour),
            ("usdPerMonth", spec.usd_per_month),
            ("tokensPerMinute", spec.tokens_per_minute),
            ("watts", spec.watts),
            ("gramsCO2ePerHour", spec.grams_co2e_per_hour),
        ];
        for (field, cap) in caps {
            if let Some(cap) = cap {
                check.range(&format!("spec.{field}"), cap, 0.0, 1e12);
            }
        }
        if caps.iter().all(|(_, cap)| cap.is_none()) {
            check.invalid(
                "spec",
                "",
                "caps nothing",
                "give usdPerHour, usdPerMonth, tokensPerMinute, watts or gramsCO2ePerHour",
            );
        }
        let value = fleet::Budget {
            name,
            scope: fleet::BudgetScope {
                namespaces: spec.scope.namespaces.clone(),
                pools,
                tenants: spec.scope.tenants.clone(),
            },
            parent: spec.parent.clone(),
            usd_per_hour: spec.usd_per_hour,
            usd_per_month: spec.usd_per_month,
            tokens_per_minute: spec.tokens_per_minute,
            watts: spec.watts,
            grams_co2e_per_hour: spec.grams_co2e_per_hour,
            on_limit: match spec.on_limit {
                OnLimit::Shed => fleet::OnLimit::Shed,
                OnLimit::Queue => fleet::OnLimit::Queue,
                OnLimit::Downgrade => fleet::OnLimit::Downgrade,
                OnLimit::Alert => fleet::OnLimit::Alert,
            },
        };
        check.finish(Some(value))
    }
}
