//! What was measured, on what, under which load.

use std::sync::Arc;

use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{AcceleratorClass, ModelArchitecture, RequestClass, Shape};

use crate::{DoesNotFit, EngineConfig, ReplicaModel, StepLoad};

/// A replica that was measured. Observations of one replica share it.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// Engine, e.g. `vllm`.
    pub engine: String,
    /// Engine version; empty if unknown.
    pub engine_version: String,
    /// Model.
    pub architecture: ModelArchitecture,
    /// Weight and KV formats.
    pub variant: Variant,
    /// Accelerator; its own calibration is where predictions start.
    pub accelerator: AcceleratorClass,
    /// Parallelism and role.
    pub shape: Shape,
    /// Engine settings.
    pub config: EngineConfig,
}

impl Subject {
    /// The performance model of this replica under another calibration.
    ///
    /// # Errors
    /// [`DoesNotFit`], as [`ReplicaModel::new`].
    pub fn model(&self, calibration: &plimsoll_fleet::Calibration) -> Result<ReplicaModel, DoesNotFit> {
        let accelerator = AcceleratorClass { calibration: calibration.clone(), ..self.accelerator.clone() };
        ReplicaModel::new(&self.architecture, &self.variant, &accelerator, &self.shape, &self.config)
    }
}

/// A load, with what a lone, steady measurement of it means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Workload {
    /// `concurrency` clients, each sending its next request, as long as the last, once that is answered.
    ClosedLoop {
        /// Requests in flight.
        concurrency: f64,
        /// Prompt tokens computed (none found in a cache).
        input_tokens: f64,
        /// Answer tokens.
        output_tokens: f64,
    },
    /// Poisson arrivals.
    OpenLoop {
        /// Requests per second.
        rps: f64,
        /// Prompt tokens, those found in the cache included.
        input_tokens: f64,
        /// Of these, found in the cache.
        cached_tokens: f64,
        /// Answer tokens.
        output_tokens: f64,
    },
    /// `batch` equal requests handed over at once, all answered to the end.
    StaticBatch {
        /// Requests.
        batch: f64,
        /// Prompt tokens of each.
        input_tokens: f64,
        /// Answer tokens of each.
        output_tokens: f64,
    },
    /// One prefill of `batch` prompts together, without decoding requests.
    Prefill {
        /// Prompts.
        batch: f64,
        /// Prompt tokens computed, of each.
        new_tokens: f64,
        /// Prompt tokens found in the cache, of each.
        cached_tokens: f64,
    },
    /// One decode step.
    Decode {
        /// Running requests.
        batch: f64,
        /// Mean context of each, tokens.
        context_tokens: f64,
    },
}

/// Measured times, milliseconds; what was not measured is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Measured {
    /// Mean time to first token.
    pub ttft_ms: Option<f64>,
    /// Mean time per output token after the first.
    pub tpot_ms: Option<f64>,
    /// Mean time from sending to the last token (of a static batch: until all are answered).
    pub e2e_ms: Option<f64>,
    /// One engine step (of [`Workload::Prefill`] and [`Workload::Decode`]).
    pub step_ms: Option<f64>,
}

/// One of the [`Measured`] times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Time to first token.
    Ttft,
    /// Time per output token.
    Tpot,
    /// End to end.
    E2e,
    /// Engine step.
    Step,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ttft, Self::Tpot, Self::E2e, Self::Step];

    /// Short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ttft => "TTFT",
            Self::Tpot => "TPOT",
            Self::E2e => "E2E",
            Self::Step => "step",
        }
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Measured {
    /// The time of this metric.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Ttft => self.ttft_ms,
            Metric::Tpot => self.tpot_ms,
            Metric::E2e => self.e2e_ms,
            Metric::Step => self.step_ms,
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// What was measured.
    pub subject: Arc<Subject>,
    /// Under which load.
    pub workload: Workload,
    /// With which result.
    pub measured: Measured,
}

