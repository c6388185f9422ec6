//! Does it fit: bytes of weights and KV cache on each GPU, and a clear reason where they do not fit.

use plimsoll_fleet::{AcceleratorClass, Attention, Dtype, ModelArchitecture, Role, Shape, shape::Variant};
use serde::{Deserialize, Serialize};

use crate::EngineConfig;

/// How a replica uses the memory of its fullest GPU.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MemoryFit {
    /// Memory the engine may use on one GPU, bytes.
    pub usable_bytes_per_gpu: f64,
    /// Weights of the whole model, bytes.
    pub weights_bytes: f64,
    /// Weights on the fullest GPU, bytes.
    pub weights_bytes_per_gpu: f64,
    /// Set aside on each GPU for activations and buffers, bytes.
    pub reserve_bytes_per_gpu: f64,
    /// KV cache that one token takes on one GPU, bytes.
    pub kv_bytes_per_token_per_gpu: f64,
    /// KV-cache capacity of the replica, blocks.
    pub kv_blocks: u64,
    /// KV-cache capacity of the replica, tokens: a multiple of the block size.
    pub kv_tokens: f64,
    /// How many requests of the longest allowed context fit at once.
    pub max_concurrency: f64,
}

/// Why a model cannot run in a shape, and what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DoesNotFit {
    /// The weights leave no room.
    #[error(
        "{subject} needs {:.0} GB of weights ({:.1} GB on each GPU), {gpus}× {accelerator} hold {:.0} GB \
         usable ({:.1} GB each); {remedy}",
        needed_bytes / 1e9, needed_bytes_per_gpu / 1e9,
        available_bytes_per_gpu * f64::from(*gpus) / 1e9, available_bytes_per_gpu / 1e9
    )]
    Weights {
        /// Model and shape, e.g. `llama-3.1-70b as fp8 TP2 H100`.
        subject: String,
        /// Accelerator class.
        accelerator: String,
        /// GPUs of the shape.
        gpus: u32,
        /// Weights of the whole model, bytes.
        needed_bytes: f64,
        /// Weights on the fullest GPU, bytes.
        needed_bytes_per_gpu: f64,
        /// What one GPU has for weights and KV cache, bytes.
        available_bytes_per_gpu: f64,
        /// What to change.
        remedy: String,
    },
    /// The weights fit, but a request of the longest context does not.
    #[error(
        "{subject} has room for {kv_tokens:.0} tokens of KV cache, fewer than one request of \
         {max_context_tokens} tokens needs; {remedy}"
    )]
    KvCache {
        /// Model and shape, e.g. `llama-3.1-70b as fp8 TP2 H100`.
        subject: String,
        /// Tokens of KV cache that would fit.
        kv_tokens: f64,
        /// Longest request, tokens.
        max_context_tokens: u32,
        /// What to change.
        remedy: String,
    },
    /// The heads cannot be split evenly.
    #[error(
        "{model} has {heads} attention heads, which do not split over tensor parallel {tensor_parallel}; use {allowed}"
    )]
    Heads {
        /// Model name.
        model: String,
        /// Query heads.
        heads: u32,
        /// Tensor-parallel degree asked for.
        tensor_parallel: u32,
        /// Degrees that would work.
        allowed: String,
    },
    /// More pipeline stages than layers.
    #[error(
        "{model} has {layers} layers, fewer than pipeline parallel {pipeline_parallel} needs; use at most {layers}"
    )]
    Layers {
        /// Model name.
        model: String,
        /// Layers.
        layers: u32,
        /// Pipeline-parallel degree asked for.
        pipeline_parallel: u32,
    },
    /// The tensor-parallel group is larger than the fast-link domain.
    #[error(
        "tensor parallel {tensor_parallel} needs as many {accelerator} in one link domain, which has {link_domain_size}; \
         use tensor parallel of at most {link_domain_size} and pipeline parallel for the rest"
    )]
    LinkDomain {
        /// Accelerator class.
        accelerator: String,
        /// Accelerators in one fast-link domain.
        link_domain_size: u32,
        /// Tensor-parallel degree asked for.
        tensor_parallel: u32,
    },
    /// A replica of one phase only.
    #[error("replicas of role {role} are not modelled; use role mixed")]
    Role {
        /// The role asked for.
        role: Role,
    },
    /// A figure that makes no sense.
    #[error("{object}: {field} is {value}; {remedy}")]
    Invalid {
        /// The object that holds the field, e.g. `accelerator class h100`.
        object: String,
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        remedy: &'static str,
    },
}

