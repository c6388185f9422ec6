//! Exponential backoff with jitter.

use std::time::Duration;

use tokio::time::Instant;

/// Delays that double from `base` to `limit`, each shortened at random by up to half so that many clients do not retry
/// at one moment.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    limit: Duration,
    failures: u32,
    state: u64,
}

impl Backoff {
    /// From `base`, up to `limit`; `seed` makes the jitter differ between users.
    pub fn new(base: Duration, limit: Duration, seed: u64) -> Self {
        Self { base, limit, failures: 0, state: seed | 1 }
    }

    /// The delay before the next try.
    pub fn next_delay(&mut self) -> Duration {
        let full = self.base.saturating_mul(2_u32.saturating_pow(self.failures)).min(self.limit);
        self.failures = self.failures.saturating_add(1);
        // xorshift64: enough to spread retries.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let share = 0.5 + 0.5 * (self.state >> 11) as f64 / (1_u64 << 53) as f64;
        full.mul_f64(share)
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// For watches: starts over after a calm time. Not after an event, since every try of a watcher begins with one, also where
/// what it then asks for is refused.
#[derive(Debug)]
pub struct WatchBackoff {
    backoff: Backoff,
    calm: Duration,
    last: Option<Instant>,
}

impl WatchBackoff {
    /// Starts over when `calm` has passed since the last delay began.
    pub fn new(backoff: Backoff, calm: Duration) -> Self {
        Self { backoff, calm, last: None }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.last.is_some_and(|last| last.elapsed() > self.calm) {
            self.backoff.reset();
        }
        self.last = Some(Instant::now());
        Some(self.backoff.next_delay())
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_limit_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 7);
        let delays: Vec<Duration> = (0..12).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] >= Duration::from_millis(50) && delays[0] <= Duration::from_millis(100));
        assert!(delays[11] >= Duration::from_millis(2500) && delays[11] <= Duration::from_secs(5));
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_refused_again_and_again_waits_longer() {
        use kube::runtime::utils::Backoff as _;
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(8), 7);
        let mut watch = WatchBackoff::new(backoff, Duration::from_secs(20));
        for _ in 0..8 {
            watch.reset();
            tokio::time::sleep(watch.next().unwrap()).await;
        }
        assert!(watch.next().unwrap() >= Duration::from_secs(4));
        tokio::time::sleep(Duration::from_secs(21)).await;
        assert!(watch.next().unwrap() <= Duration::from_millis(500));
    }
}
