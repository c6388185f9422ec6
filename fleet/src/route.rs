//! Route tables: what the scheduler tells agents.

use serde::{Deserialize, Serialize};

use crate::{NodeName, PoolId, ReplicaId, Role, SloClass};

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
    /// Share of the pool's traffic by request class `(class, weight)`; an empty list means an even share.
    pub weights: Vec<(String, f64)>,
    /// Step-time model.
    pub coefficients: StepCoefficients,
    /// Takes no new requests.
    pub draining: bool,
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
}
