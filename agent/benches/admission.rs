//! Goodput of one engine on a mix of SLO classes: first come first served, earliest deadline first inside the engine,
//! and behind the agent's admission.
//!
//! `cargo bench -p plimsoll-agent --bench admission` prints it. The engine is the iteration-level simulation of
//! `plimsoll_engine::sim` under vLLM's rules; nothing here reads a clock, so every run prints the same.
//!
//! A third each: chats (TTFT 1 s, 100 ms a token), requests with an end-to-end objective (10 s), and tasks of three
//! calls in a row (30 s for the whole). These objectives are those of a script of JITServe's authors (arXiv 2504.20068):
//! TTFT 1 s, TBT 0.1 s, TTLT 10 s, and that times the stages for a task. Lengths are log-normal. A task counts once, and
//! only whole.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::collections::{BTreeMap, HashMap};

use plimsoll_agent::admit::lengths::LengthKey;
use plimsoll_agent::admit::task::TaskBook;
use plimsoll_agent::admit::{Admission, Ask, Limits, Offer};
use plimsoll_agent::route::{ReplicaLoad, predict};
use plimsoll_engine::sim::{Replica, SimPolicy, SimRequest};
use plimsoll_engine::{EngineConfig, ReplicaModel};
use plimsoll_fleet::shape::Variant;
use plimsoll_fleet::{Dtype, Role, Shape, presets};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const TTFT_MS: f64 = 1_000.0;
const TPOT_MS: f64 = 100.0;
const TTLT_MS: f64 = 10_000.0;
const STAGES: u32 = 3;
/// Chats, requests with a deadline and tasks of one run.
const UNITS: usize = 1_500;
const SEEDS: [u64; 3] = [11, 12, 13];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Chat,
    Whole,
    Task,
}

const KINDS: [Kind; 3] = [Kind::Chat, Kind::Whole, Kind::Task];

impl Kind {
    /// Mean prompt and answer, tokens.
    fn lengths(self) -> (f64, f64) {
        match self {
            Self::Chat => (1_000.0, 250.0),
            Self::Whole => (4_000.0, 120.0),
            Self::Task => (2_500.0, 150.0),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Fifo,
    Edf,
    Admission,
}

/// One chat, request or task, drawn beforehand: every policy gets the same.
#[derive(Debug, Clone)]
struct Unit {
    kind: Kind,
    at_ms: f64,
    /// Prompt and answer of each call.
    calls: Vec<(u32, u32)>,
}

fn log_normal(rng: &mut SmallRng, mean: f64, sigma: f64, most: f64) -> u32 {
    let (u, v): (f64, f64) = (rng.random_range(1e-12..1.0), rng.random());
    let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
    (mean * (sigma * normal - sigma * sigma / 2.0).exp()).clamp(1.0, most).round() as u32
}

/// Poisson arrivals where `burst` is 1, else Poisson bursts of geometric size with that mean.
fn units(per_second: f64, burst: f64, seed: u64) -> Vec<Unit> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut at_ms = 0.0;
    (0..UNITS)
        .map(|_| {
            if rng.random_range(0.0..1.0) >= 1.0 - 1.0 / burst {
                let gap: f64 = -rng.random_range(1e-12f64..1.0).ln();
                at_ms += gap * 1_000.0 * burst / per_second;
            }
            let kind = KINDS[rng.random_range(0..KINDS.len())];
            let (prompt, answer) = kind.lengths();
            let calls = if kind == Kind::Task { STAGES } else { 1 };
            let calls = (0..calls)
                .map(|_| {
                    (log_normal(&mut rng, prompt, 0.8, 16_000.0), log_normal(&mut rng, answer, 0.8, 2_000.0))
                })
                .collect();
            Unit { kind, at_ms, calls }
        })
        .collect()
}

/// A call under way or waiting.
#[derive(Debug, Clone, Copy)]
struct Call {
    unit: usize,
    stage: usize,
    sent_ms: f64,
    first_ms: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    units: f64,
    met: f64,
}

#[derive(Debug, Clone, Default)]
struct Outcome {
    by_kind: BTreeMap<Kind, Tally>,
    /// From the first arrival to the last, s.
    seconds: f64,
}

impl Outcome {
    fn attainment(&self) -> f64 {
        let (met, all) = self.by_kind.values().fold((0.0, 0.0), |(m, u), t| (m + t.met, u + t.units));
        met / all
    }

