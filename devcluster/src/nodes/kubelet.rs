//! Nodes: registration, heartbeats, failure, and a worker for each pod bound to one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::worker::{self, Shared, Signal};
use super::{NodeError, NodeSpec, events, status};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// What the handle asks of the simulator.
pub(super) enum Action {
    Add(NodeSpec),
    Remove(String),
    Fail(String),
    Recover(String),
}

/// An action and where its outcome goes.
pub(super) struct Command {
    pub(super) action: Action,
    pub(super) done: oneshot::Sender<Result<(), NodeError>>,
}

struct Member {
    spec: NodeSpec,
    /// Stops the heartbeat.
    beat: CancellationToken,
    down: bool,
}

struct Worker {
    signal: watch::Sender<Signal>,
    task: JoinHandle<()>,
}

struct Kubelets {
    shared: Arc<Shared>,
    members: BTreeMap<String, Member>,
    pods: HashMap<String, Arc<Pod>>,
    workers: HashMap<String, Worker>,
    /// The uids seen since a watch restarted.
    listing: Option<HashMap<String, Arc<Pod>>>,
}

/// Runs the nodes until cancelled; then stops every pod without telling the API, as a power cut would.
pub(super) async fn run(
    shared: Arc<Shared>,
    nodes: Vec<NodeSpec>,
    mut commands: mpsc::Receiver<Command>,
    cancel: CancellationToken,
) {
    let client = shared.client.clone();
    let mut kubelets = Kubelets {
        shared,
        members: BTreeMap::new(),
        pods: HashMap::new(),
        workers: HashMap::new(),
        listing: None,
    };
    for node in nodes {
        kubelets.join(node);
    }
    let mut pods = watcher(Api::<Pod>::all(client), watcher::Config::default()).default_backoff().boxed();
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            event = pods.try_next() => match event {
                Ok(Some(event)) => kubelets.observe(event),
                Ok(None) => break,
                Err(error) => debug!(%error, "the pod watch failed and is retried"),
            },
            command = commands.recv() => match command {
                Some(command) => {
                    let outcome = kubelets.act(command.action).await;
                    // The asker may have gone; the action stands.
                    let _ = command.done.send(outcome);
                }
                None => break,
            },
        }
    }
    kubelets.power_off().await;
}

impl Kubelets {
    fn join(&mut self, spec: NodeSpec) {
        let beat = CancellationToken::new();
        tokio::spawn(heartbeat(
            self.shared.client.clone(),
            spec.clone(),
            self.shared.options.heartbeat,
            beat.clone(),
        ));
        let name = spec.name.clone();
        self.members.insert(name.clone(), Member { spec, beat, down: false });
        self.start_pods(&name);
    }

    /// Starts workers for the pods already known to be on a node.
    fn start_pods(&mut self, node: &str) {
        let pods: Vec<Arc<Pod>> = self.pods.values().filter(|p| node_of(p) == node).cloned().collect();
        for pod in pods {
            self.drive(pod);
        }
    }

