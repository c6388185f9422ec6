//! One pool's arrival rate as a series of steps, and the forecast of its peak.
//!
//! Level and trend follow Holt's method with a damped trend (Gardner & McKenzie 1985): for a step's rate `y`,
//! `l' = αy + (1−α)(l + φb)`, `b' = β(l'−l) + (1−β)φb`. The forecast of the peak over the next `h` steps is
//! `f = max(l, l + b·Σ φᵏ, peak of the last h steps)`: load that flickers faster than replicas start has one peak, and a
//! fall counts once it has lasted as long as it would take to get a replica back. What is planned for is `f + z·σ(f)`, where `σ(f) = sqrt(max(f, 1/W)/W)` is the standard
//! deviation of a Poisson rate counted over the smoothing window `W`, and `z` is the weighted empirical quantile of
//! `(peak that came − f)/σ(f)` over past forecasts. Errors in units of `σ` stay comparable while the rate rises and
//! falls, so that the margin shrinks with the load. A rise that Poisson noise does not explain (3 σ over `W`, every
//! step above the level) moves the level at once instead of after 1/α steps, and forecasts made before it are not held
//! against those made after.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::DemandConfig;

/// Margin, in σ, until enough errors are known: about the 90th percentile of the greatest of five Poisson windows.
const PRIOR_Z: f64 = 2.0;
/// Weight of errors (in steps) from which the empirical quantile is trusted.
const ENOUGH_ERRORS: f64 = 12.0;
/// Most steps remembered while open or for a forecast: bounds memory whatever the clock does.
const MAX_STEPS: i64 = 360;

/// A rate series.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Series {
    horizon_steps: u32,
    next_step: Option<i64>,
    open: BTreeMap<i64, f64>,
    recent: VecDeque<f64>,
    smoothed: VecDeque<(i64, f64)>,
    level: Option<f64>,
    trend: f64,
    made: VecDeque<(i64, f64)>,
    errors: VecDeque<(i64, f64)>,
}

/// A forecast of the peak over the horizon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeakForecast {
    /// Expected peak, requests per second.
    pub expected_rps: f64,
    /// What the quantile adds.
    pub margin_rps: f64,
}

impl Series {
    /// Sets how far ahead to forecast. Errors of another horizon are forgotten: they do not compare.
    pub fn set_horizon(&mut self, seconds: f64, config: &DemandConfig) {
        let steps = (seconds / config.step_seconds).ceil().clamp(1.0, 180.0) as u32;
        if steps != self.horizon_steps {
            self.horizon_steps = steps;
            self.made.clear();
            self.errors.clear();
        }
    }

    /// Adds `count` arrivals spread evenly over `[start, end)` (seconds). What falls into closed steps is left out:
    /// those were already filled with a held rate.
    pub fn add(&mut self, start: f64, end: f64, count: f64, config: &DemandConfig) {
        let step = config.step_seconds;
        let first = (start / step).floor() as i64;
        let last = ((end / step).ceil() as i64 - 1).max(first).min(first + MAX_STEPS);
        let next = *self.next_step.get_or_insert(first);
        let width = (end - start).max(1e-9);
        for index in first..=last {
            if index < next {
                continue;
            }
            let (a, b) = (index as f64 * step, (index + 1) as f64 * step);
            let overlap = if end > start { (end.min(b) - start.max(a)).max(0.0) / width } else { 1.0 };
            *self.open.entry(index).or_insert(0.0) += count * overlap;
        }
    }

    /// Closes every step that ends by `until` (seconds). `fill(start, end)` gives the arrivals to assume for agents
    /// that were silent then; `measured` is false when nobody reported, and such a step teaches nothing.
    pub fn close(
        &mut self,
        until: f64,
        measured: bool,
        fill: impl Fn(f64, f64) -> f64,
        config: &DemandConfig,
    ) {
        let Some(mut index) = self.next_step else { return };
        let end = (until / config.step_seconds).floor() as i64;
        index = index.max(end - MAX_STEPS);
        self.open.retain(|i, _| *i >= index);
        while index < end {
            let (a, b) = (index as f64 * config.step_seconds, (index + 1) as f64 * config.step_seconds);
            let counted = self.open.remove(&index).unwrap_or(0.0);
            if measured {
                self.learn(index, (counted + fill(a, b)) / config.step_seconds, config);
            }
            index += 1;
        }
        self.next_step = Some(index.max(self.next_step.unwrap_or(index)));
    }

