//! Serves the API alone, with three simulated nodes whose pods do nothing, for a look at it with kubectl or Helm:
//!
//! ```console
//! $ cargo run -p plimsoll-devcluster --example serve > kubeconfig
//! $ KUBECONFIG=kubeconfig kubectl get nodes
//! ```

use std::io::Write as _;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use plimsoll_devcluster::nodes::{NodeSimulator, NodeSpec, PodRuntime, RunningPod, RuntimeError};
use plimsoll_devcluster::{DevCluster, DevClusterConfig};

/// Pods that run until they are stopped.
struct Idle;

impl PodRuntime for Idle {
    fn start<'a>(&'a self, _pod: &'a Pod) -> BoxFuture<'a, Result<RunningPod, RuntimeError>> {
        let exit = futures::future::pending().boxed();
        let stop = Box::new(|_grace| futures::future::ready(()).boxed());
        futures::future::ready(Ok(RunningPod::new(exit, stop))).boxed()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = DevCluster::start(DevClusterConfig::default()).await?;
    let capacity = [("cpu", "8"), ("memory", "32Gi")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let nodes = (0..3).map(|i| NodeSpec {
        name: format!("node-{i}"),
        labels: [].into(),
        capacity: capacity.clone().into(),
        zone: String::new(),
    });
    let nodes = NodeSimulator::start(cluster.client(), nodes.collect(), Arc::new(Idle));
    let mut out = std::io::stdout();
    out.write_all(cluster.kubeconfig_yaml().as_bytes())?;
    out.flush()?;
    // Until it is killed: nothing is kept.
    let _: () = futures::future::pending().await;
    nodes.shutdown().await;
    cluster.shutdown().await;
    Ok(())
}
