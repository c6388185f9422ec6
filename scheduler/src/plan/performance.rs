//! What one replica of a shape can do: the planner's view of the engine model, and a cache of its answers.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use plimsoll_engine::EngineConfig;
use plimsoll_fleet::plan::Prediction;
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{AcceleratorClass, ModelPool, Objective, RequestClass, Shape, Slo};

/// One question to a [`Performance`] model.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The pool, for its architecture, objectives and context limit.
    pub pool: &'a ModelPool,
    /// Variant of the shape.
    pub variant: &'a Variant,
    /// Accelerator class of the shape.
    pub accelerator: &'a AcceleratorClass,
    /// The shape.
    pub shape: &'a Shape,
    /// Request classes; their rates are the mix.
    pub classes: &'a [RequestClass],
    /// Squared coefficient of variation of inter-arrival times.
    pub arrival_scv: f64,
    /// Share (0–1) by which predictions must stay below the objectives.
    pub margin: f64,
    /// Factor on the objectives' limits: 1, or more where the objectives themselves are out of reach.
    pub stretch: f64,
    /// Settings of the engine.
    pub engine: EngineConfig,
    /// Objectives by SLO class in place of the pool's: what is left of them to a replica that does a part of each request.
    pub limits: Option<&'a [(String, Slo)]>,
}

impl Query<'_> {
    /// The objectives of an SLO class, stretched.
    pub fn slo(&self, class: &str) -> Slo {
        let own = self.limits.and_then(|limits| limits.iter().find(|(name, _)| name == class));
        let slo = match own {
            Some((_, slo)) => *slo,
            None => self.pool.slo_class(class).map(|c| c.slo).unwrap_or_default(),
        };
        let by = |o: Option<Objective>| o.map(|o| Objective { ms: o.ms * self.stretch.max(1.0), ..o });
        Slo { ttft: by(slo.ttft), tpot: by(slo.tpot), e2e: by(slo.e2e) }
    }
}

/// What one replica can do.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Highest rate of each class alone within its objectives, requests per second (0: it cannot be served).
    pub rates: Vec<f64>,
    /// Highest rate of the whole mix, requests per second (0: not together).
    pub mix_rps: f64,
    /// Most power that all its accelerators draw on average at one of these rates, watts.
    pub watts: f64,
    /// For each class that cannot be served: the objective that fails.
    pub misses: Vec<Option<Miss>>,
}

/// An objective that a shape misses even for a single request.
#[derive(Debug, Clone, PartialEq)]
pub struct Miss {
    /// `TTFT`, `TPOT` or `E2E`; empty if the reason is of another kind.
    pub metric: String,
    /// The objective as people write it, e.g. `p95 ≤ 1 ms`.
    pub objective: String,
    /// Best latency this shape reaches, milliseconds.
    pub best_ms: f64,
    /// The limit that would be needed with the safety margin, milliseconds.
    pub needed_ms: f64,
    /// The reason in words, where it is no latency.
    pub text: String,
}

/// Why a shape cannot hold the model at all.
#[derive(Debug, Clone, PartialEq)]
pub struct Misfit {
    /// Bytes of weights, all accelerators together (0: not a question of memory).
    pub weight_bytes: f64,
    /// Bytes that the shape's accelerators together offer for weights and KV cache.
    pub usable_bytes: f64,
    /// In words.
    pub text: String,
}

/// Answers how much one replica of a shape can serve. Pure and deterministic.
pub trait Performance: Send + Sync {
    /// Highest rates within the objectives.
    ///
    /// # Errors
    /// [`Misfit`] if the shape cannot hold the model.
    fn evaluate(&self, query: &Query<'_>) -> Result<Evaluation, Misfit>;

    /// Latencies of one replica that takes `rps` of the query's mix, each the worst over the pool's SLO classes
    /// relative to its objective. `None` if the shape does not hold the model or is overloaded.
    fn predict(&self, query: &Query<'_>, rps: f64) -> Option<Prediction>;

    /// Step-time coefficients for routing; `None` if the shape does not hold the model.
    fn coefficients(&self, query: &Query<'_>) -> Option<plimsoll_fleet::StepCoefficients>;
}

/// Answers of the engine model by everything that enters them, so that re-planning asks only what is new.
///
/// Answers depend on the question alone, never on what was asked before: a plan is the same with a warm and a cold
/// cache. Entries not used for [`ShapeCache::KEEP_PLANS`] plans are dropped.
#[derive(Debug, Default)]
pub struct ShapeCache {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    generation: u64,
    entries: HashMap<String, (u64, Answer)>,
}

type Answer = Arc<Result<Evaluation, Misfit>>;

impl ShapeCache {
    /// Plans after which an unused answer is dropped.
    pub const KEEP_PLANS: u64 = 10;

    /// Starts a plan: forgets answers that recent plans did not use.
    pub fn next_plan(&self) {
        let mut inner = self.inner.lock();
        inner.generation += 1;
        let oldest = inner.generation.saturating_sub(Self::KEEP_PLANS);
        inner.entries.retain(|_, (used, _)| *used >= oldest);
    }

    /// Answers held.
    pub fn len(&self) -> usize {
        self.inner.lock().entries.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The answer to a question, from memory or the model.
    pub fn evaluate(&self, model: &dyn Performance, query: &Query<'_>) -> Answer {
        let key = key(query);
        {
            let mut inner = self.inner.lock();
            let generation = inner.generation;
            if let Some((used, answer)) = inner.entries.get_mut(&key) {
                *used = generation;
                return Arc::clone(answer);
            }
        }
        let answer = Arc::new(model.evaluate(query));
        let mut inner = self.inner.lock();
        let generation = inner.generation;
        inner.entries.insert(key, (generation, Arc::clone(&answer)));
        answer
    }
}

/// Everything that enters an answer, as text (`Debug` of a float is its shortest exact form).
fn key(q: &Query<'_>) -> String {
    use std::fmt::Write as _;
    let mut key = String::with_capacity(512);
    let a = q.accelerator;
    // Prices and selectors do not enter the physics and change more often than it.
    let power = (a.idle_watts, a.tdp_watts, a.power_cap_watts);
    let facts = (
        power,
        &a.flops_per_second,
        a.memory_bytes,
        a.memory_bytes_per_second,
        a.link_domain_size,
        a.link_bytes_per_second,
        a.nic_bytes_per_second,
    );
    let _ = write!(
        key,
        "{:?}|{:?}|{:?}|{:?}|{:?}|{:?}|{:?}|{:?}|{:?}|",
        q.pool.architecture,
        q.pool.max_context_tokens,
        (&q.variant.name, q.variant.weights, q.variant.kv),
        facts,
        a.calibration,
        q.shape,
        q.engine,
        q.arrival_scv,
        q.margin
    );
    for c in q.classes {
        let slo = q.slo(&c.slo_class);
        let _ = write!(
            key,
            "{:?}/{:?}/{:?}/{:?}/{:?};",
            c.input_tokens, c.output_tokens, c.cached_fraction, c.rps, slo
        );
    }
    key
}
