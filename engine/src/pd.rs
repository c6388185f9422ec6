//! Prefill and decode on replicas of their own.
//!
//! A prompt waits for and is computed on a prefill replica (a queue without decode in its way), its keys and values
//! go to a decode replica, which admits it, computes the last prompt token again for the first answer token, and
//! generates the rest without prompts in its way. So TTFT = prefill's TTFT + transfer + decode's TTFT, and TPOT is
//! decode's alone. This is the protocol of vLLM's KV connectors; an engine whose prefill replica answers the first
//! token itself is up to one decode step and transfer faster to it.
//!
//! Sizing starts from DistServe's rule (Zhong et al., 2024, algorithm 1): the highest rate of each phase alone, then
//! `n = ceil(rate / goodput)` replicas of it.

use plimsoll_fleet::{
    AcceleratorClass, ModelArchitecture, Objective, Percentile, RequestClass, Role, Shape, Slo,
    shape::Variant,
};

use crate::kv::KvLayout;
use crate::links::{LinkTier, bandwidth};
use crate::quantile::of_sum;
use crate::{ClassPrediction, Limit, LoadLine, LoadPrediction, MAX_UTILISATION, ReplicaModel};

/// Time to set up one transfer, milliseconds. Not measured: a round trip of the control plane and registration of
/// blocks.
const SET_UP_MS: f64 = 2.0;

/// One of the two phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Prompts.
    Prefill,
    /// The way of keys and values between them.
    Transfer,
    /// Answers.
    Decode,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prefill => "prefill",
            Self::Transfer => "KV transfer",
            Self::Decode => "decode",
        })
    }
}

/// Why two replicas make no pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PdError {
    /// A replica of another role.
    #[error("the {phase} replica has role {role}; give it role {phase}")]
    Role {
        /// Which of the two.
        phase: Phase,
        /// Its role.
        role: Role,
    },
}

/// How keys and values get from a prefill to a decode replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvTransfer {
    layout: KvLayout,
    bytes_per_second: f64,
    latency_ms: f64,
}

impl KvTransfer {
    /// Over links of this tier, all accelerators of the smaller side sending at once: bytes over the slower side's
    /// bandwidth times the share of it that large transfers reach. Every head goes once.
    pub fn new(
        arch: &ModelArchitecture,
        variant: &Variant,
        prefill: (&AcceleratorClass, &Shape),
        decode: (&AcceleratorClass, &Shape),
        tier: LinkTier,
    ) -> Self {
        let whole = Shape { tensor_parallel: 1, pipeline_parallel: 1, data_parallel: 1, ..prefill.1.clone() };
        let rate = |(acc, shape): (&AcceleratorClass, &Shape)| {
            let gpus = f64::from(shape.tensor_parallel) * f64::from(shape.pipeline_parallel);
            bandwidth(acc, tier) * acc.calibration.eta_link * gpus
        };
        Self {
            layout: KvLayout::new(arch, variant, &whole, 1, 0.0),
            bytes_per_second: rate(prefill).min(rate(decode)),
            latency_ms: SET_UP_MS,
        }
    }

    /// The same with a measured rate and latency.
    #[must_use]
    pub fn measured(self, bytes_per_second: f64, latency_ms: f64) -> Self {
        Self { bytes_per_second, latency_ms, ..self }
    }

    /// Bytes of a prompt of this length.
    pub fn bytes(&self, prompt_tokens: f64) -> f64 {
        self.layout.footprint(prompt_tokens) * self.layout.token_bytes
    }

    /// Time of one prompt alone on the link, milliseconds.
    pub fn ms(&self, prompt_tokens: f64) -> f64 {
        self.latency_ms + self.occupied_ms(prompt_tokens)
    }

    /// Time for which one prompt takes the whole link, milliseconds.
    pub fn occupied_ms(&self, prompt_tokens: f64) -> f64 {
        1e3 * self.bytes(prompt_tokens) / self.bytes_per_second
    }
}

/// A kind of prefill replica, a kind of decode replica, and what joins them.
#[derive(Debug, Clone, PartialEq)]
pub struct PdModel {
    prefill: ReplicaModel,
    decode: ReplicaModel,
    transfer: KvTransfer,
}

/// One class on both kinds of replica.
#[derive(Debug, Clone)]
pub struct PdClassPrediction {
    /// Name of the request class.
    pub name: String,
    prefill: ClassPrediction,
    decode: ClassPrediction,
    /// Time of the transfer beside others, milliseconds.
    pub transfer_ms: f64,
    more_tokens: f64,
}

impl PdClassPrediction {
    fn sum(&self, a: (f64, f64), b: (f64, f64)) -> f64 {
        let sum = of_sum(a, b) + self.transfer_ms;
        if sum.is_finite() { sum } else { f64::INFINITY }
    }