    fn goodput(&self) -> f64 {
        self.by_kind.values().map(|t| t.met).sum::<f64>() / self.seconds
    }
}

struct Run<'a> {
    units: &'a [Unit],
    policy: Policy,
    engine: Replica,
    admission: Admission,
    tasks: TaskBook,
    limits: Limits,
    /// Mean answers so far, by kind: what a router expects.
    means: HashMap<Kind, f64>,
    calls: HashMap<u64, Call>,
    /// Calls on their way: to the agent, and from there to the engine.
    arriving: BTreeMap<(u64, u64), (usize, usize)>,
    entering: BTreeMap<(u64, u64), u64>,
    next_id: u64,
    outcome: Outcome,
}

impl std::hash::Hash for Kind {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (*self as u8).hash(state);
    }
}

fn micros(ms: f64) -> u64 {
    (ms * 1_000.0).round() as u64
}

impl<'a> Run<'a> {
    fn new(model: &ReplicaModel, units: &'a [Unit], policy: Policy) -> Self {
        let limits = Limits::from_coefficients(&model.coefficients(2_000.0), 256);
        let arriving = units.iter().enumerate().map(|(i, u)| ((micros(u.at_ms), i as u64), (i, 0))).collect();
        let mut by_kind: BTreeMap<Kind, Tally> = BTreeMap::new();
        for u in units {
            by_kind.entry(u.kind).or_default().units += 1.0;
        }
        let seconds = units.last().map_or(1.0, |u| u.at_ms / 1_000.0);
        Self {
            units,
            policy,
            engine: Replica::new(model.clone(), SimPolicy { prefix_cache: false, ..SimPolicy::default() }),
            admission: Admission::new(limits),
            tasks: TaskBook::default(),
            limits,
            means: HashMap::new(),
            calls: HashMap::new(),
            arriving,
            entering: BTreeMap::new(),
            next_id: units.len() as u64,
            outcome: Outcome { by_kind, seconds },
        }
    }

    fn deadline(&self, unit: usize) -> f64 {
        let u = &self.units[unit];
        u.at_ms + if u.kind == Kind::Task { TTLT_MS * f64::from(STAGES) } else { TTLT_MS }
    }

    fn ask(&mut self, now_ms: f64, id: u64, call: &Call) -> Ask {
        let u = &self.units[call.unit];
        let c = &self.limits.step;
        let expected_output = self.means.get(&u.kind).copied().unwrap_or(200.0);
        let load = ReplicaLoad {
            running: self.admission.running() as f64,
            context_tokens: self.admission.context_tokens(),
            ..ReplicaLoad::default()
        };
        let prompt_tokens = f64::from(u.calls[call.stage].0);
        let predicted = predict(c, &load, prompt_tokens, 0.0, expected_output);
        let (mut start_by_ms, mut tpot_ms, mut finish_by_ms) = (None, None, None);
        let (mut stage_by_ms, mut deadline_ms) = (None, None);
        match u.kind {
            Kind::Chat => {
                start_by_ms = Some(now_ms + TTFT_MS - predicted.prefill_ms);
                tpot_ms = Some(TPOT_MS);
            }
            Kind::Whole => finish_by_ms = Some(now_ms + TTLT_MS),
            Kind::Task => {
                let deadline = self.deadline(call.unit);
                let call = self.tasks.call(now_ms, call.unit as u64, 2, Some(deadline), 0);
                (stage_by_ms, deadline_ms) = (call.finish_by_ms, call.deadline_ms);
            }
        }
        Ask {
            id,
            priority: 0,
            whose: LengthKey { tenant: 0, class: u.kind as u64 },
            weight: 1.0,
            prompt_tokens,
            cached_tokens: 0.0,
            expected_output,
            most_output: f64::INFINITY,
            prefill_ms: predicted.prefill_ms,
            service_ms: predicted.prefill_ms + predicted.decode_ms,
            start_by_ms,
            tpot_ms,
            finish_by_ms,
            stage_by_ms,
            deadline_ms,
            streaming: true,
        }
    }

