//! Power and energy: watts from what the arithmetic and memory units do, joules for tokens, carbon.
//!
//! While it works, an accelerator draws `min(cap, TDP · (0.30 + 1.45·u_c + 0.70·u_m))`, with `u_c` the share of peak
//! arithmetic and `u_m` that of peak memory bandwidth in use; between steps its idle power. Fitted to the 33
//! operating points with measured power of Llama-2-70B on A100 (Splitwise's measurements): token phases give the
//! constant and `u_m`, the peak power of prompt phases `u_c`. It is inferred that other accelerators follow the same
//! law.
//!
//! Under a cap, the arithmetic clock falls with the cube root of dynamic power, `f ∝ ((cap − idle)/(TDP −
//! idle))^(1/3)`, and memory bandwidth stays: the measured H100 rows at half their power have prompts 1.30 times as
//! long and tokens unchanged; the rule says 1.31.

use plimsoll_fleet::{AcceleratorClass, Shape};
use serde::{Deserialize, Serialize};

use crate::{ReplicaModel, StepLoad};

const BUSY: f64 = 0.30;
const COMPUTE: f64 = 1.45;
const MEMORY: f64 = 0.70;

/// Arithmetic clock under the class's power cap, as a share of full clock.
pub(crate) fn clock(acc: &AcceleratorClass) -> f64 {
    let Some(cap) = acc.power_cap_watts else { return 1.0 };
    let dynamic = acc.tdp_watts - acc.idle_watts;
    if dynamic <= 0.0 || cap >= acc.tdp_watts {
        return 1.0;
    }
    ((cap - acc.idle_watts) / dynamic).clamp(1e-6, 1.0).cbrt()
}

/// Power facts of one replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Power {
    idle_watts: f64,
    tdp_watts: f64,
    cap_watts: f64,
    accelerators: f64,
    /// Shares of peak rates that the unit reaches while it works; of arithmetic, of the peak at full clock.
    pub(crate) eta_compute: f64,
    pub(crate) eta_weights: f64,
    pub(crate) eta_kv: f64,
}

impl Power {
    pub(crate) fn new(acc: &AcceleratorClass, shape: &Shape) -> Self {
        let c = &acc.calibration;
        Self {
            idle_watts: acc.idle_watts,
            tdp_watts: acc.tdp_watts.max(acc.idle_watts),
            cap_watts: acc.power_cap_watts.unwrap_or(acc.tdp_watts).min(acc.tdp_watts).max(acc.idle_watts),
            accelerators: f64::from(shape.gpus()),
            eta_compute: c.eta_compute * clock(acc),
            eta_weights: c.eta_weights,
            eta_kv: c.eta_kv,
        }
    }

    /// All accelerators with these shares of peak arithmetic and memory bandwidth in use, watts.
    pub(crate) fn working(&self, compute: f64, memory: f64) -> f64 {
        let share = BUSY + COMPUTE * compute.clamp(0.0, 1.0) + MEMORY * memory.clamp(0.0, 1.0);
        (self.tdp_watts * share).clamp(self.idle_watts, self.cap_watts) * self.accelerators
    }

    /// All accelerators between steps, watts.
    pub(crate) fn idle(&self) -> f64 {
        self.idle_watts * self.accelerators
    }
}

/// Energy of tokens on one replica, at the accelerators: without host, network and cooling.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenEnergy {
    /// Computing one prompt token, joules.
    pub joules_per_prompt_token: f64,
    /// Generating one answer token in a step of this batch, joules.
    pub joules_per_output_token: f64,
}

/// Where the electricity comes from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// Power usage effectiveness of the data centre: all power over that of the machines, at least 1.
    pub pue: f64,
    /// Carbon intensity, grams of CO₂ equivalent for a kilowatt-hour.
    pub grams_per_kwh: f64,
}

impl Grid {
    /// Grams of CO₂ equivalent for this much energy at the accelerators: `joules / 3.6e6 · PUE · intensity`.
    pub fn grams(&self, joules: f64) -> f64 {
        joules / 3.6e6 * self.pue.max(1.0) * self.grams_per_kwh
    }
}

impl ReplicaModel {
    /// Power of all accelerators of the replica during this step, watts.
    pub fn step_watts(&self, step: &StepLoad) -> f64 {
        let (compute, memory) = self.times.utilisation(step, &self.power);
        self.power.working(compute, memory)
    }

    /// Power of all accelerators of the replica while it has nothing to do, watts.
    pub fn idle_watts(&self) -> f64 {
        self.power.idle()
    }

    /// Energy of tokens: of prompts of `input_tokens` alone, and of a decode step of `batch` requests of
    /// `context_tokens`.
    pub fn token_energy(&self, input_tokens: f64, batch: f64, context_tokens: f64) -> TokenEnergy {
        let input = if input_tokens.is_finite() { input_tokens.max(1.0) } else { 1.0 };
        let batch = if batch.is_finite() { batch.max(1.0) } else { 1.0 };
        let mut prompt = StepLoad::default();
        prompt.add_prefill(input, 0.0);
        let decode = StepLoad {
            running: batch,
            context_tokens: batch * context_tokens,
            adapters: self.times.expected_adapters(batch),
            ..StepLoad::default()
        };
        let joules = |load: &StepLoad| self.step_watts(load) * self.step_ms(load) * 1e-3;
        TokenEnergy {
            joules_per_prompt_token: joules(&prompt) / input,
            joules_per_output_token: joules(&decode) / (batch * self.tokens_per_step()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_at_half_power_slows_the_clock_by_a_quarter() {
        let mut h100 = plimsoll_fleet::presets::accelerator("h100").unwrap();
        assert_eq!(clock(&h100), 1.0);
        h100.power_cap_watts = Some(350.0);
        // (280/630)^(1/3).
        assert!((clock(&h100) - 0.763).abs() < 1e-3);
        h100.power_cap_watts = Some(900.0);
        assert_eq!(clock(&h100), 1.0);
    }

    #[test]
    fn carbon_by_hand() {
        // 1 kWh at the accelerator, 1.2 in the building, 400 g each.
        assert_eq!(Grid { pue: 1.2, grams_per_kwh: 400.0 }.grams(3.6e6), 480.0);
    }
}