/// Bytes of one embedding element. Quantised checkpoints keep the embedding tables in 16 bits.
fn embedding_bytes(weights: Dtype) -> f64 {
    weights.bytes_per_element().max(2.0)
}

/// Bytes of weights by what reads them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights {
    /// Parameters outside embeddings and routed experts, bytes.
    pub(crate) dense: f64,
    /// Routed experts, bytes.
    pub(crate) experts: f64,
    /// One embedding table, bytes.
    pub(crate) table: f64,
    /// Tables stored (1 if tied).
    pub(crate) tables: f64,
}

impl Weights {
    pub(crate) fn new(arch: &ModelArchitecture, variant: &Variant) -> Self {
        let bytes = variant.weights.bytes_per_element();
        let body = (arch.total_parameters - arch.embedding_parameters()).max(0.0);
        let experts = arch.moe.as_ref().map_or(0.0, |m| m.expert_parameters.clamp(0.0, body));
        Self {
            dense: (body - experts) * bytes,
            experts: experts * bytes,
            table: f64::from(arch.vocab) * f64::from(arch.hidden) * embedding_bytes(variant.weights),
            tables: if arch.tied_embeddings { 1.0 } else { 2.0 },
        }
    }

    fn total(&self) -> f64 {
        self.dense + self.experts + self.table * self.tables
    }

    /// On the fullest GPU. The first stage holds the input table, the last the output table.
    fn per_gpu(&self, arch: &ModelArchitecture, shape: &Shape) -> f64 {
        let stage_share = f64::from(stage_layers(arch, shape)) / f64::from(arch.layers);
        let tables = if shape.pipeline_parallel == 1 { self.tables } else { 1.0 };
        ((self.dense + self.experts) * stage_share + self.table * tables) / f64::from(shape.tensor_parallel)
    }
}

/// Layers of the longest pipeline stage.
fn stage_layers(arch: &ModelArchitecture, shape: &Shape) -> u32 {
    arch.layers.div_ceil(shape.pipeline_parallel)
}

/// Elements of keys and values that one token adds to one layer on one GPU. KV heads are copied where there are fewer
/// than GPUs; a latent is always copied.
pub(crate) fn kv_elements_per_layer(arch: &ModelArchitecture, tensor_parallel: u32) -> f64 {
    match arch.attention {
        Attention::Grouped { kv_heads } => {
            2.0 * f64::from(kv_heads.div_ceil(tensor_parallel)) * f64::from(arch.head_dim)
        }
        Attention::Latent { kv_rank, rope_dim } => f64::from(kv_rank) + f64::from(rope_dim),
    }
}

