//! Admission at an engine's own agent: what runs, what waits and in which order, what is refused.
//!
//! The engine gets as much as its batch and KV cache hold, plus a little backlog so that it never starves; the rest
//! waits here, where order still matters: tier first, then the latest moment at which a request may start and still
//! meet its objective (least slack). All times are milliseconds of one clock that the caller passes in.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use plimsoll_fleet::StepCoefficients;

/// Slack of a request without any objective, ms: it yields to those with one, but not for ever.
pub const SLACK_WITHOUT_OBJECTIVE_MS: f64 = 30_000.0;

/// What an engine is given at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// KV-cache capacity, tokens (0: unknown, no limit).
    pub kv_tokens: f64,
    /// Requests in one batch (0: unknown, no limit).
    pub max_running: u32,
    /// Requests beyond the batch that the engine may hold in its own queue.
    pub backlog_requests: u32,
    /// Prompt tokens not yet prefilled that the engine may hold (0: no limit).
    pub backlog_tokens: f64,
    /// Requests that may wait here.
    pub max_queue: usize,
}

impl Limits {
    /// From an engine's coefficients: two steps of prefill and a twentieth of the batch as backlog.
    pub fn from_coefficients(c: &StepCoefficients, max_queue: usize) -> Self {
        Self {
            kv_tokens: c.kv_tokens.max(0.0),
            max_running: c.max_running,
            backlog_requests: (c.max_running / 20).max(2),
            backlog_tokens: 2.0 * f64::from(c.max_batched_tokens),
            max_queue,
        }
    }
}

/// One request that asks for admission.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ask {
    /// Identity, unique among live requests of the engine.
    pub id: u64,
    /// Tier: higher goes first. One below zero does not wait where others do: it may be shed.
    pub priority: i32,
    /// Prompt tokens, estimated.
    pub prompt_tokens: f64,
    /// Answer tokens, expected.
    pub expected_output: f64,
    /// Predicted time to first token on this engine as it is now, ms.
    pub prefill_ms: f64,
    /// Predicted end to end once admitted, ms.
    pub service_ms: f64,
    /// When it must start to meet its objective (soft; `None`: it has none).
    pub start_by_ms: Option<f64>,
    /// When its answer is worthless (hard; `None`: never).
    pub deadline_ms: Option<f64>,
    /// Tokens of it will be seen as they come.
    pub streaming: bool,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// The queue is full.
    QueueFull,
    /// Its deadline cannot be met.
    Deadline,
    /// One of a higher tier took its place.
    Displaced,
    /// The replica is draining.
    Draining,
    /// The replica is not one of this agent's.
    UnknownReplica,
    /// The engine is down or stalled.
    EngineDown,
}

impl RefusalReason {
    /// As a header value and metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Deadline => "deadline",
            Self::Displaced => "displaced",
            Self::Draining => "draining",
            Self::UnknownReplica => "unknown_replica",
            Self::EngineDown => "engine_down",
        }
    }

    /// From a header value.
    pub fn from_text(text: &str) -> Option<Self> {
        [
            Self::QueueFull,
            Self::Deadline,
            Self::Displaced,
            Self::Draining,
            Self::UnknownReplica,
            Self::EngineDown,
        ]
        .into_iter()
        .find(|r| r.as_str() == text)
    }
}

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Refusal {
    /// Why.
    pub reason: RefusalReason,
    /// After what time room is expected, ms.
    pub retry_after_ms: f64,
}

/// What becomes of an ask at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Offer {
    /// Send it.
    Admitted,
    /// It waits; a later call returns its verdict.
    Queued,
    /// No.
    Refused(Refusal),
}

/// A verdict on a request that waited.
pub type Verdict = (u64, Result<(), Refusal>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    priority: Reverse<i32>,
    start_by_us: i64,
    serial: u64,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    tokens: f64,
    produced: f64,
    expected: f64,
    /// Prompt tokens still counted as not prefilled.
    unfilled: f64,
    /// When prefill is taken as done though no token was seen (requests that do not stream).
    assume_filled_ms: f64,
    streaming: bool,
}

/// Admission of one engine.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    running: HashMap<u64, Running>,
    queue: BTreeMap<Place, Ask>,
    places: HashMap<u64, Place>,
    serial: u64,
    committed_tokens: f64,
    context_tokens: f64,
    unfilled_tokens: f64,
    queued_prompt_tokens: f64,
    /// Smoothed time between departures, ms.
    departure_ms: Option<f64>,
    last_departure_ms: f64,
    draining: bool,
}

