//! `plimsoll agent`: takes requests, chooses replicas, admits for its node's engines, reports.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_agent::adapters::store::{Credentials, Hosts, StoreConfig};
use plimsoll_agent::metrics::{AgentLabels, AgentMetrics};
use plimsoll_agent::{Agent, AgentConfig, AgentTls, Clients, ProxyLimits};
use plimsoll_fleet::NodeName;
use plimsoll_proto::tls::Public;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Outcome};
use crate::health::{Health, Opinion, Watched, keep_asking, own_address};
use crate::signals;
use crate::tls::{TlsArgs, given, show, unusable};

/// Run an agent: beside the engines of a node (--node), or as a gateway
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Node whose engines this agent answers for; left out: a gateway
    #[arg(long, env = "NODE_NAME")]
    pub node: Option<String>,
    /// Name in reports [default: the node's, or `gateway`]
    #[arg(long, env = "POD_NAME")]
    pub name: Option<String>,
    /// Address of the OpenAI API
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Address of probes (/livez, /readyz) and /metrics [default: none]
    #[arg(long)]
    pub http_listen: Option<SocketAddr>,
    /// Address at which gateways of the Gateway API Inference Extension ask for endpoints (Envoy's external processing), over
    /// TLS where --serve-tls-dir is given [default: none]
    #[arg(long)]
    pub picker_listen: Option<SocketAddr>,
    /// `host:port` that other agents reach this one by [default: the listening address]
    #[arg(long)]
    pub advertise: Option<String>,
    /// Address of this host or pod, at which others reach the port listened on; `--advertise` wins
    #[arg(long, env = "POD_IP")]
    pub advertise_ip: Option<IpAddr>,
    /// The scheduler's gRPC address
    #[arg(long, env = "PLIMSOLL_SCHEDULER", default_value = "http://127.0.0.1:9090")]
    pub scheduler: String,
    #[command(flatten)]
    pub tls: AgentTlsArgs,
    /// Folder for the last route table, so that a restart needs no scheduler
    #[arg(long)]
    pub state: Option<PathBuf>,
    /// Longest time a shutdown waits for requests to finish, seconds
    #[arg(long, default_value_t = 30)]
    pub shutdown_grace_seconds: u64,
    /// Share of a tenant (as in x-plimsoll-tenant) against others of its tier when engines are full; may be given several
    /// times [default: the weight of the Tenant object of that name, else 1]
    #[arg(long, value_name = "TENANT=WEIGHT", value_parser = tenant_weight)]
    pub tenant_weight: Vec<(String, f64)>,
    /// Threads that serve requests [default: one a processor core, at most 8]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    #[command(flatten)]
    pub adapters: AdapterArgs,
    /// Engines run this much faster than the clock
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
}

/// The node's cache of LoRA adapters.
#[derive(Debug, clap::Args)]
pub struct AdapterArgs {
    /// Folder that LoRA adapters are fetched into, which engines of this node see too [default: none: engines fetch adapters
    /// themselves]
    #[arg(long)]
    pub adapter_cache: Option<PathBuf>,
    /// The same folder as engines see it [default: the same name]
    #[arg(long, requires = "adapter_cache")]
    pub adapter_cache_in_engines: Option<PathBuf>,
    /// Most that the folder may take
    #[arg(long, default_value = "20Gi", value_parser = size)]
    pub adapter_cache_size: u64,
    /// Folder with credentials, a file each: HF_TOKEN, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION,
    /// AWS_ENDPOINT_URL, .dockerconfigjson, http-HOST (a bearer token) [default: HF_TOKEN and AWS_* of the environment]
    #[arg(long, env = "PLIMSOLL_ADAPTER_CREDENTIALS")]
    pub adapter_credentials: Option<PathBuf>,
    /// Host that adapters may come from, redirects included; `*.HOST` for all under it; may be given several times [default: any but
    /// those of the node's own link]
    #[arg(long)]
    pub adapter_host: Vec<String>,
    /// Longest time for the download of one adapter, seconds
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub adapter_download_seconds: u64,
    /// Hugging Face, or a mirror of it
    #[arg(long, env = "HF_ENDPOINT", default_value = "https://huggingface.co")]
    pub hf_endpoint: String,
}

fn size(text: &str) -> Result<u64, String> {
    let bytes = plimsoll_crds::quantity::parse(text).filter(|b| *b >= 1.0 && *b < 1e18);
    bytes.map(|b| b as u64).ok_or_else(|| format!("{text:?} is not a size; write one such as 20Gi"))
}

impl AdapterArgs {
    fn store(&self) -> Option<StoreConfig> {
        let dir = self.adapter_cache.clone()?;
        let mut store = StoreConfig::new(dir, self.adapter_cache_size);
        if let Some(seen) = &self.adapter_cache_in_engines {
            store.engine_dir.clone_from(seen);
        }
        store.hosts = Hosts(self.adapter_host.iter().map(|host| host.to_ascii_lowercase()).collect());
        store.within = Duration::from_secs(self.adapter_download_seconds);
        store.hf_endpoint.clone_from(&self.hf_endpoint);
        // Not an argument: those can be read by others on the node.
        let hf_token = std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty());
        let folder = self.adapter_credentials.clone().filter(|dir| !dir.as_os_str().is_empty());
        store.credentials = Credentials { dir: folder, hf_token };
        Some(store)
    }
}

