//! The schema of a ModelPool's spec.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::EnvVar;
use kube::{CustomResource, KubeSchema};
use plimsoll_fleet as fleet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Adopt, ModelPoolStatus};
use crate::duration::DurationText;

/// A pool of engine replicas that serve one model under one name within stated latency objectives. Say what service is
/// wanted; Plimsoll chooses accelerators, parallelism, replica count and placement, and reports why in the status.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "plimsoll.dev",
    version = "v1alpha1",
    kind = "ModelPool",
    plural = "modelpools",
    shortname = "mp",
    category = "all",
    category = "plimsoll",
    namespaced,
    status = "ModelPoolStatus",
    derive = "PartialEq",
    doc = "A pool of engine replicas that serve one model under one name within stated latency objectives. Say what service is wanted; Plimsoll chooses accelerators, parallelism, replica count and placement, and says why in the status.",
    scale(
        spec_replicas_path = ".spec.scaling.min",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Model",
        type_ = "string",
        json_path = ".spec.model.name",
        description = "Model name in requests"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.summary.ready",
        description = "Replicas that serve / replicas wanted"
    ),
    printcolumn(
        name = "Shape",
        type_ = "string",
        json_path = ".status.summary.shape",
        description = "Wanted replicas by shape"
    ),
    printcolumn(
        name = "$/h",
        type_ = "string",
        json_path = ".status.summary.usdPerHour",
        description = "Cost of the wanted replicas"
    ),
    printcolumn(
        name = "TTFT p95",
        type_ = "string",
        json_path = ".status.summary.ttft",
        description = "Time to first token, observed (~ predicted) / objective"
    ),
    printcolumn(
        name = "TPOT p95",
        type_ = "string",
        json_path = ".status.summary.tpot",
        description = "Time per output token, observed (~ predicted) / objective"
    ),
    printcolumn(
        name = "Why",
        type_ = "string",
        json_path = ".status.summary.why",
        description = "The reason for the current fleet"
    ),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode", priority = 1),
    printcolumn(name = "Plan", type_ = "integer", json_path = ".status.plan", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.engine.kind != 'external' || (has(self.engine.endpoints) && size(self.engine.endpoints) > 0)")
        .message("engine.kind external needs engine.endpoints: list at least one host:port"),
    validation = Rule::new("!has(self.adopt) || self.mode == 'Advise'")
        .message("adopt only reads: set mode: Advise; to hand the model over, remove adopt, set mode: Enforce, and remove the old workload once the pool serves")
)]
pub struct ModelPoolSpec {
    /// Which model. Immutable: for another model make another pool, move traffic, then delete this one.
    #[x_kube(validation = Rule::new("self == oldSelf").message("model is immutable: create a second ModelPool for the new model, then delete this one"))]
    pub model: Model,

    /// The forms of the weights that may be deployed. Left out: the form the checkpoint is published in and, where that is
    /// bf16, also fp8 quantised at load (quality 0.99).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub variants: Vec<Variant>,

    /// Latency objectives: what "served well" means. Every objective is a percentile of a latency and its limit, e.g.
    /// `ttft: {p95: 800ms}`. Plimsoll sizes the pool so that they hold at the forecast load.
    pub slo: Slo,

    /// Expected demand, used until traffic has been seen. Without it a pool starts with `scaling.min` replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<Demand>,

    /// Pins the number of replicas. Leave it out for Plimsoll to decide within `scaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10000))]
    pub replicas: Option<i32>,

    /// Bounds on the number of replicas.
    #[serde(default)]
    pub scaling: Scaling,

    /// Allowed parallelism within one replica.
    #[serde(default)]
    pub parallelism: Parallelism,

    /// Where replicas may run.
    #[serde(default)]
    pub placement: Placement,

    /// The engine that serves the model.
    #[serde(default)]
    pub engine: Engine,

    /// How a change of the engine's configuration (engine, variants, maxContextTokens) reaches the replicas.
    #[serde(default)]
    pub rollout: Rollout,

    /// Tier: when capacity or budget binds, pools with a higher number are served first.
    #[serde(default)]
    #[schemars(range(min = -1000000, max = 1000000))]
    pub priority: i32,

    /// Lowest quality of variants that may be used, 0 to 1: 1 allows only the best one, 0 all.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_quality: f64,

