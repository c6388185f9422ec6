//! Calibration that follows a running replica: small steps with every window of telemetry, and a watch for drift.
//!
//! Coefficients follow an extended Kalman filter on their logarithms (Simon, *Optimal State Estimation*, chapter
//! 13) with forgetting; the innovation is `ln measured − ln predicted` TPOT of a window, and one far off counts
//! for little (Student-t weight). Drift is a two-sided CUSUM (Page 1954) of the same logarithm against the
//! coefficients that were in force at the start, which do not move.

use std::sync::Arc;

use plimsoll_fleet::{Calibration, Role};

use super::coefficients::{COUNT, with_logs};
use super::fit::{Fit, gradient};
use super::linear::{Matrix, Vector};
use super::observation::Subject;
use super::prior::Prior;
use crate::ReplicaModel;

/// What agents saw of one replica in one window of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Age of the engine process when the window began, seconds.
    pub engine_age_seconds: f64,
    /// When the window ended, seconds on the caller's clock.
    pub ended_seconds: f64,
    /// Length, seconds.
    pub seconds: f64,
    /// Requests that finished.
    pub finished: f64,
    /// Mean running requests.
    pub running: f64,
    /// Mean waiting requests.
    pub waiting: f64,
    /// Mean share of KV cache in use, 0–1.
    pub kv_usage: f64,
    /// Mean prompt tokens of a request.
    pub input_tokens: f64,
    /// Of these, found in the cache.
    pub cached_tokens: f64,
    /// Mean answer tokens of a request.
    pub output_tokens: f64,
    /// Mean time per output token after the first, milliseconds.
    pub tpot_ms: f64,
}

/// Why a window was not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// The engine had just started: graphs are captured, caches are cold.
    WarmUp,
    /// Requests waited or the KV cache was nearly full: times then say more of the queue than of steps.
    Overload,
    /// Too few requests finished, or hardly any ran.
    TooFew,
    /// A figure is not a number that makes sense.
    Nonsense,
    /// The model has no time for this load: it would be more than the replica sustains.
    Unpredictable,
}

/// What became of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Taken {
    /// It was used; `ln measured − ln predicted`, before coefficients moved.
    Used {
        /// Above 0: slower than predicted.
        log_error: f64,
    },
    /// It was not.
    Ignored(Ignored),
}

/// A lasting change of speed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// Since when, seconds on the caller's clock.
    pub since_seconds: f64,
    /// Times take this many times as long as before (below 1: they became shorter).
    pub factor: f64,
}

/// Settings of [`Online`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OnlineConfig {
    /// Age below which an engine counts as warming up, seconds.
    pub warm_up_seconds: f64,
    /// Fewest finished requests of a window that is used.
    pub least_finished: f64,
    /// Mean waiting requests above which a window counts as overloaded.
    pub most_waiting: f64,
    /// KV usage above which a window counts as overloaded.
    pub most_kv_usage: f64,
    /// Windows after which what was learned counts for 1/e.
    pub memory_windows: f64,
    /// Windows that set the level from which drift is measured.
    pub settling_windows: u32,
}

impl Default for OnlineConfig {
    fn default() -> Self {
        Self {
            warm_up_seconds: 120.0,
            least_finished: 20.0,
            most_waiting: 0.5,
            most_kv_usage: 0.9,
            memory_windows: 500.0,
            settling_windows: 30,
        }
    }
}

/// Slack of the CUSUM, standard deviations: half of the smallest shift that is worth finding.
const SLACK: f64 = 0.75;
/// Alarm level of the CUSUM, standard deviations. Of independent normal windows, fewer than one in 100,000 raises
/// a false alarm, also where the level was settled one standard error off (Siegmund's approximation of the
/// two-sided run length, `(e^b − b − 1)/(4 k²)` with `b = 2k·(ALARM + 1.166)`; k is SLACK, less that error of 0.18).
const ALARM: f64 = 10.0;
/// One window moves the CUSUM by no more than this.
const CLIP: f64 = 4.0;
/// Degrees of freedom of the innovations' t distribution.
const FREEDOM: f64 = 4.0;
const P90: f64 = 1.645;