impl Workload {
    /// Numbers that must be finite and above 0, or (second) at least 0.
    pub(crate) fn figures(&self) -> ([(&'static str, f64); 3], (&'static str, f64)) {
        const NONE: (&str, f64) = ("cached_tokens", 0.0);
        const ONE: (&str, f64) = ("batch", 1.0);
        match *self {
            Self::ClosedLoop { concurrency, input_tokens, output_tokens } => (
                [
                    ("concurrency", concurrency),
                    ("input_tokens", input_tokens),
                    ("output_tokens", output_tokens),
                ],
                NONE,
            ),
            Self::OpenLoop { rps, input_tokens, cached_tokens, output_tokens } => (
                [("rps", rps), ("input_tokens", input_tokens), ("output_tokens", output_tokens)],
                ("cached_tokens", cached_tokens),
            ),
            Self::StaticBatch { batch, input_tokens, output_tokens } => {
                ([("batch", batch), ("input_tokens", input_tokens), ("output_tokens", output_tokens)], NONE)
            }
            Self::Prefill { batch, new_tokens, cached_tokens } => {
                ([("batch", batch), ("input_tokens", new_tokens), ONE], ("cached_tokens", cached_tokens))
            }
            Self::Decode { batch, context_tokens } => {
                ([("batch", batch), ONE, ONE], ("context_tokens", context_tokens))
            }
        }
    }

    /// What the closed forms say of this metric, milliseconds; `None` if they say nothing of it. The mean time to
    /// first token of a closed loop is known for a lone client only: with more, it depends on how the clients
    /// started, which takes a simulation ([`crate::sim`]). Infinite where the load cannot be sustained.
    pub fn predict(&self, model: &ReplicaModel, metric: Metric) -> Option<f64> {
        match (*self, metric) {
            (Self::ClosedLoop { concurrency, input_tokens, output_tokens }, Metric::Tpot) => {
                Some(model.closed_loop_tpot_equal_ms(concurrency, input_tokens, output_tokens))
            }
            (Self::ClosedLoop { concurrency, input_tokens, .. }, Metric::Ttft) if concurrency <= 1.0 => {
                Some(model.api_overhead_ms() + prefill(model, 1.0, input_tokens, 0.0))
            }
            (Self::ClosedLoop { concurrency, input_tokens, output_tokens }, Metric::E2e)
                if concurrency <= 1.0 =>
            {
                Some(
                    model.api_overhead_ms()
                        + prefill(model, 1.0, input_tokens, 0.0)
                        + (output_tokens - 1.0).max(0.0)
                            * model.decode_ms(1.0, input_tokens + 0.5 * output_tokens),
                )
            }
            (Self::OpenLoop { rps, input_tokens, cached_tokens, output_tokens }, _) => {
                let class = RequestClass {
                    name: String::new(),
                    slo_class: String::new(),
                    input_tokens,
                    output_tokens,
                    cached_fraction: cached_tokens / input_tokens,
                    rps,
                };
                let load = model.predict(&[class], rps, 1.0);
                let class = load.classes.first()?;
                match metric {
                    Metric::Tpot => Some(class.mean_tpot_ms()),
                    Metric::Ttft => Some(class.mean_ttft_ms()),
                    Metric::E2e => {
                        Some(class.mean_ttft_ms() + (output_tokens - 1.0).max(0.0) * class.mean_tpot_ms())
                    }
                    Metric::Step => None,
                }
            }
            (Self::StaticBatch { batch, input_tokens, output_tokens }, Metric::E2e) => {
                Some(static_batch(model, batch, input_tokens, output_tokens))
            }
            (Self::StaticBatch { batch, input_tokens, output_tokens }, Metric::Tpot) => {
                let n = batch.min(waves(model, input_tokens + output_tokens));
                Some(model.decode_ms(n, input_tokens + 0.5 * output_tokens))
            }
            (Self::Prefill { batch, new_tokens, cached_tokens }, Metric::Step) => {
                Some(prefill(model, batch, new_tokens, cached_tokens))
            }
            (Self::Decode { batch, context_tokens }, Metric::Step) => {
                Some(model.decode_ms(batch, context_tokens))
            }
            _ => None,
        }
    }
}

/// Steps that do nothing but prefill these prompts, milliseconds.
fn prefill(model: &ReplicaModel, batch: f64, new_tokens: f64, cached_tokens: f64) -> f64 {
    let steps = (batch * new_tokens / (model.batched_tokens() * model.times.ranks.count)).ceil().max(1.0);
    let load = StepLoad {
        prefill_tokens: batch * new_tokens / steps,
        prefill_attention: batch * new_tokens * (new_tokens + 2.0 * cached_tokens) / steps,
        ..StepLoad::default()
    };
    steps * model.step_ms(&load)
}

/// Requests of this many tokens that run at once.
fn waves(model: &ReplicaModel, tokens: f64) -> f64 {
    (model.memory().kv_tokens / tokens).floor().clamp(1.0, f64::from(model.max_running()))
}

/// Requests of one length end together, so that a batch larger than fits runs in waves.
fn static_batch(model: &ReplicaModel, batch: f64, input_tokens: f64, output_tokens: f64) -> f64 {
    let most = waves(model, input_tokens + output_tokens);
    let wave = |n: f64| {
        prefill(model, n, input_tokens, 0.0)
            + (output_tokens - 1.0).max(0.0) * model.decode_ms(n, input_tokens + 0.5 * output_tokens)
    };
    let full = (batch / most).floor();
    let rest = batch - full * most;
    let whole = if full > 0.0 { full * wave(most) } else { 0.0 };
    whole + if rest > 0.0 { wave(rest) } else { 0.0 }
}
