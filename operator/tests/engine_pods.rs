//! What an engine's pod asks of a real cluster: accelerators, taints, queues, autoscalers, weights.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::*;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use plimsoll_crds::AcceleratorClass;
use plimsoll_fleet::Role;
use plimsoll_operator::OperatorConfig;
use plimsoll_operator::build::{Action, queue};
use plimsoll_operator::devices::DynamicResources;
use plimsoll_operator::disruption::{self, Step};
use plimsoll_operator::fault::known_conditions;
use plimsoll_operator::snapshot;
use plimsoll_operator::world::World;
use rstest::rstest;
use serde_json::{Value, json};

const CHAT: &str = "{model: {name: llama-3.1-70b, preset: llama-3.1-70b}, slo: {ttft: {p95: 800ms}}}";

/// A class that replaces the fixture's h100: as the preset, with `more`.
fn class_with(more: Value) -> AcceleratorClass {
    let mut class = serde_json::to_value(class("h100")).unwrap();
    class["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(class).unwrap()
}

fn world_with(spec: &str, class: Value) -> World {
    let mut world = world(vec![pool("chat", spec)]);
    world.accelerators = vec![class_with(class)];
    world
}

/// The one pod that is made of a plan for one replica; on no node if `node` is empty.
fn built(world: &World, node: &str) -> Value {
    let mut one = assignment("chat-1", if node.is_empty() { "gpu-1" } else { node });
    if node.is_empty() {
        one.nodes.clear();
    }
    let prepared = decide(world, Some(&plan(7, &world.pools[0], vec![one])), &[], at(100));
    assert!(prepared.problems.is_empty(), "{:?}", prepared.problems);
    serde_json::to_value(&pods(&prepared)[0]).unwrap()
}

/// The engine's container of a replica that does one part of each request, on an engine of a kind.
fn part(kind: &str, role: Role) -> Value {
    let spec = format!(
        "{{model: {{name: llama-3.1-70b, preset: llama-3.1-70b}}, slo: {{ttft: {{p95: 800ms}}}}, engine: {{kind: {kind}}}}}"
    );
    let world = world(vec![pool("chat", &spec)]);
    let mut one = assignment("chat-1", "gpu-1");
    one.shape.role = role;
    let prepared = decide(&world, Some(&plan(7, &world.pools[0], vec![one])), &[], at(100));
    assert!(prepared.problems.is_empty(), "{:?}", prepared.problems);
    let pod = serde_json::to_value(&pods(&prepared)[0]).unwrap();
    assert_eq!(pod["metadata"]["labels"]["plimsoll.dev/role"], json!(role.to_string()));
    pod["spec"]["containers"][0].clone()
}

#[test]
fn engines_that_prefill_or_decode_know_how_caches_get_from_one_to_the_other() {
    let argument = |engine: &Value, name: &str| -> Option<String> {
        let args: Vec<&str> = engine["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let at = args.iter().position(|a| *a == name)?;
        Some((*args.get(at + 1)?).to_owned())
    };
    let ports = |engine: &Value| -> Vec<i64> {
        engine["ports"].as_array().unwrap().iter().filter_map(|p| p["containerPort"].as_i64()).collect()
    };
    for role in [Role::Prefill, Role::Decode] {
        let vllm = part("vllm", role);
        let connector: Value =
            serde_json::from_str(&argument(&vllm, "--kv-transfer-config").unwrap()).unwrap();
        assert_eq!(connector, json!({"kv_connector": "NixlConnector", "kv_role": "kv_both"}));
        let env = vllm["env"].as_array().unwrap();
        let own = env.iter().find(|v| v["name"] == "VLLM_NIXL_SIDE_CHANNEL_HOST").unwrap();
        assert_eq!(own["valueFrom"]["fieldRef"]["fieldPath"], "status.podIP");
        assert!(env.contains(&json!({"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": "5600"})));
        assert_eq!(ports(&vllm), [8000, 5600]);
        let sglang = part("sglang", role);
        assert_eq!(argument(&sglang, "--disaggregation-mode"), Some(role.to_string()));
        assert_eq!(argument(&sglang, "--disaggregation-transfer-backend").as_deref(), Some("nixl"));
        let meets = role == Role::Prefill;
        let port = argument(&sglang, "--disaggregation-bootstrap-port");
        assert_eq!(port.as_deref(), meets.then_some("8998"));
        assert_eq!(ports(&sglang), if meets { vec![8000, 8998] } else { vec![8000] });
    }
    let whole = part("vllm", Role::Mixed);
    assert_eq!((argument(&whole, "--kv-transfer-config"), ports(&whole)), (None, vec![8000]));
}

#[rstest]
#[case::nvidia(json!({}), "nvidia.com/gpu")]
#[case::amd(json!({"vendor": "amd"}), "amd.com/gpu")]
#[case::intel_i915(json!({"vendor": "intel"}), "gpu.intel.com/i915")]
#[case::intel_xe(json!({"vendor": "intel", "resource": "gpu.intel.com/xe"}), "gpu.intel.com/xe")]
#[case::mig(json!({"resource": "nvidia.com/mig-3g.40gb"}), "nvidia.com/mig-3g.40gb")]
fn accelerators_are_requested_and_counted_by_the_class_resource(
    #[case] class: Value,
    #[case] resource: &str,
) {
    let mut world = world_with(CHAT, class);
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": "gpu-1", "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}},
        "spec": {"taints": [{"key": resource, "value": "present", "effect": "NoSchedule"}]},
        "status": {"allocatable": {resource: "8"}, "conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .unwrap();
    world.nodes = vec![Arc::new(node)];
    let pod = built(&world, "gpu-1");
    let resources = &pod["spec"]["containers"][0]["resources"];
    assert_eq!(*resources, json!({"limits": {resource: "2"}, "requests": {resource: "2"}}));
    assert_eq!(
        pod["spec"]["tolerations"],
        json!([{"key": resource, "operator": "Exists", "effect": "NoSchedule"}])
    );
    let foreign = json!({
        "metadata": {"name": "other", "namespace": "x", "uid": "other"}, "status": {"phase": "Running"},
        "spec": {"nodeName": "gpu-1", "containers": [{"name": "c", "resources": {"limits": {resource: "3"}}}]},
    });
    world.foreign_pods = vec![Arc::new(serde_json::from_value(foreign).unwrap())];
    let nodes = snapshot::snapshot(&world, &validated(&world), &[], &known_conditions()).nodes;
    assert_eq!((nodes[0].allocatable_gpus, nodes[0].foreign_gpus), (8, 3));
    assert_eq!(nodes[0].taints, [""; 0], "what engines tolerate keeps nobody away");
}

#[test]
fn a_class_names_taints_of_its_nodes_that_engines_tolerate() {
    let toleration = json!({"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"});
    let mut world = world_with(CHAT, json!({"tolerations": [toleration]}));
    let mut node = serde_json::to_value(&*world.nodes[0]).unwrap();
    node["spec"]["taints"] = json!([{"key": "sku", "value": "gpu", "effect": "NoSchedule"},
                                    {"key": "team", "value": "a", "effect": "NoSchedule"}]);
    world.nodes = vec![Arc::new(serde_json::from_value(node).unwrap())];
    let pod = built(&world, "gpu-1");
    assert_eq!(pod["spec"]["tolerations"][0], toleration);
    let nodes = snapshot::snapshot(&world, &validated(&world), &[], &known_conditions()).nodes;
    assert_eq!(nodes[0].taints, ["team=a:NoSchedule"], "others still repel");
}

fn devices() -> Value {
    json!({"dra": {"deviceClassName": "gpu.nvidia.com", "attributes": {"type": "gpu"},
                   "selectors": ["device.capacity['gpu.nvidia.com'].memory.isGreaterThan(quantity('70Gi'))"]}})
}

fn slice(node: &str, generation: i64, devices: Value) -> Arc<ResourceSlice> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": format!("{node}-{generation}")},
            "spec": {"driver": "gpu.nvidia.com", "nodeName": node, "devices": devices,
                     "pool": {"name": node, "generation": generation, "resourceSliceCount": 1}},
        }))
        .unwrap(),
    )
}

