//! Route tables: what the scheduler tells agents.

use serde::{Deserialize, Serialize};

use crate::pairing::splits_fit;
use crate::{EngineKind, NodeName, PoolId, ReplicaId, Role, SloClass};

/// A replica's step-time model in a form cheap enough for the request path.
///
/// Step time with `b` running requests whose contexts sum to `c` tokens, while prefilling `t` prompt tokens:
/// `base_ms + b·per_request_ms + c·per_context_token_ms + t·per_prefill_token_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct StepCoefficients {
    /// Time of an empty step: weights read, layer and step overheads.
    pub base_ms: f64,
    /// Added by each running request.
    pub per_request_ms: f64,
    /// Added by each context token read.
    pub per_context_token_ms: f64,
    /// Added by each prompt token prefilled.
    pub per_prefill_token_ms: f64,
    /// API time before the queue.
    pub api_overhead_ms: f64,
    /// KV-cache capacity, tokens.
    pub kv_tokens: f64,
    /// Most requests in one batch.
    pub max_running: u32,
    /// Most tokens in one step (chunked prefill).
    pub max_batched_tokens: u32,
}

/// How engines hand a prompt's KV cache from a prefill to a decode replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HandOverProtocol {
    /// vLLM's: the prefill replica is asked for one token and answers where the cache lies; the decode replica is told.
    Vllm,
    /// SGLang's: both are asked at once and meet in a numbered room of the prefill replica's bootstrap server.
    Sglang,
}

impl HandOverProtocol {
    /// What engines of a kind speak; `None`: they hand over nothing.
    pub fn of(kind: EngineKind) -> Option<Self> {
        match kind {
            // The simulated engine speaks both and is asked as vLLM is.
            EngineKind::Vllm | EngineKind::Simulated => Some(Self::Vllm),
            EngineKind::Sglang => Some(Self::Sglang),
            EngineKind::Llamacpp | EngineKind::External => None,
        }
    }

    /// Whether a decode replica can prefill a prompt itself: vLLM's engines do whatever they are asked, SGLang's decode servers
    /// refuse a request without a room.
    pub fn decode_prefills(self) -> bool {
        match self {
            Self::Vllm => true,
            Self::Sglang => false,
        }
    }
}

/// What a router must know of a prefill or decode replica to make it half of a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HandOver {
    /// How its engine hands over.
    pub protocol: HandOverProtocol,
    /// Equal where caches are the same bytes but for the split of heads: engine configuration, number format, pipeline stages.
    pub format: String,
    /// Accelerators that the heads are split over.
    pub tensor_parallel: u32,
    /// Port of the prefill replica's bootstrap server, on the engine's host (0: the protocol has none).
    pub bootstrap_port: u16,
    /// Time of one prompt token's keys and values over its links to other nodes, ms.
    pub network_ms_per_token: f64,
    /// The same inside a node, ms.
    pub node_ms_per_token: f64,
    /// Time to set up one transfer, ms.
    pub set_up_ms: f64,
}

impl HandOver {
    /// Whether a decode replica with this can go on from caches of a prefill replica with `prefill`: what
    /// [`crate::pairing::compatible`] says of the replicas themselves.
    pub fn takes_from(&self, prefill: &Self) -> bool {
        self.protocol == prefill.protocol
            && !self.format.is_empty()
            && self.format == prefill.format
            && splits_fit(self.tensor_parallel, prefill.tensor_parallel)
    }
}

/// One replica that requests may be sent to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Replica.
    pub replica: ReplicaId,
    /// Node it runs on.
    pub node: NodeName,
    /// Zone of the node.
    pub zone: String,
    /// Role.
    pub role: Role,
    /// `host:port` of the agent beside the engine (`None`: no agent; send to the engine directly).
    pub agent_address: Option<String>,
    /// `host:port` of the engine's HTTP API.
    pub engine_address: String,
    /// Model name to put into requests sent to the engine.
    pub engine_model: String,
    /// Share of the pool's traffic by request class `(class, weight)`; an empty list means an even share. Of prefill
    /// replicas it is their share of what is prefilled apart, of all others of what is answered.
    pub weights: Vec<(String, f64)>,
    /// Step-time model.
    pub coefficients: StepCoefficients,
    /// Takes no new requests.
    pub draining: bool,
    /// What its engine is.
    #[serde(default = "any_engine")]
    pub engine: EngineKind,
    /// Of a prefill or decode replica that can be half of a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over: Option<HandOver>,
}

