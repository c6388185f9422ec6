//! A request's way to an adapter at an engine of this node: it is there, or the request waits until it is.

use std::sync::Arc;

use super::upkeep::Arrival;
use crate::admit::{Refusal, RefusalReason};
use crate::clock::Clock;
use crate::local::LocalEngine;

/// A request's use of an adapter, which is not unloaded before this is dropped.
#[derive(Debug)]
pub(crate) struct Using {
    engine: Arc<LocalEngine>,
    name: String,
}

impl Drop for Using {
    fn drop(&mut self) {
        let others_wait = {
            let mut adapters = self.engine.adapters.lock();
            adapters.left(&self.name);
            adapters.waiting() > 0
        };
        if others_wait {
            self.engine.adapter_asked.notify_one();
        }
    }
}

/// A request that waits; it does not, once this is dropped.
struct Waiting<'a> {
    engine: &'a LocalEngine,
    name: &'a str,
    waits: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.engine.adapters.lock().gave_up(self.name);
        }
    }
}

/// Waits until the engine holds an adapter, until `until_ms` at the latest. `most` requests may wait at one engine.
///
/// # Errors
/// A refusal if it cannot be loaded, does not come in time, or too many wait.
pub(crate) async fn reach(
    engine: &Arc<LocalEngine>,
    name: &str,
    clock: Clock,
    until_ms: f64,
    most: usize,
) -> Result<Using, Refusal> {
    let mut waiting = Waiting { engine, name, waits: false };
    let mut moved = engine.adapters_moved.subscribe();
    loop {
        let now = clock.now_ms();
        moved.mark_unchanged();
        {
            let mut adapters = engine.adapters.lock();
            match adapters.arrive(name, waiting.waits, now) {
                Arrival::There => {
                    waiting.waits = false;
                    return Ok(Using { engine: engine.clone(), name: name.to_owned() });
                }
                Arrival::Failed { again_in_ms } => {
                    waiting.waits = false;
                    return Err(Refusal {
                        reason: RefusalReason::Adapter,
                        retry_after_ms: again_in_ms.max(1000.0),
                    });
                }
                Arrival::Wait if !waiting.waits => {
                    waiting.waits = true;
                    engine.adapter_asked.notify_one();
                }
                Arrival::Wait => {}
            }
            if adapters.waiting() > most {
                drop(adapters);
                return Err(Refusal { reason: RefusalReason::QueueFull, retry_after_ms: 1000.0 });
            }
        }
        let left = clock.real(until_ms - now);
        if left.is_zero() || tokio::time::timeout(left, moved.changed()).await.is_err() {
            return Err(Refusal { reason: RefusalReason::Adapter, retry_after_ms: 1000.0 });
        }
    }
}