fn gpu(name: &str) -> Value {
    json!({"name": name, "attributes": {"type": {"string": "gpu"}}})
}

fn claim(pod_uid: &str, device: &str) -> Arc<ResourceClaim> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": format!("c-{device}"), "namespace": "x"}, "spec": {},
            "status": {"reservedFor": [{"resource": "pods", "name": "p", "uid": pod_uid}],
                       "allocation": {"devices": {"results": [{"request": "accelerators",
                           "driver": "gpu.nvidia.com", "pool": "gpu-1", "device": device}]}}},
        }))
        .unwrap(),
    )
}

/// The node gpu-1 publishes three usable GPUs, one tainted, and a MIG slice.
fn dynamic() -> DynamicResources {
    let mut tainted = gpu("gpu-3");
    tainted["taints"] = json!([{"key": "unhealthy", "effect": "NoSchedule"}]);
    let mig = json!({"name": "gpu-0-mig-1", "attributes": {"type": {"string": "mig"}}});
    let now = json!([gpu("gpu-0"), gpu("gpu-1"), gpu("gpu-2"), tainted, mig]);
    DynamicResources {
        classes: ["gpu.nvidia.com".to_owned()].into(),
        slices: vec![slice("gpu-1", 2, now), slice("gpu-1", 1, json!([gpu("gpu-7")]))],
        claims: vec![claim("a-stranger", "gpu-1")],
    }
}

