//! What this agent knows of one replica's load, readable without a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use plimsoll_fleet::ReplicaId;

use crate::local::LocalEngine;
use crate::route::residency::Place;
use crate::route::{Availability, ReplicaLoad};

/// How long a load hint from another agent counts, model ms.
const HINT_FRESH_MS: f64 = 5_000.0;
/// First time out after a failure, model ms; doubles up to 32 times that.
const SUSPECT_MS: f64 = 1_000.0;

/// One replica.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) id: ReplicaId,
    /// The engine, where it runs on this agent's node.
    pub(crate) local: Option<Arc<LocalEngine>>,
    state: AtomicU8,
    running: AtomicI64,
    waiting: AtomicI64,
    context: AtomicI64,
    prefill: AtomicI64,
    hint: [AtomicI64; 4],
    hint_at: AtomicU64,
    suspect_until: AtomicU64,
    failures: AtomicU64,
    agent_gone_until: AtomicU64,
    /// How far the marks of what it was sent were followed.
    followed: Mutex<Option<Place>>,
}

const READY: u8 = 0;
const DRAINING: u8 = 1;
const UNHEALTHY: u8 = 2;
const STALLED: u8 = 3;

impl Replica {
    pub(crate) fn new(id: ReplicaId, local: Option<Arc<LocalEngine>>) -> Self {
        Self {
            id,
            local,
            state: AtomicU8::new(READY),
            running: AtomicI64::new(0),
            waiting: AtomicI64::new(0),
            context: AtomicI64::new(0),
            prefill: AtomicI64::new(0),
            hint: std::array::from_fn(|_| AtomicI64::new(0)),
            hint_at: AtomicU64::new(0),
            suspect_until: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            agent_gone_until: AtomicU64::new(0),
            followed: Mutex::new(None),
        }
    }

    pub(crate) fn set_state(&self, availability: Availability) {
        let state = match availability {
            Availability::Ready | Availability::Suspect => READY,
            Availability::Draining => DRAINING,
            Availability::Unhealthy => UNHEALTHY,
            Availability::Stalled => STALLED,
        };
        self.state.store(state, Relaxed);
    }

    pub(crate) fn set_load(&self, running: usize, waiting: usize, context: f64, prefill: f64) {
        self.running.store(running as i64, Relaxed);
        self.waiting.store(waiting as i64, Relaxed);
        self.context.store(context as i64, Relaxed);
        self.prefill.store(prefill as i64, Relaxed);
    }

    pub(crate) fn load(&self, now_ms: f64) -> ReplicaLoad {
        let availability = match self.state.load(Relaxed) {
            DRAINING => Availability::Draining,
            UNHEALTHY => Availability::Unhealthy,
            STALLED => Availability::Stalled,
            _ if now_ms < f64::from_bits(self.suspect_until.load(Relaxed)) => Availability::Suspect,
            _ => Availability::Ready,
        };
        let mut load = ReplicaLoad {
            availability,
            running: self.running.load(Relaxed) as f64,
            waiting: self.waiting.load(Relaxed) as f64,
            context_tokens: self.context.load(Relaxed) as f64,
            prefill_tokens: self.prefill.load(Relaxed) as f64,
        };
        let at = f64::from_bits(self.hint_at.load(Relaxed));
        if self.local.is_none() && at > 0.0 && now_ms - at < HINT_FRESH_MS {
            // The engine's agent counts everybody's requests, ours among them, as of a moment ago.
            let hint = |i: usize| self.hint[i].load(Relaxed) as f64;
            load.running = load.running.max(hint(0));
            load.waiting = load.waiting.max(hint(1));
            load.context_tokens = load.context_tokens.max(hint(2));
            load.prefill_tokens = load.prefill_tokens.max(hint(3));
        }
        load
    }

    /// The load as a header value for other agents.
    pub(crate) fn hint_text(&self) -> String {
        format!(
            "{},{},{},{}",
            self.running.load(Relaxed),
            self.waiting.load(Relaxed),
            self.context.load(Relaxed),
            self.prefill.load(Relaxed)
        )
    }

    pub(crate) fn take_hint(&self, text: &str, now_ms: f64) {
        let mut figures = text.split(',').map(|f| f.trim().parse::<i64>());
        let mut values = [0; 4];
        for value in &mut values {
            match figures.next() {
                Some(Ok(v)) if v >= 0 => *value = v,
                _ => return,
            }
        }
        for (slot, value) in self.hint.iter().zip(values) {
            slot.store(value, Relaxed);
        }
        self.hint_at.store(now_ms.to_bits(), Relaxed);
    }

    /// How far its agent's marks were followed.
    pub(crate) fn followed(&self) -> Option<Place> {
        *self.followed.lock()
    }

