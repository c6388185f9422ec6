//! Admission at an engine's own agent: what runs, what waits and in which order, what is refused.
//!
//! The engine gets as much as its batch and KV cache hold, plus a little backlog so that it never starves; the rest
//! waits here, where order still matters. The order is
//!
//! 1. the tier;
//! 2. requests that can still meet their objectives before those that cannot ([`plan`]: as many as possible can), which
//!    are put off; a request whose deadline makes a late answer worthless is refused as soon as that is sure;
//! 3. tenants within a bounded distance of the one served least ([`fair`]);
//! 4. the least slack: the latest moment at which a request may start and still meet its objective, with its length
//!    taken at a conservative quantile ([`lengths`]).
//!
//! What was put off gets one token in [`LATE_SHARE`] once it has waited [`PATIENCE_MS`], so that it does not starve. A
//! prompt is let in when the streams under way can afford its prefill: each has the slack that its time per output token
//! leaves it. The idea of serving just in time is JITServe's (arXiv 2504.20068), as are constants that carry over: the
//! 0.95 quantile, re-estimation every 50 tokens, the pace taken over 10 steps. Not taken over from its published code:
//! the reversed sort and the unfilled map of its compound step, the gain that forgets all but the last token, stage
//! shares that leave the current stage out. Tasks are the router's business ([`task`]): a call comes here with the
//! deadline and tier of its task.
//!
//! All times are milliseconds of one clock that the caller passes in.

pub mod fair;
pub mod lengths;
pub mod plan;
pub mod task;
mod wish;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use plimsoll_fleet::StepCoefficients;

use fair::Fair;
use lengths::{CONSERVATIVE, LengthBook, LengthKey, REFINE_EVERY, beyond_all};
use plan::Job;
pub use wish::Wish;

use crate::hash::QuickMap;

/// Slack of a request without any objective, ms: it yields to those with one, but not for ever.
pub const SLACK_WITHOUT_OBJECTIVE_MS: f64 = 30_000.0;
/// A request that was put off and has waited so long gets a turn now and then, ms.
pub const PATIENCE_MS: f64 = 10_000.0;
/// What was put off and lost its patience gets one token in so many, while others could be on time.
pub const LATE_SHARE: f64 = 8.0;
/// Most of them saved up, tokens.
const MOST_LATE_TOKENS: f64 = 65_536.0;
/// Steps over which the pace of streams is smoothed.
const PACE_STEPS: f64 = 10.0;
/// How long a plan is kept though nothing happened, ms.
const PLAN_KEPT_MS: f64 = 20.0;
/// How long streams that could not afford a prefill are not asked again unless one ends, ms.
const PACE_KEPT_MS: f64 = 5.0;
/// Least share of the engine's time that plans count on for prefill.
const LEAST_PREFILL_SHARE: f64 = 0.2;
/// A request that must start so soon, besides twice its own prefill, may cost one stream its pace, ms.
const URGENT_MS: f64 = 50.0;

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
    /// How long its steps take (all zero: unknown; streams are then not paced).
    pub step: StepCoefficients,
}

