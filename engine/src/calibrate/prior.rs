//! What is known of the coefficients before anything is measured.

use plimsoll_fleet::{AcceleratorClass, Calibration, Dtype};

use super::coefficients::{COUNT, Coefficient, logs};
use super::fit::Fit;
use super::linear::{Matrix, Vector};

/// A normal distribution of the coefficients' logarithms, and the error that predictions with its mean would have.
#[derive(Debug, Clone, PartialEq)]
pub struct Prior {
    /// Whatever is not fitted.
    pub(crate) base: Calibration,
    pub(crate) mean: Vector,
    pub(crate) covariance: Matrix,
    /// Scatter of log residuals expected around the best coefficients.
    pub(crate) scatter: f64,
}

/// How far coefficients of one engine and accelerator lie from another's (standard deviation of the logarithm).
const SPREAD: [(Coefficient, f64); COUNT] = [
    (Coefficient::EtaCompute, 0.25),
    (Coefficient::EtaAttention, 0.35),
    (Coefficient::EtaWeights, 0.15),
    (Coefficient::EtaKv, 0.3),
    (Coefficient::EtaLink, 0.4),
    (Coefficient::LayerOverhead, 0.5),
    (Coefficient::StepOverhead, 1.2),
    (Coefficient::RequestOverhead, 0.7),
    (Coefficient::AllreduceAlpha, 0.6),
    (Coefficient::ApiOverhead, 0.6),
    (Coefficient::Launch, 0.6),
];

/// Scatter of log residuals expected of the model's form where it fits well.
const SCATTER: f64 = 0.06;

fn spread() -> Vector {
    let mut variance = [0.0; COUNT];
    for (k, sd) in SPREAD {
        variance[k.index()] = sd * sd;
    }
    variance
}

/// What makes one engine on one accelerator like another.
#[derive(Debug, Clone, PartialEq)]
pub struct Traits {
    /// Engine.
    pub engine: String,
    /// Its version; empty if unknown.
    pub engine_version: String,
    /// Peak 16-bit FLOP/s of one accelerator.
    pub flops_per_second: f64,
    /// Memory bandwidth of one accelerator, bytes per second.
    pub memory_bytes_per_second: f64,
}

impl Traits {
    /// Of a version of an engine (empty if unknown) on an accelerator.
    pub fn new(engine: &str, engine_version: &str, accelerator: &AcceleratorClass) -> Self {
        Self {
            engine: engine.to_owned(),
            engine_version: engine_version.to_owned(),
            flops_per_second: accelerator.flops(Dtype::Bf16),
            memory_bytes_per_second: accelerator.memory_bytes_per_second,
        }
    }

    /// How much what is known of `other` says of this one, 0–1: less for another version, little for another engine,
    /// and less the further apart the logarithms of compute and bandwidth are.
    fn likeness(&self, other: &Self) -> f64 {
        /// Coefficients of one engine agree between H100 and H200 and between weight formats far better than those of
        /// several engines on one GPU. Chosen by looking at held-out errors, among 0.1 and 0.03.
        const OTHER_ENGINE: f64 = 0.03;
        let apart = |a: f64, b: f64| if a > 0.0 && b > 0.0 { (a / b).ln() } else { 0.0 };
        let hardware = apart(self.flops_per_second, other.flops_per_second)
            .hypot(apart(self.memory_bytes_per_second, other.memory_bytes_per_second));
        /// Chosen likewise, among 0.17, 0.3, 0.5 and 1.
        const OTHER_VERSION: f64 = 0.3;
        let engine = match (self.engine == other.engine, self.engine_version == other.engine_version) {
            (false, _) => OTHER_ENGINE,
            (true, false) => OTHER_VERSION,
            (true, true) => 1.0,
        };
        engine * (-0.5 * hardware * hardware).exp()
    }
}

impl Prior {
    /// For an engine and accelerator of which nothing is known: the coefficients shipped for H100.
    pub fn shipped() -> Self {
        let h100 = plimsoll_fleet::presets::accelerator("h100").map(|a| a.calibration);
        Self::around(&h100.unwrap_or(FALLBACK))
    }

    /// Around coefficients of similar hardware: those of the accelerator's preset, for example.
    pub fn around(calibration: &Calibration) -> Self {
        Self {
            base: calibration.clone(),
            mean: logs(calibration),
            covariance: Matrix::diagonal(&spread()),
            scatter: SCATTER,
        }
    }

