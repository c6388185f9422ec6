//! `plimsoll scheduler`: forecasts, plans, and tells agents.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_scheduler::planner::EnginePlanner;
use plimsoll_scheduler::service::{Scheduler, SchedulerConfig};
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, Outcome};
use crate::signals;

/// Run the scheduler
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of the gRPC services
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub listen: SocketAddr,
    /// Folder for plans, history and ledgers [default: in memory only]
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Longest time between plans, seconds
    #[arg(long, default_value_t = 60.0)]
    pub replan_seconds: f64,
    /// Simulated time runs this much faster than the clock (with engines at the same speed)
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
}

/// Runs it until a signal.
///
/// # Errors
/// If it cannot listen or open its store.
pub async fn run(args: &Args) -> Outcome {
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let config = SchedulerConfig {
        listen: args.listen,
        data_dir: args.data.clone(),
        replan_interval: Duration::from_secs_f64(args.replan_seconds.clamp(0.1, 86_400.0)),
        time_scale: args.speed,
        ..SchedulerConfig::new(std::sync::Arc::new(EnginePlanner::default()))
    };
    let handle =
        Scheduler::start(config, stop).await.map_err(|e| Failure::caused("the scheduler cannot start", e))?;
    tracing::info!(addr = %handle.addr(), "scheduler listens");
    handle.join().await.map_err(|e| Failure::caused("the scheduler stopped", e))
}
