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

/// Layers whose attention sees the last tokens only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlidingWindow {
    /// How many of the model's layers.
    pub layers: u32,
    /// How far they see, tokens.
    pub window_tokens: u32,
}

/// Layers that keep a state of constant size in place of keys and values (linear attention, state-space models).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RecurrentState {
    /// How many of the model's layers.
    pub layers: u32,
    /// State of one layer for one request, bytes as the engine stores it; split over tensor-parallel ranks.
    pub state_bytes: f64,
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
    /// Layers with sliding-window (or chunked) attention; `None` where every layer sees the whole context.
    #[serde(default)]
    pub sliding: Option<SlidingWindow>,
    /// Layers without keys and values; `None` where every layer is attention.
    #[serde(default)]
    pub recurrent: Option<RecurrentState>,
}

impl ModelArchitecture {
    /// Parameters in the embedding tables (input, and output unless tied).
    pub fn embedding_parameters(&self) -> f64 {
        let one = f64::from(self.vocab) * f64::from(self.hidden);
        if self.tied_embeddings { one } else { 2.0 * one }
    }

    /// Layers that keep keys and values of the last tokens only.
    pub fn sliding_layers(&self) -> u32 {
        self.sliding.map_or(0, |s| s.layers)
    }

    /// Layers that keep a constant state.
    pub fn recurrent_layers(&self) -> u32 {
        self.recurrent.map_or(0, |r| r.layers)
    }

    /// Layers that keep keys and values of the whole context.
    pub fn full_layers(&self) -> u32 {
        self.layers.saturating_sub(self.sliding_layers()).saturating_sub(self.recurrent_layers())
    }

    /// Largest tensor-parallel degree that the heads allow, up to `limit`.
    pub fn max_tensor_parallel(&self, limit: u32) -> u32 {
        (1..=limit).rev().find(|tp| self.supports_tensor_parallel(*tp)).unwrap_or(1)
    }

    /// Whether the query heads split evenly over `tp` GPUs, and the key/value heads do or are copied evenly, as engines
    /// ask for.
    pub fn supports_tensor_parallel(&self, tp: u32) -> bool {
        let keys = match self.attention {
            Attention::Grouped { kv_heads } => kv_heads.is_multiple_of(tp) || tp.is_multiple_of(kv_heads),
            Attention::Latent { .. } => true,
        };
        tp > 0 && self.heads.is_multiple_of(tp) && keys
    }
}