    /// Time to first token at this percentile, milliseconds; infinite when either phase or the link is saturated.
    pub fn ttft_ms(&self, p: Percentile) -> f64 {
        let (a, b) = (&self.prefill, &self.decode);
        self.sum((a.mean_ttft_ms(), a.ttft_ms(p)), (b.mean_ttft_ms(), b.ttft_ms(p)))
    }

    /// A request's own mean time per output token after the first at this percentile, milliseconds.
    pub fn tpot_ms(&self, p: Percentile) -> f64 {
        self.decode.tpot_ms(p)
    }

    /// End to end at this percentile, milliseconds.
    pub fn e2e_ms(&self, p: Percentile) -> f64 {
        let (a, b) = (&self.prefill, &self.decode);
        let mean = b.mean_ttft_ms() + self.more_tokens * b.mean_tpot_ms();
        self.sum((a.mean_ttft_ms(), a.ttft_ms(p)), (mean, b.e2e_ms(p)))
    }

    /// Mean time to first token, milliseconds.
    pub fn mean_ttft_ms(&self) -> f64 {
        self.prefill.mean_ttft_ms() + self.transfer_ms + self.decode.mean_ttft_ms()
    }

    /// Mean time per output token, milliseconds.
    pub fn mean_tpot_ms(&self) -> f64 {
        self.decode.mean_tpot_ms()
    }
}

/// Prefill and decode replicas under a load.
#[derive(Debug, Clone)]
pub struct PdPrediction {
    /// By request class, in the order asked.
    pub classes: Vec<PdClassPrediction>,
    /// One prefill replica.
    pub prefill: LoadPrediction,
    /// One decode replica.
    pub decode: LoadPrediction,
    /// Share of the link's bandwidth in use, of the side with fewer replicas.
    pub transfer_utilisation: f64,
    /// Whether a queue would grow for ever somewhere.
    pub saturated: bool,
}

/// How much a set of prefill and decode replicas can take.
#[derive(Debug, Clone, PartialEq)]
pub struct PdLine {
    /// Highest total rate with every objective met, requests per second; 0 if there is none.
    pub rps: f64,
    /// Rate above which a queue would grow for ever, requests per second.
    pub saturation_rps: f64,
    /// The objective that would be missed first.
    pub limit: Limit,
    /// The phase that is nearest to its own saturation.
    pub phase: Phase,
}

impl PdModel {
    /// Joins two kinds of replica.
    ///
    /// # Errors
    /// [`PdError`] unless their roles are [`Role::Prefill`] and [`Role::Decode`].
    pub fn new(prefill: ReplicaModel, decode: ReplicaModel, transfer: KvTransfer) -> Result<Self, PdError> {
        let right = |phase, model: &ReplicaModel, role| {
            if model.role() == role { Ok(()) } else { Err(PdError::Role { phase, role: model.role() }) }
        };
        right(Phase::Prefill, &prefill, Role::Prefill)?;
        right(Phase::Decode, &decode, Role::Decode)?;
        Ok(Self { prefill, decode, transfer })
    }

    /// The prefill replica.
    pub fn prefill(&self) -> &ReplicaModel {
        &self.prefill
    }

    /// The decode replica.
    pub fn decode(&self) -> &ReplicaModel {
        &self.decode
    }

    /// What joins them.
    pub fn transfer(&self) -> &KvTransfer {
        &self.transfer
    }

    /// Mean time that a request occupies the link, milliseconds.
    fn occupied_ms(&self, mix: &[RequestClass]) -> f64 {
        let total: f64 = mix.iter().map(|c| c.rps).filter(|r| r.is_finite() && *r > 0.0).sum();
        let share = |c: &RequestClass| match total > 0.0 {
            true if c.rps.is_finite() => c.rps.max(0.0) / total,
            true => 0.0,
            false => 1.0 / mix.len() as f64,
        };
        mix.iter().map(|c| share(c) * self.transfer.occupied_ms(tokens(c.input_tokens))).sum()
    }

