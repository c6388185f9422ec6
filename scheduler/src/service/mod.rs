//! The scheduler as a service: one gRPC server for the operator and the agents, and the loops behind it.
//!
//! Tasks: the *pulse* (about once a second: time passes for demand, spending and observations), the *brain* (plans,
//! fast loop, drains, routes; one thing at a time), and one task for each agent's session and each watch. They share
//! one state behind a lock that is never held across an await.

mod brain;
mod dispatch;
mod metrics;
mod observe;
mod persist;
mod plans;
mod sessions;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use plimsoll_proto::v1::agent_service_server::AgentServiceServer;
use plimsoll_proto::v1::plan_service_server::PlanServiceServer;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::Instrument;

pub use metrics::SchedulerMetrics;

use crate::clock::{InvalidScale, seconds};
use crate::cold_start::ColdStarts;
use crate::demand::{DemandConfig, DemandTracker};
use crate::fast::{FastConfig, FastState};
use crate::ledger::Ledger;
use crate::planner::Planner;
use crate::store::{FileStore, MemoryStore, Store, StoreError};
use state::{Agent, Shared, State};

/// Largest message taken, bytes: a snapshot of a large cluster.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// Virtual seconds that a token lease lasts.
const LEASE_SECONDS: f64 = 10.0;

/// How to run the scheduler.
#[derive(Clone)]
pub struct SchedulerConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Directory of the store (`None`: nothing survives a restart).
    pub data_dir: Option<PathBuf>,
    /// Virtual seconds per wall second: 1 on real clusters, more with simulated engines that run faster.
    pub time_scale: f64,
    /// Virtual time between plans when nothing material changes.
    pub replan_interval: Duration,
    /// Wall time to wait after a first change for others to come with it.
    pub debounce: Duration,
    /// Wall time of silence after which an agent counts as gone.
    pub agent_timeout: Duration,
    /// Planning functions.
    pub planner: Arc<dyn Planner>,
    /// Demand estimation. Its `stale_after_seconds` is wall time here; the service converts it.
    pub demand: DemandConfig,
    /// Fast loop.
    pub fast: FastConfig,
    /// Metrics, registered where the caller wants them.
    pub metrics: SchedulerMetrics,
}

impl SchedulerConfig {
    /// Defaults around a planner: a free port on the loopback interface, real time, nothing kept.
    pub fn new(planner: Arc<dyn Planner>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: None,
            time_scale: 1.0,
            replan_interval: Duration::from_secs(60),
            debounce: Duration::from_millis(200),
            agent_timeout: Duration::from_secs(15),
            planner,
            demand: DemandConfig::default(),
            fast: FastConfig::default(),
            metrics: SchedulerMetrics::default(),
        }
    }

    fn agent_timeout_signed(&self) -> SignedDuration {
        SignedDuration::try_from(self.agent_timeout).unwrap_or(SignedDuration::MAX)
    }
}