impl Limits {
    /// From an engine's coefficients: a step of prefill and a twentieth of the batch as backlog.
    pub fn from_coefficients(c: &StepCoefficients, max_queue: usize) -> Self {
        Self {
            kv_tokens: c.kv_tokens.max(0.0),
            max_running: c.max_running,
            backlog_requests: (c.max_running / 20).max(2),
            backlog_tokens: f64::from(c.max_batched_tokens),
            max_queue,
            step: *c,
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
    /// Whose it is: tenant and class, for fairness and for lengths of answers.
    pub whose: LengthKey,
    /// Weight of its tenant; 1 is ordinary.
    pub weight: f64,
    /// Prompt tokens, estimated.
    pub prompt_tokens: f64,
    /// Of these, believed to be cached.
    pub cached_tokens: f64,
    /// Answer tokens, expected.
    pub expected_output: f64,
    /// Answer tokens at most, as far as the caller knows (what the client allows).
    pub most_output: f64,
    /// Predicted time to first token on this engine as it is now, ms.
    pub prefill_ms: f64,
    /// Predicted end to end once admitted, ms.
    pub service_ms: f64,
    /// When it must start for its first token to meet its objective (soft; `None`: it has none).
    pub start_by_ms: Option<f64>,
    /// Time per output token after the first that it must keep on average (soft; `None`: it has no such objective).
    pub tpot_ms: Option<f64>,
    /// When it must be over to meet its objective (soft; `None`: it has none).
    pub finish_by_ms: Option<f64>,
    /// When it should be over for the rest of its task to have its share of the time; an order, no objective.
    pub stage_by_ms: Option<f64>,
    /// When its answer is worthless (hard; `None`: never).
    pub deadline_ms: Option<f64>,
    /// Tokens of it will be seen as they come.
    pub streaming: bool,
}

impl Ask {
    fn tokens(&self) -> f64 {
        self.prompt_tokens + self.expected_output
    }

    /// Held to its stage's share of its task's time, where it has one.
    fn staged(&self) -> Self {
        Self { finish_by_ms: self.stage_by_ms.or(self.finish_by_ms), ..*self }
    }

    /// Time from its first token to its last, ms, if the answer has this many tokens and the engine takes at least
    /// `pace_ms` for each.
    fn decode_ms(&self, output: f64, pace_ms: f64) -> f64 {
        let token_ms = (self.service_ms - self.prefill_ms).max(0.0) / self.expected_output.max(1.0);
        token_ms.max(pace_ms) * output
    }

    /// The latest start that meets every objective if the answer has this many tokens, ms; infinite without objectives.
    fn latest_start(&self, output: f64, pace_ms: f64) -> f64 {
        let service = self.prefill_ms + self.decode_ms(output, pace_ms);
        [self.start_by_ms, self.finish_by_ms.map(|t| t - service), self.deadline_ms.map(|t| t - service)]
            .into_iter()
            .flatten()
            .fold(f64::INFINITY, f64::min)
    }

    /// Whether its answer would be worthless though it started then.
    fn too_late(&self, start_ms: f64, pace_ms: f64) -> bool {
        let service = self.prefill_ms + self.decode_ms(self.expected_output, pace_ms);
        self.deadline_ms.is_some_and(|d| start_ms + service > d)
    }
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
    /// The adapter is not on the engine, and did not come in time or cannot be loaded.
    Adapter,
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
            Self::Adapter => "adapter",
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
            Self::Adapter,
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

/// In line: tier, then the conservative latest start, then arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    priority: Reverse<i32>,
    start_by_us: i64,
    serial: u64,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    ask: Ask,
    since_ms: f64,
    /// By the last plan.
    on_time: bool,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    ask: Ask,
    tokens: f64,
    produced: f64,
    /// Answer tokens that room in the KV cache is kept for.
    expected: f64,
    /// Answer tokens, low and conservative quantiles.
    low: f64,
    high: f64,
    /// Tokens at which these are estimated anew.
    refine_at: f64,
    first_ms: Option<f64>,
    last_ms: f64,
    finished: bool,
    /// Prompt tokens still counted as not prefilled.
    unfilled: f64,
    /// When prefill is taken as done though no token was seen (requests that do not stream).
    assume_filled_ms: f64,
}

/// Admission of one engine.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    running: QuickMap<u64, Running>,
    queue: BTreeMap<Place, Waiting>,
    places: QuickMap<u64, Place>,
    serial: u64,
    committed_tokens: f64,
    context_tokens: f64,
    unfilled_tokens: f64,
    queued_prompt_tokens: f64,
    /// Smoothed time between departures, ms.
    departure_ms: Option<f64>,
    last_departure_ms: f64,
    draining: bool,
    lengths: LengthBook,
    fair: Fair,
    /// Tokens that those which were put off may take while others could be on time.
    late_tokens: f64,
    /// Time per token of the streams under way, smoothed over about [`PACE_STEPS`] steps, ms.
    pace_ms: f64,
    /// When the plan must be made anew, ms.
    replan_ms: f64,
    /// When streams are asked again whether they can afford a prefill, ms.
    pace_again_ms: f64,
}

impl Admission {
    /// For an engine with these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            running: QuickMap::default(),
            queue: BTreeMap::new(),
            places: QuickMap::default(),
            serial: 0,
            committed_tokens: 0.0,
            context_tokens: 0.0,
            unfilled_tokens: 0.0,
            queued_prompt_tokens: 0.0,
            departure_ms: None,
            last_departure_ms: 0.0,
            draining: false,
            lengths: LengthBook::default(),
            fair: Fair::default(),
            late_tokens: 0.0,
            pace_ms: 0.0,
            replan_ms: f64::NEG_INFINITY,
            pace_again_ms: f64::NEG_INFINITY,
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
        self.running.values().filter(|r| r.ask.streaming).count()
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