    fn arrive(&mut self, at_us: u64, unit: usize, stage: usize) {
        let now_ms = at_us as f64 / 1_000.0;
        let id = self.next_id;
        self.next_id += 1;
        let call = Call { unit, stage, sent_ms: now_ms, first_ms: 0.0 };
        self.calls.insert(id, call);
        if self.policy != Policy::Admission {
            self.enter(now_ms, id);
            return;
        }
        let ask = self.ask(now_ms, id, &call);
        let (offer, displaced) = self.admission.offer(now_ms, ask);
        match offer {
            Offer::Admitted => self.enter(now_ms, id),
            Offer::Queued => {}
            Offer::Refused(_) => {
                self.calls.remove(&id);
            }
        }
        if let Some((id, _)) = displaced {
            self.calls.remove(&id);
        }
    }

    /// From the agent to the engine's queue, through its API server.
    fn enter(&mut self, now_ms: f64, id: u64) {
        let at = now_ms + self.engine.model().api_overhead_ms();
        self.entering.insert((micros(at), id), id);
    }

    fn submit(&mut self, at_us: u64, id: u64) {
        let Some(call) = self.calls.get(&id) else { return };
        let u = &self.units[call.unit];
        let (prompt_tokens, output_tokens) = u.calls[call.stage];
        let due_ms = match u.kind {
            Kind::Chat => call.sent_ms + TTFT_MS,
            _ => self.deadline(call.unit),
        };
        let priority = if self.policy == Policy::Edf { due_ms as i32 } else { 0 };
        let request = SimRequest { id, prompt_tokens, output_tokens, priority, ..SimRequest::default() };
        self.engine.submit(at_us as f64 / 1_000.0, request).unwrap();
    }

    fn pump(&mut self, now_ms: f64) {
        for (id, verdict) in self.admission.pump(now_ms) {
            match verdict {
                Ok(()) => self.enter(now_ms, id),
                Err(_) => {
                    self.calls.remove(&id);
                }
            }
        }
    }

    fn finish(&mut self, now_ms: f64, id: u64, tokens: u32) {
        let Some(call) = self.calls.remove(&id) else { return };
        let u = &self.units[call.unit];
        let mean = self.means.entry(u.kind).or_insert(f64::from(tokens));
        *mean += 0.05 * (f64::from(tokens) - *mean);
        let met = match u.kind {
            Kind::Chat => {
                let tpot_ms = (now_ms - call.first_ms) / f64::from(tokens.max(2) - 1);
                call.first_ms - call.sent_ms <= TTFT_MS && tpot_ms <= TPOT_MS
            }
            _ => now_ms <= self.deadline(call.unit),
        };
        if u.kind == Kind::Task {
            self.tasks.ended(now_ms, call.unit as u64);
            if call.stage + 1 < u.calls.len() {
                // An agent gives a task up once it is too late.
                if met {
                    self.arriving.insert((micros(now_ms), self.next_id), (call.unit, call.stage + 1));
                }
                return;
            }
        }
        if met {
            self.outcome.by_kind.entry(u.kind).or_default().met += 1.0;
        }
    }

