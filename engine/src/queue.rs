//! The queue: a birth-death chain with batch arrivals and state-dependent completion rates.
//!
//! With `n` requests present, `min(n, N)` run and one completes every `completion_ms[n]`. Bursty arrivals come in
//! batches of geometric size with mean `b = (c² + 1)/2`, which have the index of dispersion of renewal arrivals
//! with squared coefficient of variation c². Balance over the cut between `n` and `n + 1` gives, exactly,
//! `p[n+1] = λ/b · A[n] · completion_ms[n+1]` with `A[n] = p[n] + (1 − 1/b)·A[n−1]`; `A/b` is the distribution
//! that an arriving request sees, those of its own batch ahead of it included. Beyond N the chain is geometric, so
//! the wait for a place in the batch is zero or exponential. In heavy traffic the mean wait is the Allen–Cunneen
//! one, `(c² + 1)/2` times that of Poisson arrivals; for c² = 1 the chain is the plain M/M(n) one.

use crate::mix::Mix;
use crate::quantile::Wait;

/// Steady state at one arrival rate.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// Cumulative distribution of the batch that a running request is in, itself included, for 1..=limit.
    batch: Vec<f64>,
    /// Mean of that batch.
    pub(crate) mean_batch: f64,
    /// Mean running requests over time.
    pub(crate) mean_running: f64,
    /// Chance that an arriving burst finds the replica at work.
    pub(crate) busy: f64,
    /// Wait for a place in the batch.
    pub(crate) wait: Wait,
}

/// Mean arrivals in one burst.
pub(crate) fn burst_size(arrival_scv: f64) -> f64 {
    if arrival_scv.is_finite() { (0.5 * (arrival_scv + 1.0)).max(1.0) } else { 1.0 }
}

impl State {
    /// Solves for `rate` requests per millisecond, in bursts of `burst` on average. Returns `false` if the queue
    /// would grow for ever.
    pub(crate) fn solve(&mut self, mix: &Mix, rate: f64, burst: f64) -> bool {
        const TOO_LARGE: f64 = 1e150;
        const NEGLIGIBLE: f64 = 1e-16;
        let stay = 1.0 - 1.0 / burst;
        let burst_rate = rate / burst;
        let leaving = 0.9 / burst;
        let Some(&slowest) = mix.completion_ms.get(mix.limit) else { return false };
        let ratio = burst_rate * slowest + stay;
        if !(rate >= 0.0 && ratio < 1.0) {
            return false;
        }
        self.batch.clear();
        // All unnormalised; `seen` sums A below the limit, `busy` sums n·p.
        let mut a = 1.0_f64;
        let (mut idle, mut seen, mut busy) = (1.0_f64, 0.0_f64, 0.0_f64);
        let mut total = 1.0;
        for (n, &ms) in mix.completion_ms.iter().enumerate().skip(1) {
            seen += a;
            let p = burst_rate * a * ms;
            a = p + stay * a;
            busy += n as f64 * p;
            total += p;
            self.batch.push(busy);
            if a < NEGLIGIBLE * seen && ms * burst_rate < leaving {
                // The rest is too unlikely to matter, and growing more so.
                a = 0.0;
                break;
            }
            if a > TOO_LARGE {
                let s = 1.0 / TOO_LARGE;
                (a, idle, seen, busy, total) = (a * s, idle * s, seen * s, busy * s, total * s);
                self.batch.iter_mut().for_each(|x| *x *= s);
            }
        }
        // Above the limit: p[N+k] = (λ/b)·ms·A[N+k−1], a geometric series.
        let above = burst_rate * slowest * a / (1.0 - ratio);
        busy += mix.limit as f64 * above;
        total += above;
        if let Some(last) = self.batch.last_mut() {
            *last = busy;
        }
        let waiting = a / (1.0 - ratio);
        let everyone = seen + waiting;
        self.wait = Wait { p: waiting / everyone, mean_ms: slowest / (1.0 - ratio) };
        self.mean_running = busy / total;
        self.busy = 1.0 - idle / total;
        if busy > 0.0 {
            let mut below = 0.0;
            let mut mean = 0.0;
            for (i, x) in self.batch.iter_mut().enumerate() {
                *x /= busy;
                mean += (i + 1) as f64 * (*x - below);
                below = *x;
            }
            self.mean_batch = mean;
        } else {
            // Nobody else is there.
            self.batch.iter_mut().for_each(|x| *x = 1.0);
            self.mean_batch = 1.0;
        }
        true
    }

    /// Quantile of the batch that a running request is in, interpolated between whole requests; at least 1.
    pub(crate) fn batch_quantile(&self, p: f64) -> f64 {
        let i = self.batch.partition_point(|x| *x < p);
        let at = |i: usize| self.batch.get(i).copied().unwrap_or(1.0);
        let below = if i == 0 { 0.0 } else { at(i - 1) };
        let step = at(i) - below;
        let within = if step > 0.0 { ((p - below) / step).clamp(0.0, 1.0) } else { 1.0 };
        (i as f64 + within).clamp(1.0, self.batch.len().max(1) as f64)
    }
}