    /// Tokens that a tenant has been served, weighted ([`fair`]).
    pub fn served(&self, tenant: u64) -> f64 {
        self.fair.counter(tenant)
    }

    fn slots_full(&self) -> bool {
        let l = &self.limits;
        l.max_running > 0 && self.running.len() >= (l.max_running + l.backlog_requests) as usize
    }

    fn kv_full(&self, ask: &Ask) -> bool {
        self.limits.kv_tokens > 0.0 && self.committed_tokens + ask.tokens() > self.limits.kv_tokens
    }

    fn fits(&self, ask: &Ask) -> bool {
        if self.running.is_empty() {
            // Whatever its size, an idle engine may judge for itself.
            return true;
        }
        let l = &self.limits;
        let backlog = l.backlog_tokens <= 0.0 || self.unfilled_tokens <= l.backlog_tokens;
        !self.slots_full() && !self.kv_full(ask) && backlog
    }

    /// Time of a step that prefills nothing, ms.
    fn step_ms(&self) -> f64 {
        let c = &self.limits.step;
        c.base_ms
            + self.running.len() as f64 * c.per_request_ms
            + self.context_tokens.max(0.0) * c.per_context_token_ms
    }

    /// How long a prompt's own prefill makes all others wait, ms.
    fn stall_ms(&self, ask: &Ask) -> f64 {
        (ask.prompt_tokens - ask.cached_tokens).max(1.0) * self.limits.step.per_prefill_token_ms
    }

    /// Whether the streams under way, of its tier or above, can afford its prefill: none that can still keep its time per
    /// token would miss it for that, or a single one where the request itself would be lost.
    fn affordable(&self, now_ms: f64, ask: &Ask) -> bool {
        let c = &self.limits.step;
        if c.per_prefill_token_ms <= 0.0 {
            return true;
        }
        let step_ms = self.step_ms();
        let ahead_ms = self.unfilled_tokens.max(0.0) * c.per_prefill_token_ms;
        let stall_ms = self.stall_ms(ask);
        let slower_ms = c.per_request_ms + ask.prompt_tokens * c.per_context_token_ms;
        let at_risk = self.running.values().filter(|r| r.ask.priority >= ask.priority).filter(|r| {
            let slack_ms = r.slack_ms(now_ms + ahead_ms, step_ms);
            slack_ms >= 0.0 && slack_ms < stall_ms + slower_ms * (r.low - r.produced).max(1.0)
        });
        let left_ms = ask.latest_start(ask.expected_output, self.pace_ms) - now_ms;
        let most = usize::from(left_ms < URGENT_MS + 2.0 * stall_ms);
        at_risk.take(most + 1).count() <= most
    }

    /// Whether serving a request that was put off costs nobody else an objective: at the present pace, all streams that
    /// can still make it make it, even if their answers get long.
    fn harmless(&self, now_ms: f64, ask: &Ask) -> bool {
        let (step_ms, stall_ms) = (self.step_ms(), self.stall_ms(ask));
        let pace_ms = self.pace_ms.max(step_ms);
        self.running.values().all(|r| {
            let left_ms = r.until_ms() - now_ms;
            let lost = left_ms < (r.expected - r.produced).max(1.0) * step_ms;
            // One whose pace is lost whatever happens (the engine is too slow for it) keeps nobody waiting.
            let keeps_pace = r.ask.tpot_ms.is_none_or(|t| t >= pace_ms) || r.slack_ms(now_ms, step_ms) < 0.0;
            keeps_pace && (lost || left_ms - (r.high - r.produced).max(1.0) * pace_ms >= stall_ms)
        })
    }

