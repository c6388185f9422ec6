//! Settings of the engine process that the model needs to know.

use serde::{Deserialize, Serialize};

use crate::{KvOffload, Lora, Speculation};

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
            cuda_graphs: true,
            expert_skew: 1.0,
            lora: None,
            speculation: None,
            kv_offload: None,
        }
    }
}