    /// Latencies when `mix` arrives at `total_rps` at `prefill` and `decode` replicas, spread evenly. `arrival_scv`
    /// is that of arrivals at one replica; decode is taken to see the same, though prefill smooths them. Transfers
    /// share the link (processor sharing, `t/(1 − ρ)`).
    pub fn predict(
        &self,
        mix: &[RequestClass],
        total_rps: f64,
        arrival_scv: f64,
        prefill: u32,
        decode: u32,
    ) -> PdPrediction {
        let each = |n: u32| total_rps / f64::from(n.max(1));
        let p = self.prefill.predict(mix, each(prefill), arrival_scv);
        let d = self.decode.predict(mix, each(decode), arrival_scv);
        let rho = each(prefill.min(decode)).max(0.0) * 1e-3 * self.occupied_ms(mix);
        let stretch = if rho < 1.0 { 1.0 / (1.0 - rho) } else { f64::INFINITY };
        let classes = mix
            .iter()
            .zip(p.classes.iter().zip(&d.classes))
            .map(|(c, (p, d))| {
                let input = tokens(c.input_tokens);
                PdClassPrediction {
                    name: c.name.clone(),
                    prefill: p.clone(),
                    decode: d.clone(),
                    transfer_ms: self.transfer.latency_ms + self.transfer.occupied_ms(input) * stretch,
                    more_tokens: tokens(c.output_tokens) - 1.0,
                }
            })
            .collect();
        let saturated = p.saturated || d.saturated || stretch.is_infinite();
        PdPrediction { classes, prefill: p, decode: d, transfer_utilisation: rho, saturated }
    }

    /// The highest rate at which no queue grows for ever, requests per second, and the phase that sets it.
    pub fn saturation(&self, mix: &[RequestClass], prefill: u32, decode: u32) -> (f64, Phase) {
        let (p, d) = (f64::from(prefill), f64::from(decode));
        let link = 1e3 * p.min(d) / self.occupied_ms(mix);
        [
            (self.decode.saturation_rps(mix) * d, Phase::Decode),
            (self.prefill.saturation_rps(mix) * p, Phase::Prefill),
            (link, Phase::Transfer),
        ]
        .into_iter()
        .fold((f64::INFINITY, Phase::Decode), |best, next| if next.0 < best.0 { next } else { best })
    }

    /// The highest rate of `mix` on so many replicas at which every objective holds; meanings as in
    /// [`ReplicaModel::load_line`].
    pub fn load_line(
        &self,
        mix: &[RequestClass],
        slos: &dyn Fn(&str) -> Slo,
        arrival_scv: f64,
        margin: f64,
        prefill: u32,
        decode: u32,
    ) -> PdLine {
        const HALVINGS: u32 = 20;
        let stretch = 1.0 + if margin.is_finite() { margin.max(0.0) } else { 0.0 };
        let (saturation_rps, phase) = self.saturation(mix, prefill, decode);
        let missed = |rps: f64| {
            first_missed(mix, &self.predict(mix, rps, arrival_scv, prefill, decode), slos, stretch)
        };
        let line = |rps, limit| PdLine { rps, saturation_rps, limit, phase };
        if mix.is_empty() || !(saturation_rps > 0.0 && saturation_rps.is_finite()) {
            return line(0.0, Limit::Saturation);
        }
        let ceiling = saturation_rps * MAX_UTILISATION / stretch;
        let Some(mut limit) = missed(ceiling) else { return line(ceiling, Limit::Saturation) };
        let (mut low, mut high) = (1e-9 * saturation_rps, ceiling);
        if let Some(limit) = missed(low) {
            return line(0.0, limit);
        }
        for _ in 0..HALVINGS {
            let mid = 0.5 * (low + high);
            match missed(mid) {
                None => low = mid,
                Some(l) => (high, limit) = (mid, l),
            }
            if high - low < 1e-3 * low {
                break;
            }
        }
        line(low, limit)
    }

    /// The load line of each phase alone, as DistServe sizes them: prefill under TTFT less what transfer and an idle
    /// decode replica take of it, decode under TPOT.
    pub fn phase_lines(
        &self,
        mix: &[RequestClass],
        slos: &dyn Fn(&str) -> Slo,
        arrival_scv: f64,
        margin: f64,
    ) -> (LoadLine, LoadLine) {
        let idle = self.decode.predict(mix, 0.0, 1.0);
        let taken = |class: &str| {
            mix.iter()
                .zip(&idle.classes)
                .filter(|(c, _)| c.slo_class == class)
                .map(|(c, d)| self.transfer.ms(tokens(c.input_tokens)) + d.ttft_ms(Percentile::P50))
                .fold(0.0, f64::max)
        };
        let first = |class: &str| {
            let left = |o: Objective| Objective { ms: (o.ms - taken(class)).max(0.0), ..o };
            Slo { ttft: slos(class).ttft.map(left), ..Slo::default() }
        };
        let rest = |class: &str| Slo { tpot: slos(class).tpot, ..Slo::default() };
        (
            self.prefill.load_line(mix, &first, arrival_scv, margin),
            self.decode.load_line(mix, &rest, arrival_scv, margin),
        )
    }