/// Of tables kept by agents that did not know.
fn any_engine() -> EngineKind {
    EngineKind::External
}

impl Endpoint {
    /// Time for this decode replica to get the keys and values of so many prompt tokens from `prefill`, ms: the slower side's
    /// links. `None`: the two are no pair.
    pub fn transfer_ms(&self, prefill: &Self, tokens: f64) -> Option<f64> {
        let (Role::Prefill, Role::Decode) = (prefill.role, self.role) else { return None };
        let (from, to) = (prefill.hand_over.as_ref()?, self.hand_over.as_ref()?);
        let near = prefill.node == self.node;
        let per_token = |h: &HandOver| if near { h.node_ms_per_token } else { h.network_ms_per_token };
        to.takes_from(from)
            .then(|| from.set_up_ms.max(to.set_up_ms) + tokens.max(0.0) * per_token(from).max(per_token(to)))
    }
}

/// Routes of one pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolRoute {
    /// Pool.
    pub pool: PoolId,
    /// Model name in requests.
    pub served_name: String,
    /// SLO classes; first the default.
    pub slo_classes: Vec<SloClass>,
    /// Tier of the pool.
    pub priority: i32,
    /// Longest request, tokens.
    pub max_context_tokens: u32,
    /// Replicas.
    pub endpoints: Vec<Endpoint>,
    /// Longest time a request may wait for the pool to wake from zero, milliseconds.
    pub wake_wait_ms: f64,
    /// Price of a prompt token and of an answer token at the planned load, $ per million: for cost headers and ledgers.
    pub usd_per_million_tokens: (f64, f64),
    /// Why there is no endpoint, for error messages (empty otherwise).
    pub unavailable_reason: String,
    /// Priorities of the InferenceObjectives that name the pool, by name: of requests that name one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objectives: Vec<(String, i32)>,
    /// LoRA adapters on top of the pool's model, in order of served name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<AdapterRoute>,
}

/// A LoRA adapter, as routers and the agents beside its engines see it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AdapterRoute {
    /// The model name in requests, and the name that engines know it by.
    pub served_name: String,
    /// Where its weights are: `hf://…`, `pvc://…`.
    pub source: String,
    /// Replicas that are to hold it, in order.
    pub placed: Vec<ReplicaId>,
    /// Those whose engine says that it does.
    pub held: Vec<ReplicaId>,
    /// The group that it may answer for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How long an engine takes to load it, estimated, ms.
    #[serde(default)]
    pub load_ms: f64,
    /// What its files must be.
    #[serde(default)]
    pub files: AdapterFiles,
}

/// What the files of an adapter must be, so that engines started for its pool can use them. What is zero or empty is not checked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AdapterFiles {
    /// Rank that its resource says.
    pub rank: u32,
    /// Digest of its weights' file, in lower-case hexadecimals.
    pub sha256: String,
    /// Hidden width of the base model.
    pub hidden: u32,
    /// Layers of the base model.
    pub layers: u32,
}

impl PoolRoute {
    /// Priority of a request that names this InferenceObjective; 0 for one that names none, or one that is unknown.
    pub fn objective_priority(&self, named: Option<&str>) -> i32 {
        named
            .and_then(|name| self.objectives.iter().find(|(objective, _)| objective == name))
            .map_or(0, |(_, priority)| *priority)
    }
}

/// All routes, from one plan.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RouteTable {
    /// Grows with each change; agents ignore older ones.
    pub version: u64,
    /// Plan it derives from.
    pub plan: u64,
    /// Pools, in order of identity.
    pub pools: Vec<PoolRoute>,
    /// Shares of tenants against others of their tier where an engine is full, by the name that their requests carry, in order of
    /// name; 1 for those not listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenant_weights: Vec<(String, f64)>,
}

impl RouteTable {
    /// Whether it says the same as another, whatever their versions.
    pub fn says_same(&self, other: &Self) -> bool {
        self.pools == other.pools && self.tenant_weights == other.tenant_weights
    }
}
