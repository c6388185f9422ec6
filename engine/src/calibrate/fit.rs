//! Robust fit: the coefficients most probable under a prior, given measurements that may contain outliers.
//!
//! With `x` the coefficients' logarithms, the fit minimises
//! `Σ ρ((ln predicted(x) − ln measured)/σ) + ½ (x − μ)ᵀ Σ⁻¹ (x − μ)`, with the ρ of Student's t distribution, by
//! iteratively reweighted Levenberg–Marquardt (Nocedal & Wright, *Numerical Optimization*, section 10.3). σ is the
//! residuals' own robust scale (median absolute deviation), drawn towards the prior's where there are few of them.
//! The posterior is Laplace's approximation: the inverse of the Gauss–Newton Hessian.

use std::sync::Arc;

use plimsoll_fleet::Calibration;

use super::coefficients::{COUNT, Coefficient, with_logs};
use super::linear::{Matrix, Vector, dot};
use super::observation::{Metric, Observation, Subject};
use super::prior::Prior;
use crate::{DoesNotFit, ReplicaModel};

/// Degrees of freedom of the residuals' t distribution: heavy tails, yet efficient when there are no outliers.
const FREEDOM: f64 = 4.0;
/// How many residuals the prior's scatter counts for.
const SCATTER_WEIGHT: f64 = 6.0;
/// The normal distribution's 90th percentile of absolute values.
const P90: f64 = 1.645;
/// Scatter of logarithms of mean times to first token under load around a simulation that has the API time right.
const FIRST_TOKEN_SCATTER: f64 = 0.15;
/// Step of the numerical derivative, in logarithms.
const STEP: f64 = 1e-4;
const ITERATIONS: usize = 100;

/// Why there is no fit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FitError {
    /// Nothing to fit to.
    #[error(
        "none of {observations} observations has a time that the model predicts in closed form; add TPOT of closed loops, \
         TTFT of a lone client, or step times"
    )]
    NothingToFit {
        /// Observations given.
        observations: usize,
    },
    /// A measured replica that the model says cannot exist.
    #[error("observation {index}: {source}; check the model, shape and engine settings it was recorded with")]
    DoesNotFit {
        /// Position in the list given.
        index: usize,
        /// What does not fit.
        source: DoesNotFit,
    },
    /// A figure that makes no sense.
    #[error("observation {index}: {field} is {value}; {remedy}")]
    Invalid {
        /// Position in the list given.
        index: usize,
        /// The figure.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        remedy: &'static str,
    },
    /// The prior is no distribution.
    #[error("the prior's covariance is not positive definite; use Prior::around")]
    Prior,
}

/// How one measured time compares with the fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Residual {
    /// Position in the list of observations.
    pub observation: usize,
    /// What was measured.
    pub metric: Metric,
    /// `ln predicted − ln measured`.
    pub log_error: f64,
    /// Weight that the fit gave it, relative to one without error: small for outliers.
    pub weight: f64,
}

/// Coefficients found, and how well they are known.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The coefficients; their `relative_error` is this fit's.
    pub calibration: Calibration,
    /// Relative error (90th percentile) to expect of predictions for replicas like those measured.
    pub relative_error: f64,
    /// Every measured time that took part.
    pub residuals: Vec<Residual>,
    /// Robust standard deviation of the log residuals.
    pub scatter: f64,
    /// Iterations taken.
    pub iterations: usize,
    /// Whether the last iteration changed nothing.
    pub converged: bool,
    pub(crate) mean: Vector,
    pub(crate) covariance: Matrix,
}

impl Fit {
    /// Standard deviation of a coefficient's logarithm: about its relative error.
    pub fn sd(&self, k: Coefficient) -> f64 {
        self.covariance.0[k.index()][k.index()].max(0.0).sqrt()
    }

    /// Relative error (90th percentile) to expect of this metric, the scatter of measurements included; `None` if the
    /// closed form says nothing of it or the replica cannot exist.
    pub fn predicted_error(&self, observation: &Observation, metric: Metric) -> Option<f64> {
        let row = gradient(&observation.subject, &self.calibration, &self.mean, |m| {
            observation.workload.predict(m, metric)
        })?;
        Some((P90 * (self.covariance.quadratic(&row.1) + self.scatter * self.scatter).sqrt()).exp() - 1.0)
    }
}

