//! How long one engine step takes: roofline for compute, weights and KV cache, alpha-beta for the links, overheads.

use std::fmt;

use plimsoll_fleet::{AcceleratorClass, Attention, Dtype, ModelArchitecture, Shape, shape::Variant};
use serde::{Deserialize, Serialize};

use crate::experts::{ExpertLoad, fullest_rank};
use crate::kv::{KvLayout, kv_elements_per_layer, windowed_attention};
use crate::links::{self, Link};
use crate::lora::LoraTimes;
use crate::memory::Weights;
use crate::power::Power;
use crate::ranks::Ranks;
use crate::speculation::DraftTimes;
use crate::{EngineConfig, power};

/// Latency of passing activations to the next pipeline stage, milliseconds: measured 0.02–0.09 (A100, TensorRT-LLM).
const HOP_MS: f64 = 0.05;

/// What a layer of routed experts costs on top, microseconds: router, sorting tokens by expert, and kernels in two
/// rounds. Inferred: what sets fits of gpt-oss-120b and DeepSeek-R1 on H100 and H200 (vLLM, SGLang) apart from
/// those of dense models.
const EXPERT_LAYER_US: f64 = 25.0;
/// What a layer of latent attention (MLA) takes on top, microseconds: four more kernels (queries and latents are projected
/// in two steps each, with a norm between, and the absorbed products with the up-projections stand apart), at the six
/// microseconds that each of about ten takes in the layers that coefficients were fitted to. Counted, not fitted.
const LATENT_LAYER_US: f64 = 24.0;
/// Share of `eta_compute` that products with routed experts reach: many small ones. 0.35 is inferred from
/// gpt-oss-120b under vLLM, whose experts have 25 million parameters: with it, TPOT and TTFT alike ask for the
/// `eta_compute` of dense models. That it grows with the root of larger experts' size, up to that of dense
/// products, is a guess.
fn expert_share(arch: &ModelArchitecture) -> f64 {
    const SHARE: f64 = 0.35;
    const PARAMETERS: f64 = 25e6;
    let of_one = arch.moe.as_ref().map_or(f64::INFINITY, |m| {
        m.expert_parameters / (f64::from(m.experts) * f64::from(arch.layers)).max(1.0)
    });
    (SHARE * (of_one / PARAMETERS).sqrt()).clamp(SHARE, 1.0)
}

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
    /// Distinct LoRA adapters among these requests.
    #[serde(default)]
    pub adapters: f64,
}

impl StepLoad {
    /// Adds a decoding request with this much context.
    pub fn add_decode(&mut self, context_tokens: f64) {
        self.running += 1.0;
        self.context_tokens += context_tokens;
    }

    /// Adds another rank's part of the step.
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { running, context_tokens, prefill_tokens, prefill_attention, adapters } = other;
        self.running += running;
        self.context_tokens += context_tokens;
        self.prefill_tokens += prefill_tokens;
        self.prefill_attention += prefill_attention;
        self.adapters += adapters;
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

/// Step-time coefficients of one replica, all in milliseconds. Per token and per request means on one attention rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepTimes {
    /// Reading all weights but routed experts and the input embedding.
    dense_read: f64,
    /// Reading all routed experts of the fullest GPU.
    expert_read: f64,
    /// How tokens fall on experts.
    experts: ExpertLoad,
    /// Arithmetic of one decoded token, output embedding included, routed experts not.
    decode_token: f64,
    /// Arithmetic of one token in routed experts, evenly divided over the stage's GPUs.
    expert_token: f64,
    /// Arithmetic of one prefilled token, routed experts not included.
    prefill_token: f64,
    /// Attention arithmetic for one unit of `c·(c + 2k)` in layers that see everything.
    attention: f64,
    /// … and in layers with a window.
    windowed: f64,
    /// The window, tokens.
    window: f64,
    /// Reading one token of context in layers that see everything.
    kv_token: f64,
    /// … and in layers with a window.
    kv_windowed: f64,
    /// Reading and writing the states of one request in recurrent layers.
    kv_state: f64,
    /// Latency of a step's collectives.
    link_step: f64,
    /// Collectives' transfer of one token, and its transfer between pipeline stages.
    link_token: f64,
    /// Pipeline hops of a step.
    hops: f64,
    /// Layer and step overheads.
    overhead: f64,
    /// Overhead of one running request.
    request: f64,
    /// Launching a step takes the CPU this long.
    launch: f64,
    /// Pipeline stages.
    stages: f64,
    /// Attention ranks.
    pub(crate) ranks: Ranks,
    /// Tokens computed in a step for one running request: more than one where drafts are verified.
    verified: f64,
    /// Tokens that a step yields for one running request.
    pub(crate) yielded: f64,
    draft: Option<DraftTimes>,
    lora: Option<LoraTimes>,
}