    /// Longest request (prompt and answer together) to serve, in tokens. Left out: the model's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 100000000))]
    pub max_context_tokens: Option<i32>,

    /// Enforce creates and deletes replicas. Advise plans, prices and reports, and touches nothing.
    #[serde(default)]
    pub mode: Mode,

    /// Engines that others run for this model today. Only with mode Advise: the status then shows them, their cost and
    /// their highest rate beside what Plimsoll would run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt: Option<Adopt>,
}

/// Which model, under which name.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.preset) != has(self.architecture)")
        .message("name exactly one of preset (a well-known model) and architecture (its dimensions)")
)]
pub struct Model {
    /// The model name in requests (`"model": "…"`); unique in the cluster.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$"))]
    pub name: String,

    /// A well-known model whose architecture Plimsoll knows, e.g. `llama-3.1-70b`. An unknown one is answered with the
    /// nearest known names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub preset: Option<String>,

    /// The dimensions of a model that is no preset, from its `config.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,

    /// Where the weights are: `hf://org/repo`, `s3://bucket/path`, `oci://registry/repo:tag` or `pvc://claim/path`. Left
    /// out: the preset's public checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = r"^(hf|s3|oci|pvc)://.+$"))]
    pub source: Option<String>,
}

/// A decoder-only transformer's dimensions.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.kvHeads) != has(self.latent)")
        .message("name exactly one of kvHeads (multi-head or grouped-query attention) and latent (multi-head latent attention)"),
    validation = Rule::new("!has(self.moe) || has(self.activeParametersBillion)")
        .message("a mixture of experts needs activeParametersBillion: the parameters that one token uses"),
    validation = Rule::new("(has(self.slidingWindow) ? self.slidingWindow.layers : 0) + (has(self.recurrent) ? self.recurrent.layers : 0) <= self.layers")
        .message("slidingWindow.layers and recurrent.layers together are more than layers"),
    validation = Rule::new("!has(self.recurrent) || self.recurrent.layers < self.layers")
        .message("recurrent.layers must leave at least one layer with attention")
)]
pub struct Architecture {
    /// Transformer layers (`num_hidden_layers`).
    #[schemars(range(min = 1, max = 10000))]
    pub layers: i32,
    /// Hidden width (`hidden_size`).
    #[schemars(range(min = 1, max = 1000000))]
    pub hidden: i32,
    /// Query heads (`num_attention_heads`).
    #[schemars(range(min = 1, max = 10000))]
    pub heads: i32,
    /// Width of one head (`head_dim`). Left out: hidden / heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub head_dim: Option<i32>,
    /// Key/value heads (`num_key_value_heads`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub kv_heads: Option<i32>,
    /// Multi-head latent attention (DeepSeek-V2 and V3) instead of key/value heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent: Option<LatentAttention>,
    /// Vocabulary entries (`vocab_size`).
    #[schemars(range(min = 1, max = 100000000))]
    pub vocab: i32,
    /// All parameters, in billions (10⁹).
    pub parameters_billion: f64,
    /// Parameters that one token uses outside the embedding tables, in billions. Left out: all but the embedding tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_parameters_billion: Option<f64>,
    /// Whether input and output embeddings are one matrix (`tie_word_embeddings`).
    #[serde(default)]
    pub tied_embeddings: bool,
    /// Longest context in tokens (`max_position_embeddings`).
    #[schemars(range(min = 16, max = 100000000))]
    pub context_tokens: i32,
    /// Mixture-of-experts facts; leave out for a dense model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe: Option<MixtureOfExperts>,
    /// Layers whose attention sees the last tokens only (`sliding_window`, `layer_types`; chunked attention counts alike).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<SlidingWindow>,
    /// Layers that keep a state of constant size instead of keys and values (linear attention, state-space models).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recurrent: Option<RecurrentLayers>,
}

/// Layers with sliding-window attention.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SlidingWindow {
    /// How many layers.
    #[schemars(range(min = 1, max = 10000))]
    pub layers: i32,
    /// How far they see, tokens.
    #[schemars(range(min = 1, max = 100000000))]
    pub tokens: i32,
}

/// Layers with a recurrent state.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct RecurrentLayers {
    /// How many layers.
    #[schemars(range(min = 1, max = 10000))]
    pub layers: i32,
    /// State of one layer for one request, bytes.
    #[schemars(range(min = 1.0, max = 1000000000000.0))]
    pub state_bytes: f64,
}

