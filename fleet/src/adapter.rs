//! LoRA adapters.

use serde::{Deserialize, Serialize};

use crate::PoolId;

/// A LoRA adapter served on top of a pool's base model under a served name of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Resource name.
    pub name: String,
    /// The model name in requests.
    pub served_name: String,
    /// The pool whose base model it adapts.
    pub base_pool: PoolId,
    /// The group of adapters, named in requests as a model is, that it may answer for. All of a group adapt one pool's model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Where the adapter's weights are.
    pub source: String,
    /// LoRA rank.
    pub rank: u32,
    /// Size in memory (`None` until measured).
    pub size_bytes: Option<f64>,
    /// Expected rate before traffic is seen, requests per second.
    pub expected_rps: f64,
    /// Keep resident everywhere the pool runs.
    pub pinned: bool,
}
