//! The engine behind the server, as a pure state machine in virtual time: requests in, token events out.

use std::collections::{BTreeMap, HashMap};

use plimsoll_engine::sim::{Replica, SimRequest, SimStats, StepOutcome};

use super::metrics::{EngineMetrics, Finished};

/// Steps that one call of [`Core::advance`] takes at most, so that a server that lags lets others run in
/// between.
const MAX_STEPS_PER_CALL: usize = 256;

/// No step is shorter: time always advances.
const MIN_STEP_MS: f64 = 0.001;

/// A request's progress, as a step's end brought it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// The request.
    pub(crate) id: u64,
    /// Tokens it has received in all.
    pub(crate) tokens: u32,
    /// Prompt tokens that were in the prefix cache.
    pub(crate) cached_tokens: u32,
    /// What became of it.
    pub(crate) state: State,
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// More tokens will come.
    Going,
    /// The last token came.
    Done,
    /// The engine cannot serve it.
    Refused,
}

/// When to call [`Core::advance`] again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Next {
    /// At once: there was more to catch up with than one call may do.
    Now,
    /// At this virtual time.
    At(f64),
    /// When a request comes.
    Idle,
}

/// A request that has not ended.
struct Live {
    arrival_ms: f64,
    first_ms: Option<f64>,
    last_ms: f64,
    prompt_tokens: u32,
    tokens: u32,
    cached_tokens: u32,
    /// What the answer's length means: reached by itself or cut by `max_tokens`.
    ends: Finished,
}

/// A step under way.
struct Pending {
    end_ms: f64,
    outcome: StepOutcome,
}

/// A request and what the server knows of it.
pub(crate) struct Arrival {
    /// What the replica is asked.
    pub(crate) request: SimRequest,
    /// When the HTTP request came, virtual milliseconds.
    pub(crate) arrival_ms: f64,
    /// When the engine may see it: after API time and an adapter's load.
    pub(crate) ready_ms: f64,
    /// How its end is counted.
    pub(crate) ends: Finished,
}

/// The engine: a replica, the requests on their way to it, and the step under way.
pub(crate) struct Core {
    replica: Replica,
    /// Requests that the replica must not see yet, by the time when it may (bits of a non-negative float order
    /// as it does).
    inbox: BTreeMap<(u64, u64), SimRequest>,
    pending: Option<Pending>,
    live: HashMap<u64, Live>,
    /// The latest step boundary, virtual milliseconds.
    time_ms: f64,
    /// Steps take this many times as long as the replica's model says.
    slowdown: f64,
    metrics: EngineMetrics,
}

impl Core {
    pub(crate) fn new(replica: Replica) -> Self {
        Self::slowed(replica, 1.0)
    }

    /// An engine that takes `slowdown` times as long for everything as its model says.
    pub(crate) fn slowed(replica: Replica, slowdown: f64) -> Self {
        Self {
            replica,
            inbox: BTreeMap::new(),
            pending: None,
            live: HashMap::new(),
            time_ms: 0.0,
            slowdown,
            metrics: EngineMetrics::default(),
        }
    }

    /// What it has counted.
    pub(crate) fn metrics(&self) -> &EngineMetrics {
        &self.metrics
    }

    /// The replica's counters and gauges; requests that could be in its queue by `now_ms` count as waiting.
    pub(crate) fn stats(&self, now_ms: f64) -> SimStats {
        let mut stats = self.replica.stats();
        stats.waiting += self.inbox.range(..=(now_ms.max(0.0).to_bits(), u64::MAX)).count();
        stats
    }

    /// Takes a request.
    pub(crate) fn submit(&mut self, arrival: Arrival) {
        let Arrival { request, arrival_ms, ready_ms, ends } = arrival;
        self.live.insert(
            request.id,
            Live {
                arrival_ms,
                first_ms: None,
                last_ms: arrival_ms,
                prompt_tokens: request.prompt_tokens,
                tokens: 0,
                cached_tokens: 0,
                ends,
            },
        );
        self.inbox.insert((ready_ms.max(0.0).to_bits(), request.id), request);
    }

    /// Forgets a request whose client went away; its KV cache is free at once.
    pub(crate) fn cancel(&mut self, id: u64) {
        if self.live.remove(&id).is_none() {
            return;
        }
        self.inbox.retain(|(_, waiting), _| *waiting != id);
        self.replica.cancel(id);
        self.metrics.count_finished(Finished::Abort);
    }

    /// Nothing happened for a while until `now_ms`: what was under way ends that much later.
    pub(crate) fn skip(&mut self, stalled_ms: f64, now_ms: f64) {
        match &mut self.pending {
            Some(pending) => pending.end_ms += stalled_ms,
            None => self.time_ms = self.time_ms.max(now_ms),
        }
    }

    /// Does all that is due by `now_ms` and says when more is. A caller that comes late changes no time within:
    /// steps follow each other in virtual time.
    pub(crate) fn advance(&mut self, now_ms: f64, deliveries: &mut Vec<Delivery>) -> Next {
        for _ in 0..MAX_STEPS_PER_CALL {
            match self.pending.take() {
                Some(pending) if pending.end_ms > now_ms => {
                    let at = pending.end_ms;
                    self.pending = Some(pending);
                    return Next::At(at);
                }
                Some(pending) => {
                    self.time_ms = pending.end_ms;
                    self.finish_step(&pending, deliveries);
                }
                None => {}
            }
            self.admit(deliveries);
            let start_ms = self.time_ms;
            if let Some(outcome) = self.replica.step(start_ms) {
                let end_ms = start_ms + (outcome.duration_ms * self.slowdown).max(MIN_STEP_MS);
                self.pending = Some(Pending { end_ms, outcome });
                continue;
            }
            // Nothing to do until the next arrival.
            let Some(((bits, _), _)) = self.inbox.first_key_value() else { return Next::Idle };
            let ready_ms = f64::from_bits(*bits);
            if ready_ms > now_ms {
                return Next::At(ready_ms);
            }
            self.time_ms = self.time_ms.max(ready_ms);
        }
        Next::Now
    }

