//! Prometheus metrics `plimsoll_agent_*`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Labels of request metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Agent.
    pub agent: String,
    /// Pool.
    pub pool: String,
    /// SLO class.
    pub class: String,
}

/// Labels of the outcome counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// Agent.
    pub agent: String,
    /// Pool.
    pub pool: String,
    /// SLO class.
    pub class: String,
    /// `ok`, `refused`, `failed`, `cancelled` or `invalid`.
    pub outcome: &'static str,
}

/// Labels of choices, retries and refusals.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// Agent.
    pub agent: String,
    /// Why.
    pub reason: &'static str,
}

/// Labels of the counter of broken answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResumeLabels {
    /// Agent.
    pub agent: String,
    /// `resumed`, `finished` (only its formal end was missing) or `asked_again` (it did not stream); else why it was not:
    /// `unfit_request`, `unfit_stream`, `too_long`, `stop_string`, `too_often`, `retry_budget`, `deadline`, `no_replica`,
    /// `refused`, `failed`.
    pub outcome: &'static str,
}

/// Labels of the time that the phases of a request on two replicas take.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PhaseLabels {
    /// Agent.
    pub agent: String,
    /// Pool.
    pub pool: String,
    /// `prefill` (until the prefill replica has answered) or `hand_over` (from then on until the decode replica's first byte).
    pub phase: &'static str,
}

/// Labels of choices among a group's adapters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AdapterChoiceLabels {
    /// Agent.
    pub agent: String,
    /// Pool.
    pub pool: String,
    /// Group.
    pub group: String,
    /// `expected`, `exploring`, `at_hand` (another was wished for) or `loading` (none is at hand).
    pub why: &'static str,
}

/// Labels of rewards.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AdapterRewardLabels {
    /// Agent.
    pub agent: String,
    /// Pool.
    pub pool: String,
    /// Group.
    pub group: String,
    /// `feedback`, or `objectives` where nobody judges.
    pub source: &'static str,
}

/// Labels of engine gauges.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EngineLabels {
    /// Agent.
    pub agent: String,
    /// Replica.
    pub replica: String,
}

/// Labels of the agent's own gauges.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AgentLabels {
    /// Agent.
    pub agent: String,
}

fn seconds() -> Histogram {
    Histogram::new((0..16).map(|i| 0.005 * f64::from(1 << i)))
}

fn micros() -> Histogram {
    Histogram::new((0..16).map(|i| 1e-6 * f64::from(1 << i)))
}

fn shares() -> Histogram {
    Histogram::new((0..10).map(|i| 0.1 * f64::from(i)))
}

/// The agent's metrics; clones share the same series, so agents in one process may use one registry.
#[derive(Debug, Clone)]
pub struct AgentMetrics {
    /// Requests by outcome.
    pub requests: Family<OutcomeLabels, Counter>,
    /// Time to first token.
    pub ttft_seconds: Family<RequestLabels, Histogram, fn() -> Histogram>,
    /// End to end.
    pub e2e_seconds: Family<RequestLabels, Histogram, fn() -> Histogram>,
    /// Prompt tokens.
    pub prompt_tokens: Family<RequestLabels, Counter>,
    /// Prompt tokens from prefix caches.
    pub cached_tokens: Family<RequestLabels, Counter>,
    /// Answer tokens.
    pub output_tokens: Family<RequestLabels, Counter>,
    /// Requests waiting for a pool to wake.
    pub holding: Family<RequestLabels, Gauge>,
    /// Choices by reason.
    pub choices: Family<ReasonLabels, Counter>,
    /// Time a choice took.
    pub choice_seconds: Family<AgentLabels, Histogram, fn() -> Histogram>,
    /// Attempts beyond the first, by why.
    pub retries: Family<ReasonLabels, Counter>,
    /// Answers that broke off once begun, by what became of them.
    pub resumed: Family<ResumeLabels, Counter>,
    /// Requests for pairs of a prefill and a decode replica by what became of them: `ok`, or which side did not do its part:
    /// `prefill_refused`, `prefill_failed`, `decode_refused`, `decode_failed`; `invalid` where an engine found fault with the request, `not_split` where it cannot be
    /// split.
    pub hand_overs: Family<ReasonLabels, Counter>,
    /// Time of each phase of those.
    pub phase_seconds: Family<PhaseLabels, Histogram, fn() -> Histogram>,
    /// Requests sent past an agent that is gone, by why: `refused` or `reset`.
    pub bypasses: Family<ReasonLabels, Counter>,
    /// Refusals at this agent's own engines, by why.
    pub refusals: Family<ReasonLabels, Counter>,
    /// Choices among a group's adapters by why.
    pub adapter_choices: Family<AdapterChoiceLabels, Counter>,
    /// What the answers of a group's adapters were worth, 0..=1.
    pub adapter_reward: Family<AdapterRewardLabels, Histogram, fn() -> Histogram>,
    /// Judgements by what became of them: `taken`, `unknown_answer`, `judged_before` or `invalid_body`.
    pub feedback: Family<ReasonLabels, Counter>,
    /// Downloads of adapters into the node's cache, by what became of them: `ok`, `failed` or `busy` (refused: too many wait).
    pub adapter_downloads: Family<ReasonLabels, Counter>,
    /// Bytes that the node's cache of adapters takes.
    pub adapter_cache_bytes: Family<AgentLabels, Gauge>,
    /// Requests for adapters at this agent's engines, by how they found it: `held`, `loaded` (they waited for it) or `failed`.
    pub adapter_requests: Family<ReasonLabels, Counter>,
    /// Requests at an engine.
    pub engine_running: Family<EngineLabels, Gauge>,
    /// Requests waiting here for an engine.
    pub engine_waiting: Family<EngineLabels, Gauge>,
    /// 1 if an engine is healthy and not stalled.
    pub engine_up: Family<EngineLabels, Gauge>,
    /// 1 while the stream to the scheduler is open.
    pub scheduler_connected: Family<AgentLabels, Gauge>,
    /// Version of the route table in use.
    pub route_version: Family<AgentLabels, Gauge>,
}