#[test]
fn where_the_cluster_allocates_devices_replicas_claim_them() {
    let mut world = world_with(CHAT, devices());
    world.dynamic = dynamic();
    let one = plan(7, &world.pools[0], vec![assignment("chat-1", "gpu-1"), assignment("chat-2", "gpu-1")]);
    let prepared = decide(&world, Some(&one), &[], at(100));
    let templates: Vec<_> = prepared
        .actions
        .iter()
        .filter_map(|a| match a {
            Action::CreatePod { claim_template, .. } => claim_template.clone(),
            _ => None,
        })
        .collect();
    assert_eq!(templates.len(), 2);
    assert_eq!(templates[0], templates[1], "replicas that claim alike share a template");
    let template = serde_json::to_value(&*templates[0]).unwrap();
    assert_eq!(template["metadata"]["ownerReferences"][0]["uid"], "uid-chat", "it goes with its pool");
    assert_eq!(
        template["spec"]["spec"]["devices"]["requests"],
        json!([{"name": "accelerators", "exactly": {
        "deviceClassName": "gpu.nvidia.com", "allocationMode": "ExactCount", "count": 2,
        "selectors": [
            {"cel": {"expression": "\"type\" in device.attributes[\"gpu.nvidia.com\"] && device.attributes[\"gpu.nvidia.com\"][\"type\"] == \"gpu\""}},
            {"cel": {"expression": "device.capacity['gpu.nvidia.com'].memory.isGreaterThan(quantity('70Gi'))"}},
        ]}}])
    );
    let pod = serde_json::to_value(&pods(&prepared)[0]).unwrap();
    assert_eq!(
        pod["spec"]["resourceClaims"],
        json!([{"name": "accelerators", "resourceClaimTemplateName": template["metadata"]["name"]}])
    );
    let resources = &pod["spec"]["containers"][0]["resources"];
    assert_eq!(*resources, json!({"claims": [{"name": "accelerators"}]}), "and no extended resource");
    // Another claim, another template: a claim's spec never changes.
    let mut other = devices();
    other["dra"]["attributes"] = json!({"type": "gpu", "productName": "NVIDIA H100 80GB HBM3"});
    let mut changed = world_with(CHAT, other);
    changed.dynamic = DynamicResources { slices: Vec::new(), ..dynamic() };
    let unplaced = built(&changed, "");
    let name = &unplaced["spec"]["resourceClaims"][0]["resourceClaimTemplateName"];
    assert!(name.is_string() && *name != template["metadata"]["name"], "{name}");
}

#[test]
fn devices_of_the_class_count_as_the_nodes_accelerators() {
    let mut world = world_with(CHAT, devices());
    world.dynamic = dynamic();
    let seen = |world: &World| {
        let (replicas, _) = snapshot::replicas(world);
        let nodes = snapshot::snapshot(world, &validated(world), &replicas, &known_conditions()).nodes;
        (nodes[0].allocatable_gpus, nodes[0].foreign_gpus)
    };
    assert_eq!(seen(&world), (3, 1), "neither tainted, nor of another kind, nor of an older generation");
    // What our own replicas hold is theirs: the planner counts it by their shapes.
    let ours: k8s_openapi::api::core::v1::Pod = serde_json::from_value(built(&world, "gpu-1")).unwrap();
    world.pods = vec![started(&ours, true)];
    world.dynamic.claims.push(claim("pod-chat-1", "gpu-2"));
    assert_eq!(seen(&world), (3, 1));
}

