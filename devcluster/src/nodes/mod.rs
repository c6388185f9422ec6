//! Simulated GPU nodes: node objects, a small scheduler and a kubelet for each node.
//!
//! Pods really run, through a [`PodRuntime`]; everything that the API shows of them (phases, conditions, restarts,
//! probes, graceful deletion) follows from what that runtime does. Not simulated: preemption, inter-pod affinity,
//! topology spread, volumes, init containers, exec and gRPC probes, eviction of pods from failed nodes.

mod events;
mod fit;
mod kubelet;
mod loopback;
mod probe;
mod quantity;
mod runtime;
mod scheduler;
mod status;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use fit::{NodeView, Resources, Unschedulable, allocatable, choose, matches_affinity, requests};
pub use loopback::LoopbackIps;
pub use quantity::milli;
pub use runtime::{LogSource, PodExit, PodLogs, PodRuntime, RunningPod, RuntimeError, Stop};

/// Annotation with the real addresses of a pod's container ports, as a JSON object from port to `ip:port`. Present only on
/// pods whose runtime maps ports.
pub const PORTS_ANNOTATION: &str = "devcluster.plimsoll.dev/ports";

/// A node to simulate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Name of the Node object.
    pub name: String,
    /// Labels beside the usual ones (`kubernetes.io/hostname`, `…/os`, `…/arch`, `topology.kubernetes.io/zone`).
    pub labels: BTreeMap<String, String>,
    /// Resources by name, as Kubernetes quantities: `nvidia.com/gpu: 8`, `cpu: 96`, `memory: 1Ti`. `pods` is 110 unless given.
    pub capacity: BTreeMap<String, String>,
    /// Failure domain; no zone label if empty.
    pub zone: String,
}

impl NodeSpec {
    fn architecture(&self) -> &'static str {
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
    }

    fn all_labels(&self) -> BTreeMap<String, String> {
        let mut out: BTreeMap<String, String> = [
            ("kubernetes.io/hostname", self.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", self.architecture()),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
        if !self.zone.is_empty() {
            out.insert("topology.kubernetes.io/zone".into(), self.zone.clone());
        }
        out.extend(self.labels.clone());
        out
    }

    fn all_capacity(&self) -> BTreeMap<String, String> {
        let mut out = self.capacity.clone();
        out.entry("pods".into()).or_insert_with(|| "110".into());
        out
    }
}

/// Timings of the simulation; the defaults are Kubernetes' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Time between heartbeats of a node.
    pub heartbeat: Duration,
    /// Wait before the second restart of a crashing pod; doubles with each further one.
    pub restart_backoff: Duration,
    /// Longest wait between restarts.
    pub restart_backoff_max: Duration,
    /// A pod that ran this long starts over with the backoff.
    pub restart_backoff_reset: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(10),
            restart_backoff: Duration::from_secs(10),
            restart_backoff_max: Duration::from_secs(300),
            restart_backoff_reset: Duration::from_secs(600),
        }
    }
}

impl Options {
    /// The wait after so many failures: doubled for each, up to the limit.
    fn backoff(&self, failures: u32) -> Duration {
        let factor = 2u32.checked_pow(failures).unwrap_or(u32::MAX);
        self.restart_backoff
            .checked_mul(factor)
            .unwrap_or(self.restart_backoff_max)
            .min(self.restart_backoff_max)
    }
}

/// Why a node could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No such node is simulated here.
    #[error("node {0:?} is not simulated here; add it first")]
    Unknown(String),
    /// The name is taken.
    #[error("node {0:?} is simulated already; choose another name")]
    Exists(String),
    /// The simulator has been shut down.
    #[error("the node simulator has stopped; start a new one")]
    Stopped,
    /// The API refused.
    #[error("node {node:?}: {source}")]
    Api {
        /// The node.
        node: String,
        /// What the API said.
        source: Box<kube::Error>,
    },
}

impl NodeError {
    fn api(node: &str, source: kube::Error) -> Self {
        Self::Api { node: node.to_owned(), source: Box::new(source) }
    }
}

/// Starts simulated nodes.
#[derive(Debug, Clone, Copy)]
pub struct NodeSimulator;

impl NodeSimulator {
    /// Starts `nodes` with default timings, on the current Tokio runtime.
    pub fn start(client: Client, nodes: Vec<NodeSpec>, runtime: Arc<dyn PodRuntime>) -> NodeHandle {
        Self::start_with(client, nodes, runtime, Options::default())
    }

