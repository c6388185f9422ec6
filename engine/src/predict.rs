//! Latency percentiles under a load.

use std::sync::Arc;

use plimsoll_fleet::{Percentile, RequestClass, Role};

use crate::mix::{ClassWork, Mix};
use crate::quantile::{Wait, gamma, normal, of_sum};
use crate::queue::{State, burst_size};
use crate::ranks::PromptCost;
use crate::{ReplicaModel, Resource};

/// How much of the batch's spread remains in a request's own mean: the batch changes while the request runs. For
/// requests of one length it is the square root of 2/3.
const LIFETIME_AVERAGING: f64 = 0.816_496_580_927_726;

/// What all classes share at one rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shared {
    api_ms: f64,
    /// Requests per millisecond.
    pub(crate) rate: f64,
    /// Index of dispersion of arrivals: 1 for Poisson.
    dispersion: f64,
    /// Time between tokens while nothing is prefilled, at the mean batch, milliseconds.
    pub(crate) decode_ms: f64,
    /// Share of time taken by prefill.
    pub(crate) prefill_share: f64,
    /// Share of time taken by prompts that come in it.
    feedback: f64,
    /// Second moment of prefill work, ms².
    pub(crate) work_square: f64,
    /// Whether prompts have steps of their own.
    first: bool,
    /// Tokens that a step yields for a request.
    yielded: f64,
    /// Decode step that an arrival finds under way, times the chance that there is one, milliseconds.
    residual_ms: f64,
    /// Wait for the step under way and for prompts that share the next one, milliseconds.
    gate: Waits,
    /// Prompt tokens that fit into a step beside the mean batch.
    pub(crate) token_budget: f64,
    /// Wait for a place in the batch.
    pub(crate) batch_wait: Wait,
    /// Wait for prompts ahead in the batch.
    pub(crate) prefill_wait: Wait,
    /// Wait for a prompt's turn.
    turn: Wait,
}

/// A percentile, as far as it is common to all classes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    /// The normal distribution's quantile.
    z: f64,
    /// Wait between arrival and the step that completes the prompt, milliseconds.
    wait_ms: f64,
    /// Decode step at the batch that a request sees over its life, milliseconds.
    decode_ms: f64,
}

