//! What is known of the coefficients before anything is measured.

use plimsoll_fleet::Calibration;

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
];

/// Scatter of log residuals expected of the model's form where it fits well.
const SCATTER: f64 = 0.06;

impl Prior {
    /// For an engine and accelerator of which nothing is known: the coefficients shipped for H100.
    pub fn shipped() -> Self {
        let h100 = plimsoll_fleet::presets::accelerator("h100").map(|a| a.calibration);
        Self::around(&h100.unwrap_or(FALLBACK))
    }

    /// Around coefficients of similar hardware: those of the accelerator's preset, for example.
    pub fn around(calibration: &Calibration) -> Self {
        let mut variance = [0.0; COUNT];
        for (k, sd) in SPREAD {
            variance[k.index()] = sd * sd;
        }
        Self {
            base: calibration.clone(),
            mean: logs(calibration),
            covariance: Matrix::diagonal(&variance),
            scatter: SCATTER,
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
    relative_error: 0.25,
};