    fn run(mut self) -> Outcome {
        let mut now_ms = 0.0;
        loop {
            // Whoever comes while a step runs is heard at once, and queues at the engine before its next step.
            while let Some((&(at, key), &(unit, stage))) = self.arriving.first_key_value()
                && at <= micros(now_ms)
            {
                self.arriving.remove(&(at, key));
                self.arrive(at, unit, stage);
            }
            if self.policy == Policy::Admission {
                self.pump(now_ms);
            }
            while let Some((&(at, key), &id)) = self.entering.first_key_value()
                && at <= micros(now_ms)
            {
                self.entering.remove(&(at, key));
                self.submit(at, id);
            }
            match self.engine.step(now_ms) {
                Some(step) => {
                    now_ms += step.duration_ms;
                    for t in step.tokens {
                        if t.first
                            && let Some(c) = self.calls.get_mut(&t.id)
                        {
                            c.first_ms = now_ms;
                        }
                        if self.policy == Policy::Admission {
                            self.admission.produced(now_ms, t.id, 1.0);
                        }
                        if t.finished {
                            self.admission.finished(t.id, None);
                            self.admission.remove(now_ms, t.id);
                            self.finish(now_ms, t.id, t.index + 1);
                        }
                    }
                }
                None => {
                    let arriving = self.arriving.first_key_value().map(|((at, _), _)| *at);
                    let entering = self.entering.first_key_value().map(|((at, _), _)| *at);
                    let waiting = (self.admission.waiting() > 0).then(|| micros(now_ms + 1.0));
                    match [arriving, entering, waiting].into_iter().flatten().min() {
                        Some(at) => now_ms = now_ms.max(at as f64 / 1_000.0),
                        None => return self.outcome,
                    }
                }
            }
        }
    }
}

fn attained(model: &ReplicaModel, policy: Policy, per_second: f64, burst: f64) -> Outcome {
    let mut all = Outcome::default();
    for seed in SEEDS {
        let units = units(per_second, burst, seed);
        let one = Run::new(model, &units, policy).run();
        all.seconds += one.seconds;
        for (kind, t) in one.by_kind {
            let sum = all.by_kind.entry(kind).or_default();
            sum.units += t.units;
            sum.met += t.met;
        }
    }
    all
}

/// The highest load at which so large a share meets all objectives, requests and tasks a second.
fn load_at(model: &ReplicaModel, policy: Policy, burst: f64, share: f64) -> f64 {
    let (mut low, mut high) = (0.5, 60.0);
    while high - low > 0.05 {
        let middle = 0.5 * (low + high);
        if attained(model, policy, middle, burst).attainment() >= share {
            low = middle
        } else {
            high = middle
        }
    }
    low
}

fn main() {
    let model = ReplicaModel::new(
        &presets::model("llama-3.1-8b").unwrap(),
        &Variant { name: "bf16".into(), weights: Dtype::Bf16, kv: Dtype::Bf16, quality: 1.0, source: None },
        &presets::accelerator("h100").unwrap(),
        &Shape {
            variant: "bf16".into(),
            accelerator: "h100".into(),
            tensor_parallel: 1,
            pipeline_parallel: 1,
            data_parallel: 1,
            expert_parallel: 1,
            role: Role::Mixed,
        },
        &EngineConfig::default(),
    )
    .unwrap();
    let policies = [
        ("first come first served (vLLM's default)", Policy::Fifo),
        ("earliest deadline first (vLLM's priorities)", Policy::Edf),
        ("the agent's admission", Policy::Admission),
    ];
    for (name, burst) in [("Poisson arrivals", 1.0), ("bursts of 8 on average", 8.0)] {
        let base = load_at(&model, Policy::Fifo, burst, 0.9);
        println!("{name}: first come first served attains 90 % at {base:.1} requests and tasks a second");
        println!(
            "{:<44} {:>9} {:>7} | attainment and goodput at 1, 1.25, 1.5 and 2 times the {base:.1}/s",
            "", "90 % at", "times"
        );
        for (what, policy) in policies {
            let at = if policy == Policy::Fifo { base } else { load_at(&model, policy, burst, 0.9) };
            print!("{what:<44} {at:>7.1}/s {:>6.2}× |", at / base);
            for times in [1.0, 1.25, 1.5, 2.0] {
                let outcome = attained(&model, policy, times * base, burst);
                print!(" {:>5.1} % {:>5.1}/s ", 100.0 * outcome.attainment(), outcome.goodput());
            }
            let outcome = attained(&model, policy, 1.5 * base, burst);
            let by_kind: Vec<String> = outcome
                .by_kind
                .iter()
                .map(|(kind, t)| format!("{kind:?} {:.0} %", 100.0 * t.met / t.units).to_lowercase())
                .collect();
            println!("| at 1.5: {}", by_kind.join(", "));
        }
        println!();
    }
}