    /// They were followed up to here. Answers may come in another order than they were given.
    pub(crate) fn follow(&self, upto: Place) {
        let mut followed = self.followed.lock();
        if followed.is_none_or(|f| f.life != upto.life || f.marks < upto.marks) {
            *followed = Some(upto);
        }
    }

    /// A request could not be sent there: try others first for a while.
    pub(crate) fn failed(&self, now_ms: f64) {
        let failures = self.failures.fetch_add(1, Relaxed).min(5);
        self.suspect_until.store((now_ms + SUSPECT_MS * f64::from(1u32 << failures)).to_bits(), Relaxed);
    }

    /// The agent beside it is gone: its engine is asked directly until then.
    pub(crate) fn agent_lost(&self, until_ms: f64) {
        self.agent_gone_until.store(until_ms.to_bits(), Relaxed);
    }

    pub(crate) fn agent_gone(&self, now_ms: f64) -> bool {
        now_ms < f64::from_bits(self.agent_gone_until.load(Relaxed))
    }

    pub(crate) fn succeeded(&self) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
            self.suspect_until.store(0, Relaxed);
        }
    }
}

/// A request under way to a replica of another agent; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Flight {
    /// `None`: of nobody.
    replica: Option<Arc<Replica>>,
    prompt: i64,
    produced: i64,
    filled: bool,
}

impl Flight {
    pub(crate) fn new(replica: Arc<Replica>, uncached_tokens: f64) -> Self {
        let prompt = uncached_tokens.max(0.0) as i64;
        replica.running.fetch_add(1, Relaxed);
        replica.context.fetch_add(prompt, Relaxed);
        replica.prefill.fetch_add(prompt, Relaxed);
        Self { replica: Some(replica), prompt, produced: 0, filled: false }
    }

    /// One whose prompt is computed elsewhere.
    pub(crate) fn prefilled(replica: Arc<Replica>, prompt_tokens: f64) -> Self {
        let prompt = prompt_tokens.max(0.0) as i64;
        replica.running.fetch_add(1, Relaxed);
        replica.context.fetch_add(prompt, Relaxed);
        Self { replica: Some(replica), prompt, produced: 0, filled: true }
    }

    /// One that is nobody's load.
    pub(crate) fn none() -> Self {
        Self { replica: None, prompt: 0, produced: 0, filled: true }
    }

    pub(crate) fn produced(&mut self, tokens: f64) {
        let Some(replica) = &self.replica else { return };
        if !self.filled {
            self.filled = true;
            replica.prefill.fetch_sub(self.prompt, Relaxed);
        }
        self.produced += tokens as i64;
        replica.context.fetch_add(tokens as i64, Relaxed);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let Some(replica) = &self.replica else { return };
        replica.running.fetch_sub(1, Relaxed);
        replica.context.fetch_sub(self.prompt + self.produced, Relaxed);
        if !self.filled {
            replica.prefill.fetch_sub(self.prompt, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flights_leave_nothing_behind_and_hints_age() {
        let r = Arc::new(Replica::new(ReplicaId::new("a").unwrap(), None));
        {
            let mut f = Flight::new(r.clone(), 100.0);
            assert_eq!(r.load(10.0).prefill_tokens, 100.0);
            f.produced(3.0);
            assert_eq!((r.load(10.0).prefill_tokens, r.load(10.0).context_tokens), (0.0, 103.0));
        }
        assert_eq!(r.load(10.0), ReplicaLoad::default());
        {
            let mut f = Flight::prefilled(r.clone(), 100.0);
            f.produced(3.0);
            assert_eq!((r.load(10.0).prefill_tokens, r.load(10.0).context_tokens), (0.0, 103.0));
        }
        assert_eq!(r.load(10.0), ReplicaLoad::default());
        r.take_hint("5,1,900,50", 10.0);
        assert_eq!(r.load(11.0).running, 5.0);
        assert_eq!(r.load(6000.0).running, 0.0);
        r.take_hint("nonsense", 6000.0);
        r.take_hint("1,2,-3,4", 6000.0);
        assert_eq!(r.load(6001.0).running, 0.0);
    }

    #[test]
    fn failures_make_it_suspect_for_a_while() {
        let r = Replica::new(ReplicaId::new("a").unwrap(), None);
        r.failed(10.0);
        assert_eq!(r.load(500.0).availability, Availability::Suspect);
        assert_eq!(r.load(1500.0).availability, Availability::Ready);
        r.failed(1500.0);
        assert_eq!(r.load(3000.0).availability, Availability::Suspect);
        r.succeeded();
        assert_eq!(r.load(3000.0).availability, Availability::Ready);
        assert!(!r.agent_gone(3000.0));
        r.agent_lost(4000.0);
        assert!(r.agent_gone(3999.0) && !r.agent_gone(4000.0), "remembered for a while");
    }
}