/// One side of the CUSUM.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Side {
    sum: f64,
    /// Since it last was zero: when that was, windows, and the log errors summed.
    since_seconds: f64,
    windows: f64,
    total: f64,
}

impl Side {
    fn add(&mut self, z: f64, log_error: f64, window: &Window) {
        if self.sum <= 0.0 {
            *self = Self { since_seconds: window.ended_seconds - window.seconds, ..Self::default() };
        }
        self.sum = (self.sum + z.min(CLIP) - SLACK).max(0.0);
        self.windows += 1.0;
        self.total += log_error;
    }

    fn mean(&self) -> f64 {
        if self.windows > 0.0 { self.total / self.windows } else { 0.0 }
    }
}

/// Follows one replica (or several alike, window by window).
#[derive(Debug, Clone, PartialEq)]
pub struct Online {
    config: OnlineConfig,
    subject: Arc<Subject>,
    base: Calibration,
    /// Not moved by windows: what drift is measured against.
    reference: Vector,
    mean: Vector,
    covariance: Matrix,
    /// Covariance that forgetting never exceeds.
    widest: Matrix,
    scatter: f64,
    /// Windows used, and the log errors of the settling ones summed.
    used: u32,
    level: f64,
    slower: Side,
    faster: Side,
    drift: Option<Drift>,
}

impl Online {
    /// Starts from a fit.
    pub fn new(subject: Arc<Subject>, fit: &Fit, config: OnlineConfig) -> Self {
        Self::from_prior(subject, &Prior::from_fit(fit, 1.0), fit.relative_error, config)
    }

    /// Starts from a prior, whose predictions have this relative error (p90).
    pub fn from_prior(
        subject: Arc<Subject>,
        prior: &Prior,
        relative_error: f64,
        config: OnlineConfig,
    ) -> Self {
        let stated = if relative_error.is_finite() { relative_error.max(0.02) } else { 0.25 };
        Self {
            config,
            subject,
            base: prior.base.clone(),
            reference: prior.mean,
            mean: prior.mean,
            covariance: prior.covariance,
            widest: prior.covariance,
            scatter: stated.ln_1p() / P90,
            used: 0,
            level: 0.0,
            slower: Side::default(),
            faster: Side::default(),
            drift: None,
        }
    }

    /// Takes a window into account.
    pub fn observe(&mut self, window: &Window) -> Taken {
        if let Some(reason) = self.unusable(window) {
            return Taken::Ignored(reason);
        }
        let predicted = |x: &Vector| predict(&self.subject.model(&with_logs(&self.base, x)).ok()?, window);
        let Some(before) = predicted(&self.reference) else { return Taken::Ignored(Ignored::Unpredictable) };
        let at = gradient(&self.subject, &self.base, &self.mean, |m| predict(m, window));
        let Some((log_predicted, slope)) = at else { return Taken::Ignored(Ignored::Unpredictable) };
        let log_error = window.tpot_ms.ln() - log_predicted;
        self.watch(window.tpot_ms.ln() - before.ln(), window);
        self.learn(log_error, &slope);
        Taken::Used { log_error }
    }

    fn unusable(&self, w: &Window) -> Option<Ignored> {
        let numbers = [
            w.engine_age_seconds,
            w.ended_seconds,
            w.seconds,
            w.finished,
            w.running,
            w.waiting,
            w.kv_usage,
            w.input_tokens,
            w.cached_tokens,
            w.output_tokens,
            w.tpot_ms,
        ];
        if numbers.iter().any(|x| !x.is_finite() || *x < 0.0) || w.tpot_ms == 0.0 || w.seconds == 0.0 {
            return Some(Ignored::Nonsense);
        }
        let c = &self.config;
        if w.engine_age_seconds < c.warm_up_seconds {
            return Some(Ignored::WarmUp);
        }
        if w.waiting > c.most_waiting || w.kv_usage > c.most_kv_usage {
            return Some(Ignored::Overload);
        }
        (w.finished < c.least_finished || w.running < 0.5 || w.output_tokens < 2.0).then_some(Ignored::TooFew)
    }

