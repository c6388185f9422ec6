//! What to change so that the cluster follows the plan. Pure, and idempotent: once the changes are visible, building again
//! yields none.

pub mod engine;
mod finish;
pub mod group;
pub mod pod;
pub mod queue;
mod storage;
pub mod template;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaimTemplate;
use kube::ResourceExt;
use plimsoll_crds::ModelPool;
use plimsoll_crds::model_pool::EngineKind;
use plimsoll_fleet::pool::Mode;
use plimsoll_fleet::{NodeInfo, Plan, PoolId, PoolPlan, ReplicaAssignment, ReplicaId, ReplicaPhase};

use self::group::{NewGroup, Seat};
use self::pod::Unbuildable;
use crate::config::OperatorConfig;
use crate::devices::Devices;
use crate::names;
use crate::observe::{self, Observed};
use crate::validate::{Accepted, Validated};

/// Why a replica's pod is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteReason {
    /// Its agent acknowledged that every request is finished.
    Drained,
    /// It took longer than the drain timeout.
    DrainTimeout,
    /// It never served.
    NeverServed,
    /// It failed.
    Failed,
}

impl DeleteReason {
    /// How long its pods have to end, seconds. An engine without requests lets its `preStop` end within seconds; one that
    /// still has some would hold it up, and has had its time. (Zero would take the pod's object away while the engine runs.)
    pub fn grace_seconds(self) -> u32 {
        match self {
            Self::Drained | Self::NeverServed | Self::Failed => 30,
            Self::DrainTimeout => 1,
        }
    }

    /// As people read it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Drained => "drained",
            Self::DrainTimeout => "the drain timed out",
            Self::NeverServed => "it had not served yet",
            Self::Failed => "it had failed",
        }
    }
}

/// One change to the cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Create a replica's pod.
    CreatePod {
        /// Pool.
        pool: PoolId,
        /// UID of the ModelPool that must own a pod which exists already.
        owner_uid: String,
        /// The template of the claim that the pod names, if it does; made before it.
        claim_template: Option<Box<ResourceClaimTemplate>>,
        /// The pod.
        pod: Box<Pod>,
    },
    /// Create a replica over several nodes, or what is missing of it.
    CreateGroup {
        /// Pool.
        pool: PoolId,
        /// UID of the ModelPool that must own a leader which exists already.
        owner_uid: String,
        /// Replica, in the pool's namespace.
        replica: ReplicaId,
        /// The template of its pods' claims of accelerators, to be made before them.
        claim_template: Option<Box<ResourceClaimTemplate>>,
        /// Its pods, or what makes them.
        group: Box<NewGroup>,
    },
    /// Mark a replica as draining.
    MarkDraining {
        /// Pool.
        pool: PoolId,
        /// Replica, in the pool's namespace.
        replica: ReplicaId,
        /// Name of the pod meant.
        pod: String,
        /// Its UID.
        pod_uid: String,
        /// Since when.
        at: Timestamp,
    },
    /// Delete a replica's pod, or all of its pods.
    DeletePod {
        /// Pool.
        pool: PoolId,
        /// Replica, in the pool's namespace.
        replica: ReplicaId,
        /// Names and UIDs of the pods meant, the one that serves first.
        pods: Vec<(String, String)>,
        /// The LeaderWorkerSet that would make them anew: deleted in their place.
        set: Option<String>,
        /// Why.
        reason: DeleteReason,
    },
    /// Set a ModelPool's finalizers.
    SetFinalizers {
        /// Pool.
        pool: PoolId,
        /// Version of the resource that the decision rests on.
        resource_version: String,
        /// The finalizers.
        finalizers: Vec<String>,
    },
    /// Keep an engine configuration.
    CreateRevision {
        /// Pool.
        pool: PoolId,
        /// The revision.
        revision: Box<ControllerRevision>,
    },
    /// Change what is noted of a revision.
    PatchRevision {
        /// Pool.
        pool: PoolId,
        /// Name of the revision.
        revision: String,
        /// UID of the revision meant.
        uid: String,
        /// A merge patch.
        patch: serde_json::Value,
    },
    /// Forget a revision.
    DeleteRevision {
        /// Pool.
        pool: PoolId,
        /// Name of the revision.
        revision: String,
        /// UID of the revision meant.
        uid: String,
    },
}

impl Action {
    /// The pool it is about.
    pub fn pool(&self) -> &PoolId {
        match self {
            Self::CreatePod { pool, .. }
            | Self::CreateGroup { pool, .. }
            | Self::MarkDraining { pool, .. }
            | Self::DeletePod { pool, .. }
            | Self::SetFinalizers { pool, .. }
            | Self::CreateRevision { pool, .. }
            | Self::PatchRevision { pool, .. }
            | Self::DeleteRevision { pool, .. } => pool,
        }
    }
}

/// Changes decided and not yet made. [`crate::apply::apply`] turns it into [`crate::apply::Applied`], which alone the
/// status is made from.
#[derive(Debug, Default, PartialEq)]
pub struct Prepared {
    /// Changes, in order.
    pub actions: Vec<Action>,
    /// What the plan wants and cannot be built, by pool.
    pub problems: BTreeMap<PoolId, Vec<String>>,
}

