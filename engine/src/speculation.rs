//! Speculative decoding: a draft proposes `k` tokens, one step of the model verifies them and adds one of its own.
//!
//! With each draft token accepted with chance `a`, a step yields `(1 − a^(k+1))/(1 − a)` tokens in expectation (Leviathan
//! et al., "Fast Inference from Transformers via Speculative Decoding", 2023, equation 1). It computes `k + 1` tokens for
//! every running request, reads weights and KV cache once, and waits for the draft.

use plimsoll_fleet::{AcceleratorClass, Dtype, Shape};
use serde::{Deserialize, Serialize};

/// Where draft tokens come from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "placement")]
pub enum Draft {
    /// Looked up in the prompt and answer so far: no time, no memory.
    NGram,
    /// A small model (or heads) on the replica's own GPUs, split like the model: it takes memory, and its steps come before
    /// each verification.
    SameGpus {
        /// Its parameters, in 16 bits.
        parameters: f64,
        /// Its layers.
        layers: u32,
        /// KV cache it keeps for one token, bytes, over all its layers.
        kv_bytes_per_token: f64,
    },
    /// A small model on accelerators of its own: no memory here, and time for its tokens and their way.
    OtherGpus {
        /// One draft token for all running requests, milliseconds.
        token_ms: f64,
        /// The way there and back for each step, milliseconds.
        transfer_ms: f64,
    },
}

/// Speculative decoding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speculation {
    /// Tokens proposed for each step, `k`.
    pub draft_tokens: u32,
    /// Chance that a proposed token is accepted, given that those before it were, 0–1.
    pub acceptance: f64,
    /// Where they come from.
    pub draft: Draft,
}

impl Speculation {
    /// Tokens that one step yields for a request in expectation, `(1 − a^(k+1))/(1 − a)`: 1 to `k + 1`.
    pub fn tokens_per_step(&self) -> f64 {
        let k = f64::from(self.draft_tokens);
        let a = if self.acceptance.is_finite() { self.acceptance.clamp(0.0, 1.0) } else { 0.0 };
        if a > 1.0 - 1e-9 { k + 1.0 } else { ((1.0 - a.powf(k + 1.0)) / (1.0 - a)).clamp(1.0, k + 1.0) }
    }

    /// Weights of a draft on each of the replica's GPUs, bytes.
    pub(crate) fn weight_bytes_per_gpu(&self, shape: &Shape) -> f64 {
        match self.draft {
            Draft::SameGpus { parameters, .. } => 2.0 * parameters / f64::from(shape.tensor_parallel),
            Draft::NGram | Draft::OtherGpus { .. } => 0.0,
        }
    }

    /// KV cache of a draft for one token on each GPU, bytes.
    pub(crate) fn kv_bytes_per_gpu(&self, shape: &Shape) -> f64 {
        match self.draft {
            Draft::SameGpus { kv_bytes_per_token, .. } => {
                kv_bytes_per_token / f64::from(shape.tensor_parallel)
            }
            Draft::NGram | Draft::OtherGpus { .. } => 0.0,
        }
    }
}

/// Cost of drafting for one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct DraftTimes {
    /// Whatever the batch, milliseconds.
    fixed: f64,
    /// Weight read of all draft tokens, milliseconds.
    read: f64,
    /// Arithmetic for one request, milliseconds; hidden behind the weight read while smaller.
    request: f64,
    /// Reading one token of the draft's KV cache, `k` times, milliseconds.
    context_token: f64,
}

impl DraftTimes {
    pub(crate) fn new(speculation: &Speculation, acc: &AcceleratorClass, shape: &Shape, clock: f64) -> Self {
        let k = f64::from(speculation.draft_tokens);
        let c = &acc.calibration;
        let tp = f64::from(shape.tensor_parallel);
        match speculation.draft {
            Draft::NGram => Self { fixed: 0.0, read: 0.0, request: 0.0, context_token: 0.0 },
            Draft::OtherGpus { token_ms, transfer_ms } => {
                Self { fixed: k * token_ms + transfer_ms, read: 0.0, request: 0.0, context_token: 0.0 }
            }
            Draft::SameGpus { parameters, layers, kv_bytes_per_token } => Self {
                fixed: k
                    * f64::from(layers)
                    * (c.layer_overhead_us + 2.0 * c.allreduce_alpha_us * tp.log2())
                    * 1e-3,
                read: 1e3 * k * 2.0 * parameters / (tp * acc.memory_bytes_per_second * c.eta_weights),
                request: 1e3 * k * 2.0 * parameters / (tp * acc.flops(Dtype::Bf16) * c.eta_compute * clock),
                context_token: 1e3 * k * kv_bytes_per_token / (tp * acc.memory_bytes_per_second * c.eta_kv),
            },
        }
    }

    /// Drafting for `requests` requests of one attention rank with `context` tokens together, milliseconds.
    pub(crate) fn step(&self, requests: f64, context: f64) -> f64 {
        self.fixed + self.read.max(requests * self.request) + context * self.context_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_per_step_by_hand() {
        let expect = |draft_tokens, acceptance: f64, tokens: f64| {
            let s = Speculation { draft_tokens, acceptance, draft: Draft::NGram };
            assert!((s.tokens_per_step() - tokens).abs() < 1e-9, "{draft_tokens} at {acceptance}");
        };
        expect(0, 0.8, 1.0);
        expect(4, 0.0, 1.0);
        // 1 + 0.8 + 0.64 + 0.512 + 0.4096.
        expect(4, 0.8, 3.3616);
        expect(4, 1.0, 5.0);
        expect(4, f64::NAN, 1.0);
    }
}
