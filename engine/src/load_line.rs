//! The load line: the highest rate at which every objective holds.

use std::fmt;

use plimsoll_fleet::{Objective, RequestClass, Slo};

use crate::mix::{ClassWork, Mix};
use crate::predict::{Point, Shared, binding_resource};
use crate::queue::{State, burst_size};
use crate::{ReplicaModel, Resource};

/// The highest share of its saturation rate at which a replica is ever run, objectives or not.
pub const MAX_UTILISATION: f64 = 0.95;

/// What stops a replica from taking more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// Time to first token.
    Ttft(Objective),
    /// Time per output token.
    Tpot(Objective),
    /// End to end.
    E2e(Objective),
    /// The queue would grow for ever soon above this rate.
    Saturation,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ttft(o) => write!(f, "TTFT {o}"),
            Self::Tpot(o) => write!(f, "TPOT {o}"),
            Self::E2e(o) => write!(f, "E2E {o}"),
            Self::Saturation => f.write_str("saturation"),
        }
    }
}

/// What binds at a load line.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// The objective that would be missed first.
    pub limit: Limit,
    /// SLO class of that objective (empty for saturation).
    pub slo_class: String,
    /// What the replica is short of.
    pub resource: Resource,
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, by {}", self.limit, self.resource)
    }
}

/// Why a replica cannot serve a mix at any rate.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InfeasibleReason {
    /// An objective is missed even by a request that has the replica to itself.
    #[error("{metric} {} {predicted_ms:.0} ms > {:.0} ms at batch 1 (class {class})", objective.percentile, objective.ms)]
    Objective {
        /// `TTFT`, `TPOT` or `E2E`.
        metric: &'static str,
        /// The objective.
        objective: Objective,
        /// What is predicted, margin included, milliseconds.
        predicted_ms: f64,
        /// Request class that misses it by most.
        class: String,
    },
    /// Requests alone would do, but arrivals come in bursts too large for the objective at any rate.
    #[error(
        "{metric} {} {predicted_ms:.0} ms > {:.0} ms in a burst of {burst:.0} requests (class {class}); spread bursts over \
         more replicas or loosen the objective",
        objective.percentile, objective.ms
    )]
    Burst {
        /// `TTFT`, `TPOT` or `E2E`.
        metric: &'static str,
        /// The objective.
        objective: Objective,
        /// What is predicted, margin included, milliseconds.
        predicted_ms: f64,
        /// Mean requests in a burst.
        burst: f64,
        /// Request class that misses it by most.
        class: String,
    },
    /// A request is longer than the replica allows.
    #[error(
        "class {class} needs {tokens:.0} tokens of context, the longest allowed request has {max_tokens}"
    )]
    ContextTooLong {
        /// Request class.
        class: String,
        /// Prompt and answer, tokens.
        tokens: f64,
        /// Longest allowed request, tokens.
        max_tokens: u32,
    },
    /// Nothing was asked.
    #[error("the mix has no request class")]
    EmptyMix,
}

/// Latencies of a request that has the replica to itself.
#[derive(Debug, Clone, PartialEq)]
pub struct UnloadedLatency {
    /// Name of the request class.
    pub class: String,
    /// Time to first token, milliseconds.
    pub ttft_ms: f64,
    /// Time per output token, milliseconds.
    pub tpot_ms: f64,
    /// End to end, milliseconds.
    pub e2e_ms: f64,
}

/// How much one replica can take.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadLine {
    /// Highest total rate with every objective met, requests per second; 0 if there is none.
    pub rps: f64,
    /// Rate above which the queue would grow for ever, requests per second.
    pub saturation_rps: f64,
    /// What binds (`None` if infeasible).
    pub binding: Option<Binding>,
    /// Why there is no such rate.
    pub infeasible: Option<InfeasibleReason>,
    /// By request class, in the order asked.
    pub unloaded: Vec<UnloadedLatency>,
}

/// One objective of one SLO class and the request classes it judges.
struct Judged {
    limit: Limit,
    objective: Objective,
    slo_class: String,
    /// Indices into the mix.
    members: Vec<usize>,
    /// Their shares summed.
    share: f64,
}

struct Judge<'a> {
    model: &'a ReplicaModel,
    mix: &'a Mix,
    objectives: Vec<Judged>,
    burst: f64,
    stretch: f64,
}