/// What the decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Resources.
    pub validated: &'a Validated,
    /// Dynamically allocated accelerators.
    pub devices: &'a Devices<'a>,
    /// Replicas that exist.
    pub replicas: &'a [Observed],
    /// Plan in force.
    pub plan: Option<&'a Plan>,
    /// Replicas whose drain was acknowledged.
    pub drained: &'a BTreeSet<ReplicaId>,
    /// Accelerator nodes.
    pub nodes: &'a [NodeInfo],
    /// Whether replicas over several nodes are made as LeaderWorkerSets.
    pub lws: bool,
    /// Pools whose canary is being judged: what it is compared with is ended by the scheduler alone.
    pub judged: &'a BTreeSet<PoolId>,
    /// Configuration.
    pub config: &'a OperatorConfig,
    /// Now.
    pub now: Timestamp,
}

/// The plan for a pool, if it was made for exactly this resource and spec: a plan for an older generation, or for a pool
/// of the same name that is gone, must not touch anything.
pub fn current_plan<'a>(plan: Option<&'a Plan>, accepted: &Accepted) -> Option<&'a PoolPlan> {
    plan?
        .pool(&accepted.pool.id)
        .filter(|p| p.uid == accepted.pool.uid && p.generation == accepted.pool.generation)
}

/// Decides every change.
pub fn build(inputs: Inputs<'_>) -> Prepared {
    let mut prepared = Prepared::default();
    for (resource, accepted) in inputs.validated.accepted() {
        let runs = accepted.pool.mode == Mode::Enforce && resource.spec.engine.kind != EngineKind::External;
        hold_finalizer(&inputs, resource, &accepted.pool.id, runs, &mut prepared);
        if !runs {
            continue;
        }
        let plan = current_plan(inputs.plan, accepted);
        pool(&inputs, resource, accepted, plan, &mut prepared);
    }
    for resource in &inputs.validated.deleting {
        if let Ok(id) = PoolId::new(resource.namespace().unwrap_or_default(), resource.name_any()) {
            delete_pool(&inputs, resource, &id, &mut prepared);
        }
    }
    prepared
}

/// Sees to it that a pool has the finalizer exactly while there is, or may be, something to drain: what has nothing to
/// drain must hold up neither its own deletion nor its namespace's.
fn hold_finalizer(
    inputs: &Inputs<'_>,
    resource: &ModelPool,
    id: &PoolId,
    runs: bool,
    prepared: &mut Prepared,
) {
    let uid = resource.metadata.uid.as_deref().unwrap_or_default();
    let left = || observe::of_pool(inputs.replicas, id).any(|r| r.owner_uid == uid);
    let needed = inputs.config.finalizers && (runs || left());
    let held = resource.finalizers().iter().any(|f| f == names::FINALIZER);
    if needed && !held {
        let mut finalizers = resource.finalizers().to_vec();
        finalizers.push(names::FINALIZER.to_owned());
        set_finalizers(resource, id, finalizers, prepared);
    } else if held && !needed {
        set_finalizers(resource, id, without_ours(resource.finalizers()), prepared);
    }
}

fn without_ours(finalizers: &[String]) -> Vec<String> {
    finalizers.iter().filter(|f| *f != names::FINALIZER).cloned().collect()
}

fn set_finalizers(resource: &ModelPool, id: &PoolId, finalizers: Vec<String>, prepared: &mut Prepared) {
    prepared.actions.push(Action::SetFinalizers {
        pool: id.clone(),
        resource_version: resource.resource_version().unwrap_or_default(),
        finalizers,
    });
}

fn pool(
    inputs: &Inputs<'_>,
    resource: &ModelPool,
    accepted: &Accepted,
    plan: Option<&PoolPlan>,
    prepared: &mut Prepared,
) {
    let id = &accepted.pool.id;
    // Pods of an earlier pool of the same name are not this pool's; owner references end them.
    let existing: BTreeMap<&ReplicaId, &Observed> = observe::of_pool(inputs.replicas, id)
        .filter(|r| r.owner_uid.is_empty() || r.owner_uid == accepted.pool.uid)
        .map(|r| (&r.status.id, r))
        .collect();
    // Replicas on their way out go on draining whatever the plan says now.
    for replica in existing.values().filter(|r| r.draining_since.is_some()) {
        drain(inputs, replica, true, prepared);
    }
    let (Some(plan), Some(number)) = (plan, inputs.plan.map(|p| p.number)) else { return };
    let wanted: BTreeSet<&ReplicaId> = plan.replicas.iter().map(|r| &r.id).collect();
    // Make before break: while the plan's own replicas are not all there, those it dropped go on serving. The scheduler
    // alone, which knows the load and who is in whose way, ends one earlier, by acknowledging its drain.
    let settled = !inputs.judged.contains(id)
        && wanted.iter().all(|id| existing.get(id).is_some_and(|r| r.status.phase == ReplicaPhase::Ready));
    for replica in existing.values() {
        if replica.draining_since.is_none() && !wanted.contains(&replica.status.id) {
            drain(inputs, replica, settled, prepared);
        }
    }
    for assignment in plan.replicas.iter().filter(|a| existing.get(&a.id).is_none_or(|r| is_incomplete(r))) {
        match create(inputs, resource, accepted, assignment, number) {
            Ok(action) => prepared.actions.push(action),
            Err(problem) => prepared.problems.entry(id.clone()).or_default().push(problem.to_string()),
        }
    }
}

