//! What an installation chooses.

use std::time::Duration;

use crate::fault::{FaultCondition, known_conditions};
use crate::inference_pool::InferencePools;

/// Default container images by engine kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineImages {
    /// vLLM.
    pub vllm: String,
    /// SGLang.
    pub sglang: String,
    /// llama.cpp's server with CUDA.
    pub llamacpp: String,
    /// llama.cpp's server for CPUs.
    pub llamacpp_cpu: String,
    /// Plimsoll itself, for simulated engines.
    pub plimsoll: String,
}

impl Default for EngineImages {
    fn default() -> Self {
        Self {
            vllm: "vllm/vllm-openai:v0.12.0".to_owned(),
            sglang: "lmsysorg/sglang:v0.5.4".to_owned(),
            llamacpp: "ghcr.io/ggml-org/llama.cpp:server-cuda".to_owned(),
            llamacpp_cpu: "ghcr.io/ggml-org/llama.cpp:server".to_owned(),
            plimsoll: concat!("plimsoll/plimsoll:v", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Who makes the pods of a replica over several nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Groups {
    /// A LeaderWorkerSet where the cluster has that API and lets the operator use it, else the operator.
    #[default]
    Auto,
    /// The operator.
    Pods,
}

/// Configuration of the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorConfig {
    /// Name under which it owns fields; `/status` and the like are appended per use.
    pub field_manager: String,
    /// Namespace of the leader-election Lease.
    pub lease_namespace: String,
    /// Name of the leader-election Lease.
    pub lease_name: String,
    /// This instance's name in the Lease.
    pub identity: String,
    /// How long others must not take a Lease that is not renewed.
    pub lease_duration: Duration,
    /// Longest time a replica may take to finish its requests before it is ended all the same, whoever ends it.
    pub drain_timeout: Duration,
    /// Quiet time after a change before the cluster is looked at again.
    pub debounce: Duration,
    /// Longest time between two looks at the cluster.
    pub resync: Duration,
    /// Least time between two writes of observed latencies that changed little.
    pub observed_interval: Duration,
    /// Time between SIGTERM and SIGKILL for an engine that somebody else ends, and whose requests took the whole drain timeout.
    pub termination_grace: Duration,
    /// Default container images.
    pub images: EngineImages,
    /// Node conditions that make a node's accelerators unusable.
    pub faults: Vec<FaultCondition>,
    /// Whether ModelPools are held back from deletion until their replicas are drained. If not, Kubernetes ends the replicas
    /// of a deleted pool within their grace period, and requests that take longer are cut off.
    pub finalizers: bool,
    /// An InferencePool for each ModelPool, where the cluster has that API (`None`: none).
    pub inference_pools: Option<InferencePools>,
    /// Who makes the pods of replicas over several nodes.
    pub groups: Groups,
    /// Folder of nodes that agents keep adapters in, for engines that load them (`None`: engines fetch adapters themselves).
    pub adapter_cache: Option<String>,
}

impl Default for OperatorConfig {
    fn default() -> Self {
        Self {
            field_manager: "plimsoll-operator".to_owned(),
            lease_namespace: "default".to_owned(),
            lease_name: "plimsoll-operator".to_owned(),
            // Distinct per process and per start; in a cluster the pod's name is used instead.
            identity: format!("operator-{}-{}", std::process::id(), jiff::Timestamp::now().as_millisecond()),
            lease_duration: Duration::from_secs(15),
            drain_timeout: Duration::from_secs(120),
            debounce: Duration::from_millis(100),
            resync: Duration::from_secs(2),
            observed_interval: Duration::from_secs(30),
            termination_grace: Duration::from_secs(30),
            images: EngineImages::default(),
            faults: known_conditions(),
            finalizers: true,
            inference_pools: None,
            groups: Groups::default(),
            adapter_cache: None,
        }
    }
}