    fn sigma(rate: f64, config: &DemandConfig) -> f64 {
        let window = config.step_seconds * f64::from(config.smoothing_steps.max(1));
        (rate.max(1.0 / window) / window).sqrt()
    }

    fn expected(&self, config: &DemandConfig) -> Option<f64> {
        let level = self.level?;
        let recent = self.smoothed.iter().map(|(_, r)| *r).fold(0.0f64, f64::max);
        Some(level.max(level + self.trend * self.damped_steps(config.phi)).max(recent).max(0.0))
    }

    fn damped_steps(&self, phi: f64) -> f64 {
        (1..=self.horizon_steps.max(1)).map(|k| phi.powi(k as i32)).sum()
    }

    fn learn(&mut self, index: i64, rate: f64, config: &DemandConfig) {
        let window = config.smoothing_steps.max(1) as usize;
        self.recent.push_back(rate);
        while self.recent.len() > window {
            self.recent.pop_front();
        }
        let smoothed = self.recent.iter().sum::<f64>() / self.recent.len() as f64;
        self.smoothed.push_back((index, smoothed));
        while self.smoothed.len() > self.horizon_steps.max(1) as usize {
            self.smoothed.pop_front();
        }

        let due = index - i64::from(self.horizon_steps);
        while self.made.front().is_some_and(|(at, _)| *at < due) {
            self.made.pop_front();
        }
        if let Some(&(at, forecast)) = self.made.front()
            && at == due
        {
            let peak = self.smoothed.iter().filter(|(i, _)| *i > due).map(|(_, r)| *r).fold(0.0f64, f64::max);
            self.errors.push_back((index, (peak - forecast) / Self::sigma(forecast, config)));
        }
        let oldest = index - (6.0 * config.error_half_life_seconds / config.step_seconds) as i64;
        while self.errors.front().is_some_and(|(at, _)| *at < oldest) {
            self.errors.pop_front();
        }

        match self.level {
            None => self.level = Some(rate),
            Some(level) => {
                let next = config.alpha * rate + (1.0 - config.alpha) * (level + config.phi * self.trend);
                let trend = config.beta * (next - level) + (1.0 - config.beta) * config.phi * self.trend;
                let jumped = self.recent.len() == window
                    && smoothed > next + 3.0 * Self::sigma(next, config)
                    && self.recent.iter().all(|r| *r > next);
                self.level = Some(if jumped { smoothed } else { next.max(0.0) });
                self.trend = trend;
                if jumped {
                    self.made.clear();
                }
            }
        }
        if let Some(forecast) = self.expected(config) {
            self.made.push_back((index, forecast));
        }
    }

    /// Forecast of the peak (`None` until a step was measured).
    pub fn forecast(&self, config: &DemandConfig) -> Option<PeakForecast> {
        let expected_rps = self.expected(config)?;
        let margin_rps = self.z(config) * Self::sigma(expected_rps, config);
        // With nothing at all arriving there is no peak to expect beyond the floor of σ.
        let margin_rps = if expected_rps < 1e-6 { 0.0 } else { margin_rps };
        // A few bursts must not make the fleet a multiple of what it ever served.
        let margin_rps = margin_rps.min(config.max_margin * expected_rps.max(1.0));
        Some(PeakForecast { expected_rps, margin_rps })
    }

    fn z(&self, config: &DemandConfig) -> f64 {
        let Some(&(now, _)) = self.errors.back() else { return PRIOR_Z };
        let half_life = config.error_half_life_seconds / config.step_seconds;
        let mut weighted: Vec<(f64, f64)> =
            self.errors.iter().map(|&(at, z)| (z, (-(now - at) as f64 / half_life).exp2())).collect();
        let total: f64 = weighted.iter().map(|(_, w)| w).sum();
        if total < ENOUGH_ERRORS {
            return PRIOR_Z;
        }
        weighted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut seen = 0.0;
        for (z, weight) in &weighted {
            seen += weight;
            if seen >= config.quantile * total {
                return z.max(0.0);
            }
        }
        PRIOR_Z
    }

