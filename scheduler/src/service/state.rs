//! What the service's tasks share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use plimsoll_fleet::telemetry::EngineReport;
use plimsoll_fleet::{
    ClusterSnapshot, DemandEstimate, ModelPool, NodeName, Plan, PoolId, ReplicaId, RouteTable, Shape,
};
use plimsoll_proto::v1;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::SchedulerConfig;
use super::metrics::SchedulerMetrics;
use super::persist::Records;
use crate::adapters::Rates;
use crate::canary::Canaries;
use crate::clock::{Clock, seconds};
use crate::cold_start::ColdStarts;
use crate::demand::{DemandTracker, Rate};
use crate::drain::DrainState;
use crate::fast::FastState;
use crate::ledger::Ledger;
use crate::planner::Planner;
use crate::speed::Speeds;
use crate::store::Store;
use crate::store::etcd::Seat;

/// Route tables kept to send deltas from.
const TABLES_KEPT: usize = 32;

/// One agent.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its node; `None` for a gateway.
    pub node: Option<NodeName>,
    /// Where it takes requests.
    pub address: String,
    /// When it last said anything, wall time.
    pub last_seen: Timestamp,
    /// Its newest session.
    pub session: u64,
}

/// An engine as last reported.
#[derive(Debug, Clone)]
pub struct EngineSeen {
    /// The report.
    pub report: EngineReport,
    /// When, virtual seconds.
    pub at: f64,
    /// Name of the agent that reported it.
    pub agent: String,
}

/// A reason to plan anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The reason.
    pub why: String,
    /// Whether it cannot wait until enough time has passed since the last plan.
    pub urgent: bool,
}

/// A rate that replicas were too few for, whatever the forecast says. Without it, the next plan would take back what
/// the fast loop has just added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    /// Requests per second.
    pub rps: f64,
    /// Until when it holds, virtual seconds.
    pub until: f64,
}

/// Mutable state, behind one short-held lock.
#[derive(Debug)]
pub struct State {
    /// Newest snapshot (virtual times).
    pub snapshot: Option<Arc<ClusterSnapshot>>,
    /// Whether the snapshot was pushed in this life; one from the store is only for looking at.
    pub snapshot_is_current: bool,
    /// Cold starts as measured.
    pub cold_starts: ColdStarts,
    /// Who pushed it, with its sequence number.
    pub pushed: Option<(String, u64)>,
    /// Demand.
    pub demand: DemandTracker,
    /// Judgements of new engine configurations.
    pub canaries: Canaries,
    /// Speeds of replicas against predictions.
    pub speeds: Speeds,
    /// Rates of LoRA adapters.
    pub adapters: Rates,
    /// Engines by replica.
    pub engines: BTreeMap<ReplicaId, EngineSeen>,
    /// Plan in force (wall times).
    pub plan: Option<Arc<Plan>>,
    /// First free serial number.
    pub next_serial: u64,
    /// Newest route tables, newest last.
    pub tables: VecDeque<Arc<RouteTable>>,
    /// Agents by name.
    pub agents: BTreeMap<String, Agent>,
    /// Drains.
    pub drain: DrainState,
    /// Fast loop.
    pub fast: FastState,
    /// Leases.
    pub ledger: Ledger,
    /// Load lines by pool and shape as last planned.
    pub load_lines: BTreeMap<(PoolId, Shape), f64>,
    /// Scaling records.
    pub records: Records,
    /// Dollars spent by pool since the start.
    pub usd: BTreeMap<PoolId, f64>,
    /// Up to when they are counted, virtual seconds.
    pub usd_until: f64,
    /// What the fast loop has shown to be needed.
    pub floors: BTreeMap<PoolId, Floor>,
    /// Why to plan anew, if at all.
    pub due: Option<Due>,
    /// Whether routes may have to change.
    pub routes_dirty: bool,
    /// Session numbers given out.
    pub sessions: u64,
}

impl State {
    /// Nodes with an agent that was heard of within `timeout`, and its (name, address).
    pub fn live_agents(
        &self,
        now: Timestamp,
        timeout: SignedDuration,
    ) -> BTreeMap<NodeName, (String, String)> {
        let mut newest: BTreeMap<NodeName, (&Timestamp, &String, &Agent)> = BTreeMap::new();
        for (name, agent) in &self.agents {
            let Some(node) = &agent.node else { continue };
            if now.duration_since(agent.last_seen) > timeout || agent.address.is_empty() {
                continue;
            }
            if newest.get(node).is_none_or(|(seen, ..)| **seen <= agent.last_seen) {
                newest.insert(node.clone(), (&agent.last_seen, name, agent));
            }
        }
        newest.into_iter().map(|(n, (_, name, a))| (n, (name.clone(), a.address.clone()))).collect()
    }

    /// Pools for which engines hold work, by what their agents said last.
    pub fn busy_pools(&self) -> BTreeSet<PoolId> {
        let Some(snapshot) = &self.snapshot else { return BTreeSet::new() };
        let works = |r: &EngineReport| {
            r.outstanding_tokens > 0.0
                || r.running.is_some_and(|n| n > 0.0)
                || r.waiting.is_some_and(|n| n > 0.0)
        };
        snapshot
            .replicas
            .iter()
            .filter(|r| self.engines.get(&r.id).is_some_and(|e| works(&e.report)))
            .map(|r| r.pool.clone())
            .collect()
    }