impl StepTimes {
    pub(crate) fn new(
        arch: &ModelArchitecture,
        variant: &Variant,
        acc: &AcceleratorClass,
        shape: &Shape,
        kv: &KvLayout,
        config: &EngineConfig,
    ) -> Self {
        const MS: f64 = 1e3;
        const US_MS: f64 = 1e-3;
        let c = &acc.calibration;
        let tp = f64::from(shape.tensor_parallel);
        let pp = f64::from(shape.pipeline_parallel);
        let dp = f64::from(shape.data_parallel);
        let layers = f64::from(arch.layers);
        let hidden = f64::from(arch.hidden);
        let weights = Weights::new(arch, variant);
        let clock = power::clock(acc);
        let flops = tp * acc.flops(variant.weights) * c.eta_compute * clock;
        let attention_flops = tp * acc.flops(Dtype::Bf16) * c.eta_attention * clock;
        let read = acc.memory_bytes_per_second * c.eta_weights;
        let kv_read = acc.memory_bytes_per_second * c.eta_kv;
        let output_table = f64::from(arch.vocab) * hidden;
        let active_experts = arch.moe.as_ref().map_or(0.0, |m| {
            let used = f64::from(m.experts_per_token) / f64::from(m.experts);
            (m.expert_parameters * used).min(arch.active_parameters)
        });
        let dense = arch.active_parameters - active_experts;
        let attention = MS * 2.0 * f64::from(arch.heads) * f64::from(arch.head_dim) / attention_flops;
        let kv_bytes = variant.kv.bytes_per_element();
        let kv_bytes = if config.narrow_kv_reads { kv_bytes } else { kv_bytes.max(2.0) };
        let kv_layer = MS * kv_elements_per_layer(arch, shape.tensor_parallel) * kv_bytes / kv_read;
        let (link_step, link_token) = collectives(arch, acc, shape);
        // 16-bit activations of a token, handed from each stage to the next; replicas of several link domains send
        // them over what joins those.
        let hop_token = (pp - 1.0) * links::hand_over_ms(acc, links::tier(acc, shape.gpus()), 2.0 * hidden);
        let lora = config.lora.map(|l| LoraTimes::new(arch, shape, &l, read / MS, flops / MS));
        let lora_token = lora.map_or(0.0, |l| l.share() * l.token);
        let launch = if config.cuda_graphs { c.launch_step_us } else { layers * c.launch_layer_us };
        let expert_layer = if arch.moe.is_some() { EXPERT_LAYER_US } else { 0.0 };
        let latent_layer =
            if matches!(arch.attention, Attention::Latent { .. }) { LATENT_LAYER_US } else { 0.0 };
        let fullest = arch.moe.as_ref().map_or(1.0, |m| fullest_rank(m.experts, shape.expert_parallel));
        Self {
            dense_read: MS * (weights.dense + weights.table) / (tp * read),
            expert_read: MS * weights.experts * fullest / (tp * dp * read),
            experts: ExpertLoad::new(arch, shape, config.expert_skew),
            decode_token: MS * 2.0 * (dense + output_table) / flops + lora_token,
            expert_token: MS * 2.0 * active_experts / (expert_share(arch) * flops * dp),
            prefill_token: MS * 2.0 * dense / flops + lora_token,
            attention: attention * f64::from(arch.full_layers()),
            windowed: attention * f64::from(arch.sliding_layers()),
            window: kv.window,
            kv_token: kv_layer * f64::from(arch.full_layers()),
            kv_windowed: kv_layer * f64::from(arch.sliding_layers()),
            // Read and written in every step, in all stages.
            kv_state: arch
                .recurrent
                .map_or(0.0, |r| MS * 2.0 * f64::from(r.layers) * r.state_bytes / (tp * kv_read)),
            link_step: link_step * US_MS,
            link_token: link_token + hop_token,
            hops: (pp - 1.0) * HOP_MS,
            overhead: (layers * (c.layer_overhead_us + expert_layer + latent_layer) + c.step_overhead_us)
                * US_MS,
            request: c.request_overhead_us * US_MS,
            launch: launch * US_MS,
            stages: pp,
            ranks: Ranks::new(shape.data_parallel),
            verified: config.speculation.map_or(1.0, |s| 1.0 + f64::from(s.draft_tokens)),
            yielded: config.speculation.map_or(1.0, |s| s.tokens_per_step()),
            draft: config.speculation.map(|s| DraftTimes::new(&s, acc, shape, clock)),
            lora,
        }
    }

