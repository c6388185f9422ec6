//! The cluster as read, before anything is made of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Node, Pod};
use plimsoll_crds::{AcceleratorClass, Budget, LoraAdapter, ModelPool, Tenant};
use plimsoll_fleet::RequestPriority;

use crate::devices::DynamicResources;

/// An object that exists but cannot be read as its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Kind.
    pub kind: &'static str,
    /// Namespace (`None` for cluster-wide kinds).
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Generation.
    pub generation: i64,
    /// Why it cannot be read.
    pub error: String,
}

/// Everything the operator reads, at one moment.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// ModelPools.
    pub pools: Vec<ModelPool>,
    /// AcceleratorClasses.
    pub accelerators: Vec<AcceleratorClass>,
    /// Budgets.
    pub budgets: Vec<Budget>,
    /// Tenants.
    pub tenants: Vec<Tenant>,
    /// LoraAdapters.
    pub adapters: Vec<LoraAdapter>,
    /// Objects of those kinds that cannot be read.
    pub broken: Vec<Broken>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// Pods of replicas.
    pub pods: Vec<Arc<Pod>>,
    /// Devices that the cluster allocates dynamically.
    pub dynamic: DynamicResources,
    /// All other pods (pruned to what holds accelerators).
    pub foreign_pods: Vec<Arc<Pod>>,
    /// Revisions of pools' engine configurations; `None` if they cannot be read.
    pub revisions: Option<Vec<Arc<ControllerRevision>>>,
    /// SHA-256 digests (lower-case hex) of tenants' API keys by `(namespace, secret, key)`.
    pub api_keys: BTreeMap<(String, String, String), String>,
    /// InferenceObjectives, as priorities of requests.
    pub priorities: Vec<RequestPriority>,
}
