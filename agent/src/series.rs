//! The series of a class's requests and of choices: looked up once, not with every request.

use std::sync::OnceLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use crate::metrics::{AgentLabels, AgentMetrics, OutcomeLabels, ReasonLabels, RequestLabels};
use crate::proxy::account::Outcome;
use crate::route::Reason;

/// Those of one class of one pool.
#[derive(Debug)]
pub(crate) struct Series {
    metrics: AgentMetrics,
    labels: RequestLabels,
    outcomes: [OnceLock<Counter>; Outcome::ALL.len()],
    ttft_seconds: OnceLock<Histogram>,
    finished: OnceLock<FinishedSeries>,
}

/// Those of requests that finished.
#[derive(Debug)]
pub(crate) struct FinishedSeries {
    pub(crate) e2e_seconds: Histogram,
    pub(crate) prompt_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) output_tokens: Counter,
}

impl Series {
    pub(crate) fn new(metrics: &AgentMetrics, labels: RequestLabels) -> Self {
        Self {
            metrics: metrics.clone(),
            labels,
            outcomes: Default::default(),
            ttft_seconds: OnceLock::new(),
            finished: OnceLock::new(),
        }
    }

    /// Requests that ended so.
    pub(crate) fn outcome(&self, outcome: Outcome) -> &Counter {
        self.outcomes[outcome as usize].get_or_init(|| {
            let RequestLabels { agent, pool, class } = self.labels.clone();
            let labels = OutcomeLabels { agent, pool, class, outcome: outcome.as_str() };
            self.metrics.requests.get_or_create_owned(&labels)
        })
    }

    pub(crate) fn ttft_seconds(&self) -> &Histogram {
        self.ttft_seconds.get_or_init(|| self.metrics.ttft_seconds.get_or_create_owned(&self.labels))
    }

    pub(crate) fn finished(&self) -> &FinishedSeries {
        self.finished.get_or_init(|| FinishedSeries {
            e2e_seconds: self.metrics.e2e_seconds.get_or_create_owned(&self.labels),
            prompt_tokens: self.metrics.prompt_tokens.get_or_create_owned(&self.labels),
            cached_tokens: self.metrics.cached_tokens.get_or_create_owned(&self.labels),
            output_tokens: self.metrics.output_tokens.get_or_create_owned(&self.labels),
        })
    }
}

/// Those of an agent's choices.
#[derive(Debug, Default)]
pub(crate) struct ChoiceSeries {
    seconds: OnceLock<Histogram>,
    reasons: [OnceLock<Counter>; Reason::ALL.len()],
}

impl ChoiceSeries {
    /// How long choices take.
    pub(crate) fn seconds(&self, metrics: &AgentMetrics, agent: &str) -> &Histogram {
        self.seconds.get_or_init(|| {
            metrics.choice_seconds.get_or_create_owned(&AgentLabels { agent: agent.to_owned() })
        })
    }

    /// Choices made for this reason.
    pub(crate) fn reason(&self, metrics: &AgentMetrics, agent: &str, reason: Reason) -> &Counter {
        self.reasons[reason as usize].get_or_init(|| {
            let labels = ReasonLabels { agent: agent.to_owned(), reason: reason.as_str() };
            metrics.choices.get_or_create_owned(&labels)
        })
    }
}
