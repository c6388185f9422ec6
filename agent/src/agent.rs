//! Starting and stopping an agent.

use std::net::SocketAddr;
use std::sync::Arc;

use plimsoll_fleet::RouteTable;
use plimsoll_proto::tls;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::adapters::store::{Store, StoreError};
use crate::config::{AgentConfig, Clients};
use crate::proxy::handler::Proxy;
use crate::proxy::lanes::Lanes;
use crate::proxy::server::{self, Door};
use crate::proxy::upstream::Upstream;
use crate::shared::Shared;
use crate::{engines, persist, picker, session};

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not allowed.
    #[error(
        "agent {agent:?} cannot listen on {address}: {source}; choose another address or stop what uses it"
    )]
    Listen {
        /// Agent.
        agent: String,
        /// Address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The time scale is not a positive number.
    #[error("time_scale is {0}; use 1 for real engines, or how many times faster the simulated ones run")]
    TimeScale(f64),
    /// The scheduler's address is no URL.
    #[error("scheduler address {0:?} is not a URL; use one such as http://plimsoll-scheduler:7443")]
    Scheduler(String),
    /// No threads to serve requests on.
    #[error("cannot start the threads that serve requests: {0}; allow more threads, or ask for fewer")]
    Threads(#[source] std::io::Error),
    /// The cache of adapters cannot be opened.
    #[error("the cache of adapters cannot be used: {0}")]
    Adapters(#[source] StoreError),
    /// A picker's clients are gateways of others.
    #[error("an agent for peers alone can be no endpoint picker; let a gateway listen for that")]
    PickerForPeers,
    /// Nobody could come.
    #[error("only peers may send requests, and there is no certificate to know them by; give the agent one")]
    NoCertificate,
}

/// An agent: proxy, admission and telemetry for one node, or a gateway without one.
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Starts an agent: it listens, routes by the table kept on disk if there is one, and connects to the scheduler in
    /// the background. It stops when `stop` is cancelled, after the requests under way or the grace period.
    ///
    /// # Errors
    /// [`StartError`] if it cannot listen or the configuration makes no sense. A scheduler that is down is no error, nor
    /// is a kept table that cannot be read (it is logged).
    pub async fn start(config: AgentConfig, stop: CancellationToken) -> Result<AgentHandle, StartError> {
        if !(config.time_scale.is_finite() && config.time_scale > 0.0) {
            return Err(StartError::TimeScale(config.time_scale));
        }
        if let Some(scheduler) = &config.scheduler
            && tls::endpoint(scheduler, config.tls.as_ref().map(|tls| &tls.scheduler)).is_err()
        {
            return Err(StartError::Scheduler(scheduler.clone()));
        }
        if config.clients == Clients::Peers && config.picker_listen.is_some() {
            return Err(StartError::PickerForPeers);
        }
        if config.clients == Clients::Peers && config.tls.is_none() {
            return Err(StartError::NoCertificate);
        }
        let fail = |source| StartError::Listen { agent: config.name.clone(), address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let advertised = config.advertise.clone().unwrap_or_else(|| address.to_string());
        let picker = match config.picker_listen {
            None => None,
            Some(listen) => Some(picker::bind(listen).await.map_err(|source| StartError::Listen {
                agent: config.name.clone(),
                address: listen,
                source,
            })?),
        };
        let limits = &config.limits;
        let upstream = Upstream::new(
            limits.connect_timeout,
            limits.first_byte_timeout,
            limits.idle_timeout,
            config.tls.as_ref().map(|tls| tls.agents.clone()),
        );
        let door = Door::new(&config);
        // Microseconds since 1970: grows from start to start.
        let incarnation = jiff::Timestamp::now().as_microsecond().unsigned_abs();
        let store = match &config.adapter_store {
            None => None,
            Some(settings) => Some(Arc::new(
                Store::open(settings.clone(), &config.name, config.metrics.clone())
                    .map_err(StartError::Adapters)?,
            )),
        };
        let mut shared = Shared::new(config, advertised, incarnation);
        shared.store = store;
        let shared = Arc::new(shared);
        if let Some(dir) = &shared.config.state_dir {
            match persist::load(dir) {
                Ok(Some((table, epoch))) => {
                    tracing::info!(version = table.version, "routing by the table kept on disk");
                    shared.install(table, epoch);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "starting without routes"),
            }
        }
        let stop = stop.child_token();
        // Probes and reports go on while requests finish, so that a drain is still seen.
        let finished = CancellationToken::new();
        let mut tasks = JoinSet::new();
        if let Some(tls) = &shared.config.tls {
            tls.mutual.keep_current(tls::LOOK_EVERY, finished.clone());
        }
        if let Some(public) = &shared.config.public {
            public.keep_current(tls::LOOK_EVERY, finished.clone());
        }
        tasks.spawn(engines::run(shared.clone(), upstream.clone(), finished.clone()));
        if let Some(scheduler) = shared.config.scheduler.clone() {
            tasks.spawn(session::run(shared.clone(), scheduler, finished.clone()));
        }
        let proxy = Proxy { shared: shared.clone(), upstream };
        let lanes = Lanes::start(shared.config.serve_threads, &proxy).map_err(StartError::Threads)?;
        let picker_address = picker.as_ref().map(|(_, address)| *address);
        if let Some((listener, address)) = picker {
            tasks.spawn(picker::serve(listener, proxy.clone(), stop.clone()));
            tracing::info!(%address, "picks endpoints");
        }
        let serving = {
            let (shared, stop, finished) = (shared.clone(), stop.clone(), finished.clone());
            tokio::spawn(async move {
                server::serve(listener, door, shared, lanes, stop).await;
                finished.cancel();
                while tasks.join_next().await.is_some() {}
            })
        };
        tracing::info!(agent = %shared.config.name, %address, node = ?shared.config.node, "agent is listening");
        Ok(AgentHandle { shared, address, picker_address, stop, serving })
    }
}

/// A running agent.
#[derive(Debug)]
pub struct AgentHandle {
    shared: Arc<Shared>,
    address: SocketAddr,
    picker_address: Option<SocketAddr>,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl AgentHandle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Where it picks endpoints, if it does.
    pub fn picker_addr(&self) -> Option<SocketAddr> {
        self.picker_address
    }

    /// `host:port` at which other agents reach it.
    pub fn advertised(&self) -> &str {
        &self.shared.address
    }

    /// Routes by this table from now on, whatever its version; the scheduler's next one replaces it.
    pub fn set_routes(&self, table: RouteTable) {
        self.shared.install(table, String::new());
    }

    /// The table it routes by.
    pub fn routes(&self) -> RouteTable {
        self.shared.table.load().routes.clone()
    }

    /// What it would report of its engines now.
    pub fn engines(&self) -> Vec<plimsoll_fleet::telemetry::EngineReport> {
        engines::reports(&self.shared)
    }

    /// Takes the traffic counts since the last call or report (for agents without a scheduler, and for tests).
    pub fn take_traffic(&self) -> Vec<plimsoll_fleet::telemetry::TrafficReport> {
        self.shared.book.lock().take()
    }

    /// Grants a budget lease by hand, as the scheduler would.
    pub fn grant_lease(&self, lease: &plimsoll_fleet::lease::BudgetLease) {
        self.shared.spend.lock().grant(
            &lease.budget,
            lease.epoch,
            lease.amount,
            lease.expires_at.as_millisecond(),
        );
    }

    /// Asks it to stop; [`Self::join`] waits for it.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until it has stopped.
    pub async fn join(self) {
        if let Err(error) = self.serving.await
            && error.is_panic()
        {
            tracing::error!(%error, "the agent's server panicked");
        }
    }
}