    fn observe(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Apply(pod) => self.apply(Arc::new(pod)),
            watcher::Event::Delete(pod) => self.forget(&pod.uid().unwrap_or_default()),
            watcher::Event::Init => self.listing = Some(HashMap::new()),
            watcher::Event::InitApply(pod) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(pod.uid().unwrap_or_default(), Arc::new(pod));
                }
            }
            watcher::Event::InitDone => {
                let listing = self.listing.take().unwrap_or_default();
                let gone: Vec<String> =
                    self.pods.keys().filter(|uid| !listing.contains_key(*uid)).cloned().collect();
                for uid in gone {
                    self.forget(&uid);
                }
                // Pods that kept running while the API was away are simply told about again.
                for pod in listing.into_values() {
                    self.apply(pod);
                }
            }
        }
    }

    fn apply(&mut self, pod: Arc<Pod>) {
        self.pods.insert(pod.uid().unwrap_or_default(), Arc::clone(&pod));
        self.drive(pod);
    }

    fn drive(&mut self, pod: Arc<Pod>) {
        if self.members.get(node_of(&pod)).is_none_or(|member| member.down) {
            return;
        }
        let uid = pod.uid().unwrap_or_default();
        if let Some(worker) = self.workers.get(&uid)
            && !worker.task.is_finished()
        {
            worker.signal.send_replace(Signal::Run(pod));
            return;
        }
        let (signal, receiver) = watch::channel(Signal::Run(pod));
        let task = tokio::spawn(worker::run(Arc::clone(&self.shared), receiver));
        self.workers.insert(uid, Worker { signal, task });
    }

    fn forget(&mut self, uid: &str) {
        self.pods.remove(uid);
        if let Some(worker) = self.workers.remove(uid) {
            worker.signal.send_replace(Signal::Gone);
        }
    }

    async fn act(&mut self, action: Action) -> Result<(), NodeError> {
        match action {
            Action::Add(spec) => {
                if self.members.contains_key(&spec.name) {
                    return Err(NodeError::Exists(spec.name));
                }
                self.join(spec);
                Ok(())
            }
            Action::Remove(name) => {
                let member = self.members.remove(&name).ok_or_else(|| NodeError::Unknown(name.clone()))?;
                member.beat.cancel();
                self.cut(&name).await;
                self.remove(&name).await.map_err(|e| NodeError::api(&name, e))
            }
            Action::Fail(name) => {
                let member = self.members.get_mut(&name).ok_or_else(|| NodeError::Unknown(name.clone()))?;
                if member.down {
                    return Ok(());
                }
                member.down = true;
                member.beat.cancel();
                self.cut(&name).await;
                info!(node = name, "node fails");
                self.mark_unreachable(&name).await.map_err(|e| NodeError::api(&name, e))
            }
            Action::Recover(name) => {
                let member = self.members.get(&name).ok_or_else(|| NodeError::Unknown(name.clone()))?;
                if !member.down {
                    return Ok(());
                }
                info!(node = name, "node recovers");
                let spec = member.spec.clone();
                let taints = |taints: &mut Vec<Value>| taints.retain(|t| t["key"] != UNREACHABLE);
                self.change_taints(&name, taints).await.map_err(|e| NodeError::api(&name, e))?;
                self.join(spec);
                Ok(())
            }
        }
    }

    /// Stops every pod of a node at once.
    async fn cut(&mut self, node: &str) {
        let uids: Vec<String> =
            self.pods.iter().filter(|(_, pod)| node_of(pod) == node).map(|(uid, _)| uid.clone()).collect();
        let workers: Vec<Worker> = uids.iter().filter_map(|uid| self.workers.remove(uid)).collect();
        stop(workers).await;
    }

    async fn power_off(&mut self) {
        for member in self.members.values() {
            member.beat.cancel();
        }
        stop(self.workers.drain().map(|(_, worker)| worker).collect()).await;
    }

    /// What the node controller does once heartbeats have been missing for long enough.
    async fn mark_unreachable(&self, name: &str) -> Result<(), kube::Error> {
        let client = &self.shared.client;
        let now = status::rfc3339(Timestamp::now());
        let conditions: Vec<Value> = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
            .iter()
            .map(|kind| {
                json!({
                    "type": kind, "status": "Unknown", "reason": "NodeStatusUnknown",
                    "message": "Kubelet stopped posting node status.", "lastTransitionTime": now,
                })
            })
            .collect();
        let nodes: Api<Node> = Api::all(client.clone());
        let patch = json!({"status": {"conditions": conditions}});
        let node = nodes.patch_status(name, &manager("node-controller"), &Patch::Strategic(patch)).await?;
        self.change_taints(name, |taints| {
            taints.retain(|t| t["key"] != UNREACHABLE);
            for effect in ["NoSchedule", "NoExecute"] {
                taints.push(json!({"key": UNREACHABLE, "effect": effect, "timeAdded": now}));
            }
        })
        .await?;
        let message = format!("Node {name} status is now: NodeNotReady");
        events::record(client, &node, "Normal", "NodeNotReady", &message, "node-controller", "").await;
        for pod in self.pods.values().filter(|p| node_of(p) == name) {
            let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [
                {"type": "Ready", "status": "False", "reason": "NodeNotReady", "message": null, "lastTransitionTime": now},
            ]}});
            match api
                .patch_status(&pod.name_any(), &manager("node-controller"), &Patch::Strategic(patch))
                .await
            {
                Ok(_) => {
                    events::record(
                        client,
                        &**pod,
                        "Warning",
                        "NodeNotReady",
                        "Node is not ready",
                        "node-controller",
                        "",
                    )
                    .await;
                }
                Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409 | 422) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn change_taints(
        &self,
        name: &str,
        change: impl FnOnce(&mut Vec<Value>),
    ) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.shared.client.clone());
        let node = nodes.get(name).await?;
        let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
        let mut taints: Vec<Value> = taints.into_iter().flatten().map(|t| json!(t)).collect();
        change(&mut taints);
        let patch = json!({"spec": {"taints": taints}});
        nodes.patch(name, &manager("node-controller"), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Takes a node and its pods out of the API.
    async fn remove(&mut self, name: &str) -> Result<(), kube::Error> {
        let client = &self.shared.client;
        let leases: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
        let nodes: Api<Node> = Api::all(client.clone());
        gone_is_fine(nodes.delete(name, &DeleteParams::default()).await)?;
        gone_is_fine(leases.delete(name, &DeleteParams::default()).await)?;
        for pod in self.pods.values().filter(|p| node_of(p) == name) {
            let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            gone_is_fine(api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await)?;
        }
        Ok(())
    }
}