    /// Tokens of the step's budget that `running` requests take.
    pub(crate) fn budget(&self, running: f64) -> f64 {
        running * self.verified
    }

    /// Reading the weights that `tokens` tokens touch: the experts hit are distinct ones.
    fn weights(&self, tokens: f64) -> f64 {
        if self.expert_read == 0.0 {
            return self.dense_read;
        }
        self.dense_read + self.expert_read * self.experts.read(tokens)
    }

    /// Arithmetic in routed experts for `tokens` tokens of all attention ranks.
    fn expert_compute(&self, tokens: f64) -> f64 {
        if self.expert_token == 0.0 { 0.0 } else { self.expert_token * self.experts.computed(tokens) }
    }

    /// Reading the keys, values and states of `requests` requests of `context` tokens together. The window is applied
    /// to their mean context, which never reads less than applying it to each.
    fn kv(&self, requests: f64, context: f64) -> f64 {
        context * self.kv_token
            + context.min(requests * self.window) * self.kv_windowed
            + requests * self.kv_state
    }

    /// The share of a prompt's arithmetic that occupies the replica for others: with `p` stages, chunks follow each
    /// other through the pipeline at efficiency `M/(M + p − 1)`, here with `M = p` chunks in flight.
    fn pipeline_share(&self) -> f64 {
        (2.0 * self.stages - 1.0) / (self.stages * self.stages)
    }

    /// Requests of one micro-batch: with `p` stages, running requests advance in `p` groups, one in each stage.
    fn micro_batch(&self, running: f64) -> f64 {
        if self.stages > 1.0 { (running / self.stages).max(running.min(1.0)) } else { running }
    }

    /// A prompt on its attention rank, routed experts aside, milliseconds.
    fn rank_prompt(&self, new: f64, cached: f64) -> f64 {
        let windowed = if self.windowed > 0.0 {
            self.windowed * windowed_attention(new, cached, self.window)
        } else {
            0.0
        };
        new * (self.prefill_token + self.link_token) + new * (new + 2.0 * cached) * self.attention + windowed
    }

    /// Arithmetic and communication of a prompt of `new` tokens after `cached` ones, milliseconds.
    pub(crate) fn prompt(&self, new: f64, cached: f64) -> f64 {
        self.rank_prompt(new, cached) + self.expert_compute(new)
    }

    /// What of this it takes from others, milliseconds, as stages overlap: on its attention rank, while the others
    /// wait or compute prompts of their own, and on all of them.
    pub(crate) fn work(&self, new: f64, cached: f64) -> (f64, f64) {
        let share = self.pipeline_share();
        (share * self.rank_prompt(new, cached), share * self.expert_compute(new))
    }

    /// A step of `tokens` prompt tokens that nobody decodes in, their own work aside, milliseconds.
    pub(crate) fn prompts_alone(&self, tokens: f64) -> f64 {
        let step = self.weights(tokens / self.stages) + self.link_step + self.hops + self.overhead;
        step.max(self.launch)
    }

