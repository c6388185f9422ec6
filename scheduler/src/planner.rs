//! What the service asks of the planning functions. The service itself decides only when to ask.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use plimsoll_fleet::plan::Why;
use plimsoll_fleet::{ClusterSnapshot, DemandEstimate, NodeName, Plan, PoolId, RouteTable};

use crate::demand::{DemandConfig, DemandTracker};
use crate::explain;
use crate::plan::{self, PlanInput, PlannerConfig, ShapeCache};
use crate::records::free_serial;

/// What a plan is made from. Times are virtual.
#[derive(Debug, Clone)]
pub struct PlanRequest {
    /// The cluster.
    pub snapshot: Arc<ClusterSnapshot>,
    /// Demand by pool.
    pub demands: BTreeMap<PoolId, DemandEstimate>,
    /// The plan in force.
    pub previous: Option<Plan>,
    /// Number of the new plan.
    pub number: u64,
    /// First serial number for new replicas.
    pub next_serial: u64,
    /// Now.
    pub now: Timestamp,
    /// What made the scheduler plan anew.
    pub trigger: String,
    /// Seconds each pool has been without a request.
    pub idle: BTreeMap<PoolId, f64>,
}

/// A new plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// First serial number for the next plan's new replicas.
    pub next_serial: u64,
}

/// Plans, routes, explains. All functions are pure but for caches, and may take seconds.
pub trait Planner: Send + Sync + 'static {
    /// Makes a plan.
    fn plan(&self, request: &PlanRequest) -> Planned;

    /// Derives the routes of a plan; `agents` maps a node to its agent's `host:port`.
    fn routes(
        &self,
        plan: &Plan,
        snapshot: &ClusterSnapshot,
        agents: &BTreeMap<NodeName, String>,
        version: u64,
    ) -> RouteTable;

    /// A pool's reasons in full (with what-ifs that the plan itself leaves out), `None` if the pool is not in the plan.
    fn explain(&self, request: &PlanRequest, plan: &Plan, pool: &PoolId) -> Option<Why>;

    /// Applies a change such as `gpu/h100+4` to a cluster and its demands.
    ///
    /// # Errors
    /// What is wrong with the change, and what to write instead.
    fn change(
        &self,
        snapshot: &mut ClusterSnapshot,
        demands: &mut BTreeMap<PoolId, DemandEstimate>,
        change: &str,
    ) -> Result<(), String>;
}

/// The planner of this crate: [`crate::plan`], [`crate::routes`] and [`crate::explain`] with a cache kept between plans.
#[derive(Debug, Default)]
pub struct EnginePlanner {
    config: PlannerConfig,
    cache: ShapeCache,
}

impl EnginePlanner {
    /// A planner with these settings.
    pub fn new(config: PlannerConfig) -> Self {
        Self { config, cache: ShapeCache::default() }
    }

    fn input<'a>(&'a self, request: &'a PlanRequest) -> PlanInput<'a> {
        PlanInput {
            snapshot: &request.snapshot,
            demands: &request.demands,
            previous: request.previous.as_ref(),
            config: &self.config,
            number: request.number,
            next_serial: request.next_serial,
            now: request.now,
            trigger: request.trigger.clone(),
            idle: &request.idle,
            cache: &self.cache,
        }
    }
}

impl Planner for EnginePlanner {
    fn plan(&self, request: &PlanRequest) -> Planned {
        let outcome = plan::plan(&self.input(request));
        Planned { plan: outcome.plan, next_serial: outcome.next_serial }
    }

    fn routes(
        &self,
        plan: &Plan,
        snapshot: &ClusterSnapshot,
        agents: &BTreeMap<NodeName, String>,
        version: u64,
    ) -> RouteTable {
        crate::routes::routes(plan, snapshot, agents, version)
    }

    fn explain(&self, request: &PlanRequest, plan: &Plan, pool: &PoolId) -> Option<Why> {
        plan.pool(pool)?;
        Some(explain::deepen(&self.input(request), plan, pool))
    }

    fn change(
        &self,
        snapshot: &mut ClusterSnapshot,
        demands: &mut BTreeMap<PoolId, DemandEstimate>,
        change: &str,
    ) -> Result<(), String> {
        let (s, d) = explain::what_if::apply(snapshot, demands, change).map_err(|e| e.to_string())?;
        *snapshot = s;
        *demands = d;
        Ok(())
    }
}

/// Plans a cluster that nobody runs, with the demand its pools expect (`plimsoll plan -f DIR`), and again under
/// `changes` if there are any. What an earlier plan wanted counts as under way.
///
/// # Errors
/// What is wrong with a change, and what to write instead.
pub fn plan_offline(
    planner: &dyn Planner,
    snapshot: ClusterSnapshot,
    earlier: Option<&Plan>,
    changes: &[String],
    now: Timestamp,
) -> Result<(Plan, Option<Plan>), String> {
    let mut tracker = DemandTracker::new(DemandConfig::default());
    tracker.sync_pools(&snapshot.pools);
    let at = crate::clock::seconds(now);
    let demands =
        snapshot.pools.iter().map(|p| (p.id.clone(), tracker.estimate(p, at))).collect::<BTreeMap<_, _>>();
    let mut request = PlanRequest {
        next_serial: free_serial(1, &snapshot, earlier),
        snapshot: Arc::new(snapshot),
        demands,
        previous: earlier.cloned(),
        number: earlier.map_or(1, |p| p.number + 1),
        now,
        trigger: "planned from files".to_owned(),
        idle: BTreeMap::new(),
    };
    let base = planner.plan(&request).plan;
    if changes.is_empty() {
        return Ok((base, None));
    }
    let mut changed = ClusterSnapshot::clone(&request.snapshot);
    for change in changes {
        planner.change(&mut changed, &mut request.demands, change)?;
    }
    request.snapshot = Arc::new(changed);
    request.previous = Some(base.clone());
    request.number += 1;
    request.trigger = format!("what if {}", changes.join(", "));
    let changed = planner.plan(&request).plan;
    Ok((base, Some(changed)))
}
