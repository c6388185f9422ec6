//! `plimsoll engine-sim`: a simulated engine that answers as vLLM does.

use std::net::SocketAddr;
use std::time::Duration;

use plimsoll_fleet::Role;
use plimsoll_simulator::engine_server::{EngineServer, EngineServerConfig};
use plimsoll_simulator::group::{Leader, follow};
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Outcome};
use crate::signals;

/// How long a worker looks for its leader, as long as the process groups of real engines do.
const LEADER_WITHIN: Duration = Duration::from_secs(600);

/// Run a simulated engine: vLLM's HTTP API and metrics, timing from the engine model
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Model preset, e.g. llama-3.1-8b
    #[arg(long)]
    model: String,
    /// Accelerator preset, e.g. l4
    #[arg(long)]
    accelerator: String,
    /// Tensor-parallel degree
    #[arg(long, default_value_t = 1)]
    tensor_parallel: u32,
    /// Pipeline-parallel degree
    #[arg(long, default_value_t = 1)]
    pipeline_parallel: u32,
    /// Attention data-parallel degree, of models with experts
    #[arg(long, default_value_t = 1)]
    data_parallel: u32,
    /// Expert-parallel degree, of models with experts
    #[arg(long, default_value_t = 1)]
    expert_parallel: u32,
    /// Weight format: bf16, fp8, int4, …
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// KV-cache format [default: bf16]
    #[arg(long)]
    kv_dtype: Option<String>,
    /// What it does: mixed, or one half of a pair, prefill or decode
    #[arg(long, default_value = "mixed")]
    role: String,
    /// As prefill or decode engine: take no request without SGLang's bootstrap_room
    #[arg(long)]
    needs_room: bool,
    /// Name of the model in requests [default: the preset's]
    #[arg(long)]
    served_model_name: Option<String>,
    /// Longest request, tokens [default: what model and memory allow]
    #[arg(long)]
    max_model_len: Option<u32>,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// Virtual seconds a second: how much faster than real the engine runs
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Virtual seconds from start to ready
    #[arg(long, default_value_t = 0.0)]
    startup_seconds: f64,
    /// Processes that run this replica together, one a node
    #[arg(long, default_value_t = 1)]
    nnodes: u32,
    /// Place among them: 0 serves, the others only live and die with it
    #[arg(long, default_value_t = 0)]
    node_rank: u32,
    /// Name or address of rank 0
    #[arg(long, default_value = "127.0.0.1")]
    master_addr: String,
    /// Port at which rank 0 waits for the others
    #[arg(long, default_value_t = 29500)]
    master_port: u16,
    /// Seed of the answers
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs it until a signal.
///
/// # Errors
/// If a preset is unknown, the model does not fit, or the address is taken.
pub async fn run(args: &Args) -> Outcome {
    if args.node_rank > 0 {
        return work(args).await;
    }
    let mut config =
        EngineServerConfig::from_presets(&args.model, &args.accelerator, args.tensor_parallel, &args.dtype)
            .map_err(|e| Failure::new(e.to_string()))?;
    if let Some(kv) = &args.kv_dtype {
        config.variant.kv = kv.parse().map_err(|e| Failure::caused("--kv-dtype", e))?;
    }
    if let Some(name) = &args.served_model_name {
        config.served_model.clone_from(name);
    }
    config.listen = args.listen;
    config.speed = args.speed;
    config.startup = Duration::try_from_secs_f64(args.startup_seconds)
        .map_err(|e| Failure::caused("--startup-seconds", e))?;
    config.max_model_len = args.max_model_len;
    config.seed = args.seed;
    config.shape.pipeline_parallel = args.pipeline_parallel;
    config.shape.data_parallel = args.data_parallel;
    config.shape.expert_parallel = args.expert_parallel;
    config.needs_room = args.needs_room;
    config.shape.role = [Role::Mixed, Role::Prefill, Role::Decode]
        .into_iter()
        .find(|role| role.to_string() == args.role)
        .ok_or_else(|| Failure::new(format!("--role {:?} is not mixed, prefill or decode", args.role)))?;
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let leader = gather(args, &stop).await?;
    if stop.is_cancelled() {
        return Ok(());
    }
    let server = EngineServer::start(config).await.map_err(|e| Failure::new(e.to_string()))?;
    println!("simulated engine at {}", server.base_url());
    let lost = async {
        match &leader {
            Some(leader) => leader.lost().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = lost => {
            server.kill();
            return Err(Failure::new("a worker is gone, and its group ends with it".to_owned()));
        }
    }
    server.shutdown().await;
    Ok(())
}

/// Waits until every process of the replica is there. Until then nothing is served, as with real engines.
async fn gather(args: &Args, stop: &CancellationToken) -> Result<Option<Leader>, Failure> {
    if args.nnodes < 2 {
        return Ok(None);
    }
    let listen = SocketAddr::new(args.listen.ip(), args.master_port);
    let leader = Leader::start(listen, args.nnodes)
        .await
        .map_err(|e| Failure::caused(format!("cannot wait for workers at {listen}"), e))?;
    println!("waiting for {} workers at {listen}", args.nnodes - 1);
    tokio::select! {
        () = stop.cancelled() => {}
        () = leader.complete() => {}
        () = leader.lost() => return Err(Failure::new("a worker ended before all had come".to_owned())),
    }
    Ok(Some(leader))
}

async fn work(args: &Args) -> Outcome {
    if args.node_rank >= args.nnodes {
        return Err(Failure::new(format!(
            "--node-rank {} is no rank of {} processes; use 0 to {}",
            args.node_rank,
            args.nnodes,
            args.nnodes.saturating_sub(1)
        )));
    }
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let address = format!("{}:{}", args.master_addr, args.master_port);
    println!("simulated worker of rank {} for {address}", args.node_rank);
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = follow(&address, args.node_rank, LEADER_WITHIN) => {
            ended.map_err(|e| Failure::new(e.to_string()))
        }
    }
}
