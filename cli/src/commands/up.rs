//! `plimsoll up`: the whole system in one process.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use plimsoll_agent::{Agent, AgentConfig, AgentHandle, AgentMetrics};
use plimsoll_fleet::NodeName;
use plimsoll_operator::{Operator, OperatorConfig};
use plimsoll_scheduler::demand::DemandConfig;
use plimsoll_scheduler::plan::PlannerConfig;
use plimsoll_scheduler::planner::EnginePlanner;
use plimsoll_scheduler::service::{Scheduler, SchedulerConfig, SchedulerHandle, SchedulerMetrics};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::commands::devcluster::ClusterArgs;
use crate::endpoints::Endpoints;
use crate::failure::{Failure, Outcome};
use crate::logging::{self, LogArgs};
use crate::scheduler_client::Caller;
use crate::terminal::Terminal;
use crate::view::{self, ViewState};
use crate::watch::{self, FleetView};
use crate::{screen, signals};

/// Run the whole system here: Kubernetes API, simulated GPU nodes and engines, operator, scheduler, agents
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Address of the OpenAI API
    #[arg(long, default_value = "127.0.0.1:8080")]
    openai_listen: SocketAddr,
    /// Address of the fleet view and the metrics
    #[arg(long, default_value = "127.0.0.1:8081")]
    view_listen: SocketAddr,
    /// Address of the scheduler's gRPC services
    #[arg(long, default_value = "127.0.0.1:0")]
    scheduler_listen: SocketAddr,
    /// Longest time between plans, virtual seconds
    #[arg(long, default_value_t = 15.0)]
    replan_seconds: f64,
    /// Do not draw the summary; print one line a plan instead
    #[arg(long)]
    no_screen: bool,
}

/// Everything that runs, in the order in which it is stopped.
struct Parts {
    stop: CancellationToken,
    gateway: AgentHandle,
    agents: Vec<AgentHandle>,
    operator: JoinHandle<()>,
    scheduler: SchedulerHandle,
    cluster: crate::local::LocalCluster,
}

/// Runs it until a signal.
///
/// # Errors
/// If a part cannot start; nothing is left running then.
pub async fn run(args: &Args, log: &LogArgs) -> Outcome {
    let dir = args.cluster.prepare_dir()?;
    let log_path = dir.join("plimsoll.log");
    logging::start(log, Some(&log_path))?;
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());

    let metrics = Arc::new(Mutex::new(Registry::default()));
    let (parts, endpoints, fleet) = start(args, &dir, &metrics, &stop).await?;
    endpoints.write(&dir)?;
    let banner = banner(args, &endpoints, &log_path);
    let draw = !args.no_screen && std::io::stdout().is_terminal();
    println!("{}", banner.join("\n"));
    if draw {
        show(fleet, args, &banner, &stop).await;
        println!("{}", banner.join("\n"));
    } else {
        tell(fleet, &stop).await;
    }

    println!("stopping …");
    endpoints.remove(&dir);
    parts.shutdown().await;
    println!(
        "stopped; state {}",
        match &args.cluster.data {
            Some(data) => format!("kept in {}", data.display()),
            None => "not kept (--data DIR keeps it)".to_owned(),
        }
    );
    Ok(())
}

