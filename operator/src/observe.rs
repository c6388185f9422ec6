//! From pods and nodes to replicas and capacity. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec, PodStatus};
use kube::ResourceExt;
use plimsoll_fleet::{
    AcceleratorClass, NodeInfo, NodeName, PoolId, ReplicaId, ReplicaPhase, ReplicaStatus, Role, Shape,
};

use crate::build::queue;
use crate::devices::Devices;
use crate::fault::{self, FaultCondition};
use crate::group::Group;
use crate::names;
use crate::record::ReplicaRecord;
use crate::revision::REVISION;

/// Restarts of a crashing engine after which the replica counts as failed.
const CRASHES_UNTIL_FAILED: i32 = 3;

/// A replica and what only the operator needs to know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// As the planner sees it.
    pub status: ReplicaStatus,
    /// Name of its pod, of the leader's if it runs on several nodes.
    pub pod: String,
    /// That pod's UID.
    pub pod_uid: String,
    /// Its other pods, if it runs on several nodes.
    pub group: Option<Group>,
    /// UID of the ModelPool that owns the pod.
    pub owner_uid: String,
    /// Since when it drains.
    pub draining_since: Option<Timestamp>,
    /// Kubernetes is ending the pod.
    pub terminating: bool,
    /// When it is to have ended by then.
    pub ends_at: Option<Timestamp>,
    /// What it was made from, see [`crate::build::template`].
    pub template: String,
}

impl Observed {
    /// Whether it may hold requests: it has served, or may have.
    pub fn may_hold_requests(&self) -> bool {
        match self.status.phase {
            ReplicaPhase::Ready => true,
            ReplicaPhase::Draining => self.status.address.is_some(),
            ReplicaPhase::Pending | ReplicaPhase::Starting | ReplicaPhase::Failed => {
                self.status.ready_at.is_some()
            }
        }
    }
}

/// Why a pod that claims to be a replica is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "pod {namespace}/{name} is labelled as a replica but {problem}; delete it, or remove the label plimsoll.dev/replica"
)]
pub struct Unadoptable {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What is wrong.
    pub problem: String,
}

/// The replica that a pod is, or leads: the other pods of a group are added by [`crate::group::join`].
///
/// # Errors
/// [`Unadoptable`] if it lacks a readable record or a valid name.
pub fn replica(pod: &Pod) -> Result<Observed, Unadoptable> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let unadoptable =
        |problem: String| Unadoptable { namespace: namespace.clone(), name: name.clone(), problem };
    let text = pod
        .annotations()
        .get(names::REPLICA)
        .ok_or_else(|| unadoptable(format!("has no annotation {}", names::REPLICA)))?;
    let record: ReplicaRecord = serde_json::from_str(text)
        .map_err(|e| unadoptable(format!("its annotation {} cannot be read ({e})", names::REPLICA)))?;
    let id = match &record.group {
        Some(group) => group.replica.clone(),
        None => ReplicaId::new(name.clone()).map_err(|e| unadoptable(e.to_string()))?,
    };
    let empty_status = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty_status);
    let created_at = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let draining_since = pod.annotations().get(names::DRAINING).map(|t| t.parse().unwrap_or(created_at));
    let ends_at = pod.metadata.deletion_timestamp.as_ref().map(|t| t.0);
    let condition = |type_: &str| status.conditions.iter().flatten().find(|c| c.type_ == type_);
    let ready = condition("Ready").filter(|c| c.status == "True");
    let ready_at = ready.map(|c| c.last_transition_time.as_ref().map_or(created_at, |t| t.0));
    let (bare_phase, message) = phase(status, ready.is_some());
    let gates = queue::held_back(pod);
    let message = gates.clone().filter(|_| bare_phase == ReplicaPhase::Pending).unwrap_or(message);
    let phase =
        if ends_at.is_some() || draining_since.is_some() { ReplicaPhase::Draining } else { bare_phase };
    let since = match phase {
        ReplicaPhase::Draining => draining_since.or_else(|| ending_since(pod)).unwrap_or(created_at),
        ReplicaPhase::Ready => ready_at.unwrap_or(created_at),
        ReplicaPhase::Starting => status.start_time.as_ref().map_or(created_at, |t| t.0),
        ReplicaPhase::Pending => created_at,
        ReplicaPhase::Failed => {
            condition("Ready").and_then(|c| c.last_transition_time.as_ref()).map_or(created_at, |t| t.0)
        }
    };
    let nodes = node_of(pod).into_iter().collect();
    let address = status.pod_ip.as_deref().filter(|ip| !ip.is_empty()).map(|ip| {
        if ip.contains(':') {
            format!("[{ip}]:{}", names::ENGINE_PORT)
        } else {
            format!("{ip}:{}", names::ENGINE_PORT)
        }
    });
    Ok(Observed {
        status: ReplicaStatus {
            id,
            pool: record.pool,
            shape: record.shape,
            nodes,
            phase,
            address,
            plan: record.plan,
            since,
            created_at,
            ready_at,
            message,
            // Only the pool's spec can tell; see crate::snapshot.
            outdated: false,
            gated: gates.is_some(),
            revision: pod.labels().get(REVISION).cloned().unwrap_or_default(),
            ended: matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")),
            adapter_room: record.adapter_room,
        },
        pod: name,
        pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
        owner_uid: pod
            .metadata
            .owner_references
            .iter()
            .flatten()
            .find(|o| o.kind == "ModelPool")
            .map(|o| o.uid.clone())
            .or_else(|| record.group.as_ref().map(|group| group.owner_uid.clone()))
            .unwrap_or_default(),
        group: record.group.as_ref().map(|group| Group::new(pod, group, record.nodes.clone())),
        draining_since,
        terminating: ends_at.is_some(),
        ends_at,
        template: pod.annotations().get(names::TEMPLATE).cloned().unwrap_or_default(),
    })
}

