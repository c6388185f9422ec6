//! Configuration of one agent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_fleet::NodeName;
use plimsoll_proto::tls::{ClientTls, Mutual, Public};

use crate::adapters::store::StoreConfig;
use crate::metrics::AgentMetrics;

/// How to run an agent. Durations are real time unless the name ends in `_ms` (model time).
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Name in reports: the node's, or the gateway pod's.
    pub name: String,
    /// The node whose engines it guards; `None` for a gateway.
    pub node: Option<NodeName>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where to serve Envoy's external processing as an endpoint picker (`None`: nowhere), over TLS where `public` is given.
    pub picker_listen: Option<SocketAddr>,
    /// `host:port` at which other agents reach it (`None`: the address it is bound to).
    pub advertise: Option<String>,
    /// The scheduler, e.g. `http://plimsoll-scheduler:7443` (`None`: routes come from [`crate::AgentHandle::set_routes`]).
    pub scheduler: Option<String>,
    /// Where the last route table is kept (`None`: nowhere).
    pub state_dir: Option<PathBuf>,
    /// How many times faster than real ones the engines run: every latency and deadline is multiplied by it before it
    /// is compared or reported; a report's interval stays real time. 1 in production.
    pub time_scale: f64,
    /// Limits.
    pub limits: ProxyLimits,
    /// What the scheduler and other agents must show, and are shown (`None`: no TLS among them).
    pub tls: Option<AgentTls>,
    /// A certificate for clients (`None`: they speak plain HTTP).
    pub public: Option<Public>,
    /// Whom it takes requests from.
    pub clients: Clients,
    /// Weights of tenants at this agent's engines, by the name that their requests carry: instead of those that the routes say.
    pub tenant_weights: HashMap<String, f64>,
    /// Threads of its own that it serves requests on (0: the runtime that it is started on, as one of several agents in a
    /// process would).
    pub serve_threads: usize,
    /// The node's cache of adapters (`None`: engines fetch adapters themselves, those that they can).
    pub adapter_store: Option<StoreConfig>,
    /// Metrics, registered by the caller.
    pub metrics: AgentMetrics,
}

impl AgentConfig {
    /// A gateway on an ephemeral loopback port without a scheduler; change what should be otherwise.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            node: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            picker_listen: None,
            advertise: None,
            scheduler: None,
            state_dir: None,
            time_scale: 1.0,
            limits: ProxyLimits::default(),
            tls: None,
            public: None,
            clients: Clients::Everybody,
            tenant_weights: HashMap::new(),
            serve_threads: 0,
            adapter_store: None,
            metrics: AgentMetrics::default(),
        }
    }
}

/// Mutual TLS of an agent.
#[derive(Debug, Clone)]
pub struct AgentTls {
    /// Its own side.
    pub mutual: Mutual,
    /// The way to the scheduler.
    pub scheduler: ClientTls,
    /// The way to other agents.
    pub agents: ClientTls,
}

/// Whom an agent takes requests from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Everybody who can reach it.
    Everybody,
    /// Gateways and other agents, by their certificates.
    Peers,
}

/// Bounds of the request path.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyLimits {
    /// Longest request body, bytes.
    pub max_body_bytes: usize,
    /// Most bytes of request headers.
    pub max_header_bytes: usize,
    /// Longest answer that is collected (not streamed), bytes.
    pub max_answer_bytes: usize,
    /// Most connections at once.
    pub max_connections: usize,
    /// Time for a client to send its headers, and between two parts of its body; a whole body may take ten times as long.
    pub client_read_timeout: Duration,
    /// Time to connect to an engine or agent.
    pub connect_timeout: Duration,
    /// Time from sending a request to the first byte of its answer (the whole answer, where it does not stream).
    pub first_byte_timeout: Duration,
    /// Time between two parts of a streamed answer.
    pub idle_timeout: Duration,
    /// Requests that may wait for admission to one engine.
    pub max_queue: usize,
    /// Requests that may wait here for pools to wake.
    pub max_holding: usize,
    /// How long to look for another replica when all that were chosen have just gone or started to drain.
    pub settle_wait: Duration,
    /// An engine with work that moves nothing for so long is stalled.
    pub stall_after: Duration,
    /// How often engines are probed.
    pub probe_interval: Duration,
    /// How often reports are made.
    pub report_interval: Duration,
    /// How long a draining engine must have been empty before that is acknowledged.
    pub drain_settle: Duration,
    /// How long a shutdown waits for requests to finish.
    pub shutdown_grace: Duration,
    /// Whether engines of other nodes are asked without the agent beside them, where that is gone. They speak plain HTTP.
    pub ask_engines_directly: bool,
    /// Shared secret between agents. When set, a request counts as internal only with it.
    pub hop_secret: Option<String>,
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            max_body_bytes: 16 << 20,
            max_header_bytes: 32 << 10,
            max_answer_bytes: 256 << 20,
            max_connections: 16_384,
            client_read_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(2),
            first_byte_timeout: Duration::from_secs(600),
            idle_timeout: Duration::from_secs(60),
            max_queue: 256,
            max_holding: 1024,
            settle_wait: Duration::from_secs(3),
            stall_after: Duration::from_secs(30),
            probe_interval: Duration::from_secs(1),
            report_interval: Duration::from_secs(1),
            drain_settle: Duration::from_secs(1),
            shutdown_grace: Duration::from_secs(30),
            ask_engines_directly: true,
            hop_secret: None,
        }
    }
}
