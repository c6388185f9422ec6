//! The simulated engine: an HTTP server that behaves like vLLM on a chosen model and accelerator.
//!
//! Timing, batching, KV cache and prefix cache come from [`plimsoll_engine::sim`]; endpoints, JSON shapes,
//! error messages and metric names are vLLM's. The tokenizer is [`crate::text`]'s. Answers are plausible words
//! whose number depends on the prompt and the seed alone: `max_tokens` with `ignore_eos`, else a log-normal
//! draw, at least `min_tokens`, cut at `max_tokens`. A chat whose last message is to be continued
//! (`continue_final_message` without `add_generation_prompt`) goes on with the very answer that its prompt had got,
//! and is as much shorter as there is of it already.
//!
//! **Speed.** With [`EngineServerConfig::speed`] above 1, everything the engine does takes that many times less
//! wall time; `/metrics` reports virtual seconds, what a real engine would have reported. A client that
//! multiplies its own latencies by the speed sees virtual milliseconds too, plus that many times its own and
//! the network's delay (the timer alone adds up to 1 ms of wall time). Tokens in the middle of an answer then
//! come in groups every 10 ms of wall time; the first and the last always come at once.

mod api;
mod clock;
mod config;
pub(crate) mod core;
mod handover;
mod lora;
pub(crate) mod metrics;
mod server;
mod shared;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use plimsoll_engine::sim::{Replica, SimPolicy, SimStats};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use config::{EngineServerConfig, EngineServerError};

use self::clock::VirtualClock;
use self::core::Core;
use self::handover::Keeper;
use self::lora::Adapters;
use self::server::Stop;
use self::shared::{Engine, Shared};

/// How long [`EngineServer::shutdown`] waits for open requests, wall time.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// A running simulated engine. Dropping it kills it.
pub struct EngineServer {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: Stop,
    tasks: TaskTracker,
}

impl EngineServer {
    /// Starts an engine: checks that the model fits, listens, and becomes ready after the configured start-up
    /// time.
    ///
    /// # Errors
    /// [`EngineServerError`] if a setting makes no sense, the model does not fit, or the address cannot be
    /// listened on.
    pub async fn start(config: EngineServerConfig) -> Result<Self, EngineServerError> {
        config.validate()?;
        let model = config.replica_model()?;
        let max_model_len = model.max_context_tokens();
        let listen_error = |source| EngineServerError::Listen { addr: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let addr = listener.local_addr().map_err(listen_error)?;
        let clock = VirtualClock::start(config.speed);
        let shared = Arc::new(Shared {
            keeper: Arc::new(Keeper::new(&config, clock)),
            addr,
            clock,
            ready_at: Instant::now() + clock.scaled(config.startup),
            max_model_len,
            api_overhead_ms: model.api_overhead_ms(),
            engine: Mutex::new(Engine::new(
                Core::new(Replica::new(model, SimPolicy::default())),
                config.speed,
            )),
            adapters: Mutex::new(Adapters::new(config.max_lora_slots)),
            started_unix_s: jiff::Timestamp::now().as_second(),
            stalled: AtomicBool::new(false),
            wake: Notify::new(),
            next_id: AtomicU64::new(1),
            config,
        });
        let (stop, tasks) = (Stop::default(), TaskTracker::new());
        let (model, shape) = (&shared.config.served_model, &shared.config.shape);
        tracing::info!(%addr, model, %shape, max_model_len, speed = shared.config.speed, "engine started");
        tasks.spawn(shared::drive(shared.clone(), stop.now.clone()));
        let router = api::router(shared.clone());
        tasks.spawn(server::serve(listener, router, shared.clone(), stop.clone(), tasks.clone()));
        Ok(Self { addr, shared, stop, tasks })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its OpenAI base address, `http://…/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// Longest context it serves (prompt and answer), tokens.
    pub fn max_model_len(&self) -> u32 {
        self.shared.max_model_len
    }

    /// Waits until it is ready.
    pub async fn ready(&self) {
        tokio::time::sleep_until(self.shared.ready_at).await;
    }

    /// What its replica says of itself.
    pub fn stats(&self) -> SimStats {
        self.shared.engine.lock().core.stats(self.shared.clock.now_ms())
    }

    /// Stops making progress, as an engine with a hung GPU: `/health` stays 200, requests are taken, no token
    /// comes.
    pub fn stall(&self) {
        self.shared.stalled.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }

    /// Goes on after [`Self::stall`] where it stood.
    pub fn unstall(&self) {
        self.shared.stalled.store(false, Ordering::Release);
        self.shared.wake.notify_one();
    }

    /// Dies at once: drops all connections in the middle of what they were sending.
    pub fn kill(&self) {
        self.stop.now.cancel();
        self.tasks.close();
    }

    /// Takes no more connections, waits up to five seconds for open requests, and ends.
    pub async fn shutdown(self) {
        self.stop.gently.cancel();
        self.tasks.close();
        let idle = async {
            // The engine's own task ends only when killed.
            while self.tasks.len() > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(SHUTDOWN_GRACE, idle).await.is_err() {
            tracing::warn!(addr = %self.addr, "requests were still open at the end of the grace time");
        }
        self.stop.now.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for EngineServer {
    fn drop(&mut self) {
        self.stop.now.cancel();
    }
}

#[cfg(test)]
mod tests;