/// When a pod was told to end: its deletion timestamp is when it is to *have* ended.
pub(crate) fn ending_since(pod: &Pod) -> Option<Timestamp> {
    let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
    let ends_at = pod.metadata.deletion_timestamp.as_ref()?.0;
    Some(ends_at.checked_sub(grace).unwrap_or(ends_at))
}

/// Keeps when each replica *first* became ready, by its pod's UID. Pods tell only when they last did, and nothing while they
/// are not: one whose probe fails for a moment would look as if it had never served, and be ended without a drain; and
/// one that recovers as if its cold start had taken all the time since its creation.
pub fn remember_ready(known: &mut BTreeMap<String, Timestamp>, replicas: &mut [Observed]) {
    let mut now = BTreeMap::new();
    for replica in replicas {
        let first = match (known.get(&replica.pod_uid).copied(), replica.status.ready_at) {
            (Some(known), Some(said)) => Some(known.min(said)),
            (known, said) => known.or(said),
        };
        if let Some(first) = first {
            now.insert(replica.pod_uid.clone(), first);
        }
        replica.status.ready_at = first;
    }
    *known = now;
}

/// The node a pod is bound to.
pub(crate) fn node_of(pod: &Pod) -> Option<NodeName> {
    let bound = pod.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty());
    bound.and_then(|node| NodeName::new(node).ok())
}

