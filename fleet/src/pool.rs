//! Model pools: what people ask for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::rollout::RolloutPolicy;
use crate::shape::Variant;
use crate::{DemandPrior, ModelArchitecture, PoolId, Shape, SloClass};

/// Which engine serves the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// llama.cpp's server.
    Llamacpp,
    /// Plimsoll's simulated engine (`plimsoll engine-sim`).
    Simulated,
    /// An OpenAI-compatible endpoint that Plimsoll does not run.
    External,
}

impl EngineKind {
    /// The name used in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Llamacpp => "llamacpp",
            Self::Simulated => "simulated",
            Self::External => "external",
        }
    }

    /// Whether prefill and decode can be on replicas of their own.
    pub fn disaggregates(self) -> bool {
        matches!(self, Self::Vllm | Self::Sglang | Self::Simulated)
    }

    /// Whether it is started with room for LoRA adapters.
    pub fn serves_adapters(self) -> bool {
        matches!(self, Self::Vllm | Self::Sglang | Self::Simulated)
    }

    /// Whether agents can have it load and unload LoRA adapters while it runs.
    pub fn loads_adapters(self) -> bool {
        matches!(self, Self::Vllm | Self::Simulated)
    }

    /// Whether one replica of it can run over several nodes.
    pub fn spans_nodes(self) -> bool {
        matches!(self, Self::Vllm | Self::Sglang | Self::Simulated)
    }
}

/// How to run the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineSpec {
    /// Kind.
    pub kind: EngineKind,
    /// Container image (`None`: the kind's default).
    pub image: Option<String>,
    /// Extra arguments, appended to Plimsoll's own.
    pub args: Vec<String>,
    /// Environment (name → literal value).
    pub env: BTreeMap<String, String>,
    /// CPU and memory requests/limits of the engine container (resource → quantity).
    pub resources: BTreeMap<String, String>,
    /// Time from scheduling to serving tokens, seconds: the prior until starts are measured.
    pub cold_start_seconds: f64,
}

/// Whether prefill and decode run on separate replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Disaggregation {
    /// Where it pays.
    Auto,
    /// Always.
    Always,
    /// Never.
    #[default]
    Never,
}

/// Whether interruptible capacity may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpotPolicy {
    /// May be used.
    Allowed,
    /// Used first.
    Preferred,
    /// Not used.
    #[default]
    Never,
}

/// Whether Plimsoll acts or only advises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Create and delete replicas.
    #[default]
    Enforce,
    /// Plan, price and report; touch nothing.
    Advise,
}

/// Bounds on the number of replicas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// Fewest replicas while there is traffic or no scale to zero.
    pub min_replicas: u32,
    /// Most replicas.
    pub max_replicas: u32,
    /// Idle time after which the pool goes to zero replicas, seconds (`None`: never).
    pub scale_to_zero_after_seconds: Option<f64>,
    /// Fewest zones that replicas must span.
    pub min_zones: u32,
}

/// Allowed parallelism.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Parallelism {
    /// Allowed tensor-parallel degrees (empty: powers of two that divide the heads and fit a link domain).
    pub tensor: Vec<u32>,
    /// Allowed pipeline-parallel degrees (empty: 1 only).
    pub pipeline: Vec<u32>,
    /// Tensor-parallel groups split experts whole (expert parallelism).
    #[serde(default)]
    pub expert: bool,
    /// Disaggregation.
    pub disaggregation: Disaggregation,
}

/// A toleration, as in a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Toleration {
    /// Taint key (`None`: all).
    pub key: Option<String>,
    /// `Exists` or `Equal`.
    pub operator: Option<String>,
    /// Taint value.
    pub value: Option<String>,
    /// Taint effect (`None`: all).
    pub effect: Option<String>,
}

impl Toleration {
    /// Whether it tolerates a taint, by Kubernetes' rules.
    pub fn tolerates(&self, key: &str, value: &str, effect: &str) -> bool {
        self.effect.as_deref().is_none_or(|e| e.is_empty() || e == effect)
            && match self.key.as_deref() {
                None | Some("") => true,
                Some(k) => {
                    k == key
                        && (self.operator.as_deref() == Some("Exists")
                            || self.value.as_deref().unwrap_or("") == value)
                }
            }
    }
}

