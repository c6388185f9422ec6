//! FleetPlan: the current plan's summary, written by Plimsoll for people to read.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of the one FleetPlan object.
pub const CURRENT: &str = "current";

/// The current plan's summary: totals, binding constraints with their prices, changes under way. Read-only; Plimsoll
/// overwrites what others write.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[kube(
    group = "plimsoll.dev",
    version = "v1alpha1",
    kind = "FleetPlan",
    plural = "fleetplans",
    category = "plimsoll",
    derive = "PartialEq",
    doc = "The current plan's summary: totals, binding constraints with their prices, changes under way. Read-only: Plimsoll overwrites what others write.",
    printcolumn(name = "Plan", type_ = "integer", json_path = ".spec.number"),
    printcolumn(name = "Pools", type_ = "integer", json_path = ".spec.totals.pools"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".spec.totals.replicas"),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".spec.totals.accelerators"),
    printcolumn(name = "$/h", type_ = "string", json_path = ".spec.totals.usdPerHour"),
    printcolumn(
        name = "Gap",
        type_ = "string",
        json_path = ".spec.totals.gap",
        description = "Proved distance from the optimum"
    ),
    printcolumn(
        name = "Binding",
        type_ = "string",
        json_path = ".spec.totals.binding",
        description = "The dearest constraint that binds"
    ),
    printcolumn(
        name = "Trigger",
        type_ = "string",
        json_path = ".spec.trigger",
        description = "What made Plimsoll plan anew"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct FleetPlanSpec {
    /// The plan's number.
    pub number: i64,
    /// When it was made (RFC 3339).
    pub created_at: String,
    /// What made Plimsoll plan anew.
    #[serde(default)]
    pub trigger: String,
    /// Totals over all pools.
    #[serde(default)]
    pub totals: Totals,
    /// Constraints that bind, dearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub binding: Vec<Binding>,
    /// Budgets that the plan exceeds because they only alert, and by how much.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceeded: Vec<String>,
    /// Changes under way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// Totals over all pools.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Pools planned.
    pub pools: i32,
    /// Pools some of whose demand is unserved.
    pub unserved_pools: i32,
    /// Replicas wanted.
    pub replicas: i32,
    /// Accelerators wanted.
    pub accelerators: i32,
    /// Cost of all wanted replicas, e.g. `13.60`.
    pub usd_per_hour: String,
    /// Power of their accelerators at the load line, watts, e.g. `4200`.
    #[serde(default)]
    pub watts: String,
    /// Emissions at that power, grams of CO₂ equivalent per hour, e.g. `2384`.
    #[serde(default, rename = "gramsCO2ePerHour")]
    pub grams_co2e_per_hour: String,
    /// Proved distance from the optimum, e.g. `0.4 %`.
    pub gap: String,
    /// Time the solve took, milliseconds.
    pub solve_ms: f64,
    /// The dearest constraint that binds, or `–`.
    pub binding: String,
}

/// A constraint that binds, and what one more unit of it would save.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// What binds, e.g. `inventory h100 zone-a` or `budget team-a`.
    pub constraint: String,
    /// Unit of one step, e.g. `GPU`, `$/h` or `100 W`.
    pub unit: String,
    /// What one more unit would save, $/h.
    pub usd_per_hour_per_unit: f64,
}

/// A pool that does not yet run what the plan wants.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Pool as `namespace/name`.
    pub pool: String,
    /// Replicas being started.
    pub starting: i32,
    /// Replicas being drained.
    pub draining: i32,
    /// The fleet wanted.
    pub to: String,
}