impl Admission {
    /// For an engine with these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            running: HashMap::new(),
            queue: BTreeMap::new(),
            places: HashMap::new(),
            serial: 0,
            committed_tokens: 0.0,
            context_tokens: 0.0,
            unfilled_tokens: 0.0,
            queued_prompt_tokens: 0.0,
            departure_ms: None,
            last_departure_ms: 0.0,
            draining: false,
        }
    }

    /// Changes the limits; the next pump uses them.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Starts or ends draining: while it drains, nothing new is admitted or queued; what waits still gets its turn.
    pub fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// Whether it drains.
    pub fn draining(&self) -> bool {
        self.draining
    }

    /// Requests at the engine.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Requests at the engine whose tokens are seen as they come.
    pub fn streaming(&self) -> usize {
        self.running.values().filter(|r| r.streaming).count()
    }

    /// Requests waiting here.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Tokens of prompts and answers so far at the engine.
    pub fn context_tokens(&self) -> f64 {
        self.context_tokens.max(0.0)
    }

    /// Prompt tokens not yet prefilled, here and at the engine.
    pub fn prefill_tokens(&self) -> f64 {
        (self.unfilled_tokens + self.queued_prompt_tokens).max(0.0)
    }

    /// Whether anything is running or waiting.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty()
    }

    fn fits(&self, ask: &Ask) -> bool {
        let l = &self.limits;
        if self.running.is_empty() {
            // Whatever its size, an idle engine may judge for itself.
            return true;
        }
        let slots = l.max_running == 0 || self.running.len() < (l.max_running + l.backlog_requests) as usize;
        let tokens = ask.prompt_tokens + ask.expected_output;
        let kv = l.kv_tokens <= 0.0 || self.committed_tokens + tokens <= l.kv_tokens;
        let backlog = l.backlog_tokens <= 0.0 || self.unfilled_tokens <= l.backlog_tokens;
        slots && kv && backlog
    }

    /// When a request that arrives now would be admitted, ms from now.
    fn wait_ms(&self, ahead: usize) -> f64 {
        self.departure_ms.unwrap_or(0.0) * (ahead + 1) as f64
    }

    fn refusal(&self, reason: RefusalReason) -> Refusal {
        Refusal { reason, retry_after_ms: self.wait_ms(self.queue.len()).clamp(1_000.0, 60_000.0) }
    }

    /// Asks for admission. The second value is a waiting request of a lower tier that had to make room, if any.
    pub fn offer(&mut self, now_ms: f64, ask: Ask) -> (Offer, Option<Verdict>) {
        if self.draining {
            return (Offer::Refused(self.refusal(RefusalReason::Draining)), None);
        }
        let serial = self.serial;
        self.serial += 1;
        let start_by = ask.start_by_ms.unwrap_or(now_ms + SLACK_WITHOUT_OBJECTIVE_MS);
        let place = Place {
            priority: Reverse(ask.priority),
            start_by_us: (start_by * 1000.0).clamp(-9e18, 9e18) as i64,
            serial,
        };
        let ahead = self.queue.range(..place).count();
        let immediate = ahead == 0 && self.fits(&ask);
        let wait_ms = if immediate { 0.0 } else { self.wait_ms(ahead) };
        if ask.deadline_ms.is_some_and(|d| now_ms + wait_ms + ask.service_ms > d) {
            return (Offer::Refused(self.refusal(RefusalReason::Deadline)), None);
        }
        if immediate {
            self.start(now_ms, &ask);
            return (Offer::Admitted, None);
        }
        if ask.priority < 0 && self.queue.first_key_value().is_some_and(|(first, _)| first.priority.0 >= 0) {
            return (Offer::Refused(self.refusal(RefusalReason::Displaced)), None);
        }
        let mut displaced = None;
        if self.queue.len() >= self.limits.max_queue {
            match self.queue.last_key_value() {
                Some((last, _)) if last.priority > place.priority => {
                    let refusal = self.refusal(RefusalReason::Displaced);
                    displaced = self.take_last().map(|ask| (ask.id, Err(refusal)));
                }
                _ => return (Offer::Refused(self.refusal(RefusalReason::QueueFull)), None),
            }
        }
        self.queued_prompt_tokens += ask.prompt_tokens;
        self.queue.insert(place, ask);
        self.places.insert(ask.id, place);
        (Offer::Queued, displaced)
    }

    fn take_last(&mut self) -> Option<Ask> {
        let (_, ask) = self.queue.pop_last()?;
        self.places.remove(&ask.id);
        self.queued_prompt_tokens -= ask.prompt_tokens;
        Some(ask)
    }

    fn start(&mut self, now_ms: f64, ask: &Ask) {
        let tokens = ask.prompt_tokens + ask.expected_output;
        self.committed_tokens += tokens;
        self.context_tokens += ask.prompt_tokens;
        self.unfilled_tokens += ask.prompt_tokens;
        let assume_filled_ms = if ask.streaming { f64::INFINITY } else { now_ms + 1.5 * ask.prefill_ms };
        self.running.insert(
            ask.id,
            Running {
                tokens,
                produced: 0.0,
                expected: ask.expected_output,
                unfilled: ask.prompt_tokens,
                assume_filled_ms,
                streaming: ask.streaming,
            },
        );
    }

    /// Tokens of an answer were seen; the first ones say that its prefill is done.
    pub fn produced(&mut self, id: u64, tokens: f64) {
        let Some(r) = self.running.get_mut(&id) else { return };
        self.unfilled_tokens -= r.unfilled;
        r.unfilled = 0.0;
        self.context_tokens += tokens;
        r.produced += tokens;
        // An answer longer than expected takes what it takes.
        let over = r.produced - r.expected;
        if over > 0.0 {
            r.expected += over;
            r.tokens += over;
            self.committed_tokens += over;
        }
    }

    /// A running request ended, or a waiting one was given up.
    pub fn remove(&mut self, now_ms: f64, id: u64) {
        if let Some(r) = self.running.remove(&id) {
            self.committed_tokens -= r.tokens;
            self.context_tokens -= r.tokens - r.expected + r.produced;
            self.unfilled_tokens -= r.unfilled;
            let gap = now_ms - self.last_departure_ms;
            if self.last_departure_ms > 0.0 && gap >= 0.0 {
                self.departure_ms = Some(self.departure_ms.map_or(gap, |e| e + 0.1 * (gap - e)));
            }
            self.last_departure_ms = now_ms;
            if self.running.is_empty() {
                // No drift from rounding, and idle time is no service time.
                (self.committed_tokens, self.context_tokens, self.unfilled_tokens) = (0.0, 0.0, 0.0);
                self.last_departure_ms = 0.0;
            }
        } else if let Some(place) = self.places.remove(&id)
            && let Some(ask) = self.queue.remove(&place)
        {
            self.queued_prompt_tokens -= ask.prompt_tokens;
        }
    }

    /// Admits what fits, in order, and refuses what waits in vain. Call it after every change and now and then.
    pub fn pump(&mut self, now_ms: f64) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for r in self.running.values_mut() {
            if r.unfilled > 0.0 && r.assume_filled_ms <= now_ms {
                self.unfilled_tokens -= r.unfilled;
                r.unfilled = 0.0;
            }
        }
        while let Some((place, ask)) = self.queue.first_key_value().map(|(p, a)| (*p, *a)) {
            let late = ask.deadline_ms.is_some_and(|d| now_ms + ask.service_ms > d);
            if !late && !self.fits(&ask) {
                break;
            }
            self.queue.remove(&place);
            self.places.remove(&ask.id);
            self.queued_prompt_tokens -= ask.prompt_tokens;
            if late {
                verdicts.push((ask.id, Err(self.refusal(RefusalReason::Deadline))));
            } else {
                self.start(now_ms, &ask);
                verdicts.push((ask.id, Ok(())));
            }
        }
        // Further back, too, a deadline may have become impossible.
        let late: Vec<Place> = self
            .queue
            .iter()
            .filter(|(_, a)| a.deadline_ms.is_some_and(|d| now_ms + a.service_ms > d))
            .map(|(p, _)| *p)
            .collect();
        for place in late {
            if let Some(ask) = self.queue.remove(&place) {
                self.places.remove(&ask.id);
                self.queued_prompt_tokens -= ask.prompt_tokens;
                verdicts.push((ask.id, Err(self.refusal(RefusalReason::Deadline))));
            }
        }
        verdicts
    }

    /// Refuses everything that waits (the engine is gone).
    pub fn refuse_waiting(&mut self, reason: RefusalReason) -> Vec<Verdict> {
        let refusal = self.refusal(reason);
        let mut verdicts = Vec::new();
        while let Some(ask) = self.take_last() {
            verdicts.push((ask.id, Err(refusal)));
        }
        verdicts
    }
}

#[cfg(test)]
mod tests;