    /// One step of the filter.
    fn learn(&mut self, log_error: f64, slope: &Vector) {
        let forget = 1.0 + 1.0 / self.config.memory_windows.max(1.0);
        for i in 0..COUNT {
            // Scaling rows and columns keeps the matrix positive definite.
            let room = self.widest.0[i][i] / self.covariance.0[i][i].max(1e-12);
            let s = forget.min(room).max(1.0).sqrt();
            for j in 0..COUNT {
                self.covariance.0[i][j] *= s;
                self.covariance.0[j][i] *= s;
            }
        }
        let spread = self.covariance.times(slope);
        let known = self.covariance.quadratic(slope);
        let noise = self.scatter * self.scatter;
        let weight = (FREEDOM + 1.0) / (FREEDOM + log_error * log_error / (known + noise));
        let total = known + noise / weight.max(1e-3);
        for (m, s) in self.mean.iter_mut().zip(&spread) {
            *m += s / total * log_error;
        }
        self.covariance.add_outer(&spread, -1.0 / total);
    }

    fn watch(&mut self, log_error: f64, window: &Window) {
        self.used += 1;
        if self.used <= self.config.settling_windows {
            self.level += log_error;
            return;
        }
        let off = log_error - self.level();
        let z = off / self.scatter;
        self.slower.add(z, off, window);
        self.faster.add(-z, off, window);
        let worse = if self.slower.sum >= self.faster.sum { self.slower } else { self.faster };
        if worse.sum > ALARM {
            if self.drift.is_none() {
                // What was learned no longer holds: learn anew, as fast as at the start.
                self.covariance = self.widest;
            }
            self.drift = Some(Drift { since_seconds: worse.since_seconds, factor: worse.mean().exp() });
        } else if worse.sum <= 0.0 {
            self.drift = None;
        }
    }

    /// Mean log error of the settling windows: what the model always gets wrong here.
    fn level(&self) -> f64 {
        self.level / f64::from(self.used.min(self.config.settling_windows).max(1))
    }

    /// The lasting change of speed since the start, if there is one. It stays until times have been as before for
    /// a while, or [`Online::accept`].
    pub fn drifted(&self) -> Option<Drift> {
        self.drift
    }

    /// Coefficients as they are now, with the error to expect of them.
    pub fn calibration(&self) -> Calibration {
        Calibration { relative_error: self.relative_error(), ..with_logs(&self.base, &self.mean) }
    }

    /// Relative error (p90) to expect: what was stated at the start, wider by as much as the CUSUM suspects a drift.
    pub fn relative_error(&self) -> f64 {
        let worse = if self.slower.sum >= self.faster.sum { self.slower } else { self.faster };
        let suspected = (worse.sum / ALARM).min(1.0) * worse.mean().abs();
        (P90 * self.scatter + suspected).exp() - 1.0
    }

    /// Windows used so far.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Takes the coefficients of now as those to measure drift against: the change is known and accepted.
    pub fn accept(&mut self) {
        self.reference = self.mean;
        self.used = 0;
        self.level = 0.0;
        self.slower = Side::default();
        self.faster = Side::default();
        self.drift = None;
    }
}

/// TPOT of a window from the batch that ran: `D(B, s)/(1 − λw)`, λ the rate of finished requests. A decode replica computes
/// the last token of each prompt alone.
fn predict(model: &ReplicaModel, w: &Window) -> Option<f64> {
    let cached = if model.role() == Role::Decode { w.input_tokens - 1.0 } else { w.cached_tokens };
    let new = (w.input_tokens - cached).max(1.0);
    let share = w.finished / (1e3 * w.seconds) * model.prefill_ms(new, cached.max(0.0));
    let context = w.input_tokens + 0.5 * w.output_tokens;
    let step = model.decode_ms(w.running.max(1.0), context) / model.tokens_per_step();
    (share < 0.95).then_some(step / (1.0 - share))
}
