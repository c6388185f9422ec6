//! Model time: real time multiplied by how much faster the engines run than the ones they stand for.

use std::time::Duration;

use tokio::time::Instant;

/// The agent's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
    scale: f64,
}

impl Clock {
    pub(crate) fn new(scale: f64) -> Self {
        // Not at 0: several pure parts take 0 as "never".
        Self { origin: Instant::now(), scale }
    }

    /// Milliseconds of model time since the agent started.
    pub(crate) fn now_ms(&self) -> f64 {
        1.0 + self.origin.elapsed().as_secs_f64() * 1000.0 * self.scale
    }

    /// The real time that this much model time takes.
    pub(crate) fn real(&self, model_ms: f64) -> Duration {
        Duration::from_secs_f64((model_ms / self.scale / 1000.0).clamp(0.0, 1e9))
    }

    /// The part of `real` that a wait in model time loses by running faster than real time.
    pub(crate) fn lost(&self, real: Duration) -> Duration {
        real.mul_f64((1.0 - 1.0 / self.scale).clamp(0.0, 1.0))
    }

    /// The model time in this much real time, ms.
    pub(crate) fn model_ms(&self, real: Duration) -> f64 {
        real.as_secs_f64() * 1000.0 * self.scale
    }
}