impl Judge<'_> {
    fn at(&self, shared: &Shared, state: &State, p: f64) -> Point {
        shared.at(self.model, self.mix, state, p)
    }

    fn latency(&self, shared: &Shared, c: &ClassWork, limit: Limit, at: &Point) -> f64 {
        self.stretch
            * match limit {
                Limit::Ttft(_) => shared.ttft(c, at),
                Limit::Tpot(_) => shared.tpot(c, at),
                Limit::E2e(_) => shared.e2e(c, at),
                Limit::Saturation => 0.0,
            }
    }

    /// Share of a class's requests that miss an objective.
    fn missed(&self, shared: &Shared, state: &State, c: &ClassWork, j: &Judged) -> f64 {
        // In x = −ln(1 − p), of which latency is a nearly straight function.
        const EDGES: (f64, f64) = (0.0005, 7.6);
        let excess = |x: f64| {
            self.latency(shared, c, j.limit, &self.at(shared, state, 1.0 - (-x).exp())) - j.objective.ms
        };
        // Most classes lie well on one side.
        let (mut low, mut high) = ((EDGES.0, excess(EDGES.0)), (EDGES.1, excess(EDGES.1)));
        if high.1 <= 0.0 {
            return 0.0;
        }
        if low.1 > 0.0 {
            return 1.0;
        }
        while high.0 - low.0 > 0.25 {
            let x = 0.5 * (low.0 + high.0);
            let e = excess(x);
            if e > 0.0 { high = (x, e) } else { low = (x, e) }
        }
        (-(low.0 * high.1 - high.0 * low.1) / (high.1 - low.1)).exp()
    }

    fn holds(&self, shared: &Shared, state: &State, j: &Judged) -> bool {
        let p = j.objective.percentile.fraction();
        let at = self.at(shared, state, p);
        let late = |i: &usize| {
            self.mix
                .classes
                .get(*i)
                .filter(|c| self.latency(shared, c, j.limit, &at) > j.objective.ms)
                .is_some()
        };
        let misses = j.members.iter().filter(|i| late(i)).count();
        if misses == 0 || misses == j.members.len() {
            return misses == 0;
        }
        // Some hold it and some do not: the percentile is over all of them.
        let mut allowed = (1.0 - p) * j.share;
        for c in j.members.iter().filter_map(|i| self.mix.classes.get(*i)) {
            allowed -= c.share * self.missed(shared, state, c, j);
            if allowed < 0.0 {
                return false;
            }
        }
        true
    }

    /// The first objective missed at this rate (requests per millisecond); `Ok` if all hold.
    fn check(&self, state: &mut State, rate: f64) -> Result<(), Option<&Judged>> {
        if !state.solve(self.mix, rate, self.burst) {
            return Err(None);
        }
        let Some(shared) = Shared::new(self.model, self.mix, state, rate, self.burst) else {
            return Err(None);
        };
        match self.objectives.iter().find(|j| !self.holds(&shared, state, j)) {
            None => Ok(()),
            Some(j) => Err(Some(j)),
        }
    }
}

fn judged(mix: &[RequestClass], work: &Mix, slos: &dyn Fn(&str) -> Slo) -> Vec<Judged> {
    let mut names: Vec<&str> = Vec::new();
    let mut out = Vec::new();
    for class in mix {
        if names.contains(&class.slo_class.as_str()) {
            continue;
        }
        names.push(&class.slo_class);
        let share = |i: &usize| work.classes.get(*i).map_or(0.0, |c| c.share);
        let members: Vec<usize> = mix
            .iter()
            .enumerate()
            .filter(|(i, c)| c.slo_class == class.slo_class && share(i) > 0.0)
            .map(|(i, _)| i)
            .collect();
        let slo = slos(&class.slo_class);
        let limits = [
            slo.tpot.map(|o| (Limit::Tpot(o), o)),
            slo.ttft.map(|o| (Limit::Ttft(o), o)),
            slo.e2e.map(|o| (Limit::E2e(o), o)),
        ];
        for (limit, objective) in limits.into_iter().flatten() {
            // A single-token answer has no time per output token.
            let members: Vec<usize> = members
                .iter()
                .copied()
                .filter(|i| {
                    !matches!(limit, Limit::Tpot(_))
                        || work.classes.get(*i).is_some_and(|c| c.decode_steps > 0.0)
                })
                .collect();
            if !members.is_empty() {
                let share = members.iter().map(share).sum();
                out.push(Judged { limit, objective, slo_class: class.slo_class.clone(), members, share });
            }
        }
    }
    out
}

fn metric(limit: Limit) -> &'static str {
    match limit {
        Limit::Ttft(_) => "TTFT",
        Limit::Tpot(_) => "TPOT",
        Limit::E2e(_) => "E2E",
        Limit::Saturation => "load",
    }
}

fn infeasible(
    judge: &Judge<'_>,
    mix: &[RequestClass],
    j: &Judged,
    shared: &Shared,
    state: &State,
) -> InfeasibleReason {
    let at = judge.at(shared, state, j.objective.percentile.fraction());
    let (predicted_ms, worst) = j
        .members
        .iter()
        .filter_map(|i| judge.mix.classes.get(*i).map(|c| (judge.latency(shared, c, j.limit, &at), *i)))
        .fold((f64::NEG_INFINITY, 0), |best, next| if next.0 > best.0 { next } else { best });
    let class = mix.get(worst).map(|c| c.name.clone()).unwrap_or_default();
    let (metric, objective) = (metric(j.limit), j.objective);
    if judge.burst > 1.0 {
        InfeasibleReason::Burst { metric, objective, predicted_ms, burst: judge.burst, class }
    } else {
        InfeasibleReason::Objective { metric, objective, predicted_ms, class }
    }
}