/// Phase of a pod that is not draining, and what the cluster says of it.
pub(crate) fn phase(status: &PodStatus, ready: bool) -> (ReplicaPhase, String) {
    if ready {
        return (ReplicaPhase::Ready, String::new());
    }
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        let said = status.message.clone().or_else(|| status.reason.clone());
        return (ReplicaPhase::Failed, said.unwrap_or_else(|| "the engine's pod ended".to_owned()));
    }
    for container in status.container_statuses.iter().flatten() {
        if let Some(waiting) = container.state.as_ref().and_then(|s| s.waiting.as_ref()) {
            let reason = waiting.reason.clone().unwrap_or_default();
            let message =
                match (&waiting.message, container.last_state.as_ref().and_then(|s| s.terminated.as_ref())) {
                    (_, Some(end)) => {
                        format!("{reason}: exit code {}, {} restarts", end.exit_code, container.restart_count)
                    }
                    (Some(message), None) => format!("{reason}: {message}"),
                    (None, None) => reason.clone(),
                };
            match reason.as_str() {
                "ImagePullBackOff"
                | "InvalidImageName"
                | "CreateContainerConfigError"
                | "CreateContainerError" => {
                    return (ReplicaPhase::Failed, message);
                }
                "CrashLoopBackOff" if container.restart_count >= CRASHES_UNTIL_FAILED => {
                    return (ReplicaPhase::Failed, message);
                }
                "ContainerCreating" | "PodInitializing" | "" => {}
                _ => return (ReplicaPhase::Starting, message),
            }
        }
        if container.state.as_ref().is_some_and(|s| s.running.is_some()) {
            return (ReplicaPhase::Starting, "the engine loads its weights".to_owned());
        }
    }
    let unscheduled =
        status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    match unscheduled {
        Some(c) => {
            (ReplicaPhase::Pending, c.message.clone().unwrap_or_else(|| "waits for a node".to_owned()))
        }
        None if status.phase.as_deref() == Some("Running") => (ReplicaPhase::Starting, String::new()),
        None => (ReplicaPhase::Pending, String::new()),
    }
}

/// An endpoint of an external pool as a replica: always ready, on no node.
pub fn external_replicas(
    pool: &plimsoll_fleet::ModelPool,
    endpoints: &[String],
    created_at: Timestamp,
) -> Vec<ReplicaStatus> {
    let variant = pool.variants.first().map(|v| v.name.clone()).unwrap_or_default();
    endpoints
        .iter()
        .enumerate()
        .filter_map(|(i, endpoint)| {
            Some(ReplicaStatus {
                // Replica names are unique in the cluster.
                id: ReplicaId::new(format!("{}.{}.external-{i}", pool.id.namespace(), pool.id.name()))
                    .ok()?,
                pool: pool.id.clone(),
                shape: Shape {
                    variant: variant.clone(),
                    accelerator: "external".to_owned(),
                    tensor_parallel: 1,
                    pipeline_parallel: 1,
                    data_parallel: 1,
                    expert_parallel: 1,
                    role: Role::Mixed,
                },
                nodes: Vec::new(),
                phase: ReplicaPhase::Ready,
                address: Some(endpoint.clone()),
                plan: 0,
                since: created_at,
                created_at,
                ready_at: Some(created_at),
                message: String::new(),
                outdated: false,
                gated: false,
                revision: String::new(),
                ended: false,
                adapter_room: None,
            })
        })
        .collect()
}

/// Accelerators of one resource that a pod holds (init containers run before the others, so the larger need counts).
pub(crate) fn held(spec: &PodSpec, resource: &str) -> u32 {
    let need = |c: &Container| {
        let resources = c.resources.as_ref();
        resources
            .and_then(|r| {
                r.limits.as_ref().and_then(|l| l.get(resource)).or_else(|| r.requests.as_ref()?.get(resource))
            })
            .and_then(|q| plimsoll_crds::quantity::parse(&q.0))
            .map_or(0, |n| n as u32)
    };
    let together: u32 = spec.containers.iter().map(need).sum();
    let before: u32 = spec.init_containers.iter().flatten().map(need).max().unwrap_or(0);
    together.max(before)
}

/// Whether a container asks for an extended resource.
pub(crate) fn asks_for_extended_resource(container: &Container) -> bool {
    let resources = container.resources.iter().flat_map(|r| [&r.limits, &r.requests]).flatten();
    resources.flat_map(|r| r.keys()).any(|name| name.contains('/'))
}

/// Whether a pod may hold accelerators: it asks for an extended resource (which ones count depends on the accelerator
/// classes, and those change), or claims devices.
pub fn may_hold_accelerators(spec: &PodSpec) -> bool {
    spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty())
        || spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(asks_for_extended_resource)
}