    /// Carried over from fits of other engines and accelerators to one like `target`.
    ///
    /// Empirical Bayes with random effects (Gelman et al., *Bayesian Data Analysis*, section 5.4): every
    /// combination's coefficients are a draw around a common mean, of which its fit is an uncertain observation;
    /// fits of combinations more like the target weigh more. The spread of draws is that seen among the fits,
    /// drawn towards the one assumed by [`Prior::around`]. Without fits this is `fallback`.
    pub fn pooled(fits: &[(Traits, &Fit)], target: &Traits, fallback: &Self) -> Self {
        const ASSUMED: f64 = 1.0;
        let between = spread();
        let weights: Vec<f64> = fits.iter().map(|(t, _)| target.likeness(t)).collect();
        // Around the fallback's mean, about which less is known than about one draw.
        let Some(mut precision) = Matrix::diagonal(&between.map(|v| 4.0 * v)).inverse() else {
            return fallback.clone();
        };
        let mut pull = precision.times(&fallback.mean);
        for ((_, fit), w) in fits.iter().zip(&weights) {
            let Some(p) = fit.covariance.plus(&Matrix::diagonal(&between), 1.0).inverse() else { continue };
            precision = precision.plus(&p, *w);
            pull.iter_mut().zip(p.times(&fit.mean)).for_each(|(a, b)| *a += w * b);
        }
        let (Some(uncertain), Some(mean)) = (precision.inverse(), precision.solve(&pull)) else {
            return fallback.clone();
        };
        let mut seen = between.map(|v| ASSUMED * v);
        let mut count = [ASSUMED; COUNT];
        let (mut scatter, mut total) = (ASSUMED * 0.3 * fallback.scatter * fallback.scatter, 0.3 * ASSUMED);
        for ((_, fit), w) in fits.iter().zip(&weights) {
            for i in 0..COUNT {
                // A fit that knows nothing of a coefficient says nothing of its spread.
                let known = w * between[i] / (between[i] + fit.covariance.0[i][i].max(0.0));
                seen[i] += known * (fit.mean[i] - mean[i]).powi(2);
                count[i] += known;
            }
            scatter += w * fit.scatter * fit.scatter;
            total += w;
        }
        seen.iter_mut().zip(count).for_each(|(s, n)| *s /= n);
        Self {
            base: fallback.base.clone(),
            mean,
            covariance: uncertain.plus(&Matrix::diagonal(&seen), 1.0),
            scatter: (scatter / total).sqrt(),
        }
    }

    /// What a fit found, as the prior of the next one. `widen` multiplies variances: 1 keeps them, more lets the next
    /// measurements weigh more.
    pub fn from_fit(fit: &Fit, widen: f64) -> Self {
        Self {
            base: fit.calibration.clone(),
            mean: fit.mean,
            covariance: Matrix::ZERO.plus(&fit.covariance, widen.max(1.0)),
            scatter: fit.scatter.max(0.5 * SCATTER),
        }
    }

    /// The coefficients in the middle.
    pub fn calibration(&self) -> Calibration {
        super::coefficients::with_logs(&self.base, &self.mean)
    }

    /// The same, with the error to expect if nothing is measured: what the spread of time-like coefficients does to a
    /// prediction that depends on a few of them in equal parts, and the model's own scatter.
    pub fn stated(&self) -> Calibration {
        const SHARES: [(Coefficient, f64); 4] = [
            (Coefficient::EtaWeights, 0.4),
            (Coefficient::LayerOverhead, 0.2),
            (Coefficient::EtaCompute, 0.2),
            (Coefficient::EtaKv, 0.2),
        ];
        let mut along = [0.0; COUNT];
        for (k, share) in SHARES {
            along[k.index()] = share;
        }
        let sd = (self.covariance.quadratic(&along) + self.scatter * self.scatter).sqrt();
        Calibration { relative_error: (1.645 * sd).exp() - 1.0, ..self.calibration() }
    }

    /// Standard deviation of a coefficient's logarithm.
    pub fn sd(&self, k: Coefficient) -> f64 {
        self.covariance.0[k.index()][k.index()].max(0.0).sqrt()
    }
}

/// Stands in for a preset that is not there.
const FALLBACK: Calibration = Calibration {
    eta_compute: 0.55,
    eta_attention: 0.6,
    eta_weights: 0.9,
    eta_kv: 0.9,
    layer_overhead_us: 60.0,
    step_overhead_us: 0.0,
    request_overhead_us: 19.0,
    allreduce_alpha_us: 3.0,
    eta_link: 0.6,
    api_overhead_ms: 17.0,
    launch_layer_us: 180.0,
    launch_step_us: 0.0,
    relative_error: 0.25,
};
