//! Replicas over several nodes: a leader, which serves, and a worker on each further node. From their pods to one replica.
//! Pure.
//!
//! A group lives and dies as one. It serves while all of its pods do; it has failed once one of them ended, went missing
//! after the leader had begun to serve, or stopped being ready although it runs (its node is lost).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::ResourceExt;
use plimsoll_fleet::{NodeName, ReplicaPhase};

use crate::lws;
use crate::names;
use crate::observe::{self, Observed, Unadoptable};
use crate::record::GroupRecord;

/// A pod of a group that does not lead it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its place: 1, 2, …
    pub rank: u32,
    /// Name of its pod.
    pub name: String,
    /// UID of its pod.
    pub uid: String,
    /// The node it is bound to.
    pub node: Option<NodeName>,
    /// Since when Kubernetes ends it.
    pub ending_since: Option<Timestamp>,
    phase: ReplicaPhase,
    /// What stands in its way.
    message: String,
    /// Why the group cannot go on with it.
    fault: Option<String>,
}

/// The pods of a replica over several nodes beside its leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Pods that there must be, the leader included.
    pub size: u32,
    /// The LeaderWorkerSet that makes its pods (`None`: the operator does).
    pub set: Option<String>,
    /// Workers that exist, in order of rank.
    pub workers: Vec<Worker>,
    /// Nodes as planned.
    planned: Vec<NodeName>,
}

impl Group {
    /// The group of a leader, without workers yet.
    pub(crate) fn new(leader: &Pod, record: &GroupRecord, planned: Vec<NodeName>) -> Self {
        let set = leader.labels().get(lws::SET_NAME).cloned();
        Self { size: record.size, set, workers: Vec::new(), planned }
    }

    /// Whether some of its workers do not exist.
    pub fn lacks_workers(&self) -> bool {
        (self.workers.len() as u32).saturating_add(1) < self.size
    }
}

/// A worker's place in its group.
fn rank_of(pod: &Pod) -> Option<u32> {
    let labels = pod.labels();
    labels.get(lws::WORKER_INDEX).or_else(|| labels.get(names::RANK))?.parse().ok()
}

fn is_worker(pod: &Pod) -> bool {
    pod.labels().get(names::RANK).is_some_and(|rank| rank != "0")
}

/// Whether a worker is this leader's: of the same LeaderWorkerSet, or owned by exactly this leader's pod (one left over from
/// an earlier group of the same name is not).
fn follows(worker: &Pod, leader: &Observed, group: &Group) -> bool {
    match &group.set {
        Some(set) => worker.labels().get(lws::SET_NAME) == Some(set),
        None => worker.owner_references().iter().any(|o| o.uid == leader.pod_uid),
    }
}

fn worker(pod: &Pod, rank: u32) -> Worker {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let is = |s: &str| status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == s);
    let (phase, message) = observe::phase(status, is("True"));
    // The kubelet says so of a container in the same breath as of its pod; of a lost node's pods others take it back.
    let was_ready = status.container_statuses.iter().flatten().any(|c| c.ready);
    let name = pod.name_any();
    let ended = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    let ending_since = observe::ending_since(pod);
    let fault = if ended {
        Some(format!("its pod {name} ended: {message}"))
    } else if was_ready && is("False") && ending_since.is_none() {
        Some(format!("its pod {name} is not ready although its engine is: its node may be lost"))
    } else {
        None
    };
    Worker {
        rank,
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        node: observe::node_of(pod),
        ending_since,
        phase,
        message: if message.is_empty() { String::new() } else { format!("{name}: {message}") },
        fault,
        name,
    }
}

