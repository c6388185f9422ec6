//! The schema of a ModelPool's status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What Plimsoll did for the pool, and why.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ModelPoolStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, Planned, Ready, SLOMet, BudgetLimited, CapacityLimited.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Replicas that exist and are not draining.
    #[serde(default)]
    pub replicas: i32,
    /// Replicas that serve.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Replicas that the plan wants.
    #[serde(default)]
    pub desired_replicas: i32,
    /// Label selector of the pool's pods, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Number of the last plan that changed anything here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<i64>,
    /// Cost of the wanted replicas, $/h.
    #[serde(default)]
    pub usd_per_hour: f64,
    /// Replicas by shape.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shapes: Vec<ShapeStatus>,
    /// Latencies predicted at the planned load, at the objectives' percentiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Latencies>,
    /// Latencies and traffic observed lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<ObservedTraffic>,
    /// Reasons, most telling first: the binding constraint, its price, the runner-up, what would help.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
    /// The latest changes of the fleet, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scalings: Vec<Scaled>,
    /// Engines that the pool adopts: what others run today.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<AdoptedStatus>,
    /// The cells of `kubectl get modelpools`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
}

/// Engines of others, as read.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct AdoptedStatus {
    /// The fleet, e.g. `4× bf16 TP1 H100`.
    pub fleet: String,
    /// Engines.
    #[serde(default)]
    pub replicas: i32,
    /// Engines that serve.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Accelerators that they hold.
    #[serde(default)]
    pub accelerators: i32,
    /// Cost, $/h.
    #[serde(default)]
    pub usd_per_hour: f64,
    /// Highest rate at which they still meet the objectives by Plimsoll's model, requests per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rps: Option<f64>,
    /// Cost of today less that of what is advised, $/h (below zero: advice costs more).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saving_usd_per_hour: Option<f64>,
    /// Pods that are not understood, and why; at most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Replicas of one shape.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ShapeStatus {
    /// The shape as people say it, e.g. `fp8 TP2 H100`.
    pub shape: String,
    /// Variant.
    pub variant: String,
    /// AcceleratorClass.
    pub accelerator: String,
    /// Tensor-parallel degree.
    pub tensor_parallel: i32,
    /// Pipeline-parallel degree.
    pub pipeline_parallel: i32,
    /// mixed, prefill or decode.
    pub role: String,
    /// Replicas that the plan wants.
    pub desired: i32,
    /// Replicas that serve.
    pub ready: i32,
    /// Highest rate at which one replica still meets the objectives, requests per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_line_rps: Option<f64>,
}

/// Latencies at the objectives' percentiles.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Latencies {
    /// Time to first token, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Time per output token, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<f64>,
    /// End to end, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2e_ms: Option<f64>,
}

/// What was observed lately.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ObservedTraffic {
    /// Time to first token, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Time per output token, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<f64>,
    /// End to end, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2e_ms: Option<f64>,
    /// Requests per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rps: Option<f64>,
    /// Share of finished requests that met every objective, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attainment: Option<f64>,
}

/// One change of the fleet.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Scaled {
    /// When (RFC 3339).
    pub at: String,
    /// Plan that decided it.
    pub plan: i64,
    /// Fleet before, e.g. `2× fp8 TP2 H100`.
    pub from: String,
    /// Fleet after.
    pub to: String,
    /// Why.
    pub reason: String,
}

/// The cells of `kubectl get modelpools`.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Replicas that serve / replicas wanted, e.g. `2/2`.
    pub ready: String,
    /// Wanted replicas by shape, e.g. `2× fp8 TP2 H100`.
    pub shape: String,
    /// Cost, e.g. `9.20`.
    pub usd_per_hour: String,
    /// Time to first token against its objective, e.g. `412/800 ms`; `~` marks a prediction.
    pub ttft: String,
    /// Time per output token against its objective.
    pub tpot: String,
    /// The reason for the current fleet.
    pub why: String,
}
