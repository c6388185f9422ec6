//! How long one engine step takes: roofline for compute, weights and KV cache, alpha-beta for the links, overheads.

use std::fmt;

use plimsoll_fleet::{AcceleratorClass, Dtype, ModelArchitecture, Shape, shape::Variant};
use serde::{Deserialize, Serialize};

use crate::memory::{Weights, kv_elements_per_layer};

/// Latency of passing activations to the next pipeline stage, milliseconds: measured 0.02–0.09 (A100, TensorRT-LLM).
const HOP_MS: f64 = 0.05;

/// What one engine step works on.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct StepLoad {
    /// Requests that decode one token each.
    pub running: f64,
    /// Their contexts summed, tokens.
    pub context_tokens: f64,
    /// Prompt tokens computed in this step, all chunks together.
    pub prefill_tokens: f64,
    /// Sum of `c·(c + 2k)` over the chunks: `c` tokens after `k` that are already in the cache. Proportional to the
    /// attention work of the chunks.
    pub prefill_attention: f64,
}

impl StepLoad {
    /// Adds a decoding request with this much context.
    pub fn add_decode(&mut self, context_tokens: f64) {
        self.running += 1.0;
        self.context_tokens += context_tokens;
    }

    /// Adds a chunk of `new_tokens` prompt tokens after `cached_tokens` that are already in the cache.
    pub fn add_prefill(&mut self, new_tokens: f64, cached_tokens: f64) {
        self.prefill_tokens += new_tokens;
        self.prefill_attention += new_tokens * (new_tokens + 2.0 * cached_tokens);
    }
}

/// What limits a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Arithmetic.
    Compute,
    /// Memory bandwidth, reading weights.
    WeightBandwidth,
    /// Memory bandwidth, reading KV cache.
    KvBandwidth,
    /// Links between GPUs.
    Link,
    /// Launch and scheduling overheads.
    Overhead,
    /// KV-cache capacity.
    KvCapacity,
    /// The limit on running requests.
    BatchLimit,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compute => "compute",
            Self::WeightBandwidth => "memory bandwidth (weights)",
            Self::KvBandwidth => "memory bandwidth (KV cache)",
            Self::Link => "links",
            Self::Overhead => "overheads",
            Self::KvCapacity => "KV capacity",
            Self::BatchLimit => "batch limit",
        })
    }
}

/// Where the time of a step goes, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct StepBreakdown {
    /// Arithmetic: prefill, and decode where it outlasts the weight read.
    pub compute_ms: f64,
    /// Weight read, where it outlasts decode's arithmetic.
    pub weights_ms: f64,
    /// KV-cache read.
    pub kv_ms: f64,
    /// All-reduces and pipeline hops.
    pub link_ms: f64,
    /// Layer, step and request overheads.
    pub overhead_ms: f64,
}

impl StepBreakdown {
    /// The whole step, milliseconds.
    pub fn total_ms(&self) -> f64 {
        self.compute_ms + self.weights_ms + self.kv_ms + self.link_ms + self.overhead_ms
    }

    /// The part that takes longest.
    pub fn dominant(&self) -> Resource {
        [
            (Resource::Compute, self.compute_ms),
            (Resource::WeightBandwidth, self.weights_ms),
            (Resource::KvBandwidth, self.kv_ms),
            (Resource::Link, self.link_ms),
            (Resource::Overhead, self.overhead_ms),
        ]
        .into_iter()
        .fold((Resource::Overhead, f64::NEG_INFINITY), |best, next| if next.1 > best.1 { next } else { best })
        .0
    }
}

/// Step-time coefficients of one replica, all in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepTimes {
    /// Reading all weights but routed experts and the input embedding.
    dense_read: f64,
    /// Reading all routed experts.
    expert_read: f64,
    /// Chance that a token leaves a given expert unused.
    expert_miss: f64,
    /// Arithmetic of one decoded token, output embedding included.
    decode_token: f64,
    /// Arithmetic of one prefilled token.
    prefill_token: f64,
    /// Attention arithmetic for one unit of `c·(c + 2k)`.
    attention: f64,
    /// Reading one token of context.
    kv_token: f64,
    /// All-reduce latency of a step.
    link_step: f64,
    /// All-reduce transfer of one token, and its transfer between pipeline stages.
    link_token: f64,
    /// Pipeline hops of a step.
    hops: f64,
    /// Layer and step overheads.
    overhead: f64,
    /// Overhead of one running request.
    request: f64,
    /// Pipeline stages.
    stages: f64,
}