#[test]
fn without_its_device_class_or_devices_the_extended_resource_counts() {
    let mut world = world_with(CHAT, devices());
    let resources =
        |world: &World, node: &str| built(world, node)["spec"]["containers"][0]["resources"].clone();
    let gpus = json!({"limits": {"nvidia.com/gpu": "2"}, "requests": {"nvidia.com/gpu": "2"}});
    assert_eq!(resources(&world, "gpu-1"), gpus);
    let status = |world: &World| {
        let validated = validated(world);
        let snapshot = snapshot::snapshot(world, &validated, &[], &known_conditions());
        let judged = &validated.accelerators[0];
        let all = plimsoll_operator::status::cluster::accelerator(judged, &snapshot, &world.dynamic, at(0));
        let found = all.conditions.into_iter().find(|c| c.type_ == "ClaimsDevices").unwrap();
        (found.status, found.message)
    };
    let (is, why) = status(&world);
    assert!(is == "False" && why.contains("request nvidia.com/gpu until"), "{why}");
    // The DeviceClass is there, and this node still has the device plugin.
    world.dynamic = DynamicResources { slices: Vec::new(), ..dynamic() };
    assert_eq!(resources(&world, "gpu-1"), gpus);
    assert_eq!(resources(&world, ""), json!({"claims": [{"name": "accelerators"}]}), "on new nodes");
    assert_eq!(status(&world).0, "True");
}

#[rstest]
#[case::named("placement: {queueName: gpus}", json!({}))]
#[case::inherited("mode: Enforce", json!({"kueue.x-k8s.io/queue-name": "gpus"}))]
fn a_pod_of_a_queue_waits_for_admission_and_says_so(#[case] more: &str, #[case] labels: Value) {
    let mut world = world(vec![pool("chat", &CHAT.replace("slo:", &format!("{more}, slo:")))]);
    world.pools[0].metadata.labels = Some(serde_json::from_value(labels).unwrap());
    let pod = built(&world, "gpu-1");
    assert_eq!(pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], "gpus");
    // What Kueue's webhook and the API server make of it.
    let mut gated = pod.clone();
    gated["metadata"]["uid"] = json!("u");
    gated["metadata"]["creationTimestamp"] = json!(at(20));
    gated["metadata"]["labels"]["kueue.x-k8s.io/managed"] = json!("true");
    gated["spec"]["schedulingGates"] = json!([{"name": "kueue.x-k8s.io/admission"}]);
    gated["status"] = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates"}]});
    world.pods = vec![Arc::new(serde_json::from_value(gated).unwrap())];
    let (replicas, _) = snapshot::replicas(&world);
    let status = &replicas[0].status;
    assert_eq!((status.phase, status.gated), (plimsoll_fleet::ReplicaPhase::Pending, true));
    assert_eq!(status.message, "waits for admission by Kueue queue gpus");
    let same = plan(7, &world.pools[0], vec![assignment("chat-1", "gpu-1")]);
    assert_eq!(decide(&world, Some(&same), &[], at(100_000)).actions, [], "not made again");
}

#[test]
fn a_group_of_pods_is_admitted_together() {
    let pool = pool("chat", &CHAT.replace("slo:", "placement: {queueName: gpus}, slo:"));
    let (labels, annotations) = queue::metadata(&pool, "chat-1", 4);
    assert_eq!(labels["kueue.x-k8s.io/pod-group-name"], "chat-1");
    assert_eq!(annotations["kueue.x-k8s.io/pod-group-total-count"], "4");
    assert_eq!(queue::metadata(&chat(), "chat-1", 4), Default::default(), "without a queue nothing");
}

