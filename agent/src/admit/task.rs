//! Compound tasks: calls of one task share a deadline and a tier.
//!
//! The first call that names a deadline sets the task's; later calls may only bring it forward. A task is only worth
//! something whole, so each call gets a share of the time that is left: an equal one for every stage that is still to
//! come, this one among them. JITServe (arXiv 2504.20068) takes the shares of similar earlier tasks and falls back to
//! six equal stages; here the number of stages is learned by class and the shares stay equal (an inference of ours).
//! Calls made while another of the task is under way belong to its stage.

use std::collections::HashMap;

/// Stages of a task while nothing is known of its class.
pub const STAGES: f64 = 6.0;
/// Most tasks remembered; those idle for longest give way.
pub const MOST_TASKS: usize = 4_096;
/// A task without a call for so long is over, ms.
pub const IDLE_MS: f64 = 300_000.0;
const MOST_CLASSES: usize = 1_024;

#[derive(Debug, Clone, Copy)]
struct Task {
    class: u64,
    deadline_ms: Option<f64>,
    priority: i32,
    /// Stages begun.
    stages: u32,
    under_way: u32,
    stage_by_ms: Option<f64>,
    last_ms: f64,
}

/// What a call inherits from its task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// When the whole task is worthless, ms.
    pub deadline_ms: Option<f64>,
    /// When this call should be over for the rest to have its share, ms.
    pub finish_by_ms: Option<f64>,
    /// Tier of the task: the highest that a call of it had.
    pub priority: i32,
}

/// Tasks that a router has seen calls of.
#[derive(Debug, Clone, Default)]
pub struct TaskBook {
    tasks: HashMap<u64, Task>,
    /// Stages of a finished task, smoothed, by class.
    stages: HashMap<u64, f64>,
}

impl TaskBook {
    /// A call of a task has come. `task` is a hash of the task's name and its tenant's.
    pub fn call(
        &mut self,
        now_ms: f64,
        task: u64,
        class: u64,
        deadline_ms: Option<f64>,
        priority: i32,
    ) -> Call {
        let over = self.tasks.get(&task).is_some_and(|t| t.over(now_ms));
        if over || (self.tasks.len() >= MOST_TASKS && !self.tasks.contains_key(&task)) {
            self.sweep(now_ms);
        }
        let expected = self.stages.get(&class).copied().unwrap_or(STAGES);
        let t = self.tasks.entry(task).or_insert(Task {
            class,
            deadline_ms: None,
            priority,
            stages: 0,
            under_way: 0,
            stage_by_ms: None,
            last_ms: now_ms,
        });
        t.last_ms = now_ms;
        t.priority = t.priority.max(priority);
        t.deadline_ms = match (t.deadline_ms, deadline_ms) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if t.under_way == 0 {
            let to_come = (expected - f64::from(t.stages)).max(1.0);
            t.stages += 1;
            t.stage_by_ms = t.deadline_ms.map(|d| now_ms + (d - now_ms).max(0.0) / to_come);
        }
        t.under_way += 1;
        // The deadline may have been brought forward since the stage began, or be new.
        let finish_by_ms = t.deadline_ms.map(|d| t.stage_by_ms.map_or(d, |by| by.min(d)));
        Call { deadline_ms: t.deadline_ms, finish_by_ms, priority: t.priority }
    }

    /// A call of a task is over.
    pub fn ended(&mut self, now_ms: f64, task: u64) {
        if let Some(t) = self.tasks.get_mut(&task) {
            t.under_way = t.under_way.saturating_sub(1);
            t.last_ms = now_ms;
        }
    }

    /// Learns from tasks that are over and forgets them; if none is, the eighth that is idle for longest.
    fn sweep(&mut self, now_ms: f64) {
        let mut gone: Vec<u64> = self.tasks.iter().filter(|(_, t)| t.over(now_ms)).map(|(k, _)| *k).collect();
        if gone.is_empty() && self.tasks.len() >= MOST_TASKS {
            let mut idle: Vec<(f64, u64)> = self.tasks.iter().map(|(k, t)| (t.last_ms, *k)).collect();
            idle.select_nth_unstable_by(MOST_TASKS / 8, |a, b| a.0.total_cmp(&b.0));
            gone.extend(idle[..MOST_TASKS / 8].iter().map(|(_, k)| *k));
        }
        for key in gone {
            let Some(t) = self.tasks.remove(&key).filter(|t| t.over(now_ms)) else { continue };
            if self.stages.len() < MOST_CLASSES || self.stages.contains_key(&t.class) {
                let seen = f64::from(t.stages);
                let stages = self.stages.entry(t.class).or_insert(seen);
                *stages += 0.1 * (seen - *stages);
            }
        }
    }

    /// Tasks remembered.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

impl Task {
    fn over(&self, now_ms: f64) -> bool {
        let past = self.deadline_ms.is_some_and(|d| now_ms > d);
        self.under_way == 0 && (past || now_ms - self.last_ms > IDLE_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn calls_share_the_first_deadline_and_the_highest_tier() {
        let mut book = TaskBook::default();
        let first = book.call(0.0, 1, 7, Some(60_000.0), 0);
        assert_eq!(first, Call { deadline_ms: Some(60_000.0), finish_by_ms: Some(10_000.0), priority: 0 });
        let beside = book.call(1_000.0, 1, 7, None, 5);
        assert_eq!(beside, Call { priority: 5, ..first }, "the same stage");
        book.ended(2_000.0, 1);
        book.ended(5_000.0, 1);
        let second = book.call(10_000.0, 1, 7, Some(90_000.0), 0);
        assert_eq!(second, Call { deadline_ms: Some(60_000.0), finish_by_ms: Some(20_000.0), priority: 5 });
        assert_eq!(
            book.call(0.0, 2, 7, None, 1),
            Call { deadline_ms: None, finish_by_ms: None, priority: 1 }
        );
    }

    #[test]
    fn the_number_of_stages_is_learned() {
        let mut book = TaskBook::default();
        for task in 0..50u64 {
            let at = task as f64 * 1_000_000.0;
            // The same name again and again: each time the earlier task is over.
            for stage in 0..2 {
                let call = book.call(at + f64::from(stage), 1, 7, Some(at + 1_000.0), 0);
                if task > 40 && stage == 0 {
                    let share = (call.finish_by_ms.unwrap_or(0.0) - at) / 1_000.0;
                    assert!(
                        (0.45..0.55).contains(&share),
                        "two stages, half the time for the first: {share}"
                    );
                }
                book.ended(at + f64::from(stage), 1);
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_the_busy_stay() {
        let mut book = TaskBook::default();
        for task in 0..20_000u64 {
            book.call(task as f64, 1_000 + task, 0, None, 0);
            book.call(task as f64, 1, 0, None, 3);
            assert!(book.len() <= MOST_TASKS);
        }
        assert_eq!(book.call(30_000.0, 1, 0, None, 0).priority, 3);
    }

    proptest! {
        #[test]
        fn no_stage_ends_after_its_task(
            calls in prop::collection::vec((0u64..20, 0.0..1e6f64, any::<bool>(), prop::option::of(0.0..1e6f64)), 1..200),
        ) {
            let mut book = TaskBook::default();
            let mut now = 0.0;
            for (task, gap, ends, deadline) in calls {
                now += gap;
                let call = book.call(now, task, task % 3, deadline.map(|d| now + d), 0);
                if let (Some(stage), Some(whole)) = (call.finish_by_ms, call.deadline_ms) {
                    prop_assert!(stage <= whole.max(now) + 1e-6);
                }
                if ends {
                    book.ended(now, task);
                }
            }
        }
    }
}
