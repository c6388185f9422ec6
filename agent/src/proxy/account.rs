//! The account of one client's request: begun when it arrives, settled exactly once.

use std::sync::Arc;

use plimsoll_fleet::ReplicaId;

use super::choosing::observe_reward;
use super::handover::Prefilled;
use crate::local::Permit;
use crate::replica::Flight;
use crate::shared::{Pool, Shared};
use crate::spend::Reservation;
use crate::sse::{Seen, Usage};
use crate::telemetry::{Finished, Missed, attained};

/// What an attempt needs to know of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// When the client's request came, model ms.
    pub(crate) begun_ms: f64,
    /// Prompt tokens, estimated.
    pub(crate) prompt_tokens: f64,
    /// Answer tokens, expected.
    pub(crate) expected_output: f64,
}

/// What holds the request's place at an engine.
#[derive(Debug)]
pub(crate) enum Place {
    /// At an engine of this node.
    Here(Permit),
    /// At another node, or at an engine without an agent.
    There(Flight),
    /// At the decode half of a pair; what the prefill half does ends with it.
    Pair(Box<Self>, Arc<Prefilled>),
}

impl Place {
    pub(crate) fn produced(&mut self, tokens: f64) {
        match self {
            Self::Here(permit) => permit.produced(tokens),
            Self::There(flight) => flight.produced(tokens),
            Self::Pair(place, _) => place.produced(tokens),
        }
    }

    /// Who computed the prompt, where that was somebody else.
    pub(crate) fn prefilled_by(&self) -> Option<&Arc<Prefilled>> {
        match self {
            Self::Here(_) | Self::There(_) => None,
            Self::Pair(_, prefill) => Some(prefill),
        }
    }

