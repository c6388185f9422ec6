//! The local cluster: the in-process Kubernetes API, simulated nodes, and simulated engines on them.

mod faults;
mod group;
mod runtime;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use plimsoll_devcluster::nodes::{NodeHandle, NodeSimulator, NodeSpec};
use plimsoll_devcluster::{DevCluster, DevClusterConfig};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::failure::Failure;
use crate::nodespec::NodeGroups;

pub use runtime::EngineRuntime;

/// What a local cluster is made of.
#[derive(Debug, Clone)]
pub struct LocalClusterConfig {
    /// Address of the Kubernetes API.
    pub listen: SocketAddr,
    /// Folder for the cluster's objects; in memory only if absent.
    pub data: Option<PathBuf>,
    /// Simulated nodes.
    pub nodes: NodeGroups,
    /// Virtual seconds a second of the simulated engines.
    pub speed: f64,
    /// Virtual time from a pod's start to an engine that serves.
    pub startup: Duration,
}

/// A running local cluster.
pub struct LocalCluster {
    api: DevCluster,
    nodes: Arc<NodeHandle>,
    faults: JoinHandle<()>,
    stop: CancellationToken,
    /// A client of its API.
    pub client: Client,
}

impl LocalCluster {
    /// Starts API, resource definitions, accelerator classes of the nodes, and the nodes.
    ///
    /// # Errors
    /// If the API cannot listen or its data cannot be read.
    pub async fn start(config: LocalClusterConfig) -> Result<Self, Failure> {
        let api =
            DevCluster::start(DevClusterConfig { listen: config.listen, data_dir: config.data.clone() })
                .await
                .map_err(|e| {
                    Failure::caused(format!("the local Kubernetes API cannot start on {}", config.listen), e)
                        .hint("stop what uses the port, or choose another: --api-listen 127.0.0.1:0")
                })?;
        let client = api.client();
        install_crds(&client).await?;
        install_classes(&client, &config.nodes).await?;
        let specs = config.nodes.nodes().into_iter().map(node_spec).collect();
        let runtime = Arc::new(EngineRuntime::new(config.speed, config.startup));
        let nodes = Arc::new(NodeSimulator::start(client.clone(), specs, runtime.clone()));
        api.serve_logs(nodes.logs());
        let stop = CancellationToken::new();
        let faults = tokio::spawn(faults::run(client.clone(), Arc::clone(&nodes), runtime, stop.clone()));
        info!(api = %api.addr(), nodes = config.nodes.count(), "local cluster runs");
        Ok(Self { api, nodes, faults, stop, client })
    }

    /// Address of the API.
    pub fn addr(&self) -> SocketAddr {
        self.api.addr()
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self) -> String {
        self.api.kubeconfig_yaml()
    }

    /// Stops nodes, engines and API, in that order; objects stay on disk.
    pub async fn shutdown(self) {
        self.stop.cancel();
        // A panicked task holds no nodes either.
        let _ = self.faults.await;
        if let Ok(nodes) = Arc::try_unwrap(self.nodes) {
            nodes.shutdown().await;
        }
        self.api.shutdown().await;
    }
}

fn node_spec(node: crate::nodespec::NodeFacts) -> NodeSpec {
    let mut capacity = vec![
        ("cpu".to_owned(), "128".to_owned()),
        ("memory".to_owned(), "1Ti".to_owned()),
        ("ephemeral-storage".to_owned(), "4Ti".to_owned()),
        ("pods".to_owned(), "110".to_owned()),
    ];
    if let Some(resource) = node.resource {
        capacity.push((resource.to_owned(), node.gpus.to_string()));
    }
    NodeSpec {
        name: node.name,
        labels: node.labels,
        capacity: capacity.into_iter().collect(),
        zone: node.zone,
    }
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The field manager of what `plimsoll up` itself installs.
const MANAGER: &str = "plimsoll-up";

async fn install_crds(client: &Client) -> Result<(), Failure> {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in plimsoll_crds::all() {
        api.patch(&crd.name_any(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&crd))
            .await
            .map_err(|e| Failure::caused(format!("failed to install the resource {}", crd.name_any()), e))?;
    }
    Ok(())
}

/// The accelerator classes of the simulated nodes, so that pools can be planned before anything else is applied. A
/// class that is there already (restart, or a person's own) is left alone.
async fn install_classes(client: &Client, groups: &NodeGroups) -> Result<(), Failure> {
    let api: Api<plimsoll_crds::AcceleratorClass> = Api::all(client.clone());
    for mut class in plimsoll_crds::accelerator_manifests() {
        let name = class.name_any();
        if !groups.0.iter().any(|g| g.class.name == name) {
            continue;
        }
        let fail = |e| Failure::caused(format!("failed to install the accelerator class {name}"), e);
        if api.get_opt(&name).await.map_err(fail)?.is_none() {
            // As `kubectl apply` leaves it, so that a later `kubectl apply` of the same class has nothing to warn of.
            if let Ok(json) = serde_json::to_string(&class) {
                class.annotations_mut().insert(LAST_APPLIED.to_owned(), json);
            }
            api.patch(&name, &PatchParams::apply(MANAGER), &Patch::Apply(&class)).await.map_err(fail)?;
        }
    }
    Ok(())
}
