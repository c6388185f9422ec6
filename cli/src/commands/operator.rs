//! `plimsoll operator`: reconciles the Kubernetes resources.

use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use plimsoll_operator::{Operator, OperatorConfig};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::failure::{Failure, Outcome};
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
    info!(scheduler = %args.scheduler, "operator starts");
    Operator::run(client, args.scheduler.clone(), config, stop)
        .await
        .map_err(|e| Failure::caused("the operator stopped", e))
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
