//! Predicted completion of a request on one replica, from its step-time coefficients and its load.

use plimsoll_fleet::StepCoefficients;

/// What a router knows of a replica's load.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ReplicaLoad {
    /// Whether it may be chosen.
    pub availability: Availability,
    /// Requests being decoded or prefilled.
    pub running: f64,
    /// Requests waiting for admission.
    pub waiting: f64,
    /// Tokens held in KV cache by running requests.
    pub context_tokens: f64,
    /// Prompt tokens sent but not yet prefilled, waiting requests included.
    pub prefill_tokens: f64,
}

/// Whether a replica may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Availability {
    /// Yes.
    #[default]
    Ready,
    /// Only when nothing better is left: it failed a moment ago.
    Suspect,
    /// No: it finishes what it has.
    Draining,
    /// No: its health check fails.
    Unhealthy,
    /// No: it holds work and moves nothing.
    Stalled,
}

/// Predicted phases of one request, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Prediction {
    /// Wait before its own prefill begins.
    pub queue_ms: f64,
    /// Prefill of what is not cached, API overhead included.
    pub prefill_ms: f64,
    /// Decode of the expected answer.
    pub decode_ms: f64,
}

impl Prediction {
    /// Time to first token, ms.
    pub fn ttft_ms(&self) -> f64 {
        self.queue_ms + self.prefill_ms
    }

    /// End to end, ms.
    pub fn e2e_ms(&self) -> f64 {
        self.queue_ms + self.prefill_ms + self.decode_ms
    }
}

/// Predicts a request of `prompt_tokens`, of which `cached_tokens` are in the replica's prefix cache, that will be
/// answered with `output_tokens`.
///
/// The backlog is prefilled first in chunks of `max_batched_tokens`, each chunk sharing its step with the running
/// batch; a full batch or a full KV cache adds the time until enough of it has finished (Little's law on the batch).
/// Step time is that of [`StepCoefficients`].
pub fn predict(
    c: &StepCoefficients,
    load: &ReplicaLoad,
    prompt_tokens: f64,
    cached_tokens: f64,
    output_tokens: f64,
) -> Prediction {
    let running = load.running.max(0.0);
    let step_ms =
        c.base_ms + running * c.per_request_ms + load.context_tokens.max(0.0) * c.per_context_token_ms;
    let chunk = if c.max_batched_tokens == 0 { f64::INFINITY } else { f64::from(c.max_batched_tokens) };
    let prefill = |tokens: f64| (tokens / chunk).ceil() * step_ms + tokens * c.per_prefill_token_ms;

    let mut queue_ms = if load.prefill_tokens > 0.0 { prefill(load.prefill_tokens) } else { 0.0 };
    let residence_ms = output_tokens.max(1.0) * step_ms;
    let slots = f64::from(c.max_running);
    if c.max_running > 0 {
        let over = running + load.waiting + 1.0 - slots;
        if over > 0.0 {
            queue_ms += over * residence_ms / slots;
        }
    }
    if c.kv_tokens > 0.0 {
        let over = load.context_tokens + load.prefill_tokens + prompt_tokens - c.kv_tokens;
        if over > 0.0 {
            queue_ms += over / c.kv_tokens * residence_ms;
        }
    }
    let own_prefill_ms = prefill((prompt_tokens - cached_tokens).max(1.0));
    let decode_step_ms =
        step_ms + c.per_request_ms + (prompt_tokens + output_tokens / 2.0) * c.per_context_token_ms;
    Prediction {
        queue_ms,
        prefill_ms: c.api_overhead_ms + own_prefill_ms,
        decode_ms: (output_tokens - 1.0).max(0.0) * decode_step_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn coefficients() -> StepCoefficients {
        StepCoefficients {
            base_ms: 10.0,
            per_request_ms: 0.1,
            per_context_token_ms: 1e-4,
            per_prefill_token_ms: 0.05,
            api_overhead_ms: 2.0,
            kv_tokens: 100_000.0,
            max_running: 64,
            max_batched_tokens: 2048,
        }
    }

    #[test]
    fn an_idle_replica_takes_its_own_prefill_and_decode() {
        let p = predict(&coefficients(), &ReplicaLoad::default(), 1000.0, 0.0, 101.0);
        assert_eq!(p.queue_ms, 0.0);
        assert!((p.ttft_ms() - (2.0 + 10.0 + 50.0)).abs() < 1e-9, "{p:?}");
        assert!(p.decode_ms > 100.0 * 10.0 && p.decode_ms < 100.0 * 11.0);
    }

    proptest! {
        #[test]
        fn more_load_never_finishes_sooner_and_more_cache_never_later(
            running in 0.0..200.0f64, extra in 0.0..50.0f64, context in 0.0..2e5f64, prefill in 0.0..1e5f64,
            prompt in 1.0..50_000.0f64, cached in 0.0..1.0f64, output in 1.0..2000.0f64,
        ) {
            let c = coefficients();
            let load = ReplicaLoad { running, context_tokens: context, prefill_tokens: prefill, ..Default::default() };
            let more = ReplicaLoad { running: running + extra, ..load };
            let a = predict(&c, &load, prompt, 0.0, output).e2e_ms();
            prop_assert!(predict(&c, &more, prompt, 0.0, output).e2e_ms() >= a);
            prop_assert!(predict(&c, &load, prompt, cached * prompt, output).e2e_ms() <= a);
            prop_assert!(a.is_finite() && a > 0.0);
        }
    }
}