/// Signals workers to stop without a word and waits, within reason, until their runtimes have let go.
async fn stop(workers: Vec<Worker>) {
    for worker in &workers {
        worker.signal.send_replace(Signal::NodeDown);
    }
    let all = futures::future::join_all(workers.into_iter().map(|worker| worker.task));
    if timeout(Duration::from_secs(5), all).await.is_err() {
        debug!("some pods have not stopped within 5 s of a power cut");
    }
}

fn gone_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(error)) if error.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

fn manager(name: &str) -> PatchParams {
    PatchParams { field_manager: Some(name.to_owned()), ..PatchParams::default() }
}

/// Registers a node and renews its lease until cancelled. A node that vanished from the API registers again.
async fn heartbeat(client: Client, spec: NodeSpec, period: Duration, cancel: CancellationToken) {
    let beat = async {
        let mut registered = false;
        let mut delay = Duration::from_millis(100);
        loop {
            let outcome = match registered {
                true => renew(&client, &spec).await,
                false => register(&client, &spec).await,
            };
            let wait = match outcome {
                Ok(()) => {
                    registered = true;
                    delay = Duration::from_millis(100);
                    period
                }
                Err(error) => {
                    debug!(node = spec.name, %error, "heartbeat failed");
                    registered = false;
                    delay = (delay * 2).min(period);
                    delay
                }
            };
            sleep(wait).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = beat => {}
    }
}

async fn register(client: &Client, spec: &NodeSpec) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let labels = spec.all_labels();
    let node = match nodes.get_opt(&spec.name).await? {
        Some(_) => {
            let patch = json!({"metadata": {"labels": labels}});
            nodes.patch(&spec.name, &manager("kubelet"), &Patch::Merge(patch)).await?
        }
        None => {
            let mut node = Node::default();
            node.metadata.name = Some(spec.name.clone());
            node.metadata.labels = Some(labels);
            let params = PostParams { field_manager: Some("kubelet".into()), ..PostParams::default() };
            let node = nodes.create(&params, &node).await?;
            info!(node = spec.name, "registered");
            node
        }
    };
    let patch = json!({"status": node_status(spec, &node, Timestamp::now())});
    nodes.patch_status(&spec.name, &manager("kubelet"), &Patch::Strategic(patch)).await?;
    renew(client, spec).await
}

async fn renew(client: &Client, spec: &NodeSpec) -> Result<(), kube::Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    let patch = json!({"spec": {"holderIdentity": spec.name, "renewTime": now}});
    match leases.patch(&spec.name, &manager("kubelet"), &Patch::Merge(&patch)).await {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(error)) if error.code == 404 => {}
        Err(error) => return Err(error),
    }
    // The first heartbeat, or the first since the API lost its data. A node that is gone has to register.
    let node = Api::<Node>::all(client.clone()).get(&spec.name).await?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEASE_NAMESPACE}});
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let params = PatchParams::apply("kubelet").force();
    namespaces.patch(LEASE_NAMESPACE, &params, &Patch::Apply(&namespace)).await?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": spec.name, "ownerReferences": [{
            "apiVersion": "v1", "kind": "Node", "name": spec.name, "uid": node.uid(),
        }]},
        "spec": {"holderIdentity": spec.name, "leaseDurationSeconds": 40, "renewTime": now},
    });
    leases.patch(&spec.name, &params, &Patch::Apply(&lease)).await?;
    Ok(())
}

fn node_status(spec: &NodeSpec, node: &Node, now: Timestamp) -> Value {
    let before = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        let same = before.iter().find(|c| c.type_ == kind && c.status == status);
        let since = same.and_then(|c| c.last_transition_time.as_ref()).map_or(now, |t| t.0);
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": status::rfc3339(now), "lastTransitionTime": status::rfc3339(since),
        })
    };
    let capacity = spec.all_capacity();
    json!({
        "capacity": capacity,
        "allocatable": capacity,
        "addresses": [
            {"type": "InternalIP", "address": "127.0.0.1"},
            {"type": "Hostname", "address": spec.name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "architecture": spec.architecture(), "operatingSystem": "linux", "osImage": "Simulated node",
            "kernelVersion": "simulated", "containerRuntimeVersion": "simulated://1.0", "kubeletVersion": "v1.35.0",
            "kubeProxyVersion": "", "machineID": spec.name, "systemUUID": spec.name, "bootID": spec.name,
        },
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
    })
}
