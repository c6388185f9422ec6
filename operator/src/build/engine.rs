//! How each engine is started. Pure.

use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector};
use plimsoll_crds::presets;
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{AcceleratorClass, AdapterRoom, Dtype, EngineKind, ModelPool, Role, Shape, Vendor};

use super::group::Seat;
use super::pod::literal;
use super::storage::WEIGHTS;
use crate::config::EngineImages;
use crate::names::{BOOTSTRAP_PORT, ENGINE_PORT, HAND_OVER_PORT, RENDEZVOUS_PORT};

/// Where weights come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weights {
    /// Hugging Face: the engine downloads `repository`.
    HuggingFace {
        /// `org/repo`.
        repository: String,
    },
    /// A URL that the engine streams from, e.g. `s3://…`.
    Remote {
        /// The URL.
        url: String,
    },
    /// A PersistentVolumeClaim, mounted read-only.
    Claim {
        /// Name of the claim.
        claim: String,
        /// Path within it.
        path: String,
    },
    /// A container image that holds the weights, mounted as a volume.
    Image {
        /// Image reference.
        reference: String,
    },
    /// None needed.
    None,
}

impl Weights {
    /// What the engine is told to load.
    fn argument(&self) -> Option<String> {
        match self {
            Self::HuggingFace { repository } => Some(repository.clone()),
            Self::Remote { url } => Some(url.clone()),
            Self::Claim { path, .. } if path.is_empty() => Some(WEIGHTS.to_owned()),
            Self::Claim { path, .. } => Some(format!("{WEIGHTS}/{path}")),
            Self::Image { .. } => Some(WEIGHTS.to_owned()),
            Self::None => None,
        }
    }
}

/// Reads a source such as `hf://org/repo`.
pub fn weights(source: Option<&str>) -> Weights {
    let Some(source) = source else { return Weights::None };
    match source.split_once("://") {
        Some(("hf", repository)) => Weights::HuggingFace { repository: repository.to_owned() },
        Some(("pvc", rest)) => {
            let (claim, path) = rest.split_once('/').unwrap_or((rest, ""));
            Weights::Claim { claim: claim.to_owned(), path: path.trim_matches('/').to_owned() }
        }
        Some(("oci", reference)) => Weights::Image { reference: reference.to_owned() },
        _ => Weights::Remote { url: source.to_owned() },
    }
}

/// How a container starts an engine.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Launch {
    /// Default image.
    pub image: String,
    /// Command (empty: the image's own).
    pub command: Vec<String>,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<EnvVar>,
}

/// The launch of one replica.
pub fn launch(
    images: &EngineImages,
    pool: &ModelPool,
    shape: &Shape,
    variant: &Variant,
    class: &AcceleratorClass,
    weights: &Weights,
    room: AdapterRoom,
) -> Launch {
    let mut launch = match pool.engine.kind {
        EngineKind::Vllm => vllm(images, pool, shape, variant, weights, room),
        EngineKind::Sglang => sglang(images, pool, shape, variant, weights, room),
        EngineKind::Llamacpp => llamacpp(images, pool, shape, variant, class, weights),
        EngineKind::Simulated => simulated(images, pool, shape, variant),
        EngineKind::External => Launch::default(),
    };
    hand_over(&mut launch, pool.engine.kind, shape.role);
    launch
}

/// Makes an engine one that only prefills or decodes.
fn hand_over(launch: &mut Launch, kind: EngineKind, role: Role) {
    if role == Role::Mixed {
        return;
    }
    match kind {
        // An engine does either part as it is asked; what it needs is the connector, and an address that others reach.
        EngineKind::Vllm => {
            let connector = serde_json::json!({"kv_connector": "NixlConnector", "kv_role": "kv_both"});
            flag(&mut launch.args, "--kv-transfer-config", connector);
            launch.env.push(pod_field("VLLM_NIXL_SIDE_CHANNEL_HOST", "status.podIP"));
            launch.env.push(literal("VLLM_NIXL_SIDE_CHANNEL_PORT", &HAND_OVER_PORT.to_string()));
        }
        EngineKind::Sglang => {
            flag(&mut launch.args, "--disaggregation-mode", role);
            flag(&mut launch.args, "--disaggregation-transfer-backend", "nixl");
            if role == Role::Prefill {
                flag(&mut launch.args, "--disaggregation-bootstrap-port", BOOTSTRAP_PORT);
            }
        }
        EngineKind::Simulated => flag(&mut launch.args, "--role", role),
        EngineKind::Llamacpp | EngineKind::External => {}
    }
}

