//! Control of a fleet, without clock, I/O or tasks: what is known, what comes in, and what follows from it. The service
//! drives it with real clusters and the wall's time, the simulator with simulated ones.
//!
//! Who drives it passes each snapshot to [`State::take_snapshot`] and each agent's report to [`State::take_report`]; calls
//! [`State::pulse`] about once a second; plans when [`Pace::due`] says so ([`State::plan_request`], the planner, then
//! [`State::records_of`] and [`State::put_into_force`]), else lets the fast loop look ([`State::fast`]); and brings drains
//! and routes up to date ([`State::routing`]). Wall times are passed in, decisions see virtual time ([`Clock`]).

mod intake;
mod pace;
mod plans;
mod pulse;
mod routing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use plimsoll_fleet::plan::ScalingRecord;
use plimsoll_fleet::telemetry::EngineReport;
use plimsoll_fleet::{
    ClusterSnapshot, DemandEstimate, ModelPool, NodeName, Plan, PoolId, ReplicaId, RouteTable, Shape,
};

pub use intake::{DuplicateName, ReportTaken, check_names, in_virtual_time};
pub use pace::Pace;
pub use routing::{Drains, Routing};

use crate::adapters::Rates;
use crate::canary::Canaries;
use crate::clock::{Clock, seconds};
use crate::cold_start::ColdStarts;
use crate::demand::{DemandTracker, Rate};
use crate::drain::DrainState;
use crate::fast::FastState;
use crate::ledger::{Ledger, Reserves};
use crate::speed::Speeds;

/// Virtual seconds that a token lease lasts.
pub const LEASE_SECONDS: f64 = 10.0;

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

/// Scaling records by pool, oldest first.
pub type Records = BTreeMap<PoolId, VecDeque<ScalingRecord>>;

/// Everything that is known of a fleet and its control.
#[derive(Debug)]
pub struct State {
    /// Virtual time.
    pub clock: Clock,
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
    /// A fleet of which nothing is known yet. Nothing of token budgets was granted before.
    pub fn new(clock: Clock, demand: DemandTracker, wall: Timestamp) -> Self {
        let now = seconds(clock.to_virtual(wall));
        Self {
            clock,
            snapshot: None,
            snapshot_is_current: false,
            cold_starts: ColdStarts::default(),
            pushed: None,
            demand,
            canaries: Canaries::default(),
            speeds: Speeds::default(),
            adapters: Rates::default(),
            engines: BTreeMap::new(),
            plan: None,
            next_serial: 1,
            tables: VecDeque::new(),
            agents: BTreeMap::new(),
            drain: DrainState::default(),
            fast: FastState::default(),
            ledger: Ledger::new(now, LEASE_SECONDS, Some(Reserves::new())),
            load_lines: BTreeMap::new(),
            records: Records::new(),
            usd: BTreeMap::new(),
            usd_until: now,
            floors: BTreeMap::new(),
            due: None,
            routes_dirty: false,
            sessions: 0,
        }
    }

    /// Virtual seconds at a wall time.
    pub fn seconds_at(&self, wall: Timestamp) -> f64 {
        seconds(self.clock.to_virtual(wall))
    }

    /// Asks for a new plan.
    pub fn ask_for_plan(&mut self, due: Due) {
        if self.due.as_ref().is_none_or(|d| due.urgent && !d.urgent) {
            self.due = Some(due);
        }
    }

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