    /// The rate to plan for: the forecast, or what the fast loop has shown to be needed.
    pub fn rate(&self, pool: &ModelPool, now: f64) -> Rate {
        let mut rate = self.demand.rate(pool, now);
        if let Some(floor) = self.floors.get(&pool.id).filter(|f| f.until > now && f.rps > rate.rps) {
            rate.rps = floor.rps;
            rate.source =
                format!("{}; raised to {:.1} rps because replicas were full", rate.source, floor.rps);
        }
        rate
    }

    /// Demand of every pool of a snapshot, and their idle times.
    pub fn demands(
        &self,
        snapshot: &ClusterSnapshot,
        now: f64,
    ) -> (BTreeMap<PoolId, DemandEstimate>, BTreeMap<PoolId, f64>) {
        let one = |p: &ModelPool| {
            let mut demand = self.demand.estimate(p, now);
            let (rate, total) = (self.rate(p, now), demand.total_rps());
            if rate.rps > total && total > 0.0 {
                demand.classes.iter_mut().for_each(|c| c.rps *= rate.rps / total);
                demand.source = rate.source;
            }
            ((p.id.clone(), demand), (p.id.clone(), self.demand.idle_seconds(&p.id)))
        };
        snapshot.pools.iter().map(one).unzip()
    }

    /// The route table in force.
    pub fn table(&self) -> Option<&Arc<RouteTable>> {
        self.tables.back()
    }

    /// Puts a table into force.
    pub fn push_table(&mut self, table: Arc<RouteTable>) {
        self.tables.push_back(table);
        while self.tables.len() > TABLES_KEPT {
            self.tables.pop_front();
        }
    }

    /// The plan's load lines join those already known.
    pub fn learn_load_lines(&mut self, plan: &Plan) {
        self.load_lines.retain(|(pool, _), _| plan.pool(pool).is_some());
        for pool in &plan.pools {
            for (shape, rps) in &pool.load_lines {
                self.load_lines.insert((pool.pool.clone(), shape.clone()), *rps);
            }
        }
    }
}

/// Replicas to drain, by node.
pub type Drains = BTreeMap<NodeName, BTreeSet<ReplicaId>>;

/// Everything the tasks share.
pub struct Shared {
    /// Mutable state.
    pub state: Mutex<State>,
    /// Settings.
    pub config: SchedulerConfig,
    /// The store's name: route versions compare only within it.
    pub identity: String,
    /// Virtual time.
    pub clock: Clock,
    /// Planning functions.
    pub planner: Arc<dyn Planner>,
    /// Store.
    pub store: Arc<dyn Store>,
    /// The term of leading, where there was an election.
    pub seat: Option<Seat>,
    /// Metrics.
    pub metrics: SchedulerMetrics,
    /// One writes token reserves at a time, so that the newest are what the store holds.
    pub reserving: tokio::sync::Mutex<()>,
    /// Wakes the loops.
    pub wake: Notify,
    /// Newest plan.
    pub plans: watch::Sender<Option<Arc<Plan>>>,
    /// Newest routes.
    pub routes: watch::Sender<Option<Arc<RouteTable>>>,
    /// Drains.
    pub drains: watch::Sender<Arc<Drains>>,
    /// Observations.
    pub observations: watch::Sender<Arc<v1::Observations>>,
    /// Wall time and instant of the start: wall time then goes on without leaps.
    pub started: (Timestamp, Instant),
}

impl Shared {
    /// Wall time.
    pub fn wall_now(&self) -> Timestamp {
        let (at, instant) = self.started;
        SignedDuration::try_from(instant.elapsed()).ok().and_then(|d| at.checked_add(d).ok()).unwrap_or(at)
    }

    /// Virtual time.
    pub fn now(&self) -> Timestamp {
        self.clock.to_virtual(self.wall_now())
    }

    /// Virtual time in seconds.
    pub fn now_seconds(&self) -> f64 {
        seconds(self.now())
    }

    /// A snapshot's wall times as virtual times.
    pub fn snapshot_in_virtual_time(&self, mut snapshot: ClusterSnapshot) -> ClusterSnapshot {
        for r in &mut snapshot.replicas {
            r.since = self.clock.to_virtual(r.since);
            r.created_at = self.clock.to_virtual(r.created_at);
            r.ready_at = r.ready_at.map(|t| self.clock.to_virtual(t));
        }
        snapshot
    }

    /// Whether what is granted now cannot be granted by another scheduler too.
    pub fn leads(&self) -> bool {
        self.seat.as_ref().is_none_or(Seat::holds)
    }

    /// Asks for a new plan.
    pub fn request_plan(&self, state: &mut State, why: String, urgent: bool) {
        if state.due.as_ref().is_none_or(|d| urgent && !d.urgent) {
            state.due = Some(Due { why, urgent });
        }
        self.wake.notify_one();
    }
}