impl Default for AgentMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            ttft_seconds: Family::new_with_constructor(seconds),
            e2e_seconds: Family::new_with_constructor(seconds),
            prompt_tokens: Family::default(),
            cached_tokens: Family::default(),
            output_tokens: Family::default(),
            holding: Family::default(),
            choices: Family::default(),
            choice_seconds: Family::new_with_constructor(micros),
            retries: Family::default(),
            resumed: Family::default(),
            hand_overs: Family::default(),
            phase_seconds: Family::new_with_constructor(seconds),
            bypasses: Family::default(),
            refusals: Family::default(),
            adapter_choices: Family::default(),
            adapter_reward: Family::new_with_constructor(shares),
            feedback: Family::default(),
            adapter_downloads: Family::default(),
            adapter_cache_bytes: Family::default(),
            adapter_requests: Family::default(),
            engine_running: Family::default(),
            engine_waiting: Family::default(),
            engine_up: Family::default(),
            scheduler_connected: Family::default(),
            route_version: Family::default(),
        }
    }
}

impl AgentMetrics {
    /// Makes the metrics and registers them as `plimsoll_agent_*`.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let r = registry.sub_registry_with_prefix("plimsoll_agent");
        r.register("requests", "Requests from clients by outcome", m.requests.clone());
        r.register("ttft_seconds", "Time to first token, model time", m.ttft_seconds.clone());
        r.register("e2e_seconds", "End-to-end time, model time", m.e2e_seconds.clone());
        r.register("prompt_tokens", "Prompt tokens of finished requests", m.prompt_tokens.clone());
        r.register("cached_tokens", "Prompt tokens served from prefix caches", m.cached_tokens.clone());
        r.register("output_tokens", "Answer tokens of finished requests", m.output_tokens.clone());
        r.register("holding", "Requests waiting for a pool to wake", m.holding.clone());
        r.register("choices", "Replica choices by reason", m.choices.clone());
        r.register("choice_seconds", "Real time one choice took", m.choice_seconds.clone());
        r.register("retries", "Attempts beyond the first by reason", m.retries.clone());
        r.register("resumed", "Answers that broke off once begun, by what became of them", m.resumed.clone());
        r.register(
            "hand_overs",
            "Requests for pairs of a prefill and a decode replica, by what became of them",
            m.hand_overs.clone(),
        );
        r.register(
            "phase_seconds",
            "Time of the phases of requests on pairs, model time",
            m.phase_seconds.clone(),
        );
        r.register("bypasses", "Agents found gone and bypassed, by how", m.bypasses.clone());
        r.register("refusals", "Requests refused for this agent's own engines by reason", m.refusals.clone());
        r.register("adapter_choices", "Choices among a group's adapters by why", m.adapter_choices.clone());
        r.register(
            "adapter_reward",
            "What the answers of a group's adapters were worth, 0 to 1",
            m.adapter_reward.clone(),
        );
        r.register("feedback", "Judgements of answers by what became of them", m.feedback.clone());
        r.register(
            "adapter_downloads",
            "Downloads of adapters into the node's cache, by what became of them",
            m.adapter_downloads.clone(),
        );
        r.register(
            "adapter_cache_bytes",
            "Bytes that the node's cache of adapters takes",
            m.adapter_cache_bytes.clone(),
        );
        r.register(
            "adapter_requests",
            "Requests for adapters at this agent's engines, by how they found it",
            m.adapter_requests.clone(),
        );
        r.register("engine_running", "Requests at an engine", m.engine_running.clone());
        r.register("engine_waiting", "Requests waiting at the agent for an engine", m.engine_waiting.clone());
        r.register("engine_up", "1 if the engine answers and moves", m.engine_up.clone());
        r.register(
            "scheduler_connected",
            "1 while the scheduler stream is open",
            m.scheduler_connected.clone(),
        );
        r.register("route_version", "Version of the route table in use", m.route_version.clone());
        m
    }
}
