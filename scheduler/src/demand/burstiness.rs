//! How unevenly requests come: the squared coefficient of variation of the times between them.
//!
//! It is measured within short windows of [`WINDOW_GAPS`] requests, each against its own mean, and the windows' weighted
//! median counts. Rates that rise, fall or pause are the forecast's business ([`super::Series`]): taken over all gaps
//! together, one step from 4 to 48 requests a second would look like bursts that no replica can absorb. A window of `n`
//! gaps gives `(n + 1)·Σx²/(Σx)² − 1`, which is 1 on average for Poisson arrivals whatever `n` (spacings are Dirichlet
//! distributed: `E[Σx²/(Σx)²] = 2/(n + 1)`), and the plain estimate for large `n`.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Gaps between requests that make a window.
const WINDOW_GAPS: u64 = 32;
/// Windows remembered.
const WINDOWS: usize = 32;
/// Weight, in windows, of the assumption that arrivals are Poisson.
const PRIOR_WINDOWS: f64 = 2.0;
/// Limits of the estimate: smoother or burstier is not believed.
const LIMITS: (f64, f64) = (0.25, 16.0);

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Closed {
    at: f64,
    scv: f64,
}

/// Recent windows of arrivals.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Burstiness {
    /// The open window: gaps, their sum (s), their sum of squares (s²).
    open: (u64, f64, f64),
    windows: VecDeque<Closed>,
}

impl Burstiness {
    /// Takes in `gaps` times between requests with their sum (s) and sum of squares (s²). Figures that cannot be are
    /// left out.
    pub fn observe(&mut self, gaps: u64, sum: f64, squares: f64, now: f64) {
        if gaps == 0 || !(sum.is_finite() && squares.is_finite() && sum > 0.0 && squares > 0.0) {
            return;
        }
        self.open = (self.open.0.saturating_add(gaps), self.open.1 + sum, self.open.2 + squares);
        let (n, sum, squares) = self.open;
        if n < WINDOW_GAPS {
            return;
        }
        let scv = ((n as f64 + 1.0) * squares / (sum * sum) - 1.0).clamp(0.0, LIMITS.1);
        self.windows.push_back(Closed { at: now, scv });
        while self.windows.len() > WINDOWS {
            self.windows.pop_front();
        }
        self.open = (0, 0.0, 0.0);
    }

    /// Adds another's windows.
    pub fn absorb(&mut self, other: &Self) {
        self.windows.extend(&other.windows);
        self.windows.make_contiguous().sort_by(|a, b| a.at.total_cmp(&b.at));
        while self.windows.len() > WINDOWS {
            self.windows.pop_front();
        }
    }

    /// Squared coefficient of variation over several streams at `now`; 1 (Poisson) until something is known. A window's
    /// weight halves with each `half_life_seconds`.
    pub fn scv<'a>(streams: impl Iterator<Item = &'a Self>, now: f64, half_life_seconds: f64) -> f64 {
        let mut weighted = vec![(1.0, PRIOR_WINDOWS)];
        weighted.extend(streams.flat_map(|s| &s.windows).map(|w| {
            let age = (now - w.at).max(0.0);
            (w.scv, (-age / half_life_seconds.max(1e-9)).exp2())
        }));
        weighted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let half = 0.5 * weighted.iter().map(|(_, w)| w).sum::<f64>();
        let mut seen = 0.0;
        for (scv, weight) in weighted {
            seen += weight;
            if seen >= half {
                return scv.clamp(LIMITS.0, LIMITS.1);
            }
        }
        1.0
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Feeds reports of about a second each; `gap` draws the next time between requests (s).
    fn feed(b: &mut Burstiness, now: &mut f64, seconds: f64, mut gap: impl FnMut() -> f64) {
        let until = *now + seconds;
        while *now < until {
            let (mut n, mut sum, mut squares) = (0, 0.0, 0.0);
            while sum < 1.0 {
                let g = gap();
                (n, sum, squares) = (n + 1, sum + g, squares + g * g);
            }
            *now += sum;
            b.observe(n, sum, squares, *now);
        }
    }

    fn exponential(rng: &mut SmallRng, rate: f64) -> f64 {
        -(1.0 - rng.random::<f64>()).ln() / rate
    }

    fn scv(b: &Burstiness, now: f64) -> f64 {
        Burstiness::scv(std::iter::once(b), now, 600.0)
    }

    #[test]
    fn poisson_is_about_one_and_a_metronome_far_less() {
        for rate in [0.5, 4.0, 50.0] {
            let (mut b, mut now, mut rng) = (Burstiness::default(), 0.0, SmallRng::seed_from_u64(1));
            feed(&mut b, &mut now, 600.0, || exponential(&mut rng, rate));
            assert!((0.7..1.3).contains(&scv(&b, now)), "{rate}: {}", scv(&b, now));
        }
        let (mut b, mut now) = (Burstiness::default(), 0.0);
        feed(&mut b, &mut now, 600.0, || 0.1);
        assert!(scv(&b, now) <= 0.3, "{}", scv(&b, now));
    }

    #[test]
    fn bursts_show() {
        // Nine of ten gaps are a hundredth of the tenth: scv = 2·E[λ⁻²]/E[λ⁻¹]² − 1 for the mixture of exponentials.
        let (mut b, mut now, mut rng) = (Burstiness::default(), 0.0, SmallRng::seed_from_u64(2));
        feed(&mut b, &mut now, 600.0, || {
            let rate = if rng.random::<f64>() < 0.9 { 500.0 } else { 5.0 };
            exponential(&mut rng, rate)
        });
        assert!(scv(&b, now) > 4.0, "{}", scv(&b, now));
    }

    #[test]
    fn steps_and_pauses_of_the_rate_are_no_bursts() {
        let (mut b, mut now, mut rng) = (Burstiness::default(), 0.0, SmallRng::seed_from_u64(3));
        feed(&mut b, &mut now, 10.0, || exponential(&mut rng, 1.0));
        b.observe(1, 300.0, 90_000.0, now);
        for rate in [4.0, 48.0, 4.0, 100.0] {
            feed(&mut b, &mut now, 20.0, || exponential(&mut rng, rate));
            assert!((0.5..2.0).contains(&scv(&b, now)), "{rate}: {}", scv(&b, now));
        }
    }

    #[test]
    fn nothing_known_is_poisson_and_nonsense_is_left_out() {
        let mut b = Burstiness::default();
        for (n, sum, squares) in [(0, 1.0, 1.0), (9, f64::NAN, 1.0), (9, 1.0, f64::INFINITY), (9, -1.0, 1.0)]
        {
            b.observe(n, sum, squares, 0.0);
        }
        assert_eq!(b, Burstiness::default());
        assert_eq!(scv(&b, 0.0), 1.0);
    }
}