impl Fit {
    /// The same with the API overhead found from mean times to first token under load, as pairs of what a simulation
    /// with this fit's coefficients says and what was measured, milliseconds. [`fit`] sees API time only in requests of
    /// lone clients; under load, where waiting takes a simulation, it adds to all alike.
    ///
    /// Robust as the fit itself, with the same prior: pairs far off, where the queue was guessed wrongly, count for
    /// little. Pairs that are not finite and above 0 are left out.
    #[must_use]
    pub fn with_first_tokens(mut self, pairs: &[(f64, f64)]) -> Self {
        const GRID: i32 = 400;
        let usable = |(p, m): &&(f64, f64)| p.is_finite() && m.is_finite() && *p > 0.0 && *m > 0.0;
        let at = Coefficient::ApiOverhead.index();
        let (now_ms, prior_log, variance) =
            (self.calibration.api_overhead_ms, self.mean[at], self.covariance.0[at][at]);
        // What is not API time, and what was measured.
        let pairs: Vec<(f64, f64)> =
            pairs.iter().filter(usable).map(|(p, m)| ((p - now_ms).max(0.0), *m)).collect();
        if pairs.is_empty() || variance <= 0.0 {
            return self;
        }
        let residuals =
            |x: f64| pairs.iter().map(|(rest, m)| ((rest + x.exp()) / m).ln()).collect::<Vec<f64>>();
        let loss = |x: f64, sigma: f64| {
            let data: f64 = residuals(x).iter().map(|r| student(*r, sigma)).sum();
            data + 0.5 * (x - prior_log).powi(2) / variance
        };
        let mut x = prior_log;
        for _ in 0..4 {
            let sigma = scale(&residuals(x), FIRST_TOKEN_SCATTER);
            // The loss may have several minima: a grid from a tenth of a millisecond to a minute.
            let grid = (0..=GRID).map(|i| 0.1_f64.ln() + f64::from(i) / f64::from(GRID) * 6e5_f64.ln());
            x = grid.min_by(|a, b| loss(*a, sigma).total_cmp(&loss(*b, sigma))).unwrap_or(x);
        }
        let sigma = scale(&residuals(x), FIRST_TOKEN_SCATTER);
        let known: f64 = pairs
            .iter()
            .zip(residuals(x))
            .map(|((rest, _), r)| weight(r, sigma) * (x.exp() / (rest + x.exp()) / sigma).powi(2))
            .sum();
        // Scaling row and column keeps the matrix positive definite.
        let shrink = (1.0 / (1.0 + variance * known)).sqrt();
        for i in 0..COUNT {
            self.covariance.0[at][i] *= shrink;
            self.covariance.0[i][at] *= shrink;
        }
        self.mean[at] = x;
        self.calibration.api_overhead_ms = x.exp();
        self
    }
}

/// `ln f` and its derivatives by the coefficients' logarithms.
pub(crate) fn gradient(
    subject: &Subject,
    base: &Calibration,
    x: &Vector,
    f: impl Fn(&ReplicaModel) -> Option<f64>,
) -> Option<(f64, Vector)> {
    let at = |x: &Vector| f(&subject.model(&with_logs(base, x)).ok()?).map(f64::ln);
    let here = at(x)?;
    let mut slope = [0.0; COUNT];
    for (i, s) in slope.iter_mut().enumerate() {
        let mut moved = *x;
        moved[i] += STEP;
        *s = (at(&moved)? - here) / STEP;
    }
    Some((here, slope))
}

/// One residual to be made small.
#[derive(Debug, Clone, Copy)]
struct Row {
    observation: usize,
    subject: usize,
    metric: Metric,
    log_measured: f64,
}

/// Observations, arranged so that each replica is modelled once for each set of coefficients.
pub(crate) struct Problem<'a> {
    observations: &'a [Observation],
    subjects: Vec<Arc<Subject>>,
    rows: Vec<Row>,
    base: &'a Calibration,
}

impl<'a> Problem<'a> {
    pub(crate) fn new(observations: &'a [Observation], base: &'a Calibration) -> Result<Self, FitError> {
        let mut subjects: Vec<Arc<Subject>> = Vec::new();
        let mut rows = Vec::new();
        for (index, o) in observations.iter().enumerate() {
            let (positive, at_least_zero) = o.workload.figures();
            let bad = positive.iter().find(|(_, v)| !(v.is_finite() && *v > 0.0));
            if let Some((field, value)) = bad {
                return Err(FitError::Invalid {
                    index,
                    field,
                    value: *value,
                    remedy: "use a finite number above 0",
                });
            }
            if !(at_least_zero.1.is_finite() && at_least_zero.1 >= 0.0) {
                let (field, value) = at_least_zero;
                return Err(FitError::Invalid {
                    index,
                    field,
                    value,
                    remedy: "use a finite number of at least 0",
                });
            }
            let known = subjects.iter().position(|s| Arc::ptr_eq(s, &o.subject) || **s == *o.subject);
            let subject = known.unwrap_or(subjects.len());
            if known.is_none() {
                o.subject.model(base).map_err(|source| FitError::DoesNotFit { index, source })?;
                subjects.push(Arc::clone(&o.subject));
            }
            for metric in Metric::ALL {
                let Some(value) = o.measured.get(metric) else { continue };
                if !(value.is_finite() && value > 0.0) {
                    return Err(FitError::Invalid {
                        index,
                        field: metric.name(),
                        value,
                        remedy: "use a finite time above 0, or leave it out",
                    });
                }
                rows.push(Row { observation: index, subject, metric, log_measured: value.ln() });
            }
        }
        let mut problem = Self { observations, subjects, rows, base };
        // Times of which the closed form says nothing take no part.
        let keep: Vec<bool> = {
            let models = problem.models(&super::coefficients::logs(base));
            problem
                .rows
                .iter()
                .map(|r| problem.log_predicted(&models, r).is_some_and(f64::is_finite))
                .collect()
        };
        let mut keep = keep.into_iter();
        problem.rows.retain(|_| keep.next().unwrap_or(false));
        if problem.rows.is_empty() {
            return Err(FitError::NothingToFit { observations: observations.len() });
        }
        Ok(problem)
    }

