//! Which replicas drain, and where requests go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use plimsoll_fleet::{ClusterSnapshot, ModelPool, NodeName, Plan, ReplicaId, RouteTable};

use super::{EngineSeen, State};
use crate::adapters;
use crate::clock::Clock;
use crate::drain::{self, DrainInput, DrainState};
use crate::planner::Planner;
use crate::routes::takes_part;

/// Virtual seconds after which a draining replica without an agent counts as drained.
const UNWATCHED_DRAIN_SECONDS: f64 = 300.0;
/// Wall time that requests for a pool that wakes may wait at least, milliseconds.
const WAKE_WAIT_MS: f64 = 10_000.0;

/// Replicas to drain, by node.
pub type Drains = BTreeMap<NodeName, BTreeSet<ReplicaId>>;

/// Everything that routes follow from, taken at one moment: making them may take long.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Drains under way.
    pub drain: DrainState,
    /// The same by node.
    pub drains: Drains,
    /// Nodes with an agent, and its (name, address).
    pub agents: BTreeMap<NodeName, (String, String)>,
    /// Routes in force.
    pub current: Option<Arc<RouteTable>>,
    plan: Arc<Plan>,
    snapshot: Arc<ClusterSnapshot>,
    held: BTreeMap<ReplicaId, BTreeSet<String>>,
    rates: BTreeMap<String, f64>,
    clock: Clock,
}

impl State {
    /// Brings drains up to date; what to make new routes from, if they may have to change. An agent that was silent for
    /// `timeout` counts as gone.
    pub fn routing(&mut self, wall: Timestamp, timeout: SignedDuration) -> Option<Routing> {
        if !self.snapshot_is_current {
            return None;
        }
        let (plan, snapshot) = (self.plan.clone()?, self.snapshot.clone()?);
        let now = self.seconds_at(wall);
        let agents = self.live_agents(wall, timeout);
        let nodes: BTreeSet<NodeName> = agents.keys().cloned().collect();
        let observed = |p: &ModelPool| Some((p.id.clone(), self.demand.observed_rps(&p.id)?));
        let rps = snapshot.pools.iter().filter_map(observed).collect();
        let before = self.drain.clone();
        let input = DrainInput {
            plan: &plan,
            snapshot: &snapshot,
            rps: &rps,
            load_lines: &self.load_lines,
            agents: &nodes,
            unwatched_seconds: UNWATCHED_DRAIN_SECONDS,
            now,
        };
        drain::decide(&mut self.drain, &input);
        let changed = self.drain != before;
        // The set of agents changes with time alone, so it is compared each time.
        let endpoints_outdated = self.table().is_some_and(|t| {
            t.pools
                .iter()
                .flat_map(|p| &p.endpoints)
                .any(|e| agents.get(&e.node).map(|a| &a.1) != e.agent_address.as_ref())
        });
        if !(changed || endpoints_outdated || std::mem::take(&mut self.routes_dirty)) {
            return None;
        }
        let mut drains = Drains::new();
        for replica in snapshot.replicas.iter().filter(|r| self.drain.draining.contains_key(&r.id)) {
            if let Some(node) = replica.nodes.first() {
                drains.entry(node.clone()).or_default().insert(replica.id.clone());
            }
        }
        let of_engine = |(id, seen): (&ReplicaId, &EngineSeen)| {
            (id.clone(), seen.report.adapters.iter().cloned().collect::<BTreeSet<_>>())
        };
        Some(Routing {
            drain: self.drain.clone(),
            drains,
            agents,
            current: self.table().cloned(),
            held: self.engines.iter().map(of_engine).collect(),
            rates: self.adapters.rates(&snapshot, now),
            clock: self.clock,
            plan,
            snapshot,
        })
    }
}

impl Routing {
    /// The routes that follow; `None` if they say the same as those in force.
    pub fn table(&self, planner: &dyn Planner) -> Option<RouteTable> {
        let (plan, snapshot) = (&self.plan, &self.snapshot);
        let addresses: BTreeMap<NodeName, String> =
            self.agents.iter().map(|(n, (_, a))| (n.clone(), a.clone())).collect();
        let version = self.current.as_ref().map_or(0, |t| t.version);
        let serving: BTreeSet<_> =
            snapshot.replicas.iter().filter(|r| takes_part(snapshot, r)).map(|r| r.id.clone()).collect();
        let mut table = planner.routes(plan, snapshot, &addresses, version);
        for pool in &mut table.pools {
            pool.endpoints.retain(|e| !self.drain.drained.contains(&e.replica));
            for e in &mut pool.endpoints {
                // Whether a dropped replica drains already is decided here, by what the others can carry.
                e.draining = self.drain.draining.contains_key(&e.replica) || !serving.contains(&e.replica);
            }
            if pool.unavailable_reason.is_empty() && pool.endpoints.iter().all(|e| e.draining) {
                pool.unavailable_reason = "its replicas are being stopped".to_owned();
            }
            // Agents wait by the wall's clock.
            pool.wake_wait_ms =
                self.clock.wall_seconds(pool.wake_wait_ms).max(pool.wake_wait_ms.min(WAKE_WAIT_MS));
        }
        adapters::route(&mut table, snapshot, &self.rates, &self.held, self.current.as_deref());
        table.version = version + 1;
        table.plan = plan.number;
        self.current.as_ref().is_none_or(|t| !t.says_same(&table)).then_some(table)
    }
}
