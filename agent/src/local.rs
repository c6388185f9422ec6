//! An engine of this agent's own node: the shell around its admission.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use plimsoll_fleet::StepCoefficients;
use tokio::sync::{Notify, oneshot, watch};

use crate::adapters::upkeep::Upkeep;
use crate::adapters::visit::Using;
use crate::admit::{Admission, Ask, Limits, Offer, Refusal, RefusalReason, Verdict};
use crate::clock::Clock;
use crate::hash::QuickMap;
use crate::liveness::Liveness;
use crate::replica::Replica;
use crate::route::residency::Held;
use crate::scrape::EngineMetrics;

/// State of one local engine.
#[derive(Debug)]
pub(crate) struct LocalEngine {
    gate: Mutex<Gate>,
    pub(crate) liveness: Mutex<Liveness>,
    pub(crate) metrics: Mutex<EngineMetrics>,
    pub(crate) stalled: AtomicBool,
    /// When it was first seen empty while draining, model ms.
    pub(crate) empty_since: Mutex<Option<f64>>,
    /// Marks of what it was sent.
    pub(crate) held: Mutex<Held>,
    pub(crate) adapters: Mutex<Upkeep>,
    /// Rings when a request waits for an adapter, or its files have come.
    pub(crate) adapter_asked: Notify,
    /// Counts what may have changed for requests that wait for adapters.
    pub(crate) adapters_moved: watch::Sender<u64>,
}

#[derive(Debug)]
struct Gate {
    admission: Admission,
    waiters: QuickMap<u64, oneshot::Sender<Result<(), Refusal>>>,
}

impl LocalEngine {
    /// `incarnation` is its agent's.
    pub(crate) fn new(coefficients: &StepCoefficients, max_queue: usize, incarnation: u64) -> Self {
        Self {
            gate: Mutex::new(Gate {
                admission: Admission::new(Limits::from_coefficients(coefficients, max_queue)),
                waiters: QuickMap::default(),
            }),
            liveness: Mutex::new(Liveness::default()),
            metrics: Mutex::new(EngineMetrics::default()),
            stalled: AtomicBool::new(false),
            empty_since: Mutex::new(None),
            held: Mutex::new(Held::new(incarnation)),
            adapters: Mutex::default(),
            adapter_asked: Notify::new(),
            adapters_moved: watch::Sender::new(0),
        }
    }

    pub(crate) fn configure(&self, coefficients: &StepCoefficients, max_queue: usize, draining: bool) {
        let mut gate = self.gate.lock();
        gate.admission.set_limits(Limits::from_coefficients(coefficients, max_queue));
        if gate.admission.draining() != draining {
            *self.empty_since.lock() = None;
        }
        gate.admission.set_draining(draining);
    }

    pub(crate) fn draining(&self) -> bool {
        self.gate.lock().admission.draining()
    }

    /// Running here, waiting here.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let gate = self.gate.lock();
        (gate.admission.running(), gate.admission.waiting())
    }

    pub(crate) fn streaming(&self) -> usize {
        self.gate.lock().admission.streaming()
    }

    pub(crate) fn outstanding_tokens(&self) -> f64 {
        let gate = self.gate.lock();
        gate.admission.context_tokens() + gate.admission.prefill_tokens()
    }

    fn deliver(gate: &mut Gate, verdicts: Vec<Verdict>) {
        for (id, verdict) in verdicts {
            if let Some(waiter) = gate.waiters.remove(&id) {
                // Whoever has gone meanwhile gives its place back as its guard drops.
                let _ = waiter.send(verdict);
            }
        }
    }

    /// Admits and refuses among those who wait, and publishes the load. Cheap when nobody waits.
    pub(crate) fn pump(&self, replica: &Replica, now_ms: f64) {
        let mut gate = self.gate.lock();
        let verdicts = gate.admission.pump(now_ms);
        Self::deliver(&mut gate, verdicts);
        Self::publish(&gate, replica);
    }

    /// Refuses all who wait.
    pub(crate) fn refuse_waiting(&self, replica: &Replica) {
        let mut gate = self.gate.lock();
        let verdicts = gate.admission.refuse_waiting(RefusalReason::EngineDown);
        Self::deliver(&mut gate, verdicts);
        Self::publish(&gate, replica);
    }

    fn publish(gate: &Gate, replica: &Replica) {
        let a = &gate.admission;
        replica.set_load(a.running(), a.waiting(), a.context_tokens(), a.prefill_tokens());
    }
}

/// Permission to use the engine; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    engine: Arc<LocalEngine>,
    replica: Arc<Replica>,
    clock: Clock,
    id: u64,
    /// The adapter that it uses stays meanwhile.
    using: Option<Using>,
}

impl Permit {
    /// The same for a request that uses an adapter.
    pub(crate) fn with(self, using: Option<Using>) -> Self {
        let mut with = self;
        with.using = using;
        with
    }

    /// Tokens of the answer were seen.
    pub(crate) fn produced(&self, tokens: f64) {
        let now = self.clock.now_ms();
        {
            let mut gate = self.engine.gate.lock();
            gate.admission.produced(now, self.id, tokens);
            let verdicts = gate.admission.pump(now);
            LocalEngine::deliver(&mut gate, verdicts);
            LocalEngine::publish(&gate, &self.replica);
        }
        self.engine.liveness.lock().progressed(now);
    }

    /// The answer has come to its own end; `tokens` is its length where the engine said it.
    pub(crate) fn finished(&self, tokens: Option<f64>) {
        self.engine.gate.lock().admission.finished(self.id, tokens);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = self.clock.now_ms();
        let mut gate = self.engine.gate.lock();
        gate.admission.remove(now, self.id);
        gate.waiters.remove(&self.id);
        let verdicts = gate.admission.pump(now);
        LocalEngine::deliver(&mut gate, verdicts);
        LocalEngine::publish(&gate, &self.replica);
    }
}

/// Asks for admission and waits for the verdict. Dropping the future gives up the place.
pub(crate) async fn admit(
    engine: &Arc<LocalEngine>,
    replica: &Arc<Replica>,
    clock: Clock,
    ask: Ask,
) -> Result<Permit, Refusal> {
    if engine.stalled.load(Ordering::Relaxed) || engine.liveness.lock().healthy() == Some(false) {
        return Err(Refusal { reason: RefusalReason::EngineDown, retry_after_ms: 1000.0 });
    }
    // Made first, so that whatever the admission grants is given back on every path.
    let permit = Permit { engine: engine.clone(), replica: replica.clone(), clock, id: ask.id, using: None };
    let verdict = {
        let mut gate = engine.gate.lock();
        let (offer, displaced) = gate.admission.offer(clock.now_ms(), ask);
        LocalEngine::deliver(&mut gate, displaced.into_iter().collect());
        LocalEngine::publish(&gate, replica);
        match offer {
            Offer::Admitted => return Ok(permit_after(gate, permit)),
            Offer::Refused(refusal) => Err(refusal),
            Offer::Queued => {
                let (tx, rx) = oneshot::channel();
                gate.waiters.insert(ask.id, tx);
                Ok(rx)
            }
        }
    };
    let rx = verdict?;
    match rx.await {
        Ok(Ok(())) => Ok(permit),
        Ok(Err(refusal)) => Err(refusal),
        Err(_) => Err(Refusal { reason: RefusalReason::EngineDown, retry_after_ms: 1000.0 }),
    }
}

/// Unlocks before the permit moves on: dropping a permit locks again.
fn permit_after(gate: parking_lot::MutexGuard<'_, Gate>, permit: Permit) -> Permit {
    drop(gate);
    permit
}