impl Shared {
    /// `None` if prompts come faster than they can be computed.
    pub(crate) fn new(model: &ReplicaModel, mix: &Mix, state: &State, rate: f64, burst: f64) -> Option<Self> {
        let batch = state.mean_batch;
        let decode_ms = mix.decode(model, batch);
        let (cost, prompts) = mix.settle(model, rate, decode_ms, burst)?;
        let first = model.prompts_first();
        let ranks = model.times.ranks.count;
        let of_rank = if first { 0.0 } else { model.times.budget(batch / ranks) };
        let token_budget = (model.batched_tokens() - of_rank).max(1.0);
        // What a prompt adds to a step that has others: on another rank, and no step of its own unless it fills some.
        let shared = PromptCost { steps: if first { 1e-12 } else { 0.0 }, ..cost };
        let beside = PromptCost { rank: 1.0 / ranks, ..shared };
        // Prompts first, second moments count whole steps, so that they never fall as more share one.
        let whole = PromptCost { steps: f64::from(u8::from(first)), ..cost };
        let (mut s1, mut s2, mut mates) = (0.0, 0.0, 0.0);
        let (mut work_square, mut shared_square, mut burst_square, mut mate_square) = (0.0, 0.0, 0.0, 0.0);
        for c in &mix.classes {
            // A prompt's turn: its own arithmetic and its share of the steps that carry it.
            let steps = if first { 0.0 } else { c.new / (token_budget * ranks) * decode_ms };
            let work = c.work(&shared);
            s1 += c.share * (work + steps);
            s2 += c.share * (c.square(&shared) + steps * (2.0 * work + steps));
            mates += c.share * (c.work(&beside) + steps);
            work_square += c.share * if first { c.work(&cost) * c.work(&whole) } else { c.square(&cost) };
            shared_square += c.share * c.square(&shared);
            burst_square += c.share * c.square(&PromptCost { variance: cost.rank, ..shared });
            mate_square += c.share * c.work(&beside).powi(2);
        }
        let busy = rate * s1;
        if busy >= 1.0 {
            return None;
        }
        // M^X/G/1 with geometric batches: mean wait and chance of waiting; the tail taken as exponential.
        let mean = (0.5 * rate * s2 + (burst - 1.0) * mates) / (1.0 - busy);
        let p = 1.0 - (1.0 - busy) / burst;
        let mut prefill_wait = Wait { p, mean_ms: if p > 0.0 { mean / p } else { 0.0 } };
        if model.role == Role::Prefill {
            // Nothing is decoded meanwhile, so a prompt bears its step's own cost as well: it finds work more often.
            prefill_wait.p = p.max(1.0 - (1.0 - state.busy) / burst);
        }
        let mut turn = prefill_wait;
        if !model.times.ranks.alone() {
            // Prompts on several ranks do not take turns: one waits for the rest of the step under way.
            let lone = mix.work_ms(&PromptCost { rank: 1.0, ..shared }) + decode_ms;
            turn.mean_ms = turn.mean_ms.min(0.5 * lone * burst);
        }
        let work_ms = mix.work_ms(&cost);
        let prefill_share = rate * work_ms;
        // What prompts take that come because prompts took time: of several ranks, they fall on others.
        let feedback = if model.times.ranks.alone() { prefill_share } else { rate * mix.work_ms(&beside) };
        let gate = Gate {
            rate,
            burst,
            decode_ms,
            prefill_share,
            feedback,
            lone_ms: mix.work_ms(&PromptCost { rank: 1.0, ..shared }),
            work_ms: mix.work_ms(&beside),
            work_square: shared_square + (2.0 * burst - 2.0) * burst_square,
            mate_square,
            busy: state.busy,
            kind: match (model.role, first) {
                (Role::Prefill, _) => Steps::Prompts,
                (_, true) => Steps::PromptsFirst {
                    prompts: prompts * cost.steps,
                    alone_ms: mix.classes.iter().map(|c| c.share * c.alone_ms).sum(),
                },
                _ => Steps::Mixed,
            },
        };
        Some(Self {
            api_ms: model.api_overhead_ms(),
            rate,
            dispersion: 2.0 * burst - 1.0,
            decode_ms,
            prefill_share,
            feedback,
            work_square,
            first,
            yielded: model.times.yielded,
            residual_ms: decode_ms * state.busy,
            gate: gate.waits(mix, model.batched_tokens() * ranks),
            token_budget,
            batch_wait: state.wait,
            prefill_wait,
            turn,
        })
    }

    /// Mean TPOT of every class, milliseconds: the open loop's fixed point `D/(1 − λw)`.
    pub(crate) fn tpot_mean(&self) -> f64 {
        self.pace_mean() / self.yielded
    }

    /// Mean time per step of every class, milliseconds.
    fn pace_mean(&self) -> f64 {
        self.decode_ms / (1.0 - self.prefill_share)
    }

    /// TTFT without waiting for others, milliseconds.
    fn ttft_alone(&self, c: &ClassWork) -> f64 {
        let steps = if self.first { c.alone_ms } else { (c.new / self.token_budget).ceil() * self.decode_ms };
        self.api_ms + c.prefill_ms + steps
    }

    /// Mean wait between arrival and the step that completes the prompt, batch places aside.
    fn turn_mean(&self) -> f64 {
        self.gate.mean().max(0.5 * self.residual_ms + self.turn.mean())
    }

    /// What percentile `p` means for every class.
    pub(crate) fn at(&self, model: &ReplicaModel, mix: &Mix, state: &State, p: f64) -> Point {
        let z = normal(p);
        // Short prompts share steps; long ones take turns. Each view is right at its end, and too small at the other.
        let turn = self.gate.quantile(z).max(p * self.residual_ms + self.turn.quantile(p));
        let place = (self.batch_wait.mean(), self.batch_wait.quantile(p));
        let mean = state.mean_batch;
        let batch = (mean + LIFETIME_AVERAGING * (state.batch_quantile(p) - mean)).max(1.0);
        Point { z, wait_ms: of_sum((self.turn_mean(), turn), place), decode_ms: mix.decode(model, batch) }
    }

    pub(crate) fn ttft(&self, c: &ClassWork, at: &Point) -> f64 {
        self.ttft_alone(c) + at.wait_ms
    }

