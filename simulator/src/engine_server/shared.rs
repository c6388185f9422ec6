//! What the engine's task and the HTTP handlers share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use plimsoll_engine::sim::SimRequest;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::clock::VirtualClock;
use super::config::EngineServerConfig;
use super::core::{Arrival, Core, Delivery, Next, State};
use super::handover::Keeper;
use super::lora::Adapters;
use super::metrics::{self, Finished, Gauges};

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) tokens: u32,
    pub(super) cached_tokens: u32,
    pub(super) state: State,
}

/// The engine and who waits for its tokens.
pub(super) struct Engine {
    pub(super) core: Core,
    watchers: HashMap<u64, watch::Sender<Progress>>,
    /// Tokens in the middle of answers that nobody was told of yet.
    untold: HashMap<u64, Progress>,
    /// When the next telling is due, virtual milliseconds.
    tell_at_ms: f64,
    /// Between two tellings, virtual milliseconds; zero tells each token at once.
    tell_every_ms: f64,
}

/// An accelerated engine tells clients of tokens in the middle of an answer this often (wall time): it could
/// make thousands of writes a second for tokens that are less than a millisecond apart. First and last tokens,
/// which latencies are measured by, are always told at once.
const TELL_EVERY: Duration = Duration::from_millis(10);
/// Speed from which that is so.
const TELL_AT_ONCE_BELOW_SPEED: f64 = 4.0;

impl Engine {
    pub(super) fn new(core: Core, speed: f64) -> Self {
        let tell_every_ms =
            if speed < TELL_AT_ONCE_BELOW_SPEED { 0.0 } else { TELL_EVERY.as_secs_f64() * 1000.0 * speed };
        Self { core, watchers: HashMap::new(), untold: HashMap::new(), tell_at_ms: 0.0, tell_every_ms }
    }

    /// Does what is due and tells who waits.
    fn advance(&mut self, now_ms: f64, deliveries: &mut Vec<Delivery>) -> Next {
        let next = self.core.advance(now_ms, deliveries);
        for Delivery { id, tokens, cached_tokens, state } in deliveries.drain(..) {
            let progress = Progress { tokens, cached_tokens, state };
            if state != State::Going {
                self.untold.remove(&id);
                if let Some(watcher) = self.watchers.remove(&id) {
                    watcher.send_replace(progress);
                }
            } else if tokens == 1 {
                self.tell(id, progress);
            } else {
                self.untold.insert(id, progress);
            }
        }
        if now_ms >= self.tell_at_ms {
            self.tell_at_ms = now_ms + self.tell_every_ms;
            for (id, progress) in std::mem::take(&mut self.untold) {
                self.tell(id, progress);
            }
        }
        next
    }

    fn tell(&self, id: u64, progress: Progress) {
        if let Some(watcher) = self.watchers.get(&id) {
            watcher.send_replace(progress);
        }
    }
}

/// One server's state.
pub(super) struct Shared {
    pub(super) config: EngineServerConfig,
    pub(super) clock: VirtualClock,
    /// Where it listens.
    pub(super) addr: SocketAddr,
    /// Caches kept for other engines.
    pub(super) keeper: Arc<Keeper>,
    pub(super) ready_at: Instant,
    pub(super) max_model_len: u32,
    pub(super) api_overhead_ms: f64,
    pub(super) engine: Mutex<Engine>,
    pub(super) adapters: Mutex<Adapters>,
    pub(super) started_unix_s: i64,
    pub(super) stalled: AtomicBool,
    pub(super) wake: Notify,
    pub(super) next_id: AtomicU64,
}

/// What a handler asks of the engine.
pub(super) struct Work {
    pub(super) prompt_blocks: Vec<u64>,
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
    pub(super) priority: i32,
    /// Name and number of the adapter, and whether it must be brought to the accelerator first.
    pub(super) adapter: Option<(String, u64, bool)>,
    pub(super) ends: Finished,
    /// What it waits for before the engine may see it, virtual milliseconds; `None`: no cache comes from elsewhere.
    pub(super) transfer_ms: Option<f64>,
}

impl Shared {
    pub(super) fn is_ready(&self) -> bool {
        Instant::now() >= self.ready_at
    }

