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
    /// Where the adapter's weights are.
    pub source: String,
    /// SHA-256 that its weights' file must have, in lower-case hexadecimals (`None`: any).
    #[serde(default)]
    pub sha256: Option<String>,
    /// LoRA rank.
    pub rank: u32,
    /// Size in memory (`None` until measured).
    pub size_bytes: Option<f64>,
    /// Expected rate before traffic is seen, requests per second.
    pub expected_rps: f64,
    /// Keep resident everywhere the pool runs.
    pub pinned: bool,
}
