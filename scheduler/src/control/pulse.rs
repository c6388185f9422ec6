//! What follows from time alone: spending, judgements of canaries and speeds, and whether demand calls for a new plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::{ClusterSnapshot, PoolId, PoolPlan};

use super::{Due, State};
use crate::clock::timestamp;
use crate::demand::{material_change, misses_objectives};
use crate::{fast, rollout};

/// Virtual seconds over which attainment is judged.
const ATTAINMENT_SECONDS: f64 = 60.0;

impl State {
    /// Time passes, about a second at once. It may call for a new plan.
    pub fn pulse(&mut self, wall: Timestamp) {
        let now = self.seconds_at(wall);
        self.pass_time(now);
        self.judge_canaries(now);
        let speeds = self.heed_speeds();
        let demand = self.demand_trigger(now).or_else(|| self.rollout_trigger(now));
        speeds.into_iter().chain(demand).for_each(|due| self.ask_for_plan(due));
    }

    fn pass_time(&mut self, now: f64) {
        let mut demand = std::mem::take(&mut self.demand);
        let busy = self.busy_pools();
        demand.tick(now, |pool| busy.contains(pool));
        self.demand = demand;
        let hours = (now - self.usd_until).max(0.0) / 3600.0;
        self.usd_until = now;
        if !self.snapshot_is_current {
            return;
        }
        let Some(snapshot) = self.snapshot.clone() else { return };
        for replica in &snapshot.replicas {
            let Some(first) = replica.nodes.first() else { continue };
            let spot = snapshot.nodes.iter().any(|n| &n.name == first && n.spot);
            *self.usd.entry(replica.pool.clone()).or_default() +=
                hours * fast::price(&replica.shape, spot, &snapshot);
        }
    }

    /// Why demand calls for a new plan, if it does.
    fn demand_trigger(&self, now: f64) -> Option<Due> {
        let (snapshot, plan) = (self.snapshot.as_ref()?, self.plan.as_ref()?);
        let planned: BTreeMap<&PoolId, &PoolPlan> = plan.pools.iter().map(|p| (&p.pool, p)).collect();
        let mut found: Option<String> = None;
        for pool in &snapshot.pools {
            let Some(planned) = planned.get(&pool.id) else { continue };
            let idle = self.demand.idle_seconds(&pool.id);
            let asked =
                self.demand.holding(&pool.id) > 0 || (idle <= 0.0 && self.demand.has_traffic(&pool.id));
            if asked && planned.replicas.is_empty() && planned.outcome == PoolOutcome::ScaledToZero {
                return Some(Due { why: format!("requests wake {}", pool.id), urgent: true });
            }
            if found.is_some() {
                continue;
            }
            let limit = pool.scaling.scale_to_zero_after_seconds;
            if !planned.replicas.is_empty() && limit.is_some_and(|limit| idle >= limit) {
                found = Some(format!("{} is idle", pool.id));
            } else {
                // A fall can wait for the next regular plan; a rise cannot.
                let (from, to) = (planned.demand.total_rps(), self.rate(pool, now).rps);
                found = material_change(&pool.id, from, to)
                    .filter(|_| to > from)
                    .or_else(|| misses_objectives(pool, &self.demand.seen(pool, ATTAINMENT_SECONDS, now)));
            }
        }
        found.map(|why| Due { why, urgent: false })
    }

    /// Judges what rolls out; what that lets through or stops is in force at once.
    fn judge_canaries(&mut self, now: f64) {
        let Some(snapshot) = self.snapshot.clone().filter(|_| self.snapshot_is_current) else { return };
        self.canaries.judge(&snapshot, now);
        if self.canaries.differs(&snapshot) {
            let mut gated = ClusterSnapshot::clone(&snapshot);
            self.canaries.apply(&mut gated);
            self.snapshot = Some(Arc::new(gated));
            self.routes_dirty = true;
        }
    }

    /// Puts into force that replicas have come to run at another speed; why that calls for a new plan.
    fn heed_speeds(&mut self) -> Option<Due> {
        let snapshot = self.snapshot.clone().filter(|_| self.snapshot_is_current)?;
        if !self.speeds.differs(&snapshot) {
            return None;
        }
        let mut heeded = ClusterSnapshot::clone(&snapshot);
        let changed = self.speeds.apply(&mut heeded);
        let pool = heeded.pools.iter().find(|p| changed.contains(&p.id))?;
        let what = pool.drift_text().unwrap_or_else(|| "replicas run as predicted again".to_owned());
        let why = format!("{}: {what}", pool.id);
        self.snapshot = Some(Arc::new(heeded));
        Some(Due { why, urgent: false })
    }

    /// Why a rollout calls for a new plan, if it does. Nothing else would: replicas that become ready change no plan.
    fn rollout_trigger(&self, now: f64) -> Option<Due> {
        let (snapshot, plan) = (self.snapshot.as_ref()?, self.plan.as_ref()?);
        if !self.snapshot_is_current {
            return None;
        }
        // Not urgent: a step that the planner cannot take must not make it plan all the time.
        rollout::trigger(snapshot, plan, timestamp(now)).map(|why| Due { why, urgent: false })
    }
}
