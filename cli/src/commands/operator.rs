//! `plimsoll operator`: reconciles the Kubernetes resources.

use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use plimsoll_operator::grpc::GrpcBrain;
use plimsoll_operator::{EngineImages, Operator, OperatorConfig};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::commands::operator_health::{LeaseWatch, OperatorMetrics, SeenBrain};
use crate::failure::{Failure, Outcome};
use crate::health::Health;
use crate::signals;

/// Run the operator
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The scheduler's gRPC address
    #[arg(long, env = "PLIMSOLL_SCHEDULER", default_value = "http://127.0.0.1:9090")]
    pub scheduler: String,
    /// Kubeconfig to use [default: the in-cluster account, or $KUBECONFIG]
    #[arg(long)]
    pub kubeconfig: Option<std::path::PathBuf>,
    /// Namespace of the leader-election Lease
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// This instance's name in the Lease [default: random]
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
    /// Longest time a replica may take to finish its requests before it is deleted, seconds
    #[arg(long, default_value_t = 120)]
    pub drain_timeout_seconds: u64,
    /// Address of probes (/livez, /readyz) and /metrics [default: none]
    #[arg(long)]
    pub http_listen: Option<std::net::SocketAddr>,
    #[command(flatten)]
    pub images: Images,
}

/// Images of engines whose pool names none.
#[derive(Debug, clap::Args)]
pub struct Images {
    /// Image of vLLM [default: a version known to work]
    #[arg(long, env = "PLIMSOLL_VLLM_IMAGE")]
    pub vllm_image: Option<String>,
    /// Image of SGLang [default: a version known to work]
    #[arg(long, env = "PLIMSOLL_SGLANG_IMAGE")]
    pub sglang_image: Option<String>,
    /// Image of llama.cpp's server for GPUs [default: its project's]
    #[arg(long, env = "PLIMSOLL_LLAMACPP_IMAGE")]
    pub llamacpp_image: Option<String>,
    /// Image of llama.cpp's server for CPUs [default: its project's]
    #[arg(long, env = "PLIMSOLL_LLAMACPP_CPU_IMAGE")]
    pub llamacpp_cpu_image: Option<String>,
    /// Image of Plimsoll, for simulated engines [default: this version's]
    #[arg(long, env = "PLIMSOLL_IMAGE")]
    pub plimsoll_image: Option<String>,
}

impl Images {
    fn over(&self, defaults: EngineImages) -> EngineImages {
        // An empty value, as templates easily make, is none.
        let or = |given: &Option<String>, default| given.clone().filter(|v| !v.is_empty()).unwrap_or(default);
        EngineImages {
            vllm: or(&self.vllm_image, defaults.vllm),
            sglang: or(&self.sglang_image, defaults.sglang),
            llamacpp: or(&self.llamacpp_image, defaults.llamacpp),
            llamacpp_cpu: or(&self.llamacpp_cpu_image, defaults.llamacpp_cpu),
            plimsoll: or(&self.plimsoll_image, defaults.plimsoll),
        }
    }
}

/// Runs it until a signal.
///
/// # Errors
/// If the API or the configuration is not usable.
pub async fn run(args: &Args) -> Outcome {
    let client = client(args.kubeconfig.as_deref()).await?;
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let mut config = OperatorConfig::default();
    config.lease_namespace.clone_from(&args.lease_namespace);
    if let Some(identity) = &args.identity {
        config.identity.clone_from(identity);
    }
    config.drain_timeout = Duration::from_secs(args.drain_timeout_seconds);
    config.images = args.images.over(config.images);
    let brain = GrpcBrain::new(&args.scheduler, &config.identity)
        .map_err(|e| Failure::caused("--scheduler is not usable", e))?;
    info!(scheduler = %args.scheduler, "operator starts");
    let Some(listen) = args.http_listen else {
        Operator::run_with(client, brain, config, stop).await;
        return Ok(());
    };
    let mut registry = Registry::default();
    let metrics = OperatorMetrics::register(&mut registry);
    let brain = SeenBrain::new(brain, metrics.clone());
    let lease = LeaseWatch::start(client.clone(), &config, metrics, stop.clone());
    let (scheduler, leading) = (brain.opinion(), lease.clone());
    Health::new(registry, stop.clone())
        .ready("lease", move || lease.opinion())
        .ready("scheduler", move || if leading.leading() { scheduler.get() } else { Ok(()) })
        .serve(listen)
        .await?;
    Operator::run_with(client, brain, config, stop).await;
    Ok(())
}

/// A client from a kubeconfig, or from the environment.
///
/// # Errors
/// If there is no usable configuration.
pub async fn client(kubeconfig: Option<&std::path::Path>) -> Result<kube::Client, Failure> {
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .map_err(|e| Failure::caused(format!("failed to read {}", path.display()), e))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|e| Failure::caused(format!("{} is not usable", path.display()), e))?
        }
        None => kube::Config::infer().await.map_err(|e| {
            Failure::caused("found no Kubernetes API", e)
                .hint("set KUBECONFIG, pass --kubeconfig, or run inside a cluster")
        })?,
    };
    kube::Client::try_from(config).map_err(|e| Failure::caused("failed to make a Kubernetes client", e))
}
