//! The scheduler's own metrics, `plimsoll_scheduler_*`.

use std::sync::atomic::AtomicU64;

use plimsoll_fleet::{Plan, PoolId, RouteTable};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::advice::{self, Advised};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BudgetLabels {
    budget: String,
    unit: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdviceLabels {
    pool: String,
    accelerator: String,
}

/// Counters and gauges. Cloning shares them.
#[derive(Debug, Clone)]
pub struct SchedulerMetrics {
    /// Plans made, whether or not they differed.
    pub(crate) plans: Counter,
    /// Plans that failed.
    pub(crate) plan_failures: Counter,
    /// Time a plan took.
    pub(crate) plan_seconds: Histogram,
    /// Number of the plan in force.
    pub(crate) plan_number: Gauge,
    /// Known gap of the plan in force to the proved bound.
    plan_gap: Gauge<f64, AtomicU64>,
    /// Cost of the plan in force.
    plan_usd_per_hour: Gauge<f64, AtomicU64>,
    /// Power of the plan in force.
    plan_watts: Gauge<f64, AtomicU64>,
    /// Emissions of the plan in force.
    plan_grams_co2e_per_hour: Gauge<f64, AtomicU64>,
    budget_cap: Family<BudgetLabels, Gauge<f64, AtomicU64>>,
    budget_planned: Family<BudgetLabels, Gauge<f64, AtomicU64>>,
    /// Changes by the fast loop.
    pub(crate) fast_changes: Counter,
    /// Version of the route table in force.
    pub(crate) route_version: Gauge,
    /// 1 while this scheduler leads.
    pub(crate) leader: Gauge,
    /// Agents that report.
    pub(crate) agents: Gauge,
    /// Sessions ended because the agent did not keep up.
    pub(crate) agents_dropped: Counter,
    /// Reports taken in.
    pub(crate) reports: Counter,
    /// Reports seen before.
    pub(crate) reports_duplicate: Counter,
    /// Reports that made no sense.
    pub(crate) reports_rejected: Counter,
    /// Snapshots taken in.
    pub(crate) snapshots: Counter,
    /// Writes to the store that failed.
    pub(crate) store_failures: Counter,
    planned_rps: Family<PoolLabel, Gauge<f64, AtomicU64>>,
    wanted_replicas: Family<PoolLabel, Gauge>,
    pool_usd_per_hour: Family<PoolLabel, Gauge<f64, AtomicU64>>,
    pool_watts: Family<PoolLabel, Gauge<f64, AtomicU64>>,
    pool_grams_co2e_per_hour: Family<PoolLabel, Gauge<f64, AtomicU64>>,
    advised_replicas: Family<AdviceLabels, Gauge>,
    advised: Advised,
}

impl SchedulerMetrics {
    /// Creates the metrics and registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let m = Self {
            plans: Counter::default(),
            plan_failures: Counter::default(),
            plan_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            plan_number: Gauge::default(),
            plan_gap: Gauge::default(),
            plan_usd_per_hour: Gauge::default(),
            plan_watts: Gauge::default(),
            plan_grams_co2e_per_hour: Gauge::default(),
            budget_cap: Family::default(),
            budget_planned: Family::default(),
            fast_changes: Counter::default(),
            route_version: Gauge::default(),
            leader: Gauge::default(),
            agents: Gauge::default(),
            agents_dropped: Counter::default(),
            reports: Counter::default(),
            reports_duplicate: Counter::default(),
            reports_rejected: Counter::default(),
            snapshots: Counter::default(),
            store_failures: Counter::default(),
            planned_rps: Family::default(),
            wanted_replicas: Family::default(),
            pool_usd_per_hour: Family::default(),
            pool_watts: Family::default(),
            pool_grams_co2e_per_hour: Family::default(),
            advised_replicas: Family::default(),
            advised: Advised::default(),
        };
        registry.register(
            advice::METRIC,
            "Replicas that the plan in force advises, by accelerator class",
            m.advised_replicas.clone(),
        );
        let r = registry.sub_registry_with_prefix("plimsoll_scheduler");
        r.register(
            "plans",
            "Plans made, whether or not they differed from the one in force",
            m.plans.clone(),
        );
        r.register("plan_failures", "Plans that failed", m.plan_failures.clone());
        r.register("plan_seconds", "Time a plan took, seconds", m.plan_seconds.clone());
        r.register("plan_number", "Number of the plan in force", m.plan_number.clone());
        r.register("plan_gap", "Relative gap of the plan in force to its proved bound", m.plan_gap.clone());
        r.register(
            "plan_usd_per_hour",
            "Cost of the plan in force, dollars an hour",
            m.plan_usd_per_hour.clone(),
        );
        r.register(
            "plan_watts",
            "Power of the accelerators of the plan in force at their load lines, watts",
            m.plan_watts.clone(),
        );
        r.register(
            "plan_grams_co2e_per_hour",
            "Emissions of the plan in force, grams of CO2 equivalent an hour",
            m.plan_grams_co2e_per_hour.clone(),
        );
        r.register("budget_cap", "Cap of a budget, in the unit of its label", m.budget_cap.clone());
        r.register(
            "budget_planned",
            "What the plan in force takes of a budget, in the unit of its label",
            m.budget_planned.clone(),
        );
        r.register("fast_changes", "Replicas added or removed by the fast loop", m.fast_changes.clone());
        r.register("route_version", "Version of the route table in force", m.route_version.clone());
        r.register("leader", "1 while this scheduler leads, 0 while it stands by", m.leader.clone());
        r.register("agents", "Agents that report", m.agents.clone());
        r.register(
            "agents_dropped",
            "Sessions ended because the agent did not keep up",
            m.agents_dropped.clone(),
        );
        r.register("reports", "Agents' reports taken in", m.reports.clone());
        r.register("reports_duplicate", "Agents' reports seen before", m.reports_duplicate.clone());
        r.register("reports_rejected", "Agents' reports that made no sense", m.reports_rejected.clone());
        r.register("snapshots", "Cluster snapshots taken in", m.snapshots.clone());
        r.register("store_failures", "Writes to the store that failed", m.store_failures.clone());
        r.register("pool_planned_rps", "Demand planned for, requests per second", m.planned_rps.clone());
        r.register("pool_wanted_replicas", "Replicas the plan wants", m.wanted_replicas.clone());
        r.register(
            "pool_usd_per_hour",
            "Cost of the replicas the plan wants, dollars an hour",
            m.pool_usd_per_hour.clone(),
        );
        r.register(
            "pool_watts",
            "Power of the accelerators the plan wants at their load lines, watts",
            m.pool_watts.clone(),
        );
        r.register(
            "pool_grams_co2e_per_hour",
            "Emissions of the replicas the plan wants, grams of CO2 equivalent an hour",
            m.pool_grams_co2e_per_hour.clone(),
        );
        m
    }

    /// What the plan in force advises, for autoscalers.
    pub fn advised(&self) -> Advised {
        self.advised.clone()
    }

    /// Shows the routes in force.
    pub(crate) fn show_routes(&self, table: &RouteTable) {
        self.route_version.set(i64::try_from(table.version).unwrap_or(i64::MAX));
    }

    /// Shows that this scheduler has no say any more: sums over schedulers must not count anything twice.
    pub(crate) fn show_nothing(&self) {
        self.show_routes(&RouteTable::default());
        self.agents.set(0);
        self.plan_number.set(0);
        self.plan_gap.set(0.0);
        self.plan_usd_per_hour.set(0.0);
        self.plan_watts.set(0.0);
        self.plan_grams_co2e_per_hour.set(0.0);
        self.advised.forget();
        self.forget_pools();
    }

    /// Shows a plan. Series of pools that are gone are dropped.
    pub(crate) fn show_plan(&self, plan: &Plan) {
        self.plan_number.set(i64::try_from(plan.number).unwrap_or(i64::MAX));
        self.plan_gap.set(plan.quality.gap);
        self.plan_usd_per_hour.set(plan.usd_per_hour);
        self.plan_watts.set(plan.watts);
        self.plan_grams_co2e_per_hour.set(plan.grams_co2e_per_hour);
        self.forget_pools();
        self.advised.show(plan);
        for used in &plan.budgets {
            let labels = BudgetLabels { budget: used.budget.clone(), unit: used.unit.field().to_owned() };
            self.budget_cap.get_or_create(&labels).set(used.cap);
            self.budget_planned.get_or_create(&labels).set(used.planned);
        }
        let label = |id: &PoolId| PoolLabel { pool: id.to_string() };
        for pool in &plan.pools {
            self.planned_rps.get_or_create(&label(&pool.pool)).set(pool.demand.total_rps());
            self.wanted_replicas.get_or_create(&label(&pool.pool)).set(pool.replicas.len() as i64);
            self.pool_usd_per_hour.get_or_create(&label(&pool.pool)).set(pool.usd_per_hour);
            self.pool_watts.get_or_create(&label(&pool.pool)).set(pool.watts);
            self.pool_grams_co2e_per_hour.get_or_create(&label(&pool.pool)).set(pool.grams_co2e_per_hour);
            let advise = |accelerator: &str, n: u32| {
                let labels =
                    AdviceLabels { pool: pool.pool.to_string(), accelerator: accelerator.to_owned() };
                self.advised_replicas.get_or_create(&labels).inc_by(i64::from(n));
            };
            // A pool at zero has a series too: no number at all would mean that nobody knows.
            if pool.replicas.is_empty() {
                advise("", 0);
            }
            pool.by_shape().iter().for_each(|(shape, n)| advise(&shape.accelerator, *n));
        }
    }

    fn forget_pools(&self) {
        self.planned_rps.clear();
        self.wanted_replicas.clear();
        self.pool_usd_per_hour.clear();
        self.pool_watts.clear();
        self.pool_grams_co2e_per_hour.clear();
        self.budget_cap.clear();
        self.budget_planned.clear();
        self.advised_replicas.clear();
    }
}

impl Default for SchedulerMetrics {
    fn default() -> Self {
        Self::new(&mut Registry::default())
    }
}
