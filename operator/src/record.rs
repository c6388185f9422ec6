//! What a replica's pod says of itself.

use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{
    AcceleratorClass, AdapterRoom, EngineKind, ModelArchitecture, NodeName, PoolId, ReplicaId, Shape,
};
use serde::{Deserialize, Serialize};

/// Annotation `plimsoll.dev/replica` of every replica's pod, as JSON: all that is needed to adopt the replica without any
/// other state, and to start a (simulated) engine of the right kind for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// Pool.
    pub pool: PoolId,
    /// Shape.
    pub shape: Shape,
    /// Nodes it was placed on (empty: wherever capacity appears).
    pub nodes: Vec<NodeName>,
    /// Whether it was placed on interruptible capacity.
    pub spot: bool,
    /// Plan that created it.
    pub plan: u64,
    /// Engine.
    pub engine: EngineKind,
    /// The model name in requests.
    pub served_name: String,
    /// Variant.
    pub variant: Variant,
    /// Architecture.
    pub architecture: ModelArchitecture,
    /// Accelerator class.
    pub accelerator: AcceleratorClass,
    /// Longest request, tokens.
    pub max_context_tokens: Option<u32>,
    /// Room for LoRA adapters that its engine was started with (`None`: it was made before this was written down).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_room: Option<AdapterRoom>,
    /// The group that it leads, if it runs on several nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupRecord>,
}

/// What the leader of a replica over several nodes says of its group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// The replica (a LeaderWorkerSet gives its pods names of their own).
    pub replica: ReplicaId,
    /// Pods, the leader included.
    pub size: u32,
    /// UID of the ModelPool (pods of a LeaderWorkerSet are owned by other objects).
    pub owner_uid: String,
}
