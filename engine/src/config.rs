//! Settings of the engine process that the model needs to know.

use serde::{Deserialize, Serialize};

use crate::{KvOffload, Lora, Speculation};

/// What a step is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduling {
    /// Prompts' chunks beside decoding requests, within one step's budget (vLLM, TensorRT-LLM).
    #[default]
    Mixed,
    /// Steps of prompts alone while any wait and fit; decoding requests stand still meanwhile (SGLang's default).
    PrefillFirst,
}

/// Engine settings, under vLLM's meanings. The defaults are vLLM's for an online server.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineConfig {
    /// Share of the accelerator's memory that the engine may use (`--gpu-memory-utilization`).
    pub memory_utilisation: f64,
    /// Memory of one accelerator that holds neither weights nor KV cache: activations, CUDA graphs, communication
    /// buffers. 1.3 GB reproduces six vLLM block counts within 1.5 %.
    pub reserve_bytes: f64,
    /// Most requests in one batch (`--max-num-seqs`).
    pub max_running: u32,
    /// Most tokens in one step (`--max-num-batched-tokens`).
    pub max_batched_tokens: u32,
    /// Tokens in one KV-cache block (`--block-size`).
    pub block_tokens: u32,
    /// What a step is made of.
    pub scheduling: Scheduling,
    /// Whether decoding reads an 8-bit KV cache in half the time of a 16-bit one. vLLM's kernels do not: inferred
    /// from 105 measurements on H100 and H200, whose time per context token is that of 16 bits.
    pub narrow_kv_reads: bool,
    /// Whether steps are launched as CUDA graphs (without: `--enforce-eager`).
    pub cuda_graphs: bool,
    /// Tokens that the fullest expert-parallel rank gets over the mean beyond random routing, e.g. 1.2 (1: none).
    pub expert_skew: f64,
    /// LoRA adapters (`--enable-lora`); `None`: off.
    pub lora: Option<Lora>,
    /// Speculative decoding (`--speculative-config`); `None`: off.
    pub speculation: Option<Speculation>,
    /// KV cache beyond the accelerator's memory (`--kv-offloading-size`, LMCache); `None`: off.
    pub kv_offload: Option<KvOffload>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            memory_utilisation: 0.9,
            reserve_bytes: 1.3e9,
            max_running: 256,
            max_batched_tokens: 8192,
            block_tokens: 16,
            scheduling: Scheduling::Mixed,
            narrow_kv_reads: false,
            cuda_graphs: true,
            expert_skew: 1.0,
            lora: None,
            speculation: None,
            kv_offload: None,
        }
    }
}

impl EngineConfig {
    /// Defaults of an engine by its name (`vllm`, `sglang`, `trtllm`, each also with a suffix after a hyphen); vLLM's
    /// for others.
    pub fn of(engine: &str) -> Self {
        let usual = Self::default();
        match engine.split('-').next() {
            Some("sglang") => Self { scheduling: Scheduling::PrefillFirst, ..usual },
            Some("trtllm") => Self { narrow_kv_reads: true, ..usual },
            _ => usual,
        }
    }
}