/// Multi-head latent attention.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct LatentAttention {
    /// Compressed KV width (`kv_lora_rank`).
    #[schemars(range(min = 1, max = 100000))]
    pub rank: i32,
    /// Width of the decoupled rotary key (`qk_rope_head_dim`).
    #[schemars(range(min = 0, max = 100000))]
    pub rope_dim: i32,
}

/// Mixture-of-experts facts.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct MixtureOfExperts {
    /// Routed experts in a layer.
    #[schemars(range(min = 1, max = 100000))]
    pub experts: i32,
    /// Routed experts that one token uses.
    #[schemars(range(min = 1, max = 100000))]
    pub experts_per_token: i32,
    /// Parameters in routed experts, all layers together, in billions.
    pub expert_parameters_billion: f64,
}

/// One deployable form of the weights.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Variant {
    /// Name, unique in the pool, e.g. `fp8`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub name: String,
    /// Number format of the weights.
    pub weights: Dtype,
    /// Number format of the KV cache. Left out: bf16.
    #[serde(default)]
    pub kv: Dtype,
    /// Quality relative to the best variant, 0 to 1; `minQuality` is compared with it.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub quality: f64,
    /// Where these weights are, if not at `model.source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = r"^(hf|s3|oci|pvc)://.+$"))]
    pub source: Option<String>,
}

fn one() -> f64 {
    1.0
}

/// Number format.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit IEEE float.
    Fp32,
    /// bfloat16.
    #[default]
    Bf16,
    /// 16-bit IEEE float.
    Fp16,
    /// 8-bit float.
    Fp8,
    /// 8-bit integer.
    Int8,
    /// 4-bit float with block scales (NVFP4, MXFP4).
    Fp4,
    /// 4-bit integer with group scales (GPTQ, AWQ, Q4_K).
    Int4,
}

impl From<Dtype> for fleet::Dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Fp32 => Self::Fp32,
            Dtype::Bf16 => Self::Bf16,
            Dtype::Fp16 => Self::Fp16,
            Dtype::Fp8 => Self::Fp8,
            Dtype::Int8 => Self::Int8,
            Dtype::Fp4 => Self::Fp4,
            Dtype::Int4 => Self::Int4,
        }
    }
}

/// The CEL rule that every percentile of an objective lies between two durations, and the message that says which does not.
fn objective_range(low: &str, high: &str) -> kube::core::Rule {
    const KEYS: [&str; 4] = ["p50", "p90", "p95", "p99"];
    let rule = KEYS
        .map(|p| format!("(!has(self.{p}) || (duration(self.{p}) >= duration('{low}') && duration(self.{p}) <= duration('{high}')))"))
        .join(" && ");
    let given = |quoted: bool| {
        KEYS.iter().rev().fold("''".to_owned(), |rest, p| {
            let value = if quoted { format!("'{p}'") } else { format!("self.{p}") };
            format!("(has(self.{p}) ? {value} : {rest})")
        })
    };
    let message =
        format!("{} + ' must be between {low} and {high} (got ' + {} + ')'", given(true), given(false));
    kube::core::Rule::new(rule).message(kube::core::Message::Expression(message))
}

/// Latency objectives. At least one of ttft, tpot and e2e is needed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.ttft) || has(self.tpot) || has(self.e2e)")
        .message("name at least one objective: ttft, tpot or e2e, e.g. ttft: {p95: 800ms}")
)]
pub struct Slo {
    /// Time to first token: from the request's arrival to the first token of the answer. 1ms to 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = objective_range("1ms", "10m"))]
    pub ttft: Option<Objective>,
    /// Time per output token after the first, a request's own mean. 1ms to 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = objective_range("1ms", "10s"))]
    pub tpot: Option<Objective>,
    /// End to end: from the request's arrival to the last token. 1ms to 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = objective_range("1ms", "24h"))]
    pub e2e: Option<Objective>,
    /// Further classes of requests with objectives of their own. A request belongs to the class that its header
    /// `x-plimsoll-slo-class` names, else to the first whose `match` fits, else to the pool's default above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub classes: Vec<SloClass>,
}