/// The reason at (almost) no load: for a lone request if even that misses, else for bursts.
fn infeasible_reason(
    judge: &Judge<'_>,
    mix: &[RequestClass],
    state: &mut State,
    rate: f64,
) -> Option<InfeasibleReason> {
    for burst in [1.0, judge.burst] {
        let at = Judge { burst, objectives: Vec::new(), ..*judge };
        if !state.solve(judge.mix, rate, burst) {
            continue;
        }
        if let Some(shared) = Shared::new(judge.model, judge.mix, state, rate, burst)
            && let Some(j) = judge.objectives.iter().find(|j| !at.holds(&shared, state, j))
        {
            return Some(infeasible(&at, mix, j, &shared, state));
        }
    }
    None
}

pub(crate) fn load_line(
    model: &ReplicaModel,
    mix: &[RequestClass],
    slos: &dyn Fn(&str) -> Slo,
    arrival_scv: f64,
    margin: f64,
) -> LoadLine {
    /// Halvings of the interval: the rate is right within 0.1 % of saturation over a million.
    const HALVINGS: u32 = 20;
    let none = |infeasible, saturation_rps, unloaded| LoadLine {
        rps: 0.0,
        saturation_rps,
        binding: None,
        infeasible,
        unloaded,
    };
    if mix.is_empty() {
        return none(Some(InfeasibleReason::EmptyMix), 0.0, Vec::new());
    }
    let work = Mix::new(model, mix);
    let stretch = 1.0 + if margin.is_finite() { margin.max(0.0) } else { 0.0 };
    let saturation = work.saturation_per_ms();
    let tiny = 1e-9 * saturation;
    let mut state = State::default();
    let mut unloaded = Vec::with_capacity(mix.len());
    if state.solve(&work, tiny, 1.0)
        && let Some(shared) = Shared::new(model, &work, &state, tiny, 1.0)
    {
        let at = shared.at(model, &work, &state, 0.5);
        unloaded.extend(mix.iter().zip(&work.classes).map(|(class, c)| {
            let step_ms = model.decode_ms(1.0, c.context);
            let ttft_ms = shared.ttft(c, &at);
            UnloadedLatency {
                class: class.name.clone(),
                ttft_ms,
                tpot_ms: step_ms / model.times.yielded,
                e2e_ms: ttft_ms + c.decode_steps * step_ms,
            }
        }));
    }
    let too_long = mix.iter().zip(&work.classes).find(|(_, c)| c.peak > f64::from(model.max_context_tokens));
    if let Some((class, c)) = too_long {
        let reason = InfeasibleReason::ContextTooLong {
            class: class.name.clone(),
            tokens: c.peak,
            max_tokens: model.max_context_tokens,
        };
        return none(Some(reason), 1e3 * saturation, unloaded);
    }
    let judge = Judge {
        model,
        mix: &work,
        objectives: judged(mix, &work, slos),
        burst: burst_size(arrival_scv),
        stretch,
    };
    let ceiling = saturation * MAX_UTILISATION / stretch;
    let bound = |limit, slo_class: String, rate: f64, state: &State| Binding {
        limit,
        slo_class,
        resource: binding_resource(model, &work, state.mean_running, rate),
    };
    let line = |rate: f64, binding, unloaded| LoadLine {
        rps: 1e3 * rate,
        saturation_rps: 1e3 * saturation,
        binding: Some(binding),
        infeasible: None,
        unloaded,
    };
    let mut binding = match judge.check(&mut state, ceiling) {
        Ok(()) => return line(ceiling, bound(Limit::Saturation, String::new(), ceiling, &state), unloaded),
        Err(j) => j,
    };
    if judge.check(&mut state, tiny).is_err() {
        let reason = infeasible_reason(&judge, mix, &mut state, tiny);
        return none(reason, 1e3 * saturation, unloaded);
    }
    let (mut low, mut high) = (tiny, ceiling);
    for _ in 0..HALVINGS {
        let mid = 0.5 * (low + high);
        match judge.check(&mut state, mid) {
            Ok(()) => low = mid,
            Err(j) => {
                high = mid;
                binding = j;
            }
        }
        if high - low < 1e-3 * low {
            break;
        }
    }
    let (limit, slo_class) =
        binding.map_or((Limit::Saturation, String::new()), |j| (j.limit, j.slo_class.clone()));
    // The state just below the line says what the replica is short of.
    state.solve(&work, low, judge.burst);
    line(low, bound(limit, slo_class, low, &state), unloaded)
}