fn positive(object: &str, fields: &[(&'static str, f64)]) -> Result<(), DoesNotFit> {
    match fields.iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
        None => Ok(()),
        Some((field, value)) => Err(DoesNotFit::Invalid {
            object: object.to_owned(),
            field,
            value: *value,
            remedy: "use a finite number above 0",
        }),
    }
}

fn validate(
    arch: &ModelArchitecture,
    acc: &AcceleratorClass,
    shape: &Shape,
    config: &EngineConfig,
) -> Result<(), DoesNotFit> {
    let c = &acc.calibration;
    positive(
        &format!("model {}", arch.name),
        &[
            ("layers", f64::from(arch.layers)),
            ("hidden", f64::from(arch.hidden)),
            ("heads", f64::from(arch.heads)),
            ("head_dim", f64::from(arch.head_dim)),
            ("kv width", kv_elements_per_layer(arch, 1)),
            ("vocab", f64::from(arch.vocab)),
            ("total_parameters", arch.total_parameters),
            ("active_parameters", arch.active_parameters),
            ("max_context_tokens", f64::from(arch.max_context_tokens)),
        ],
    )?;
    if let Some(moe) = &arch.moe {
        positive(
            &format!("model {}", arch.name),
            &[
                ("experts", f64::from(moe.experts)),
                ("experts_per_token", f64::from(moe.experts_per_token)),
                ("expert_parameters", moe.expert_parameters),
            ],
        )?;
    }
    positive(
        &format!("accelerator class {}", acc.name),
        &[
            (
                "flops_per_second (the least)",
                acc.flops_per_second.values().copied().fold(f64::INFINITY, f64::min),
            ),
            ("memory_bytes", acc.memory_bytes),
            ("memory_bytes_per_second", acc.memory_bytes_per_second),
            ("link_bytes_per_second", acc.link_bytes_per_second),
            ("nic_bytes_per_second", acc.nic_bytes_per_second),
            ("calibration.eta_compute", c.eta_compute),
            ("calibration.eta_attention", c.eta_attention),
            ("calibration.eta_weights", c.eta_weights),
            ("calibration.eta_kv", c.eta_kv),
            ("calibration.eta_link", c.eta_link),
        ],
    )?;
    let overheads = [
        ("calibration.layer_overhead_us", c.layer_overhead_us),
        ("calibration.step_overhead_us", c.step_overhead_us),
        ("calibration.request_overhead_us", c.request_overhead_us),
        ("calibration.allreduce_alpha_us", c.allreduce_alpha_us),
        ("calibration.api_overhead_ms", c.api_overhead_ms),
    ];
    if let Some((field, value)) = overheads.iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
        return Err(DoesNotFit::Invalid {
            object: format!("accelerator class {}", acc.name),
            field,
            value: *value,
            remedy: "use a finite number of at least 0",
        });
    }
    positive(
        "engine settings",
        &[
            ("memory_utilisation", config.memory_utilisation),
            ("max_running", f64::from(config.max_running)),
            ("max_batched_tokens", f64::from(config.max_batched_tokens)),
            ("block_tokens", f64::from(config.block_tokens)),
        ],
    )?;
    if config.memory_utilisation > 1.0 || !(config.reserve_bytes.is_finite() && config.reserve_bytes >= 0.0) {
        let (field, value, remedy) = if config.memory_utilisation > 1.0 {
            ("memory_utilisation", config.memory_utilisation, "use a share above 0 and at most 1")
        } else {
            ("reserve_bytes", config.reserve_bytes, "use a finite number of at least 0")
        };
        return Err(DoesNotFit::Invalid { object: "engine settings".to_owned(), field, value, remedy });
    }
    if config.max_batched_tokens < config.max_running {
        return Err(DoesNotFit::Invalid {
            object: "engine settings".to_owned(),
            field: "max_batched_tokens",
            value: f64::from(config.max_batched_tokens),
            remedy: "use at least max_running, or running requests could not all advance in one step",
        });
    }
    positive(
        &format!("shape {shape}"),
        &[
            ("tensor_parallel", f64::from(shape.tensor_parallel)),
            ("pipeline_parallel", f64::from(shape.pipeline_parallel)),
        ],
    )
}

fn check_parallelism(
    arch: &ModelArchitecture,
    acc: &AcceleratorClass,
    shape: &Shape,
) -> Result<(), DoesNotFit> {
    let tp = shape.tensor_parallel;
    if shape.role != Role::Mixed {
        return Err(DoesNotFit::Role { role: shape.role });
    }
    if !arch.supports_tensor_parallel(tp) {
        let allowed: Vec<String> = (1..=acc.link_domain_size.max(1))
            .filter(|t| arch.supports_tensor_parallel(*t))
            .map(|t| t.to_string())
            .collect();
        return Err(DoesNotFit::Heads {
            model: arch.name.clone(),
            heads: arch.heads,
            tensor_parallel: tp,
            allowed: allowed.join(", "),
        });
    }
    if shape.pipeline_parallel > arch.layers {
        return Err(DoesNotFit::Layers {
            model: arch.name.clone(),
            layers: arch.layers,
            pipeline_parallel: shape.pipeline_parallel,
        });
    }
    if tp > acc.link_domain_size.max(1) {
        return Err(DoesNotFit::LinkDomain {
            accelerator: acc.name.clone(),
            link_domain_size: acc.link_domain_size.max(1),
            tensor_parallel: tp,
        });
    }
    Ok(())
}

