//! The scheduler's own control and planner.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use plimsoll_fleet::plan::ScalingRecord;
use plimsoll_fleet::telemetry::AgentReport;
use plimsoll_fleet::{ClusterSnapshot, Plan, ReplicaId};
use plimsoll_scheduler::clock::{Clock, InvalidScale};
use plimsoll_scheduler::control::{Agent, Pace, State};
use plimsoll_scheduler::demand::{DemandConfig, DemandTracker};
use plimsoll_scheduler::fast::FastConfig;
use plimsoll_scheduler::plan::PlannerConfig;
use plimsoll_scheduler::planner::{EnginePlanner, Planned, Planner as _};
use plimsoll_scheduler::records::differs;

use super::{Orders, Policy};

/// Virtual seconds between plans when nothing material changes, as the scheduler has it.
const REPLAN_SECONDS: f64 = 60.0;
/// Seconds to wait after a first change for others to come with it, as the scheduler has it.
const DEBOUNCE_SECONDS: f64 = 0.2;
/// Silence after which an agent counts as gone, as the scheduler has it.
const AGENT_TIMEOUT: SignedDuration = SignedDuration::from_secs(15);

/// The product: demand, plan, fast loop, drains and routes as the scheduler has them. A plan takes no virtual time.
pub struct Plimsoll {
    state: State,
    pace: Pace,
    planner: EnginePlanner,
    fast: FastConfig,
    draining: BTreeSet<ReplicaId>,
    records: Vec<ScalingRecord>,
}

impl Plimsoll {
    /// A scheduler that has seen nothing yet.
    ///
    /// # Errors
    /// [`InvalidScale`]: never, as time runs at its own speed.
    pub fn new(config: PlannerConfig, now: Timestamp) -> Result<Self, InvalidScale> {
        let clock = Clock::new(1.0, None, now)?;
        Ok(Self {
            state: State::new(clock, DemandTracker::new(DemandConfig::default()), now),
            pace: Pace::new(REPLAN_SECONDS, DEBOUNCE_SECONDS),
            planner: EnginePlanner::new(config),
            fast: FastConfig::default(),
            draining: BTreeSet::new(),
            records: Vec::new(),
        })
    }

    fn plan(&mut self, trigger: String, now: Timestamp) {
        let Some(request) = self.state.plan_request(trigger, now) else { return };
        let Planned { mut plan, next_serial } = self.planner.plan(&request);
        (plan.number, plan.created_at) = (request.number, now);
        if self.state.plan.as_ref().is_none_or(|current| differs(current, &plan)) {
            self.enforce(plan, next_serial, now);
        }
    }

    fn enforce(&mut self, plan: Plan, next_serial: u64, now: Timestamp) {
        let changed = self.state.records_of(&plan, now);
        self.records.extend(changed.iter().filter_map(|(_, list)| list.back().cloned()));
        self.state.put_into_force(Arc::new(plan), next_serial, changed);
    }

    fn route(&mut self, now: Timestamp) {
        let Some(routing) = self.state.routing(now, AGENT_TIMEOUT) else { return };
        if let Some(table) = routing.table(&self.planner) {
            self.state.push_table(Arc::new(table));
        }
        self.draining = routing.drain.draining.keys().cloned().collect();
    }
}

impl Policy for Plimsoll {
    fn name(&self) -> String {
        "plimsoll".to_owned()
    }

    fn snapshot(&mut self, snapshot: ClusterSnapshot, now: Timestamp) {
        if let Err(error) = self.state.take_snapshot(snapshot, now) {
            tracing::error!(%error, "a simulated cluster has a name twice; this is a defect");
        }
    }

    fn report(&mut self, report: &AgentReport, now: Timestamp) {
        let agent =
            Agent { node: report.node.clone(), address: report.address.clone(), last_seen: now, session: 0 };
        if self.state.agents.insert(report.agent.clone(), agent).is_none() {
            self.state.routes_dirty = true;
        }
        self.state.take_report(report, now);
    }

    fn tick(&mut self, now: Timestamp) {
        self.state.pulse(now);
        match self.pace.due(&mut self.state, now) {
            Some(trigger) => {
                self.plan(trigger, now);
                self.pace.planned(now);
            }
            None => {
                if let Some(change) = self.state.fast(now, &self.fast) {
                    self.enforce(change.plan, change.next_serial, now);
                }
            }
        }
        self.route(now);
    }

    fn orders(&self) -> Orders<'_> {
        Orders {
            plan: self.state.plan.as_deref(),
            routes: self.state.table().map(Arc::as_ref),
            draining: &self.draining,
            drained: &self.state.drain.drained,
        }
    }

    fn take_records(&mut self) -> Vec<ScalingRecord> {
        std::mem::take(&mut self.records)
    }
}