/// Whether a pod still holds its resources.
pub(crate) fn holds_resources(pod: &Pod) -> bool {
    !matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Accelerators held on each node by pods that are not replicas, by `(node, resource)`; `resources` are those that count.
pub fn foreign_use(pods: &[Arc<Pod>], resources: &BTreeSet<&str>) -> BTreeMap<(String, String), u32> {
    let mut used = BTreeMap::new();
    for pod in pods.iter().filter(|p| holds_resources(p)) {
        let Some(spec) = &pod.spec else { continue };
        let Some(node) = spec.node_name.clone().filter(|n| !n.is_empty()) else { continue };
        for resource in resources {
            let n = held(spec, resource);
            if n > 0 {
                *used.entry((node.clone(), (*resource).to_owned())).or_insert(0) += n;
            }
        }
    }
    used
}

const SPOT_LABELS: &[(&str, &str)] = &[
    ("plimsoll.dev/spot", "true"),
    ("karpenter.sh/capacity-type", "spot"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("cloud.google.com/gke-spot", "true"),
    ("cloud.google.com/gke-preemptible", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
];

/// The accelerator class of a node. Where several fit, the one that demands the most labels wins, then the first by name.
pub fn class_of<'a>(
    node: &Node,
    classes: impl Iterator<Item = &'a AcceleratorClass>,
) -> Option<&'a AcceleratorClass> {
    classes
        .filter(|c| c.matches_labels(node.labels()))
        .max_by(|a, b| a.node_selector.len().cmp(&b.node_selector.len()).then_with(|| b.name.cmp(&a.name)))
}

/// A node as the planner sees it; `None` if it is of no accelerator class, see [`class_of`]. `foreign` is what others hold of
/// extended resources by node and resource, `held` of devices by class and node.
pub fn node<'a>(
    node: &Node,
    classes: impl Iterator<Item = &'a AcceleratorClass>,
    devices: &Devices<'_>,
    foreign: &BTreeMap<(String, String), u32>,
    held: &BTreeMap<(String, String), u32>,
    faults: &[FaultCondition],
) -> Option<NodeInfo> {
    let labels = node.labels();
    let class = class_of(node, classes)?;
    let name = NodeName::new(node.name_any()).ok()?;
    let status = node.status.as_ref();
    let published = devices.on(&class.name, name.as_str());
    let (allocatable_gpus, foreign_gpus) = match (published, class.resource_name()) {
        (Some(count), _) => (count, held.get(&(class.name.clone(), name.to_string())).copied().unwrap_or(0)),
        (None, Some(resource)) => {
            let allocatable = status
                .and_then(|s| s.allocatable.as_ref()?.get(resource))
                .and_then(|q| plimsoll_crds::quantity::parse(&q.0))
                .map_or(0, |n| n as u32);
            (allocatable, foreign.get(&(name.to_string(), resource.to_owned())).copied().unwrap_or(0))
        }
        // A CPU node serves as one accelerator: its engines share memory bandwidth anyway.
        (None, None) => (1, 0),
    };
    let fault = fault::fault_of(node, faults);
    let ready = fault::is_ready(node) && fault.is_empty();
    let spec = node.spec.as_ref();
    let tolerations = class.all_tolerations();
    Some(NodeInfo {
        name,
        accelerator: class.name.clone(),
        allocatable_gpus,
        foreign_gpus,
        zone: labels.get("topology.kubernetes.io/zone").cloned().unwrap_or_default(),
        labels: labels.clone(),
        taints: spec
            .and_then(|s| s.taints.as_ref())
            .into_iter()
            .flatten()
            // Those that every engine's pod on this class tolerates keep nobody away, see [`crate::build::pod`].
            .filter(|t| {
                let value = t.value.as_deref().unwrap_or_default();
                !tolerations.iter().any(|own| own.tolerates(&t.key, value, &t.effect))
            })
            .map(|t| format!("{}={}:{}", t.key, t.value.as_deref().unwrap_or_default(), t.effect))
            .collect(),
        spot: SPOT_LABELS.iter().any(|(key, value)| labels.get(*key).is_some_and(|v| v == value)),
        schedulable: ready && !spec.and_then(|s| s.unschedulable).unwrap_or(false),
        ready,
        fault,
    })
}

/// The replicas of one pool.
pub fn of_pool<'a>(replicas: &'a [Observed], pool: &'a PoolId) -> impl Iterator<Item = &'a Observed> {
    replicas.iter().filter(move |r| &r.status.pool == pool)
}