/// What would make the weights fit, the least change first.
fn weights_remedy(
    arch: &ModelArchitecture,
    variant: &Variant,
    acc: &AcceleratorClass,
    shape: &Shape,
    available: f64,
) -> String {
    let weights = Weights::new(arch, variant);
    let fits = |tp: u32, pp: u32| {
        let other = Shape { tensor_parallel: tp, pipeline_parallel: pp, ..shape.clone() };
        weights.per_gpu(arch, &other) < available
    };
    let mut options = Vec::new();
    let domain = acc.link_domain_size.max(1);
    if let Some(tp) = (shape.tensor_parallel + 1..=domain)
        .filter(|t| arch.supports_tensor_parallel(*t))
        .find(|t| fits(*t, shape.pipeline_parallel))
    {
        options.push(format!("allow tensor: [{tp}]"));
    } else if let Some(pp) =
        (shape.pipeline_parallel + 1..=arch.layers.min(64)).find(|p| fits(domain_tp(arch, domain), *p))
    {
        options.push(format!("allow pipeline: [{pp}]"));
    }
    let narrower = [Dtype::Fp8, Dtype::Fp4]
        .into_iter()
        .filter(|d| d.bytes_per_element() < variant.weights.bytes_per_element())
        .find(|d| {
            let smaller = Variant { weights: *d, ..variant.clone() };
            Weights::new(arch, &smaller).per_gpu(arch, shape) < available
        });
    if let Some(dtype) = narrower {
        options.push(format!("a {dtype} variant"));
    }
    if options.is_empty() {
        options.push("use an accelerator class with more memory".to_owned());
    }
    options.join(" or ")
}

fn domain_tp(arch: &ModelArchitecture, domain: u32) -> u32 {
    arch.max_tensor_parallel(domain)
}

/// Fits a model into a shape.
///
/// Weights are split evenly over tensor-parallel ranks, and by whole layers over pipeline stages; KV tokens are
/// `(utilisation × memory − weights − reserve) / bytes per token`, all of the fullest GPU, rounded down to blocks.
pub(crate) fn fit(
    arch: &ModelArchitecture,
    variant: &Variant,
    acc: &AcceleratorClass,
    shape: &Shape,
    config: &EngineConfig,
) -> Result<MemoryFit, DoesNotFit> {
    validate(arch, acc, shape, config)?;
    check_parallelism(arch, acc, shape)?;
    let weights = Weights::new(arch, variant);
    let usable = config.memory_utilisation * acc.memory_bytes;
    let per_gpu = weights.per_gpu(arch, shape);
    let available = usable - config.reserve_bytes;
    let free = available - per_gpu;
    if free <= 0.0 {
        return Err(DoesNotFit::Weights {
            subject: format!("{} as {shape}", arch.name),
            accelerator: acc.name.clone(),
            gpus: shape.gpus(),
            needed_bytes: weights.total(),
            needed_bytes_per_gpu: per_gpu,
            available_bytes_per_gpu: available.max(0.0),
            remedy: weights_remedy(arch, variant, acc, shape, available),
        });
    }
    let kv_bytes = kv_elements_per_layer(arch, shape.tensor_parallel)
        * f64::from(stage_layers(arch, shape))
        * variant.kv.bytes_per_element();
    let block = f64::from(config.block_tokens);
    let blocks = (free / kv_bytes / block).floor();
    let kv_tokens = blocks * block;
    let max_context = f64::from(arch.max_context_tokens);
    if kv_tokens < max_context {
        let fp8 = Dtype::Fp8.bytes_per_element();
        let fp8_helps = variant.kv.bytes_per_element() > fp8
            && kv_tokens * variant.kv.bytes_per_element() / fp8 >= max_context;
        let remedy = format!(
            "set maxContextTokens to at most {kv_tokens:.0}{}, or use more GPUs",
            if fp8_helps { ", use an fp8 KV cache" } else { "" }
        );
        return Err(DoesNotFit::KvCache {
            subject: format!("{} as {shape}", arch.name),
            kv_tokens,
            max_context_tokens: arch.max_context_tokens,
            remedy,
        });
    }
    Ok(MemoryFit {
        usable_bytes_per_gpu: usable,
        weights_bytes: weights.total(),
        weights_bytes_per_gpu: per_gpu,
        reserve_bytes_per_gpu: config.reserve_bytes,
        kv_bytes_per_token_per_gpu: kv_bytes,
        kv_blocks: blocks as u64,
        kv_tokens,
        max_concurrency: kv_tokens / max_context,
    })
}