    fn models(&self, x: &Vector) -> Vec<Option<ReplicaModel>> {
        let calibration = with_logs(self.base, x);
        self.subjects.iter().map(|s| s.model(&calibration).ok()).collect()
    }

    fn log_predicted(&self, models: &[Option<ReplicaModel>], row: &Row) -> Option<f64> {
        let model = models.get(row.subject)?.as_ref()?;
        self.observations.get(row.observation)?.workload.predict(model, row.metric).map(f64::ln)
    }

    /// Residuals at `x`. A load that becomes unsustainable counts as far too slow.
    fn residuals(&self, x: &Vector) -> Vec<f64> {
        const FAR: f64 = 10.0;
        let models = self.models(x);
        self.rows
            .iter()
            .map(|r| {
                let e = self.log_predicted(&models, r).unwrap_or(FAR) - r.log_measured;
                if e.is_finite() { e.clamp(-FAR, FAR) } else { FAR }
            })
            .collect()
    }

    fn jacobian(&self, x: &Vector, at: &[f64]) -> Vec<Vector> {
        let mut rows = vec![[0.0; COUNT]; self.rows.len()];
        for i in 0..COUNT {
            let mut moved = *x;
            moved[i] += STEP;
            for ((row, there), here) in rows.iter_mut().zip(self.residuals(&moved)).zip(at) {
                row[i] = (there - here) / STEP;
            }
        }
        rows
    }
}

/// Robust scale of residuals, drawn towards the prior's.
fn scale(residuals: &[f64], prior: f64) -> f64 {
    let mut abs: Vec<f64> = residuals.iter().map(|r| r.abs()).collect();
    abs.sort_by(f64::total_cmp);
    let n = abs.len() as f64;
    let median = abs.get(abs.len() / 2).copied().unwrap_or(0.0);
    let own = 1.4826 * median;
    ((SCATTER_WEIGHT * prior * prior + n * own * own) / (SCATTER_WEIGHT + n)).sqrt()
}

fn weight(r: f64, sigma: f64) -> f64 {
    FREEDOM / (FREEDOM + (r / sigma).powi(2))
}

/// Negative logarithm of Student's t density of a residual, a constant aside.
fn student(r: f64, sigma: f64) -> f64 {
    0.5 * (FREEDOM + 1.0) * (r / sigma).powi(2).mul_add(1.0 / FREEDOM, 1.0).ln()
}

fn cost(residuals: &[f64], sigma: f64, x: &Vector, prior: &Prior, precision: &Matrix) -> f64 {
    let data: f64 = residuals.iter().map(|r| student(*r, sigma)).sum();
    data + 0.5 * precision.quadratic(&minus(x, &prior.mean))
}

fn minus(a: &Vector, b: &Vector) -> Vector {
    let mut d = *a;
    d.iter_mut().zip(b).for_each(|(x, y)| *x -= y);
    d
}

