//! Which replicas stop taking requests, and which may be deleted.
//!
//! A replica that the plan dropped goes on serving until the plan's own replicas can carry the load, unless one of those
//! waits for its accelerators. Once it drains it stays draining, and it is drained when its agent says that every
//! request it had is finished.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fleet::pool::Mode;
use plimsoll_fleet::{
    ClusterSnapshot, NodeName, Plan, PoolId, ReplicaId, ReplicaPhase, ReplicaStatus, Shape,
};
use serde::{Deserialize, Serialize};

/// What is remembered between decisions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DrainState {
    /// Draining replicas and since when (virtual seconds).
    pub draining: BTreeMap<ReplicaId, f64>,
    /// Replicas whose agent said that they hold nothing more.
    pub acknowledged: BTreeSet<ReplicaId>,
    /// Replicas that may be deleted.
    pub drained: BTreeSet<ReplicaId>,
}

/// What a decision depends on.
#[derive(Debug)]
pub struct DrainInput<'a> {
    /// The plan in force.
    pub plan: &'a Plan,
    /// The cluster.
    pub snapshot: &'a ClusterSnapshot,
    /// Rate by pool now, requests per second.
    pub rps: &'a BTreeMap<PoolId, f64>,
    /// Load lines by pool and shape as last planned, requests per second a replica.
    pub load_lines: &'a BTreeMap<(PoolId, Shape), f64>,
    /// Nodes whose agent reports.
    pub agents: &'a BTreeSet<NodeName>,
    /// Time after which a draining replica that no agent watches counts as drained, seconds.
    pub unwatched_seconds: f64,
    /// Now, virtual seconds.
    pub now: f64,
}

/// Brings the state up to date.
pub fn decide(state: &mut DrainState, input: &DrainInput<'_>) {
    let exists: BTreeMap<&ReplicaId, &ReplicaStatus> =
        input.snapshot.replicas.iter().map(|r| (&r.id, r)).collect();
    let wanted: BTreeSet<&ReplicaId> =
        input.plan.pools.iter().flat_map(|p| p.replicas.iter().map(|r| &r.id)).collect();
    // Only what still exists and is not wanted again.
    state.draining.retain(|id, _| exists.contains_key(id) && !wanted.contains(id));
    state.acknowledged.retain(|id| exists.contains_key(id));
    state.drained.retain(|id| exists.contains_key(id) && !wanted.contains(id));

    let mut dropped: BTreeMap<&PoolId, Vec<&ReplicaStatus>> = BTreeMap::new();
    for replica in input.snapshot.replicas.iter().filter(|r| !wanted.contains(&r.id)) {
        let advised = input.snapshot.pools.iter().any(|p| p.id == replica.pool && p.mode == Mode::Advise);
        // A pool that exists but is not planned yet keeps what it has.
        let unplanned = input.plan.pool(&replica.pool).is_none()
            && input.snapshot.pools.iter().any(|p| p.id == replica.pool);
        if !advised && !unplanned {
            dropped.entry(&replica.pool).or_default().push(replica);
        }
    }
    for (pool, replicas) in dropped {
        decide_pool(state, input, pool, &replicas, &exists);
    }
}

fn decide_pool(
    state: &mut DrainState,
    input: &DrainInput<'_>,
    pool: &PoolId,
    dropped: &[&ReplicaStatus],
    exists: &BTreeMap<&ReplicaId, &ReplicaStatus>,
) {
    let line = |shape: &Shape| input.load_lines.get(&(pool.clone(), shape.clone())).copied().unwrap_or(0.0);
    let planned = input.plan.pool(pool).map(|p| p.replicas.as_slice()).unwrap_or_default();
    let ready = |id: &ReplicaId| exists.get(id).is_some_and(|r| r.phase == ReplicaPhase::Ready);
    let waiting: Vec<_> = planned.iter().filter(|r| !ready(&r.id)).collect();
    let mut capacity: f64 = planned.iter().filter(|r| ready(&r.id)).map(|r| line(&r.shape)).sum();
    // Dropped replicas that still take requests carry load too.
    capacity += dropped
        .iter()
        .filter(|r| r.phase == ReplicaPhase::Ready && !state.draining.contains_key(&r.id))
        .map(|r| line(&r.shape))
        .sum::<f64>();
    let rps = input.rps.get(pool).copied().unwrap_or(0.0);

    for replica in dropped {
        let never_served = replica.ready_at.is_none()
            && matches!(replica.phase, ReplicaPhase::Pending | ReplicaPhase::Starting);
        if never_served || replica.phase == ReplicaPhase::Failed {
            state.drained.insert(replica.id.clone());
            continue;
        }
        if !state.draining.contains_key(&replica.id) {
            let left = capacity - line(&replica.shape);
            let blocks = waiting.iter().any(|w| w.nodes.iter().any(|n| replica.nodes.contains(n)));
            let go = replica.phase == ReplicaPhase::Draining || waiting.is_empty() || blocks || left >= rps;
            if !go {
                continue;
            }
            capacity = left;
            state.draining.insert(replica.id.clone(), input.now);
        }
        let since = state.draining.get(&replica.id).copied().unwrap_or(input.now);
        let watched = replica.nodes.first().is_some_and(|n| input.agents.contains(n));
        if state.acknowledged.contains(&replica.id)
            || (!watched && input.now - since >= input.unwatched_seconds)
        {
            state.drained.insert(replica.id.clone());
        }
    }
}
