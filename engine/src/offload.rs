//! KV cache beyond the accelerator's memory: loaded or computed again, whichever is sooner.

use serde::{Deserialize, Serialize};

use crate::ReplicaModel;

/// A tier of KV cache in CPU memory, on disk or across the network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KvOffload {
    /// Rate at which one accelerator loads from it, bytes per second (PCIe 5.0 ×16: about 50e9; a local disk: 5e9).
    pub bytes_per_second: f64,
    /// Time before the first byte, milliseconds.
    pub latency_ms: f64,
    /// Share of the prompt tokens not cached on the accelerator that are found in it, 0–1.
    pub hit_fraction: f64,
}

/// How a prefix kept in an offload tier is best had.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Restore {
    /// Loading it, milliseconds.
    pub load_ms: f64,
    /// Computing it again, milliseconds.
    pub recompute_ms: f64,
}

impl Restore {
    /// Whether loading is sooner.
    pub fn loads(&self) -> bool {
        self.load_ms < self.recompute_ms
    }

    /// The sooner of both, milliseconds.
    pub fn ms(&self) -> f64 {
        self.load_ms.min(self.recompute_ms)
    }
}

impl ReplicaModel {
    /// What `tokens` tokens after `cached_tokens` on the accelerator cost to load from the offload tier, and to compute
    /// again. Each GPU loads its own part: latency plus bytes on one GPU over its rate. `None` without such a tier.
    pub fn restore(&self, tokens: f64, cached_tokens: f64) -> Option<Restore> {
        let tier = self.config().kv_offload?;
        let tokens = tokens.max(0.0);
        // Of layers with a window only its last tokens are loaded, of recurrent ones a state.
        let load_ms = if tokens > 0.0 {
            tier.latency_ms + 1e3 * self.kv.footprint(tokens) * self.kv.token_bytes / tier.bytes_per_second
        } else {
            0.0
        };
        Some(Restore { load_ms, recompute_ms: self.prefill_ms(tokens, cached_tokens) })
    }
}
