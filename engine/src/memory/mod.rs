//! Does it fit: bytes of weights and KV cache on each GPU, and a clear reason where they do not fit.

mod check;
mod error;

use plimsoll_fleet::{AcceleratorClass, Dtype, ModelArchitecture, Shape, shape::Variant};
use serde::{Deserialize, Serialize};

use self::check::{check_parallelism, validate};
pub use self::error::DoesNotFit;
use crate::kv::{KvLayout, stage_layers};
use crate::links::LinkTier;
use crate::{EngineConfig, experts, lora};

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
    /// Slots for LoRA adapters on each GPU, bytes.
    #[serde(default)]
    pub lora_bytes_per_gpu: f64,
    /// Weights of a draft model on each GPU, bytes.
    #[serde(default)]
    pub draft_bytes_per_gpu: f64,
    /// KV cache that one token takes on one GPU while every attention layer keeps it, bytes.
    pub kv_bytes_per_token_per_gpu: f64,
    /// State that one request keeps on one GPU in recurrent layers, bytes.
    #[serde(default)]
    pub state_bytes_per_request_per_gpu: f64,
    /// KV-cache capacity of the replica, blocks that every attention layer keeps.
    pub kv_blocks: u64,
    /// KV-cache capacity of the replica, tokens that every attention layer keeps: a multiple of the block size. Layers
    /// with a window keep fewer of a long request, see [`crate::ReplicaModel::footprint_tokens`].
    pub kv_tokens: f64,
    /// How many requests of the longest allowed context fit at once.
    pub max_concurrency: f64,
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

    /// On the fullest GPU. The first stage holds the input table, the last the output table. Attention ranks copy all but
    /// routed experts.
    fn per_gpu(&self, arch: &ModelArchitecture, shape: &Shape) -> f64 {
        let stage_share = f64::from(stage_layers(arch, shape)) / f64::from(arch.layers);
        let tables = if shape.pipeline_parallel == 1 { self.tables } else { 1.0 };
        let tp = f64::from(shape.tensor_parallel);
        let fullest =
            arch.moe.as_ref().map_or(1.0, |m| experts::fullest_rank(m.experts, shape.expert_parallel));
        let experts = self.experts * fullest / (tp * f64::from(shape.data_parallel));
        self.dense * stage_share / tp + experts * stage_share + self.table * tables / tp
    }
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

/// Fits a model into a shape whose tensor-parallel groups reach no further than `widest`.
///
/// Weights are split evenly over tensor-parallel ranks, and by whole layers over pipeline stages; KV tokens are
/// `(utilisation × memory − weights − LoRA slots − draft − reserve) / bytes per token`, all of the fullest GPU, rounded down
/// to blocks, times the attention ranks.
pub(crate) fn fit(
    arch: &ModelArchitecture,
    variant: &Variant,
    acc: &AcceleratorClass,
    shape: &Shape,
    config: &EngineConfig,
    widest: LinkTier,
) -> Result<(MemoryFit, KvLayout), DoesNotFit> {
    validate(arch, acc, shape, config)?;
    check_parallelism(arch, acc, shape, widest)?;
    let weights = Weights::new(arch, variant);
    let usable = config.memory_utilisation * acc.memory_bytes;
    let per_gpu = weights.per_gpu(arch, shape);
    let lora_bytes = config.lora.map_or(0.0, |l| {
        f64::from(l.slots) * lora::adapter_bytes_per_gpu(arch, f64::from(l.max_rank), l.targets, shape)
    });
    let draft_bytes = config.speculation.map_or(0.0, |s| s.weight_bytes_per_gpu(shape));
    let available = usable - config.reserve_bytes - lora_bytes - draft_bytes;
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
    let draft_kv = config.speculation.map_or(0.0, |s| s.kv_bytes_per_gpu(shape));
    let kv = KvLayout::new(arch, variant, shape, config.block_tokens, draft_kv);
    let block = f64::from(config.block_tokens);
    let rank_blocks = (free / kv.token_bytes / block).floor();
    let rank_tokens = rank_blocks * block;
    let max_context = f64::from(arch.max_context_tokens);
    if rank_tokens < kv.footprint(max_context) {
        let longest = kv.longest(rank_tokens).floor();
        let fp8 = Dtype::Fp8.bytes_per_element();
        let fp8_helps = variant.kv.bytes_per_element() > fp8
            && rank_tokens * variant.kv.bytes_per_element() / fp8 >= kv.footprint(max_context);
        let remedy = format!(
            "set maxContextTokens to at most {longest:.0}{}, or use more GPUs",
            if fp8_helps { ", use an fp8 KV cache" } else { "" }
        );
        return Err(DoesNotFit::KvCache {
            subject: format!("{} as {shape}", arch.name),
            kv_tokens: longest,
            max_context_tokens: arch.max_context_tokens,
            remedy,
        });
    }
    let ranks = f64::from(shape.data_parallel);
    let memory = MemoryFit {
        usable_bytes_per_gpu: usable,
        weights_bytes: weights.total(),
        weights_bytes_per_gpu: per_gpu,
        reserve_bytes_per_gpu: config.reserve_bytes,
        lora_bytes_per_gpu: lora_bytes,
        draft_bytes_per_gpu: draft_bytes,
        kv_bytes_per_token_per_gpu: kv.token_bytes,
        state_bytes_per_request_per_gpu: kv.state_bytes,
        kv_blocks: (rank_blocks * ranks) as u64,
        kv_tokens: rank_tokens * ranks,
        max_concurrency: rank_tokens / kv.footprint(max_context) * ranks,
    };
    Ok((memory, kv))
}
