//! What the operator sees of the cluster: the planner's input.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    AcceleratorClass, Adapter, AdapterRoom, Budget, ModelPool, NodeName, PoolId, ReplicaId, Shape, Tenant,
};

/// A node with accelerators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Name.
    pub name: NodeName,
    /// Name of its accelerator class.
    pub accelerator: String,
    /// Accelerators that Kubernetes may hand out.
    pub allocatable_gpus: u32,
    /// Accelerators held by pods that are not Plimsoll's.
    pub foreign_gpus: u32,
    /// Availability zone (label `topology.kubernetes.io/zone`; empty if unlabelled).
    pub zone: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Taints as `key=value:Effect`.
    pub taints: Vec<String>,
    /// Whether it is interruptible capacity.
    pub spot: bool,
    /// Ready and not cordoned: new replicas may be put here.
    pub schedulable: bool,
    /// Ready and not faulty: replicas here count as running. Where it is not, they are replaced elsewhere.
    pub ready: bool,
    /// What is wrong with its hardware, as a node condition says it, e.g. `XIDErrors` (empty: nothing is known to be).
    #[serde(default)]
    pub fault: String,
}

/// Life of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaPhase {
    /// Created, not yet bound or started.
    Pending,
    /// Started, loading weights or warming up.
    Starting,
    /// Serves tokens.
    Ready,
    /// Takes no new requests; finishes those it has.
    Draining,
    /// Not working.
    Failed,
}

/// A replica as observed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Identity.
    pub id: ReplicaId,
    /// Pool.
    pub pool: PoolId,
    /// Shape it was created with.
    pub shape: Shape,
    /// Nodes of its pods (first: where its API is); empty while unbound.
    pub nodes: Vec<NodeName>,
    /// Phase.
    pub phase: ReplicaPhase,
    /// `host:port` of its engine's API, once known.
    pub address: Option<String>,
    /// Number of the plan that created it (0: adopted).
    pub plan: u64,
    /// Since when it is in this phase.
    pub since: jiff::Timestamp,
    /// When it was created.
    pub created_at: jiff::Timestamp,
    /// When it first became ready.
    pub ready_at: Option<jiff::Timestamp>,
    /// Why it is not ready, as the cluster says it (empty otherwise).
    pub message: String,
    /// It was made from an older engine configuration than its pool has now.
    #[serde(default)]
    pub outdated: bool,
    /// Others hold its pod back from being scheduled (a scheduling gate, such as Kueue's).
    #[serde(default)]
    pub gated: bool,
    /// Digest of its pool's engine configuration when it was made (empty: not known).
    #[serde(default)]
    pub revision: String,
    /// Its pod has come to its end and will not start again (evicted, lost, finished): only another one can replace it.
    #[serde(default)]
    pub ended: bool,
    /// Room for LoRA adapters that its engine was started with (`None`: not known).
    #[serde(default)]
    pub adapter_room: Option<AdapterRoom>,
}

/// An engine that Plimsoll did not start and only reads, for a pool that adopts it: one pod, or the pods of one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdoptedReplica {
    /// Pool that adopts it.
    pub pool: PoolId,
    /// Name of its pod, or of the group of pods.
    pub name: String,
    /// What it runs (`None`: that cannot be told, see `problem`).
    pub shape: Option<Shape>,
    /// Engines of that shape in it, more than one where it runs data-parallel copies.
    pub copies: u32,
    /// Accelerators that its pods hold, by node; they are among the nodes' `foreign_gpus`.
    pub gpus: Vec<(NodeName, u32)>,
    /// Whether it serves.
    pub ready: bool,
    /// Why it is not understood, beginning with the reason in one CamelCase word (empty otherwise).
    pub problem: String,
}

impl AdoptedReplica {
    /// Accelerators that it holds, all nodes together.
    pub fn held(&self) -> u32 {
        self.gpus.iter().map(|(_, n)| n).fold(0, |a, n| a.saturating_add(*n))
    }
}

/// An InferenceObjective (Gateway API Inference Extension, llm-d): the priority of requests that name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestPriority {
    /// Pool whose requests it is for.
    pub pool: PoolId,
    /// Name, as requests give it.
    pub objective: String,
    /// Higher goes first; below zero: the first to be refused.
    pub priority: i32,
}

/// Everything the planner needs to know of the cluster at one moment. Rejected objects are not in it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ClusterSnapshot {
    /// Pools that were accepted.
    pub pools: Vec<ModelPool>,
    /// Accelerator classes.
    pub accelerators: Vec<AcceleratorClass>,
    /// Accelerator nodes.
    pub nodes: Vec<NodeInfo>,
    /// Plimsoll's replicas.
    pub replicas: Vec<ReplicaStatus>,
    /// Budgets.
    pub budgets: Vec<Budget>,
    /// Tenants.
    pub tenants: Vec<Tenant>,
    /// Adapters.
    pub adapters: Vec<Adapter>,
    /// Engines of others that pools adopt, in order of pool and name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adopted: Vec<AdoptedReplica>,
    /// Priorities of requests within a pool, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub priorities: Vec<RequestPriority>,
}
