//! The plan: an immutable, numbered, explained value from which pods, routes and leases derive.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::budget::{BudgetUnit, Consumption, OnLimit};
use crate::{DemandEstimate, NodeName, PoolId, ReplicaId, Role, Shape};

/// One replica the plan wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaAssignment {
    /// Identity: an existing replica's to keep it, a fresh one to create it.
    pub id: ReplicaId,
    /// Shape.
    pub shape: Shape,
    /// Nodes, first the one that answers; empty if the shape must wait for autoscaled capacity.
    pub nodes: Vec<NodeName>,
    /// Whether it runs on interruptible capacity.
    pub spot: bool,
}

/// Predicted latencies of a pool under its planned load, at its own objectives' percentiles.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Prediction {
    /// Time to first token, milliseconds.
    pub ttft_ms: Option<f64>,
    /// Time per output token, milliseconds.
    pub tpot_ms: Option<f64>,
    /// End to end, milliseconds.
    pub e2e_ms: Option<f64>,
    /// Relative error to expect of these figures (p90), e.g. 0.1.
    pub relative_error: f64,
}

/// How a share of a request class flows to the replicas of one shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Name of the request class.
    pub class: String,
    /// Shape that serves it, or does its part of it: what prefill replicas take, decode replicas take as well.
    pub shape: Shape,
    /// Zone that a prefill or decode replica's flow is bound to, because its counterparts are there (empty: any).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Rate, requests per second.
    pub rps: f64,
}

/// A constraint that binds, and what one more unit of it would save.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BindingConstraint {
    /// What binds, e.g. `inventory h100 zone-a` or `budget team-a`.
    pub constraint: String,
    /// Unit of one step, e.g. `GPU`, `$/h` or `100 W`.
    pub unit: String,
    /// Cost that one more unit would save, $/h (shadow price).
    pub usd_per_hour_per_unit: f64,
    /// Whether demand is left unserved: one more unit would then serve more of it, and its price is no saving.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unserved: bool,
}

impl fmt::Display for BindingConstraint {
    /// `budget team-a (one more $/h saves $0.52/h)`, `budget green (100 W more saves $0.12/h)`, `inventory h100 a (one more GPU
    /// serves more of what is unserved)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = match self.unit.starts_with(|c: char| c.is_ascii_digit()) {
            true => format!("{} more", self.unit),
            false => format!("one more {}", self.unit),
        };
        if self.unserved {
            return write!(f, "{} ({more} serves more of what is unserved)", self.constraint);
        }
        write!(f, "{} ({more} saves ${:.2}/h)", self.constraint, self.usd_per_hour_per_unit)
    }
}

/// The best choice that was not taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunnerUp {
    /// What it is, e.g. `1× bf16 TP4 L40S`.
    pub fleet: String,
    /// Its cost less the chosen cost, $/h.
    pub extra_usd_per_hour: f64,
    /// Why it lost, in a few words.
    pub because: String,
}

/// Why a pool got what it got.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Why {
    /// One short line: the reason a person sees in `kubectl get mp`.
    pub summary: String,
    /// Constraints that bind for this pool, dearest first.
    pub binding: Vec<BindingConstraint>,
    /// Runner-up, if any shape or mix was feasible besides the chosen one.
    pub runner_up: Option<RunnerUp>,
    /// What would lift a limit or lower the cost, one line each.
    pub would_help: Vec<String>,
    /// What else there is to know: budgets that only alert and are exceeded, spot capacity taken or not, variants below the
    /// wanted quality, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// Shapes that cannot serve this pool, and why, one line each (bounded to the few most telling).
    pub rejected: Vec<String>,
}

/// What runs today of engines that a pool adopts: read, never changed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TodaysFleet {
    /// The fleet as people say it, e.g. `4× bf16 TP1 H100`.
    pub fleet: String,
    /// Engines, those included that are not understood.
    pub replicas: u32,
    /// Engines that serve.
    pub ready: u32,
    /// Engines that are not understood: in the cost, in no rate.
    pub unknown: u32,
    /// Cost of all accelerators that they hold, at the pool's prices.
    pub usd_per_hour: f64,
    /// Highest rate at which those that serve still meet the objectives, by Plimsoll's model, requests per second.
    pub max_rps: f64,
    /// Shapes that miss an objective at any rate, and which, one line each.
    pub misses: Vec<String>,
}

/// Outcome for one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolOutcome {
    /// All planned demand is served within its objectives.
    Served,
    /// At zero replicas on purpose.
    ScaledToZero,
    /// Some demand is unserved because a budget binds.
    BudgetLimited,
    /// Some demand is unserved because accelerators are short.
    CapacityLimited,
    /// No allowed shape fits the model or meets the objectives.
    Infeasible,
}

