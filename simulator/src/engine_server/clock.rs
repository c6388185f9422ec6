//! Virtual time: milliseconds that pass `speed` times as fast as the wall's.

use std::time::Duration;

use tokio::time::Instant;

/// A clock that starts at zero and runs `speed` times as fast as the wall's.
#[derive(Debug, Clone, Copy)]
pub(super) struct VirtualClock {
    origin: Instant,
    speed: f64,
}

impl VirtualClock {
    /// A clock that starts now.
    pub(super) fn start(speed: f64) -> Self {
        Self { origin: Instant::now(), speed }
    }

    /// Virtual milliseconds since the start.
    pub(super) fn now_ms(&self) -> f64 {
        self.origin.elapsed().as_secs_f64() * 1000.0 * self.speed
    }

    /// When the clock will show this time.
    pub(super) fn wall(&self, at_ms: f64) -> Instant {
        let seconds = (at_ms / 1000.0 / self.speed).max(0.0);
        let after = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        // Far enough away never to matter where the sum does not exist.
        self.origin.checked_add(after).unwrap_or_else(|| self.origin + Duration::from_secs(1 << 30))
    }

    /// A wall duration's length in virtual time, as a wall duration at this speed.
    pub(super) fn scaled(&self, virtual_time: Duration) -> Duration {
        Duration::try_from_secs_f64(virtual_time.as_secs_f64() / self.speed).unwrap_or(Duration::MAX)
    }
}
