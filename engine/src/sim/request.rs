//! What goes into the simulated engine, and what comes out.

use serde::{Deserialize, Serialize};

use crate::StepLoad;

/// What the engine is told to do, besides [`crate::EngineConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SimPolicy {
    /// Whether blocks of earlier prompts are used again.
    pub prefix_cache: bool,
    /// Most requests that may wait (`None`: no limit).
    pub max_waiting: Option<usize>,
}

impl Default for SimPolicy {
    fn default() -> Self {
        Self { prefix_cache: true, max_waiting: None }
    }
}

/// A request as the engine sees it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SimRequest {
    /// Identity; unique among requests in the engine.
    pub id: u64,
    /// A hash per full block of the prompt, each covering all tokens up to its block's end. Blocks beyond those
    /// listed are shared with nobody.
    pub prompt_blocks: Vec<u64>,
    /// Prompt length, tokens.
    pub prompt_tokens: u32,
    /// Answer length, tokens; at least one is generated.
    pub output_tokens: u32,
    /// Lower goes first, as in vLLM; equal ones by arrival.
    pub priority: i32,
    /// Adapter; requests of different adapters share no blocks.
    pub adapter: Option<String>,
    /// A decode replica computes this prompt itself: no prefill replica has sent its cache.
    #[serde(default)]
    pub prefill_here: bool,
}

/// Why the engine does not take a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Longer than the model serves.
    #[error(
        "request {id} needs {tokens} tokens, the longest allowed is {max_tokens}; shorten the prompt or the answer"
    )]
    TooLong {
        /// Request.
        id: u64,
        /// Prompt and answer, tokens.
        tokens: u64,
        /// Longest allowed, tokens.
        max_tokens: u64,
    },
    /// The prompt is empty.
    #[error("request {id} has an empty prompt; send at least one token")]
    EmptyPrompt {
        /// Request.
        id: u64,
    },
    /// The queue is full.
    #[error("request {id} finds {waiting} requests waiting, the most allowed; try again later")]
    QueueFull {
        /// Request.
        id: u64,
        /// Requests that wait.
        waiting: usize,
    },
    /// A request of this identity is in the engine already.
    #[error("request {id} is in the engine already; use another id")]
    Duplicate {
        /// Request.
        id: u64,
    },
}

/// One answer token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenEvent {
    /// Request.
    pub id: u64,
    /// Position in the answer, from 0.
    pub index: u32,
    /// Whether it is the first.
    pub first: bool,
    /// Whether it is the last.
    pub finished: bool,
    /// Prompt tokens that were found in the cache when the request was first admitted.
    pub cached_tokens: u32,
    /// Time from submission to first admission, milliseconds.
    pub queue_ms: f64,
}

/// What one iteration did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepOutcome {
    /// How long it took, milliseconds.
    pub duration_ms: f64,
    /// Tokens that appear at its end, in scheduling order.
    pub tokens: Vec<TokenEvent>,
    /// Requests thrown out of the batch to make room; they wait to be computed again.
    pub preempted: Vec<u64>,
    /// What it worked on.
    pub load: StepLoad,
}

/// Counters and gauges, as an engine exports them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct SimStats {
    /// Requests in the batch.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Share of KV blocks in use by requests, 0–1.
    pub kv_usage: f64,
    /// KV blocks altogether.
    pub kv_blocks: u64,
    /// Prompt tokens looked up in the prefix cache, since the start.
    pub prefix_query_tokens: u64,
    /// Of these, found.
    pub prefix_hit_tokens: u64,
    /// Preemptions since the start.
    pub preemptions: u64,
    /// Tokens prefilled since the start (recomputed ones again).
    pub prefill_tokens: u64,
    /// Answer tokens generated since the start.
    pub generation_tokens: u64,
    /// Requests finished since the start.
    pub finished: u64,
    /// Iterations since the start.
    pub steps: u64,
}