    /// How long a request keeps the engine's entrance busy, ms: its prefill in the share of time that the streams under
    /// way leave for such, or the time between departures where the batch or the cache is full.
    fn work_ms(&self, ask: &Ask, prefill_share: f64) -> f64 {
        let prefill_ms = self.stall_ms(ask) / prefill_share;
        let full = self.limits.step.per_prefill_token_ms <= 0.0 || self.slots_full() || self.kv_full(ask);
        if full { prefill_ms.max(self.departure_ms.unwrap_or(0.0)) } else { prefill_ms }
    }

    fn prefill_share(&self) -> f64 {
        let tightest = self.running.values().filter_map(|r| r.ask.tpot_ms).fold(f64::INFINITY, f64::min);
        (1.0 - self.step_ms() / tightest).clamp(LEAST_PREFILL_SHARE, 1.0)
    }

    /// When a request with so much work ahead would start, ms from now.
    fn wait_ms(&self, ahead: impl Iterator<Item = Ask>) -> f64 {
        let share = self.prefill_share();
        let unfilled_ms = self.unfilled_tokens.max(0.0) * self.limits.step.per_prefill_token_ms;
        let ahead_ms: f64 = ahead.map(|a| self.work_ms(&a, share)).sum();
        // Where the engine is full, somebody must leave first.
        let leave_ms = if self.limits.step.per_prefill_token_ms <= 0.0 || self.slots_full() {
            self.departure_ms.unwrap_or(0.0)
        } else {
            0.0
        };
        unfilled_ms + ahead_ms + leave_ms
    }

    fn refusal(&self, reason: RefusalReason) -> Refusal {
        let wait_ms = self.wait_ms(self.queue.values().map(|w| w.ask));
        Refusal { reason, retry_after_ms: wait_ms.clamp(1_000.0, 60_000.0) }
    }

    fn conservative(&self, ask: &Ask) -> f64 {
        let quantile = self.lengths.quantile(ask.whose, CONSERVATIVE, 0.0);
        quantile.unwrap_or(ask.expected_output).clamp(1.0, ask.most_output.max(1.0))
    }

    /// Where it stands among those of its tier: the latest start at which it is still sure to make it, ms; where that has
    /// passed, the latest at which it may.
    fn slack_key(&self, now_ms: f64, ask: &Ask) -> f64 {
        let ask = ask.staged();
        let careful = ask.latest_start(self.conservative(&ask), self.pace_ms);
        if careful.is_infinite() {
            now_ms + SLACK_WITHOUT_OBJECTIVE_MS
        } else if careful >= now_ms {
            careful
        } else {
            ask.latest_start(ask.expected_output, self.pace_ms)
        }
    }

    /// Asks for admission. The second value is a waiting request that had to make room, if any: one of a lower tier, or
    /// one of the same that was put off anyway.
    pub fn offer(&mut self, now_ms: f64, ask: Ask) -> (Offer, Option<Verdict>) {
        if self.draining {
            return (Offer::Refused(self.refusal(RefusalReason::Draining)), None);
        }
        let serial = self.serial;
        self.serial += 1;
        let start_by = self.slack_key(now_ms, &ask);
        let place = Place {
            priority: Reverse(ask.priority),
            start_by_us: (start_by * 1000.0).clamp(-9e18, 9e18) as i64,
            serial,
        };
        let immediate = self.queue.range(..place).next().is_none() && self.fits(&ask) && {
            let idle = self.running.is_empty();
            idle || self.affordable(now_ms, &ask)
        };
        let wait_ms =
            if immediate { 0.0 } else { self.wait_ms(self.queue.range(..place).map(|(_, w)| w.ask)) };
        if ask.too_late(now_ms + wait_ms, self.pace_ms) {
            return (Offer::Refused(self.refusal(RefusalReason::Deadline)), None);
        }
        if immediate {
            self.fair.arrived(ask.whose.tenant);
            self.start(now_ms, &ask);
            return (Offer::Admitted, None);
        }
        if ask.priority < 0 && self.queue.first_key_value().is_some_and(|(first, _)| first.priority.0 >= 0) {
            return (Offer::Refused(self.refusal(RefusalReason::Displaced)), None);
        }
        let mut displaced = None;
        if self.queue.len() >= self.limits.max_queue {
            let hopeful = now_ms + wait_ms <= ask.latest_start(ask.expected_output, self.pace_ms);
            let Some(last) = self.gives_way(place.priority, hopeful) else {
                return (Offer::Refused(self.refusal(RefusalReason::QueueFull)), None);
            };
            let refusal = self.refusal(RefusalReason::Displaced);
            displaced = self.take(last).map(|w| (w.ask.id, Err(refusal)));
        }
        self.fair.arrived(ask.whose.tenant);
        self.queued_prompt_tokens += ask.prompt_tokens;
        self.queue.insert(place, Waiting { ask, since_ms: now_ms, on_time: true });
        self.places.insert(ask.id, place);
        self.replan_ms = f64::NEG_INFINITY;
        (Offer::Queued, displaced)
    }

