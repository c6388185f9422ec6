//! `plimsoll agent`: takes requests, chooses replicas, admits for its node's engines, reports.

use std::net::SocketAddr;
use std::path::PathBuf;

use plimsoll_agent::{Agent, AgentConfig};
use plimsoll_fleet::NodeName;
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Outcome};
use crate::signals;

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
    /// `host:port` that other agents reach this one by [default: the listening address]
    #[arg(long)]
    pub advertise: Option<String>,
    /// The scheduler's gRPC address
    #[arg(long, env = "PLIMSOLL_SCHEDULER", default_value = "http://127.0.0.1:9090")]
    pub scheduler: String,
    /// Folder for the last route table, so that a restart needs no scheduler
    #[arg(long)]
    pub state: Option<PathBuf>,
    /// Engines run this much faster than the clock
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
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
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let config = AgentConfig {
        node,
        listen: args.listen,
        advertise: args.advertise.clone(),
        scheduler: Some(args.scheduler.clone()),
        state_dir: args.state.clone(),
        time_scale: args.speed,
        ..AgentConfig::new(name)
    };
    let handle =
        Agent::start(config, stop).await.map_err(|e| Failure::caused("the agent cannot start", e))?;
    tracing::info!(addr = %handle.addr(), "agent listens");
    handle.join().await;
    Ok(())
}
