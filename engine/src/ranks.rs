//! Attention ranks that wait for each other: what the fullest of them has, and what a prompt on one of them costs all.
//!
//! With attention data parallelism every layer with experts exchanges tokens between all ranks, so a step takes as long
//! as on the slowest rank. Engines send a request to the rank that has the fewest, so with `n` requests on `R` ranks the
//! fullest has `⌈n/R⌉`: for an `n` that is not tuned to `R`, `(n + (R − 1)/2)/R` on average. Contexts are not balanced:
//! of `R` sums of `m` contexts with standard deviation `σ` the largest exceeds the mean by `b σ √m`, with `b` the
//! expected maximum of `R` standard normal variables (Blom, "Statistical Estimates and Transformed Beta-Variables",
//! 1958: `Φ⁻¹((R − 0.375)/(R + 0.25))`).
//!
//! A prompt is computed by one rank. Of `N` prompts that begin in one step (Poisson, mean `ν`) the fullest rank computes
//! `⌈N/R⌉`, all others wait for it: a prompt alone costs everybody its whole time, many together an `R`th each.

use crate::quantile::normal;

/// Attention ranks of one replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ranks {
    /// How many.
    pub(crate) count: f64,
    /// Expected maximum of as many standard normal variables.
    maximum: f64,
}

/// What prompts that share a step take from others, as factors of their own work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PromptCost {
    /// Share of the time on its rank that a prompt costs all of them: 1 alone, `1/R` among many.
    pub(crate) rank: f64,
    /// Variance of the prompts that the fullest rank computes in a step, for each prompt: 1 where there is but one rank.
    pub(crate) variance: f64,
    /// Steps without decoding that a prompt takes, shared with those that come with it: 0 where prompts join decoding.
    pub(crate) steps: f64,
}

impl PromptCost {
    /// On one rank, beside decoding.
    pub(crate) const BESIDE: Self = Self { rank: 1.0, variance: 1.0, steps: 0.0 };
}

impl Ranks {
    pub(crate) fn new(count: u32) -> Self {
        let n = f64::from(count.max(1));
        let maximum = if n > 1.0 { normal((n - 0.375) / (n + 0.25)) } else { 0.0 };
        Self { count: n, maximum }
    }

    /// Whether there is but one.
    pub(crate) fn alone(&self) -> bool {
        self.count <= 1.0
    }

    /// Requests of the fullest rank, of `requests` on all.
    #[inline]
    pub(crate) fn fullest(&self, requests: f64) -> f64 {
        if self.alone() {
            return requests;
        }
        let even = (requests + 0.5 * (self.count - 1.0)) / self.count;
        even.max(1.0).min(requests)
    }

    /// Context tokens of the rank that has most, where `requests` requests of each have `context` tokens together on
    /// average.
    #[inline]
    pub(crate) fn longest(&self, requests: f64, context: f64, deviation: f64) -> f64 {
        if self.alone() { context } else { context + self.maximum * deviation * requests.sqrt() }
    }

    /// Prompts that gather in the step that a prompt comes in, where `prompts` come in a mean one and decoding takes
    /// `decoding` of it. A prompt comes in a long step rather than in a short one: with a share `π = ν/b` of steps that
    /// carry `b` prompts each, `E[X²]/E[X] = (1 + (1 − r)²(1 − π)/π) E[X]`.
    pub(crate) fn gathered(&self, prompts: f64, decoding: f64) -> f64 {
        const ROUNDS: u32 = 6;
        if self.alone() || prompts <= 1e-12 {
            return prompts;
        }
        let spread = (1.0 - decoding.clamp(0.0, 1.0)).powi(2);
        let mut all = prompts;
        for _ in 0..ROUNDS {
            let together = all / -(-all).exp_m1();
            let some = (prompts / together).min(1.0);
            all = prompts * (1.0 + spread * (1.0 - some) / some);
        }
        all
    }

    /// What prompts cost where `prompts` begin in a step on average: mean and variance of `⌈N/R⌉` for each of them. The
    /// variance, which is small where some prompt is in nearly every step, is held at its peak before: more load never
    /// makes times more even.
    pub(crate) fn share(&self, prompts: f64) -> (f64, f64) {
        if self.alone() || prompts <= 1e-12 {
            return (1.0, 1.0);
        }
        let some = -(-prompts).exp_m1();
        let each = prompts / some;
        let fullest = ((each + 0.5 * (self.count - 1.0)) / self.count).max(1.0);
        let any = some * (1.0 - some.min(0.5)).max(0.25 / some.max(0.5));
        let more = if fullest > 1.0 { prompts / (self.count * self.count) } else { 0.0 };
        (fullest / each, (any * fullest * fullest + more) / prompts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `E⌈N/R⌉` of a Poisson variable, summed term by term.
    fn exact(mean: f64, ranks: u32) -> f64 {
        let (mut p, mut sum) = ((-mean).exp(), 0.0);
        for n in 1..400u32 {
            p *= mean / f64::from(n);
            sum += p * f64::from(n.div_ceil(ranks));
        }
        sum
    }

    #[test]
    fn prompts_on_the_fullest_rank() {
        for ranks in [1, 2, 4, 8, 32] {
            for mean in [0.01, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0] {
                let (share, _) = Ranks::new(ranks).share(mean);
                let error = share * mean / exact(mean, ranks) - 1.0;
                assert!(error.abs() < 0.09, "{mean} prompts on {ranks} ranks: {error:+.3}");
            }
        }
    }

    /// The variance is that of the sum term by term where it rises, and never falls.
    #[test]
    fn variances_are_those_of_the_fullest_rank_or_above() {
        for ranks in [2, 4, 8, 32] {
            let mut last = 0.0;
            for mean in [0.01, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0] {
                let (mut p, mut square) = (f64::exp(-mean), 0.0);
                for n in 1..400u32 {
                    p *= mean / f64::from(n);
                    square += p * f64::from(n.div_ceil(ranks)).powi(2);
                }
                let variance = square - exact(mean, ranks).powi(2);
                let modelled = Ranks::new(ranks).share(mean).1 * mean;
                assert!(modelled >= last * (1.0 - 1e-9), "{mean} on {ranks}: {modelled} after {last}");
                assert!(modelled > 0.75 * variance, "{mean} on {ranks}: {modelled}, {variance}");
                if mean < 0.65 && ranks > 2 {
                    assert!(modelled < 1.1 * variance, "{mean} on {ranks}: {modelled}, {variance}");
                }
                last = modelled;
            }
        }
        assert_eq!(Ranks::new(1).share(3.0), (1.0, 1.0));
    }

    #[test]
    fn expected_maxima_are_tabulated_ones() {
        // Means of the largest of n standard normal variables (order statistics tables).
        for (n, expected) in [(2, 0.5642), (4, 1.0294), (8, 1.4236), (16, 1.7660), (64, 2.3441)] {
            let ranks = Ranks::new(n);
            assert!((ranks.maximum - expected).abs() < 0.03, "{n}: {}", ranks.maximum);
        }
    }

    #[test]
    fn whole_requests_are_spread_as_evenly_as_they_can_be() {
        let ranks = Ranks::new(8);
        assert_eq!(ranks.fullest(0.4), 0.4);
        assert_eq!(ranks.fullest(3.0), 1.0);
        let mean = (64..72).map(|n: u32| f64::from(n.div_ceil(8))).sum::<f64>() / 8.0;
        let smooth = (64..72).map(|n| ranks.fullest(f64::from(n))).sum::<f64>() / 8.0;
        assert!((mean - smooth).abs() < 1e-9);
        assert_eq!(Ranks::new(1).fullest(17.3), 17.3);
    }
}
