//! `plimsoll devcluster`: only the local cluster, so that the parts can run (and be killed) as processes of their own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::endpoints::Endpoints;
use crate::failure::{Failure, Outcome};
use crate::local::{LocalCluster, LocalClusterConfig};
use crate::nodespec::NodeGroups;
use crate::signals;

/// What the local cluster of `up` and `devcluster` is made of.
#[derive(Debug, Clone, clap::Args)]
pub struct ClusterArgs {
    /// Folder for kubeconfig, logs and addresses
    #[arg(long, default_value = ".plimsoll")]
    pub dir: PathBuf,
    /// Folder for state that survives a restart [default: none does]
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Address of the Kubernetes API
    #[arg(long, default_value = "127.0.0.1:16443")]
    pub api_listen: SocketAddr,
    /// Simulated nodes as COUNTxGPUSxCLASS,…
    #[arg(long, default_value = "4x8xh100,2x4xl40s,2x1xl4")]
    pub nodes: NodeGroups,
    /// Virtual seconds a second: how much faster than real the engines (and all windows of time) run
    #[arg(long, default_value_t = 1.0, value_parser = speed)]
    pub speed: f64,
    /// Virtual seconds from a pod's start to an engine that serves
    #[arg(long, default_value_t = 4.0)]
    pub startup_seconds: f64,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if s.is_finite() && (0.01..=1000.0).contains(&s) => Ok(s),
        _ => Err(format!("{text:?} is not a speed; use a number from 0.01 to 1000, such as 1 or 10")),
    }
}

impl ClusterArgs {
    /// Starts the cluster and writes its kubeconfig; the paths written to are returned absolute.
    ///
    /// # Errors
    /// If the folder cannot be written or the cluster cannot start.
    pub async fn start(&self) -> Result<(LocalCluster, PathBuf), Failure> {
        let cluster = LocalCluster::start(LocalClusterConfig {
            listen: self.api_listen,
            data: self.data.as_ref().map(|d| d.join("cluster")),
            nodes: self.nodes.clone(),
            speed: self.speed,
            startup: Duration::try_from_secs_f64(self.startup_seconds)
                .map_err(|e| Failure::caused("--startup-seconds", e))?,
        })
        .await?;
        let kubeconfig = self.prepare_dir()?.join("kubeconfig");
        std::fs::write(&kubeconfig, cluster.kubeconfig())
            .map_err(|e| Failure::caused(format!("failed to write {}", kubeconfig.display()), e))?;
        Ok((cluster, kubeconfig))
    }

    /// Makes the folder; its absolute path.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn prepare_dir(&self) -> Result<PathBuf, Failure> {
        make(&self.dir)?;
        if let Some(data) = &self.data {
            make(data)?;
        }
        std::path::absolute(&self.dir)
            .map_err(|e| Failure::caused(format!("{} has no absolute path", self.dir.display()), e))
    }
}

fn make(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir)
        .map_err(|e| Failure::caused(format!("failed to make the folder {}", dir.display()), e))
}

/// Run only the in-process Kubernetes API with simulated nodes and engines
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs it until a signal.
///
/// # Errors
/// If it cannot start.
pub async fn run(args: &Args) -> Outcome {
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let (cluster, kubeconfig) = args.cluster.start().await?;
    let dir = args.cluster.prepare_dir()?;
    let endpoints = Endpoints {
        kubernetes: format!("http://{}", cluster.addr()),
        kubeconfig: kubeconfig.clone(),
        pid: std::process::id(),
        ..Endpoints::default()
    };
    endpoints.write(&dir)?;
    println!("Kubernetes API at http://{}   export KUBECONFIG={}", cluster.addr(), kubeconfig.display());
    stop.cancelled().await;
    endpoints.remove(&dir);
    cluster.shutdown().await;
    Ok(())
}