#[test]
fn autoscalers_leave_a_replica_alone() {
    let annotations = built(&world(vec![chat()]), "gpu-1")["metadata"]["annotations"].clone();
    assert_eq!(annotations["karpenter.sh/do-not-disrupt"], "true");
    assert_eq!(annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"], "false");
}

/// The volume mounted at a path, and whether the engine may write to it.
fn mounted(pod: &Value, path: &str) -> Option<(Value, bool)> {
    let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array()?;
    let mount = mounts.iter().find(|m| m["mountPath"] == path)?;
    let volumes = pod["spec"]["volumes"].as_array()?;
    let volume = volumes.iter().find(|v| v["name"] == mount["name"])?;
    Some((volume.clone(), mount["readOnly"] != true))
}

fn cached(cache: &str) -> Value {
    let spec = CHAT.replace("slo:", &format!("engine: {{cache: {cache}}}, slo:"));
    built(&world(vec![pool("chat", &spec)]), "gpu-1")
}

fn hf_home(pod: &Value) -> &Value {
    let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
    &env.iter().find(|v| v["name"] == "HF_HOME").unwrap()["value"]
}

#[test]
fn weights_are_cached_where_the_pool_says() {
    let plain = built(&world(vec![chat()]), "gpu-1");
    let home = |pod: &Value| mounted(pod, "/cache").unwrap();
    assert_eq!(home(&plain), (json!({"name": "cache", "emptyDir": {}}), true));
    assert_eq!(hf_home(&plain), "/cache/huggingface");
    assert_eq!(home(&cached("{size: 200Gi}")).0["emptyDir"], json!({"sizeLimit": "200Gi"}));
    let own = cached("{storageClassName: nvme, size: 200Gi}");
    assert_eq!(
        home(&own).0["ephemeral"]["volumeClaimTemplate"]["spec"],
        json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "nvme", "resources": {"requests": {"storage": "200Gi"}}})
    );
    // What replicas share are downloads, which are locked; each keeps a home of its own.
    for (cache, volume) in [
        ("{claim: weights}", json!({"persistentVolumeClaim": {"claimName": "weights"}})),
        ("{hostPath: /mnt/w}", json!({"hostPath": {"path": "/mnt/w", "type": "Directory"}})),
    ] {
        let pod = cached(cache);
        let (mut shared, writable) = mounted(&pod, "/shared-cache").unwrap();
        shared.as_object_mut().unwrap().remove("name");
        assert_eq!((shared, writable), (volume, true));
        assert_eq!(hf_home(&pod), "/shared-cache/huggingface");
        assert_eq!(home(&pod).0["emptyDir"], json!({}));
    }
}

#[test]
fn engines_that_load_adapters_see_the_nodes_cache_and_the_volumes_that_hold_some() {
    let adapter = |name: &str, source: &str| {
        let spec = plimsoll_crds::LoraAdapterSpec {
            base_pool: "chat".into(),
            source: source.into(),
            rank: 8,
            ..Default::default()
        };
        let mut adapter = plimsoll_crds::LoraAdapter::new(name, spec);
        adapter.metadata.namespace = Some("default".into());
        adapter
    };
    let build = |kind: &str, adapters: Vec<plimsoll_crds::LoraAdapter>, cache: Option<&str>| {
        let spec = CHAT.replace("slo:", &format!("engine: {{kind: {kind}}}, slo:"));
        let mut world = world(vec![pool("chat", &spec)]);
        world.adapters = adapters;
        let config = OperatorConfig { adapter_cache: cache.map(str::to_owned), ..OperatorConfig::default() };
        let plan = plan(7, &world.pools[0], vec![assignment("chat-1", "gpu-1")]);
        let prepared = decide_as(&config, &world, Some(&plan), &[], at(100), false);
        serde_json::to_value(&pods(&prepared)[0]).unwrap()
    };
    let all =
        || vec![adapter("a", "hf://acme/a"), adapter("b", "pvc://shelf/b"), adapter("c", "pvc://shelf/c")];
    let pod = build("vllm", all(), Some("/var/lib/adapters"));
    let (cache, writable) = mounted(&pod, "/adapters").unwrap();
    assert_eq!(cache["hostPath"], json!({"path": "/var/lib/adapters", "type": "Directory"}));
    assert!(!writable);
    let (claim, writable) = mounted(&pod, "/adapter-claims/shelf").unwrap();
    assert_eq!(claim["persistentVolumeClaim"], json!({"claimName": "shelf", "readOnly": true}));
    assert!(!writable);
    // Nothing that is not needed.
    assert!(mounted(&build("vllm", all(), None), "/adapters").is_none());
    assert!(mounted(&build("vllm", vec![], Some("/var/lib/adapters")), "/adapters").is_none());
    assert!(mounted(&build("sglang", all(), Some("/var/lib/adapters")), "/adapters").is_none());
}

