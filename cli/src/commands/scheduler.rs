//! `plimsoll scheduler`: forecasts, plans, and tells agents.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_proto::v1::ExplainRequest;
use plimsoll_proto::v1::plan_service_client::PlanServiceClient;
use plimsoll_scheduler::planner::EnginePlanner;
use plimsoll_scheduler::service::{Scheduler, SchedulerConfig, SchedulerMetrics};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::advice;
use crate::failure::{Failure, Outcome};
use crate::health::{Health, Opinion, Watched, keep_asking, own_address};
use crate::signals;

/// Run the scheduler
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of the gRPC services
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub listen: SocketAddr,
    /// Address of probes (/livez, /readyz), /metrics, and advised replicas (/advice, /metrics/NAMESPACE/POOL) [default:
    /// none]
    #[arg(long)]
    pub http_listen: Option<SocketAddr>,
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
    let mut registry = Registry::default();
    let metrics = SchedulerMetrics::new(&mut registry);
    let advised = metrics.advised();
    let config = SchedulerConfig {
        metrics,
        listen: args.listen,
        data_dir: args.data.clone(),
        replan_interval: Duration::from_secs_f64(args.replan_seconds.clamp(0.1, 86_400.0)),
        time_scale: args.speed,
        ..SchedulerConfig::new(std::sync::Arc::new(EnginePlanner::default()))
    };
    let handle = Scheduler::start(config, stop.clone())
        .await
        .map_err(|e| Failure::caused("the scheduler cannot start", e))?;
    tracing::info!(addr = %handle.addr(), "scheduler listens");
    if let Some(listen) = args.http_listen {
        let grpc = Watched::shut("it has not been called yet");
        let addr = handle.addr();
        tokio::spawn(keep_asking(grpc.clone(), stop.clone(), move || call(addr)));
        let again = grpc.clone();
        Health::new(registry, stop)
            .live("grpc", move || again.get())
            .ready("grpc", move || grpc.get())
            .routes(advice::router(advised))
            .serve(listen)
            .await?;
    }
    handle.join().await.map_err(|e| Failure::caused("the scheduler stopped", e))
}

/// Asks the service what needs its state but costs nothing: a pool whose name cannot be. A refusal is an answer.
async fn call(addr: SocketAddr) -> Opinion {
    let mut client = PlanServiceClient::connect(format!("http://{}", own_address(addr)))
        .await
        .map_err(|e| e.to_string())?;
    match client.explain(ExplainRequest { pool: "?".to_owned() }).await {
        Err(s)
            if matches!(
                s.code(),
                tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown
            ) =>
        {
            Err(s.message().to_owned())
        }
        _ => Ok(()),
    }
}
