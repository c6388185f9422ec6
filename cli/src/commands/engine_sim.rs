//! `plimsoll engine-sim`: a simulated engine that answers as vLLM does.

use std::net::SocketAddr;
use std::time::Duration;

use plimsoll_simulator::engine_server::{EngineServer, EngineServerConfig};
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Outcome};
use crate::signals;

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
    /// Weight format: bf16, fp8, int4, …
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// KV-cache format [default: bf16]
    #[arg(long)]
    kv_dtype: Option<String>,
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
    /// Seed of the answers
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs it until a signal.
///
/// # Errors
/// If a preset is unknown, the model does not fit, or the address is taken.
pub async fn run(args: &Args) -> Outcome {
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
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let server = EngineServer::start(config).await.map_err(|e| Failure::new(e.to_string()))?;
    println!("simulated engine at {}/v1", server.base_url());
    stop.cancelled().await;
    server.shutdown().await;
    Ok(())
}