/// TLS with peers, and with clients.
#[derive(Debug, clap::Args)]
pub struct AgentTlsArgs {
    #[command(flatten)]
    pub peers: TlsArgs,
    /// DNS name that other agents' certificate must have [default: the host that is called]
    #[arg(long, env = "PLIMSOLL_TLS_AGENT_NAME")]
    pub tls_agent_name: Option<String>,
    /// DNS names, separated by commas, of which the certificate of a gateway or another agent must have one [default: any
    /// certificate of the authority will do]
    #[arg(long, env = "PLIMSOLL_TLS_ALLOW", value_delimiter = ',')]
    pub tls_allow: Vec<String>,
    /// Take requests from gateways and other agents alone, by their certificates
    #[arg(long)]
    pub peers_only: bool,
    /// Never ask an engine of another node when the agent beside it is gone: engines speak plain HTTP
    #[arg(long)]
    pub no_direct: bool,
    /// Folder with tls.crt and tls.key for the OpenAI API: clients must use https. Files that change are taken up
    /// [default: HTTP]
    #[arg(long, env = "PLIMSOLL_SERVE_TLS_DIR")]
    pub serve_tls_dir: Option<PathBuf>,
}

impl AgentTlsArgs {
    fn mutual(&self) -> Result<Option<AgentTls>, Failure> {
        let Some(mutual) = self.peers.mutual(&self.tls_allow)? else { return Ok(None) };
        let scheduler = self.peers.scheduler(&mutual)?;
        let agents = mutual.client(given(self.tls_agent_name.as_deref())).map_err(unusable)?;
        Ok(Some(AgentTls { mutual, scheduler, agents }))
    }

    fn public(&self) -> Result<Option<Public>, Failure> {
        let dir = self.serve_tls_dir.as_deref().filter(|dir| !dir.as_os_str().is_empty());
        dir.map(Public::open).transpose().map_err(unusable)
    }
}

fn tenant_weight(text: &str) -> Result<(String, f64), String> {
    let (tenant, weight) = text.split_once('=').ok_or("give TENANT=WEIGHT, such as research=2")?;
    match weight.parse::<f64>() {
        Ok(w) if w.is_finite() && w > 0.0 && !tenant.is_empty() => Ok((tenant.to_owned(), w)),
        _ => Err(format!("{weight:?} is not a weight above 0, or the tenant has no name")),
    }
}

/// Threads that suffice: one carries more than ten thousand short requests a second.
fn serve_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(8)
}

/// Runs it until a signal.
///
/// # Errors
/// If it cannot listen.
pub async fn run(args: &Args) -> Outcome {
    let node = args
        .node
        .as_deref()
        .map(NodeName::new)
        .transpose()
        .map_err(|e| Failure::caused("--node is no node name", e))?;
    let name = args.name.clone().or_else(|| args.node.clone()).unwrap_or_else(|| "gateway".to_owned());
    let advertise = args.advertise.clone().or_else(|| {
        let port = Some(args.listen.port()).filter(|p| *p != 0)?;
        Some(SocketAddr::new(args.advertise_ip?, port).to_string())
    });
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let mut registry = Registry::default();
    let metrics = AgentMetrics::register(&mut registry);
    let (tls, public) = (args.tls.mutual()?, args.tls.public()?);
    if tls.is_some() || public.is_some() {
        show(&mut registry, tls.as_ref().map(|tls| &tls.mutual), public.as_ref());
    }
    let config = AgentConfig {
        node,
        listen: args.listen,
        picker_listen: args.picker_listen,
        advertise,
        scheduler: Some(args.scheduler.clone()),
        state_dir: args.state.clone(),
        time_scale: args.speed,
        tls,
        public,
        clients: if args.tls.peers_only { Clients::Peers } else { Clients::Everybody },
        tenant_weights: args.tenant_weight.iter().cloned().collect(),
        serve_threads: args.threads.map_or_else(serve_threads, usize::from),
        adapter_store: args.adapters.store(),
        metrics: metrics.clone(),
        limits: ProxyLimits {
            shutdown_grace: Duration::from_secs(args.shutdown_grace_seconds),
            ask_engines_directly: !args.tls.no_direct,
            ..ProxyLimits::default()
        },
        ..AgentConfig::new(name.clone())
    };
    let handle =
        Agent::start(config, stop.clone()).await.map_err(|e| Failure::caused("the agent cannot start", e))?;
    tracing::info!(addr = %handle.addr(), "agent listens");
    if let Some(listen) = args.http_listen {
        let (addr, api) = (handle.addr(), Watched::shut("it has not been called yet"));
        tokio::spawn(keep_asking(api.clone(), stop.clone(), move || call(addr)));
        let label = AgentLabels { agent: name };
        Health::new(registry, stop)
            .ready("api", move || api.get())
            .ready("routes", move || {
                // A fleet without pools has no table to send: being heard is then all there is to wait for.
                let routed = metrics.route_version.get_or_create(&label).get() > 0;
                if routed || metrics.scheduler_connected.get_or_create(&label).get() > 0 {
                    Ok(())
                } else {
                    Err("no route table is kept and the scheduler does not answer".to_owned())
                }
            })
            .serve(listen)
            .await?;
    }
    handle.join().await;
    Ok(())
}

/// Asks the OpenAI port as a client would.
async fn call(addr: SocketAddr) -> Opinion {
    let ask = async {
        let mut stream = TcpStream::connect(own_address(addr)).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut begin = [0_u8; 12];
        stream.read_exact(&mut begin).await?;
        Ok::<_, std::io::Error>(begin)
    };
    match ask.await {
        Ok(begin) if begin == *b"HTTP/1.1 200" => Ok(()),
        Ok(begin) => Err(format!("GET /healthz answered {:?}", String::from_utf8_lossy(&begin))),
        Err(error) => Err(format!("GET /healthz: {error}")),
    }
}