/// Whether a replica is a group of which some pods are still to be created.
fn is_incomplete(replica: &Observed) -> bool {
    let new = replica.status.phase == ReplicaPhase::Pending && replica.status.ready_at.is_none();
    new && replica.group.as_ref().is_some_and(|g| g.set.is_none() && g.lacks_workers())
}

fn create(
    inputs: &Inputs<'_>,
    resource: &ModelPool,
    accepted: &Accepted,
    assignment: &ReplicaAssignment,
    plan: u64,
) -> Result<Action, Unbuildable> {
    let pool = accepted.pool.id.clone();
    let owner_uid = resource.metadata.uid.clone().unwrap_or_default();
    let size = group::size(inputs, assignment);
    let claim_template = pod::claim_template(inputs, resource, &pool, assignment, size).map(Box::new);
    if size < 2 {
        let seat = Seat::alone(&assignment.nodes);
        let pod = Box::new(pod::pod(inputs, resource, &accepted.pool, assignment, plan, &seat)?);
        return Ok(Action::CreatePod { pool, owner_uid, claim_template, pod });
    }
    let group = Box::new(group::group(inputs, resource, &accepted.pool, assignment, plan, size)?);
    Ok(Action::CreateGroup { pool, owner_uid, replica: assignment.id.clone(), claim_template, group })
}

/// One step of ending a replica: mark it (if it may go now), wait for the acknowledgement or the timeout, delete it.
fn drain(inputs: &Inputs<'_>, replica: &Observed, may_go: bool, prepared: &mut Prepared) {
    let status = &replica.status;
    let workers = replica.group.iter().flat_map(|g| &g.workers).filter(|w| w.ending_since.is_none());
    let delete = |reason| Action::DeletePod {
        pool: status.pool.clone(),
        replica: status.id.clone(),
        pods: (!replica.terminating)
            .then(|| (replica.pod.clone(), replica.pod_uid.clone()))
            .into_iter()
            .chain(workers.clone().map(|w| (w.name.clone(), w.uid.clone())))
            .collect(),
        set: replica.group.as_ref().and_then(|g| g.set.clone()),
        reason,
    };
    if replica.terminating {
        // Workers go with their leader; if it does not go (its node is dead), they do not wait for it.
        let overdue = replica.ends_at.is_some_and(|at| at <= inputs.now) && workers.clone().next().is_some();
        prepared.actions.extend(overdue.then(|| delete(DeleteReason::Failed)));
        return;
    }
    let action = if status.phase == ReplicaPhase::Failed {
        Some(delete(DeleteReason::Failed))
    } else if !replica.may_hold_requests() {
        Some(delete(DeleteReason::NeverServed))
    } else if inputs.drained.contains(&status.id) {
        Some(delete(DeleteReason::Drained))
    } else {
        match replica.draining_since {
            None => may_go.then(|| Action::MarkDraining {
                pool: status.pool.clone(),
                replica: status.id.clone(),
                pod: replica.pod.clone(),
                pod_uid: replica.pod_uid.clone(),
                at: inputs.now,
            }),
            Some(since) if elapsed(since, inputs.now) >= timeout(inputs) => {
                Some(delete(DeleteReason::DrainTimeout))
            }
            Some(_) => None,
        }
    };
    prepared.actions.extend(action);
}

fn elapsed(since: Timestamp, now: Timestamp) -> SignedDuration {
    now.duration_since(since)
}

fn timeout(inputs: &Inputs<'_>) -> SignedDuration {
    SignedDuration::try_from(inputs.config.drain_timeout).unwrap_or(SignedDuration::MAX)
}

/// Drains and deletes the replicas of a pool that is being deleted, then lets it go; after twice the drain timeout it is let
/// go whatever its pods do (owner references then end them).
fn delete_pool(inputs: &Inputs<'_>, resource: &ModelPool, id: &PoolId, prepared: &mut Prepared) {
    if !resource.finalizers().iter().any(|f| f == names::FINALIZER) {
        return;
    }
    let uid = resource.metadata.uid.clone().unwrap_or_default();
    let own: Vec<&Observed> = observe::of_pool(inputs.replicas, id).filter(|r| r.owner_uid == uid).collect();
    let since = resource.metadata.deletion_timestamp.as_ref().map_or(inputs.now, |t| t.0);
    let overdue = elapsed(since, inputs.now) >= timeout(inputs).saturating_mul(2);
    if own.is_empty() || overdue {
        set_finalizers(resource, id, without_ours(resource.finalizers()), prepared);
        return;
    }
    for replica in own {
        drain(inputs, replica, true, prepared);
    }
}
