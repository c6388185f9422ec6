//! What comes in: snapshots from the operator, reports from agents.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use plimsoll_fleet::plan::PoolOutcome;
use plimsoll_fleet::telemetry::AgentReport;
use plimsoll_fleet::{ClusterSnapshot, PoolId, ReplicaId};

use super::{Due, EngineSeen, State};
use crate::clock::Clock;
use crate::demand::Taken;
use crate::records::{material_snapshot_change, taken_away};

/// Something in a snapshot that has a name twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("snapshot.{field} has {name} twice; {rule}")]
pub struct DuplicateName {
    /// The list.
    pub field: &'static str,
    /// The name.
    pub name: String,
    /// What to do.
    pub rule: &'static str,
}

/// Checks that pools and replicas of a snapshot have names of their own.
///
/// # Errors
/// [`DuplicateName`], the first of them.
pub fn check_names(snapshot: &ClusterSnapshot) -> Result<(), DuplicateName> {
    let mut seen = BTreeSet::new();
    if let Some(pool) = snapshot.pools.iter().find(|p| !seen.insert(&p.id)) {
        return Err(DuplicateName { field: "pools", name: pool.id.to_string(), rule: "send each pool once" });
    }
    let mut seen = BTreeSet::new();
    if let Some(replica) = snapshot.replicas.iter().find(|r| !seen.insert(&r.id)) {
        return Err(DuplicateName {
            field: "replicas",
            name: replica.id.to_string(),
            rule: "replica names are unique in the cluster",
        });
    }
    Ok(())
}

/// A snapshot's wall times as virtual times.
pub fn in_virtual_time(clock: Clock, mut snapshot: ClusterSnapshot) -> ClusterSnapshot {
    for r in &mut snapshot.replicas {
        r.since = clock.to_virtual(r.since);
        r.created_at = clock.to_virtual(r.created_at);
        r.ready_at = r.ready_at.map(|t| clock.to_virtual(t));
    }
    snapshot
}

/// What became of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportTaken {
    /// It was counted before.
    Duplicate,
    /// It is in; of its traffic, what could not be believed was left out for this reason.
    Counted {
        /// The reason.
        left_out: Option<String>,
        /// Whether plan, drains or routes should be looked at now.
        wake: bool,
    },
}

impl State {
    /// Puts a snapshot (wall times) into force; the pools that are gone, of which nobody need keep records.
    ///
    /// # Errors
    /// [`DuplicateName`]: nothing of it is taken.
    pub fn take_snapshot(
        &mut self,
        snapshot: ClusterSnapshot,
        wall: Timestamp,
    ) -> Result<Vec<PoolId>, DuplicateName> {
        check_names(&snapshot)?;
        let mut snapshot = in_virtual_time(self.clock, snapshot);
        let now = self.seconds_at(wall);
        let old = self.snapshot.clone().filter(|_| self.snapshot_is_current);
        // A cold start that turns out otherwise changes the next plan, but is no edit of the pool.
        let learned = self.cold_starts.learn(&snapshot);
        self.cold_starts.apply(&mut snapshot);
        self.canaries.follow(&snapshot, now);
        self.canaries.apply(&mut snapshot);
        self.speeds.follow(&snapshot);
        self.speeds.apply(&mut snapshot);
        let why = match (&old, learned) {
            (Some(old), true) => {
                let mut old = ClusterSnapshot::clone(old);
                self.cold_starts.apply(&mut old);
                material_snapshot_change(Some(&old), &snapshot)
            }
            _ => material_snapshot_change(old.as_deref(), &snapshot),
        };
        let taken = || taken_away(self.plan.as_ref()?, old.as_ref()?, &snapshot);
        let why = why.or_else(taken);
        self.demand.sync_pools(&snapshot.pools);
        let caps = snapshot.budgets.iter().filter_map(|b| Some((b.name.as_str(), b.tokens_per_minute?)));
        self.ledger.set_budgets(caps, now);
        let exists = |id: &_| snapshot.replicas.iter().any(|r| &r.id == id);
        self.engines.retain(|id, _| exists(id));
        let pool_exists = |id: &PoolId| snapshot.pools.iter().any(|p| &p.id == id);
        self.usd.retain(|id, _| pool_exists(id));
        let forgotten: Vec<PoolId> = self.records.keys().filter(|id| !pool_exists(id)).cloned().collect();
        self.records.retain(|id, _| pool_exists(id));
        self.snapshot = Some(Arc::new(snapshot));
        self.snapshot_is_current = true;
        self.routes_dirty = true;
        if let Some(why) = why {
            self.ask_for_plan(Due { why, urgent: true });
        }
        Ok(forgotten)
    }