    /// Starts `nodes`, on the current Tokio runtime.
    pub fn start_with(
        client: Client,
        nodes: Vec<NodeSpec>,
        runtime: Arc<dyn PodRuntime>,
        options: Options,
    ) -> NodeHandle {
        let logs = PodLogs::default();
        let shared =
            Arc::new(worker::Shared { client: client.clone(), runtime, options, logs: logs.clone() });
        let cancel = CancellationToken::new();
        let (commands, receiver) = mpsc::channel(16);
        let scheduler = tokio::spawn(scheduler::run(client, cancel.clone()));
        let kubelets = tokio::spawn(kubelet::run(shared, nodes, receiver, cancel.clone()));
        NodeHandle { commands, cancel: cancel.drop_guard(), logs, tasks: vec![scheduler, kubelets] }
    }
}

/// Running nodes. Dropping it stops them at once; [`shutdown`](Self::shutdown) waits until their pods have stopped.
#[derive(Debug)]
pub struct NodeHandle {
    commands: mpsc::Sender<kubelet::Command>,
    cancel: tokio_util::sync::DropGuard,
    logs: PodLogs,
    tasks: Vec<JoinHandle<()>>,
}

impl NodeHandle {
    async fn act(&self, action: kubelet::Action) -> Result<(), NodeError> {
        let (done, outcome) = oneshot::channel();
        self.commands.send(kubelet::Command { action, done }).await.map_err(|_| NodeError::Stopped)?;
        outcome.await.map_err(|_| NodeError::Stopped)?
    }

    /// Adds a node.
    ///
    /// # Errors
    /// [`NodeError::Exists`] or [`NodeError::Stopped`].
    pub async fn add_node(&self, spec: NodeSpec) -> Result<(), NodeError> {
        self.act(kubelet::Action::Add(spec)).await
    }

    /// Takes a node away for good: its pods are killed and deleted.
    ///
    /// # Errors
    /// Any [`NodeError`] but `Exists`.
    pub async fn remove_node(&self, name: &str) -> Result<(), NodeError> {
        self.act(kubelet::Action::Remove(name.to_owned())).await
    }

    /// Cuts a node's power: its pods die, heartbeats stop, and the node turns `NotReady` at once (a real cluster takes
    /// 40 s to notice).
    ///
    /// # Errors
    /// Any [`NodeError`] but `Exists`.
    pub async fn fail_node(&self, name: &str) -> Result<(), NodeError> {
        self.act(kubelet::Action::Fail(name.to_owned())).await
    }

    /// Boots a failed node: it turns `Ready`, and the pods still bound to it start again.
    ///
    /// # Errors
    /// Any [`NodeError`] but `Exists`.
    pub async fn recover_node(&self, name: &str) -> Result<(), NodeError> {
        self.act(kubelet::Action::Recover(name.to_owned())).await
    }

    /// The pods' logs.
    pub fn logs(&self) -> PodLogs {
        self.logs.clone()
    }

    /// Stops the nodes and their pods; the API keeps the objects, so that nodes started later take the pods up again.
    pub async fn shutdown(self) {
        drop(self.cancel);
        for task in self.tasks {
            // A panicked task has stopped too.
            let _ = task.await;
        }
    }
}

/// A local copy of a watched collection, by uid.
struct Mirror<K> {
    objects: HashMap<String, K>,
    listing: Option<HashMap<String, K>>,
    synced: bool,
}

impl<K> Default for Mirror<K> {
    fn default() -> Self {
        Self { objects: HashMap::new(), listing: None, synced: false }
    }
}

impl<K: kube::Resource> Mirror<K> {
    fn take(&mut self, event: watcher::Event<K>) {
        let uid = |object: &K| object.uid().unwrap_or_default();
        match event {
            watcher::Event::Apply(object) => {
                self.objects.insert(uid(&object), object);
            }
            watcher::Event::Delete(object) => {
                self.objects.remove(&uid(&object));
            }
            watcher::Event::Init => self.listing = Some(HashMap::new()),
            watcher::Event::InitApply(object) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(uid(&object), object);
                }
            }
            watcher::Event::InitDone => {
                self.objects = self.listing.take().unwrap_or_default();
                self.synced = true;
            }
        }
    }

    fn synced(&self) -> bool {
        self.synced
    }

    fn values(&self) -> impl Iterator<Item = &K> {
        self.objects.values()
    }
}
