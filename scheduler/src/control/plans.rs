//! From what is known to a request for a plan, and a plan into force; and what the fast loop does in between.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use plimsoll_fleet::plan::ScalingRecord;
use plimsoll_fleet::{Plan, PoolId, ReplicaId};

use super::{Floor, State};
use crate::clock::seconds;
use crate::fast::{self, FastChange, FastConfig, FastInput, ReplicaLoad};
use crate::planner::PlanRequest;
use crate::records::{free_serial, scaling_records};

/// Scaling records kept of each pool.
const RECORDS_KEPT: usize = 50;
/// Virtual seconds for which what the fast loop has shown counts at least.
const FLOOR_SECONDS: f64 = 300.0;
/// Cold start to reckon with of a pool that is not known, virtual seconds.
const COLD_START_SECONDS: f64 = 60.0;

impl State {
    /// What to ask of the planner at a wall time; `None` before the first snapshot.
    pub fn plan_request(&self, trigger: String, wall: Timestamp) -> Option<PlanRequest> {
        let snapshot = Arc::clone(self.snapshot.as_ref()?);
        let now = self.clock.to_virtual(wall);
        let (demands, idle) = self.demands(&snapshot, seconds(now));
        // Numbers go on from what replicas remember even when the store was lost.
        let known = snapshot.replicas.iter().map(|r| r.plan).filter(|n| *n < 1 << 48).max().unwrap_or(0);
        let number = self.plan.as_ref().map_or(0, |p| p.number).max(known) + 1;
        let previous = self.plan.as_ref().map(|p| {
            let mut plan = Plan::clone(p);
            plan.created_at = self.clock.to_virtual(plan.created_at);
            plan
        });
        let next_serial = free_serial(self.next_serial, &snapshot, previous.as_ref());
        Some(PlanRequest { snapshot, demands, previous, number, next_serial, now, trigger, idle })
    }

    /// The scaling records of the pools whose fleet a plan changes, as they will be.
    pub fn records_of(&self, plan: &Plan, wall: Timestamp) -> Vec<(PoolId, VecDeque<ScalingRecord>)> {
        let made = scaling_records(self.plan.as_deref(), plan, wall);
        let add = |(pool, record)| {
            let mut list = self.records.get(&pool).cloned().unwrap_or_default();
            list.push_back(record);
            while list.len() > RECORDS_KEPT {
                list.pop_front();
            }
            (pool, list)
        };
        made.into_iter().map(add).collect()
    }

    /// Puts a plan (wall times) into force, with the first serial number for the next one's new replicas.
    pub fn put_into_force(
        &mut self,
        plan: Arc<Plan>,
        next_serial: u64,
        records: Vec<(PoolId, VecDeque<ScalingRecord>)>,
    ) {
        self.next_serial = next_serial;
        self.learn_load_lines(&plan);
        self.records.extend(records);
        self.plan = Some(plan);
        self.routes_dirty = true;
    }

    /// One look of the fast loop: the change that it makes to the plan, if any.
    pub fn fast(&mut self, wall: Timestamp, config: &FastConfig) -> Option<FastChange> {
        if !self.snapshot_is_current {
            return None;
        }
        let (snapshot, plan) = (self.snapshot.clone()?, self.plan.clone()?);
        let now = self.seconds_at(wall);
        let loads = self.replica_loads(now);
        let demand_rps: BTreeMap<PoolId, f64> =
            snapshot.pools.iter().map(|p| (p.id.clone(), self.rate(p, now).rps)).collect();
        let next_serial = free_serial(self.next_serial, &snapshot, Some(&plan));
        let input = FastInput {
            plan: &plan,
            snapshot: &snapshot,
            loads: &loads,
            demand_rps: &demand_rps,
            next_serial,
            now,
        };
        let mut change = fast::decide(&mut self.fast, &input, config)?;
        if change.added {
            let pool = snapshot.pools.iter().find(|p| p.id == change.pool);
            let cold = pool
                .map_or(COLD_START_SECONDS, |p| p.engine.expected_cold_start_seconds().clamp(30.0, 1800.0));
            let until = now + (2.0 * cold).max(FLOOR_SECONDS);
            self.floors.retain(|_, f| f.until > now);
            self.floors.insert(change.pool.clone(), Floor { rps: change.shown_rps, until });
        }
        change.plan.created_at = wall;
        Some(change)
    }

    /// Loads of the replicas of which agents have told lately.
    fn replica_loads(&self, now: f64) -> BTreeMap<ReplicaId, ReplicaLoad> {
        let fresh = self.demand.config().stale_after_seconds;
        let Some(table) = self.table() else { return BTreeMap::new() };
        let endpoints = table.pools.iter().flat_map(|p| &p.endpoints);
        endpoints
            .filter_map(|e| {
                let seen = self.engines.get(&e.replica).filter(|s| now - s.at <= fresh)?;
                let load = ReplicaLoad {
                    outstanding_tokens: seen.report.outstanding_tokens,
                    capacity_tokens: e.coefficients.kv_tokens,
                    waiting: seen.report.waiting,
                };
                Some((e.replica.clone(), load))
            })
            .collect()
    }
}