    /// How many prefill and decode replicas serve `mix` at this rate within every objective: DistServe's rule first,
    /// then one more of the phase that binds until it holds. `None` if up to 64 more do not do it.
    pub fn size(
        &self,
        mix: &[RequestClass],
        slos: &dyn Fn(&str) -> Slo,
        rps: f64,
        arrival_scv: f64,
        margin: f64,
    ) -> Option<(u32, u32)> {
        let (p, d) = self.phase_lines(mix, slos, arrival_scv, margin);
        if !(p.rps > 0.0 && d.rps > 0.0 && rps.is_finite()) {
            return None;
        }
        let count = |line: f64| ((rps / line).ceil().clamp(1.0, 1e6)) as u32;
        let (mut n, mut m) = (count(p.rps), count(d.rps));
        for _ in 0..=64 {
            let line = self.load_line(mix, slos, arrival_scv, margin, n, m);
            if line.rps >= rps {
                return Some((n, m));
            }
            match (line.limit, line.phase) {
                (Limit::Ttft(_), Phase::Prefill) | (Limit::Saturation, Phase::Prefill) => n += 1,
                (Limit::Ttft(_), _) if n <= m => n += 1,
                (_, Phase::Transfer) if n <= m => n += 1,
                _ => m += 1,
            }
        }
        None
    }
}

fn tokens(x: f64) -> f64 {
    if x.is_finite() { x.max(1.0) } else { 1.0 }
}

/// Share of a class's requests later than this, by bisection over percentiles.
fn late(latency: &dyn Fn(Percentile) -> f64, ms: f64) -> f64 {
    // In x = −ln(1 − p), of which latency is a nearly straight function.
    let over = |x: f64| Percentile::new(100.0 * (1.0 - (-x).exp())).is_ok_and(|p| latency(p) > ms);
    let (mut low, mut high) = (0.0005, 7.6);
    if !over(high) {
        return 0.0;
    }
    if over(low) {
        return 1.0;
    }
    for _ in 0..8 {
        let mid = 0.5 * (low + high);
        if over(mid) { high = mid } else { low = mid }
    }
    (-low).exp()
}

type Latency = fn(&PdClassPrediction, Percentile) -> f64;
type Member<'a> = (&'a RequestClass, &'a PdClassPrediction);

/// Whether more of these classes' requests, weighed by their rates, are late than the objective allows.
fn misses(members: &[Member<'_>], latency: Latency, objective: Objective, stretch: f64) -> bool {
    let rate = |c: &RequestClass| if c.rps.is_finite() { c.rps.max(0.0) } else { 0.0 };
    // Where no class has a rate, all count alike.
    let even = members.iter().all(|(c, _)| rate(c) == 0.0);
    let weight = |c: &RequestClass| if even { 1.0 } else { rate(c) };
    let total: f64 = members.iter().map(|(c, _)| weight(c)).sum();
    let late: f64 = members
        .iter()
        .filter(|(c, _)| weight(c) > 0.0)
        .map(|(c, p)| {
            // A class alone is judged at the percentile itself.
            let share = if weight(c) >= total {
                f64::from(u8::from(latency(p, objective.percentile) * stretch > objective.ms))
            } else {
                late(&|at| latency(p, at) * stretch, objective.ms)
            };
            weight(c) * share
        })
        .sum();
    late > (1.0 - objective.percentile.fraction()) * total
}

/// The first objective that is missed, if any: an objective's percentile is over all requests of its SLO class.
fn first_missed(
    mix: &[RequestClass],
    prediction: &PdPrediction,
    slos: &dyn Fn(&str) -> Slo,
    stretch: f64,
) -> Option<Limit> {
    if prediction.saturated {
        return Some(Limit::Saturation);
    }
    let mut done: Vec<&str> = Vec::new();
    for class in mix {
        if done.contains(&class.slo_class.as_str()) {
            continue;
        }
        done.push(&class.slo_class);
        let slo = slos(&class.slo_class);
        let members: Vec<Member<'_>> =
            mix.iter().zip(&prediction.classes).filter(|(c, _)| c.slo_class == class.slo_class).collect();
        // A single-token answer has no time per output token.
        let longer: Vec<Member<'_>> =
            members.iter().copied().filter(|(c, _)| tokens(c.output_tokens) > 1.0).collect();
        let limits: [(Option<Objective>, Limit, &[Member<'_>], Latency); 3] = [
            (slo.tpot, slo.tpot.map_or(Limit::Saturation, Limit::Tpot), &longer, PdClassPrediction::tpot_ms),
            (slo.ttft, slo.ttft.map_or(Limit::Saturation, Limit::Ttft), &members, PdClassPrediction::ttft_ms),
            (slo.e2e, slo.e2e.map_or(Limit::Saturation, Limit::E2e), &members, PdClassPrediction::e2e_ms),
        ];
        for (objective, limit, members, latency) in limits {
            if objective.is_some_and(|o| misses(members, latency, o, stretch)) {
                return Some(limit);
            }
        }
    }
    None
}