impl fmt::Display for PoolOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Served => "served",
            Self::ScaledToZero => "scaled to zero",
            Self::BudgetLimited => "budget-limited",
            Self::CapacityLimited => "capacity-limited",
            Self::Infeasible => "infeasible",
        })
    }
}

/// One pool's part of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolPlan {
    /// Pool.
    pub pool: PoolId,
    /// UID of the ModelPool this was planned for.
    pub uid: String,
    /// Generation of the spec this was planned for.
    pub generation: i64,
    /// Outcome.
    pub outcome: PoolOutcome,
    /// Wanted replicas.
    pub replicas: Vec<ReplicaAssignment>,
    /// Flow of each request class to each shape; what is prefilled and decoded apart is in it twice.
    pub flows: Vec<Flow>,
    /// Demand left unserved, requests per second.
    pub unserved_rps: f64,
    /// Demand it was planned for.
    pub demand: DemandEstimate,
    /// Load line of one replica of each shape in use under the planned mix, requests per second.
    pub load_lines: Vec<(Shape, f64)>,
    /// Planned utilisation of the load line, 0–1.
    pub utilisation: f64,
    /// Cost of the wanted replicas.
    pub usd_per_hour: f64,
    /// Power of their accelerators at the load line, watts.
    #[serde(default)]
    pub watts: f64,
    /// Emissions at that power, grams of CO₂ equivalent per hour.
    #[serde(default)]
    pub grams_co2e_per_hour: f64,
    /// Power of the accelerators of one replica of each shape in use at its load line, watts.
    #[serde(default)]
    pub replica_watts: Vec<(Shape, f64)>,
    /// Predicted latencies.
    pub prediction: Prediction,
    /// Fewest and most replicas the fast loop may hold without a new plan.
    pub envelope: (u32, u32),
    /// Reasons.
    pub why: Why,
    /// What runs today, of a pool that adopts engines of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub today: Option<TodaysFleet>,
}

impl PoolPlan {
    /// Rate that is served: each request once, wherever it is decoded.
    pub fn served_rps(&self) -> f64 {
        self.flows.iter().filter(|f| f.shape.role != Role::Prefill).map(|f| f.rps).sum()
    }

    /// What its replicas take of budgets.
    pub fn consumption(&self) -> Consumption {
        Consumption {
            usd_per_hour: self.usd_per_hour,
            watts: self.watts,
            grams_co2e_per_hour: self.grams_co2e_per_hour,
        }
    }

    /// Highest rate of the wanted replicas within the objectives, under the planned mix, requests per second.
    pub fn max_rps(&self) -> f64 {
        let line = |s: &Shape| self.load_lines.iter().find(|(l, _)| l == s).map_or(0.0, |(_, rps)| *rps);
        served_rps(self.by_shape().iter().map(|(s, n)| (s.role, f64::from(*n) * line(s))))
    }

    /// What runs today beside what is advised, for a pool that adopts engines of others.
    pub fn comparison(&self) -> Option<String> {
        let today = self.today.as_ref()?;
        let fleet = |fleet: &str, usd: f64, rps: f64| format!("{fleet} at ${usd:.2}/h for ≤ {rps:.1} rps");
        let difference = self.usd_per_hour - today.usd_per_hour;
        let verdict = match difference {
            d if d < -0.005 => format!("saves ${:.2}/h", -d),
            d if d > 0.005 => format!("costs ${d:.2}/h more"),
            _ => "costs the same".to_owned(),
        };
        Some(format!(
            "today {}; advised {}, {verdict}",
            fleet(&today.fleet, today.usd_per_hour, today.max_rps),
            fleet(&self.fleet_text(), self.usd_per_hour, self.max_rps()),
        ))
    }

    /// Replicas counted by shape, as `(shape, count)`, in shape order.
    pub fn by_shape(&self) -> BTreeMap<Shape, u32> {
        let mut counts = BTreeMap::new();
        for r in &self.replicas {
            *counts.entry(r.shape.clone()).or_insert(0) += 1;
        }
        counts
    }

    /// The fleet as people say it: `2× fp8 TP2 H100 + 1× bf16 TP4 L40S`, or `–` when empty.
    pub fn fleet_text(&self) -> String {
        let parts: Vec<String> = self.by_shape().iter().map(|(s, n)| format!("{n}× {s}")).collect();
        if parts.is_empty() { "–".to_owned() } else { parts.join(" + ") }
    }
}

/// What replicas serve together, from the role and rate of each: those that serve requests whole, and as much as can be both prefilled
/// and decoded. Requests per second, or any other measure of a flow.
pub fn served_rps(replicas: impl IntoIterator<Item = (Role, f64)>) -> f64 {
    let (mut whole, mut prefill, mut decode) = (0.0, 0.0, 0.0);
    for (role, rps) in replicas {
        *match role {
            Role::Mixed => &mut whole,
            Role::Prefill => &mut prefill,
            Role::Decode => &mut decode,
        } += rps;
    }
    whole + f64::min(prefill, decode)
}