    /// Attention arithmetic of chunks, from their sums: with a window, a token's work is at most `2W` units.
    fn chunk_attention(&self, tokens: f64, attention: f64) -> f64 {
        let windowed =
            if self.windowed > 0.0 { attention.min(2.0 * self.window * tokens) * self.windowed } else { 0.0 };
        attention * self.attention + windowed
    }

    /// Adapters expected among `running` requests.
    pub(crate) fn expected_adapters(&self, running: f64) -> f64 {
        self.lora.map_or(0.0, |l| l.distinct(running))
    }

    fn adapters(&self, distinct: f64) -> f64 {
        self.lora.map_or(0.0, |l| l.step(distinct))
    }

    /// A decode step of `running` requests with `context` tokens of context together, milliseconds.
    #[inline]
    pub(crate) fn decode(&self, running: f64, context: f64) -> f64 {
        self.decode_of(running, context, 0.0)
    }

    /// The same where contexts deviate from their mean by `deviation` tokens (standard deviation): the fullest
    /// attention rank sets the pace.
    #[inline]
    pub(crate) fn decode_of(&self, running: f64, context: f64, deviation: f64) -> f64 {
        let micro = self.micro_batch(running);
        let rank = self.ranks.fullest(micro);
        let rank_context = if running > 0.0 {
            self.ranks.longest(rank, context * rank / running, deviation).min(context)
        } else {
            0.0
        };
        let tokens = micro * self.verified;
        let rank_tokens = rank * self.verified;
        let mut total =
            self.weights(tokens).max(rank_tokens * self.decode_token + self.expert_compute(tokens))
                + self.kv(rank, rank_context)
                + self.link_step
                + rank_tokens * self.link_token
                + rank * self.request
                + self.hops
                + self.overhead;
        if let Some(draft) = &self.draft
            && running > 0.0
        {
            total += draft.step(rank, rank_context);
        }
        if self.lora.is_some() {
            total += self.adapters(self.expected_adapters(running));
        }
        total.max(self.launch)
    }

    /// A step whose load is known of all attention ranks together: requests are spread as evenly as whole ones can be,
    /// prompt tokens evenly.
    pub(crate) fn breakdown(&self, step: &StepLoad) -> StepBreakdown {
        if self.ranks.alone() {
            return self.breakdown_of(step, step);
        }
        let running = self.ranks.fullest(step.running);
        let of_rank = if step.running > 0.0 { running / step.running } else { 0.0 };
        let n = self.ranks.count;
        let fullest = StepLoad {
            running,
            context_tokens: step.context_tokens * of_rank,
            prefill_tokens: step.prefill_tokens / n,
            prefill_attention: step.prefill_attention / n,
            adapters: step.adapters,
        };
        self.breakdown_of(&fullest, step)
    }

    /// A step whose load is known of each attention rank, milliseconds: in every layer with experts they wait for each
    /// other, so that the slowest sets the pace.
    pub(crate) fn of_ranks(&self, loads: &[StepLoad], all: &StepLoad) -> f64 {
        loads.iter().map(|own| self.breakdown_of(own, all).total_ms()).fold(0.0, f64::max)
    }

    /// A step on the attention rank with load `own`, of `all` ranks' load.
    fn breakdown_of(&self, own: &StepLoad, all: &StepLoad) -> StepBreakdown {
        let micro = self.micro_batch(all.running);
        let rank = self.micro_batch(own.running);
        let context = if own.running > 0.0 { own.context_tokens * rank / own.running } else { 0.0 };
        let share = self.pipeline_share();
        let tokens = micro * self.verified;
        let rank_tokens = rank * self.verified;
        let weights = self.weights(tokens + all.prefill_tokens / self.stages);
        let decode = rank_tokens * self.decode_token + self.expert_compute(tokens);
        let of_rank = own.prefill_tokens * self.prefill_token
            + self.chunk_attention(own.prefill_tokens, own.prefill_attention);
        let prefill = share * (of_rank + self.expert_compute(all.prefill_tokens));
        let prefill_link = share * own.prefill_tokens;
        let draft = match &self.draft {
            Some(draft) if own.running > 0.0 => draft.step(rank, context),
            _ => 0.0,
        };
        let mut parts = StepBreakdown {
            compute_ms: prefill + if decode > weights { decode } else { 0.0 },
            weights_ms: if decode > weights { 0.0 } else { weights },
            kv_ms: self.kv(rank, context),
            link_ms: self.link_step + self.link_token * (rank_tokens + prefill_link) + self.hops,
            overhead_ms: self.overhead + rank * self.request + draft + self.adapters(own.adapters),
        };
        if self.launch > 0.0 {
            parts.overhead_ms += (self.launch - parts.total_ms()).max(0.0);
        }
        parts
    }