/// One percentile and its limit, e.g. `{p95: 800ms}`. Exactly one key.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.p50) ? 1 : 0) + (has(self.p90) ? 1 : 0) + (has(self.p95) ? 1 : 0) + (has(self.p99) ? 1 : 0) == 1")
        .message("give exactly one of p50, p90, p95, p99, e.g. {p95: 800ms}")
)]
pub struct Objective {
    /// Limit of the median, e.g. `200ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50: Option<DurationText>,
    /// Limit of the 90th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90: Option<DurationText>,
    /// Limit of the 95th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p95: Option<DurationText>,
    /// Limit of the 99th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<DurationText>,
}

/// A named class of requests with objectives of its own.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.ttft) || has(self.tpot) || has(self.e2e)")
        .message("name at least one objective: ttft, tpot or e2e, e.g. ttft: {p95: 800ms}")
)]
pub struct SloClass {
    /// Name, e.g. `batch`. The name `default` is the pool's own.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self != 'default'").message("the class named default is the pool's own slo; choose another name"))]
    pub name: String,
    /// Time to first token. 1ms to 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = objective_range("1ms", "10m"))]
    pub ttft: Option<Objective>,
    /// Time per output token after the first. 1ms to 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = objective_range("1ms", "10s"))]
    pub tpot: Option<Objective>,
    /// End to end. 1ms to 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = objective_range("1ms", "24h"))]
    pub e2e: Option<Objective>,
    /// Which requests belong to the class besides those that name it.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matches: Option<SloMatch>,
    /// The share of the pool's traffic expected in this class before any is seen, 0 to 1.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub share: f64,
}

/// Which requests belong to a class.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SloMatch {
    /// Request headers and their exact values, all of which must fit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub headers: BTreeMap<String, String>,
}

/// Expected demand.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Demand {
    /// Requests per second at the peak.
    #[schemars(range(min = 0.0, max = 1000000.0))]
    pub rps: f64,
    /// Prompt lengths, tokens.
    pub input: Lengths,
    /// Answer lengths, tokens.
    pub output: Lengths,
}

/// A distribution of token counts.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.p95) || self.p95 >= self.mean").message("p95 must be at least mean"))]
pub struct Lengths {
    /// Mean, tokens.
    #[schemars(range(min = 1.0, max = 100000000.0))]
    pub mean: f64,
    /// 95th percentile, tokens. Left out: three times the mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 100000000.0))]
    pub p95: Option<f64>,
}

/// Bounds on the number of replicas.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.max >= self.min").message("max must be at least min"))]
pub struct Scaling {
    /// Fewest replicas (while awake, if the pool may scale to zero); what `kubectl scale` writes.
    #[serde(default = "Scaling::default_min")]
    #[schemars(range(min = 0, max = 10000))]
    pub min: i32,
    /// Most replicas.
    #[serde(default = "Scaling::default_max")]
    #[schemars(range(min = 0, max = 10000))]
    pub max: i32,
    /// Idle time after which the pool goes to zero replicas, e.g. `15m`. Left out: never. The first request after that
    /// waits for a replica to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_to_zero_after: Option<DurationText>,
    /// Fewest availability zones that replicas must span.
    #[serde(default = "Scaling::default_min")]
    #[schemars(range(min = 1, max = 16))]
    pub min_zones: i32,
}

impl Scaling {
    fn default_min() -> i32 {
        1
    }

    fn default_max() -> i32 {
        64
    }
}

impl Default for Scaling {
    fn default() -> Self {
        Self { min: 1, max: 64, scale_to_zero_after: None, min_zones: 1 }
    }
}

