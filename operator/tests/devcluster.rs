//! The operator against the local Kubernetes API: schemas, defaults, server-side apply, finalizers and owner references are
//! the real ones there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;
#[path = "common/groups.rs"]
mod groups;
#[path = "common/script.rs"]
mod script;

use std::sync::Arc;
use std::time::Duration;

use common::assignment;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, EvictParams, GroupVersionKind, ListParams, Patch,
    PatchParams, PostParams,
};
use kube::{Client, ResourceExt};
use plimsoll_crds::{FleetPlan, ModelPool};
use plimsoll_devcluster::{DevCluster, DevClusterConfig};
use plimsoll_fleet::ReplicaPhase;
use plimsoll_operator::inference_pool::{InferencePools, Picker};
use plimsoll_operator::{Observations, Operator, OperatorConfig};
use script::Script;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const CHAT: &str = "
apiVersion: plimsoll.dev/v1alpha1
kind: ModelPool
metadata: {name: chat}
spec:
  model: {name: llama-3.1-70b, preset: llama-3.1-70b}
  slo: {ttft: {p95: 800ms}, tpot: {p95: 50ms}}
  demand: {rps: 4, input: {mean: 1200, p95: 4000}, output: {mean: 250, p95: 800}}
";

struct Rig {
    cluster: DevCluster,
    client: Client,
    script: Script,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

async fn apply<K>(api: &Api<K>, object: &Value) -> Result<K, kube::Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let name = object["metadata"]["name"].as_str().unwrap();
    api.patch(name, &PatchParams::apply("person"), &Patch::Apply(object)).await
}

impl Rig {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(configure: impl FnOnce(&mut OperatorConfig)) -> Self {
        let cluster = DevCluster::start(DevClusterConfig::default()).await.unwrap();
        let client = cluster.client();
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        for crd in plimsoll_crds::all() {
            apply(&crds, &serde_json::to_value(&crd).unwrap()).await.unwrap();
        }
        let classes: Api<plimsoll_crds::AcceleratorClass> = Api::all(client.clone());
        let class = json!({"apiVersion": "plimsoll.dev/v1alpha1", "kind": "AcceleratorClass",
                           "metadata": {"name": "h100"}, "spec": {"preset": "h100"}});
        apply(&classes, &class).await.unwrap();
        let nodes: Api<Node> = Api::all(client.clone());
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-1",
                          "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}});
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let status = json!({"status": {"allocatable": {"nvidia.com/gpu": "8"}, "capacity": {"nvidia.com/gpu": "8"},
                            "conditions": [{"type": "Ready", "status": "True"}]}});
        nodes.patch_status("gpu-1", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        let script = Script::new();
        let stop = CancellationToken::new();
        let mut config = OperatorConfig {
            debounce: Duration::from_millis(10),
            resync: Duration::from_millis(200),
            ..OperatorConfig::default()
        };
        configure(&mut config);
        let running = tokio::spawn(Operator::run_with(client.clone(), script.clone(), config, stop.clone()));
        Self { cluster, client, script, stop, running }
    }

    fn pools(&self) -> Api<ModelPool> {
        Api::default_namespaced(self.client.clone())
    }

    fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    async fn pod_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .pods()
            .list(&ListParams::default())
            .await
            .unwrap()
            .iter()
            .map(ResourceExt::name_any)
            .collect();
        names.sort();
        names
    }

    async fn plan(&self, number: u64, replicas: &[&str]) {
        let pool = self.pools().get("chat").await.unwrap();
        let replicas = replicas.iter().map(|id| assignment(id, "gpu-1")).collect();
        self.script.plan.send_replace(Some(Arc::new(common::plan(number, &pool, replicas))));
    }