/// How good the solution is known to be.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct SolveQuality {
    /// Objective of the plan.
    pub objective: f64,
    /// Proved lower bound on the objective.
    pub bound: f64,
    /// `(objective − bound) / |objective|`, 0 when optimal.
    pub gap: f64,
    /// Time the solve took, milliseconds.
    pub solve_ms: f64,
}

/// What a plan takes of one cap of a budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BudgetUse {
    /// Name of the budget.
    pub budget: String,
    /// What the cap is of.
    pub unit: BudgetUnit,
    /// The cap, in that unit.
    pub cap: f64,
    /// What the replicas of all pools that count against it take.
    pub planned: f64,
    /// What happens when it binds.
    pub on_limit: OnLimit,
}

impl BudgetUse {
    /// By how much the plan exceeds the cap; `None` if it does not.
    pub fn excess(&self) -> Option<f64> {
        let excess = self.planned - self.cap;
        (excess > 1e-6 * (1.0 + self.cap.abs())).then_some(excess)
    }
}

impl fmt::Display for BudgetUse {
    /// `budget green: 5200 W of 5000 W planned`, and by how much that is too much.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount = |x| self.unit.amount(x);
        write!(f, "budget {}: {} of {} planned", self.budget, amount(self.planned), amount(self.cap))?;
        self.excess().map_or(Ok(()), |excess| write!(f, ", {} too much", amount(excess)))
    }
}

/// A plan for the whole fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Serial number, growing by one.
    pub number: u64,
    /// When it was made.
    pub created_at: jiff::Timestamp,
    /// What made the scheduler plan anew, e.g. `demand of default/chat rose 2.1×`.
    pub trigger: String,
    /// Pools, in order of identity.
    pub pools: Vec<PoolPlan>,
    /// Cost of all wanted replicas.
    pub usd_per_hour: f64,
    /// Power of their accelerators at the load line, watts.
    #[serde(default)]
    pub watts: f64,
    /// Emissions at that power, grams of CO₂ equivalent per hour.
    #[serde(default)]
    pub grams_co2e_per_hour: f64,
    /// What is planned of each cap of each budget.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<BudgetUse>,
    /// Constraints that bind, dearest first.
    pub binding: Vec<BindingConstraint>,
    /// Quality of the solution.
    pub quality: SolveQuality,
    /// Autoscalable capacity that is not counted on for a while, because it did not come when asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unprovisioned: Vec<Unprovisioned>,
}

/// Autoscalable capacity of an accelerator class that did not come when a replica asked for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unprovisioned {
    /// Name of the accelerator class.
    pub accelerator: String,
    /// When it is counted on again.
    pub until: jiff::Timestamp,
}

impl Plan {
    /// One pool's part.
    pub fn pool(&self, id: &PoolId) -> Option<&PoolPlan> {
        self.pools.iter().find(|p| &p.pool == id)
    }
}

/// A record of one scaling decision, kept per pool for `explain` and Events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScalingRecord {
    /// Pool (`None` in records of a whole fleet).
    #[serde(default)]
    pub pool: Option<PoolId>,
    /// When.
    pub at: jiff::Timestamp,
    /// Plan that decided it.
    pub plan: u64,
    /// Fleet before.
    pub from: String,
    /// Fleet after.
    pub to: String,
    /// Replicas before and after.
    pub replicas: (u32, u32),
    /// Why.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_say_what_more_of_them_saves() {
        let text = |constraint: &str, unit: &str, usd: f64| {
            let (constraint, unit) = (constraint.to_owned(), unit.to_owned());
            BindingConstraint { constraint, unit, usd_per_hour_per_unit: usd, unserved: usd > 1e3 }
                .to_string()
        };
        assert_eq!(text("inventory h100 a", "GPU", 2.3), "inventory h100 a (one more GPU saves $2.30/h)");
        assert_eq!(
            text("budget green", BudgetUnit::Watts.step_text(), 0.12),
            "budget green (100 W more saves $0.12/h)"
        );
        assert_eq!(text("budget a", "$/h", 1e6), "budget a (one more $/h serves more of what is unserved)");
    }

    #[test]
    fn a_cap_is_exceeded_only_by_more_than_rounding() {
        let (budget, unit) = ("green".to_owned(), BudgetUnit::Watts);
        let mut used =
            BudgetUse { budget, unit, cap: 5000.0, planned: 5000.0 + 1e-5, on_limit: OnLimit::Alert };
        assert_eq!(used.to_string(), "budget green: 5000 W of 5000 W planned");
        used.planned = 5200.0;
        assert_eq!(used.excess(), Some(200.0));
        assert_eq!(used.to_string(), "budget green: 5200 W of 5000 W planned, 200 W too much");
    }
}
