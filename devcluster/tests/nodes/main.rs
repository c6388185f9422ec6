//! Simulated nodes against an API: pods are placed, run, probed, restarted, drained and survive failures.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use plimsoll_devcluster::nodes::{
    NodeHandle, NodeSimulator, NodeSpec, Options, PodExit, PodRuntime, RunningPod, RuntimeError,
};
use plimsoll_devcluster::{DevCluster, DevClusterConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

/// A runtime whose pods are small HTTP servers that tests can break.
#[derive(Default)]
struct Toy {
    starts: AtomicUsize,
    stops: Mutex<Vec<(String, Duration)>>,
    requests: Arc<Mutex<Vec<String>>>,
    exits: Mutex<BTreeMap<String, oneshot::Sender<PodExit>>>,
    healthy: Mutex<BTreeMap<String, watch::Sender<bool>>>,
    refuse: AtomicUsize,
}

struct ToyRuntime(Arc<Toy>);

impl PodRuntime for ToyRuntime {
    fn start<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<RunningPod, RuntimeError>> {
        async move {
            let toy = &self.0;
            if toy.refuse.load(Ordering::SeqCst) > 0 {
                toy.refuse.fetch_sub(1, Ordering::SeqCst);
                return Err(RuntimeError { reason: "ErrImagePull".into(), message: "no such image".into() });
            }
            toy.starts.fetch_add(1, Ordering::SeqCst);
            let name = pod.metadata.name.clone().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (healthy, health) = watch::channel(true);
            let requests = Arc::clone(&toy.requests);
            let server = tokio::spawn(serve(listener, health, requests));
            let (exit, exited) = oneshot::channel();
            toy.exits.lock().insert(name.clone(), exit);
            toy.healthy.lock().insert(name.clone(), healthy);
            let abort = server.abort_handle();
            let state = Arc::clone(toy);
            let log = format!("hello from {name}\n");
            let exit = async move {
                match exited.await {
                    Ok(exit) => exit,
                    Err(_) => std::future::pending().await,
                }
            };
            let stop = Box::new(move |grace: Duration| {
                async move {
                    state.stops.lock().push((name, grace));
                    abort.abort();
                }
                .boxed()
            });
            Ok(RunningPod::new(exit.boxed(), stop)
                .with_port(8000, address)
                .with_logs(Arc::new(move || log.clone())))
        }
        .boxed()
    }
}

async fn serve(listener: TcpListener, health: watch::Receiver<bool>, requests: Arc<Mutex<Vec<String>>>) {
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 2048];
        let read = socket.read(&mut buffer).await.unwrap_or(0);
        let line = String::from_utf8_lossy(&buffer[..read]).lines().next().unwrap_or_default().to_owned();
        requests.lock().push(line);
        let code = if *health.borrow() { "200 OK" } else { "503 Service Unavailable" };
        let _ = socket
            .write_all(
                format!("HTTP/1.1 {code}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes(),
            )
            .await;
    }
}

struct World {
    cluster: Option<DevCluster>,
    client: kube::Client,
    toy: Arc<Toy>,
    handle: Option<NodeHandle>,
}

fn spec(name: &str, gpus: u32) -> NodeSpec {
    let capacity = [("nvidia.com/gpu", gpus.to_string()), ("cpu", "8".into()), ("memory", "64Gi".into())];
    NodeSpec {
        name: name.into(),
        labels: [("gpu".to_owned(), "h100".to_owned())].into(),
        capacity: capacity.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        zone: "zone-a".into(),
    }
}

fn options() -> Options {
    Options {
        heartbeat: Duration::from_millis(200),
        restart_backoff: Duration::from_millis(300),
        restart_backoff_max: Duration::from_secs(1),
        ..Options::default()
    }
}

impl World {
    async fn start(nodes: Vec<NodeSpec>) -> Self {
        Self::start_on(nodes, DevClusterConfig::default()).await
    }

    async fn start_on(nodes: Vec<NodeSpec>, config: DevClusterConfig) -> Self {
        let cluster = DevCluster::start(config).await.unwrap();
        let client = cluster.client();
        let toy = Arc::new(Toy::default());
        let mut world = Self { cluster: Some(cluster), client, toy, handle: None };
        world.boot(nodes);
        world
    }

    fn boot(&mut self, nodes: Vec<NodeSpec>) {
        let runtime = Arc::new(ToyRuntime(Arc::clone(&self.toy)));
        self.handle = Some(NodeSimulator::start_with(self.client.clone(), nodes, runtime, options()));
    }