    pub(crate) fn ttft_mean(&self, c: &ClassWork) -> f64 {
        self.ttft_alone(c) + self.turn_mean() + self.batch_wait.mean()
    }

    /// A request's own mean time per token, milliseconds.
    pub(crate) fn tpot(&self, c: &ClassWork, at: &Point) -> f64 {
        self.pace(c, at) / self.yielded
    }

    /// A request's own mean time per step, milliseconds.
    fn pace(&self, c: &ClassWork, at: &Point) -> f64 {
        let steps = c.decode_steps.max(1.0);
        // Prompts computed while it decodes: those it left waiting behind it, and those that come meanwhile, each
        // of which prolongs its stay for more to come. The mean and variance are those of a busy period that
        // begins with the request's own decode steps.
        let free = 1.0 - self.prefill_share;
        let own = steps * at.decode_ms;
        let mean_work = self.prefill_share * (own / free + self.prefill_wait.mean());
        // Variance λ E[w²] c²/(1 − ρ)³ for each unit of own steps. Where ρ > ½ the ratio of squared mean to variance
        // would fall again and low percentiles with it, so it is held: more load is never faster.
        let alone = 1.0 - self.feedback;
        let held = if self.feedback < 0.5 { 1.0 } else { 4.0 * self.feedback * alone };
        let variance = held * self.rate * self.work_square * self.dispersion * own / (free * alone * alone);
        at.decode_ms + gamma(mean_work, variance, at.z) / steps
    }

    /// End to end: means, and the two deviations as if independent.
    pub(crate) fn e2e(&self, c: &ClassWork, at: &Point) -> f64 {
        let ttft = self.ttft(c, at);
        if c.decode_steps <= 0.0 {
            return ttft;
        }
        let decode = c.decode_steps * self.pace(c, at);
        of_sum((self.ttft_mean(c), ttft), (c.decode_steps * self.pace_mean(), decode))
    }
}

/// Prompts that arrive during one step share the next: a gated queue.
struct Gate {
    rate: f64,
    burst: f64,
    decode_ms: f64,
    prefill_share: f64,
    /// Share of time taken by prompts that come in it.
    feedback: f64,
    /// Work of a prompt that has the step that carries it to itself, milliseconds.
    lone_ms: f64,
    /// What one adds to a step that has others: less where they are on other attention ranks.
    work_ms: f64,
    /// Second moment of that, ms².
    mate_square: f64,
    /// Second moment of the work that prompts bring to a step, times their index of dispersion, ms². What bursts add
    /// counts as on one rank each, so that it never falls as more share a step.
    work_square: f64,
    busy: f64,
    kind: Steps,
}

/// What steps begin for.
#[derive(Debug, Clone, Copy)]
enum Steps {
    /// Whatever runs and waits.
    Mixed,
    /// Prompts: nothing is decoded.
    Prompts,
    /// Prompts alone while there are any, decoding otherwise.
    PromptsFirst {
        /// Steps of prompts for each of decoding.
        prompts: f64,
        /// What such a step takes beside its prompts' work, milliseconds.
        alone_ms: f64,
    },
}

impl Gate {
    /// Mean step where each has a prompt at least: `X = D + w·λX/(1 − e^(−λX))`, the arrivals of the last step given
    /// that there are some.
    fn step_of_prompts(&self) -> f64 {
        const ROUNDS: u32 = 8;
        let mut step = (self.decode_ms + self.lone_ms).max(self.decode_ms / (1.0 - self.prefill_share));
        for _ in 0..ROUNDS {
            let arrivals = self.rate * step;
            let some = if arrivals > 1e-9 { arrivals / -(-arrivals).exp_m1() } else { 1.0 };
            step = self.decode_ms + self.lone_ms + self.work_ms * (some - 1.0);
        }
        step
    }

    /// Mean and variance of steps, of decoding (`D`) and of `prompts` of prompts for each of those (`S`, what is left of
    /// a cycle `D/(1 − ρ)`).
    fn either_step(&self, prompts: f64, alone_ms: f64) -> (f64, f64) {
        let (decode, q) = (self.decode_ms, prompts);
        let cycle = decode / (1.0 - self.prefill_share);
        if q <= 1e-12 {
            return (decode, 0.0);
        }
        let prompt = alone_ms.max((cycle - decode) / q);
        let mean = (decode + q * prompt) / (1.0 + q);
        let spread = self.rate * cycle * self.work_square;
        let square = (decode * decode + q * prompt * prompt + spread) / (1.0 + q);
        // Where steps of prompts are shorter than those of decoding, more of them would mean shorter waits: more load is
        // never faster.
        (mean, (square - mean * mean).max((decode - mean) * mean).max(0.0))
    }

