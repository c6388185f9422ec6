//! When to plan.

use jiff::Timestamp;

use super::State;

/// Virtual seconds between plans that demand alone calls for.
const DEMAND_REPLAN_SECONDS: f64 = 15.0;

/// When it is time to plan. A first change waits a moment for others to come with it; demand alone may not call for
/// plans faster than it can change anything.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    /// Virtual seconds between plans when nothing material changes.
    replan_seconds: f64,
    /// Wall seconds to wait after a first change.
    debounce_seconds: f64,
    planned_at: Option<Timestamp>,
    first_due: Option<Timestamp>,
}

impl Pace {
    /// No plan has been made yet.
    pub fn new(replan_seconds: f64, debounce_seconds: f64) -> Self {
        Self { replan_seconds, debounce_seconds, planned_at: None, first_due: None }
    }

    /// What to plan for at a wall time, if it is time.
    pub fn due(&mut self, state: &mut State, wall: Timestamp) -> Option<String> {
        if !state.snapshot_is_current {
            return None;
        }
        let since = |at: Timestamp| wall.duration_since(at).as_secs_f64();
        let planned = self.planned_at.map(|at| state.clock.virtual_seconds(since(at)));
        if let Some(due) = &state.due {
            if !due.urgent && planned.is_some_and(|s| s < DEMAND_REPLAN_SECONDS) {
                return None;
            }
            if since(*self.first_due.get_or_insert(wall)) < self.debounce_seconds {
                return None;
            }
            return state.due.take().map(|due| due.why);
        }
        planned.is_none_or(|s| s >= self.replan_seconds).then(|| "periodic".to_owned())
    }

    /// A plan was made, or failed to be.
    pub fn planned(&mut self, wall: Timestamp) {
        self.planned_at = Some(wall);
        self.first_due = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::SignedDuration;

    use super::*;
    use crate::clock::Clock;
    use crate::control::Due;
    use crate::demand::{DemandConfig, DemandTracker};

    #[test]
    fn urgent_changes_wait_for_each_other_and_demand_for_the_last_plan() {
        let t0 = Timestamp::UNIX_EPOCH;
        let at = |ms: i64| t0.checked_add(SignedDuration::from_millis(ms)).unwrap();
        let clock = Clock::new(1.0, None, t0).unwrap();
        let mut state = State::new(clock, DemandTracker::new(DemandConfig::default()), t0);
        let mut pace = Pace::new(60.0, 0.2);
        assert_eq!(pace.due(&mut state, at(0)), None, "nothing is known of the cluster");
        state.snapshot = Some(Arc::default());
        state.snapshot_is_current = true;
        state.ask_for_plan(Due { why: "first look".into(), urgent: true });
        assert_eq!(pace.due(&mut state, at(0)), None);
        assert_eq!(pace.due(&mut state, at(199)), None);
        assert_eq!(pace.due(&mut state, at(200)).as_deref(), Some("first look"));
        pace.planned(at(300));
        assert_eq!(pace.due(&mut state, at(400)), None);
        state.ask_for_plan(Due { why: "demand rose".into(), urgent: false });
        assert_eq!(pace.due(&mut state, at(5_000)), None, "too soon after the last plan");
        assert_eq!(pace.due(&mut state, at(15_300)), None, "others may come with it");
        assert_eq!(pace.due(&mut state, at(15_500)).as_deref(), Some("demand rose"));
        pace.planned(at(15_500));
        assert_eq!(pace.due(&mut state, at(75_499)), None);
        assert_eq!(pace.due(&mut state, at(75_500)).as_deref(), Some("periodic"));
    }
}