/// Makes an engine one of several pods that run one replica together.
pub fn join(launch: &mut Launch, kind: EngineKind, seat: &Seat) {
    if seat.size < 2 {
        return;
    }
    let args = &mut launch.args;
    match kind {
        // Multi-node without Ray, from vLLM 0.12 on: ranks above 0 run no API server.
        EngineKind::Vllm => {
            flag(args, "--distributed-executor-backend", "mp");
            flag(args, "--nnodes", seat.size);
            flag(args, "--node-rank", &seat.rank);
            flag(args, "--master-addr", &seat.leader);
            flag(args, "--master-port", RENDEZVOUS_PORT);
            if !seat.leads {
                args.push("--headless".to_owned());
            }
            // Else it guesses which of its addresses the others reach.
            launch.env.push(pod_field("VLLM_HOST_IP", "status.podIP"));
        }
        EngineKind::Sglang => {
            flag(args, "--nnodes", seat.size);
            flag(args, "--node-rank", &seat.rank);
            flag(args, "--dist-init-addr", format!("{}:{RENDEZVOUS_PORT}", seat.leader));
        }
        EngineKind::Simulated => {
            flag(args, "--nnodes", seat.size);
            flag(args, "--node-rank", &seat.rank);
            flag(args, "--master-addr", &seat.leader);
            flag(args, "--master-port", RENDEZVOUS_PORT);
        }
        EngineKind::Llamacpp | EngineKind::External => {}
    }
}

fn words<'a>(parts: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    parts.into_iter().map(str::to_owned).collect()
}

/// A variable with a field of the pod as its value.
pub(super) fn pod_field(name: &str, path: &str) -> EnvVar {
    let field = ObjectFieldSelector { field_path: path.to_owned(), ..ObjectFieldSelector::default() };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}

/// Adds `--flag value`.
fn flag(args: &mut Vec<String>, name: &str, value: impl ToString) {
    args.push(name.to_owned());
    args.push(value.to_string());
}

/// Whether the engine has to quantise the weights to fp8 itself while loading.
fn quantised_at_load(pool: &ModelPool, variant: &Variant) -> bool {
    let published = presets::checkpoint(&pool.architecture.name)
        .filter(|c| pool.source.as_deref() == Some(c.source))
        .map_or(Dtype::Bf16, |c| c.weights);
    variant.weights == Dtype::Fp8 && variant.source.is_none() && published != Dtype::Fp8
}

/// The compute type to ask for, where the weights' own would not do.
fn compute_type(variant: &Variant) -> &'static str {
    match variant.weights {
        Dtype::Fp32 => "float32",
        Dtype::Bf16 => "bfloat16",
        Dtype::Fp16 => "float16",
        Dtype::Fp8 | Dtype::Int8 | Dtype::Fp4 | Dtype::Int4 => "auto",
    }
}

fn vllm(
    images: &EngineImages,
    pool: &ModelPool,
    shape: &Shape,
    variant: &Variant,
    weights: &Weights,
    room: AdapterRoom,
) -> Launch {
    let mut args = Vec::new();
    args.extend(weights.argument());
    common_flags(&mut args, pool, shape, variant);
    flag(&mut args, "--kv-cache-dtype", if variant.kv == Dtype::Fp8 { "fp8" } else { "auto" });
    if let Some(tokens) = pool.max_context_tokens {
        flag(&mut args, "--max-model-len", tokens);
    }
    args.push("--enable-prefix-caching".to_owned());
    // Else usage does not say what of a prompt was cached, and nobody learns.
    args.push("--enable-prompt-tokens-details".to_owned());
    if matches!(weights, Weights::Remote { .. }) {
        flag(&mut args, "--load-format", "runai_streamer");
    }
    let mut env = Vec::new();
    if room.slots > 0 {
        args.push("--enable-lora".to_owned());
        flag(&mut args, "--max-lora-rank", room.max_rank);
        flag(&mut args, "--max-loras", room.slots);
        env.push(literal("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True"));
    }
    Launch { image: images.vllm.clone(), command: words(["vllm", "serve"]), args, env }
}

/// The flags that vLLM and SGLang share.
fn common_flags(args: &mut Vec<String>, pool: &ModelPool, shape: &Shape, variant: &Variant) {
    flag(args, "--served-model-name", &pool.served_name);
    flag(args, "--host", "0.0.0.0");
    flag(args, "--port", ENGINE_PORT);
    let sglang = pool.engine.kind == EngineKind::Sglang;
    // SGLang's tensor degree is that of experts; attention's is a part of it.
    let tensor = if sglang { shape.stage_gpus() } else { shape.tensor_parallel };
    flag(args, "--tensor-parallel-size", tensor);
    if shape.pipeline_parallel > 1 {
        flag(args, "--pipeline-parallel-size", shape.pipeline_parallel);
    }
    if shape.data_parallel > 1 {
        flag(args, "--data-parallel-size", shape.data_parallel);
        if sglang {
            args.push("--enable-dp-attention".to_owned());
        }
    }
    if shape.expert_parallel > 1 {
        match sglang {
            true => flag(args, "--ep-size", shape.expert_parallel),
            false => args.push("--enable-expert-parallel".to_owned()),
        }
    }
    flag(args, "--dtype", compute_type(variant));
    if quantised_at_load(pool, variant) {
        flag(args, "--quantization", "fp8");
    }
}

