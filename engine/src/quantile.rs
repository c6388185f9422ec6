//! Small closed forms for quantiles.

/// Quantile of the standard normal distribution, by Acklam's rational approximation (relative error below 1.2e-9).
pub(crate) fn normal(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 5] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 4] =
        [7.784_695_709_041_462e-3, 3.224_671_290_700_398e-1, 2.445_134_137_142_996, 3.754_408_661_907_416];
    const LOW: f64 = 0.024_25;
    let p = p.clamp(1e-12, 1.0 - 1e-12);
    let tail = |q: f64| {
        (((((C[0] * q + C[1]) * q + C[2]) * q + C[3]) * q + C[4]) * q + C[5])
            / ((((D[0] * q + D[1]) * q + D[2]) * q + D[3]) * q + 1.0)
    };
    if p < LOW {
        tail((-2.0 * p.ln()).sqrt())
    } else if p > 1.0 - LOW {
        -tail((-2.0 * (1.0 - p).ln()).sqrt())
    } else {
        let q = p - 0.5;
        let r = q * q;
        (((((A[0] * r + A[1]) * r + A[2]) * r + A[3]) * r + A[4]) * r + A[5]) * q
            / (((((B[0] * r + B[1]) * r + B[2]) * r + B[3]) * r + B[4]) * r + 1.0)
    }
}

/// Quantile of a gamma-like sum with this mean and variance at the normal quantile `z` (Wilson–Hilferty), never
/// negative. Below the median, where the approximation fails for rare large parts, the median.
pub(crate) fn gamma(mean: f64, variance: f64, z: f64) -> f64 {
    if mean <= 0.0 || variance <= 0.0 {
        return mean.max(0.0);
    }
    let (k, z) = (mean * mean / variance, z.max(0.0));
    mean * (1.0 - 1.0 / (9.0 * k) + z / (3.0 * k.sqrt())).max(0.0).powi(3)
}

/// A wait that is zero with probability `1 − p` and otherwise exponential with this mean.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Wait {
    /// Probability of waiting at all.
    pub(crate) p: f64,
    /// Mean wait of those that wait, milliseconds.
    pub(crate) mean_ms: f64,
}

impl Wait {
    pub(crate) fn mean(&self) -> f64 {
        self.p * self.mean_ms
    }

    /// The wait that a share `p` of requests stays within.
    pub(crate) fn quantile(&self, p: f64) -> f64 {
        let tail = 1.0 - p;
        if self.p > tail { self.mean_ms * (self.p / tail.max(1e-12)).ln() } else { 0.0 }
    }
}

/// Quantile of a sum from the means and quantiles of its two parts, their deviations combined as if independent.
pub(crate) fn of_sum(a: (f64, f64), b: (f64, f64)) -> f64 {
    let (da, db) = (a.1 - a.0, b.1 - b.0);
    if da > 0.0 && db > 0.0 { a.0 + b.0 + da.hypot(db) } else { a.1 + b.1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_quantiles() {
        for (p, z) in [(0.5, 0.0), (0.95, 1.644_853_627), (0.99, 2.326_347_874), (0.01, -2.326_347_874)] {
            assert!((normal(p) - z).abs() < 1e-7, "{p}: {}", normal(p));
        }
    }

    #[test]
    fn exponential_wait() {
        let w = Wait { p: 0.5, mean_ms: 100.0 };
        // P(W > t) = 0.5 exp(−t/100) = 0.05 at t = 100 ln 10.
        assert!((w.quantile(0.95) - 100.0 * 10f64.ln()).abs() < 1e-9);
        assert_eq!(w.quantile(0.4), 0.0);
        assert_eq!(Wait::default().quantile(0.99), 0.0);
    }

    #[test]
    fn sums_combine_deviations() {
        assert_eq!(of_sum((10.0, 13.0), (20.0, 24.0)), 35.0);
        assert_eq!(of_sum((10.0, 8.0), (20.0, 24.0)), 32.0);
    }

    #[test]
    fn gamma_with_shape_of_one_is_exponential() {
        assert!((gamma(1.0, 1.0, normal(0.95)) - 20f64.ln()).abs() < 0.03);
    }
}