    fn handle(&self) -> &NodeHandle {
        self.handle.as_ref().unwrap()
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create(&self, name: &str, extra: Value) {
        let mut pod = json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 5, "containers": [{
            "name": "main", "image": "toy", "ports": [{"containerPort": 8000}],
            "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}});
        json_patch::merge(&mut pod, &extra);
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap();
    }

    /// Waits until the pod satisfies a condition; fails loudly after a generous while.
    async fn pod(&self, name: &str, what: &str, test: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..600 {
            if let Some(pod) = self.pods().get_opt(name).await.unwrap() {
                last = json!(pod);
                if test(&last) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{name} never became {what}: {last:#}");
    }

    async fn gone(&self, name: &str) {
        for _ in 0..600 {
            if self.pods().get_opt(name).await.unwrap().is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{name} was never deleted");
    }

    async fn node(&self, name: &str, what: &str, test: impl Fn(&Value) -> bool) -> Value {
        let nodes: Api<Node> = Api::all(self.client.clone());
        for _ in 0..600 {
            if let Some(node) = nodes.get_opt(name).await.unwrap().map(|n| json!(n))
                && test(&node)
            {
                return node;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{name} never became {what}");
    }

    fn exit(&self, name: &str, code: i32) {
        let exit = self.toy.exits.lock().remove(name).unwrap();
        exit.send(PodExit { code, reason: None, message: None }).unwrap();
    }

    async fn reasons(&self) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let events = events.list(&ListParams::default()).await.unwrap();
        events.into_iter().filter_map(|e| e.reason).collect()
    }
}

fn condition(object: &Value, kind: &str, status: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == status)
}

fn ready(pod: &Value) -> bool {
    condition(pod, "Ready", "True")
}

#[tokio::test]
async fn nodes_register_and_pods_run_and_drain() {
    let world = World::start(vec![spec("n1", 2)]).await;
    let node = world.node("n1", "ready", |n| condition(n, "Ready", "True")).await;
    assert_eq!(node["status"]["allocatable"]["nvidia.com/gpu"], "2");
    assert_eq!(node["metadata"]["labels"]["topology.kubernetes.io/zone"], "zone-a");
    world.create("a", json!({"spec": {"nodeSelector": {"gpu": "h100"}}})).await;
    let pod = world.pod("a", "ready", ready).await;
    assert_eq!(
        (&pod["spec"]["nodeName"], &pod["status"]["phase"], &pod["status"]["podIP"]),
        (&json!("n1"), &json!("Running"), &json!("127.0.0.1"))
    );
    assert!(
        pod["metadata"]["annotations"]["devcluster.plimsoll.dev/ports"]
            .as_str()
            .unwrap()
            .contains("\"8000\"")
    );
    assert_eq!(world.handle().logs().read("default", "a").unwrap(), "hello from a\n");
    world.pods().delete("a", &DeleteParams::default()).await.unwrap();
    world.gone("a").await;
    let stops = world.toy.stops.lock().clone();
    assert_eq!(stops.len(), 1);
    assert!(stops[0].1 <= Duration::from_secs(5) && stops[0].1 > Duration::from_secs(1), "{stops:?}");
    let reasons = world.reasons().await;
    for reason in ["Scheduled", "Started", "Killing"] {
        assert!(reasons.iter().any(|r| r == reason), "{reasons:?}");
    }
}

#[tokio::test]
async fn what_does_not_fit_waits_and_says_why() {
    let world = World::start(vec![spec("n1", 1)]).await;
    world.node("n1", "ready", |n| condition(n, "Ready", "True")).await;
    world.create("a", json!({})).await;
    world.pod("a", "ready", ready).await;
    world.create("b", json!({})).await;
    let pending = world.pod("b", "refused", |p| condition(p, "PodScheduled", "False")).await;
    let message = pending["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(message.starts_with("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."), "{message}");
    world.pods().delete("a", &DeleteParams::default()).await.unwrap();
    world.pod("b", "ready once a's GPU is free", ready).await;
}

#[tokio::test]
async fn cordoned_nodes_take_nothing_and_added_ones_do() {
    let world = World::start(vec![spec("n1", 1)]).await;
    world.node("n1", "ready", |n| condition(n, "Ready", "True")).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
    nodes.patch("n1", &PatchParams::default(), &cordon).await.unwrap();
    world.create("a", json!({})).await;
    world
        .pod("a", "refused", |p| {
            p["status"]["conditions"][0]["message"]
                .as_str()
                .is_some_and(|m| m.contains("1 node(s) were unschedulable"))
        })
        .await;
    world.handle().add_node(spec("n2", 1)).await.unwrap();
    assert!(world.handle().add_node(spec("n2", 1)).await.is_err());
    let pod = world.pod("a", "ready", ready).await;
    assert_eq!(pod["spec"]["nodeName"], "n2");
}

#[tokio::test]
async fn readiness_probes_use_real_http() {
    let world = World::start(vec![spec("n1", 1)]).await;
    let probe =
        json!({"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1, "failureThreshold": 1});
    let containers = json!([{"name": "main", "image": "toy", "ports": [{"containerPort": 8000}], "readinessProbe": probe,
        "lifecycle": {"preStop": {"httpGet": {"path": "/drain", "port": 8000}}}}]);
    world.create("a", json!({"spec": {"containers": containers}})).await;
    world.pod("a", "ready", ready).await;
    world.toy.healthy.lock()["a"].send_replace(false);
    let pod = world.pod("a", "unready", |p| condition(p, "Ready", "False")).await;
    assert_eq!(pod["status"]["phase"], "Running");
    world.toy.healthy.lock()["a"].send_replace(true);
    world.pod("a", "ready again", ready).await;
    world.pods().delete("a", &DeleteParams::default()).await.unwrap();
    world.gone("a").await;
    let requests = world.toy.requests.lock().clone();
    assert!(requests.iter().any(|r| r.starts_with("GET /health ")), "{requests:?}");
    assert!(requests.iter().any(|r| r.starts_with("GET /drain ")), "{requests:?}");
}

#[tokio::test]
async fn crashes_restart_with_backoff() {
    let world = World::start(vec![spec("n1", 1)]).await;
    world.create("a", json!({})).await;
    world.pod("a", "ready", ready).await;
    world.exit("a", 1);
    world
        .pod("a", "restarted at once", |p| {
            p["status"]["containerStatuses"][0]["restartCount"] == 1 && ready(p)
        })
        .await;
    world.exit("a", 2);
    let waiting = world
        .pod("a", "backing off", |p| {
            p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    assert_eq!(waiting["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 2);
    world
        .pod("a", "restarted again", |p| p["status"]["containerStatuses"][0]["restartCount"] == 2 && ready(p))
        .await;
    assert!(world.reasons().await.iter().any(|r| r == "BackOff"));
}

#[tokio::test]
async fn restart_policy_never_ends_and_failed_starts_retry() {
    let world = World::start(vec![spec("n1", 2)]).await;
    world.create("job", json!({"spec": {"restartPolicy": "Never"}})).await;
    world.pod("job", "ready", ready).await;
    world.exit("job", 0);
    world.pod("job", "done", |p| p["status"]["phase"] == "Succeeded").await;
    world.pods().delete("job", &DeleteParams::default()).await.unwrap();
    world.gone("job").await;
    world.toy.refuse.store(1, Ordering::SeqCst);
    world.create("late", json!({})).await;
    world
        .pod("late", "refused", |p| {
            p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImagePull"
        })
        .await;
    world.pod("late", "ready", ready).await;
}

#[tokio::test]
async fn failed_nodes_kill_their_pods_and_recover() {
    let world = World::start(vec![spec("n1", 1)]).await;
    world.create("a", json!({})).await;
    world.pod("a", "ready", ready).await;
    world.handle().fail_node("n1").await.unwrap();
    world.node("n1", "unknown", |n| condition(n, "Ready", "Unknown")).await;
    world.pod("a", "unready", |p| condition(p, "Ready", "False")).await;
    assert_eq!(world.toy.stops.lock().last().unwrap().1, Duration::ZERO);
    // Nobody is there to confirm a deletion.
    world.create("b", json!({})).await;
    let refused = world.pod("b", "refused", |p| condition(p, "PodScheduled", "False")).await;
    assert!(
        refused["status"]["conditions"][0]["message"]
            .as_str()
            .unwrap()
            .contains("node.kubernetes.io/unreachable")
    );
    world.handle().recover_node("n1").await.unwrap();
    world
        .node("n1", "ready", |n| {
            condition(n, "Ready", "True") && n["spec"]["taints"].as_array().is_none_or(Vec::is_empty)
        })
        .await;
    let pod = world.pod("a", "restarted", ready).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 1);
    world.handle().remove_node("n1").await.unwrap();
    world.gone("a").await;
    assert!(world.handle().fail_node("n1").await.is_err());
}

#[tokio::test]
async fn pods_survive_an_absent_api_and_a_restarted_simulator() {
    let dir = tempfile::tempdir().unwrap();
    let config = DevClusterConfig { data_dir: Some(dir.path().into()), ..DevClusterConfig::default() };
    let mut world = World::start_on(vec![spec("n1", 1)], config.clone()).await;
    world.create("a", json!({})).await;
    world.pod("a", "ready", ready).await;
    // The API is away for a while and comes back where it was.
    let cluster = world.cluster.take().unwrap();
    let listen = cluster.addr();
    cluster.shutdown().await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    world.cluster = Some(DevCluster::start(DevClusterConfig { listen, ..config }).await.unwrap());
    world.node("n1", "ready", |n| condition(n, "Ready", "True")).await;
    assert_eq!(world.toy.starts.load(Ordering::SeqCst), 1, "the pod kept running");
    world.handle.take().unwrap().shutdown().await;
    assert_eq!(world.toy.stops.lock().len(), 1);
    world.boot(vec![spec("n1", 1)]);
    world
        .pod("a", "restarted", |p| p["status"]["containerStatuses"][0]["restartCount"] == 1 && ready(p))
        .await;
    assert_eq!(world.toy.starts.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn forced_deletion_does_not_wait() {
    let world = World::start(vec![spec("n1", 1)]).await;
    world.create("a", json!({})).await;
    world.pod("a", "ready", ready).await;
    world.pods().delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
    for _ in 0..400 {
        if !world.toy.stops.lock().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!(world.toy.stops.lock()[0].1, Duration::ZERO);
    world.create("b", json!({})).await;
    world.pod("b", "ready", ready).await;
}
