//! Fixtures.

#![allow(dead_code, reason = "each test file uses some")]

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use plimsoll_crds::{AcceleratorClass, ModelPool};
use plimsoll_fleet::plan::{PoolOutcome, Prediction, SolveQuality, Why};
use plimsoll_fleet::{DemandEstimate, Plan, PoolPlan, ReplicaAssignment, ReplicaId, Role, Shape};
use plimsoll_operator::OperatorConfig;
use plimsoll_operator::build::{Action, Inputs, Prepared, build};
use plimsoll_operator::devices::Devices;
use plimsoll_operator::observe::Observed;
use plimsoll_operator::snapshot;
use plimsoll_operator::validate::{LastGood, Validated, validate};
use plimsoll_operator::world::World;
use serde_json::{Value, json};

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + seconds).unwrap()
}

/// A ModelPool as the API server holds it: created at second 0, generation 1, with the finalizer.
pub fn pool(name: &str, spec: &str) -> ModelPool {
    let spec: Value = serde_saphyr::from_str(spec).unwrap();
    serde_json::from_value(json!({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "ModelPool",
        "metadata": {
            "name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1, "resourceVersion": "7",
            "creationTimestamp": at(0), "finalizers": ["plimsoll.dev/drain"],
        },
        "spec": spec,
    }))
    .unwrap()
}

pub fn chat() -> ModelPool {
    pool(
        "chat",
        "{model: {name: llama-3.1-70b, preset: llama-3.1-70b}, slo: {ttft: {p95: 800ms}, tpot: {p95: 50ms}}}",
    )
}

pub fn class(name: &str) -> AcceleratorClass {
    serde_json::from_value(json!({
        "apiVersion": "plimsoll.dev/v1alpha1", "kind": "AcceleratorClass",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "generation": 1}, "spec": {"preset": name},
    }))
    .unwrap()
}

pub fn node(name: &str, gpus: u32) -> Arc<Node> {
    let node = json!({
        "metadata": {"name": name, "labels": {
            "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "topology.kubernetes.io/zone": "a"}},
        "status": {"allocatable": {"nvidia.com/gpu": gpus.to_string()},
                   "conditions": [{"type": "Ready", "status": "True"}]},
    });
    Arc::new(serde_json::from_value(node).unwrap())
}

pub fn world(pools: Vec<ModelPool>) -> World {
    World { pools, accelerators: vec![class("h100")], nodes: vec![node("gpu-1", 8)], ..World::default() }
}

pub fn shape(tensor_parallel: u32) -> Shape {
    Shape {
        variant: "fp8".to_owned(),
        accelerator: "h100".to_owned(),
        tensor_parallel,
        pipeline_parallel: 1,
        data_parallel: 1,
        expert_parallel: 1,
        role: Role::Mixed,
    }
}

pub fn assignment(id: &str, node: &str) -> ReplicaAssignment {
    ReplicaAssignment {
        id: ReplicaId::new(id).unwrap(),
        shape: shape(2),
        nodes: vec![node.parse().unwrap()],
        spot: false,
    }
}

/// A plan for one pool.
pub fn plan(number: u64, pool: &ModelPool, replicas: Vec<ReplicaAssignment>) -> Plan {
    let meta = &pool.metadata;
    let usd = 4.6 * replicas.len() as f64;
    Plan {
        number,
        created_at: at(10 * number as i64),
        trigger: "spec changed".to_owned(),
        pools: vec![PoolPlan {
            pool: format!("{}/{}", meta.namespace.as_deref().unwrap(), meta.name.as_deref().unwrap())
                .parse()
                .unwrap(),
            uid: meta.uid.clone().unwrap(),
            generation: meta.generation.unwrap(),
            outcome: PoolOutcome::Served,
            replicas,
            flows: Vec::new(),
            unserved_rps: 0.0,
            demand: DemandEstimate::default(),
            load_lines: vec![(shape(2), 3.1234)],
            utilisation: 0.65,
            usd_per_hour: usd,
            watts: 1200.0,
            grams_co2e_per_hour: 680.0,
            replica_watts: Vec::new(),
            prediction: Prediction {
                ttft_ms: Some(412.3),
                tpot_ms: Some(31.2),
                e2e_ms: None,
                relative_error: 0.1,
            },
            envelope: (1, 4),
            why: Why { summary: "cheapest; next: TP4 L40S +$1.10/h".to_owned(), ..Why::default() },
            today: None,
        }],
        usd_per_hour: usd,
        watts: 1200.0,
        grams_co2e_per_hour: 680.0,
        budgets: Vec::new(),
        binding: Vec::new(),
        quality: SolveQuality::default(),
        unprovisioned: Vec::new(),
    }
}

/// What the cluster makes of a pod that the operator created.
pub fn started(pod: &Pod, ready: bool) -> Arc<Pod> {
    let mut value = serde_json::to_value(pod).unwrap();
    value["metadata"]["uid"] = json!(format!("pod-{}", pod.metadata.name.as_deref().unwrap()));
    value["metadata"]["creationTimestamp"] = json!(at(20));
    value["spec"]["nodeName"] = json!("gpu-1");
    value["status"] = json!({
        "phase": "Running", "podIP": "10.0.0.7", "startTime": at(21),
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": at(30)}],
        "containerStatuses": [{"name": "engine", "ready": ready, "restartCount": 0, "image": "", "imageID": "",
                               "state": {"running": {"startedAt": at(22)}}}],
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

pub fn validated(world: &World) -> Validated {
    validate(world, &LastGood::new())
}

pub fn decide(world: &World, plan: Option<&Plan>, drained: &[&str], now: Timestamp) -> Prepared {
    decide_with(world, plan, drained, now, false)
}

pub fn decide_with(
    world: &World,
    plan: Option<&Plan>,
    drained: &[&str],
    now: Timestamp,
    lws: bool,
) -> Prepared {
    decide_as(&OperatorConfig::default(), world, plan, drained, now, lws)
}

pub fn decide_as(
    config: &OperatorConfig,
    world: &World,
    plan: Option<&Plan>,
    drained: &[&str],
    now: Timestamp,
    lws: bool,
) -> Prepared {
    let validated = validated(world);
    let (replicas, strangers): (Vec<Observed>, _) = snapshot::replicas(world);
    assert!(strangers.is_empty(), "{strangers:?}");
    let drained: BTreeSet<ReplicaId> = drained.iter().map(|id| ReplicaId::new(*id).unwrap()).collect();
    let snapshot = snapshot::snapshot(world, &validated, &replicas, &config.faults);
    let devices = Devices::read(&world.dynamic, validated.accelerator_classes());
    build(Inputs {
        nodes: &snapshot.nodes,
        lws,
        validated: &validated,
        devices: &devices,
        replicas: &replicas,
        plan,
        drained: &drained,
        judged: &BTreeSet::new(),
        config,
        now,
    })
}

pub fn pods(prepared: &Prepared) -> Vec<Pod> {
    prepared
        .actions
        .iter()
        .filter_map(|a| match a {
            Action::CreatePod { pod, .. } => Some((**pod).clone()),
            _ => None,
        })
        .collect()
}

pub fn later(t: Timestamp, seconds: i64) -> Timestamp {
    t.saturating_add(SignedDuration::from_secs(seconds)).unwrap()
}