    /// Who makes room for a request of this tier: the last of a lower tier; of the same, for one that can make it, the
    /// longest of those that cannot.
    fn gives_way(&self, priority: Reverse<i32>, hopeful: bool) -> Option<Place> {
        let (last, _) = self.queue.last_key_value()?;
        if last.priority > priority {
            return Some(*last);
        }
        let late = self.queue.iter().filter(|(p, w)| hopeful && p.priority == priority && !w.on_time);
        late.max_by(|(_, a), (_, b)| a.ask.tokens().total_cmp(&b.ask.tokens())).map(|(p, _)| *p)
    }

    fn take(&mut self, place: Place) -> Option<Waiting> {
        let waiting = self.queue.remove(&place)?;
        self.places.remove(&waiting.ask.id);
        self.queued_prompt_tokens -= waiting.ask.prompt_tokens;
        self.fair.left_queue(waiting.ask.whose.tenant, false);
        self.replan_ms = f64::NEG_INFINITY;
        Some(waiting)
    }

    /// Starts a request whose tenant was told of its arrival.
    fn start(&mut self, now_ms: f64, ask: &Ask) {
        let tokens = ask.tokens();
        self.committed_tokens += tokens;
        self.context_tokens += ask.prompt_tokens;
        let unfilled = (ask.prompt_tokens - ask.cached_tokens).max(1.0).min(ask.prompt_tokens);
        self.unfilled_tokens += unfilled;
        self.fair.left_queue(ask.whose.tenant, true);
        self.fair.charge(ask.whose.tenant, ask.weight, fair::cost(ask.prompt_tokens, ask.expected_output));
        let assume_filled_ms = if ask.streaming { f64::INFINITY } else { now_ms + 1.5 * ask.prefill_ms };
        self.running.insert(
            ask.id,
            Running {
                ask: *ask,
                tokens,
                produced: 0.0,
                expected: ask.expected_output,
                low: self.lengths.quantile(ask.whose, LOW, 0.0).unwrap_or(ask.expected_output / 2.0),
                high: self.conservative(ask),
                refine_at: REFINE_EVERY,
                first_ms: None,
                last_ms: now_ms,
                finished: false,
                unfilled,
                assume_filled_ms,
            },
        );
    }

    /// Tokens of an answer were seen; the first ones say that its prefill is done.
    pub fn produced(&mut self, now_ms: f64, id: u64, tokens: f64) {
        let streams = self.running.len().max(1) as f64;
        let Some(r) = self.running.get_mut(&id) else { return };
        self.unfilled_tokens -= r.unfilled;
        r.unfilled = 0.0;
        if r.first_ms.replace(r.first_ms.unwrap_or(now_ms)).is_some() && tokens > 0.0 {
            let each = (now_ms - r.last_ms).max(0.0) / tokens;
            let weight = (tokens / (PACE_STEPS * streams)).min(1.0);
            self.pace_ms += weight * (each - self.pace_ms);
        }
        r.last_ms = now_ms;
        self.context_tokens += tokens;
        r.produced += tokens;
        let over = r.produced > r.expected;
        if !over && r.produced < r.refine_at {
            return;
        }
        r.refine_at = r.produced + REFINE_EVERY;
        let beyond = |q| {
            let known = self.lengths.quantile(r.ask.whose, q, r.produced);
            known
                .unwrap_or_else(|| beyond_all(r.produced))
                .clamp(r.produced, r.ask.most_output.max(r.produced))
        };
        (r.low, r.high) = (beyond(LOW), beyond(CONSERVATIVE));
        if over {
            // An answer longer than expected takes what it takes.
            let more = beyond(0.5) - r.expected;
            r.expected += more;
            r.tokens += more;
            self.committed_tokens += more;
        }
    }