    /// Hands a request to the engine.
    pub(super) fn submit(self: &Arc<Self>, work: Work) -> Generation {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let arrival_ms = self.clock.now_ms();
        let load = work.adapter.as_ref().is_some_and(|(_, _, load)| *load);
        let load_ms = if load { self.config.lora_load.as_secs_f64() * 1000.0 } else { 0.0 };
        let (watcher, progress) =
            watch::channel(Progress { tokens: 0, cached_tokens: 0, state: State::Going });
        let request = SimRequest {
            id,
            prompt_blocks: work.prompt_blocks,
            prompt_tokens: work.prompt_tokens,
            output_tokens: work.output_tokens,
            priority: work.priority,
            // The number too: an adapter that was unloaded and loaded again shares no cache with itself.
            adapter: work.adapter.as_ref().map(|(name, number, _)| format!("{name}#{number}")),
            prefill_here: work.transfer_ms.is_none(),
        };
        let ready_ms = arrival_ms + self.api_overhead_ms + load_ms + work.transfer_ms.unwrap_or(0.0);
        {
            let mut engine = self.engine.lock();
            engine.watchers.insert(id, watcher);
            engine.core.submit(Arrival { request, arrival_ms, ready_ms, ends: work.ends });
        }
        self.wake.notify_one();
        Generation { id, progress, shared: self.clone(), adapter: work.adapter.map(|a| a.0) }
    }

    /// Whether there are requests, running or waiting.
    pub(super) fn is_busy(&self) -> bool {
        let stats = self.engine.lock().core.stats(self.clock.now_ms());
        stats.running + stats.waiting > 0
    }

    /// The `/metrics` page.
    pub(super) fn metrics_page(&self) -> String {
        let mut gauges = Gauges {
            block_tokens: self.config.engine.block_tokens,
            memory_utilisation: self.config.engine.memory_utilisation,
            now_unix_s: jiff::Timestamp::now().as_millisecond() as f64 / 1000.0,
            ..Gauges::default()
        };
        {
            let adapters = self.adapters.lock();
            gauges.max_lora = adapters.slots();
            gauges.running_lora =
                adapters.iter().filter(|(_, a)| a.requests > 0).map(|(name, _)| name.to_owned()).collect();
        }
        let counted = {
            let engine = self.engine.lock();
            let stats = engine.core.stats(self.clock.now_ms());
            gauges.running = stats.running;
            gauges.waiting = stats.waiting;
            gauges.kv_usage = stats.kv_usage;
            gauges.kv_blocks = stats.kv_blocks;
            gauges.prefix_queries_tokens = stats.prefix_query_tokens;
            gauges.prefix_hits_tokens = stats.prefix_hit_tokens;
            gauges.preemptions = stats.preemptions;
            engine.core.metrics().clone()
        };
        metrics::render(&self.config.served_model, &counted, &gauges)
    }
}

/// A request in the engine. Dropping it before its end cancels it.
pub(super) struct Generation {
    id: u64,
    progress: watch::Receiver<Progress>,
    shared: Arc<Shared>,
    adapter: Option<String>,
}

impl Generation {
    /// Waits for more than `seen` tokens, or the end. `None`: the engine died.
    pub(super) async fn beyond(&mut self, seen: u32) -> Option<Progress> {
        self.progress.wait_for(|p| p.tokens > seen || p.state != State::Going).await.ok().map(|p| *p)
    }

    /// Waits for the end. `None`: the engine died.
    pub(super) async fn end(&mut self) -> Option<Progress> {
        self.progress.wait_for(|p| p.state != State::Going).await.ok().map(|p| *p)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if let Some(adapter) = &self.adapter {
            self.shared.adapters.lock().end(adapter);
        }
        let mut engine = self.shared.engine.lock();
        if engine.watchers.remove(&self.id).is_some() {
            engine.untold.remove(&self.id);
            tracing::debug!(id = self.id, "client gone, request cancelled");
            engine.core.cancel(self.id);
        }
    }
}

/// Drives the engine: does what is due, tells who waits, sleeps until the next step's end. Steps follow each
/// other in virtual time, so a loop that wakes late catches up and never drifts.
pub(super) async fn drive(shared: Arc<Shared>, kill: CancellationToken) {
    let mut deliveries = Vec::new();
    let mut stalled_since: Option<f64> = None;
    loop {
        let next = if shared.stalled.load(Ordering::Acquire) {
            stalled_since.get_or_insert_with(|| shared.clock.now_ms());
            Next::Idle
        } else {
            let now_ms = shared.clock.now_ms();
            let mut engine = shared.engine.lock();
            if let Some(since) = stalled_since.take() {
                engine.core.skip(now_ms - since, now_ms);
            }
            engine.advance(now_ms, &mut deliveries)
        };
        let wake = async {
            match next {
                Next::Now => tokio::task::yield_now().await,
                Next::At(ms) => tokio::select! {
                    () = tokio::time::sleep_until(shared.clock.wall(ms)) => {}
                    () = shared.wake.notified() => {}
                },
                Next::Idle => shared.wake.notified().await,
            }
        };
        tokio::select! {
            () = wake => {}
            () = kill.cancelled() => {
                // Whoever still waits for tokens learns that none will come.
                shared.engine.lock().watchers.clear();
                return;
            }
        }
    }
}