    /// Gives the replica what it may see by now.
    fn admit(&mut self, deliveries: &mut Vec<Delivery>) {
        while let Some(entry) = self.inbox.first_entry() {
            if f64::from_bits(entry.key().0) > self.time_ms {
                return;
            }
            let ready_ms = f64::from_bits(entry.key().0);
            let request = entry.remove();
            let id = request.id;
            if let Err(error) = self.replica.submit(ready_ms, request) {
                tracing::warn!(id, %error, "the engine refused a request");
                self.live.remove(&id);
                deliveries.push(Delivery { id, tokens: 0, cached_tokens: 0, state: State::Refused });
            }
        }
    }

    fn finish_step(&mut self, pending: &Pending, deliveries: &mut Vec<Delivery>) {
        let now = pending.end_ms;
        for event in &pending.outcome.tokens {
            let Some(live) = self.live.get_mut(&event.id) else { continue };
            self.metrics.generation_tokens += 1;
            live.tokens += 1;
            if live.first_ms.is_none() {
                live.cached_tokens = event.cached_tokens;
                live.first_ms = Some(now);
                self.metrics.prompt_tokens += u64::from(live.prompt_tokens);
                self.metrics.ttft.record_ms(now - live.arrival_ms);
                self.metrics.queue.record_ms(event.queue_ms);
            } else {
                self.metrics.itl.record_ms(now - live.last_ms);
            }
            live.last_ms = now;
            let state = if event.finished { State::Done } else { State::Going };
            deliveries.push(Delivery {
                id: event.id,
                tokens: live.tokens,
                cached_tokens: live.cached_tokens,
                state,
            });
            if event.finished {
                self.metrics.e2e.record_ms(now - live.arrival_ms);
                if live.tokens > 1 {
                    let decode_ms = now - live.first_ms.unwrap_or(now);
                    self.metrics.tpot.record_ms(decode_ms / f64::from(live.tokens - 1));
                }
                self.metrics.count_finished(live.ends);
                self.live.remove(&event.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_engine::sim::SimPolicy;

    use super::super::EngineServerConfig;
    use super::*;

    fn core() -> Core {
        let c = EngineServerConfig::from_presets("llama-3.1-8b", "l4", 1, "bf16").unwrap();
        Core::new(Replica::new(c.replica_model().unwrap(), SimPolicy::default()))
    }

    fn arrival(id: u64, at_ms: f64) -> Arrival {
        let request = SimRequest { id, prompt_tokens: 500, output_tokens: 20, ..SimRequest::default() };
        Arrival { request, arrival_ms: at_ms, ready_ms: at_ms + 17.0, ends: Finished::Length }
    }

    /// Requests arrive every 100 ms, whenever the caller comes to look: after every `tick` ms.
    fn run(tick: f64) -> (Vec<Delivery>, EngineMetrics) {
        let mut core = core();
        let mut deliveries = Vec::new();
        let mut now = 0.0;
        let mut next = 0u32;
        while now < 60_000.0 {
            now += tick;
            while next < 30 && f64::from(next) * 100.0 <= now {
                core.submit(arrival(u64::from(next), f64::from(next) * 100.0));
                next += 1;
            }
            while core.advance(now, &mut deliveries) == Next::Now {}
        }
        (deliveries, core.metrics().clone())
    }

    #[test]
    fn a_late_caller_changes_no_time() {
        let (often, exact) = run(1.0);
        let (seldom, late) = run(50.0);
        assert_eq!(often, seldom);
        assert_eq!(often.iter().filter(|d| d.state == State::Done).count(), 30);
        assert_eq!(often.len(), 600);
        assert_eq!(format!("{exact:?}"), format!("{late:?}"));
    }

    #[test]
    fn a_stall_moves_what_was_under_way() {
        let mut core = core();
        let mut deliveries = Vec::new();
        core.submit(arrival(1, 0.0));
        assert_eq!(core.advance(0.0, &mut deliveries), Next::At(17.0));
        let Next::At(end) = core.advance(17.0, &mut deliveries) else { panic!("a step is under way") };
        core.skip(1000.0, 1017.0);
        assert_eq!(core.advance(1017.0, &mut deliveries), Next::At(end + 1000.0));
        assert!(deliveries.is_empty());
    }

    #[test]
    fn cancelling_frees_and_counts_once() {
        let mut core = core();
        let mut deliveries = Vec::new();
        core.submit(arrival(1, 0.0));
        core.submit(arrival(2, 5000.0));
        core.advance(30.0, &mut deliveries);
        assert_eq!(core.stats(30.0).running, 1);
        for id in [1, 1, 2, 3] {
            core.cancel(id);
        }
        assert_eq!(core.stats(1e9).running + core.stats(1e9).waiting, 0);
        assert_eq!(core.metrics().finished, [0, 0, 2]);
        while core.advance(1e9, &mut deliveries) != Next::Idle {}
        assert!(deliveries.is_empty());
    }

    #[test]
    fn what_the_engine_refuses_is_reported() {
        let mut core = core();
        let mut deliveries = Vec::new();
        let mut a = arrival(1, 0.0);
        a.request.prompt_tokens = 0;
        core.submit(a);
        assert_eq!(core.advance(20.0, &mut deliveries), Next::Idle);
        assert_eq!(deliveries[0].state, State::Refused);
    }
}
