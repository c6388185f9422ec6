//! The coefficients that are fitted: those of [`Calibration`], as logarithms.

use std::fmt;

use plimsoll_fleet::Calibration;

use super::linear::Vector;

/// Coefficients fitted.
pub(crate) const COUNT: usize = Coefficient::ALL.len();

/// One coefficient of the latency model; the fields of [`Calibration`] are documented there.
///
/// What shows it: *compute* and *attention* long prompts and large batches (attention only at long context),
/// *weights* small decode batches, *KV* long contexts in large batches, *link* and *all-reduce* several
/// tensor-parallel degrees, *layer* and *step overhead* small models (models of different depth, to tell them
/// apart), *request overhead* large batches at short context, *API* the time to first token of a lone request,
/// *launch* small batches without CUDA graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Coefficient {
    /// [`Calibration::eta_compute`].
    EtaCompute,
    /// [`Calibration::eta_attention`].
    EtaAttention,
    /// [`Calibration::eta_weights`].
    EtaWeights,
    /// [`Calibration::eta_kv`].
    EtaKv,
    /// [`Calibration::eta_link`].
    EtaLink,
    /// [`Calibration::layer_overhead_us`].
    LayerOverhead,
    /// [`Calibration::step_overhead_us`].
    StepOverhead,
    /// [`Calibration::request_overhead_us`].
    RequestOverhead,
    /// [`Calibration::allreduce_alpha_us`].
    AllreduceAlpha,
    /// [`Calibration::api_overhead_ms`].
    ApiOverhead,
    /// [`Calibration::launch_layer_us`].
    Launch,
}

impl Coefficient {
    /// All of them, in the order of their positions.
    pub const ALL: [Self; 11] = [
        Self::EtaCompute,
        Self::EtaAttention,
        Self::EtaWeights,
        Self::EtaKv,
        Self::EtaLink,
        Self::LayerOverhead,
        Self::StepOverhead,
        Self::RequestOverhead,
        Self::AllreduceAlpha,
        Self::ApiOverhead,
        Self::Launch,
    ];

    /// The field's name in manifests and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::EtaCompute => "eta_compute",
            Self::EtaAttention => "eta_attention",
            Self::EtaWeights => "eta_weights",
            Self::EtaKv => "eta_kv",
            Self::EtaLink => "eta_link",
            Self::LayerOverhead => "layer_overhead_us",
            Self::StepOverhead => "step_overhead_us",
            Self::RequestOverhead => "request_overhead_us",
            Self::AllreduceAlpha => "allreduce_alpha_us",
            Self::ApiOverhead => "api_overhead_ms",
            Self::Launch => "launch_layer_us",
        }
    }

    /// Position in vectors.
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// Its value in a calibration.
    pub fn of(self, c: &Calibration) -> f64 {
        match self {
            Self::EtaCompute => c.eta_compute,
            Self::EtaAttention => c.eta_attention,
            Self::EtaWeights => c.eta_weights,
            Self::EtaKv => c.eta_kv,
            Self::EtaLink => c.eta_link,
            Self::LayerOverhead => c.layer_overhead_us,
            Self::StepOverhead => c.step_overhead_us,
            Self::RequestOverhead => c.request_overhead_us,
            Self::AllreduceAlpha => c.allreduce_alpha_us,
            Self::ApiOverhead => c.api_overhead_ms,
            Self::Launch => c.launch_layer_us,
        }
    }

    fn of_mut(self, c: &mut Calibration) -> &mut f64 {
        match self {
            Self::EtaCompute => &mut c.eta_compute,
            Self::EtaAttention => &mut c.eta_attention,
            Self::EtaWeights => &mut c.eta_weights,
            Self::EtaKv => &mut c.eta_kv,
            Self::EtaLink => &mut c.eta_link,
            Self::LayerOverhead => &mut c.layer_overhead_us,
            Self::StepOverhead => &mut c.step_overhead_us,
            Self::RequestOverhead => &mut c.request_overhead_us,
            Self::AllreduceAlpha => &mut c.allreduce_alpha_us,
            Self::ApiOverhead => &mut c.api_overhead_ms,
            Self::Launch => &mut c.launch_layer_us,
        }
    }

    /// What stands for zero, whose logarithm there is not: too little to be seen in any measurement.
    fn least(self) -> f64 {
        match self {
            Self::EtaCompute | Self::EtaAttention | Self::EtaWeights | Self::EtaKv | Self::EtaLink => 1e-3,
            Self::LayerOverhead | Self::Launch => 1.0,
            Self::StepOverhead => 50.0,
            Self::RequestOverhead => 0.5,
            Self::AllreduceAlpha => 0.1,
            Self::ApiOverhead => 0.1,
        }
    }
}

impl fmt::Display for Coefficient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Logarithms of a calibration's coefficients.
pub(crate) fn logs(c: &Calibration) -> Vector {
    Coefficient::ALL.map(|k| {
        let value = k.of(c);
        if value.is_finite() { value.max(k.least()).ln() } else { k.least().ln() }
    })
}

/// A calibration with these logarithms of coefficients; whatever is not fitted comes from `base`.
pub(crate) fn with_logs(base: &Calibration, logs: &Vector) -> Calibration {
    let mut c = base.clone();
    for (k, log) in Coefficient::ALL.into_iter().zip(logs) {
        *k.of_mut(&mut c) = log.exp();
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let c = plimsoll_fleet::presets::accelerator("h100").unwrap().calibration;
        let back = with_logs(&c, &logs(&c));
        for k in Coefficient::ALL {
            assert!((k.of(&back) - k.of(&c).max(k.least())).abs() < 1e-9, "{k}");
            assert_eq!(Coefficient::ALL[k.index()], k);
        }
    }
}