fn sglang(
    images: &EngineImages,
    pool: &ModelPool,
    shape: &Shape,
    variant: &Variant,
    weights: &Weights,
    room: AdapterRoom,
) -> Launch {
    let mut args = Vec::new();
    if let Some(path) = weights.argument() {
        flag(&mut args, "--model-path", path);
    }
    common_flags(&mut args, pool, shape, variant);
    flag(&mut args, "--kv-cache-dtype", if variant.kv == Dtype::Fp8 { "fp8_e4m3" } else { "auto" });
    if let Some(tokens) = pool.max_context_tokens {
        flag(&mut args, "--context-length", tokens);
    }
    args.push("--enable-metrics".to_owned());
    // Else usage does not say what of a prompt was cached, and nobody learns.
    args.push("--enable-cache-report".to_owned());
    if room.slots > 0 {
        args.push("--enable-lora".to_owned());
        flag(&mut args, "--max-lora-rank", room.max_rank);
        flag(&mut args, "--max-loras-per-batch", room.slots);
    }
    Launch {
        image: images.sglang.clone(),
        command: words(["python3", "-m", "sglang.launch_server"]),
        args,
        env: Vec::new(),
    }
}

fn llamacpp(
    images: &EngineImages,
    pool: &ModelPool,
    shape: &Shape,
    variant: &Variant,
    class: &AcceleratorClass,
    weights: &Weights,
) -> Launch {
    let cpu = class.vendor == Vendor::Cpu;
    let mut args = Vec::new();
    match weights {
        Weights::HuggingFace { repository } => flag(&mut args, "--hf-repo", repository),
        Weights::Remote { url } => flag(&mut args, "--model-url", url),
        Weights::Claim { .. } | Weights::Image { .. } | Weights::None => {
            if let Some(path) = weights.argument() {
                flag(&mut args, "--model", path);
            }
        }
    }
    flag(&mut args, "--alias", &pool.served_name);
    flag(&mut args, "--host", "0.0.0.0");
    flag(&mut args, "--port", ENGINE_PORT);
    args.push("--metrics".to_owned());
    if !cpu {
        flag(&mut args, "--n-gpu-layers", 999);
        if shape.tensor_parallel > 1 {
            flag(&mut args, "--split-mode", "row");
        }
    }
    let kv = match variant.kv {
        Dtype::Fp8 | Dtype::Int8 => Some("q8_0"),
        Dtype::Fp4 | Dtype::Int4 => Some("q4_0"),
        Dtype::Fp32 | Dtype::Bf16 | Dtype::Fp16 => None,
    };
    if let Some(kv) = kv {
        flag(&mut args, "--cache-type-k", kv);
        flag(&mut args, "--cache-type-v", kv);
    }
    if let Some(tokens) = pool.max_context_tokens {
        flag(&mut args, "--ctx-size", tokens);
    }
    let image = if cpu { &images.llamacpp_cpu } else { &images.llamacpp };
    Launch { image: image.clone(), command: Vec::new(), args, env: Vec::new() }
}

/// Plimsoll's own simulated engine: the timing of the shape, made-up tokens.
fn simulated(images: &EngineImages, pool: &ModelPool, shape: &Shape, variant: &Variant) -> Launch {
    let mut args = Vec::new();
    flag(&mut args, "--listen", format!("0.0.0.0:{ENGINE_PORT}"));
    flag(&mut args, "--served-model-name", &pool.served_name);
    flag(&mut args, "--model", &pool.architecture.name);
    flag(&mut args, "--accelerator", &shape.accelerator);
    flag(&mut args, "--tensor-parallel", shape.tensor_parallel);
    if shape.pipeline_parallel > 1 {
        flag(&mut args, "--pipeline-parallel", shape.pipeline_parallel);
    }
    if shape.data_parallel > 1 {
        flag(&mut args, "--data-parallel", shape.data_parallel);
    }
    if shape.expert_parallel > 1 {
        flag(&mut args, "--expert-parallel", shape.expert_parallel);
    }
    flag(&mut args, "--dtype", variant.weights);
    flag(&mut args, "--kv-dtype", variant.kv);
    if let Some(tokens) = pool.max_context_tokens {
        flag(&mut args, "--max-model-len", tokens);
    }
    Launch {
        image: images.plimsoll.clone(),
        command: words(["plimsoll", "engine-sim"]),
        args,
        env: Vec::new(),
    }
}
