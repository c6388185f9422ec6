//! One engine with the admission of the agent beside it.

use plimsoll_agent::admit::{Admission, Limits, Offer, RefusalReason, Verdict, Wish};
use plimsoll_agent::route::{Availability, ReplicaLoad};
use plimsoll_engine::ReplicaModel;
use plimsoll_engine::sim::{Replica, SimPolicy, SimRequest};
use plimsoll_fleet::telemetry::EngineReport;
use plimsoll_fleet::{NodeName, ReplicaId, StepCoefficients};

use crate::engine_server::core::{Arrival, Core, Delivery, Next};
use crate::engine_server::metrics::Finished;

/// Requests that may wait for admission to one engine, as the agent has it.
const MAX_QUEUE: usize = 256;
/// How long an engine must have been empty to count as drained, as the agent has it, ms.
const DRAIN_SETTLE_MS: f64 = 1000.0;

/// An engine and its admission.
pub(super) struct Engine {
    pub(super) node: NodeName,
    pub(super) admission: Admission,
    core: Core,
    coefficients: StepCoefficients,
    api_ms: f64,
    block_tokens: u32,
    empty_since: Option<f64>,
    /// When a look at it is due already.
    pub(super) due_ms: f64,
}

impl Engine {
    /// An idle engine whose steps take `slowdown` times as long as the model says.
    pub(super) fn new(node: NodeName, model: ReplicaModel, slowdown: f64) -> Self {
        let coefficients = model.coefficients(1024.0);
        Self {
            node,
            admission: Admission::new(Limits::from_coefficients(&coefficients, MAX_QUEUE)),
            api_ms: model.api_overhead_ms() * slowdown,
            block_tokens: model.config().block_tokens,
            core: Core::slowed(Replica::new(model, SimPolicy::default()), slowdown),
            coefficients,
            empty_since: None,
            due_ms: f64::INFINITY,
        }
    }

    /// Tokens in one block of its prefix cache.
    pub(super) fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    /// What the routes say of it.
    pub(super) fn configure(&mut self, coefficients: &StepCoefficients) {
        if self.coefficients != *coefficients {
            self.coefficients = *coefficients;
            self.admission.set_limits(Limits::from_coefficients(coefficients, MAX_QUEUE));
        }
    }

    /// Its load, as routers know it.
    pub(super) fn load(&self) -> ReplicaLoad {
        let a = &self.admission;
        ReplicaLoad {
            availability: if a.draining() { Availability::Draining } else { Availability::Ready },
            running: a.running() as f64,
            waiting: a.waiting() as f64,
            context_tokens: a.context_tokens(),
            prefill_tokens: a.prefill_tokens(),
        }
    }

    /// Asks for admission.
    pub(super) fn offer(&mut self, now_ms: f64, id: u64, wish: &Wish) -> (Offer, Option<Verdict>) {
        let ask = wish.ask(id, now_ms, &self.coefficients, &self.load());
        self.admission.offer(now_ms, ask)
    }

    /// An admitted request goes to the engine.
    pub(super) fn start(&mut self, now_ms: f64, request: SimRequest) {
        let (arrival_ms, ready_ms) = (now_ms, now_ms + self.api_ms);
        self.core.submit(Arrival { request, arrival_ms, ready_ms, ends: Finished::Length });
    }

    /// Does all that is due by now; when more is.
    pub(super) fn advance(&mut self, now_ms: f64, deliveries: &mut Vec<Delivery>) -> Option<f64> {
        loop {
            match self.core.advance(now_ms, deliveries) {
                Next::Now => {}
                Next::At(at) => return Some(at),
                Next::Idle => return None,
            }
        }
    }

    /// Refuses all who wait: the engine goes.
    pub(super) fn close(&mut self) -> Vec<Verdict> {
        self.admission.refuse_waiting(RefusalReason::EngineDown)
    }

    /// What its agent reports.
    pub(super) fn report(&mut self, replica: &ReplicaId, now_ms: f64) -> EngineReport {
        let stats = self.core.stats(now_ms);
        let empty = self.admission.running() == 0 && self.admission.waiting() == 0;
        self.empty_since = if empty { self.empty_since.or(Some(now_ms)) } else { None };
        let settled = self.empty_since.is_some_and(|since| now_ms - since >= DRAIN_SETTLE_MS);
        EngineReport {
            replica: replica.clone(),
            healthy: true,
            stalled: false,
            running: Some(stats.running as f64),
            waiting: Some(stats.waiting as f64),
            kv_usage: Some(stats.kv_usage),
            outstanding_tokens: self.admission.context_tokens() + self.admission.prefill_tokens(),
            adapters: Vec::new(),
            adapter_failures: Vec::new(),
            adapter_states: Vec::new(),
            drained: self.admission.draining() && settled,
        }
    }
}