/// Allowed parallelism.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Parallelism {
    /// Allowed tensor-parallel degrees. Left out: the powers of two that divide the model's heads and fit one link domain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(range(min = 1, max = 64)))]
    #[x_kube(validation = Rule::new("self.all(x, self.exists_one(y, y == x))").message("tensor degrees must be unique"))]
    pub tensor: Vec<i32>,
    /// Allowed pipeline-parallel degrees; above 1, stages may sit on several nodes. Left out: 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(range(min = 1, max = 64)))]
    #[x_kube(validation = Rule::new("self.all(x, self.exists_one(y, y == x))").message("pipeline degrees must be unique"))]
    pub pipeline: Vec<i32>,
    /// Allowed attention data-parallel degrees: so many groups of `tensor` accelerators serve requests of their own, with caches of their own,
    /// and share the experts, all on one node. For mixture-of-experts models on vLLM and SGLang, with pipeline degree 1. Left out: 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(range(min = 1, max = 64)))]
    #[x_kube(validation = Rule::new("self.all(x, self.exists_one(y, y == x))").message("data degrees must be unique"))]
    pub data: Vec<i32>,
    /// Give each accelerator of a replica's stage whole experts instead of a slice of each (expert parallelism). For
    /// mixture-of-experts models on vLLM and SGLang.
    #[serde(default)]
    pub expert: bool,
    /// Whether prefill and decode run on separate replicas: Auto, where that is cheaper; their engines need a KV connector.
    #[serde(default)]
    pub disaggregation: Disaggregation,
}

/// Whether prefill and decode run on separate replicas.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Disaggregation {
    /// Where it pays.
    Auto,
    /// Always.
    Always,
    /// Never.
    #[default]
    Never,
}

/// Where replicas may run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Allowed AcceleratorClasses by name. Left out: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 253)))]
    pub accelerators: Vec<String>,
    /// Whether interruptible capacity may be used.
    #[serde(default)]
    pub spot: Spot,
    /// Labels that a node must carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Kueue's LocalQueue, in the pool's namespace, that admits the pods. Left out: the pool's label
    /// `kueue.x-k8s.io/queue-name`, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"))]
    pub queue_name: Option<String>,
}

/// Whether interruptible capacity may be used.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Spot {
    /// May be used.
    Allowed,
    /// Used first.
    Preferred,
    /// Not used.
    #[default]
    Never,
}

/// A toleration, as in a pod.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// Taint key. Left out (with operator Exists): all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Exists or Equal (the default).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// Taint value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// NoSchedule, PreferNoSchedule or NoExecute. Left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
}

/// The engine that serves the model.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Engine {
    /// Which engine.
    #[serde(default)]
    pub kind: EngineKind,
    /// Container image. Left out: the engine's own published image at a version Plimsoll was tested with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub image: Option<String>,
    /// Further arguments, appended to Plimsoll's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub args: Vec<String>,
    /// Environment of the engine's container, as in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,
    /// CPU, memory and ephemeral storage of the engine's container. Accelerators are set by the plan.
    #[serde(default)]
    pub resources: Resources,
    /// Time from scheduling a replica to its first token, until starts have been measured.
    #[serde(default = "Engine::default_cold_start")]
    pub cold_start: DurationText,
    /// Where downloaded weights are kept. Left out: on the node's disk, for each replica anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// kind external: `host:port` of each OpenAI-compatible endpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 261)))]
    pub endpoints: Vec<String>,
}

impl Engine {
    fn default_cold_start() -> DurationText {
        "90s".into()
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            kind: EngineKind::default(),
            image: None,
            args: Vec::new(),
            env: Vec::new(),
            resources: Resources::default(),
            cold_start: Self::default_cold_start(),
            cache: None,
            endpoints: Vec::new(),
        }
    }
}

/// Where downloaded weights are kept. `claim` and `hostPath` are shared by replicas, which download each file once;
/// `storageClassName` makes a volume for each replica.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.claim) ? 1 : 0) + (has(self.hostPath) ? 1 : 0) + (has(self.storageClassName) ? 1 : 0) <= 1")
        .message("give at most one of claim, hostPath and storageClassName"),
    validation = Rule::new("!has(self.storageClassName) || has(self.size)")
        .message("storageClassName needs size: that of each replica's volume, e.g. 200Gi"),
    validation = Rule::new("!has(self.size) || !(has(self.claim) || has(self.hostPath))")
        .message("size goes with storageClassName, or alone as the limit on the node's disk")
)]
pub struct Cache {
    /// A PersistentVolumeClaim in the pool's namespace. Replicas on several nodes need access mode ReadWriteMany.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub claim: Option<String>,
    /// A directory that exists on each node and that user 1000 may write, e.g. on local NVMe. The namespace must not enforce
    /// the pod security standards baseline or restricted, which forbid host paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 1024), regex(pattern = r"^/[^:]*$"))]
    pub host_path: Option<String>,
    /// StorageClass of a volume that comes and goes with each replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// Size of each replica's volume; without a StorageClass, the most it may take of the node's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"))]
    pub size: Option<String>,
}