    /// Shares of peak arithmetic and of peak memory bandwidth that a step uses.
    pub(crate) fn utilisation(&self, step: &StepLoad, power: &Power) -> (f64, f64) {
        let total = self.breakdown(step).total_ms();
        let micro = self.micro_batch(step.running);
        // Of the mean rank: those that wait for the fullest draw less.
        let rank = micro / self.ranks.count;
        let context = if step.running > 0.0 { step.context_tokens * rank / step.running } else { 0.0 };
        let tokens = micro * self.verified;
        let prefill = step.prefill_tokens * self.prefill_token
            + self.chunk_attention(step.prefill_tokens, step.prefill_attention);
        // Of all stages: of each, a micro-batch at a time.
        let compute = rank * self.verified * self.decode_token
            + self.expert_compute(tokens + step.prefill_tokens)
            + prefill / self.stages / self.ranks.count;
        let read = self.weights(tokens + step.prefill_tokens / self.stages) * power.eta_weights
            + self.kv(rank, context) * power.eta_kv;
        (compute * power.eta_compute / total, read / total)
    }

    /// Share of one context token's read that each step pays, milliseconds, for requests of this context.
    pub(crate) fn context_token(&self, typical: f64) -> f64 {
        (self.kv(1.0, typical) - self.kv_state) / typical / self.stages / self.ranks.count
    }
}

/// Collectives of one step: latency in microseconds, and transfer of one token of an attention rank in milliseconds.
///
/// Tensor parallelism: two all-reduces a layer, each moving `2(n−1)/n` of the 16-bit activations. With several
/// attention ranks the second gives way to the exchange of tokens with the experts' owners: each token's activations
/// out and back, either to the ranks of its own experts (all-to-all: at most `k` copies) or to every rank (all-gather
/// and reduce-scatter), whichever moves less.
fn collectives(arch: &ModelArchitecture, acc: &AcceleratorClass, shape: &Shape) -> (f64, f64) {
    let layers = f64::from(arch.layers);
    let message = 2.0 * f64::from(arch.hidden);
    let group = Link::new(acc, shape.tensor_parallel);
    let reduce = links::ring(f64::from(shape.tensor_parallel)) * message;
    let (mut us, mut token) = (0.0, 0.0);
    let reduces = if shape.data_parallel > 1 { 1.0 } else { 2.0 };
    if shape.tensor_parallel > 1 {
        us += reduces * layers * 1e3 * group.alpha_ms;
        token += reduces * layers * group.transfer_ms(reduce);
    }
    if let (true, Some(moe)) = (shape.data_parallel > 1, &arch.moe) {
        let stage = Link::new(acc, shape.stage_gpus());
        let (ranks, dp) = (f64::from(shape.expert_parallel), f64::from(shape.data_parallel));
        let copies = f64::from(moe.experts_per_token).min(ranks) * (ranks - 1.0) / ranks;
        let (exchanged, everywhere) = (copies / f64::from(shape.tensor_parallel), dp - 1.0);
        let moved = if ranks > 1.0 { exchanged.min(everywhere) } else { everywhere };
        us += 2.0 * layers * 1e3 * stage.alpha_ms;
        token += 2.0 * layers * stage.transfer_ms(moved * message);
    }
    (us, token)
}
