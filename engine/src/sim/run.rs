//! Runs of the simulated engine over a list of requests.

use std::collections::HashMap;

use super::{Replica, SimRequest, SubmitError};

/// A request and when its client sends it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Arrival {
    /// When, milliseconds; anything but a number above 0 is taken as 0.
    pub at_ms: f64,
    /// What.
    pub request: SimRequest,
}

/// What a client saw.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestOutcome {
    /// Request.
    pub id: u64,
    /// When it was sent, milliseconds.
    pub sent_ms: f64,
    /// Time to first token, API time included, milliseconds (infinite if refused).
    pub ttft_ms: f64,
    /// Mean time per token after the first, milliseconds; `None` for answers of one token.
    pub tpot_ms: Option<f64>,
    /// End to end, milliseconds (infinite if refused).
    pub e2e_ms: f64,
    /// Prompt tokens found in the cache.
    pub cached_tokens: u32,
    /// How often it was preempted.
    pub preemptions: u32,
    /// Answer tokens.
    pub output_tokens: u32,
    /// Why the engine refused it.
    pub rejected: Option<SubmitError>,
}

impl RequestOutcome {
    fn new(arrival_ms: f64, id: u64) -> Self {
        Self {
            id,
            sent_ms: arrival_ms,
            ttft_ms: f64::INFINITY,
            tpot_ms: None,
            e2e_ms: f64::INFINITY,
            cached_tokens: 0,
            preemptions: 0,
            output_tokens: 0,
            rejected: None,
        }
    }
}

/// Requests in flight, and what became of them.
struct Run {
    replica: Replica,
    now_ms: f64,
    outcomes: Vec<RequestOutcome>,
    /// Position in `outcomes` by request.
    at: HashMap<u64, usize>,
}

impl Run {
    fn new(replica: Replica, capacity: usize) -> Self {
        Self {
            replica,
            now_ms: 0.0,
            outcomes: Vec::with_capacity(capacity),
            at: HashMap::with_capacity(capacity),
        }
    }

    /// Hands a request to the engine. Returns whether it was taken.
    fn submit(&mut self, sent_ms: f64, at_engine_ms: f64, request: SimRequest) -> bool {
        let id = request.id;
        let mut outcome = RequestOutcome::new(sent_ms, id);
        let result = self.replica.submit(at_engine_ms, request);
        let taken = result.is_ok();
        outcome.rejected = result.err();
        if taken {
            self.at.insert(id, self.outcomes.len());
        }
        self.outcomes.push(outcome);
        taken
    }

    /// One iteration, and those after it that start before `until_ms` and in which no request begins or ends. Returns
    /// how many requests finished, or `None` when idle.
    fn step(&mut self, until_ms: f64) -> Option<usize> {
        let step = self.replica.step_quietly(self.now_ms)?;
        self.now_ms += step.duration_ms;
        if step.tokens.is_empty() && step.preempted.is_empty() && step.load.prefill_tokens == 0.0 {
            self.now_ms = self.replica.coast(self.now_ms, until_ms);
            return Some(0);
        }
        let mut finished = 0;
        for id in &step.preempted {
            if let Some(o) = self.at.get(id).and_then(|i| self.outcomes.get_mut(*i)) {
                o.preemptions += 1;
            }
        }
        for token in step.tokens.iter().filter(|t| t.first || t.finished) {
            let Some(o) = self.at.get(&token.id).and_then(|i| self.outcomes.get_mut(*i)) else { continue };
            if token.first {
                o.ttft_ms = self.now_ms - o.sent_ms;
                o.cached_tokens = token.cached_tokens;
            }
            if token.finished {
                finished += 1;
                o.e2e_ms = self.now_ms - o.sent_ms;
                o.output_tokens = token.index + 1;
                if token.index > 0 {
                    o.tpot_ms = Some((o.e2e_ms - o.ttft_ms) / f64::from(token.index));
                }
                self.at.remove(&token.id);
            }
        }
        Some(finished)
    }
}

/// Open loop: requests arrive when they arrive. Outcomes are in order of arrival; the run ends when all are answered.
pub fn simulate(replica: Replica, arrivals: &[Arrival]) -> Vec<RequestOutcome> {
    let time = |a: &Arrival| if a.at_ms.is_finite() { a.at_ms.max(0.0) } else { 0.0 };
    let mut order: Vec<(f64, &Arrival)> = arrivals.iter().map(|a| (time(a), a)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let api_ms = replica.model().api_overhead_ms();
    let mut run = Run::new(replica, arrivals.len());
    let mut next = order.into_iter().peekable();
    loop {
        while let Some((at, arrival)) = next.next_if(|(at, _)| at + api_ms <= run.now_ms) {
            run.submit(at, at + api_ms, arrival.request.clone());
        }
        let until_ms = next.peek().map_or(f64::INFINITY, |(at, _)| at + api_ms);
        if run.step(until_ms).is_none() {
            match next.peek() {
                Some((at, _)) => run.now_ms = run.now_ms.max(at + api_ms),
                None => return run.outcomes,
            }
        }
    }
}

/// Closed loop: `concurrency` clients, each sending the next request of the list once its last is answered. Outcomes
/// are in order of sending.
pub fn simulate_closed(replica: Replica, requests: &[SimRequest], concurrency: usize) -> Vec<RequestOutcome> {
    let api_ms = replica.model().api_overhead_ms();
    let mut run = Run::new(replica, requests.len());
    let mut next = requests.iter().cloned();
    // (sent, at the engine): requests on their way through the API server.
    let mut coming: std::collections::VecDeque<(f64, SimRequest)> =
        next.by_ref().take(concurrency.max(1)).map(|r| (0.0, r)).collect();
    loop {
        let mut refused = 0;
        while let Some((sent, _)) = coming.front()
            && sent + api_ms <= run.now_ms
            && let Some((sent, request)) = coming.pop_front()
        {
            refused += usize::from(!run.submit(sent, sent + api_ms, request));
        }
        coming.extend(next.by_ref().take(refused).map(|r| (run.now_ms, r)));
        let until_ms = coming.front().map_or(f64::INFINITY, |(sent, _)| sent + api_ms);
        match run.step(until_ms) {
            Some(finished) => coming.extend(next.by_ref().take(finished).map(|r| (run.now_ms, r))),
            None => match coming.front() {
                Some((sent, _)) => run.now_ms = run.now_ms.max(sent + api_ms),
                None => return run.outcomes,
            },
        }
    }
}
