//! The scheduler as a service: one gRPC server for the operator and the agents, and the loops behind it.
//!
//! Tasks: the *pulse* (about once a second: time passes for demand, spending and observations), the *brain* (plans,
//! fast loop, drains, routes; one thing at a time), and one task for each agent's session and each watch. They share
//! one state behind a lock that is never held across an await.
//!
//! With a store in etcd there may be several schedulers. The one that is elected does all this; the others hand requests to
//! it, and one of them takes its place from what it stored.

mod brain;
mod dispatch;
mod forward;
mod guard;
mod lead;
mod metrics;
mod observe;
mod persist;
mod plans;
mod sessions;
mod shared;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use plimsoll_proto::tls::{self, ClientTls, Mutual, Names};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::Instrument;

pub use dispatch::Standing;
pub use forward::{FORWARDED, STANDBY};
pub use metrics::SchedulerMetrics;

use crate::clock::{Clock, InvalidScale};
use crate::demand::DemandConfig;
use crate::fast::FastConfig;
use crate::planner::Planner;
use crate::store::etcd::{Election, EtcdConfig, Leader};
use crate::store::{FileStore, MemoryStore, Store, StoreError};
use guard::Guarded;
use lead::{Services, Term};

/// How to run the scheduler.
#[derive(Clone)]
pub struct SchedulerConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Directory of the store (`None`: nothing survives a restart).
    pub data_dir: Option<PathBuf>,
    /// A store in etcd instead, and election of one among several schedulers.
    pub etcd: Option<Candidate>,
    /// What operator, agents and other schedulers must show, and are shown (`None`: it listens without TLS).
    pub tls: Option<SchedulerTls>,
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

/// A scheduler among several.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Where etcd is.
    pub etcd: EtcdConfig,
    /// This scheduler's name, unlike any other's.
    pub identity: String,
    /// `host:port` at which the others reach it (`None`: where it listens).
    pub advertise: Option<String>,
}

/// Mutual TLS of a scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerTls {
    /// Its own side.
    pub mutual: Mutual,
    /// The way to the scheduler that leads.
    pub leader: ClientTls,
    /// Who may say what the cluster has: operators, and schedulers that hand on what one of them says.
    pub operators: Names,
}

impl SchedulerConfig {
    /// Defaults around a planner: a free port on the loopback interface, real time, nothing kept.
    pub fn new(planner: Arc<dyn Planner>) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: None,
            etcd: None,
            tls: None,
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
    standing: watch::Receiver<Standing>,
    task: JoinHandle<Result<(), SchedulerError>>,
}

impl SchedulerHandle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether it leads.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
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
    /// Opens the store, listens, and starts the loops. It serves at once, before any snapshot has come. With etcd it stands
    /// for election first, for as long as it takes: an etcd that is away is no error.
    ///
    /// # Errors
    /// [`SchedulerError`] if the address, the store or the time scale cannot be used.
    pub async fn start(
        config: SchedulerConfig,
        shutdown: CancellationToken,
    ) -> Result<SchedulerHandle, SchedulerError> {
        Clock::new(config.time_scale, None, Timestamp::now())?;
        let shutdown = shutdown.child_token();
        let listen_error = |source| SchedulerError::Listen { address: config.listen, source };
        let bind = async {
            let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
            let addr = listener.local_addr().map_err(listen_error)?;
            Ok::<_, SchedulerError>((listener, addr))
        };
        let services = Services::vacant("this one has just started; try again");
        let standing = services.standing();
        let span = tracing::info_span!("scheduler");
        let (listener, addr, terms) = if let Some(candidate) = config.etcd.clone() {
            let (listener, addr) = bind.await?;
            let address = candidate.advertise.unwrap_or_else(|| addr.to_string());
            let election = Election::new(&candidate.etcd, Leader { identity: candidate.identity, address })?;
            let stand = lead::stand(config.clone(), election, services.clone(), shutdown.clone());
            (listener, addr, tokio::spawn(stand.instrument(span.clone())))
        } else {
            let (dir, scale) = (config.data_dir.clone(), config.time_scale);
            let (store, loaded) = tokio::task::spawn_blocking(move || {
                let store: Arc<dyn Store> = match dir {
                    Some(dir) => Arc::new(FileStore::open(&dir)?),
                    None => Arc::new(MemoryStore::default()),
                };
                let loaded = persist::load(store.as_ref(), scale, Timestamp::now())?;
                Ok::<_, SchedulerError>((store, loaded))
            })
            .await
            .map_err(SchedulerError::Task)??;
            let (listener, addr) = bind.await?;
            let term = span
                .in_scope(|| Term::begin(&config, store, loaded, None, &services, shutdown.child_token()));
            let until = shutdown.clone();
            let life = async move {
                until.cancelled().await;
                term.end().await
            };
            (listener, addr, tokio::spawn(life.instrument(span.clone())))
        };
        tracing::info!(%addr, scale = config.time_scale, "scheduler listens");
        let task = tokio::spawn(run(services, terms, listener, config.tls, shutdown).instrument(span));
        Ok(SchedulerHandle { addr, standing, task })
    }
}

async fn run(
    services: Services,
    terms: JoinHandle<Result<(), SchedulerError>>,
    listener: TcpListener,
    tls: Option<SchedulerTls>,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)));
    let end = shutdown.clone().cancelled_owned();
    let served = match tls {
        Some(SchedulerTls { mutual, operators, .. }) => {
            mutual.keep_current(tls::LOOK_EVERY, shutdown.clone());
            let incoming = tls::incoming(listener, mutual.server(), mutual.permissive());
            let services = Guarded::new(services, operators);
            server.serve_with_incoming_shutdown(services, incoming, end).await
        }
        None => server.serve_with_incoming_shutdown(services, TcpIncoming::from(listener), end).await,
    }
    .map_err(SchedulerError::Serve);
    // Terms end with the server, whichever way it ends.
    shutdown.cancel();
    terms.await.map_err(SchedulerError::Task)??;
    tracing::info!("scheduler stopped");
    served
}