#[test]
fn an_engine_has_time_to_load_and_not_for_ever() {
    let probe = |engine: &str| {
        let spec = CHAT.replace("slo:", &format!("engine: {engine}, slo:"));
        let pod = built(&world(vec![pool("chat", &spec)]), "gpu-1");
        let probe = pod["spec"]["containers"][0]["startupProbe"].clone();
        let seconds = probe["failureThreshold"].as_i64().unwrap() * probe["periodSeconds"].as_i64().unwrap();
        (probe["httpGet"]["path"].as_str().unwrap().to_owned(), seconds)
    };
    assert_eq!(probe("{kind: vllm}"), ("/health".to_owned(), 3600));
    assert_eq!(probe("{kind: sglang, coldStart: 20m}"), ("/health_generate".to_owned(), 8 * 1200));
}

fn budget(name: &str, owner: &str, spec: Value) -> PodDisruptionBudget {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}"), "ownerReferences": [
            {"apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelPool", "name": "chat", "uid": owner}]},
        "spec": spec,
    }))
    .unwrap()
}

#[test]
fn a_disruption_budget_lets_one_replica_go_at_a_time() {
    let mut world = world(vec![chat()]);
    let three = ["chat-1", "chat-2", "chat-3"].map(|id| assignment(id, "gpu-1")).to_vec();
    let three = plan(1, &world.pools[0], three);
    let at_work = |world: &World, plan: &_| {
        disruption::wanted(&validated(world), Some(plan), &world.pods)
            .into_iter()
            .map(|((_, name), wanted)| (name, wanted))
            .collect::<Vec<_>>()
    };
    assert_eq!(at_work(&world, &three).len(), 0, "nothing runs yet");
    world.pods = pods(&decide(&world, Some(&three), &[], at(0))).iter().map(|p| started(p, true)).collect();
    let (name, wanted) = at_work(&world, &three).remove(0);
    let spec = json!({
        "minAvailable": 2, "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": {"app.kubernetes.io/managed-by": "plimsoll", "plimsoll.dev/pool": "chat"}},
    });
    assert_eq!((name.as_str(), wanted.spec()), ("chat-engines", &spec));
    let step = |existing: &[&PodDisruptionBudget]| disruption::step(&name, &wanted, existing);
    assert_eq!(step(&[]), Step::Apply);
    let ours = budget("chat-engines", "uid-chat", spec.clone());
    assert_eq!(step(&[&ours]), Step::Keep);
    let mut other = spec.clone();
    other["minAvailable"] = json!(0);
    assert_eq!(step(&[&budget("chat-engines", "uid-chat", other.clone())]), Step::Apply);
    assert_eq!(step(&[&budget("chat-engines", "another", spec.clone())]), Step::Taken);
    // Two budgets for one pod would make it impossible to evict: somebody else's counts.
    let theirs = |labels: Value| budget("theirs", "another", json!({"selector": {"matchLabels": labels}}));
    let covering = theirs(json!({"app.kubernetes.io/name": "vllm"}));
    let covered =
        |ours: Option<&str>| Step::Covered { by: "theirs".to_owned(), ours: ours.map(str::to_owned) };
    assert_eq!(step(&[&covering]), covered(None));
    assert_eq!(step(&[&ours, &covering]), covered(Some("uid-of-chat-engines")));
    assert_eq!(step(&[&ours, &theirs(json!({"app.kubernetes.io/name": "postgres"}))]), Step::Keep);
    // The last replica may always go: a drain must not wait for ever.
    let one = plan(2, &world.pools[0], vec![assignment("chat-1", "gpu-1")]);
    assert_eq!(at_work(&world, &one)[0].1.spec()["minAvailable"], 0);
    // Whose name changes from replica to replica is no reason to look again.
    world.pods.remove(0);
    assert_eq!(at_work(&world, &three)[0].1, wanted);
}
