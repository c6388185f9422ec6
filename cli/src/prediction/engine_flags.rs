//! Flags that say how the engine runs: [`plimsoll_engine::EngineConfig`].

use plimsoll_engine::{Draft, EngineConfig, KvOffload, Lora, Speculation};
use plimsoll_fleet::{Attention, ModelArchitecture, presets};

use super::ask::{positive, share};
use crate::failure::Failure;

/// Adapters that engines keep at once where nothing is said.
const SLOTS: u32 = 8;

/// How the engine runs.
#[derive(Debug, Clone, clap::Args)]
pub struct EngineFlags {
    /// Engine: sglang computes prompts before it decodes, trtllm reads 8-bit KV caches at 8-bit pace
    #[arg(long, default_value = "vllm", value_name = "NAME", value_parser = ["vllm", "sglang", "trtllm"])]
    pub engine: String,
    /// Most requests in a batch, as vLLM's --max-num-seqs
    #[arg(long, default_value_t = EngineConfig::default().max_running, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub max_num_seqs: u32,
    /// Most tokens in a step, as vLLM's --max-num-batched-tokens
    #[arg(long, default_value_t = EngineConfig::default().max_batched_tokens, value_name = "TOKENS")]
    pub max_num_batched_tokens: u32,
    /// Share of GPU memory that the engine may use, as vLLM's --gpu-memory-utilization
    #[arg(long, default_value_t = EngineConfig::default().memory_utilisation, value_name = "SHARE", value_parser = share)]
    pub gpu_memory_utilization: f64,
    /// Launch kernels one by one, without CUDA graphs
    #[arg(long)]
    pub enforce_eager: bool,
    /// Speculative decoding: tokens drafted for each step, and the chance that one is accepted, e.g. 4,0.7
    #[arg(long, value_name = "TOKENS,ACCEPTANCE", value_parser = speculate)]
    pub speculate: Option<(u32, f64)>,
    /// Draft with this preset on the replica's own GPUs [default: looked up in the prompt, at no cost]
    #[arg(long, value_name = "MODEL", requires = "speculate")]
    pub draft_model: Option<String>,
    /// Draft on other GPUs: milliseconds for a token, and for the way there and back, e.g. 2,0.5
    #[arg(long, value_name = "MS,MS", requires = "speculate", conflicts_with = "draft_model", value_parser = two)]
    pub draft_elsewhere: Option<(f64, f64)>,
    /// LoRA adapters that share the traffic evenly, and their rank, e.g. 20,16
    #[arg(long, value_name = "ADAPTERS,RANK", value_parser = adapters)]
    pub lora: Option<(u32, u32)>,
    /// Adapters in one batch at most, as vLLM's --max-loras [default: as many as there are, at most 8]
    #[arg(long, value_name = "N", requires = "lora", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_loras: Option<u32>,
    /// KV cache beyond the GPUs' memory: gigabytes a second that one GPU loads from it, and the share of prompt tokens
    /// not cached on the GPUs that is found there, e.g. 25,0.6
    #[arg(long, value_name = "GB/S,SHARE", value_parser = offload)]
    pub kv_offload: Option<(f64, f64)>,
    /// Hold each GPU to so many watts
    #[arg(long, value_name = "WATTS", value_parser = positive)]
    pub power_cap: Option<f64>,
}

fn pair(text: &str) -> Result<(&str, &str), String> {
    text.split_once(',').ok_or_else(|| format!("{text:?} is not two figures with a comma between"))
}

fn count(text: &str, what: &str) -> Result<u32, String> {
    match text.trim().parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("{text:?} is no number of {what}; use a whole number above 0")),
    }
}

fn speculate(text: &str) -> Result<(u32, f64), String> {
    let (tokens, acceptance) = pair(text)?;
    Ok((count(tokens, "tokens")?, share(acceptance.trim())?))
}

fn two(text: &str) -> Result<(f64, f64), String> {
    let (a, b) = pair(text)?;
    let not_negative = |text: &str| match text.trim().parse::<f64>() {
        Ok(ms) if ms.is_finite() && ms >= 0.0 => Ok(ms),
        _ => Err(format!("{text:?} is no time; use milliseconds of at least 0")),
    };
    Ok((not_negative(a)?, not_negative(b)?))
}

fn adapters(text: &str) -> Result<(u32, u32), String> {
    let (adapters, rank) = pair(text)?;
    Ok((count(adapters, "adapters")?, count(rank, "ranks")?))
}

fn offload(text: &str) -> Result<(f64, f64), String> {
    let (rate, hits) = pair(text)?;
    Ok((positive(rate.trim())?, share(hits.trim())?))
}

impl EngineFlags {
    /// The settings that they ask for.
    ///
    /// # Errors
    /// If the draft model is no preset.
    pub fn config(&self) -> Result<EngineConfig, Failure> {
        let usual = EngineConfig::of(&self.engine);
        Ok(EngineConfig {
            max_running: self.max_num_seqs,
            max_batched_tokens: self.max_num_batched_tokens,
            memory_utilisation: self.gpu_memory_utilization,
            cuda_graphs: !self.enforce_eager,
            speculation: self.speculation()?,
            lora: self.lora.map(|(adapters, rank)| Lora {
                slots: self.max_loras.unwrap_or(adapters.min(SLOTS)),
                max_rank: rank,
                mean_rank: f64::from(rank),
                adapters,
                ..Lora::default()
            }),
            kv_offload: self.kv_offload.map(|(gigabytes, hit_fraction)| KvOffload {
                bytes_per_second: 1e9 * gigabytes,
                latency_ms: 1.0,
                hit_fraction,
            }),
            ..usual
        })
    }

    fn speculation(&self) -> Result<Option<Speculation>, Failure> {
        let Some((draft_tokens, acceptance)) = self.speculate else { return Ok(None) };
        let draft = match (&self.draft_model, self.draft_elsewhere) {
            (Some(name), _) => {
                let model = presets::model(name).ok_or_else(|| {
                    Failure::new(format!("there is no preset {name:?} to draft with"))
                        .hint("use a preset of plimsoll predict, or leave --draft-model out")
                })?;
                drafted_by(&model)
            }
            (None, Some((token_ms, transfer_ms))) => Draft::OtherGpus { token_ms, transfer_ms },
            (None, None) => Draft::NGram,
        };
        Ok(Some(Speculation { draft_tokens, acceptance, draft }))
    }
}

/// A draft on the replica's own GPUs, in 16 bits.
fn drafted_by(model: &ModelArchitecture) -> Draft {
    let elements = match model.attention {
        Attention::Grouped { kv_heads } => 2.0 * f64::from(kv_heads) * f64::from(model.head_dim),
        Attention::Latent { kv_rank, rope_dim } => f64::from(kv_rank) + f64::from(rope_dim),
    };
    let attending = model.layers.saturating_sub(model.recurrent_layers());
    Draft::SameGpus {
        parameters: model.total_parameters,
        layers: model.layers,
        kv_bytes_per_token: 2.0 * elements * f64::from(attending),
    }
}