/// Which engine.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// vLLM.
    #[default]
    Vllm,
    /// SGLang.
    Sglang,
    /// llama.cpp's server; the source is a GGUF file.
    Llamacpp,
    /// Plimsoll's simulated engine: real timing, made-up tokens.
    Simulated,
    /// OpenAI-compatible endpoints that Plimsoll routes to but does not run.
    External,
}

/// CPU, memory and storage of the engine's container.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Requested amounts, e.g. `cpu: "8"`, `memory: 64Gi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub requests: BTreeMap<String, String>,
    /// Upper limits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub limits: BTreeMap<String, String>,
}

/// How a change of the engine's configuration reaches the replicas. Left out: one replica first, judged beside the older ones;
/// then the rest, a quarter at a time; back to the older configuration if the new one serves worse or does not start.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Replaces no further replica for now.
    #[serde(default)]
    pub paused: bool,
    /// Most replicas replaced at a time, in percent of the pool; always at least one.
    #[serde(default = "Rollout::default_wave")]
    #[schemars(range(min = 1, max = 100))]
    pub wave_percent: i32,
    /// Whether a configuration that serves worse, or does not start, gives way to the last one that served. Without it the
    /// rollout only stops.
    #[serde(default = "yes")]
    pub auto_rollback: bool,
    /// How the first replicas of a new configuration are judged.
    #[serde(default)]
    pub canary: Canary,
}

impl Rollout {
    fn default_wave() -> i32 {
        25
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self { paused: false, wave_percent: 25, auto_rollback: true, canary: Canary::default() }
    }
}

/// How the first replicas of a new configuration are judged: by the shares of requests that fail, and that miss the objectives
/// of their class, beside those of the older configuration over the same time.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// Whether there is a canary at all.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Replicas of the new configuration until they are judged.
    #[serde(default = "Canary::default_replicas")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: i32,
    /// Fewest requests on each side before they pass.
    #[serde(default = "Canary::default_min_requests")]
    #[schemars(range(min = 1, max = 1000000))]
    pub min_requests: i32,
    /// Length of the blocks in which both sides are compared. Longer ones forgive longer moments of bad luck and need
    /// more time to tell a regression.
    #[serde(default = "Canary::default_block")]
    pub block: DurationText,
    /// Time after the first replica's start that is not judged: its caches are cold.
    #[serde(default = "Canary::default_warm_up")]
    pub warm_up: DurationText,
    /// How much larger the share of requests that miss an objective may be, 0 to 0.5. For requests that fail it is 0.01 at
    /// most.
    #[serde(default = "Canary::default_tolerance")]
    #[schemars(range(min = 0.0, max = 0.5))]
    pub tolerance: f64,
    /// How long to wait for enough requests.
    #[serde(default = "Canary::default_deadline")]
    pub deadline: DurationText,
    /// What then: Proceed goes on and says that nothing was judged, Hold waits on.
    #[serde(default)]
    pub without_traffic: WithoutTraffic,
}

impl Canary {
    fn default_replicas() -> i32 {
        1
    }

    fn default_min_requests() -> i32 {
        200
    }

    fn default_block() -> DurationText {
        "5s".into()
    }

    fn default_warm_up() -> DurationText {
        "30s".into()
    }

    fn default_tolerance() -> f64 {
        0.05
    }

    fn default_deadline() -> DurationText {
        "10m".into()
    }
}

impl Default for Canary {
    fn default() -> Self {
        Self {
            enabled: true,
            replicas: Self::default_replicas(),
            min_requests: Self::default_min_requests(),
            block: Self::default_block(),
            warm_up: Self::default_warm_up(),
            tolerance: Self::default_tolerance(),
            deadline: Self::default_deadline(),
            without_traffic: WithoutTraffic::default(),
        }
    }
}

/// What a canary with too few requests does in the end.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WithoutTraffic {
    /// Goes on, and says that nothing was judged.
    #[default]
    Proceed,
    /// Waits on.
    Hold,
}

fn yes() -> bool {
    true
}

/// Whether Plimsoll acts or only advises.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Creates and deletes replicas.
    #[default]
    Enforce,
    /// Plans, prices and reports; touches nothing.
    Advise,
}
