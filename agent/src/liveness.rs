//! Liveness by progress: an engine that answers its health check and moves nothing is dead, and one that has just come, or
//! come back, is not alive before it has made a token.

/// Progress of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Liveness {
    busy_since_ms: Option<f64>,
    last_progress_ms: f64,
    last_counter: Option<f64>,
    failures: u32,
    healthy: Option<bool>,
    on_trial: bool,
    trials: u32,
}

/// Probes that must fail in a row before an engine counts as unhealthy.
const FAILURES: u32 = 2;

impl Liveness {
    /// A health probe came back. One failure is not yet an outage; one success ends it.
    pub fn probed(&mut self, ok: bool) {
        if ok {
            self.failures = 0;
            self.healthy = Some(true);
        } else {
            self.failures += 1;
            if self.failures >= FAILURES || self.healthy.is_none() {
                self.healthy = Some(false);
                self.on_trial = true;
            }
        }
    }

    /// Nothing is sent to it until it has made a token.
    pub fn put_on_trial(&mut self) {
        self.on_trial = true;
    }

    /// It answers its health check and has yet to make a token.
    pub fn awaits_token(&self) -> bool {
        self.on_trial && self.healthy == Some(true)
    }

    /// It made no token when asked for one. Returns how often that was so since it came.
    pub fn made_none(&mut self) -> u32 {
        self.trials += 1;
        self.trials
    }

    /// It has made a token.
    pub fn proved(&mut self) {
        self.on_trial = false;
        self.trials = 0;
    }

    /// Answers its health check, and has made a token since it came (`None`: not yet probed).
    pub fn healthy(&self) -> Option<bool> {
        if self.on_trial { Some(false) } else { self.healthy }
    }

    /// A token (or anything else that only a working engine produces) was seen.
    pub fn progressed(&mut self, now_ms: f64) {
        self.last_progress_ms = now_ms;
    }

    /// Looks at the engine: has it work, and what do its own token counters say (`None`: it has none, or did not
    /// answer; that is no progress, but no zero either)? Returns whether it is stalled: it has had work for `limit_ms`
    /// and nothing moved for as long.
    pub fn observe(&mut self, now_ms: f64, has_work: bool, counter: Option<f64>, limit_ms: f64) -> bool {
        if let Some(counter) = counter {
            if self.last_counter.is_some_and(|last| counter != last) {
                self.last_progress_ms = now_ms;
            }
            self.last_counter = Some(counter);
        }
        if !has_work {
            self.busy_since_ms = None;
            return false;
        }
        let since = *self.busy_since_ms.get_or_insert(now_ms);
        now_ms - since.max(self.last_progress_ms) >= limit_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalled_only_with_work_and_without_progress() {
        let mut l = Liveness::default();
        assert!(!l.observe(0.0, false, Some(5.0), 30.0));
        assert!(!l.observe(1000.0, true, Some(5.0), 30.0), "work just came");
        assert!(!l.observe(1029.0, true, Some(5.0), 30.0));
        assert!(l.observe(1030.0, true, Some(5.0), 30.0));
        assert!(l.observe(1031.0, true, None, 30.0), "an absent counter is no progress");
        assert!(!l.observe(1032.0, true, Some(6.0), 30.0), "its own counter moved");
        l.progressed(1070.0);
        assert!(!l.observe(1090.0, true, Some(6.0), 30.0));
        assert!(l.observe(1100.0, true, Some(6.0), 30.0));
        assert!(!l.observe(1200.0, false, None, 30.0));
    }

    #[test]
    fn one_lost_probe_is_forgiven() {
        let mut l = Liveness::default();
        assert_eq!(l.healthy(), None);
        l.probed(true);
        l.probed(false);
        assert_eq!(l.healthy(), Some(true));
        l.probed(false);
        assert_eq!(l.healthy(), Some(false));
        l.probed(true);
        assert_eq!(l.healthy(), Some(false), "it may have started anew");
        assert!(l.awaits_token());
        l.proved();
        assert_eq!(l.healthy(), Some(true));
        let mut fresh = Liveness::default();
        fresh.probed(false);
        assert_eq!(fresh.healthy(), Some(false), "one that never answered is not yet up");
    }

    #[test]
    fn an_engine_on_trial_counts_once_it_has_made_a_token() {
        let mut l = Liveness::default();
        l.put_on_trial();
        assert_eq!((l.healthy(), l.awaits_token()), (Some(false), false), "not before it answers at all");
        l.probed(true);
        assert_eq!((l.healthy(), l.awaits_token()), (Some(false), true));
        l.proved();
        l.probed(false);
        assert_eq!(l.healthy(), Some(true), "one lost probe is forgiven here too");
    }
}