    /// An answer has come to its own end (and was not given up): its length is learned when it is removed. `tokens` is
    /// its length where that is known better than from [`Self::produced`].
    pub fn finished(&mut self, id: u64, tokens: Option<f64>) {
        if let Some(r) = self.running.get_mut(&id) {
            r.finished = true;
            if let Some(tokens) = tokens.filter(|t| *t > r.produced) {
                self.context_tokens += tokens - r.produced;
                r.produced = tokens;
            }
        }
    }

    /// A running request ended, or a waiting one was given up.
    pub fn remove(&mut self, now_ms: f64, id: u64) {
        if let Some(r) = self.running.remove(&id) {
            self.committed_tokens -= r.tokens;
            self.context_tokens -= r.ask.prompt_tokens + r.produced;
            self.unfilled_tokens -= r.unfilled;
            let Ask { whose, weight, expected_output, streaming, .. } = r.ask;
            if streaming || r.finished {
                self.fair.charge(whose.tenant, weight, fair::cost(0.0, r.produced - expected_output));
            }
            self.fair.ended(whose.tenant);
            if r.finished && r.produced >= 1.0 {
                self.lengths.learn(whose, r.produced);
            }
            let gap = now_ms - self.last_departure_ms;
            if self.last_departure_ms > 0.0 && gap >= 0.0 {
                self.departure_ms = Some(self.departure_ms.map_or(gap, |e| e + 0.1 * (gap - e)));
            }
            self.last_departure_ms = now_ms;
            if self.running.is_empty() {
                // No drift from rounding, and idle time is no service time.
                (self.committed_tokens, self.context_tokens, self.unfilled_tokens) = (0.0, 0.0, 0.0);
                self.pace_ms = 0.0;
                self.last_departure_ms = 0.0;
            }
            self.pace_again_ms = f64::NEG_INFINITY;
        } else if let Some(place) = self.places.get(&id).copied() {
            self.take(place);
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
        let late: Vec<Place> =
            self.queue.iter().filter(|(_, w)| w.ask.too_late(now_ms, 0.0)).map(|(p, _)| *p).collect();
        for place in late {
            if let Some(w) = self.take(place) {
                verdicts.push((w.ask.id, Err(self.refusal(RefusalReason::Deadline))));
            }
        }
        while !self.queue.is_empty() {
            if now_ms >= self.replan_ms {
                self.replan(now_ms);
            }
            let Some((place, late)) = self.next(now_ms) else { break };
            let Some(ask) = self.queue.get(&place).map(|w| w.ask) else { break };
            if !self.fits(&ask)
                || !self.may_start(now_ms, &ask)
                || (late && !self.late_may_start(now_ms, &ask))
            {
                break;
            }
            self.late_tokens = if late {
                (self.late_tokens - ask.tokens()).max(0.0)
            } else {
                (self.late_tokens + ask.tokens() / LATE_SHARE).min(MOST_LATE_TOKENS)
            };
            let Some(w) = self.queue.remove(&place) else { break };
            self.places.remove(&w.ask.id);
            self.queued_prompt_tokens -= w.ask.prompt_tokens;
            self.start(now_ms, &w.ask);
            verdicts.push((w.ask.id, Ok(())));
        }
        verdicts
    }

    /// Whether the streams under way leave room for it; asked at most every [`PACE_KEPT_MS`].
    fn may_start(&mut self, now_ms: f64, ask: &Ask) -> bool {
        if self.running.is_empty() {
            return true;
        }
        if now_ms < self.pace_again_ms {
            return false;
        }
        let may = self.affordable(now_ms, ask);
        if !may {
            self.pace_again_ms = now_ms + PACE_KEPT_MS;
        }
        may
    }

    /// What was put off comes one by one, so that whoever comes next and can be on time finds the way free, and out of
    /// its share or where it does no harm.
    fn late_may_start(&self, now_ms: f64, ask: &Ask) -> bool {
        self.running.is_empty()
            || self.unfilled_tokens < 0.5 && (self.late_turn(ask) || self.harmless(now_ms, ask))
    }

    fn late_turn(&self, ask: &Ask) -> bool {
        self.late_tokens >= ask.tokens().min(MOST_LATE_TOKENS)
    }

    /// Finds out who can still make it, tier by tier from the top.
    fn replan(&mut self, now_ms: f64) {
        self.replan_ms = now_ms + PLAN_KEPT_MS;
        let share = self.prefill_share();
        let mut free_ms = now_ms + self.wait_ms(std::iter::empty());
        let mut tier: Vec<(Place, Job)> = Vec::with_capacity(self.queue.len());
        let mut verdicts: Vec<(Place, bool)> = Vec::with_capacity(self.queue.len());
        let mut close = |tier: &mut Vec<(Place, Job)>| {
            let jobs: Vec<Job> = tier.iter().map(|(_, j)| *j).collect();
            let (keep, free) = plan::on_time(free_ms, &jobs);
            // Those of a higher tier go first, late or not.
            let put_off: f64 = jobs.iter().zip(&keep).filter(|(_, k)| !**k).map(|(j, _)| j.work_ms).sum();
            free_ms = free + put_off;
            verdicts.extend(tier.drain(..).map(|(p, _)| p).zip(keep));
        };
        let mut priority = None;
        for (place, w) in &self.queue {
            if priority.replace(place.priority).is_some_and(|p| p != place.priority) {
                close(&mut tier);
            }
            let start_by_ms = w.ask.staged().latest_start(w.ask.expected_output, self.pace_ms);
            tier.push((*place, Job { start_by_ms, work_ms: self.work_ms(&w.ask, share) }));
        }
        close(&mut tier);
        for (place, on_time) in verdicts {
            if let Some(w) = self.queue.get_mut(&place) {
                w.on_time = on_time;
            }
        }
    }

    /// Whose turn it is, and whether it is a turn of those that were put off.
    fn next(&self, now_ms: f64) -> Option<(Place, bool)> {
        let priority = self.queue.first_key_value()?.0.priority;
        let tier = || self.queue.iter().take_while(move |(p, _)| p.priority == priority);
        let oldest_late =
            || tier().filter(|(_, w)| !w.on_time).min_by_key(|(p, _)| p.serial).map(|(p, w)| (*p, *w));
        if let Some((place, w)) = oldest_late()
            && now_ms - w.since_ms >= PATIENCE_MS
            && self.late_turn(&w.ask)
        {
            return Some((place, true));
        }
        let floor = self.fair.floor(tier().map(|(_, w)| w.ask.whose.tenant));
        let on_time = || tier().filter(|(_, w)| w.on_time);
        on_time()
            .find(|(_, w)| self.fair.may_go(w.ask.whose.tenant, floor))
            .or_else(|| on_time().next())
            .map(|(p, _)| (*p, false))
            .or_else(|| oldest_late().map(|(p, _)| (p, true)))
    }

    /// Refuses everything that waits (the engine is gone).
    pub fn refuse_waiting(&mut self, reason: RefusalReason) -> Vec<Verdict> {
        let refusal = self.refusal(reason);
        let mut verdicts = Vec::new();
        while let Some((place, _)) = self.queue.last_key_value().map(|(p, w)| (*p, w.ask.id))
            && let Some(w) = self.take(place)
        {
            verdicts.push((w.ask.id, Err(refusal)));
        }
        verdicts
    }
}

/// Streams are taken to end no later than at this quantile when their slack is counted: what a long answer would still
/// save up is not spent beforehand.
const LOW: f64 = 0.25;

impl Running {
    /// How much longer than planned the engine may take and the stream still keep its time per token, ms; negative if it
    /// cannot any more, infinite if it has no such objective.
    fn slack_ms(&self, now_ms: f64, step_ms: f64) -> f64 {
        let (Some(tpot_ms), Some(first_ms)) = (self.ask.tpot_ms, self.first_ms) else { return f64::INFINITY };
        let left = (self.low - self.produced).max(1.0);
        first_ms + tpot_ms * (self.produced - 1.0 + left) - (now_ms + left * step_ms)
    }

    /// When it must be over, ms; infinite if at no time.
    fn until_ms(&self) -> f64 {
        [self.ask.finish_by_ms, self.ask.deadline_ms].into_iter().flatten().fold(f64::INFINITY, f64::min)
    }
}

#[cfg(test)]
mod tests;
