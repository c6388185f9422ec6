//! What to write of revisions. Pure, and idempotent: once the changes are visible, looking again yields none.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::ResourceExt;
use plimsoll_crds::ModelPool;
use plimsoll_fleet::canary::Standing;
use plimsoll_fleet::pool::{EngineKind, Mode};
use plimsoll_fleet::rollout::rollout;
use plimsoll_fleet::{ClusterSnapshot, PoolPlan, ReplicaPhase, ReplicaStatus};
use serde_json::{Value, json};

use super::{ACCEPTED, SLO_REGRESSION, START_FAILED, STOPPED, Stopped};
use super::{digest_of, is_accepted, object, stopped, target};
use crate::brain::CanaryReport;
use crate::build::Action;
use crate::validate::Accepted;

/// Revisions kept of a pool, besides those in use.
const KEPT: usize = 10;

/// What is known of one pool.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// The resource, with what is in force.
    pub resource: &'a ModelPool,
    /// Its meaning.
    pub accepted: &'a Accepted,
    /// Its revisions.
    pub own: &'a [&'a ControllerRevision],
    /// Its plan.
    pub plan: Option<&'a PoolPlan>,
    /// The cluster.
    pub snapshot: &'a ClusterSnapshot,
    /// How its canary does.
    pub canary: Option<&'a CanaryReport>,
    /// Now.
    pub now: Timestamp,
}

/// The changes that one pool's revisions need.
pub fn steps(look: &Look<'_>) -> Vec<Action> {
    let Accepted { pool, outdated, stop } = look.accepted;
    // What is not understood is not kept, and what Plimsoll does not run has no revisions.
    if outdated.is_some() || pool.mode == Mode::Advise || pool.engine.kind == EngineKind::External {
        return Vec::new();
    }
    let wanted = stop.as_ref().map_or(pool.revision.as_str(), |s| s.wanted.as_str());
    let newest = look.own.iter().map(|r| r.revision).max().unwrap_or(0);
    let Some(revision) = look.own.iter().find(|r| digest_of(r) == wanted) else {
        let revision = object(look.resource, wanted, newest.saturating_add(1));
        return vec![Action::CreateRevision { pool: pool.id.clone(), revision: Box::new(revision) }];
    };
    let patch = |patch: Value| Action::PatchRevision {
        pool: pool.id.clone(),
        revision: revision.name_any(),
        uid: revision.metadata.uid.clone().unwrap_or_default(),
        patch,
    };
    let mut actions = Vec::new();
    if revision.revision < newest {
        // Asked for again: it is the newest now, and what once stopped it is forgotten.
        let again = json!({
            "revision": newest.saturating_add(1), "metadata": {"annotations": {STOPPED: null}},
        });
        actions.push(patch(again));
    } else if stop.is_none() && stopped(revision).is_none() {
        if let Some(stopped) = failure(look, wanted) {
            let text = serde_json::to_string(&stopped).unwrap_or_default();
            actions.push(patch(json!({"metadata": {"annotations": {STOPPED: text}}})));
        } else if !is_accepted(revision) && serves_alone(look) {
            actions.push(patch(json!({"metadata": {"annotations": {ACCEPTED: look.now.to_string()}}})));
        }
    }
    actions.extend(forget(look, wanted));
    actions
}

/// Why the rollout of the configuration in force has to stop, if it has to.
fn failure(look: &Look<'_>, wanted: &str) -> Option<Stopped> {
    let pool = &look.accepted.pool;
    // What is replaced for its room for adapters alone is of the same configuration: another would change nothing about that.
    let of_older = |r: &&ReplicaStatus| r.pool == pool.id && r.outdated && r.revision != wanted;
    look.snapshot.replicas.iter().find(of_older)?;
    let stopped = |reason: &str, cause: String| Stopped { reason: reason.to_owned(), cause, at: look.now };
    if let Some(canary) = look.canary
        && canary.standing == Standing::Regressed
        && canary.revision == wanted
    {
        return Some(stopped(SLO_REGRESSION, canary.text.clone()));
    }
    // A start that fails costs nothing but its own replica: without anything to go back to it is better waited for.
    let goes_back = look.resource.spec.rollout.auto_rollback && target(look.own, wanted).is_some();
    let rollout = rollout(pool, look.snapshot, &look.plan?.replicas, &|_| true, look.now)?;
    let stuck = rollout.stuck.filter(|s| s.overdue && goes_back)?;
    let cause = stuck.cause.trim_end_matches(['.', ';']);
    Some(stopped(START_FAILED, format!("new replica {} did not serve: {cause}", stuck.replica)))
}

/// Whether replicas of the configuration in force serve, and none of an older one is left.
fn serves_alone(look: &Look<'_>) -> bool {
    let own = || look.snapshot.replicas.iter().filter(|r| r.pool == look.accepted.pool.id);
    let serves = |r: &ReplicaStatus| r.phase == ReplicaPhase::Ready && !r.outdated;
    own().any(serves) && !own().any(|r| r.outdated)
}

/// Deletes what is too old to be of use.
fn forget(look: &Look<'_>, wanted: &str) -> Vec<Action> {
    let in_use: BTreeSet<&str> = [wanted, look.accepted.pool.revision.as_str()]
        .into_iter()
        .chain(target(look.own, wanted).map(digest_of))
        .collect();
    let mut others: Vec<&ControllerRevision> =
        look.own.iter().copied().filter(|r| !in_use.contains(digest_of(r))).collect();
    others.sort_by_key(|r| std::cmp::Reverse(r.revision));
    others
        .into_iter()
        .skip(KEPT)
        .map(|r| Action::DeleteRevision {
            pool: look.accepted.pool.id.clone(),
            revision: r.name_any(),
            uid: r.metadata.uid.clone().unwrap_or_default(),
        })
        .collect()
}