/// Finds the coefficients that agree best with `observations` and `prior`.
///
/// Times that the closed forms do not predict (see [`super::Workload::predict`]) take no part.
///
/// # Errors
/// [`FitError`] if there is nothing to fit to, a figure is not a positive number, or an observed replica cannot
/// exist.
pub fn fit(observations: &[Observation], prior: &Prior) -> Result<Fit, FitError> {
    let problem = Problem::new(observations, &prior.base)?;
    let precision = prior.covariance.inverse().ok_or(FitError::Prior)?;
    let mut x = prior.mean;
    let mut residuals = problem.residuals(&x);
    let mut sigma = scale(&residuals, prior.scatter);
    let mut damping = 1e-3;
    let mut converged = false;
    let mut iterations = 0;
    while iterations < ITERATIONS && !converged {
        iterations += 1;
        let jacobian = problem.jacobian(&x, &residuals);
        let (hessian, slope) = normal_equations(&jacobian, &residuals, sigma, &x, prior, &precision);
        let now = cost(&residuals, sigma, &x, prior, &precision);
        let mut moved = false;
        for _ in 0..12 {
            let mut damped = hessian;
            for i in 0..COUNT {
                damped.0[i][i] *= 1.0 + damping;
            }
            let Some(mut step) = damped.solve(&slope.map(|s| -s)) else {
                damping *= 10.0;
                continue;
            };
            let longest = step.iter().fold(0.0_f64, |m, s| m.max(s.abs()));
            if longest > 1.0 {
                step.iter_mut().for_each(|s| *s /= longest);
            }
            let mut next = x;
            next.iter_mut().zip(step).for_each(|(a, b)| *a += b);
            let there = problem.residuals(&next);
            let gain = now - cost(&there, sigma, &next, prior, &precision);
            if gain >= 0.0 {
                (x, residuals, moved) = (next, there, true);
                damping = (damping * 0.3).max(1e-9);
                converged = longest < 1e-5;
                break;
            }
            damping *= 10.0;
        }
        let fresh = scale(&residuals, prior.scatter);
        converged = (converged || !moved) && (fresh / sigma - 1.0).abs() < 1e-4;
        if !moved && !converged {
            damping = 1e-3;
        }
        sigma = fresh;
    }
    let jacobian = problem.jacobian(&x, &residuals);
    let (hessian, _) = normal_equations(&jacobian, &residuals, sigma, &x, prior, &precision);
    let covariance = hessian.inverse().ok_or(FitError::Prior)?;
    let relative_error = stated_error(&problem, &jacobian, &residuals, sigma, &hessian, prior);
    let calibration = Calibration { relative_error, ..with_logs(&prior.base, &x) };
    let residuals = problem
        .rows
        .iter()
        .zip(&residuals)
        .map(|(row, r)| Residual {
            observation: row.observation,
            metric: row.metric,
            log_error: *r,
            weight: weight(*r, sigma),
        })
        .collect();
    Ok(Fit {
        calibration,
        relative_error,
        residuals,
        scatter: sigma,
        iterations,
        converged,
        mean: x,
        covariance,
    })
}

fn normal_equations(
    jacobian: &[Vector],
    residuals: &[f64],
    sigma: f64,
    x: &Vector,
    prior: &Prior,
    precision: &Matrix,
) -> (Matrix, Vector) {
    let mut hessian = *precision;
    let mut slope = precision.times(&minus(x, &prior.mean));
    for (row, r) in jacobian.iter().zip(residuals) {
        let w = (FREEDOM + 1.0) / FREEDOM * weight(*r, sigma) / (sigma * sigma);
        hessian.add_outer(row, w);
        slope.iter_mut().zip(row).for_each(|(s, j)| *s += w * j * r);
    }
    (hessian, slope)
}

/// 90th percentile of relative errors, each replica predicted from the others.
///
/// Leaving a replica's rows out moves the coefficients by `H₋⁻¹ Jᵀ W r` (one Gauss–Newton step, `H₋` without those
/// rows). Where there is one replica only, each row is left out by itself. Few rows are eked out with the prior's
/// own.
fn stated_error(
    problem: &Problem<'_>,
    jacobian: &[Vector],
    residuals: &[f64],
    sigma: f64,
    hessian: &Matrix,
    prior: &Prior,
) -> f64 {
    let alone = problem.subjects.len() < 2;
    let group = |i: usize| if alone { i } else { problem.rows.get(i).map_or(0, |r| r.subject) };
    let groups = if alone { problem.rows.len() } else { problem.subjects.len() };
    let mut errors = Vec::with_capacity(residuals.len());
    for g in 0..groups {
        let members = || (0..residuals.len()).filter(|i| group(*i) == g);
        let mut without = *hessian;
        let mut pull = [0.0; COUNT];
        for i in members() {
            let (row, r) = (&jacobian[i], residuals[i]);
            let w = (FREEDOM + 1.0) / FREEDOM * weight(r, sigma) / (sigma * sigma);
            without.add_outer(row, -w);
            pull.iter_mut().zip(row).for_each(|(p, j)| *p += w * j * r);
        }
        let shift = without.solve(&pull).unwrap_or([0.0; COUNT]);
        errors.extend(members().map(|i| (residuals[i] + dot(&jacobian[i], &shift)).abs()));
    }
    errors.sort_by(f64::total_cmp);
    let n = errors.len() as f64;
    let own = errors.get(((0.9 * n) as usize).min(errors.len().saturating_sub(1))).copied().unwrap_or(0.0);
    // Replicas differ by more than rows of one do.
    let before = P90 * 1.5 * prior.scatter;
    let both = ((SCATTER_WEIGHT * before * before + n * own * own) / (SCATTER_WEIGHT + n)).sqrt();
    both.exp() - 1.0
}
