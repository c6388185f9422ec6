//! Model architectures: what the engine model needs to know of a transformer.

use serde::{Deserialize, Serialize};

/// How attention stores keys and values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Attention {
    /// Multi-head or grouped-query attention: `kv_heads × head_dim` keys and values a layer and token.
    Grouped {
        /// Key/value heads (equal to the query heads for plain multi-head attention).
        kv_heads: u32,
    },
    /// Multi-head latent attention (DeepSeek-V2/V3): one compressed latent a layer and token, not split by TP.
    Latent {
        /// Compressed KV width (`kv_lora_rank`).
        kv_rank: u32,
        /// Width of the decoupled rotary key.
        rope_dim: u32,
    },
}

/// Mixture-of-experts facts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moe {
    /// Routed experts a layer.
    pub experts: u32,
    /// Routed experts a token uses.
    pub experts_per_token: u32,
    /// Parameters in routed experts, all layers together.
    pub expert_parameters: f64,
}

/// A decoder-only transformer as the performance model sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelArchitecture {
    /// Name, e.g. `llama-3.1-70b`.
    pub name: String,
    /// Transformer layers.
    pub layers: u32,
    /// Hidden width.
    pub hidden: u32,
    /// Query heads.
    pub heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// Keys and values.
    pub attention: Attention,
    /// Vocabulary entries.
    pub vocab: u32,
    /// All parameters, embeddings included.
    pub total_parameters: f64,
    /// Parameters a token touches outside the embedding tables (equal to the non-embedding total when dense).
    pub active_parameters: f64,
    /// Whether input and output embeddings are one matrix.
    pub tied_embeddings: bool,
    /// Longest context in tokens.
    pub max_context_tokens: u32,
    /// Mixture-of-experts facts; `None` when dense.
    pub moe: Option<Moe>,
}

impl ModelArchitecture {
    /// Parameters in the embedding tables (input, and output unless tied).
    pub fn embedding_parameters(&self) -> f64 {
        let one = f64::from(self.vocab) * f64::from(self.hidden);
        if self.tied_embeddings { one } else { 2.0 * one }
    }

    /// Largest tensor-parallel degree that divides the query heads, up to `limit`.
    pub fn max_tensor_parallel(&self, limit: u32) -> u32 {
        (1..=limit).rev().find(|tp| self.heads.is_multiple_of(*tp)).unwrap_or(1)
    }

    /// Whether the query heads split evenly over `tp` GPUs.
    pub fn supports_tensor_parallel(&self, tp: u32) -> bool {
        tp > 0 && self.heads.is_multiple_of(tp)
    }
}