/// Why the scheduler could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The address cannot be listened on.
    #[error("failed to listen on {address}; is another scheduler running there?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The time scale is out of range.
    #[error(transparent)]
    Scale(#[from] InvalidScale),
    /// The server failed.
    #[error("the scheduler's gRPC server failed")]
    Serve(#[source] tonic::transport::Error),
    /// A task failed.
    #[error("a task of the scheduler failed; this is a defect")]
    Task(#[source] tokio::task::JoinError),
}

impl From<persist::LoadError> for SchedulerError {
    fn from(error: persist::LoadError) -> Self {
        match error {
            persist::LoadError::Store(e) => Self::Store(e),
            persist::LoadError::Scale(e) => Self::Scale(e),
        }
    }
}

/// The scheduler service.
pub struct Scheduler;

/// A running scheduler.
#[derive(Debug)]
pub struct SchedulerHandle {
    addr: SocketAddr,
    task: JoinHandle<Result<(), SchedulerError>>,
}

impl SchedulerHandle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits until it has stopped (after the token was cancelled, or because of an error).
    ///
    /// # Errors
    /// [`SchedulerError`] if it stopped for any other reason than the token.
    pub async fn join(self) -> Result<(), SchedulerError> {
        self.task.await.map_err(SchedulerError::Task)?
    }
}

impl Scheduler {
    /// Opens the store, listens, and starts the loops. It serves at once, before any snapshot has come.
    ///
    /// # Errors
    /// [`SchedulerError`] if the address, the store or the time scale cannot be used.
    pub async fn start(
        config: SchedulerConfig,
        shutdown: CancellationToken,
    ) -> Result<SchedulerHandle, SchedulerError> {
        let started = (Timestamp::now(), Instant::now());
        let (dir, scale) = (config.data_dir.clone(), config.time_scale);
        let (store, loaded) = tokio::task::spawn_blocking(move || {
            let store: Arc<dyn Store> = match dir {
                Some(dir) => Arc::new(FileStore::open(&dir)?),
                None => Arc::new(MemoryStore::default()),
            };
            let loaded = persist::load(store.as_ref(), scale, started.0)?;
            Ok::<_, SchedulerError>((store, loaded))
        })
        .await
        .map_err(SchedulerError::Task)??;

        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| SchedulerError::Listen { address: config.listen, source })?;
        let addr = listener
            .local_addr()
            .map_err(|source| SchedulerError::Listen { address: config.listen, source })?;

        let clock = loaded.clock;
        let now = seconds(clock.to_virtual(started.0));
        let demand_config = DemandConfig {
            stale_after_seconds: clock.virtual_seconds(config.demand.stale_after_seconds),
            ..config.demand
        };
        let mut demand = loaded.demand.unwrap_or_else(|| DemandTracker::new(demand_config));
        demand.set_config(demand_config);
        let plan = loaded.plan.map(Arc::new);
        let mut state = State {
            snapshot: loaded.snapshot.map(Arc::new),
            snapshot_is_current: false,
            cold_starts: ColdStarts::default(),
            pushed: None,
            demand,
            canaries: loaded.canaries,
            engines: BTreeMap::new(),
            plan: plan.clone(),
            next_serial: loaded.next_serial,
            tables: VecDeque::new(),
            // Agents known before are believed to be there until their time is up: they are about to reconnect.
            agents: loaded
                .agents
                .into_iter()
                .map(|(node, (name, address))| {
                    (name, Agent { node: Some(node), address, last_seen: started.0, session: 0 })
                })
                .collect(),
            drain: loaded.drain,
            fast: FastState::default(),
            ledger: Ledger::new(now, LEASE_SECONDS, loaded.fresh),
            load_lines: BTreeMap::new(),
            records: loaded.records,
            usd: BTreeMap::new(),
            usd_until: now,
            floors: BTreeMap::new(),
            due: None,
            routes_dirty: false,
            sessions: 0,
        };
        if let Some(plan) = &plan {
            state.learn_load_lines(plan);
            config.metrics.show_plan(plan);
        }
        let table = (loaded.routes.version > 0).then(|| Arc::new(loaded.routes));
        if let Some(table) = &table {
            state.push_table(Arc::clone(table));
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            identity: loaded.identity,
            clock,
            planner: Arc::clone(&config.planner),
            store,
            metrics: config.metrics.clone(),
            wake: Notify::new(),
            plans: watch::Sender::new(plan),
            routes: watch::Sender::new(table),
            drains: watch::Sender::new(Arc::default()),
            observations: watch::Sender::new(Arc::default()),
            started,
            config,
        });
        tracing::info!(%addr, scale, identity = shared.identity, "scheduler listens");

        let task = tokio::spawn(run(shared, listener, shutdown).instrument(tracing::info_span!("scheduler")));
        Ok(SchedulerHandle { addr, task })
    }
}

async fn run(
    shared: Arc<Shared>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    // Tasks end with the server, whichever way it ends.
    let tasks = shutdown.child_token();
    let _guard = tasks.clone().drop_guard();
    let brain = tokio::spawn(brain::brain(Arc::clone(&shared), tasks.clone()).in_current_span());
    let pulse = tokio::spawn(brain::pulse(Arc::clone(&shared), tasks.clone()).in_current_span());
    let plans = PlanServiceServer::new(plans::Plans::new(Arc::clone(&shared), tasks.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let agents = AgentServiceServer::new(sessions::Sessions::new(Arc::clone(&shared), tasks.clone()))
        .max_decoding_message_size(16 << 20)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let served = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .serve_with_incoming_shutdown(
            dispatch::Dispatch::new(plans, agents),
            TcpIncoming::from(listener),
            shutdown.cancelled_owned(),
        )
        .await
        .map_err(SchedulerError::Serve);
    tasks.cancel();
    brain.await.map_err(SchedulerError::Task)?;
    pulse.await.map_err(SchedulerError::Task)?;
    tracing::info!("scheduler stopped");
    served
}
