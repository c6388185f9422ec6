//! One engine as a state machine: one attention rank or several that step together.

use super::rank::{Rank, Tokens};
use super::request::{SimPolicy, SimRequest, SimStats, StepOutcome, SubmitError};
use crate::{ReplicaModel, StepLoad};

/// One engine replica: pure state, no clock.
///
/// ```
/// use plimsoll_engine::{EngineConfig, ReplicaModel, sim::{Replica, SimPolicy, SimRequest}};
/// # use plimsoll_fleet::{Dtype, Role, Shape, presets, shape::Variant};
/// # let mut arch = presets::model("llama-3.1-8b").ok_or("preset")?;
/// # arch.max_context_tokens = 8192;
/// # let acc = presets::accelerator("h100").ok_or("preset")?;
/// # let variant = Variant { name: "bf16".into(), weights: Dtype::Bf16, kv: Dtype::Bf16, quality: 1.0, source:
/// None };
/// # let shape = Shape { variant: "bf16".into(), accelerator: "h100".into(), tensor_parallel: 1,
/// pipeline_parallel: 1,
/// #     data_parallel: 1, expert_parallel: 1, role: Role::Mixed };
/// let model = ReplicaModel::new(&arch, &variant, &acc, &shape, &EngineConfig::default())?;
/// let mut engine = Replica::new(model, SimPolicy::default());
/// engine.submit(0.0, SimRequest { id: 1, prompt_tokens: 100, output_tokens: 3, ..SimRequest::default() })?;
/// let (mut now, mut tokens) = (0.0, 0);
/// while let Some(step) = engine.step(now) {
///     now += step.duration_ms;
///     tokens += step.tokens.len();
/// }
/// assert_eq!(tokens, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Replica {
    policy: SimPolicy,
    first: Rank,
    /// The ranks beside the first: each with requests and a cache of its own, in step with the others.
    others: Vec<Rank>,
    arrivals: u64,
    steps: u64,
}

impl Replica {
    /// An idle engine with an empty cache.
    pub fn new(model: ReplicaModel, policy: SimPolicy) -> Self {
        let others = model.times.ranks.count as usize - 1;
        Self {
            policy,
            others: vec![Rank::new(model.clone(), policy); others],
            first: Rank::new(model, policy),
            arrivals: 0,
            steps: 0,
        }
    }

    /// The performance model that sets step times.
    pub fn model(&self) -> &ReplicaModel {
        self.first.model()
    }

    fn ranks(&self) -> impl Iterator<Item = &Rank> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn ranks_mut(&mut self) -> impl Iterator<Item = &mut Rank> {
        std::iter::once(&mut self.first).chain(&mut self.others)
    }

    /// Puts a request into the queue of the rank with the least to do (a waiting request counts as four running ones, as
    /// in vLLM). API time ([`ReplicaModel::api_overhead_ms`]) is the caller's to add.
    ///
    /// # Errors
    /// [`SubmitError`] if the request is empty, longer than the context or the KV cache, a duplicate, or the queue is
    /// full.
    pub fn submit(&mut self, now_ms: f64, req: SimRequest) -> Result<(), SubmitError> {
        let id = req.id;
        self.first.check(&req)?;
        if let Some(max) = self.policy.max_waiting {
            let waiting = self.ranks().map(Rank::waiting).sum();
            if waiting >= max {
                return Err(SubmitError::QueueFull { id, waiting });
            }
        }
        if self.ranks().any(|rank| rank.has(id)) {
            return Err(SubmitError::Duplicate { id });
        }
        let arrival = self.arrivals;
        self.arrivals += 1;
        if let Some(rank) = self.ranks_mut().min_by_key(|rank| rank.load()) {
            rank.submit(now_ms, arrival, req);
        }
        Ok(())
    }

    /// Forgets a request wherever it is; an unknown one is ignored.
    pub fn cancel(&mut self, id: u64) {
        self.ranks_mut().for_each(|rank| rank.cancel(id));
    }

    /// Whether nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.ranks().all(Rank::is_idle)
    }

    /// Runs the next iteration, which starts at `now_ms`; `None` when there is nothing to do. Tokens appear, and
    /// finished requests leave, when it ends. Ranks wait for the slowest.
    pub fn step(&mut self, now_ms: f64) -> Option<StepOutcome> {
        self.step_telling(now_ms, Tokens::All)
    }

    /// The same, telling of first and last tokens only.
    pub(super) fn step_quietly(&mut self, now_ms: f64) -> Option<StepOutcome> {
        self.step_telling(now_ms, Tokens::Ends)
    }

    /// Runs steps that start before `until_ms` for as long as nothing but decoding happens in them; to be called after a
    /// step that did nothing else. Returns when the last of them ends.
    pub(super) fn coast(&mut self, now_ms: f64, until_ms: f64) -> f64 {
        // Ranks that step together are left to single steps.
        if !self.others.is_empty() {
            return now_ms;
        }
        let coasted = self.first.coast(now_ms, until_ms);
        self.steps += u64::from(coasted.steps);
        coasted.now_ms
    }

    fn step_telling(&mut self, now_ms: f64, tokens: Tokens) -> Option<StepOutcome> {
        if self.others.is_empty() {
            let mut out = self.first.step(now_ms, tokens)?;
            out.duration_ms = self.model().step_ms(&out.load);
            self.steps += 1;
            return Some(out);
        }
        let outcomes: Vec<StepOutcome> =
            self.ranks_mut().filter_map(|rank| rank.step(now_ms, tokens)).collect();
        if outcomes.is_empty() {
            return None;
        }
        self.steps += 1;
        let loads: Vec<StepLoad> = outcomes.iter().map(|o| o.load).collect();
        let mut all = StepOutcome::default();
        for StepOutcome { duration_ms: _, tokens, preempted, load } in outcomes {
            all.tokens.extend(tokens);
            all.preempted.extend(preempted);
            all.load.add(&load);
        }
        all.duration_ms = self.model().times.of_ranks(&loads, &all.load);
        Some(all)
    }

    /// Counters and gauges, of all ranks together.
    pub fn stats(&self) -> SimStats {
        let count = self.ranks().count() as f64;
        let sum = self.ranks().map(Rank::stats).fold(SimStats::default(), |a, b| SimStats {
            running: a.running + b.running,
            waiting: a.waiting + b.waiting,
            kv_usage: a.kv_usage + b.kv_usage / count,
            kv_blocks: a.kv_blocks + b.kv_blocks,
            prefix_query_tokens: a.prefix_query_tokens + b.prefix_query_tokens,
            prefix_hit_tokens: a.prefix_hit_tokens + b.prefix_hit_tokens,
            preemptions: a.preemptions + b.preemptions,
            prefill_tokens: a.prefill_tokens + b.prefill_tokens,
            generation_tokens: a.generation_tokens + b.generation_tokens,
            finished: a.finished + b.finished,
            steps: 0,
        });
        SimStats { steps: self.steps, ..sum }
    }
}
