//! Which few points to measure on a new engine and accelerator.

use super::coefficients::{COUNT, Coefficient, with_logs};
use super::fit::gradient;
use super::linear::{Matrix, Vector};
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

/// The points that tell most about the coefficients, best first (Bayesian D-optimal design, chosen greedily: each
/// next point is the one that shrinks the posterior's volume most; Chaloner & Verdinelli, *Statistical Science*
/// 1995).
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
    let Some(mut precision) = prior.covariance.inverse() else { return Ok(Vec::new()) };
    let mut chosen: Vec<Probe> = Vec::new();
    while chosen.len() < limits.count {
        let best = candidates
            .iter()
            .filter(|c| !chosen.iter().any(|p| c.is(p)))
            .filter_map(|c| Some((c, c.added_to(&precision).log_determinant()?)))
            .max_by(|a, b| a.1.total_cmp(&b.1));
        let Some((best, _)) = best else { break };
        let after = best.added_to(&precision);
        chosen.push(best.probe(why(&precision, &after)));
        precision = after;
    }
    Ok(chosen)
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
    let Some(mut precision) = prior.covariance.inverse() else { return Vec::new() };
    let mut chosen = Vec::new();
    while chosen.len() < count.min(observations.len()) {
        let with = |i: usize| {
            let mut m = precision;
            slopes.get(i)?.iter().for_each(|s| m.add_outer(s, 1.0 / (SCATTER * SCATTER)));
            Some((i, m, m.log_determinant()?))
        };
        let best = (0..observations.len())
            .filter(|i| !chosen.contains(i))
            .filter_map(with)
            .max_by(|a, b| a.2.total_cmp(&b.2));
        let Some((i, after, _)) = best else { break };
        chosen.push(i);
        precision = after;
    }
    chosen
}

const STEP: f64 = 1e-4;

struct Candidate {
    concurrency: u32,
    input_tokens: u32,
    output_tokens: u32,
    rows: Vec<Vector>,
}

impl Candidate {
    fn is(&self, p: &Probe) -> bool {
        (self.concurrency, self.input_tokens, self.output_tokens)
            == (p.concurrency, p.input_tokens, p.output_tokens)
    }

    fn added_to(&self, precision: &Matrix) -> Matrix {
        let mut m = *precision;
        self.rows.iter().for_each(|r| m.add_outer(r, 1.0 / (SCATTER * SCATTER)));
        m
    }

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
    let (Some(before), Some(after)) = (before.inverse(), after.inverse()) else { return String::new() };
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