    /// Takes in the report of an agent; times in it are wall times.
    pub fn take_report(&mut self, report: &AgentReport, wall: Timestamp) -> ReportTaken {
        let now = self.seconds_at(wall);
        let interval = self.clock.virtual_seconds(report.interval_seconds);
        let mut left_out = None;
        let mut wake = false;
        match self.demand.observe(report, interval, now) {
            Taken::Duplicate => return ReportTaken::Duplicate,
            Taken::Rejected(why) => left_out = Some(why.to_string()),
            Taken::New { active } => {
                if let Some(snapshot) = self.snapshot.clone() {
                    self.canaries.observe(&report.replicas, &snapshot, now);
                    self.speeds.observe(report, interval, &snapshot, now);
                    self.adapters.observe(&report.adapters, &snapshot, now);
                }
                // Requests for a pool at zero cannot wait for the next look.
                let at_zero = |pool: &&PoolId| {
                    self.plan
                        .as_ref()
                        .and_then(|p| p.pool(pool))
                        .is_some_and(|p| p.replicas.is_empty() && p.outcome == PoolOutcome::ScaledToZero)
                };
                if let Some(pool) = active.iter().find(at_zero) {
                    let why = format!("requests wake {pool}");
                    self.ask_for_plan(Due { why, urgent: true });
                    wake = true;
                }
            }
        }
        let (mut acknowledged, mut moved) = (false, false);
        for engine in &report.engines {
            if engine.drained && self.drain.draining.contains_key(&engine.replica) {
                acknowledged |= self.drain.acknowledged.insert(engine.replica.clone());
            }
            let seen = EngineSeen { report: engine.clone(), at: now, agent: report.agent.clone() };
            let last = self.engines.insert(engine.replica.clone(), seen);
            // Requests for an adapter go where engines say that it is.
            moved |= last.map(|last| last.report.adapters).unwrap_or_default() != engine.adapters;
        }
        // An engine that its agent no longer mentions is not there any more.
        let mentioned: BTreeSet<&ReplicaId> = report.engines.iter().map(|e| &e.replica).collect();
        self.engines.retain(|id, e| e.agent != report.agent || mentioned.contains(id));
        self.routes_dirty |= moved;
        ReportTaken::Counted { left_out, wake: wake || acknowledged || moved }
    }

    /// Counts a report's tokens against the budgets that limit them; whether there are any.
    pub fn spend_tokens(&mut self, report: &AgentReport, wall: Timestamp) -> bool {
        let now = self.seconds_at(wall);
        let Some(snapshot) = self.snapshot.clone() else { return false };
        let mut limited = false;
        for budget in snapshot.budgets.iter().filter(|b| b.tokens_per_minute.is_some()) {
            limited = true;
            let covered = report.traffic.iter().filter(|t| budget.scope.covers(&t.pool));
            let tokens: f64 = covered.map(|t| t.input_tokens.sum + t.output_tokens.sum).sum();
            self.ledger.spend(&budget.name, &report.agent, tokens, now);
        }
        if limited {
            self.ledger.reported(&report.agent, now);
        }
        limited
    }

    /// Agents heard of within `timeout`.
    pub fn agents_alive(&self, wall: Timestamp, timeout: SignedDuration) -> usize {
        self.agents.values().filter(|a| wall.duration_since(a.last_seen) <= timeout).count()
    }
}
