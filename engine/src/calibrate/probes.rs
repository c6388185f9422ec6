//! Which few points to measure on a new engine and accelerator.

use super::coefficients::{COUNT, Coefficient, with_logs};
use super::fit::gradient;
use super::linear::{Matrix, Vector, dot};
use super::observation::{Metric, Observation, Subject, Workload};
use super::prior::Prior;
use crate::{DoesNotFit, ReplicaModel};

/// One closed-loop point to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Requests in flight.
    pub concurrency: u32,
    /// Prompt tokens, different ones for each request so that no cache answers.
    pub input_tokens: u32,
    /// Answer tokens.
    pub output_tokens: u32,
    /// What it is for.
    pub why: String,
}

/// What may be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeLimits {
    /// Most probes.
    pub count: usize,
    /// Most requests in flight.
    pub max_concurrency: u32,
    /// Longest request (prompt and answer), tokens.
    pub max_tokens: u32,
}

impl Default for ProbeLimits {
    fn default() -> Self {
        Self { count: 10, max_concurrency: 256, max_tokens: 16_384 }
    }
}

/// Scatter of one measured time, as its logarithm.
const SCATTER: f64 = 0.05;
const INPUTS: [u32; 6] = [128, 512, 1024, 4096, 8192, 16_384];
const OUTPUTS: [u32; 3] = [32, 128, 512];
const BATCHES: [u32; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

/// The points that tell most about what the replica does, best first: each next one is that after which the variance of
/// predictions, over all points that might be measured, is least (Bayesian I-optimal design, chosen greedily; Chaloner &
/// Verdinelli, *Statistical Science* 1995). Coefficients that hardly show in times are not worth a point.
///
/// A point gives TPOT and, with a lone client, TTFT. Points that would not fit into the KV cache or the limits are
/// left out; where limits are tight there may be fewer than asked.
///
/// # Errors
/// [`DoesNotFit`] if the replica cannot exist.
pub fn probes(subject: &Subject, limits: &ProbeLimits) -> Result<Vec<Probe>, DoesNotFit> {
    let prior = Prior::around(&subject.accelerator.calibration);
    let base = prior.calibration();
    let here = subject.model(&base)?;
    let mut moved = Vec::with_capacity(COUNT);
    for i in 0..COUNT {
        let mut x = prior.mean;
        x[i] += STEP;
        moved.push(subject.model(&with_logs(&base, &x))?);
    }
    let candidates = candidates(&here, &moved, subject, limits);
    let rows: Vec<&[Vector]> = candidates.iter().map(|c| c.rows.as_slice()).collect();
    let mut known = prior.covariance;
    let mut chosen = Vec::new();
    for at in design(&rows, &prior.covariance, limits.count) {
        let Some(best) = candidates.get(at) else { continue };
        let after = measured(&known, &best.rows);
        chosen.push(best.probe(why(&known, &after)));
        known = after;
    }
    Ok(chosen)
}

/// The covariance that is left once these slopes were measured: `Σ − Σs(sᵀΣs + σ²)⁻¹sᵀΣ` for each.
fn measured(covariance: &Matrix, slopes: &[Vector]) -> Matrix {
    let mut left = *covariance;
    for s in slopes {
        let spread = left.times(s);
        left.add_outer(&spread, -1.0 / (dot(s, &spread) + SCATTER * SCATTER));
    }
    left
}

/// Positions of at most `count` candidates, each given by the slopes of the times that it shows, best first.
fn design(candidates: &[&[Vector]], covariance: &Matrix, count: usize) -> Vec<usize> {
    let all: Vec<&Vector> = candidates.iter().flat_map(|c| c.iter()).collect();
    let mut left = *covariance;
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < count.min(candidates.len()) {
        let uncertainty = |i: usize| {
            let after = measured(&left, candidates.get(i)?);
            Some((i, all.iter().map(|s| after.quadratic(s)).sum::<f64>()))
        };
        let best = (0..candidates.len())
            .filter(|i| !chosen.contains(i))
            .filter_map(uncertainty)
            .min_by(|a, b| a.1.total_cmp(&b.1));
        let Some((i, _)) = best else { break };
        chosen.push(i);
        left = measured(&left, candidates.get(i).copied().unwrap_or_default());
    }
    chosen
}

/// Which of these measurements tell most, best first: at most `count` positions. For choosing what to measure
/// again, or what to keep; the same design as [`probes`].
pub fn most_telling(observations: &[Observation], prior: &Prior, count: usize) -> Vec<usize> {
    let slopes: Vec<Vec<Vector>> = observations
        .iter()
        .map(|o| {
            let slope = |metric| {
                o.measured.get(metric)?;
                gradient(&o.subject, &prior.base, &prior.mean, |m| o.workload.predict(m, metric))
            };
            Metric::ALL.into_iter().filter_map(slope).map(|(_, s)| s).collect()
        })
        .collect();
    let rows: Vec<&[Vector]> = slopes.iter().map(Vec::as_slice).collect();
    design(&rows, &prior.covariance, count)
}

const STEP: f64 = 1e-4;

struct Candidate {
    concurrency: u32,
    input_tokens: u32,
    output_tokens: u32,
    rows: Vec<Vector>,
}

impl Candidate {
    fn probe(&self, why: String) -> Probe {
        Probe {
            concurrency: self.concurrency,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            why,
        }
    }
}

fn candidates(
    here: &ReplicaModel,
    moved: &[ReplicaModel],
    subject: &Subject,
    limits: &ProbeLimits,
) -> Vec<Candidate> {
    let longest = limits.max_tokens.min(subject.architecture.max_context_tokens);
    let most = limits.max_concurrency.min(subject.config.max_running);
    let mut out = Vec::new();
    for input_tokens in INPUTS {
        for output_tokens in OUTPUTS {
            for concurrency in BATCHES {
                let tokens = input_tokens + output_tokens;
                let fits = f64::from(concurrency) * f64::from(tokens) < 0.8 * here.memory().kv_tokens;
                if tokens > longest || concurrency > most || !fits {
                    continue;
                }
                let workload = Workload::ClosedLoop {
                    concurrency: f64::from(concurrency),
                    input_tokens: f64::from(input_tokens),
                    output_tokens: f64::from(output_tokens),
                };
                let rows = [Metric::Tpot, Metric::Ttft]
                    .into_iter()
                    .filter_map(|metric| row(here, moved, &workload, metric))
                    .collect();
                out.push(Candidate { concurrency, input_tokens, output_tokens, rows });
            }
        }
    }
    out
}

fn row(here: &ReplicaModel, moved: &[ReplicaModel], workload: &Workload, metric: Metric) -> Option<Vector> {
    let now = workload.predict(here, metric)?.ln();
    let mut slope = [0.0; COUNT];
    for (s, m) in slope.iter_mut().zip(moved) {
        *s = (workload.predict(m, metric)?.ln() - now) / STEP;
    }
    slope.iter().all(|s| s.is_finite()).then_some(slope)
}

/// The coefficients whose uncertainty a point cuts most.
fn why(before: &Matrix, after: &Matrix) -> String {
    let mut cuts: Vec<(Coefficient, f64, f64)> = Coefficient::ALL
        .into_iter()
        .map(|k| (k, before.0[k.index()][k.index()].sqrt(), after.0[k.index()][k.index()].sqrt()))
        .collect();
    cuts.sort_by(|a, b| (a.2 / a.1).total_cmp(&(b.2 / b.1)));
    let parts: Vec<String> = cuts
        .iter()
        .take(2)
        .map(|(k, sd, less)| format!("{k} ±{:.0} % to ±{:.0} %", 100.0 * sd, 100.0 * less))
        .collect();
    parts.join(", ")
}