    async fn serve_all(&self) {
        for name in self.pod_names().await {
            let status = json!({"status": {"phase": "Running", "podIP": "127.0.0.1",
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": common::at(0)}]}});
            self.pods().patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        }
    }

    async fn summary(&self) -> Option<plimsoll_crds::model_pool::Summary> {
        self.pools().get("chat").await.unwrap().status?.summary
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    for _ in 0..1500 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pools_whole_life() {
    let rig = Rig::start().await;
    let chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    apply(&rig.pools(), &chat).await.unwrap();
    until("the scheduler hears of the pool", || async {
        rig.script.last().is_some_and(|s| s.pools.len() == 1 && s.nodes.len() == 1)
    })
    .await;
    rig.plan(1, &["chat-1", "chat-2"]).await;
    until("two pods", || async { rig.pod_names().await == ["chat-1", "chat-2"] }).await;
    rig.serve_all().await;
    until("both serve", || async { rig.summary().await.is_some_and(|s| s.ready == "2/2") }).await;
    let summary = rig.summary().await.unwrap();
    assert_eq!((summary.shape.as_str(), summary.ttft.as_str()), ("2× fp8 TP2 H100", "~412/800 ms"));

    // What the operator writes does not fight with what people apply.
    let again = apply(&rig.pools(), &chat).await.unwrap();
    assert_eq!(again.metadata.generation, Some(1));

    let versions = || async { rig.pools().get("chat").await.unwrap().resource_version() };
    let settled = versions().await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(versions().await, settled, "an unchanged status is not written again");

    rig.plan(2, &["chat-1"]).await;
    until("chat-2 drains", || async {
        rig.pods().get("chat-2").await.is_ok_and(|p| p.annotations().contains_key("plimsoll.dev/draining"))
    })
    .await;
    let drained = Observations { drained: ["chat-2".parse().unwrap()].into(), ..Observations::default() };
    rig.script.observations.send_replace(Arc::new(drained));
    until("chat-2 is gone", || async { rig.pod_names().await == ["chat-1"] }).await;
    let events: Api<Event> = Api::default_namespaced(rig.client.clone());
    let about = ListParams::default().fields("involvedObject.name=chat,involvedObject.kind=ModelPool");
    until("both scalings are explained", || async {
        events.list(&about).await.unwrap().iter().filter(|e| e.reason.as_deref() == Some("Scaled")).count()
            == 2
    })
    .await;
    let plans: Api<FleetPlan> = Api::all(rig.client.clone());
    until("the plan is published", || async { plans.get("current").await.is_ok_and(|p| p.spec.number == 2) })
        .await;

    rig.pools().delete("chat", &DeleteParams::default()).await.unwrap();
    let drained = Observations { drained: ["chat-1".parse().unwrap()].into(), ..Observations::default() };
    rig.script.observations.send_replace(Arc::new(drained));
    until("the pool and its pods are gone", || async {
        rig.pools().get_opt("chat").await.unwrap().is_none() && rig.pod_names().await.is_empty()
    })
    .await;
    rig.stop.cancel();
    rig.running.await.unwrap();
    rig.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_image_makes_replicas_outdated_and_a_label_does_not() {
    let rig = Rig::start().await;
    let mut chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    apply(&rig.pools(), &chat).await.unwrap();
    until("the pool exists", || async { rig.pools().get_opt("chat").await.unwrap().is_some() }).await;
    rig.plan(1, &["chat-1", "chat-2"]).await;
    until("two pods", || async { rig.pod_names().await == ["chat-1", "chat-2"] }).await;
    rig.serve_all().await;
    let outdated = || {
        let last = rig.script.last();
        last.map_or(0, |s| s.replicas.iter().filter(|r| r.outdated).count())
    };
    let progressing = || async {
        let status = rig.pools().get("chat").await.ok()?.status?;
        plimsoll_crds::conditions::find(&status.conditions, "Progressing").cloned()
    };
    chat["metadata"]["labels"] = json!({"team": "a"});
    chat["spec"]["scaling"] = json!({"min": 2});
    apply(&rig.pools(), &chat).await.unwrap();
    let seen =
        |generation| rig.script.last().is_some_and(|s| s.pools.iter().any(|p| p.generation == generation));
    until("the label and the bounds are seen", || async { seen(2) }).await;
    assert_eq!(outdated(), 0, "neither reaches the engine");

    chat["spec"]["engine"] = json!({"image": "vllm/vllm-openai:v9"});
    apply(&rig.pools(), &chat).await.unwrap();
    until("both are outdated", || async { seen(3) && outdated() == 2 }).await;
    // The scheduler names a successor for one of them.
    rig.plan(2, &["chat-2", "chat-3"]).await;
    until("the successor is created from the new image", || async {
        let pod = rig.pods().get_opt("chat-3").await.unwrap();
        pod.and_then(|p| p.spec)
            .is_some_and(|s| s.containers[0].image.as_deref() == Some("vllm/vllm-openai:v9"))
    })
    .await;
    until("it is said", || async {
        progressing().await.is_some_and(|c| {
            c.reason == "RollingOut" && c.message == "rolling out: 0/2 replaced (image changed)"
        })
    })
    .await;
    let crash = json!({"status": {"phase": "Pending", "containerStatuses": [{
        "name": "engine", "ready": false, "restartCount": 0, "image": "", "imageID": "",
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "v9: not found"}}}]}});
    rig.pods().patch_status("chat-3", &PatchParams::default(), &Patch::Merge(crash)).await.unwrap();
    until("it is stuck and says on what", || async {
        progressing().await.is_some_and(|c| {
            c.status == "False"
                && c.reason == "RolloutStuck"
                && c.message.contains("chat-3: ImagePullBackOff: v9")
        })
    })
    .await;
    assert_eq!(rig.pod_names().await, ["chat-1", "chat-2", "chat-3"]);
    let draining =
        rig.pods().get("chat-1").await.unwrap().annotations().contains_key("plimsoll.dev/draining");
    assert!(!draining, "the old one goes on serving");
    let events: Api<Event> = Api::default_namespaced(rig.client.clone());
    let about = ListParams::default().fields("involvedObject.name=chat,involvedObject.kind=ModelPool");
    until("there is an Event", || async {
        events.list(&about).await.unwrap().iter().any(|e| e.reason.as_deref() == Some("RolloutStuck"))
    })
    .await;
    rig.stop.cancel();
    rig.running.await.unwrap();
    rig.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_nodes_and_evictions_reach_the_scheduler_and_the_status() {
    let rig = Rig::start().await;
    let chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    apply(&rig.pools(), &chat).await.unwrap();
    until("the pool exists", || async { rig.pools().get_opt("chat").await.unwrap().is_some() }).await;
    rig.plan(1, &["chat-1", "chat-2"]).await;
    until("two pods", || async { rig.pod_names().await == ["chat-1", "chat-2"] }).await;
    // The cluster's scheduler binds them.
    for name in ["chat-1", "chat-2"] {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                             "target": {"apiVersion": "v1", "kind": "Node", "name": "gpu-1"}});
        let request = http::Request::post(format!("/api/v1/namespaces/default/pods/{name}/binding"))
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&binding).unwrap())
            .unwrap();
        rig.client.request::<Value>(request).await.unwrap();
    }
    rig.serve_all().await;
    until("both serve", || async { rig.summary().await.is_some_and(|s| s.ready == "2/2") }).await;

    let nodes: Api<Node> = Api::all(rig.client.clone());
    let node = || rig.script.last().and_then(|s| s.nodes.first().cloned());
    let cordon = json!({"spec": {"unschedulable": true}});
    nodes.patch("gpu-1", &PatchParams::default(), &Patch::Merge(cordon)).await.unwrap();
    until("the cordon is seen", || async { node().is_some_and(|n| !n.schedulable && n.ready) }).await;
    assert_eq!(rig.summary().await.unwrap().ready, "2/2", "what runs goes on");

    let conditions = |ready: &str, xid: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}, {"type": "XIDErrors", "status": xid}]}});
    let set = |conditions: Value| {
        let nodes = nodes.clone();
        async move {
            nodes.patch_status("gpu-1", &PatchParams::default(), &Patch::Merge(conditions)).await.unwrap();
        }
    };
    let message = || async {
        let status = rig.pools().get("chat").await.ok()?.status?;
        plimsoll_crds::conditions::find(&status.conditions, "Ready").map(|c| c.message.clone())
    };
    set(conditions("True", "True")).await;
    until("the fault is seen", || async { node().is_some_and(|n| !n.ready && n.fault == "XIDErrors") }).await;
    until("and said", || async {
        message().await.is_some_and(|m| m.contains("0 of 2") && m.contains("gpu-1 reports XIDErrors"))
    })
    .await;
    set(conditions("False", "False")).await;
    until("the loss is said", || async { message().await.is_some_and(|m| m.contains("gpu-1 is not ready")) })
        .await;
    // The only node is not heard of: what serves is taken to go on.
    set(conditions("Unknown", "False")).await;
    until("nothing new is put there", || async {
        node().is_some_and(|n| n.ready && n.taints.iter().any(|t| t.contains("unreachable")))
    })
    .await;
    until("all is taken to be well", || async { rig.summary().await.is_some_and(|s| s.ready == "2/2") })
        .await;
    set(conditions("True", "False")).await;
    until("all is well again", || async { rig.summary().await.is_some_and(|s| s.ready == "2/2") }).await;
    assert_eq!(rig.pod_names().await, ["chat-1", "chat-2"], "the operator itself ended nothing");

    let budgets: Api<PodDisruptionBudget> = Api::default_namespaced(rig.client.clone());
    until("the pool has a disruption budget", || async {
        budgets.get_opt("chat-engines").await.unwrap().is_some()
    })
    .await;
    // An eviction. No kubelet ends the pod, as on a node that is dead.
    rig.pods().evict("chat-2", &EvictParams::default()).await.unwrap();
    // One after another: the client asks again and again while it is told to wait.
    let pods = rig.pods();
    let params = EvictParams::default();
    let second = tokio::time::timeout(Duration::from_secs(2), pods.evict("chat-1", &params)).await;
    assert!(!matches!(second, Ok(Ok(_))), "{second:?}");
    assert!(rig.pods().get("chat-1").await.unwrap().metadata.deletion_timestamp.is_none());
    let phase = |id: &'static str| {
        rig.script.last().and_then(|s| s.replicas.iter().find(|r| r.id.as_str() == id).map(|r| r.phase))
    };
    until("it counts as draining", || async { phase("chat-2") == Some(ReplicaPhase::Draining) }).await;
    // Its successor does not wait for it.
    rig.plan(2, &["chat-1", "chat-3"]).await;
    until("the successor is created", || async { rig.pod_names().await == ["chat-1", "chat-2", "chat-3"] })
        .await;
    // What the garbage collector of pods does once the node is given up.
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    rig.pods().delete("chat-2", &now).await.unwrap();
    until("it is gone", || async { rig.pod_names().await == ["chat-1", "chat-3"] }).await;

    let allocatable = json!({"status": {"allocatable": {"nvidia.com/gpu": "6"}}});
    set(allocatable).await;
    until("fewer accelerators are seen", || async { node().is_some_and(|n| n.allocatable_gpus == 6) }).await;
    nodes.delete("gpu-1", &DeleteParams::default()).await.unwrap();
    until("the node is gone", || async { rig.script.last().is_some_and(|s| s.nodes.is_empty()) }).await;
    rig.stop.cancel();
    rig.running.await.unwrap();
    rig.cluster.shutdown().await;
}

