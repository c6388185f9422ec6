//! Where a pool stands between replicas made from an older engine configuration and ones made from the current one.
//! The scheduler acts on it and the operator reports it, so both read it here.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::canary::CanaryPolicy;
use crate::pool::{EngineKind, Mode};
use crate::{ClusterSnapshot, ModelPool, ReplicaAssignment, ReplicaId, ReplicaPhase, ReplicaStatus};

/// A replica that is not ready after this many of its pool's cold starts has stopped its rollout.
const COLD_STARTS_UNTIL_STUCK: f64 = 2.0;
/// The largest share of replicas that is replaced at a time, where nothing else is configured.
const WAVE: f64 = 0.25;

/// How far a rollout may go for now, from what is known of the replicas it has made so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// All the way.
    #[default]
    Open,
    /// As far as the canary: its replicas are being judged.
    Canary,
    /// No further.
    Closed,
}

/// How a change of the engine's configuration is rolled out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutPolicy {
    /// No further replica is replaced.
    pub paused: bool,
    /// Largest share of replicas replaced at a time, 0–1; always one.
    pub wave: f64,
    /// How the first replicas are judged (`None`: they are not).
    pub canary: Option<CanaryPolicy>,
    /// Set by the scheduler, from its judgement of the canary.
    #[serde(default)]
    pub gate: Gate,
    /// Why the newest configuration is not, or not fully, in force (empty otherwise).
    #[serde(default)]
    pub stopped: String,
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        Self { paused: false, wave: WAVE, canary: None, gate: Gate::Open, stopped: String::new() }
    }
}

/// A replica that keeps a rollout from going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The new replica that does not serve.
    pub replica: ReplicaId,
    /// What is wrong with it.
    pub cause: String,
    /// It has had its time, so that it is not just slow or unlucky.
    pub overdue: bool,
}

/// A pool with replicas made from an older engine configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Wanted replicas of the current configuration that serve.
    pub replaced: usize,
    /// Wanted replicas.
    pub total: usize,
    /// Old replicas whose successors are planned: they serve until those do.
    pub replacing: BTreeSet<ReplicaId>,
    /// Old replicas that may be given successors now.
    pub next: BTreeSet<ReplicaId>,
    /// Crashing replicas of the current configuration that are kept: each new one would crash in the same way, and what
    /// is left of this one says why.
    pub held: BTreeSet<ReplicaId>,
    /// What stops it, if anything does.
    pub stuck: Option<Stuck>,
}

impl ClusterSnapshot {
    /// Whether one of a replica's nodes is gone or not ready: nothing can be expected of it, nor waited for.
    pub fn is_lost(&self, replica: &ReplicaStatus) -> bool {
        replica.nodes.iter().any(|n| !self.nodes.iter().any(|node| &node.name == n && node.ready))
    }
}

/// The rollout of a pool whose plan is `planned`; `None` if no replica is outdated, or none may be touched.
/// `may_move` says whether a successor could be put where a replica is: without that it stays.
///
/// Old replicas that hold no request (pending, failed) go at once. Of the others as many as the policy's wave allows
/// at a time, and none while a wanted replica of the current configuration does not serve: a configuration that does not
/// work costs no replica that does. Altogether no more go than the policy's gate lets through.
pub fn rollout(
    pool: &ModelPool,
    snapshot: &ClusterSnapshot,
    planned: &[ReplicaAssignment],
    may_move: &dyn Fn(&ReplicaStatus) -> bool,
    now: Timestamp,
) -> Option<Rollout> {
    if pool.mode == Mode::Advise || pool.engine.kind == EngineKind::External {
        return None;
    }
    let own: Vec<&ReplicaStatus> =
        snapshot.replicas.iter().filter(|r| r.pool == pool.id && !r.ended && !snapshot.is_lost(r)).collect();
    if !own.iter().any(|r| r.outdated && r.phase != ReplicaPhase::Draining) {
        return None;
    }
    let wanted = |r: &ReplicaStatus| planned.iter().any(|a| a.id == r.id);
    let current: Vec<&ReplicaStatus> = own.iter().copied().filter(|r| !r.outdated && wanted(r)).collect();
    let replaced = current.iter().filter(|r| r.phase == ReplicaPhase::Ready).count();
    let stuck = current.iter().find_map(|r| stuck(pool, r, now));
    let held = current
        .iter()
        .filter(|r| r.phase == ReplicaPhase::Failed && replaced == 0)
        .map(|r| r.id.clone())
        .collect();

    let (old, dropped): (Vec<&ReplicaStatus>, Vec<&ReplicaStatus>) =
        own.iter().copied().filter(|r| r.outdated).partition(|r| wanted(r));
    // Without a plan nothing is known to have a successor.
    let replacing: BTreeSet<ReplicaId> =
        if planned.is_empty() { BTreeSet::new() } else { dropped.iter().map(|r| r.id.clone()).collect() };
    let unseen = planned.iter().filter(|a| !own.iter().any(|r| r.id == a.id)).count();
    let coming = current.len() - replaced + unseen;
    // The cast truncates, so that a share that is not whole rounds down, and is 0 for what is not a number.
    let step = ((planned.len() as f64 * pool.rollout.wave.clamp(0.0, 1.0)) as usize).max(1);
    // Those that drain still hold accelerators: counting them keeps a successor from pushing a serving replica out.
    let room = if coming > 0 { 0 } else { step.saturating_sub(replacing.len()) };
    let idle = |r: &ReplicaStatus| matches!(r.phase, ReplicaPhase::Pending | ReplicaPhase::Failed);
    let mut order: Vec<&ReplicaStatus> =
        old.into_iter().filter(|r| r.phase != ReplicaPhase::Draining && may_move(r)).collect();
    order.sort_by_key(|r| (r.phase == ReplicaPhase::Ready, r.created_at, r.id.clone()));
    let (free, serving): (Vec<_>, Vec<_>) = order.into_iter().partition(|r| idle(r));
    let allowed = match (pool.rollout.gate, pool.rollout.canary) {
        _ if pool.rollout.paused => 0,
        (Gate::Open, _) | (Gate::Canary, None) => usize::MAX,
        (Gate::Canary, Some(canary)) => (canary.replicas as usize).saturating_sub(current.len() + unseen),
        (Gate::Closed, _) => 0,
    };
    let next =
        free.into_iter().chain(serving.into_iter().take(room)).take(allowed).map(|r| r.id.clone()).collect();
    Some(Rollout { replaced, total: planned.len(), replacing, next, held, stuck })
}

fn stuck(pool: &ModelPool, replica: &ReplicaStatus, now: Timestamp) -> Option<Stuck> {
    let limit = COLD_STARTS_UNTIL_STUCK * pool.engine.expected_cold_start_seconds().max(1.0);
    let waited = now.duration_since(replica.created_at).as_secs_f64();
    let of = |cause: String| Some(Stuck { replica: replica.id.clone(), cause, overdue: waited > limit });
    let said = |otherwise: &str| {
        if replica.message.is_empty() { otherwise.to_owned() } else { replica.message.clone() }
    };
    match replica.phase {
        ReplicaPhase::Failed => of(said("it failed")),
        // One that has served is waited for: its probe may have failed for a moment.
        ReplicaPhase::Pending | ReplicaPhase::Starting if replica.ready_at.is_none() => {
            if waited > limit {
                of(format!("not ready {limit:.0} s after its creation ({})", said("no reason is known")))
            } else {
                None
            }
        }
        ReplicaPhase::Pending | ReplicaPhase::Starting | ReplicaPhase::Ready | ReplicaPhase::Draining => None,
    }
}
