//! From what a routed request wants to what admission is asked.

use plimsoll_fleet::StepCoefficients;

use super::Ask;
use super::lengths::LengthKey;
use crate::route::{ReplicaLoad, predict};

/// What a request wants, as it comes to the engine that was chosen. Times are from now, ms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wish {
    /// Tier: higher goes first.
    pub priority: i32,
    /// Whose it is.
    pub whose: LengthKey,
    /// Weight of its tenant; 1 is ordinary.
    pub weight: f64,
    /// Prompt tokens, estimated.
    pub prompt_tokens: f64,
    /// Of these, believed to be cached.
    pub cached_tokens: f64,
    /// Answer tokens, expected.
    pub expected_output: f64,
    /// Answer tokens that the client allows (`None`: no limit).
    pub most_output: Option<f64>,
    /// Until it must produce its first token (`None`: no objective).
    pub first_token_in_ms: Option<f64>,
    /// Time per output token that it must keep (`None`: no objective).
    pub tpot_ms: Option<f64>,
    /// Until it must be over (`None`: no objective).
    pub finish_in_ms: Option<f64>,
    /// Until its task's stage should be over (`None`: of no task, or one without a deadline).
    pub stage_in_ms: Option<f64>,
    /// Until its answer is worthless (`None`: never).
    pub deadline_in_ms: Option<f64>,
    /// Tokens of it will be seen as they come.
    pub streaming: bool,
}

impl Wish {
    /// What to ask of the admission of an engine with these coefficients and this load, at `now_ms`. What waits ahead is
    /// the admission's business: the prediction is for the engine as it runs.
    pub fn ask(&self, id: u64, now_ms: f64, coefficients: &StepCoefficients, load: &ReplicaLoad) -> Ask {
        let load = ReplicaLoad { prefill_tokens: 0.0, waiting: 0.0, ..*load };
        let prediction =
            predict(coefficients, &load, self.prompt_tokens, self.cached_tokens, self.expected_output);
        let at = |left: Option<f64>| left.map(|ms| now_ms + ms);
        Ask {
            id,
            priority: self.priority,
            whose: self.whose,
            weight: self.weight,
            prompt_tokens: self.prompt_tokens.max(1.0),
            cached_tokens: self.cached_tokens,
            expected_output: self.expected_output,
            most_output: self.most_output.unwrap_or(f64::INFINITY),
            prefill_ms: prediction.prefill_ms,
            service_ms: prediction.prefill_ms + prediction.decode_ms,
            start_by_ms: at(self.first_token_in_ms).map(|t| t - prediction.prefill_ms),
            tpot_ms: self.tpot_ms,
            finish_by_ms: at(self.finish_in_ms),
            stage_by_ms: at(self.stage_in_ms),
            deadline_ms: at(self.deadline_in_ms),
            streaming: self.streaming,
        }
    }
}
