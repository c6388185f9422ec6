//! LoRA adapters: memory of their slots, and what they add to a step.
//!
//! vLLM keeps `slots` adapters of up to `max_rank` on every GPU, room for each reserved at the start. Of a projection from
//! `i` to `o` features, matrix A has `r·i` elements and B `r·o`; over tensor-parallel ranks the side that the projection
//! itself splits is split, the other copied (vLLM without `--fully-sharded-loras`).

use plimsoll_fleet::{Attention, ModelArchitecture, Shape};
use serde::{Deserialize, Serialize};

/// Cost of the batched LoRA kernels in one layer, microseconds: Punica (Chen et al., 2023) reports 2 ms a token for a model
/// of 32 layers with adapters of rank 16 on all projections.
const LAYER_US: f64 = 60.0;
/// Adapters are kept in 16 bits.
const ELEMENT_BYTES: f64 = 2.0;

/// Which projections adapters change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraTargets {
    /// Query, key, value and output projections.
    Attention,
    /// These and the projections of the (dense or shared) feed-forward network.
    #[default]
    All,
}

/// LoRA settings, and what to expect of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lora {
    /// Most adapters in one step (`--max-loras`).
    pub slots: u32,
    /// Highest rank (`--max-lora-rank`); slots are of this size.
    pub max_rank: u32,
    /// Which projections adapters change.
    pub targets: LoraTargets,
    /// Adapters that share the replica's traffic evenly.
    pub adapters: u32,
    /// Mean rank of these adapters.
    pub mean_rank: f64,
    /// Share of requests that use an adapter, 0–1.
    pub share: f64,
}

impl Default for Lora {
    fn default() -> Self {
        Self { slots: 1, max_rank: 16, targets: LoraTargets::All, adapters: 1, mean_rank: 16.0, share: 1.0 }
    }
}

/// (input, output) features of the projections whose output (`columns`) or input (`rows`) is split over ranks.
struct Projections {
    columns: Vec<(f64, f64)>,
    rows: Vec<(f64, f64)>,
}

fn projections(arch: &ModelArchitecture, targets: LoraTargets) -> Projections {
    let hidden = f64::from(arch.hidden);
    let q = f64::from(arch.heads) * f64::from(arch.head_dim);
    let kv = match arch.attention {
        Attention::Grouped { kv_heads } => f64::from(kv_heads) * f64::from(arch.head_dim),
        Attention::Latent { kv_rank, rope_dim } => f64::from(kv_rank) + f64::from(rope_dim),
    };
    let mut columns = vec![(hidden, q), (hidden, kv), (hidden, kv)];
    let mut rows = vec![(q, hidden)];
    if targets == LoraTargets::All {
        // What is neither attention, embeddings nor routed experts, as a gated feed-forward network.
        let experts = arch.moe.as_ref().map_or(0.0, |m| m.expert_parameters);
        let body = arch.total_parameters - arch.embedding_parameters() - experts;
        let per_layer = body / f64::from(arch.layers.max(1)) - 2.0 * hidden * (q + kv);
        let width = (per_layer / (3.0 * hidden)).max(0.0);
        columns.extend([(hidden, width), (hidden, width)]);
        rows.push((width, hidden));
    }
    Projections { columns, rows }
}

/// Parameters of one adapter of this rank, all layers: `r · Σ (in + out)`.
pub fn adapter_parameters(arch: &ModelArchitecture, rank: f64, targets: LoraTargets) -> f64 {
    let p = projections(arch, targets);
    let sides: f64 = p.columns.iter().chain(&p.rows).map(|(i, o)| i + o).sum();
    rank * sides * f64::from(arch.layers)
}

/// Bytes of one adapter of this rank on one GPU.
pub fn adapter_bytes_per_gpu(
    arch: &ModelArchitecture,
    rank: f64,
    targets: LoraTargets,
    shape: &Shape,
) -> f64 {
    let tp = f64::from(shape.tensor_parallel.max(1));
    let p = projections(arch, targets);
    let columns: f64 = p.columns.iter().map(|(i, o)| i + o / tp).sum();
    let rows: f64 = p.rows.iter().map(|(i, o)| i / tp + o).sum();
    rank * (columns + rows) * f64::from(crate::kv::stage_layers(arch, shape)) * ELEMENT_BYTES
}

/// Cost of adapters in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LoraTimes {
    /// Reading one adapter of mean rank, milliseconds.
    adapter_read: f64,
    /// Kernels of a step with any adapter, milliseconds.
    kernels: f64,
    /// Arithmetic of one token that uses an adapter: padded to the highest rank, milliseconds.
    pub(crate) token: f64,
    slots: f64,
    /// Chance that a request does not use one given adapter.
    miss: f64,
    adapters: f64,
    share: f64,
}

impl LoraTimes {
    pub(crate) fn new(
        arch: &ModelArchitecture,
        shape: &Shape,
        lora: &Lora,
        bytes_per_ms: f64,
        flops_per_ms: f64,
    ) -> Self {
        let adapters = f64::from(lora.adapters.max(1));
        Self {
            adapter_read: adapter_bytes_per_gpu(arch, lora.mean_rank, lora.targets, shape) / bytes_per_ms,
            kernels: f64::from(arch.layers) * LAYER_US * 1e-3,
            token: 2.0 * adapter_parameters(arch, f64::from(lora.max_rank), lora.targets) / flops_per_ms,
            slots: f64::from(lora.slots),
            miss: 1.0 - lora.share / adapters,
            adapters,
            share: lora.share,
        }
    }

    /// Distinct adapters expected among `requests` requests: `A·(1 − (1 − share/A)^n)`, at most the slots.
    pub(crate) fn distinct(&self, requests: f64) -> f64 {
        (self.adapters * (1.0 - self.miss.powf(requests))).min(self.slots)
    }

    /// Share of tokens that use an adapter.
    pub(crate) fn share(&self) -> f64 {
        self.share
    }

    /// What `distinct` adapters add to a step, milliseconds: their weights read once, and kernels if there is any.
    pub(crate) fn step(&self, distinct: f64) -> f64 {
        distinct * self.adapter_read + self.kernels * distinct.min(1.0)
    }
}
