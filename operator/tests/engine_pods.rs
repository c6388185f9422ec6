//! What an engine's pod asks of a real cluster: accelerators, taints, queues, autoscalers, weights.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::*;
use k8s_openapi::api::core::v1::Node;
use plimsoll_crds::AcceleratorClass;
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