impl StepTimes {
    pub(crate) fn new(
        arch: &ModelArchitecture,
        variant: &Variant,
        acc: &AcceleratorClass,
        shape: &Shape,
    ) -> Self {
        const MS: f64 = 1e3;
        const US_MS: f64 = 1e-3;
        let c = &acc.calibration;
        let tp = f64::from(shape.tensor_parallel);
        let pp = f64::from(shape.pipeline_parallel);
        let layers = f64::from(arch.layers);
        let hidden = f64::from(arch.hidden);
        let weights = Weights::new(arch, variant);
        let flops = tp * acc.flops(variant.weights) * c.eta_compute;
        let attention_flops = tp * acc.flops(Dtype::Bf16) * c.eta_attention;
        let read = acc.memory_bytes_per_second * c.eta_weights;
        let output_table = f64::from(arch.vocab) * hidden;
        // Two all-reduces a layer, each moving 2(TP−1)/TP of the 16-bit activations.
        let link_token =
            2.0 * layers * 2.0 * (tp - 1.0) / tp * 2.0 * hidden / (acc.link_bytes_per_second * c.eta_link);
        // Replicas of several link domains send activations over the network.
        let hop_bandwidth = if shape.gpus() > acc.link_domain_size {
            acc.nic_bytes_per_second
        } else {
            acc.link_bytes_per_second
        };
        // 16-bit activations of a token, handed from each stage to the next.
        let hop_token = (pp - 1.0) * 2.0 * hidden / hop_bandwidth;
        Self {
            dense_read: MS * (weights.dense + weights.table) / (tp * read),
            expert_read: MS * weights.experts / (tp * read),
            expert_miss: arch.moe.as_ref().map_or(1.0, |m| {
                (1.0 - f64::from(m.experts_per_token) / f64::from(m.experts)).clamp(0.0, 1.0)
            }),
            decode_token: MS * 2.0 * (arch.active_parameters + output_table) / flops,
            prefill_token: MS * 2.0 * arch.active_parameters / flops,
            attention: MS * 2.0 * f64::from(arch.heads) * f64::from(arch.head_dim) * layers / attention_flops,
            kv_token: MS
                * kv_elements_per_layer(arch, shape.tensor_parallel)
                * layers
                * variant.kv.bytes_per_element()
                / (acc.memory_bytes_per_second * c.eta_kv),
            link_step: 2.0 * layers * c.allreduce_alpha_us * US_MS * tp.log2(),
            link_token: MS * (link_token + hop_token),
            hops: (pp - 1.0) * HOP_MS,
            overhead: (layers * c.layer_overhead_us + c.step_overhead_us) * US_MS,
            request: c.request_overhead_us * US_MS,
            stages: pp,
        }
    }

    /// Reading the weights that `tokens` tokens touch: the experts hit are distinct ones, `E·(1 − (1 − k/E)^tokens)`
    /// of E in expectation.
    fn weights(&self, tokens: f64) -> f64 {
        if self.expert_read == 0.0 {
            return self.dense_read;
        }
        self.dense_read + self.expert_read * (1.0 - self.expert_miss.powf(tokens.max(1.0)))
    }

    /// The share of a prompt's arithmetic that occupies the replica for others: with `p` stages, chunks follow each
    /// other through the pipeline at efficiency `M/(M + p − 1)`, here with `M = p` chunks in flight.
    pub(crate) fn pipeline_share(&self) -> f64 {
        (2.0 * self.stages - 1.0) / (self.stages * self.stages)
    }

    /// Requests of one micro-batch: with `p` stages, running requests advance in `p` groups, one in each stage.
    fn micro_batch(&self, running: f64) -> f64 {
        if self.stages > 1.0 { (running / self.stages).max(running.min(1.0)) } else { running }
    }

    /// Arithmetic and communication of `tokens` prompt tokens whose attention work is `attention`, milliseconds.
    pub(crate) fn prefill(&self, tokens: f64, attention: f64) -> f64 {
        tokens * (self.prefill_token + self.link_token) + attention * self.attention
    }

    /// A decode step of `running` requests with `context` tokens of context together, milliseconds.
    #[inline]
    pub(crate) fn decode(&self, running: f64, context: f64) -> f64 {
        let micro = self.micro_batch(running);
        let micro_context = if running > 0.0 { context * micro / running } else { 0.0 };
        self.weights(micro).max(micro * self.decode_token)
            + micro_context * self.kv_token
            + self.link_step
            + micro * (self.link_token + self.request)
            + self.hops
            + self.overhead
    }

    pub(crate) fn breakdown(&self, step: &StepLoad) -> StepBreakdown {
        let micro = self.micro_batch(step.running);
        let context = if step.running > 0.0 { step.context_tokens * micro / step.running } else { 0.0 };
        let share = self.pipeline_share();
        let weights = self.weights(micro + step.prefill_tokens / self.stages);
        let decode = micro * self.decode_token;
        let prefill =
            share * (step.prefill_tokens * self.prefill_token + step.prefill_attention * self.attention);
        StepBreakdown {
            compute_ms: prefill + if decode > weights { decode } else { 0.0 },
            weights_ms: if decode > weights { 0.0 } else { weights },
            kv_ms: context * self.kv_token,
            link_ms: self.link_step + self.link_token * (micro + share * step.prefill_tokens) + self.hops,
            overhead_ms: self.overhead + micro * self.request,
        }
    }

    /// Share of one context token's read that each step pays, milliseconds.
    pub(crate) fn context_token(&self) -> f64 {
        self.kv_token / self.stages
    }
}