    /// The rest of the step under way, and the prompts that come with one's own.
    ///
    /// A step lasts `X = D + work of prompts that arrived in the one before`, so `E[X] = D/(1 − ρ)` and
    /// `Var[X] = λ E[w²] E[X]/(1 − ρ²)`. An arrival finds a length-biased step, waits for a uniform part of it, and
    /// is joined by all who arrived in it and in its own burst, as far as the token budget goes.
    fn waits(&self, mix: &Mix, token_budget: f64) -> Waits {
        let rho = self.rate * self.work_ms;
        let (mean, variance) = match self.kind {
            Steps::Prompts => {
                let mean = self.step_of_prompts();
                (mean, self.rate * self.work_square * mean)
            }
            Steps::Mixed => {
                let mean = self.decode_ms / (1.0 - self.prefill_share);
                let rho = self.feedback;
                (mean, self.rate * self.work_square * mean / (1.0 - rho * rho))
            }
            Steps::PromptsFirst { prompts, alone_ms } => self.either_step(prompts, alone_ms),
        };
        let step = mean + variance / mean;
        // Requests beside one's own, as far as the step has room: first of one's burst (a size-biased geometric),
        // then of the step.
        let room = (token_budget / mix.new.max(1.0) - 1.0).max(0.0);
        let burst_mates = 2.0 * (self.burst - 1.0);
        let burst_fit = if burst_mates > room { room / burst_mates } else { 1.0 };
        let step_mates = self.rate * step * self.busy;
        let left = room - burst_fit * burst_mates;
        let fit = if step_mates > left { left / step_mates } else { 1.0 };
        // The rest of the step, and its prompts' work; both grow with its length.
        let part = 0.5 + fit * rho;
        let wait = part * step;
        let spread = variance * (1.0 / 3.0 + fit * rho * (1.0 + fit * rho))
            + step * step / 12.0
            + fit * self.rate * self.mate_square * step;
        let work = self.work_ms;
        let burst = burst_fit * burst_mates * work;
        Waits {
            step: (self.busy * wait, self.busy * (spread + wait * wait) - (self.busy * wait).powi(2)),
            burst: (burst, self.burst * burst * work),
        }
    }
}

/// The gate's two waits, each with mean and variance.
#[derive(Debug, Clone, Copy)]
struct Waits {
    /// The step under way and the prompts that arrived in it.
    step: (f64, f64),
    /// The rest of one's own burst.
    burst: (f64, f64),
}

impl Waits {
    fn mean(&self) -> f64 {
        self.step.0 + self.burst.0
    }

    fn quantile(&self, z: f64) -> f64 {
        let part = |(mean, variance)| (mean, gamma(mean, variance, z));
        of_sum(part(self.step), part(self.burst))
    }
}

/// What a [`LoadPrediction`] and its classes share.
#[derive(Debug)]
struct Inner {
    model: ReplicaModel,
    mix: Mix,
    state: State,
    /// `None` when saturated.
    shared: Option<Shared>,
}

/// Latencies of one class under a load.
#[derive(Debug, Clone)]
pub struct ClassPrediction {
    /// Name of the request class.
    pub name: String,
    /// Its SLO class.
    pub slo_class: String,
    /// Its rate, requests per second.
    pub rps: f64,
    inner: Arc<Inner>,
    index: usize,
}

impl ClassPrediction {
    fn with(&self, f: impl Fn(&Shared, &ClassWork) -> f64) -> f64 {
        match (&self.inner.shared, self.inner.mix.classes.get(self.index)) {
            (Some(shared), Some(class)) => f(shared, class),
            _ => f64::INFINITY,
        }
    }

    fn at(&self, p: Percentile, f: impl Fn(&Shared, &ClassWork, &Point) -> f64) -> f64 {
        let Inner { model, mix, state, .. } = self.inner.as_ref();
        self.with(|s, c| f(s, c, &s.at(model, mix, state, p.fraction())))
    }