    /// The answer has come to its own end. `tokens`: its length, where the engine said it.
    pub(crate) fn finished(&self, tokens: Option<f64>) {
        match self {
            Self::Here(permit) => permit.finished(tokens),
            Self::There(_) => {}
            Self::Pair(place, _) => place.finished(tokens),
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Finished,
    Refused,
    Failed,
    /// The engine found fault with the request.
    Invalid,
    Cancelled,
}

impl Outcome {
    /// All of them, in order.
    pub(crate) const ALL: [Self; 5] =
        [Self::Finished, Self::Refused, Self::Failed, Self::Invalid, Self::Cancelled];

    /// For metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Invalid => "invalid",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One request's account. Dropped unsettled, it counts as cancelled: the client has gone.
#[derive(Debug)]
pub(crate) struct Account {
    shared: Arc<Shared>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) class: String,
    begun_ms: f64,
    first_token_ms: Option<f64>,
    last_token_ms: f64,
    token_events: u64,
    /// Who serves it, while that is one replica alone.
    served_by: Option<ReplicaId>,
    /// What the prefill half of a pair did for it.
    prefilled_by: Option<Arc<Prefilled>>,
    pub(crate) prompt_bytes: usize,
    pub(crate) prompt_estimate: f64,
    pub(crate) expected_output: f64,
    pub(crate) reservation: Reservation,
    /// The replica that serves it, by its key, if much of the prompt was believed to be cached there.
    pub(crate) much_cached: Option<u64>,
    /// The compound task that it is a call of.
    pub(crate) task: Option<u64>,
    /// The choice of its adapter among a group, by its ticket, and the group.
    chosen: Option<(u64, Arc<str>)>,
    /// Whether it is demand for the engine's accelerators, to be reported as such.
    counted: bool,
    /// Its answer went another way: how long it took is not known.
    unseen: bool,
    settled: bool,
}

impl Account {
    pub(crate) fn begin(
        shared: Arc<Shared>,
        pool: Arc<Pool>,
        class: String,
        prompt_bytes: usize,
        counted: bool,
    ) -> Self {
        let begun_ms = shared.clock.now_ms();
        if counted {
            shared.book.lock().arrived(&pool.view.route.pool, &class, begun_ms);
        }
        shared.retries.lock().earn();
        Self {
            shared,
            pool,
            class,
            begun_ms,
            first_token_ms: None,
            last_token_ms: begun_ms,
            token_events: 0,
            served_by: None,
            prefilled_by: None,
            prompt_bytes,
            prompt_estimate: 0.0,
            expected_output: 0.0,
            reservation: Reservation::default(),
            much_cached: None,
            task: None,
            chosen: None,
            counted,
            unseen: false,
            settled: false,
        }
    }

    /// The answer's body is not shown here: the request is counted, its times are not.
    pub(crate) fn unseen(&mut self) {
        self.unseen = true;
    }

    /// Its adapter was chosen among a group: how it goes teaches something.
    pub(crate) fn chosen(&mut self, ticket: u64, group: Arc<str>) {
        self.chosen = Some((ticket, group));
    }

    /// Whether somebody may want to judge its answer, by the name that it has.
    pub(crate) fn wants_id(&self) -> bool {
        self.chosen.is_some()
    }

    /// The answer has this name.
    pub(crate) fn answered_as(&self, id: &str) {
        if let Some((ticket, _)) = &self.chosen {
            self.shared.groups.lock().named(*ticket, id);
        }
    }

    /// What came of it teaches something of the adapter that was chosen, as long as nobody judges.
    fn teach(&self, attained: f64) {
        let Some((ticket, group)) = &self.chosen else { return };
        if self.shared.groups.lock().ended(*ticket, attained) {
            observe_reward(&self.shared, &self.pool, group, "objectives", attained);
        }
    }

    pub(crate) fn begun_ms(&self) -> f64 {
        self.begun_ms
    }

    pub(crate) fn sizes(&self) -> Sizes {
        Sizes {
            begun_ms: self.begun_ms,
            prompt_tokens: self.prompt_estimate,
            expected_output: self.expected_output,
        }
    }

    /// A replica has begun to answer it.
    pub(crate) fn served_by(&mut self, replica: &ReplicaId) {
        self.served_by = Some(replica.clone());
    }

    /// The prompt was computed elsewhere.
    pub(crate) fn prefilled_by(&mut self, prefill: Arc<Prefilled>) {
        self.prefilled_by = Some(prefill);
    }

    /// The replica that answered failed: whoever goes on with the answer is not judged by it.
    pub(crate) fn broke_off(&mut self) {
        if let Some(replica) = self.served_by.take() {
            self.shared.book.lock().replica_failed(&replica);
        }
    }

    /// Takes note of what a stream has shown; returns how many token events are new.
    pub(crate) fn saw(&mut self, seen: &Seen) -> u64 {
        let new = seen.token_events - self.token_events;
        if new > 0 {
            let now = self.shared.clock.now_ms();
            self.first_token_ms.get_or_insert(now);
            self.last_token_ms = now;
            self.token_events = seen.token_events;
        }
        new
    }

    /// The request is over.
    pub(crate) fn settle(&mut self, outcome: Outcome, usage: Option<Usage>) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        if outcome == Outcome::Failed {
            self.broke_off();
        }
        let now = self.shared.clock.now_ms();
        if let Some(task) = self.task {
            self.shared.tasks.lock().ended(now, task);
        }
        let pool = &self.pool.view.route.pool;
        // Budgets pay for what an answer was expected to take where nobody saw it.
        let counted = if self.unseen { self.expected_output.round() as u64 } else { self.token_events };
        let output = usage.map_or(counted, |u| u.completion_tokens);
        let input = usage.map_or(self.prompt_estimate.round() as u64, |u| u.prompt_tokens);
        let used = match outcome {
            Outcome::Refused => 0.0,
            Outcome::Failed | Outcome::Invalid if self.token_events == 0 && usage.is_none() => 0.0,
            _ => (input + output) as f64,
        };
        self.shared.spend.lock().settle(std::mem::take(&mut self.reservation), used);
        let series = self.pool.series(&self.shared.config, &self.class);
        series.outcome(outcome).inc();
        if outcome == Outcome::Failed {
            self.teach(0.0);
        }
        match outcome {
            _ if !self.counted => {}
            Outcome::Finished if self.unseen => {}
            Outcome::Refused => self.shared.book.lock().refused(pool, &self.class),
            Outcome::Failed => self.shared.book.lock().failed(pool, &self.class),
            Outcome::Invalid | Outcome::Cancelled => {}
            Outcome::Finished => {
                let e2e_ms = now - self.begun_ms;
                let ttft_ms = self.first_token_ms.map(|t| t - self.begun_ms);
                // Several tokens may come in one event: usage knows, events do not.
                let tpot_ms = self
                    .first_token_ms
                    .filter(|_| output > 1)
                    .map(|t| (self.last_token_ms - t) / (output - 1) as f64);
                let class = self.pool.view.route.slo_classes.iter().find(|c| c.name == self.class);
                self.teach(attained(class, ttft_ms, tpot_ms, e2e_ms, output));
                let finished = Finished {
                    input_tokens: input,
                    output_tokens: output,
                    // Of a pair the prefill half knows: to the other all that came over is cached.
                    cached_tokens: match &self.prefilled_by {
                        Some(prefill) => prefill.cached_tokens().unwrap_or(0).min(input),
                        None => usage.map_or(0, |u| u.cached_tokens()),
                    },
                    ttft_ms,
                    tpot_ms,
                    e2e_ms,
                    missed: Missed::of(class, ttft_ms, tpot_ms, e2e_ms, output),
                };
                {
                    let mut book = self.shared.book.lock();
                    book.finished(pool, &self.class, &finished);
                    if let Some(replica) = &self.served_by {
                        // A decode replica computes no prompt: to its own work all of it was cached.
                        let computed = self.prefilled_by.is_none();
                        let cached_tokens = if computed { finished.cached_tokens } else { input };
                        book.replica_finished(replica, &self.class, &Finished { cached_tokens, ..finished });
                    }
                }
                // Only who serves it alone can be judged by it.
                if let (Some(replica), Some(cached)) = (
                    self.much_cached.filter(|_| self.served_by.is_some()),
                    usage.and_then(|u| u.prompt_tokens_details?.cached_tokens),
                ) {
                    self.pool.memory.router.lock().found(replica, cached);
                }
                if let Some(usage) = usage {
                    self.pool.memory.stats.lock().learn(
                        &self.class,
                        self.prompt_bytes,
                        usage.prompt_tokens,
                        usage.completion_tokens,
                    );
                }
                if let Some(ttft) = ttft_ms {
                    series.ttft_seconds().observe(ttft / 1000.0);
                }
                let of_finished = series.finished();
                of_finished.e2e_seconds.observe(e2e_ms / 1000.0);
                of_finished.prompt_tokens.inc_by(finished.input_tokens);
                of_finished.cached_tokens.inc_by(finished.cached_tokens);
                of_finished.output_tokens.inc_by(finished.output_tokens);
            }
        }
        tracing::debug!(
            pool = %pool, class = %self.class, outcome = outcome.as_str(), input, output,
            e2e_ms = now - self.begun_ms, "request over"
        );
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle(Outcome::Cancelled, None);
    }
}