/// The parts of the InferencePool API that matter here; `picker` says whether an endpoint picker is required, as before 1.5.
fn inference_pool_api(picker: bool) -> Value {
    let port = json!({"type": "object", "required": ["number"], "properties": {
        "number": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535}}});
    let labels = json!({"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}});
    let mut required = vec!["selector", "targetPorts"];
    required.extend(picker.then_some("endpointPickerRef"));
    let spec = json!({"type": "object", "required": required, "properties": {
        "selector": {"type": "object", "required": ["matchLabels"], "properties": {"matchLabels": labels}},
        "targetPorts": {"type": "array", "minItems": 1, "maxItems": 8, "items": port,
                        "x-kubernetes-list-type": "atomic"},
        "endpointPickerRef": {"type": "object", "required": ["name"], "properties": {
            "group": {"type": "string", "default": ""},
            "kind": {"type": "string", "default": "Service"},
            "name": {"type": "string", "minLength": 1},
            "port": port,
            "failureMode": {"type": "string", "default": "FailClose", "enum": ["FailOpen", "FailClose"]}}}}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "inferencepools.inference.networking.k8s.io",
                     "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"}},
        "spec": {
            "group": "inference.networking.k8s.io", "scope": "Namespaced",
            "names": {"kind": "InferencePool", "listKind": "InferencePoolList", "plural": "inferencepools",
                      "singular": "inferencepool"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {
                    "spec": spec, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn inference_pools_are_made_where_their_api_is_and_go_with_their_pool() {
    let rig = Rig::start_with(|config| {
        config.inference_pools = Some(InferencePools {
            picker: Some(Picker { service: "{pool}-epp".to_owned(), port: 9002 }),
            recheck: Duration::from_millis(100),
        });
    })
    .await;
    let chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    apply(&rig.pools(), &chat).await.unwrap();
    until("the pool is accepted", || async {
        rig.pools().get("chat").await.is_ok_and(|p| p.status.is_some_and(|s| !s.conditions.is_empty()))
    })
    .await;
    // The API is installed only now.
    let crds: Api<CustomResourceDefinition> = Api::all(rig.client.clone());
    apply(&crds, &serde_json::from_value(inference_pool_api(true)).unwrap()).await.unwrap();
    let kind =
        ApiResource::from_gvk(&GroupVersionKind::gvk("inference.networking.k8s.io", "v1", "InferencePool"));
    let made: Api<DynamicObject> = Api::default_namespaced_with(rig.client.clone(), &kind);
    let spec = || async { made.get("chat").await.ok().map(|o| o.data["spec"].clone()) };
    until("it is made", || async { spec().await.is_some() }).await;
    assert_eq!(
        spec().await.unwrap(),
        json!({
            "selector": {"matchLabels": {"app.kubernetes.io/managed-by": "plimsoll", "plimsoll.dev/pool": "chat"}},
            "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {"group": "", "kind": "Service", "name": "chat-epp", "port": {"number": 9002},
                                  "failureMode": "FailOpen"},
        })
    );
    // Its selector finds the replicas.
    rig.plan(1, &["chat-1"]).await;
    let selected =
        ListParams::default().labels("app.kubernetes.io/managed-by=plimsoll,plimsoll.dev/pool=chat");
    until("a replica is selected", || async { rig.pods().list(&selected).await.unwrap().items.len() == 1 })
        .await;

    let settled = made.get("chat").await.unwrap().resource_version();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(made.get("chat").await.unwrap().resource_version(), settled, "nothing is written twice");
    made.delete("chat", &DeleteParams::default()).await.unwrap();
    until("it is made again", || async { spec().await.is_some() }).await;

    // Another's is left alone.
    let foreign = json!({"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
        "metadata": {"name": "theirs"}, "spec": {"selector": {"matchLabels": {"app": "x"}},
        "targetPorts": [{"number": 1}], "endpointPickerRef": {"name": "x"}}});
    apply(&made, &foreign).await.unwrap();
    let mut theirs = chat.clone();
    theirs["metadata"]["name"] = json!("theirs");
    theirs["spec"]["model"]["name"] = json!("another");
    apply(&rig.pools(), &theirs).await.unwrap();
    let events: Api<Event> = Api::default_namespaced(rig.client.clone());
    let about = ListParams::default().fields("involvedObject.name=theirs,involvedObject.kind=ModelPool");
    until("its owner is told", || async {
        events.list(&about).await.unwrap().iter().any(|e| e.reason.as_deref() == Some("InferencePoolTaken"))
    })
    .await;
    assert_eq!(made.get("theirs").await.unwrap().data["spec"]["targetPorts"], json!([{"number": 1}]));

    rig.pools().delete("chat", &DeleteParams::default()).await.unwrap();
    let drained = Observations { drained: ["chat-1".parse().unwrap()].into(), ..Observations::default() };
    rig.script.observations.send_replace(Arc::new(drained));
    until("it goes with its pool", || async {
        rig.pools().get_opt("chat").await.unwrap().is_none() && made.get_opt("chat").await.unwrap().is_none()
    })
    .await;
    rig.stop.cancel();
    rig.running.await.unwrap();
    rig.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inference_pool_that_is_refused_says_what_to_do() {
    let rig = Rig::start_with(|config| {
        config.inference_pools =
            Some(InferencePools { recheck: Duration::from_millis(100), ..InferencePools::default() });
    })
    .await;
    let crds: Api<CustomResourceDefinition> = Api::all(rig.client.clone());
    apply(&crds, &serde_json::from_value(inference_pool_api(true)).unwrap()).await.unwrap();
    let chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    apply(&rig.pools(), &chat).await.unwrap();
    let events: Api<Event> = Api::default_namespaced(rig.client.clone());
    let about = ListParams::default().fields("involvedObject.name=chat,involvedObject.kind=ModelPool");
    until("the refusal is told", || async {
        events.list(&about).await.unwrap().iter().any(|e| {
            e.reason.as_deref() == Some("InferencePoolRefused")
                && e.message.as_deref().is_some_and(|m| m.contains("name its Service"))
        })
    })
    .await;
    // The API's newer release does without.
    apply(&crds, &serde_json::from_value(inference_pool_api(false)).unwrap()).await.unwrap();
    let kind =
        ApiResource::from_gvk(&GroupVersionKind::gvk("inference.networking.k8s.io", "v1", "InferencePool"));
    let made: Api<DynamicObject> = Api::default_namespaced_with(rig.client.clone(), &kind);
    until("it is made", || async { made.get_opt("chat").await.unwrap().is_some() }).await;
    rig.stop.cancel();
    rig.running.await.unwrap();
    rig.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_schema_refuses_and_what_the_operator_does() {
    let rig = Rig::start().await;
    let mut wrong: Value = serde_saphyr::from_str(CHAT).unwrap();
    wrong["spec"]["slo"]["tpot"]["p95"] = json!("0ms");
    let refused = apply(&rig.pools(), &wrong).await.unwrap_err().to_string();
    assert!(
        refused.contains("spec.slo.tpot") && refused.contains("p95 must be between 1ms and 10s (got 0ms)"),
        "{refused}"
    );

    let mut chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    apply(&rig.pools(), &chat).await.unwrap();
    let accepted = |name: &'static str| {
        let pools = rig.pools();
        async move {
            let status = pools.get(name).await.ok()?.status?;
            plimsoll_crds::conditions::find(&status.conditions, "Accepted").cloned()
        }
    };
    until("chat is accepted", || async { accepted("chat").await.is_some_and(|c| c.status == "True") }).await;
    chat["metadata"]["name"] = json!("copy");
    apply(&rig.pools(), &chat).await.unwrap();
    until("the copy is told", || async {
        accepted("copy").await.is_some_and(|c| c.reason == "NameTaken" && c.message.contains("default/chat"))
    })
    .await;
    // No rule of the schema knows the presets; the operator does.
    chat["metadata"]["name"] = json!("unknown");
    chat["spec"]["model"] = json!({"name": "x", "preset": "lama-3.1-70b"});
    apply(&rig.pools(), &chat).await.unwrap();
    until("the unknown preset is named", || async {
        accepted("unknown").await.is_some_and(|c| c.message.contains("llama-3.1-70b"))
    })
    .await;
    let model = json!({"spec": {"model": {"name": "other"}}});
    let refused = rig
        .pools()
        .patch("chat", &PatchParams::default(), &Patch::Merge(model))
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("model is immutable"), "{refused}");
    rig.stop.cancel();
    rig.running.await.unwrap();
    rig.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_queues_and_caches_are_accepted_and_what_the_cluster_lacks_is_done_without() {
    let rig = Rig::start().await;
    let classes: Api<plimsoll_crds::AcceleratorClass> = Api::all(rig.client.clone());
    // This cluster does not serve resource.k8s.io.
    let class = json!({"apiVersion": "plimsoll.dev/v1alpha1", "kind": "AcceleratorClass", "metadata": {"name": "h100"},
                       "spec": {"preset": "h100", "dra": {"deviceClassName": "gpu.nvidia.com", "attributes": {"type": "gpu"}}}});
    apply(&classes, &class).await.unwrap();
    let mut chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    chat["spec"]["placement"] = json!({"queueName": "gpus"});
    for (i, cache) in [
        json!({"claim": "weights"}),
        json!({"hostPath": "/var/lib/weights"}),
        json!({"storageClassName": "nvme", "size": "200Gi"}),
        json!({"size": "200Gi"}),
    ]
    .into_iter()
    .enumerate()
    {
        chat["spec"]["engine"] = json!({"cache": cache});
        let pools = rig.pools();
        let params = PatchParams::apply("person").force();
        pools.patch("chat", &params, &Patch::Apply(&chat)).await.unwrap();
        let name = format!("chat-{i}");
        rig.plan(i as u64 + 1, &[&name]).await;
        until("the pod is there", || async { rig.pods().get_opt(&name).await.unwrap().is_some() }).await;
        let pod = rig.pods().get(&name).await.unwrap();
        assert_eq!(pod.labels()["kueue.x-k8s.io/queue-name"], "gpus");
        let limits = pod.spec.unwrap().containers[0].resources.clone().unwrap().limits.unwrap();
        assert_eq!(limits["nvidia.com/gpu"].0, "2");
    }
    chat["spec"]["engine"] = json!({"cache": {"claim": "weights", "hostPath": "/var/lib/weights"}});
    let params = PatchParams::apply("person").force();
    let refused = rig.pools().patch("chat", &params, &Patch::Apply(&chat)).await.unwrap_err();
    assert!(refused.to_string().contains("at most one of claim, hostPath"), "{refused}");
    until("the class says what is missing", || async {
        let status = classes.get("h100").await.unwrap().status.unwrap_or_default();
        plimsoll_crds::conditions::find(&status.conditions, "ClaimsDevices")
            .is_some_and(|c| c.status == "False" && c.reason == "DeviceClassMissing")
    })
    .await;
    rig.stop.cancel();
    rig.running.await.unwrap();
    rig.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn autoscalers_move_the_floor_through_the_scale_subresource() {
    let rig = Rig::start().await;
    let mut chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    chat["spec"]["scaling"] = json!({"min": 1, "max": 4});
    apply(&rig.pools(), &chat).await.unwrap();
    rig.plan(1, &["chat-1", "chat-2"]).await;
    until("two pods", || async { rig.pod_names().await == ["chat-1", "chat-2"] }).await;
    rig.serve_all().await;
    let other = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"plimsoll.dev/pool": "chat"}},
                       "spec": {"containers": [{"name": "a", "image": "a"}]}});
    rig.pods().create(&PostParams::default(), &serde_json::from_value(other).unwrap()).await.unwrap();
    until("both are counted", || async {
        rig.pools().get_scale("chat").await.unwrap().status.is_some_and(|s| s.replicas == 2)
    })
    .await;
    // What an HPA reads: the floor, how many there are, and a selector of the engines' pods alone.
    let scale = rig.pools().get_scale("chat").await.unwrap();
    assert_eq!(scale.spec.and_then(|s| s.replicas), Some(1));
    let selector = scale.status.and_then(|s| s.selector).unwrap();
    let selected = rig.pods().list(&ListParams::default().labels(&selector)).await.unwrap();
    let mut names: Vec<String> = selected.iter().map(ResourceExt::name_any).collect();
    names.sort();
    assert_eq!(names, ["chat-1", "chat-2"]);
    // What it writes.
    let to = |n: i32| Patch::Merge(json!({"spec": {"replicas": n}}));
    let hpa = PatchParams { field_manager: Some("hpa".to_owned()), ..PatchParams::default() };
    rig.pools().patch_scale("chat", &hpa, &to(3)).await.unwrap();
    let pool = rig.pools().get("chat").await.unwrap();
    assert_eq!((pool.spec.scaling.min, pool.spec.replicas, pool.metadata.generation), (3, None, Some(2)));
    until("the scheduler hears of the floor", || async {
        rig.script.last().is_some_and(|s| s.pools.iter().any(|p| p.scaling.min_replicas == 3))
    })
    .await;
    let refused = rig.pools().patch_scale("chat", &hpa, &to(9)).await.unwrap_err();
    assert!(refused.to_string().contains("max must be at least min"), "{refused}");
    rig.stop.cancel();
    rig.running.await.unwrap();
    rig.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployments_pods_are_adopted_without_a_write_and_such_a_pool_is_deleted_at_once() {
    let mut rig = Rig::start().await;
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "vllm-a", "labels": {"app": "vllm"}},
        "spec": {"nodeName": "gpu-1", "containers": [{"name": "vllm", "image": "vllm/vllm-openai:v0.11.0",
            "args": ["--model", "$(MODEL)", "--tensor-parallel-size", "4"],
            "env": [{"name": "MODEL", "value": "meta-llama/Llama-3.1-70B-Instruct-FP8"},
                    {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}}],
            "resources": {"limits": {"nvidia.com/gpu": "4"}}}]}});
    rig.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    rig.serve_all().await;
    let before = rig.pods().get("vllm-a").await.unwrap().resource_version();
    let mut chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    chat["spec"]["adopt"] = json!({"selector": {"matchLabels": {"app": "vllm"}}});
    let refused = apply(&rig.pools(), &chat).await.unwrap_err();
    assert!(refused.to_string().contains("adopt only reads: set mode: Advise"), "{refused}");
    chat["spec"]["mode"] = json!("Advise");
    apply(&rig.pools(), &chat).await.unwrap();
    let adopted = || rig.script.last().map(|s| s.adopted.clone()).unwrap_or_default();
    until("it is told of", || async { adopted().len() == 1 && adopted()[0].ready }).await;
    let shape = adopted()[0].shape.as_ref().map(ToString::to_string);
    assert_eq!(shape.as_deref(), Some("fp8 TP4 H100"), "{:?}", adopted());
    rig.plan(1, &["chat-1"]).await;
    until("it is advised", || async {
        rig.summary().await.is_some_and(|s| s.why.starts_with("advice only: "))
    })
    .await;
    let status = rig.pools().get("chat").await.unwrap().status.unwrap();
    assert_eq!(status.adopted.map(|a| (a.replicas, a.ready_replicas, a.accelerators)), Some((1, 1, 4)));
    assert_eq!(rig.pod_names().await, ["vllm-a"], "nothing is started");
    assert_eq!(rig.pods().get("vllm-a").await.unwrap().resource_version(), before, "nothing is written");
    // There is nothing to drain, so nothing waits for the operator, not even when there is none.
    rig.stop.cancel();
    (&mut rig.running).await.unwrap();
    rig.pools().delete("chat", &DeleteParams::default()).await.unwrap();
    assert!(rig.pools().get_opt("chat").await.unwrap().is_none());
    assert_eq!(rig.pod_names().await, ["vllm-a"]);
    rig.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_no_operator_is_left_to_drain_can_be_released() {
    let mut rig = Rig::start().await;
    let chat: Value = serde_saphyr::from_str(CHAT).unwrap();
    apply(&rig.pools(), &chat).await.unwrap();
    until("it is held", || async { !rig.pools().get("chat").await.unwrap().finalizers().is_empty() }).await;
    rig.stop.cancel();
    (&mut rig.running).await.unwrap();
    rig.pools().delete("chat", &DeleteParams::default()).await.unwrap();
    assert!(rig.pools().get_opt("chat").await.unwrap().is_some(), "it waits for an operator");
    let elsewhere = plimsoll_operator::release::release(&rig.client, Some("kube-system")).await.unwrap();
    assert_eq!(elsewhere, Vec::<String>::new());
    assert_eq!(plimsoll_operator::release::release(&rig.client, None).await.unwrap(), ["default/chat"]);
    assert!(rig.pools().get_opt("chat").await.unwrap().is_none());
    rig.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inference_objectives_are_read_where_the_cluster_has_them() {
    let cluster = DevCluster::start(DevClusterConfig::default()).await.unwrap();
    let client = cluster.client();
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}});
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "inferenceobjectives.llm-d.ai"},
        "spec": {"group": "llm-d.ai", "scope": "Namespaced",
                 "names": {"kind": "InferenceObjective", "plural": "inferenceobjectives", "singular": "inferenceobjective"},
                 "versions": [{"name": "v1alpha2", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    let look = async || {
        let found = Arc::default();
        let stop = CancellationToken::new();
        let (task, news) = (Arc::new(tokio::sync::Notify::new()), Arc::clone(&found));
        let follow = plimsoll_operator::objectives::follow(client.clone(), news, task.clone(), stop.clone());
        let running = tokio::spawn(follow);
        let rang = tokio::time::timeout(Duration::from_secs(3), task.notified()).await.is_ok();
        stop.cancel();
        running.await.unwrap();
        let found: Vec<plimsoll_fleet::RequestPriority> = found.lock().clone();
        (rang, found)
    };
    assert_eq!(look().await, (false, Vec::new()), "without the API there is nothing, and no wait for it");
    apply(&crds, &crd).await.unwrap();
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("llm-d.ai", "v1alpha2", "InferenceObjective"));
    let objectives: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &kind);
    let batch = json!({"apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceObjective", "metadata": {"name": "batch"},
                       "spec": {"priority": -1, "poolRef": {"name": "chat"}}});
    until("it is created", || async { apply(&objectives, &batch).await.is_ok() }).await;
    let (rang, found) = look().await;
    assert!(rang);
    let found: Vec<_> =
        found.iter().map(|p| (p.pool.to_string(), p.objective.as_str(), p.priority)).collect();
    assert_eq!(found, [("default/chat".to_owned(), "batch", -1)]);
    cluster.shutdown().await;
}