    /// Time to first token at this percentile, milliseconds, API time included; infinite when saturated. Below the
    /// median, waits are those of the median.
    pub fn ttft_ms(&self, p: Percentile) -> f64 {
        self.at(p, Shared::ttft)
    }

    /// A request's own mean time per output token after the first at this percentile, milliseconds.
    pub fn tpot_ms(&self, p: Percentile) -> f64 {
        self.at(p, Shared::tpot)
    }

    /// End to end at this percentile, milliseconds, for an answer of the class's mean length.
    pub fn e2e_ms(&self, p: Percentile) -> f64 {
        self.at(p, Shared::e2e)
    }

    /// Mean time to first token, milliseconds.
    pub fn mean_ttft_ms(&self) -> f64 {
        self.with(Shared::ttft_mean)
    }

    /// Mean time per output token, milliseconds.
    pub fn mean_tpot_ms(&self) -> f64 {
        self.with(|s, _| s.tpot_mean())
    }
}

/// A replica under a load.
#[derive(Debug, Clone)]
pub struct LoadPrediction {
    /// By request class, in the order asked.
    pub classes: Vec<ClassPrediction>,
    /// Rate as a share of the highest at which the queue stays finite; above 1 when overloaded.
    pub utilisation: f64,
    /// Whether the queue would grow for ever; every latency is then infinite.
    pub saturated: bool,
    /// What the replica would run out of first.
    pub resource: Resource,
    /// Mean running requests (the batch limit when saturated).
    pub running: f64,
    /// Mean share of KV cache in use.
    pub kv_usage: f64,
    /// Mean power of the replica's accelerators, watts: idle ones included, host and cooling not.
    pub watts: f64,
    /// Relative error to expect of these latencies (p90).
    pub relative_error: f64,
}

impl LoadPrediction {
    /// The class of this name.
    pub fn class(&self, name: &str) -> Option<&ClassPrediction> {
        self.classes.iter().find(|c| c.name == name)
    }
}

/// The resource that binds with this many running: a full batch names what fills it, otherwise the dominant part of
/// the step.
pub(crate) fn binding_resource(model: &ReplicaModel, mix: &Mix, running: f64, rate: f64) -> Resource {
    if running >= 0.9 * mix.limit as f64 {
        return if mix.limited_by_kv { Resource::KvCapacity } else { Resource::BatchLimit };
    }
    mix.breakdown(model, running, rate).dominant()
}

pub(crate) fn predict(
    model: &ReplicaModel,
    classes: &[RequestClass],
    total_rps: f64,
    arrival_scv: f64,
) -> LoadPrediction {
    let mix = Mix::new(model, classes);
    let rate = if total_rps.is_finite() { total_rps.max(0.0) / 1e3 } else { f64::INFINITY };
    let burst = burst_size(arrival_scv);
    let mut state = State::default();
    let solved = state.solve(&mix, rate, burst);
    let shared = if solved { Shared::new(model, &mix, &state, rate, burst) } else { None };
    let running = if shared.is_some() { state.mean_running } else { mix.limit as f64 };
    let saturation = mix.saturation_per_ms();
    let resource = binding_resource(model, &mix, running, rate.min(saturation));
    let kv_usage = (running * model.kv.footprint(mix.context) / model.memory.kv_tokens).min(1.0);
    let saturated = shared.is_none();
    let busy = if saturated { 1.0 } else { state.busy };
    let watts = if busy > 0.0 {
        let load = mix.load(model, running / busy, rate.min(saturation) / busy);
        busy * model.step_watts(&load) + (1.0 - busy) * model.idle_watts()
    } else {
        model.idle_watts()
    };
    let inner = Arc::new(Inner { model: model.clone(), mix, state, shared });
    LoadPrediction {
        classes: classes
            .iter()
            .enumerate()
            .map(|(index, c)| ClassPrediction {
                name: c.name.clone(),
                slo_class: c.slo_class.clone(),
                rps: total_rps * inner.mix.classes.get(index).map_or(0.0, |w| w.share),
                inner: Arc::clone(&inner),
                index,
            })
            .collect(),
        utilisation: if saturation > 0.0 { rate / saturation } else { 0.0 },
        saturated,
        resource,
        running,
        kv_usage,
        watts,
        relative_error: model.relative_error,
    }
}