/// The replicas among the pods, groups as one each, and the pods that only claim to be replicas. Workers without their
/// leader are neither: they go with their owner, which is gone.
pub fn replicas(pods: &[Arc<Pod>]) -> (Vec<Observed>, Vec<Unadoptable>) {
    let mut replicas = Vec::new();
    let mut unadoptable = Vec::new();
    let mut workers: BTreeMap<(Option<String>, String), Vec<&Pod>> = BTreeMap::new();
    for pod in pods {
        if is_worker(pod) {
            let replica = pod.labels().get(names::REPLICA).cloned().unwrap_or_default();
            workers.entry((pod.namespace(), replica)).or_default().push(pod);
            continue;
        }
        match observe::replica(pod) {
            Ok(replica) => replicas.push(replica),
            Err(why) => unadoptable.push(why),
        }
    }
    for replica in &mut replicas {
        let Some(group) = &replica.group else { continue };
        let namespace = Some(replica.status.pool.namespace().to_owned());
        let key = (namespace, names::label_value(replica.status.id.as_str()));
        let own = workers.get(&key).into_iter().flatten();
        let mut found: Vec<Worker> = own
            .filter(|pod| follows(pod, replica, group))
            .filter_map(|pod| Some(worker(pod, rank_of(pod).filter(|r| (1..group.size).contains(r))?)))
            .collect();
        found.sort_by(|a, b| (a.rank, &a.uid).cmp(&(b.rank, &b.uid)));
        found.dedup_by_key(|w| w.rank);
        join(replica, found);
    }
    (replicas, unadoptable)
}

/// Makes a leader and its workers one replica.
pub fn join(replica: &mut Observed, workers: Vec<Worker>) {
    let Some(group) = &mut replica.group else { return };
    group.workers = workers;
    let status = &mut replica.status;
    // A group never counts as ended while it may yet be made whole; the planner gives up one that never serves in time.
    status.ended = false;
    let leads = status.phase;
    let serves = leads == ReplicaPhase::Ready;
    let missing = group.lacks_workers();
    let fault = group.workers.iter().find_map(|w| w.fault.clone()).or_else(|| {
        // A LeaderWorkerSet makes what is missing anew, and the leader with it.
        let (here, size) = (group.workers.len() + 1, group.size);
        (missing && serves && group.set.is_none()).then(|| format!("only {here} of its {size} pods exist"))
    });
    let ending = group.workers.iter().filter_map(|w| w.ending_since).min();
    let worst = group.workers.iter().max_by_key(|w| severity(w.phase));
    let as_the_leader_says = replica.terminating || (leads == ReplicaPhase::Draining && fault.is_none());
    if !as_the_leader_says {
        if let Some(fault) = fault {
            (status.phase, status.message) = (ReplicaPhase::Failed, fault);
        } else if let Some(since) = ending {
            (status.phase, status.since) = (ReplicaPhase::Draining, since);
            status.message = "one of its pods is being removed".to_owned();
        } else if missing && severity(leads) < severity(ReplicaPhase::Pending) {
            (status.phase, status.since) = (ReplicaPhase::Pending, status.created_at);
            let here = group.workers.len() + 1;
            status.message = format!("waits for its pods: {here} of {} exist", group.size);
            status.ready_at = None;
        } else if let Some(worst) = worst.filter(|w| severity(w.phase) > severity(leads)) {
            (status.phase, status.since) = (worst.phase, status.created_at);
            status.message.clone_from(&worst.message);
            status.ready_at = None;
        }
    }
    let leader = status.nodes.first().cloned();
    let bound: Vec<NodeName> =
        leader.into_iter().chain(group.workers.iter().filter_map(|w| w.node.clone())).collect();
    status.nodes = if bound.len() as u32 == group.size {
        bound
    } else if !bound.is_empty() && group.planned.len() as u32 == group.size {
        // Its pods are pinned there, so the others will come or none stays.
        group.planned.clone()
    } else {
        Vec::new()
    };
}

/// How far a phase is from serving.
fn severity(phase: ReplicaPhase) -> u8 {
    match phase {
        ReplicaPhase::Ready => 0,
        ReplicaPhase::Starting => 1,
        ReplicaPhase::Pending => 2,
        ReplicaPhase::Draining => 3,
        ReplicaPhase::Failed => 4,
    }
}