    /// Rate of what came since the last step that is closed, up to `now` (seconds), requests per second: all that is known of
    /// a pool whose first requests have just come. It is counted over a third of a step at least.
    pub fn open_rps(&self, now: f64, config: &DemandConfig) -> f64 {
        let Some((first, _)) = self.open.iter().find(|(_, count)| **count > 0.0) else { return 0.0 };
        let since = (now - *first as f64 * config.step_seconds).max(config.step_seconds / 3.0);
        self.open.values().sum::<f64>() / since
    }

    /// Rate over the last measured smoothing window, requests per second.
    pub fn observed_rps(&self) -> Option<f64> {
        (!self.recent.is_empty()).then(|| self.recent.iter().sum::<f64>() / self.recent.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(series: &mut Series, from: i64, rates: &[f64]) -> i64 {
        let config = DemandConfig::default();
        let mut t = from;
        for rate in rates {
            let (a, b) = (t as f64 * 10.0, (t + 1) as f64 * 10.0);
            series.add(a, b, rate * 10.0, &config);
            series.close(b, true, |_, _| 0.0, &config);
            t += 1;
        }
        t
    }

    #[test]
    fn a_steady_rate_is_forecast_with_a_small_margin() {
        let config = DemandConfig::default();
        let mut s = Series::default();
        s.set_horizon(90.0, &config);
        run(&mut s, 0, &[4.0; 60]);
        let f = s.forecast(&config).unwrap();
        assert!((f.expected_rps - 4.0).abs() < 0.05, "{f:?}");
        assert!(f.margin_rps < 1.0, "{f:?}");
    }

    #[test]
    fn a_jump_moves_the_forecast_within_the_smoothing_window() {
        let config = DemandConfig::default();
        let mut s = Series::default();
        s.set_horizon(90.0, &config);
        let t = run(&mut s, 0, &[4.0; 60]);
        run(&mut s, t, &[8.0; 3]);
        assert!(s.forecast(&config).unwrap().expected_rps >= 7.0, "{:?}", s.forecast(&config));
    }

    #[test]
    fn the_forecast_and_its_margin_decay_after_a_fall() {
        let config = DemandConfig::default();
        let mut s = Series::default();
        s.set_horizon(90.0, &config);
        let t = run(&mut s, 0, &[10.0; 60]);
        let t = run(&mut s, t, &[1.0; 18]);
        let f = s.forecast(&config).unwrap();
        assert!(f.expected_rps + f.margin_rps < 2.0, "three minutes after a fall to 1: {f:?}");
        run(&mut s, t, &[0.0; 60]);
        let f = s.forecast(&config).unwrap();
        assert!(f.expected_rps + f.margin_rps < 0.2, "ten minutes of silence: {f:?}");
    }

    #[test]
    fn steps_that_nobody_measured_teach_nothing() {
        let config = DemandConfig::default();
        let mut s = Series::default();
        s.set_horizon(90.0, &config);
        run(&mut s, 0, &[5.0; 30]);
        let before = s.forecast(&config);
        s.close(900.0, false, |_, _| 0.0, &config);
        assert_eq!(s.forecast(&config), before);
    }

    #[test]
    fn what_is_not_closed_yet_has_a_rate() {
        let config = DemandConfig::default();
        let mut s = Series::default();
        assert_eq!(s.open_rps(0.0, &config), 0.0);
        s.add(100.0, 101.0, 2.0, &config);
        assert!((s.open_rps(101.0, &config) - 0.6).abs() < 1e-9, "over a third of a step");
        s.add(101.0, 108.0, 14.0, &config);
        assert!((s.open_rps(108.0, &config) - 2.0).abs() < 1e-9);
        s.close(110.0, true, |_, _| 0.0, &config);
        assert_eq!(s.open_rps(110.0, &config), 0.0);
    }

    #[test]
    fn a_clock_that_leaps_costs_no_memory_or_time() {
        let config = DemandConfig::default();
        let mut s = Series::default();
        s.set_horizon(90.0, &config);
        run(&mut s, 0, &[5.0; 3]);
        s.close(1e12, true, |_, _| 0.0, &config);
        s.add(0.0, 1e12, 1e9, &config);
        assert!(s.open.len() <= 361);
    }
}