/// Where replicas may run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// Allowed accelerator classes (empty: all).
    pub accelerators: Vec<String>,
    /// Spot capacity.
    pub spot: SpotPolicy,
    /// Labels a node must carry.
    pub node_selector: BTreeMap<String, String>,
    /// Taints the pods tolerate.
    pub tolerations: Vec<Toleration>,
}

/// A pool of replicas that serve one model under one name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelPool {
    /// Identity.
    pub id: PoolId,
    /// Kubernetes UID, so that a pool re-created under one name is not mistaken for the old one.
    pub uid: String,
    /// Kubernetes generation of the spec this was read from.
    pub generation: i64,
    /// The model name in requests, unique in the cluster.
    pub served_name: String,
    /// Where the weights are: `hf://`, `s3://`, `oci://` or `pvc://` (`None` for simulated engines).
    pub source: Option<String>,
    /// Architecture.
    pub architecture: ModelArchitecture,
    /// Variants that may be used, best quality first.
    pub variants: Vec<Variant>,
    /// SLO classes; the first is the default.
    pub slo_classes: Vec<SloClass>,
    /// Expected demand, until traffic is seen.
    pub demand: Option<DemandPrior>,
    /// Replica bounds.
    pub scaling: Scaling,
    /// Allowed parallelism.
    pub parallelism: Parallelism,
    /// Where replicas may run.
    pub placement: Placement,
    /// Engine.
    pub engine: EngineSpec,
    /// Tier: higher is served first when capacity or budget binds.
    pub priority: i32,
    /// Lowest quality of variants that may be used, 0–1.
    pub min_quality: f64,
    /// Enforce or Advise.
    pub mode: Mode,
    /// Longest request (prompt + answer) to serve, tokens (`None`: the model's own limit).
    pub max_context_tokens: Option<u32>,
    /// How a change of the engine's configuration is rolled out.
    #[serde(default)]
    pub rollout: RolloutPolicy,
    /// Digest of the engine's configuration in force (empty: not known).
    #[serde(default)]
    pub revision: String,
    /// Shapes whose replicas run at another speed than predicted, as the scheduler has found.
    #[serde(default)]
    pub observed: Vec<ObservedSpeed>,
}

/// How the speed of a pool's replicas of one shape compares with predictions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedSpeed {
    /// Shape.
    pub shape: Shape,
    /// Times take this many times as long as predicted.
    pub factor: f64,
}

impl ModelPool {
    /// Relative error to plan with for a shape whose predictions have the error `stated`: by how much times may exceed them.
    pub fn expected_error(&self, shape: &Shape, stated: f64) -> f64 {
        let factor = self.observed.iter().find(|o| &o.shape == shape).map_or(1.0, |o| o.factor);
        if factor > 1.0 { (1.0 + stated) * factor - 1.0 } else { stated }
    }

    /// What there is to say of replicas that run at another speed than predicted, if any do.
    pub fn drift_text(&self) -> Option<String> {
        let one = |o: &ObservedSpeed| {
            let than = if o.factor > 1.0 { "slower" } else { "faster" };
            let times = if o.factor > 1.0 { o.factor } else { 1.0 / o.factor };
            format!("replicas of {} have become {times:.2}× {than} than predicted", o.shape)
        };
        (!self.observed.is_empty()).then(|| self.observed.iter().map(one).collect::<Vec<_>>().join("; "))
    }

    /// The architecture as engines serve it: no request is longer than the pool allows.
    pub fn served_architecture(&self) -> ModelArchitecture {
        let mut architecture = self.architecture.clone();
        if let Some(limit) = self.max_context_tokens {
            architecture.max_context_tokens = architecture.max_context_tokens.min(limit);
        }
        architecture
    }

    /// Variants at or above the quality floor.
    pub fn eligible_variants(&self) -> impl Iterator<Item = &Variant> {
        self.variants.iter().filter(|v| v.quality >= self.min_quality)
    }

    /// The variant of this name.
    pub fn variant(&self, name: &str) -> Option<&Variant> {
        self.variants.iter().find(|v| v.name == name)
    }

    /// The SLO class of this name, or the default one (`None` only if the pool has no class at all).
    pub fn slo_class(&self, name: &str) -> Option<&SloClass> {
        self.slo_classes.iter().find(|c| c.name == name).or_else(|| self.slo_classes.first())
    }
}