async fn start(
    args: &Args,
    dir: &Path,
    metrics: &Arc<Mutex<Registry>>,
    stop: &CancellationToken,
) -> Result<(Parts, Endpoints, tokio::sync::watch::Receiver<FleetView>), Failure> {
    let (cluster, kubeconfig) = args.cluster.start().await?;
    let speed = args.cluster.speed;
    let scheduler_metrics = SchedulerMetrics::new(&mut metrics.lock());
    let scheduler = Scheduler::start(
        SchedulerConfig {
            listen: args.scheduler_listen,
            data_dir: args.cluster.data.as_ref().map(|d| d.join("scheduler")),
            replan_interval: Duration::from_secs_f64(args.replan_seconds.clamp(0.1, 86_400.0)),
            time_scale: speed,
            // Engines start within seconds here, so shorter looks at the demand pay.
            demand: DemandConfig {
                step_seconds: 2.0,
                blend_seconds: 60.0,
                hold_seconds: 60.0,
                mix_half_life_seconds: 120.0,
                window_seconds: 60.0,
                ..DemandConfig::default()
            },
            metrics: scheduler_metrics,
            ..SchedulerConfig::new(Arc::new(EnginePlanner::new(PlannerConfig {
                // With starts this quick a decision need not hold for long; the price of a change stays what it is
                // on a cluster, about a sixth of the replica's hourly price.
                change_horizon_seconds: 30.0,
                ..PlannerConfig::default()
            })))
        },
        stop.child_token(),
    )
    .await
    .map_err(|e| Failure::caused("the scheduler cannot start", e))?;
    let scheduler_url = format!("http://{}", scheduler.addr());

    let config = OperatorConfig { drain_timeout: Duration::from_secs(60), ..OperatorConfig::default() };
    let operator_stop = stop.child_token();
    let operator_run = Operator::run(cluster.client.clone(), scheduler_url.clone(), config, operator_stop);
    let operator = tokio::spawn(async move {
        if let Err(error) = operator_run.await {
            error!(%error, "the operator stopped");
        }
    });

    let agent_state = args.cluster.data.clone().unwrap_or_else(|| dir.to_owned()).join("agents");
    let agent = |name: &str, node: Option<NodeName>, listen: SocketAddr| AgentConfig {
        node,
        listen,
        scheduler: Some(scheduler_url.clone()),
        state_dir: Some(agent_state.join(name)),
        time_scale: speed,
        ..AgentConfig::new(name)
    };
    let gateway_metrics = AgentMetrics::register(&mut metrics.lock());
    let gateway_config =
        AgentConfig { metrics: gateway_metrics, ..agent("gateway", None, args.openai_listen) };
    let gateway = Agent::start(gateway_config, stop.child_token()).await.map_err(|e| {
        Failure::caused(format!("the OpenAI API cannot start on {}", args.openai_listen), e)
            .hint("stop what uses the port, or choose another: --openai-listen 127.0.0.1:0")
    })?;
    let mut agents = Vec::new();
    let nodes = args.cluster.nodes.nodes();
    for node in &nodes {
        let name = NodeName::new(&*node.name).map_err(|e| Failure::caused("a node's name is invalid", e))?;
        let config = agent(&node.name, Some(name), SocketAddr::from(([127, 0, 0, 1], 0)));
        agents.push(
            Agent::start(config, stop.child_token())
                .await
                .map_err(|e| Failure::caused(format!("the agent of {} cannot start", node.name), e))?,
        );
    }

    let fleet = watch::follow(Caller::plain(scheduler_url.clone()), stop.child_token());
    let view = view::start(
        args.view_listen,
        ViewState { fleet: fleet.clone(), nodes: Arc::new(nodes), metrics: Arc::clone(metrics) },
        stop.child_token(),
    )
    .await?;
    let endpoints = Endpoints {
        kubernetes: format!("http://{}", cluster.addr()),
        kubeconfig,
        openai: Some(format!("http://{}/v1", gateway.addr())),
        view: Some(format!("http://{view}")),
        scheduler: Some(scheduler_url),
        pid: std::process::id(),
    };
    info!(?endpoints, "up");
    let parts = Parts { stop: stop.clone(), gateway, agents, operator, scheduler, cluster };
    Ok((parts, endpoints, fleet))
}

impl Parts {
    /// Stops everything: requests first, the API last. Gives each part a few seconds.
    async fn shutdown(self) {
        let Self { stop, gateway, agents, operator, scheduler, cluster } = self;
        stop.cancel();
        let patience = Duration::from_secs(5);
        let _ = tokio::time::timeout(patience, gateway.join()).await;
        for agent in agents {
            let _ = tokio::time::timeout(Duration::from_secs(1), agent.join()).await;
        }
        let _ = tokio::time::timeout(patience, operator).await;
        let _ = tokio::time::timeout(patience, scheduler.join()).await;

        let _ = tokio::time::timeout(patience, cluster.shutdown()).await;
    }
}

fn banner(args: &Args, endpoints: &Endpoints, log: &Path) -> Vec<String> {
    let kubeconfig = endpoints.kubeconfig.display().to_string();
    let here = std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_default();
    let kubeconfig = match kubeconfig.strip_prefix(&format!("{here}/")) {
        Some(rest) => format!("$PWD/{rest}"),
        None => kubeconfig,
    };
    let mut lines = vec![
        format!(
            "Plimsoll is up. {} simulated nodes: {}.   (everything is local; Ctrl-C stops it)",
            args.cluster.nodes.count(),
            args.cluster.nodes
        ),
        String::new(),
        format!("  Kubernetes API   export KUBECONFIG={kubeconfig}"),
        format!("  OpenAI API       {}          (key: any)", endpoints.openai.as_deref().unwrap_or_default()),
    ];
    if let Some(view) = &endpoints.view {
        lines.push(format!("  Fleet view       {view}"));
        lines.push(format!("  Metrics          {view}/metrics"));
    }
    lines.push(format!("  Log              {}", log.display()));
    lines.push(String::new());
    lines.push("next:  kubectl apply -f examples/".to_owned());
    lines
}

/// Redraws the summary each second.
async fn show(
    mut fleet: tokio::sync::watch::Receiver<FleetView>,
    args: &Args,
    banner: &[String],
    stop: &CancellationToken,
) {
    let terminal = Terminal::enter();
    let nodes = args.cluster.nodes.nodes();
    loop {
        let mut lines = screen::render(&fleet.borrow_and_update(), &nodes, "Plimsoll", terminal.width());
        lines.push(String::new());
        lines.extend(banner.iter().skip(2).cloned());
        terminal.draw(&lines);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Prints one line a plan.
async fn tell(mut fleet: tokio::sync::watch::Receiver<FleetView>, stop: &CancellationToken) {
    let mut told = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = fleet.changed() => if changed.is_err() { return; }
        }
        let line = {
            let view = fleet.borrow_and_update();
            view.plan.as_ref().filter(|p| p.number != told).map(|plan| {
                told = plan.number;
                let pools: Vec<String> =
                    plan.pools.iter().map(|p| format!("{}: {}", p.pool.name(), p.fleet_text())).collect();
                format!(
                    "plan {}   ${:.2}/h   {}   ({})",
                    plan.number,
                    plan.usd_per_hour,
                    pools.join("; "),
                    plan.trigger
                )
            })
        };
        if let Some(line) = line {
            println!("{line}");
        }
    }
}
